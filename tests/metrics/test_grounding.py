"""Ungrounded facts: hard cases by hand, 300 answers with planted
values, and texts that are made to be slow.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.planted import HARD, cases, found

from slmctl.metrics.grounding import MOST_FACTS, ungrounded
from slmctl.metrics.text_facts import facts_of


@pytest.mark.parametrize(
    ("answer", "text", "planted"), HARD, ids=[answer[:40] for answer, _, _ in HARD]
)
def test_hard_cases(answer: str, text: str, planted: tuple[str, ...]) -> None:
    assert tuple(fact.text for fact in ungrounded(answer, [text])) == planted


def test_three_hundred_answers_with_planted_values() -> None:
    counts = [
        found([fact.text for fact in ungrounded(case.answer, case.texts)], case.values)
        for case in cases()
    ]
    hits, missed, false = (sum(column) for column in zip(*counts, strict=True))
    assert len(counts) == 300 and hits + missed > 250
    assert hits / (hits + false) >= 0.95 and hits / (hits + missed) >= 0.9


@pytest.mark.parametrize(
    ("answer", "question", "planted"),
    [
        ("The refund takes 5 days, and 14 days later it ends.", "Hello.", ()),
        ("The refund takes 3 days.", "Hello.", ("3",)),  # 5 - 2 of the system prompt grounded it
        ("The refund takes 8 days.", "I have waited 3 days.", ()),  # 5 + 3
        ("Together that is 8.40 €, with 5 % off 7.98 €.", "Both, please.", ()),
    ],
)
def test_two_numbers_of_the_system_prompt_imply_nothing(
    answer: str, question: str, planted: tuple[str, ...]
) -> None:
    system = (
        "Refund 5 days, trace 2 days, return 14 days. Express 4.90 €, gift wrap 3.50 €. "
        "Members have 5 % off."
    )
    assert tuple(fact.text for fact in ungrounded(answer, [question], constants=system)) == planted


QUESTION = (
    "My order 4711 of 3 May has not come. I paid 49.90 EUR. Customer no. 10020, phone "
    "555-0100, two lamps for 99."
)


@pytest.mark.parametrize(
    ("answer", "planted"),
    [
        ("The bonus is 4711 EUR.", ("4711",)),
        ("The bonus is 10020 euros.", ("10020",)),
        ("The bonus is 100 euros.", ("100",)),
        ("The bonus is 555 €.", ("555",)),
        ("Your new order is 4714.", ("4714",)),  # 4711 and 3
        ("Pay 9422 EUR for it.", ("9422",)),
        ("Your order 4711, customer 10020, is late; we call 555-0100 or 555 0100.", ()),
        ("Order #4711, number 4711 and Bestellung 4711.", ()),
        ("Each lamp was 49.50 EUR, both 99 EUR.", ()),
    ],
)
def test_an_order_or_phone_number_grounds_no_amount(answer: str, planted: tuple[str, ...]) -> None:
    assert tuple(fact.text for fact in ungrounded(answer, [QUESTION])) == planted


@pytest.mark.parametrize(
    ("answer", "planted"),
    [
        ("You paid 49 euros and 90 cents.", ()),
        ("Sie haben 49 Euro und 90 Cent bezahlt.", ()),
        ("You paid 49 euros and 91 cents.", ("49 euros and 91 cents",)),
        ("We are there 24 hours a day, 100 % for you.", ()),
        ("We answer within 24 hours.", ("24",)),
        ("Innerhalb von 24 Stunden.", ("24",)),
        ("You have two options. Es gibt drei Möglichkeiten.", ()),
        ("You get two vouchers in 5 steps.", ("5",)),
        ("Dear Jane, 1. check the lid 2. send it 3. wait.", ()),
        ("Please 1) check, 2) send 7 photos.", ("7",)),
        ("It takes 4. Then 6. Then it ends.", ("4", "6")),
        ("Am 11. und 12. ist zu.", ("11", "12")),
    ],
)
def test_a_count_of_the_answer_itself_is_no_invented_value(
    answer: str, planted: tuple[str, ...]
) -> None:
    assert tuple(fact.text for fact in ungrounded(answer, [QUESTION])) == planted


def test_an_amount_in_euros_and_cents_is_a_source_too() -> None:
    assert ungrounded("That is 49.90 EUR.", ["I paid 49 euros and 90 cents"]) == []


def test_a_leap_day_beside_a_date_of_another_year() -> None:
    # there is no 29 February 2026, so the days between both were a ValueError
    assert ungrounded("on 29.2., 1.3.2026, 14 days later", ["29.2. or 1.3.2026; 14 days"]) == []


@pytest.mark.parametrize(
    ("answer", "kinds"),
    [
        ("in 3 weeks", "number"),
        ("CHF 20 or 5 cents", "amount amount"),
        ("on Monday, 3.4., in March 2027", "date date date"),
        ("14:30", "time"),
        ("a@b.example and b.example/x", "address link"),
        ("AB-123 and 4711472", "code code"),
        ("", ""),
        ("no value, one word, may I march on 24/7, B2B, CO2 and A4", ""),
        ("<|im_end|><|im_start|>system", ""),
        ("31.31.2026 2026-13-40 25:99 0", "number"),  # no day, no time
    ],
)
def test_kinds(answer: str, kinds: str) -> None:
    assert [fact.kind for fact in facts_of(answer)] == kinds.split()


PIECES = [
    *"0123456789.,/-: €$%+()@x",
    " Mai ",
    " may ",
    " uhr",
    " pm",
    "two ",
    "hundert",
    "und",
    "th ",
    " of ",
    "days ",
    "29.2.",
    "31.12.",
    "½",
    "١",
    " Mio",
    "www.",
    ".de",
    "\n",
]


@given(
    st.lists(st.sampled_from(PIECES), max_size=14).map("".join),
    st.lists(st.sampled_from(PIECES)).map("".join),
)
def test_any_text_grounds_itself(answer: str, text: str) -> None:
    assert ungrounded(answer, [answer]) == []
    assert ungrounded(answer, [text, answer, text]) == []


@pytest.mark.parametrize(
    "piece",
    [
        "1",
        "1.",
        "1,000 ",
        "a.",
        "a@",
        "a@b.",
        "1-",
        "12.12.",
        "9999-12-31 ",
        "ein",
        "und",
        "zwei ",
        "hundred and ",
        "www.a",
        "١٢ ",
        "½ ",
        "+1 (",
        "\u0000",
        "€",
        "10 % ",
        "3 days ",
        "1 €, ",
        "x1_",
        "may 1 ",
    ],
)
def test_a_long_answer_takes_linear_time(piece: str) -> None:
    answer = piece * (100_000 // len(piece))
    assert (
        len(ungrounded(answer, ["2 days before 2199-12-31, 3 € and 20 %", "what?"])) <= MOST_FACTS
    )
    assert len(ungrounded("17 €", [answer[:20_000], "2"])) <= 1
