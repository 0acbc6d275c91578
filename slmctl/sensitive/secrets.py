"""The rule for secrets: keys with the prefix of a known issuer, and values after a name such as
`password=`.

A checksum, a UUID or a random word without such a prefix or name is not found, since it cannot be
distinguished from other text. Every pattern is bounded, see `rules`.
"""

from __future__ import annotations

import base64
import itertools
import re
from collections.abc import Iterator

from slmctl.sensitive.rules import RuleMatch, digit_count, holds, words
from slmctl.sensitive.unmask import FOLDS


def _any_of(words: list[str]) -> re.Pattern[str]:
    """A pattern for any of the words, grouped by first letter, which is
    three times as fast as a plain alternation.
    """
    by_first: dict[str, list[str]] = {}
    for word in words:
        by_first.setdefault(re.escape(word[0]), []).append(re.escape(word[1:]))
    return re.compile("|".join(f"{first}(?:{'|'.join(rest)})" for first, rest in by_first.items()))


_B, _E = r"(?<![A-Za-z0-9])", r"(?![A-Za-z0-9])"
# Issuer -> (texts of which the lower-case text must hold one, the pattern that is then tried).
_KEYS: dict[str, tuple[tuple[str, ...], re.Pattern[str]]] = {
    name: (tuple(cues.split()), re.compile(rf"{_B}(?:{pattern})", re.IGNORECASE))
    for name, cues, pattern in (
        (
            "aws",
            "akia asia aroa aida abia acca agpa anpa",
            rf"A(?:KIA|SIA|ROA|IDA|BIA|CCA|GPA|NPA)[A-Z2-7]{{16}}{_E}",
        ),
        (
            "github",
            "ghp_ gho_ ghu_ ghs_ ghr_ github_",
            r"gh[pousr]_[A-Z0-9]{30,}|github_pat_\w{22,}",
        ),
        (
            "gitlab",
            "glpat- gldt- glrt- glptt- glft- glcbt-",
            r"gl(?:pat|dt|rt|ptt|ft|cbt)-[\w-]{20,}",
        ),
        (
            "slack",
            "xox xapp- hooks.",
            r"xox[a-z]-[\w-]{10,}|xapp-\d-[\w-]{10,}|hooks\.slack\.com/services(?:/\w{1,99}+){3}",
        ),
        ("stripe", "_live_ _test_ whsec_", r"[srp]k_(?:live|test)_\w{10,}|whsec_[\w+/]{20,}"),
        ("google", "aiza ya29. gocspx-", r"AIza[\w-]{35}|ya29\.[\w-]{20,}|GOCSPX-[\w-]{20,}"),
        ("sk", "sk-", r"sk-(?=[a-z_-]{0,99}+\d)[\w-]{20,}"),
        ("huggingface", "hf_ api_org_", r"(?:hf|api_org)_[A-Z0-9]{20,}"),
        ("pypi", "pypi-", r"pypi-AgE[\w-]{20,}"),
        ("npm", "npm_", r"npm_[A-Z0-9]{30,}"),
        ("rubygems", "rubygems_", r"rubygems_[0-9a-f]{40,}"),
        ("sendgrid", "sg.", r"SG\.[\w-]{16,99}+\.[\w-]{16,}"),
        ("mail-service", "key- xkeysib-", r"(?:key|xkeysib)-[0-9a-f]{32,}"),
        ("telegram", ":aa", r"\d{8,10}:AA[\w-]{30,}"),
        ("digitalocean", "_v1_", r"do[opr]_v1_[0-9a-f]{32,}"),
        ("databricks", "dapi", r"dapi[0-9a-f]{32}"),
        ("vault", "hvs.", r"hvs\.[\w-]{20,}"),
        ("age", "age-secret", r"AGE-SECRET-KEY-1\w{40,}"),
        (
            "model-service",
            "gsk_ r8_ nvapi- pplx- xai-",
            r"(?:gsk_|r8_|nvapi-|pplx-|xai-)(?=[a-z_-]{0,99}+\d)[\w-]{20,}",
        ),
        ("shopify", "shp", r"shp(?:at|ca|pa|ss)_[0-9a-f]{20,}"),
        ("grafana", "glsa_", r"glsa_\w{20,}"),
        ("slmctl", "slm-", r"slm-[\w.-]{1,64}?-[0-9a-f]{64}(?![0-9a-f])"),
        (
            "service",
            "lin_api_ ntn_ nrak- pmak- dckr_pat_ figd_ sbp_ sntrys_ tskey-",
            r"(?:lin_api_|ntn_|NRAK-|PMAK-|dckr_pat_|figd_|sbp_|sntrys_|tskey-)[\w-]{20,}",
        ),
        ("webhook", "/webhooks/", r"discord(?:app)?\.com/api/webhooks/\d{9,20}/[\w-]{30,}"),
        # of a password
        (
            "hash",
            "$2a$ $2b$ $2y$ $1$ $5$ $6$ $y$ $apr1$ $argon2 $scrypt$ pbkdf2 {ssha",
            r"\$2[aby]\$\d\d\$[\w./]{50,60}+|(?:\$(?:[156y]|apr1|argon2(?:id|[id])|scrypt)\$|pbkdf2[_-]sha\d{1,3}+\$)"
            r"(?:[\w=,./+-]{1,64}+\$){1,3}+[\w./+=-]{20,200}+|\{SSHA\d{0,3}+\}[\w+/]{20,200}+={0,2}+",
        ),
        (
            "putty",
            "putty-user-key",
            r"PuTTY-User-Key-File-\d:(?:[^P]|P(?!rivate-MAC:)){0,20000}+"
            r"(?:Private-MAC: ?[0-9a-f]{0,128}+)?",
        ),
    )
}
_CUES = _any_of([cue for cues, _ in _KEYS.values() for cue in cues])
# The character before is looked at second, so that a search skips to the letters that can begin a
# match.
_TWILIO = re.compile(
    r"[AaSs](?<![A-Za-z0-9].)(?:(?<=[Aa])[Cc]|(?<=[Ss])[Kk])[0-9A-Fa-f]{32}(?![A-Za-z0-9])"
)
# token of a bot
_DISCORD = re.compile(r"[MNO](?<![\w.-].)[\w-]{23,27}+\.[\w-]{6}\.[\w-]{27,40}+(?![\w.-])")
_PGPASS = re.compile(  # host:port:database:user:password; the user is no part of an IPv6 address
    r":(?:\d{4,5}|\*):[\w*-]{1,63}+:(?=[0-9a-fA-F]{0,63}+[\w*])[\w*.@-]{1,63}+:(?P<value>[^\s\"'`]{4,200}+)"
)
_JWT_BODY = re.compile(r"\.eyJ[\w-]{8,8000}+(?:\.[\w-]{0,2000}+)?+", re.IGNORECASE)
_JWT_HEAD_REVERSED = re.compile(r"[\w-]{8,2000}+")  # the reversed `eyJ…` before the first dot
_PEM = re.compile(
    r"-----BEGIN (?:(?!PRIVATE)[A-Z0-9]{1,20}+ ){0,3}+PRIVATE KEY(?: BLOCK)?-----"
    r"(?:[^-]|-(?!----END)){0,20000}+(?:-----END [A-Z0-9 ]{0,40}+-----)?",
    re.IGNORECASE,
)
# Placeholders in place of a value: a mark, a variable, a blank.
_BLANK = re.compile(
    r"\[[\w ]{1,400}+\]|<[^<>]{0,400}+>?|\$\{?\w{0,400}+\}?"
    r"|\{{1,9}+[^{}]{0,400}+\}{0,9}+|%\w{1,400}+%?"
    r"|[*.•x_#?-]{1,400}+"
    r"|none|null|nil|true|false|undefined|empty|required|optional|expired|invalid|missing|string|str|text|hidden"
    r"|redacted|secret|password|token|not|the|a|an|is|was|yes|no|n/a|okay|failed|passed|changed|reset"
    r"|(?:your|my)(?:[_-]?(?:own|new|api|secret|access|auth|key|token"
    r"|pass(?:word|wd|code|phrase)?+|pin|value|here)){0,9}+",
    re.IGNORECASE,
)
_MORE_THAN_WORD = re.compile(r"\d|[^\w'.-]|_")
_CODE = re.compile(  # code that reads a value, such as os.environ["KEY"]
    r"[a-z_][a-z_.]{0,99}+[(\[]|(?:self|this|os|process|env|args|config|settings|ctx)\.[a-z_]",
    re.IGNORECASE,
)
# Words for password in other languages, folded as in `unmask`; up to two letters may follow.
FOREIGN = (
    "mot de passe",
    "كلمة المرور",
    "كلمة السر",
    "رمز عبور",
    "mật khẩu",
    "mat khau",
    "kata sandi",
    *sorted(
        words(
            "contraseña contrasena парол hasło haslo wachtwoord senha lösenord passord salasana "
            "adgangskode kodeord heslo "
            "jelszó jelszav şifre parola parolă lozinka slaptažodis "
            "密码 密碼 口令 パスワード 暗証番号 비밀번호 암호 "
            "סיסמה סיסמא κωδικός รหัสผ่าน पासवर्ड পাসওয়ার্ড".translate(FOLDS)
        )
    ),
)
_SAID_NAME = rf"(?:{'|'.join(FOREIGN)})[^\W\d_]{{0,2}}+"
# Words for password that are parts of other words, so no letter may follow: `mdp` is French,
# `clave` Spanish.
_WHOLE_NAME = (
    r"(?:mdp|(?<!palabra )clave|(?:wi-?fi|wlan|wpa2?|wep|network|netz(?:werk)?)[ "
    r"_-]?(?:key|schl[uü]ssel))(?![^\W\d_])"
)
# A name may begin at a word's start, and inside a camel-case name such as dbPassword.
_BEGIN = r"(?:(?<![a-z0-9])|(?-i:(?<=[a-z0-9])(?=[A-Z])))"
_NAME = (
    r"(?:[a-z0-9]{1,20}+[_.-]){0,3}(?>pass(?:words?|wd|phrase|code|worts?|wrd)|psw|pwd?|p/w|kennwort"
    r"|(?:db|database|my?sql|postgres|pg|redis|mongo(?:db)?|s?ftp|ssh|smtp|imap|e?mail|ldap|mq|proxy|http|admin|root"
    r"|user|app|api|vpn|wi-?fi|ssl|key(?:store)?)[_-]?pass(?![a-z])"
    rf"|{_SAID_NAME}|{_WHOLE_NAME}|(?:j|php)?sess(?:ion)?[_-]?id|connect\.sid"
    r"|secret(?:[_ -]?key)?|api[_ -]?(?:key|token|secret)"
    r"|(?:access|auth|account|private|signing|encryption|shared)[_ -]?(?:key|token|secret)"
    r"|client[_ -]?secret|(?:bearer|refresh|session|id(?:entity)?)?[_-]?token|credentials?)"
    r"(?:[_-]?\d{1,2}+)?+(?:\s?\([^()\n]{1,30}+\))?+"  # password_2, password (new)
)
NAMES = (
    "pass",
    "pw",
    "p/w",
    "psw",
    "secret",
    "token",
    "key",
    "kennwort",
    "contrase",
    "mot de",
    "bearer",
    "authoriz",
    "credential",
    "cookie",
    "wifi:",
    "sess",
    ".sid",
    "login",
    "log-in",
    "creds",
    "zugangsdaten",
    "mdp",
    "clave",
    "schlüssel",
    "schlussel",
    *FOREIGN,
)
_ABBREVIATED = re.compile(r"(?:pwd?|p/w|psw)\b", re.IGNORECASE)  # never used in prose
_ASSIGNED = re.compile(
    rf"{_BEGIN}{_NAME}[\"'`*\])]{{0,3}}+\s{{0,3}}+(?P<sign>(?>:=|=>|<-|->|→|={{1,2}}|:|\|))\s{{0,3}}+"
    r"(?:[|>][+-]?\s{1,9}+)?+(?:[-*] )?+"  # YAML: a block text on the next line, a list item
    # JSON: {"value": "…"}
    r"(?:(?:\[|\{\s{0,3}+[\"'](?:value|plain|text)[\"']\s{0,2}+:)\s{0,2}+(?=[\"']))?+"
    r"(?P<quote>[\"'`*]{0,3}+)"
    r"(?P<value>(?:(?:bearer|basic|token) )?[^\s\"'`,;<>&]{4,400}+)",
    re.IGNORECASE,
)
_PAIR = re.compile(  # define('DB_PASSWORD', '…'), name="password" value="…"
    rf"{_BEGIN}{_NAME}[\"']\s{{0,2}}+(?:,\s{{0,3}}+)?+(?:[\"']?+(?:value|content)[\"']?+\s{{0,2}}+[:=]\s{{0,2}}+)?+"
    r"[\"'](?P<value>[^\s\"'`,;<>&]{4,200}+)[\"']",
    re.IGNORECASE,
)
# `pass` has other meanings, so it needs a user before it, or a value that is more than a word;
# ACME_PASS has none.
_PASS = re.compile(
    r"(?:(?<![a-z0-9_-])|(?-i:(?<![A-Za-z0-9_])(?P<variable>[A-Z][A-Z0-9_]{0,40}_)(?=PASS)))pass"
    r"[\"'`*]{0,3}+\s{0,2}+(?P<sign>[:=])\s{0,3}+(?P<quote>[\"'`]?+)(?P<value>[^\s\"'`,;<>&]{1,400}+)",
    re.IGNORECASE,
)
_USER = re.compile(
    r"(?<![a-z0-9])(?>user(?:[ "
    r"_-]?(?:name|id))?|log-?in|account|benutzer(?:name)?|usuario|e?-?mail)"
    r"\s{0,2}+(?>[:=]|ist|is)\s{0,2}+[^\s,;/|]{1,60}+[\s,;/|]{1,4}+(?:and |und |& )?+$",
    re.IGNORECASE,
)
_TICKET = re.compile(
    r"(?:boarding|season|bus|train|ski|day|travel|press|guest|visitor|hall) $", re.IGNORECASE
)
_ELEMENT = re.compile(rf"<(?P<name>{_NAME})>(?P<value>[^<>\s]{{4,400}}+)</", re.IGNORECASE)
_HEADER = re.compile(
    r"\b(?>authorization|x-api-key|x-auth-token|private-token)[\"']?+\s{0,2}+[:=]\s{0,2}+[\"']?+"
    r"(?>(?:bearer|basic|token|apikey|digest)\s{1,9})?+"
    r"(?!(?:bearer|basic|token|apikey|digest)\b)(?P<value>[\w.~+/=:-]{6,2000}+)"
    r"|\bbearer\s{1,9}+(?P<bearer>(?=[a-z_.~+/=-]{0,99}+\d)[\w.~+/=-]{16,2000}+)",
    re.IGNORECASE,
)
# user:password in base64: `Basic …` without its header, and as Docker and npm keep it
_BASIC = re.compile(
    r"(?:\bbasic\s{1,3}+|[\"']auth[\"']\s{0,2}+:\s{0,2}+[\"']|\b_auth\s?=\s?[\"']?+)(?P<value>[a-z0-9+/]{6,2000}+={0,2}+)",
    re.IGNORECASE,
)
_COOKIE = re.compile(
    r"\b(?:set-)?cookie[\"']?+\s{0,2}+[:=]\s{0,2}+[\"']?+(?P<value>[\w.-]{1,64}+=[^\s\"',;]{8,2000}+"
    r"(?:;\s?[\w.-]{1,64}+=[^\s\"',;]{1,2000}+){0,20}+)",
    re.IGNORECASE,
)
_WIFI = re.compile(  # the text of a Wi-Fi QR code: WIFI:T:WPA;S:name;P:password;;
    r"\bwifi:(?:(?!P:)[a-z0-9]{1,3}+:(?:[^;\\]|\\.){0,100}+;){0,6}+P:(?P<value>(?:[^;\\]|\\.){1,100}+);",
    re.IGNORECASE,
)
_SAID = re.compile(
    rf"\b(?>pass(?:word|phrase|code|wd|wort)|pwd?|kennwort|{_SAID_NAME}|{_WHOLE_NAME}"
    r"|api[ -]?key|access[ -]?(?:key|token)|secret key)\s{1,3}+"
    r"(?:(?:for|of|to|on|at)\s{1,3}+(?:\w{1,40}+\s{1,3}+){1,3}?)?(?>ist|is|was|lautet|est|es|è|=|to):?+\s{1,3}+"
    r"(?P<quote>[\"'`]?+)(?P<value>[^\s\"'`]{4,200}+)",
    re.IGNORECASE,
)
_SAID_ABROAD = re.compile(  # its verbs mean other things in English: "my password on Windows11"
    rf"{_SAID_NAME}\s{{1,3}}+(?:(?:\w{{1,20}}+\s{{1,3}}+){{0,2}}?"
    rf"(?>on|är|er|é|è|to|jest|je|{'это'.translate(FOLDS)}|este|là|adalah|คอ|est|es|είναι|הוא|היא|هي|هو|は|是|는|은):?+\s{{1,3}}+"
    r"|(?=[^\s\d]{0,30}+\d))(?P<quote>[\"'`]?+)(?P<value>[^\s\"'`]{4,200}+)",
    re.IGNORECASE,
)
_ASKED = re.compile(  # What is your password? It is hunter2!x
    rf"\b(?>pass(?:word|phrase|code|wd|wort)|pwd?|kennwort|{_SAID_NAME})(?:[\s,]{{1,2}}+\w{{1,20}}+){{0,6}}+"
    r"\s?[?？]{1,3}+[\"'`*)]{0,2}+\s{1,3}+(?:(?:yes|sure|ok|it|that|my|password|'?s|is|ist|es|est|c'est)[\s,:]{1,2}+){0,4}+"
    r"(?P<value>(?=[^\s\d!#$%^&*+=~]{0,30}+(?:\d|[!#$%^&*+=~]\w))(?=[\W\d_]{0,30}+[^\W\d_])(?!\S{0,30}(?:://|@))[^\s\"'`]{5,60}+)",
    re.IGNORECASE,
)
_PHRASE = re.compile(  # the words of a wallet
    r"\b(?>seed|recovery|mnemonic|wallet|backup)[ -](?:seed )?phrase"
    r"(?:\s(?:is|are)\b)?\W{1,3}+(?P<value>[a-z]{3,8}+(?:[ ,]{1,2}+[a-z]{3,8}+(?![a-z])){11,23}+)",
    re.IGNORECASE,
)
_BARE = re.compile(  # pw hunter2, ENV DB_PASS hunter2, my password, hunter2, was refused
    r"(?:\b|(?<=_))(?>pwd?|p/w|pass(?:word|wort|code)|kennwort|(?<=_)pass)"
    r"(?>\s{0,2}[-–]\s{1,2}|\s{1,2}|,\s(?=[^\s,]{1,60}+,))[\"']?+"
    r"(?P<value>(?=[a-z_.!$%-]{0,30}+\d)[^\s\"'`,;<>&]{6,60}+)"
    r"|\b(?>api|access|auth|bearer)[ _-]?(?>key|token)\s{1,2}+"
    r"(?P<token>(?=[a-z_.-]{0,60}+\d)(?=[\d_.-]{0,60}+[a-z])[\w.-]{16,200}+)",
    re.IGNORECASE,
)
_CREDENTIALS = re.compile(  # login: jane / hunter2
    r"\b(?:log-?in|zugangsdaten|credentials?|creds)\W{1,3}+[a-z][^\s/|:]{1,60}+\s?[/|:]\s?"
    r"(?P<value>(?=[^\s\d]{0,60}+\d)(?=[^a-z\s]{0,60}+[a-z])(?!/)[^\s\"',;]{6,60}+)",
    re.IGNORECASE,
)
_OPTION = re.compile(  # curl -u jane:hunter2, docker login -p hunter2
    r"(?<!\S)(?:-u|--user)[ =][\"']?+[\w.@+-]{1,64}+:(?P<value>[^\s\"':]{4,200}+)"
    r"|\b(?:login|sshpass|mysql\w{0,10}+)\b[^\n|;]{0,40}?\s-p[ =]?[\"']?+"
    r"(?P<token>(?=[a-z_.!$%-]{0,30}+\d)(?=\d{0,30}+[a-z])[^\s\"']{4,60}+)",
    re.IGNORECASE,
)
_SIGNATURE = re.compile(  # signatures of pre-signed URLs, which give access to anyone
    r"[?&](?:x-(?:amz|goog)-(?:signature|security-token)|sig(?:nature)?)=(?P<value>[\w%+/=.~-]{16,500}+)",
    re.IGNORECASE,
)
_PIN = re.compile(
    r"\b(?>pin|puk|cvv2?|cvc2?|m?tan|otp|geheimzahl|cryptogramme|code secret"
    r"|(?:karten)?pr[uü]f(?:nummer|ziffer)(?=\D{0,12}\d{3,4}(?!\d))"
    r"|(?:your|security|verification|confirmation|one[ "
    r"-]time|login|access|sms|2fa|ihr|dein|votre|ton|tu|su)"
    r" c[oó]d(?:e|igo)"
    r"|(?:sicherheits|bestätigungs|verifizierungs|zugangs|freischalt|einmal|entsperr|t[uü]r)code"
    r"|c[oó]d(?:e|igo) de "
    r"(?:v[eé]rification|s[eé]curit[eé]|confirmation|verificaci[oó]n|seguridad|acceso))"
    r"(?>[ -]?(?:code|number|no))?+\W{0,3}+(?>(?:is|was|ist|of|lautet|est|es)\W{1,3})?+"
    r"(?P<value>\d{3}[ -]\d{3}(?!\d)|\d{3,8}+)(?![a-z_.,]{0,16}+\d)",
    re.IGNORECASE,
)
_PIN_CUES = (
    "pin",
    "cv",
    "code",
    "tan",
    "otp",
    "puk",
    "digo",
    "geheimzahl",
    "cryptogramme",
    "prüf",
    "pruf",
)
_IS_CODE = re.compile(  # 482913 is your login code
    r"(?<![\w-])(?:G-)?(?P<value>\d{3}[ -]\d{3}|\d{4,8}+)\s{1,2}+"
    r"(?>ist|is|est|es)\s{1,2}+(?>your|ihr|dein|votre|ton|tu|su)\s{1,2}+"
    r"(?:(?!order|booking|product|discount|promo|postal|zip|tracking|customer)[\w-]{1,20}+\s{1,2}+){0,3}?"
    r"(?:code|pin|tan|otp|passcode|c[oó]digo)\b",
    re.IGNORECASE,
)
# root:hunter2@10.1.2.3; before the name of a host an address of mail stands too, so with a sign
_AT_HOST = re.compile(
    r"(?<![\w.:/@-])[a-z_][\w.-]{0,31}+:(?P<value>(?=[^\s@]{0,60}+@(?:\d{1,3}\.\d|localhost\b)|[\w.+-]{0,60}+[!#$%^&*~])"
    r"[^\s/@:\"']{4,60}+)@(?=localhost\b|[\w-]{1,63}+[.:]\w)",
    re.IGNORECASE,
)
_IN_URL = re.compile(
    r"\b[a-z][a-z0-9+.-]{1,20}+://[^\s/:@]{0,100}+:(?P<value>[^\s/@]{3,200}+)@", re.IGNORECASE
)


