"""Texts that make a search go back over and over: repeats of fragments of every rule's alphabet."""

from __future__ import annotations

from hypothesis import strategies as st

from support.scale import FULL

EXAMPLES = 400 if FULL else 12  # of each property
FRAGMENTS = (
    "a-at-dot-", "pin12345678,", "_at_", "a@", "a.", "a-", "a b ", "sk-", "eyJ-", "eyJhbGciOi.eyJ-", "://a:", "a://b:c",
    "password: token ", "password for a ", "authorization: bearer ", "-----BEGIN A ", "-----BEGIN PRIVATE KEY-----",
    "<password>", "<b ", "<a b='", "&#52", "\\u{34}", "%25", "%E4", "one ", "double ", "1 ", "4 ", "4111 ", "41 ",
    "0x41 ", "01000001 ", "D E ", "DE8", "DE89 ", "::", "a:", "1.1.1.1 ", "+1", "+49 ", "0 0", "0049", "01 23 ", "tel ",
    "tel 1 ", "order 1", "[at]", "(dot) ", "1 dot ", "user: a pass: ", "pw ", "exp 12/26 ", "4111111111111111 12/26 ",
    "jane dot doe at example dot org ", "a at b dot ", "slm-a-", "AAAA", "QUFB=", "MFRA", "Ａ", "\u200b", "\n", " ",
    "\ud800", "=41", "<!-- ", "<x>1", "]]>", "u+0034 ",
)  # fmt: skip
ALPHABETS = {
    "email": ("a", "@", ".", "-", "_", " ", "at", "dot", "org", "com", "://", ":", "jane", "*at*", "_at_", "é", "\n"),
    "phone": ("0", "1", "49", "+", "00", "(", ")", " ", "-", "/", ".", "tel", "call me on ", "order ", "und ", "0151"),
    "card": ("4", "4111", "1", " ", "-", ",", ".", "0", "card ", "12/26", "exp", "3", "x"),
    "iban": ("D", "E", "89", "3", " ", "-", "GB", "a", "0", "|"),
    "ip": ("1", ".", ":", "a", "f", "::", " ", "255", "v", "v1.", "0"),
    "secret": ("password", ":", "=", " ", "a", "1", "token", "pin", "bearer", "sk-", "eyJ", ".", "-", "_", "<", ">",
               "api", "key", "is ", "for ", "://", "@", "'", "{", "*", "-----BEGIN ", "PRIVATE KEY-----", "user: ",
               "pass", "pw"),
    "views": ("&#", "52", ";", "%", "4", "0", "\\", "u", "x", "{", "}", "<", ">", "b", "/", "!--", "[at]", "(", "one",
              " ", "double ", ",", "A", "=", "\n", "\u200b", "Ａ", "0x", "01000001"),
}  # fmt: skip
ALPHABETS["find"] = tuple(dict.fromkeys(piece for pieces in ALPHABETS.values() for piece in pieces))


def fragments(kind: str) -> st.SearchStrategy[str]:
    """Texts to repeat, of a rule's alphabet and a few pieces of any other."""
    pieces = st.one_of(st.sampled_from(ALPHABETS[kind]), st.sampled_from(ALPHABETS["find"]))
    return st.lists(pieces, min_size=1, max_size=9).map("".join)


HEAVY = "4 1 one [at] x@y.org 01 23 45 " * 20_000  # takes seconds to search
