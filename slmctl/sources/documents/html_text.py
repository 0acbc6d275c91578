"""HTML -> its text, with a line for each block, in time that is linear in the HTML.

Python's html.parser takes quadratic time on unclosed tags (8 s for 32,000 characters), and its
versions differ on malformed HTML, so that a served model could read a text otherwise than in
training. This tokenizer knows the tags of mails and forms; any other `<word>` is text, such as an
address in angle brackets.
"""

from __future__ import annotations

import html
import re

DEPTH = 5  # of quotations that are marked

_TAG = re.compile(
    r"<(?P<close>/?)(?P<name>[A-Za-z][A-Za-z0-9:]{0,20})"
    # no part of a tag goes beyond the next `<`
    r"(?=[\s/>])(?:[^<>\"']++|\"[^\"<]*+\"|'[^'<]*+'|[\"'])*+>"
)
_REFERENCE = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
_SPACES = re.compile(r"[^\S\n]+")
_ALL_SPACES = re.compile(r"\s+")

# Their content is never shown.
_HIDDEN = frozenset(("head", "script", "style", "template", "title", "xml"))
_LINE = frozenset(
    (
        "address",
        "article",
        "aside",
        "body",
        "br",
        "caption",
        "center",
        "dd",
        "div",
        "dl",
        "dt",
        "fieldset",
        "figcaption",
        "figure",
        "footer",
        "form",
        "header",
        "hr",
        "html",
        "li",
        "main",
        "nav",
        "section",
        "tbody",
        "tfoot",
        "thead",
        "tr",
    )
)
_PARAGRAPH = frozenset(
    ("blockquote", "h1", "h2", "h3", "h4", "h5", "h6", "ol", "p", "pre", "table", "ul")
)
_INLINE = frozenset(
    (
        "a",
        "abbr",
        "b",
        "base",
        "basefont",
        "big",
        "bdo",
        "button",
        "cite",
        "code",
        "col",
        "colgroup",
        "del",
        "em",
        "font",
        "i",
        "img",
        "input",
        "ins",
        "kbd",
        "label",
        "link",
        "mark",
        "meta",
        "o:p",
        "option",
        "q",
        "s",
        "samp",
        "select",
        "small",
        "span",
        "strike",
        "strong",
        "sub",
        "sup",
        "td",
        "textarea",
        "th",
        "tt",
        "u",
        "var",
        "wbr",
    )
)
_ENDS = {name: re.compile(rf"</{name}\s{{0,9}}>", re.IGNORECASE) for name in _HIDDEN}
_KNOWN = _HIDDEN | _LINE | _PARAGRAPH | _INLINE


def text_of(source: str) -> str:
    """The text of HTML: blocks as lines, quotations marked with `>`, scripts and comments left out.

    A text without a known tag keeps its lines; only references such as `&amp;` are decoded in it.
    """
    if "<" not in source:
        return _decoded(source)
    writer = _Writer(folds=any(_breaks(match["name"].lower()) for match in _TAG.finditer(source)))
    place = 0
    is_html = False
    unclosed = set[str]()
    while (start := source.find("<", place)) >= 0:
        if source.startswith("<!--", start):
            writer.text(source[place:start])
            end = source.find("-->", start + 4)
            is_html, place = True, len(source) if end < 0 else end + 3
            continue
        match = _TAG.match(source, start)
        name = match["name"].lower() if match else ""
        if match is None or name not in _KNOWN:
            writer.text(source[place : start + 1])  # not a tag: `<` is text
            place = start + 1
            continue
        writer.text(source[place:start])
        is_html, place = True, match.end()
        if name in _HIDDEN and not match["close"] and name not in unclosed:
            end = _end_of_hidden(source, name, place)
            unclosed |= {name} if end < 0 else set()  # then no later one has an end either
            place = max(place, end)
        else:
            writer.tag(name, closes=bool(match["close"]))
    writer.text(source[place:])
    return writer.whole() if is_html else _decoded(source)


def _breaks(name: str) -> bool:
    return name in _LINE or name in _PARAGRAPH


def _end_of_hidden(source: str, name: str, place: int) -> int:
    """The index after the end of a hidden part; -1 if it has no end, so that nothing is hidden."""
    match = _ENDS[name].search(source, place)
    return match.end() if match else -1


class _Writer:
    """Lines from pieces of text and tags.

    Args:
        folds: True where tags make the lines, so that the source's own line breaks are spaces.
    """

    def __init__(self, *, folds: bool) -> None:
        self._folds = folds
        self._lines: list[str] = []
        self._line: list[str] = []
        self._depth = 0
        self._kept = 0  # `pre` keeps its line breaks

    def text(self, piece: str) -> None:
        if not self._folds:
            self._line.append(piece)
            return
        if not self._kept:
            self._line.append(_ALL_SPACES.sub(" ", piece))
            return
        first, *rest = piece.split("\n")
        self._line.append(first)
        for line in rest:
            self._end_line()
            self._line.append(line)

    def tag(self, name: str, *, closes: bool) -> None:
        if name in ("td", "th"):
            self._line.append(" ")
        if not _breaks(name):
            return
        self._end_line()
        step = -1 if closes else 1
        if name == "blockquote" and closes:
            self._depth = max(0, self._depth - 1)
        if name in _PARAGRAPH:
            self._blank()
        if name == "blockquote" and not closes:
            self._depth += 1
        elif name == "pre":
            self._kept = max(0, self._kept + step)
        elif name == "li" and not closes:
            self._line.append("- ")

    def whole(self) -> str:
        self._end_line()
        return "\n".join(self._lines).strip("\n")

    def _end_line(self) -> None:
        line = _decoded("".join(self._line))
        self._line.clear()
        if self._folds and not self._kept:
            line = _SPACES.sub(" ", line).strip()
        if line:
            self._lines += [self._mark() + part for part in line.split("\n")]

    def _blank(self) -> None:
        if self._lines and self._lines[-1].strip("> "):
            self._lines.append(self._mark().rstrip())

    def _mark(self) -> str:
        return "> " * min(self._depth, DEPTH)


def _decoded(text: str) -> str:
    return _REFERENCE.sub(lambda match: html.unescape(match[0]), text) if "&" in text else text
