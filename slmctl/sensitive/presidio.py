"""National identity numbers by presidio's pattern recognisers, without an NLP engine and without the network.

Its recognisers for e-mail and URLs are not used: they fetch a list of public suffixes. Names and places it finds
only with a language model that is not part of this project.
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
MIN_SCORE = 0.5  # presidio's own word for it is medium; what its checksum confirms has 1


@functools.cache
def _recognisers() -> list[Any]:
    return [getattr(predefined_recognizers, f"{name}Recognizer")() for name in RECOGNISERS]


def identities(text: str) -> Iterator[RuleMatch]:
    """What presidio holds for a number that a state gives to a person."""
    for recogniser in _recognisers():
        for found in recogniser.analyze(text, recogniser.supported_entities, None):
            if found.score >= MIN_SCORE:
                rule = "id/" + found.entity_type.lower().replace("_", "-")
                yield RuleMatch("id", rule, found.start, found.end, text[found.start : found.end])
