"""The rule for national identity numbers: presidio's pattern recognisers, without an NLP engine and the network.

Its recognisers for e-mail and URLs are left out, since they fetch a list of public suffixes; those for names and
places need a language model that is not part of this project. Its patterns are not bounded as those of `rules` are.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

from presidio_analyzer import predefined_recognizers

from slmctl.sensitive.rules import RuleMatch

# Those of persons, with a checksum or a form that other numbers do not have.
RECOGNISERS = (
    "AuMedicare", "AuTfn", "CaSin", "DeSocialSecurity", "DeTaxId", "EsNie", "EsNif", "FiPersonalIdentityCode",
    "InAadhaar", "InPan", "ItFiscalCode", "KrFrn", "KrRrn", "Nhs", "PlPesel", "SePersonnummer", "SgFin",
    "ThTnin", "TrNationalId", "UkDrivingLicence", "UkNino", "UsItin", "UsMbi", "UsSsn", "ZaIdNumber",
)  # fmt: skip
MIN_SCORE = 0.5  # medium in presidio's terms; a number that its checksum confirms has 1


@functools.cache
def _recognisers() -> list[Any]:
    return [getattr(predefined_recognizers, f"{name}Recognizer")() for name in RECOGNISERS]


def identities(text: str) -> Iterator[RuleMatch]:
    """The numbers that states give to persons, as presidio recognises them."""
    for recogniser in _recognisers():
        for result in recogniser.analyze(text, recogniser.supported_entities, None):
            if result.score >= MIN_SCORE:
                rule = "id/" + result.entity_type.lower().replace("_", "-")
                yield RuleMatch("id", rule, result.start, result.end, text[result.start : result.end])
