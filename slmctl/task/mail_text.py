"""A mail's own text: quoted earlier mail and the signature cut off, by the forms that mail programs
write.

In doubt nothing is cut: a form must fill whole lines, an attribution needs a time, an address or a
quotation after it, and a closing formula must stand near the end. Forwarded mail stays, since a
forwarding mail is about it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

LINE = 400  # characters of a line that are looked at
WRAPPED = 3  # lines over which an attribution may be wrapped
HEADERS = 6  # lines of a block of mail headers
SIGNATURE_LINES = 20  # that are not blank; a longer end of a mail is no signature
SIGNATURE_SIZE = 2_000  # characters

_QUOTED = re.compile(r"\s{0,3}>")
_ORIGINAL = re.compile(
    r"\s{0,9}[-_*]{2,20}\s{0,5}(?:original(?: "
    r"message|nachricht)?|original-nachricht|urspr(?:ü|ue)ngliche nachricht|"
    r"message d['’]origine|message original|mensaje original|messaggio originale|mensagem original|"
    r"oorspronkelijk bericht|originalmeddelande|oprindelig meddelelse|opprinnelig "
    r"melding|wiadomość oryginalna)"
    r"\s{0,5}[-_*]{2,20}\s{0,9}",
    re.IGNORECASE,
)
_ATTRIBUTION = re.compile(
    r"\s{0,3}(?:"
    r"on .{8,300} wrote|am .{8,300} schrieb .{1,200}|.{1,200} schrieb am .{6,100}|le .{8,300} a "
    r"écrit|"
    r"el .{8,300} escribió|il .{8,300} ha scritto|op .{8,300} schreef .{1,200}|.{1,200} schreef op "
    r".{6,100}|"
    r"em .{8,300} escreveu|den .{8,300} skrev .{1,200}|w dniu .{8,300} napisał(?:\(a\)|a)?"
    r")\s{0,3}:\s{0,9}",
    re.IGNORECASE,
)
_WHEN = re.compile(r"\d{1,2}[:.h]\d{2}|@")  # a time, or an address
_HEADER = re.compile(
    r"[\s*]{0,9}(?:"
    r"(?P<sender>from|von|de|da|van|från|fra|od)|"
    r"(?P<date>sent|date|gesendet|datum|envoyé|enviado|fecha|inviato|data|verzonden|skickat|sendt|wysłano)|"
    r"(?P<to>to|an|à|para|a|aan|till|til|do)|"
    r"(?P<subject>subject|betreff|objet|asunto|oggetto|assunto|onderwerp|ämne|emne|temat)"
    r")\*{0,2}\s{0,3}:",
    re.IGNORECASE,
)
_RULE = re.compile(r"\s{0,9}[-_]{5,200}\s{0,9}")

_DASHES = re.compile(r"-- ?")
_NAME = r"(?-i:[A-ZÀ-ÞŁŚŻŽ](?:[\w’'-]{1,30}|\.))"
_CLOSING = re.compile(
    r"\s{0,9}(?:(?:vielen|besten|herzlichen)? ?dank,? (?:und )?|(?:many )?thanks,? (?:and "
    r")?)?(?:(?:"
    r"mit (?:freundlich|best|herzlich|lieb|viel)(?:en|em) gr(?:ü|ue|u)(?:ß|ss)(?:en)?|"
    r"(?:freundliche|viele|beste|liebe|herzliche|sonnige|schöne)r? "
    r"gr(?:ü|ue|u)(?:ß|ss)e?|hochachtungsvoll|"
    r"(?:best|kind|kindest|warm|warmest) (?:regards|wishes)|(?:yours "
    r")?(?:sincerely|faithfully|truly)|sincerely yours|"
    r"(?:bien )?cordialement|salutations distinguées|(?:meilleures|sincères) salutations|bien à "
    r"vous|"
    r"(?:un )?(?:cordial )?saludos?(?: cordiales?)?|atentamente|"
    r"(?:cordiali|distinti) saluti|met vriendelijke groet(?:en)?|vriendelijke groeten|"
    r"atenciosamente|(?:com os melhores )?cumprimentos|"
    r"(?:med )?(?:vänliga|bästa) hälsningar|(?:med )?venlig hilsen|(?:med )?vennlig hilsen|"
    rf"pozdrawiam|z poważaniem)(?: (?:aus|from))?(?:[ ,.!–-]{{0,4}}{_NAME}){{0,3}}[ ,.!]{{0,4}}|"
    # short words have other meanings: they stand alone, or a name follows a comma
    rf"(?:gr(?:ü|ue|u)(?:ß|ss)e?|mfg|m\.f\.g\.|vg|lg|regards|best|cheers|groeten)(?:, ?(?:{_NAME} "
    rf"?){{0,3}}|[.!])?)",
    re.IGNORECASE,
)
_DEVICE = re.compile(
    r"\s{0,9}(?:sent from my |von meinem .{2,30} gesendet|gesendet (?:von|mit) "
    r"(?:meinem|der|outlook)|envoyé de mon |"
    r"enviado desde mi |inviato da(?:l mio)? |verstuurd vanaf mijn |get outlook for ).{0,80}",
    re.IGNORECASE,
)
_POSTSCRIPT = re.compile(r"\s{0,9}p\.? ?s\b", re.IGNORECASE)


def without_quotations(text: str) -> str:
    """The text without quoted lines, their attributions, and all that
    follows the head of an earlier mail.
    """
    lines, at = text.split("\n"), 0
    kept: list[str] = []
    while at < len(lines):
        line = lines[at][:LINE]
        if _ORIGINAL.fullmatch(line) or _is_head(lines, at):
            break
        if many := _attribution(lines, at):
            if not _is_quoted_after(lines, at + many):
                break
            at += many
            continue
        if not _QUOTED.match(line):
            kept.append(lines[at])
        at += 1
    return "\n".join(kept).rstrip() if len(kept) < len(lines) else text


def _is_head(lines: Sequence[str], at: int) -> bool:
    """True where the headers of an earlier mail begin, or the rule above them."""
    if _RULE.fullmatch(lines[at][:LINE]) and at + 1 < len(lines):
        at += 1
    first = _HEADER.match(lines[at][:LINE])
    if first is None or first["sender"] is None:
        return False
    headers = (_HEADER.match(line[:LINE]) for line in lines[at + 1 : at + HEADERS])
    return len({match.lastgroup for match in headers if match} - {"sender"}) >= 2


def _attribution(lines: Sequence[str], at: int) -> int:
    """The number of lines of an attribution such as `On 3 May 2026 at
    10:15, Ann wrote:` that begins here; or 0.
    """
    if not lines[at].strip():
        return 0
    for many in range(1, WRAPPED + 1):
        part = lines[at : at + many]
        text = " ".join(line.strip() for line in part)[: 2 * LINE]
        if text.rstrip().endswith(":"):
            if not _ATTRIBUTION.fullmatch(text):
                return 0
            return many if _WHEN.search(text) or _is_quoted_after(lines, at + many) else 0
        if not part[-1].strip():
            return 0
    return 0


def _is_quoted_after(lines: Sequence[str], at: int) -> bool:
    """True where the next line that is not blank is a quoted one."""
    while at < len(lines) and not lines[at].strip():
        at += 1
    return at < len(lines) and _QUOTED.match(lines[at]) is not None


def without_signature(text: str) -> str:
    """The text up to a closing formula or `-- ` that stands near its end, and without lines that
    name a device.

    The part that is cut off is short, and holds no postscript and no question.
    """
    lines = text.split("\n")
    kept = [line for line in lines if not _DEVICE.fullmatch(line[:LINE])]
    cut = _signature(kept)
    return "\n".join(kept[:cut]).rstrip() if cut < len(lines) else text


def _signature(lines: Sequence[str]) -> int:
    """The index of the first line of a signature; `len(lines)` without one."""
    cut = len(lines)
    size = count = 0
    for at in range(len(lines) - 1, -1, -1):
        line = lines[at][:LINE].rstrip("\r")
        if _DASHES.fullmatch(line) or _CLOSING.fullmatch(line.rstrip()):
            cut = at
        if not line.strip():
            continue
        size += len(lines[at])
        count += 1
        is_said = _POSTSCRIPT.match(line) or line.rstrip().endswith("?")
        if is_said or count > SIGNATURE_LINES or size > SIGNATURE_SIZE:
            break
    return cut
