"""Recognises the language of texts: by stop words in Latin script, by letters in other scripts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from slmctl.console import percent

NAMES = {
    "en": "English",
    "de": "German",
    "fr": "French",
    "es": "Spanish",
    "it": "Italian",
    "nl": "Dutch",
    "pt": "Portuguese",
    "pl": "Polish",
    "ru": "Russian or another Cyrillic language",
    "el": "Greek",
    "he": "Hebrew",
    "ar": "Arabic",
    "hi": "Hindi",
    "th": "Thai",
    "ja": "Japanese",
    "ko": "Korean",
    "zh": "Chinese",
}
SHOWN = 0.1  # least share of texts in a further language that is named
_STOP_WORDS = {
    "en": """the and is are was were you your my me we our they their it this that these have has
        had not don't can't can could would will with for from about what when where which how there
        been of to in on at i a an be do did please hello thanks thank but or if as so because""",
    "de": """der die das den dem des ein eine einen einem einer und ist sind war waren ich mich mir
        mein meine meinen meiner sie ihr ihre ihnen wir uns unser es dass nicht kein keine mit für
        von vom zu zum zur auf aus bei nach seit über wie was wann wo warum habe haben hat wird
        werden kann können auch noch nur aber oder wenn bitte hallo danke im am an in""",
    "fr": """le la les l un une des du de et est sont était je j me moi mon ma mes vous votre vos
        nous notre il elle ils ce cette ces que qu qui quoi quand où comment pourquoi ne n pas plus
        avec pour par sur dans en au aux depuis ai avez a ont été être c d mais ou si bonjour merci
        très""",
    "es": """el la los las un una unos unas y es son era yo me mi mis usted su sus nosotros nuestro
        ellos este esta esto que qué quién cuando cuándo donde dónde cómo por para con sin del de al
        en se no he ha han está están muy pero o si hola gracias tengo desde lo le""",
    "it": """il lo la i gli le un uno una e è sono era io mi mio mia miei lei suo sua noi nostro
        questo questa che chi quando dove come perché non più con per da dal dalla del della dei
        delle di in nel nella al alla ho ha hanno sia ma o se ciao buongiorno grazie molto vostro vi
        ci si""",
    "nl": """de het een en is zijn was waren ik mij me mijn u uw jij je jouw wij we ons onze zij hun
        dit dat deze die niet geen met voor van vanaf naar op uit bij in aan over hoe wat wanneer
        waar waarom heb heeft hebben wordt kan ook nog maar of als graag hallo bedankt sinds er te
        om""",
    "pt": """o a os as um uma uns umas e é são era eu me meu minha meus você vocês seu sua nós nosso
        este esta isto isso que quem quando onde como por para com sem do da dos das de ao à no na
        nos nas em se não tenho tem está estão foi muito mas ou olá obrigado obrigada desde já
        ainda""",
    "pl": """i w z na do się nie jest są był była to ten ta te że jak co kiedy gdzie dlaczego ja
        mnie mi mój moja moje pan pani państwo wasz mam ma mają od dla po przez przy za o u ale lub
        czy jeśli proszę dzień dobry dziękuję już jeszcze tylko bardzo tego tej został być""",
}
_LANGUAGES_OF: dict[str, list[str]] = {}
for _code, _text in _STOP_WORDS.items():
    for _word in set(_text.split()):
        _LANGUAGES_OF.setdefault(_word, []).append(_code)
# the first script with letters in the text; Japanese before Chinese, since it uses Chinese
# characters too
_SCRIPTS = {
    "ja": "\u3040-\u30ff",
    "ko": "\uac00-\ud7af",
    "zh": "\u4e00-\u9fff",
    "ru": "\u0400-\u04ff",
    "el": "\u0370-\u03ff",
    "he": "\u0590-\u05ff",
    "ar": "\u0600-\u06ff",
    "hi": "\u0900-\u097f",
    "th": "\u0e00-\u0e7f",
}
_LETTER = re.compile(r"[^\W\d_]")
_CHARACTERS = 2000  # characters of a text that are read


@dataclass(frozen=True)
class Languages:
    """(language code, share) among the texts with a clear language, the most frequent first."""

    shares: tuple[tuple[str, float], ...] = ()

    @property
    def main(self) -> str:
        """The code of the most frequent language; '' if no text has a clear one."""
        return self.shares[0][0] if self.shares else ""

    def __str__(self) -> str:
        if not self.shares:
            return "not recognised"
        shown = [(code, share) for code, share in self.shares if share >= SHOWN] or list(
            self.shares[:1]
        )
        if len(shown) == 1:
            return NAMES[shown[0][0]]
        return ", ".join(
            f"{NAMES[code]} ({percent(share, 0)} of the texts)" for code, share in shown
        )


def of_texts(texts: Iterable[str]) -> Languages:
    """The languages of texts; a text without a clear language is not counted."""
    counts = Counter(filter(None, map(of_text, texts)))
    total = counts.total()
    return Languages(tuple((code, count / total) for code, count in counts.most_common()))


def of_text(text: str) -> str:
    """The code of a text's language; '' if two are equally likely, or none is recognised.

    Single letters are words of Polish and French, and abbreviations (z. B., d. h.) of others: they
    decide nothing.
    """
    text = text[:_CHARACTERS]
    letters = len(_LETTER.findall(text))
    for code, range_of_signs in _SCRIPTS.items():
        if len(re.findall(f"[{range_of_signs}]", text)) > 0.3 * letters > 0:
            return code
    hits: Counter[str] = Counter()
    for word in re.findall(r"[^\W\d_]{2,}(?:'t)?", text.casefold()):
        hits.update(_LANGUAGES_OF.get(word, ()))
    listed = hits.most_common(2)
    is_tie = len(listed) == 2 and listed[0][1] == listed[1][1]
    return listed[0][0] if listed and not is_tie else ""