def secrets(text: str) -> Iterator[RuleMatch]:
    """Keys by prefix; values after a name such as `password=`, in an
    Authorization header or in a URL; PINs.
    """
    low, digits = text.lower(), digit_count(text)
    yield from _by_form(text, low, digits)
    if holds(low, NAMES):
        yield from _named(text, low)
    yield from _by_place(text, low, digits)


def _by_form(text: str, low: str, digits: int) -> Iterator[RuleMatch]:
    """Keys and tokens that their own form shows."""
    if _CUES.search(low):
        for name, (cues, pattern) in _KEYS.items():
            for match in pattern.finditer(text) if holds(low, cues) else ():
                yield _match(f"secret/{name}", match, 0)
    for match in _TWILIO.finditer(text) if digits > 7 else ():
        yield _match("secret/twilio", match, 0)
    if ".eyj" in low:
        yield from _web_tokens(text)
    if "-begin" in low:
        for match in _PEM.finditer(text):
            yield _match("secret/pem", match, 0)


def _by_place(text: str, low: str, digits: int) -> Iterator[RuleMatch]:
    """Secrets that their place shows: behind an option, in a URL, in a line of a file."""
    if digits > 2 and holds(low, _PIN_CUES):
        for pattern in (_PIN, _IS_CODE):
            for match in pattern.finditer(text):
                yield _match("secret/pin", match, "value")
    if " -u " in low or "--user" in low or " -p" in low:
        for match in _OPTION.finditer(text):
            yield _match("secret/assigned", match, "value" if match["value"] else "token")
    for match in _DISCORD.finditer(text) if digits and text.count(".") > 1 else ():
        yield _match("secret/discord", match, 0)
    for match in _PGPASS.finditer(text) if text.count(":") > 3 else ():
        if _odd(match["value"]):
            yield _match("secret/assigned", match, "value")
    for match in _BASIC.finditer(text) if "basic" in low or "auth" in low else ():
        if _is_pair(match["value"]):
            yield _match("secret/header", match, "value")
    for match in _PHRASE.finditer(text) if "phrase" in low else ():
        yield _match("secret/said", match, "value")
    for match in _SIGNATURE.finditer(text) if "sig" in low and "=" in low else ():
        yield _match("secret/url", match, "value")
    for pattern in (_IN_URL, _AT_HOST) if ":" in text and "@" in text else ():
        for match in pattern.finditer(text):
            if not _blank(match["value"]):
                yield _match("secret/url", match, "value")


