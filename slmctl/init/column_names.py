"""Common names of columns in several languages: a hint on a
column's content, weaker than its values.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection
from functools import cache

from slmctl.normal_forms import in_normal_form

# least letters of a word that may be the end of a compound, such as `Ticketkategorie`
_LEAST_SUFFIX = 5

# English, German, French, Spanish, Italian, Dutch, Portuguese and Polish; without accents, in lower
# case.
WORDS: dict[str, str] = {
    "text": """text body message mail content description question comment review ticket request
        prompt input email nachricht inhalt beschreibung frage kommentar anfrage anliegen schreiben
        texte corps contenu demande commentaire avis texto mensaje contenido cuerpo descripcion
        pregunta comentario consulta testo messaggio contenuto corpo descrizione domanda commento
        richiesta tekst bericht inhoud omschrijving vraag opmerking mensagem conteudo descricao
        pergunta tresc wiadomosc opis pytanie komentarz""",
    "subject": """subject title headline betreff titel ueberschrift objet titre asunto titulo
        oggetto titolo onderwerp assunto temat tytul""",
    "label": """category kategorie categorie categoria kategoria label labels class klasse classe
        clase klasa classification klassifikation klassifizierung intent topic thema tema theme
        etiquette etiqueta etichetta etykieta tag target categorization""",
    "likely label": """type typ art tipo soort rodzaj queue warteschlange department abteilung
        afdeling departement departamento reparto dzial team sentiment stimmung rating bewertung
        score stars sterne level stufe severity schweregrad urgency dringlichkeit grade reason grund
        motif motivo reden powod area bereich result ergebnis outcome genre routing zustaendigkeit
        output answer""",
    "unlikely label": """channel kanal canal canale kanaal language sprache langue idioma lingua
        taal jezyk country land pays pais paese kraj status statut estado stato stan priority
        prioritaet prioritat priorite prioridad priorita prioriteit prioridade priorytet agent
        bearbeiter operator gender geschlecht split source quelle region city stadt version platform
        plattform browser currency waehrung wahrung valid active done""",
    "answer": """answer antwort reponse respuesta risposta antwoord resposta odpowiedz reply
        response completion output solution loesung losung resolution summary zusammenfassung resume
        resumen riassunto samenvatting resumo streszczenie translation target ausgabe""",
    "fields": """json fields felder champs campos campi velden pola extracted extraction entities
        annotation annotations output answer result ergebnis target structured""",
    "id": "id nr no num number nummer numero numer key uuid guid schluessel ref reference ticket",
    "group": """customer kunde kunden client cliente klant klient account konto compte cuenta user
        benutzer nutzer usuario utente gebruiker uzytkownik author autor thread conversation case
        vorgang fall company firma patient device geraet sender absender household""",
    "flag": "0 1 ja nein yes no true false y n j wahr falsch oui non si tak nie sim nao x open "
    "closed offen erledigt",
    "other": """other others misc miscellaneous general unknown none rest scope oos sonstige
        sonstiges sonstiger andere anderes allgemein allgemeines unbekannt keine autre autres divers
        otro otros otra otras varios altro altri varie overig overige anders outro outros outra
        diversos inne inny rozne""",
    "test": "test",
    "validation": "validation valid val dev",
    "calibration": "calibration",
    "train": "train training",
    "total": "sum summe total totals totale totaal gesamt gesamtsumme grand somme suma razem "
    "insgesamt",
}
# ignored: test-00000-of-00004.csv
_NO_NAMES = {"csv", "tsv", "jsonl", "json", "parquet", "xlsx", "ods", "gz", "of"}
_SETS = {kind: frozenset(words.split()) for kind, words in WORDS.items()}


@cache
def words_of(name: str) -> tuple[str, ...]:
    """The words of a name in lower case, without accents:
    `Kunden-Nr.` and `customerId` have two words.
    """
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).replace("ß", "ss")
    plain = "".join(c for c in in_normal_form(spaced, "NFKD") if not unicodedata.combining(c))
    return tuple(re.findall(r"[a-z]+", plain.casefold().replace("ł", "l")))


def suggests(name: str, kind: str) -> bool:
    """True if a word of a column's name, or the end of a compound, is one of `WORDS[kind]`."""
    hints = _SETS[kind]
    return any(
        word in hints or any(len(end) >= _LEAST_SUFFIX and word.endswith(end) for end in hints)
        for word in words_of(name)
    )


def is_flag(values: Collection[str]) -> bool:
    """True for the values of a flag: yes and no, 0 and 1, open and closed."""
    return bool(values) and all(
        _SETS["flag"].issuperset(words_of(value) or (value,)) for value in values
    )


def is_total(text: str) -> bool:
    """True for a text that is only a word for a sum, as in the last row of an export."""
    words = words_of(text)
    return 0 < len(words) <= 2 and _SETS["total"].issuperset(words)


def split_named(name: str) -> str:
    """The held-out split that a file, folder or sheet is named after, by
    the last word of its name; '' for none.
    """
    for part in reversed(name.split("/")):
        words = [word for word in words_of(part) if word not in _NO_NAMES]
        for split in ("test", "validation", "calibration"):
            if words and words[-1] in _SETS[split]:
                return split
    return ""
