"""Lines with phone numbers as people of 12 countries write them, and
lines with digits that are none; seeded.
"""

from __future__ import annotations

import random
import string
from collections.abc import Iterator
from dataclasses import dataclass

# A form: N is a digit from 2 to 9, # any digit; the rest stands for itself. Area codes are in use.
NATIONAL: dict[str, tuple[str, ...]] = {
    "US": (
        "(415) N##-####",
        "212-N##-####",
        "312.N##.####",
        "(617)N##-####",
        "305 N## ####",
        "1-800-N##-####",
    ),
    "GB": (
        "020 7N## ####",
        "0161 4N# ####",
        "07700 9#####",
        "07700 9## ###",
        "(0117) 9N# ####",
        "07911######",
    ),
    "DE": (
        "030 N#######",
        "0151 N#######",
        "089/N####-##",
        "(040) N### ####",
        "0171-N######",
        "0221 / N## ## ##",
        "01511N######",
        "0711 N#####",
    ),
    "FR": (
        "01 4N ## ## ##",
        "06 1N ## ## ##",
        "06.7N.##.##.##",
        "07 8N ## ## ##",
        "01-4N-##-##-##",
        "061N######",
    ),
    "ES": (
        "91# ### ###",
        "612 ### ###",
        "93 ### ## ##",
        "655 ## ## ##",
        "955-###-###",
        "6N#######",
    ),
    "IT": (
        "06 6N## ####",
        "02 8N######",
        "347 N## ####",
        "333 N######",
        "055 2N####",
        "340-N######",
    ),
    "NL": (
        "020 6N# ####",
        "06 1N## ####",
        "06-1N######",
        "010-4N# ## ##",
        "0612N#####",
        "(070) 3N# ## ##",
    ),
    "PL": (
        "22 6N# ## ##",
        "512 ### ###",
        "601-###-###",
        "(12) 4N# ## ##",
        "5N#######",
        "71 3N# ## ##",
    ),
    "BR": (
        "(11) 9N###-####",
        "(21) 3N##-####",
        "11 9N###-####",
        "(31)9N###-####",
        "21 9N### ####",
        "119N#######",
    ),
    "IN": (
        "98### #####",
        "022 2N## ####",
        "098### #####",
        "011-2N######",
        "(080) 4N## ####",
        "99########",
    ),
    "AU": (
        "02 9N## ####",
        "(03) 9N## ####",
        "0412 ### ###",
        "0438 ### ###",
        "07 3N## ####",
        "04########",
    ),
    "CH": (
        "044 N## ## ##",
        "079 N## ## ##",
        "031 3N# ## ##",
        "022 7N# ## ##",
        "(061) N## ## ##",
        "078N######",
    ),
}
INTERNATIONAL: dict[str, tuple[str, ...]] = {
    "US": ("+1 415 N## ####", "+1 (212) N##-####", "001 312 N## ####"),
    "GB": ("+44 20 7N## ####", "+44 (0)7700 9#####", "0044 161 4N# ####"),
    "DE": ("+49 30 N#######", "+49 (0)151 N#######", "0049 89 N######"),
    "FR": ("+33 1 4N ## ## ##", "+33 (0)6 1N ## ## ##", "0033 61N######"),
    "ES": ("+34 91# ### ###", "+34 612 ## ## ##", "0034 655######"),
    "IT": ("+39 06 6N## ####", "+39 347 N## ####", "0039 02 8N######"),
    "NL": ("+31 20 6N# ####", "+31 (0)6 1N######", "0031 61N######"),
    "PL": ("+48 22 6N# ## ##", "+48 512 ### ###", "0048 601######"),
    "BR": ("+55 11 9N###-####", "+55 (21) 3N##-####", "0055 11 9N#######"),
    "IN": ("+91 98### #####", "+91-22-2N######", "0091 98########"),
    "AU": ("+61 2 9N## ####", "+61 412 ### ###", "0061 4########"),
    "CH": ("+41 44 N## ## ##", "+41 (0)79 N## ## ##", "0041 31 3N#####"),
}
AROUND = (
    "{n}",
    "Reach me under {n} please",
    "my new number {n}",
    "Please call {n}. 24 hours",
    "{n} / {m}",
    "{n}, {m}",
    "office {n} fax {m}",
    "{n} (9-17)",
    "{n} on 12.11.2024",
    "Tel. {n}",
    "ring {n} after 18:00",
    "Anna: {n}; order 4711",
    "you can get hold of us at {n}!",
    "contact: {n} 24/7",
    "the driver has {n} and 2 parcels",
    "{n}\n{m}",
)
DECOYS = (
    "order number 415-N##-####",
    "Order 415N###### shipped on 2024-11-02.",
    "Invoice INV-2024-000###### of 12.03.2024",
    "The total is 1,N##,###.## EUR",
    "1.N##.###,## EUR plus 19 % of 2N#.##",
    "version 1.2N.#.4 build 2N###",
    "between 0N:30 and 1#:45 on 01.0N.2024",
    "2024-01-0N 03:04:05.######",
    "tracking 1Z999AA1########",
    "ISBN 978-3-16-1N####-0",
    "EAN 40063N#######",
    "ratio 0.N###############",
    "52.5#### 13.4####, floor 2",
    "part 0N15-4711",
    "serial 0012N########",
    "scores 21 14 1N 10 2# 7",
    "sort code 04-00-0N, account 1N######",
    "2N## EUR on 12/11/2024, 3N## EUR on 13/11/2024",
    "N## ### ### inhabitants",
    "room 0N, floor 3, desk 4N",
    "customer C-N#### since 2019",
    "the claim is 0N2/24-6N",
    "size 190 x 8# x 4N",
    "10N15 Berlin, 8N331 Munich",
    "VAT DE1N#######",
    "tax number 30/1N#/2####",
    "licence 4N##-2###-9###-1###",
    "GTIN 0400N#######",
    "uptime 0N 23:5#:1#",
    "N#% of 1,N## users, 0.#% more",
    "paragraph 3.2.1.N",
    "sha 8f98765b4830N###",
    "card ending 4N## expires 0#/27",
    "seats 12, 13, 1N, 1#",
    "meter reading 00N###.#",
    "flight LH 0N## at 0#.15",
)