def _web_tokens(text: str) -> Iterator[RuleMatch]:
    """JSON web tokens, searched from the dot before their second part."""
    for body in _JWT_BODY.finditer(text):
        head = _JWT_HEAD_REVERSED.match(text[max(0, body.start() - 2000) : body.start()][::-1])
        start = body.start() - len(head[0]) + head[0][::-1].lower().find("eyj") if head else -1
        if head and body.start() - start > 10 and head[0][::-1].lower().find("eyj") >= 0:
            yield RuleMatch("secret", "secret/jwt", start, body.end(), text[start : body.end()])


def _named(text: str, low: str) -> Iterator[RuleMatch]:
    """Values that a name before them, or the words around them, call a secret."""
    yield from _assigned(text)
    yield from _in_syntax(text)
    yield from _in_sentences(text, low)


def _assigned(text: str) -> Iterator[RuleMatch]:
    """Values of a name, a cell or a pair, such as `password: …`."""
    for match in _ASSIGNED.finditer(text):
        if text.startswith("[SECRET]", match.start() - 1):
            continue  # the mark that replaced one
        is_strong = (
            match["sign"] not in (":", "|")
            or match["quote"]
            or _ABBREVIATED.match(match[0]) is not None
        )
        value, is_cell = match["value"], match["sign"] == "|"
        if is_cell:
            value = value.partition("|")[0]
        if len(value) < 4 or _blank(value) or (not match["quote"] and _CODE.match(value)):
            continue
        if is_strong or (_odd(value) if is_cell else _odd(value, text, match)):
            start = match.start("value")
            yield RuleMatch("secret", "secret/assigned", start, start + len(value), value)
    for match in _PAIR.finditer(text):
        if not _blank(match["value"]) and _odd(match["value"]):
            yield _match("secret/assigned", match, "value")
    for match in _PASS.finditer(text):
        has_user = _USER.search(text[max(0, match.start() - 80) : match.start()]) is not None
        is_ticket = _TICKET.search(text, max(0, match.start() - 12), match.start()) is not None
        if not _blank(match["value"]) and (has_user or (not is_ticket and _is_password(match))):
            yield _match("secret/assigned", match, "value")


