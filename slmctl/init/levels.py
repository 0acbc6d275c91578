"""Labels -> the labels from low to high, if they are levels: 1 to 5, or low, medium and high."""

from __future__ import annotations

import re
from collections.abc import Collection

MOST = 10  # the highest level of numbers
RATED = re.compile(  # words in names of columns with ratings
    r"rat|star|score|level|sever|prior|satisf|grade|note|stufe|bewert|stern|dringlich|schwere|urgen|nps|punkt",
    re.I,
)
FEWEST = 3  # levels; with two labels, every wrong answer is equally far off
# Scales from low to high: levels separated by bars, words for one level separated by slashes.
SCALES = tuple(
    [[word.strip() for word in level.split("/")] for level in scale.split("|")]
    for scale in (
        "none | very low/lowest/trivial | low/minor | medium/moderate/normal | high/major"
        " | very high/highest/critical/severe/urgent | blocker",
        "keine/keiner/kein | sehr niedrig/sehr gering/sehr leicht | niedrig/gering/leicht | "
        "mittel/normal | hoch/schwer"
        " | sehr hoch/kritisch/dringend/sehr schwer",
        "very negative | negative | neutral | positive | very positive",
        "sehr negativ | negativ | neutral | positiv | sehr positiv",
        "very bad/very poor/terrible | bad/poor | fair/average/okay/ok | good | very good/great | "
        "excellent",
        "ungenügend | mangelhaft/sehr schlecht | ausreichend/schlecht | befriedigend/mittel | gut "
        "| sehr gut",
        "very small | small | medium | large | very large",
        "sehr klein | klein | mittel | groß | sehr groß",
        "very easy | easy | medium | hard/difficult | very hard",
        "never | rarely/seldom | sometimes | often | always",
        "nie | selten | manchmal | oft/häufig | immer",
        "strongly disagree | disagree | neutral | agree | strongly agree",
        "cold | warm | hot",
        "faible | moyen/moyenne | élevé/élevée | très élevé/très élevée/critique",  # French
        "bajo/baja | medio/media | alto/alta | muy alto/muy alta",  # Spanish
        "basso/bassa | medio/media | alto/alta | molto alto/molto alta",  # Italian
        "laag | gemiddeld/middel | hoog | zeer hoog",  # Dutch
        "baixo/baixa | médio/média | alto/alta | muito alto/muito alta",  # Portuguese
        "niski/niska | średni/średnia | wysoki/wysoka | bardzo wysoki/bardzo wysoka",  # Polish
    )
)


def in_order(labels: Collection[str], column: str) -> list[str]:
    """The labels of a column from low to high; [] if they are not levels, or fewer than FEWEST."""
    if len(labels) < FEWEST:
        return []
    return _numbers(labels, column) or next(
        (levels for scale in SCALES if (levels := _on(scale, labels))), []
    )


def _numbers(labels: Collection[str], column: str) -> list[str]:
    """Labels that count from 1 to at most MOST, or from 0 to 10, with or without a common unit:
    `3`, `3 stars`.

    0 to 3 are taken for codes, as are numbers without a unit in a column with another name than
    RATED.
    """
    matches = {
        label: match for label in labels if (match := re.fullmatch(r"(\d{1,2})( [^\W\d]+)?", label))
    }
    named = {int(match[1]): label for label, match in matches.items()}
    units = {(match[2] or "").casefold().removesuffix("s") for match in matches.values()}
    counted = sorted(named)
    whole = len(named) == len(labels) and counted in (
        list(range(1, min(len(labels), MOST) + 1)),
        list(range(11)),
    )
    whole = whole and len(units) == 1 and (units != {""} or bool(RATED.search(column)))
    return [named[number] for number in counted] if whole else []


def _on(scale: list[list[str]], labels: Collection[str]) -> list[str]:
    ranks = {word.casefold(): rank for rank, level in enumerate(scale) for word in level}
    named = {
        ranks.get(re.sub(r"[\s_-]+", " ", label).strip().casefold(), -1): label for label in labels
    }
    return (
        [named[rank] for rank in sorted(named)]
        if len(named) == len(labels) and -1 not in named
        else []
    )