@dataclass(frozen=True)
class Line:
    """A text and the numbers in it, as spans; `country` and `form` say how they are written."""

    text: str
    spans: tuple[tuple[int, int], ...] = ()
    country: str = ""
    form: str = ""


def lines(count: int = 2000, seed: int = 0) -> Iterator[Line]:
    """Lines of which every second one holds one or two numbers, all countries and forms in turn."""
    choose = random.Random(seed)
    for k in range(count):
        if k % 2:
            yield Line(_filled(choose.choice(DECOYS), choose))
            continue
        country = list(NATIONAL)[(k // 2) % len(NATIONAL)]
        form = "international" if choose.random() < 0.3 else "national"
        number, other = (_number(country, form, choose) for _ in range(2))
        around = choose.choice(AROUND)
        before, _, after = around.partition("{n}")
        text = before + number + after.replace("{m}", other)
        spans = [(len(before), len(before) + len(number))]
        if "{m}" in after:
            start = len(before) + len(number) + after.index("{m}")
            spans.append((start, start + len(other)))
        is_whole = form == "national" and number.isdigit()
        yield Line(text, tuple(spans), country, "one piece" if is_whole else form)


def _number(country: str, form: str, choose: random.Random) -> str:
    forms = INTERNATIONAL if form == "international" else NATIONAL
    return _filled(choose.choice(forms[country]), choose)


def _filled(form: str, choose: random.Random) -> str:
    """A form with its digits; an N in a word, as in GTIN, stands for itself."""
    result = ""
    for k, char in enumerate(form):
        in_word = form[max(0, k - 1) : k].isalpha() or form[k + 1 : k + 2].isalpha()
        is_digit = char == "#" or (char == "N" and not in_word)
        result += (
            choose.choice(string.digits if char == "#" else string.digits[2:]) if is_digit else char
        )
    return result