def _in_syntax(text: str) -> Iterator[RuleMatch]:
    """Values in XML elements, headers, cookies and the code of a wireless network."""
    for match in _ELEMENT.finditer(text) if "</" in text else ():
        if not _blank(match["value"]):
            yield _match("secret/assigned", match, "value")
    for match in _HEADER.finditer(text):
        group = "value" if match["value"] else "bearer"
        if not _blank(match[group]):
            yield _match("secret/header", match, group)
    for pattern in (_COOKIE, _WIFI):
        for match in pattern.finditer(text):
            if pattern is _WIFI or _MORE_THAN_WORD.search(match["value"].partition("=")[2]):
                yield _match("secret/assigned", match, "value")


def _in_sentences(text: str, low: str) -> Iterator[RuleMatch]:
    """Values that a sentence tells, or a question asks about."""
    abroad = _SAID_ABROAD.finditer(text) if holds(low, FOREIGN) else ()
    for match in itertools.chain(_SAID.finditer(text), abroad):
        value = match["value"].rstrip(".,;!?")
        if not _blank(value) and (match["quote"] or (_odd(value) and not _CODE.match(value))):
            start = match.start("value")
            yield RuleMatch("secret", "secret/said", start, start + len(value), value)
    for match in _ASKED.finditer(text) if "?" in text else ():
        yield _match("secret/said", match, "value")
    for match in _BARE.finditer(text):
        yield _match("secret/said", match, "value" if match["value"] else "token")
    for match in _CREDENTIALS.finditer(text):
        yield _match("secret/said", match, "value")


def _is_password(match: re.Match[str]) -> bool:
    """True if a value after `pass:` is quoted, or more than a word or
    an amount; a variable may hold a word.
    """
    value = match["value"]
    has_letter = any(map(str.isalpha, value))
    is_odd = bool(match["quote"]) or (has_letter and _odd(value) and not value.isalpha())
    return len(value) > 3 and (is_odd or (match["variable"] is not None and has_letter))


def _is_pair(encoded: str) -> bool:
    """True for the base64 of `user:password`."""
    try:
        raw = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
        return 0 < raw.find(b":") < len(raw) - 1 and raw.decode().isprintable()
    except ValueError:  # includes binascii.Error and UnicodeDecodeError
        return False


def _match(rule: str, match: re.Match[str], group: int | str) -> RuleMatch:
    return RuleMatch("secret", rule, *match.span(group), match[group])


def _blank(value: str) -> bool:
    return bool(_BLANK.fullmatch(value.rstrip(".,;:!?)")))


def _odd(value: str, text: str = "", match: re.Match[str] | None = None) -> bool:
    """True for more than a word: digits, signs, inner capitals; or a word
    at the line's end after `password:`.
    """
    bare = value.rstrip(".,;:!?)\"'")
    if _MORE_THAN_WORD.search(bare) or (bare[1:] != bare[1:].lower() and bare != bare.upper()):
        return True
    if match is None or not any(name in match[0].lower() for name in ("pass", "pw", "psw")):
        return False
    line_end = text.find("\n", match.end(), match.end() + 400)
    return not text[match.end() : line_end if line_end >= 0 else match.end() + 400].strip()
