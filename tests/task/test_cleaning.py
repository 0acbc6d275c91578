"""Cleaning: HTML, quoted mail and signatures go, sentences stay, and
no text takes more than linear time.
"""

from __future__ import annotations

import time
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import tiny

from slmctl.cli import terminal_chat
from slmctl.config import ServeConfig
from slmctl.inference.engine import Request
from slmctl.models import prompts
from slmctl.server.forms.chat import CHAT
from slmctl.server.forms.request import ServedModel
from slmctl.server.forms.text import TEXT
from slmctl.sources.documents import html_text
from slmctl.task import cleaning, mail_text
from slmctl.task.cleaning import Replacement
from slmctl.task.contract import Task

ALL = tuple(cleaning.STEPS)


def cleaned(text: str, *steps: str, replace: tuple[Replacement, ...] = ()) -> str:
    return cleaning.clean(text, steps or ALL, replace)[0]


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("<p>Hello&nbsp;<b>Ann</b>,<br>\n a &lt; b</p>", "Hello Ann,\na < b"),
        (
            "<html><head><title>x</title><style>p{}</style></head><body>\nshown</body></html>",
            "shown",
        ),
        ("<div>one <!-- <b>two</b> --></div><div>three</div>", "one\nthree"),
        ("<script>if (a < b) { x() }</script>shown<script>never closed", "shownnever closed"),
        ("said<blockquote>was <i>quoted</i></blockquote>", "said\n\n> was quoted"),
        ("<ul><li>one<li>two</ul>", "- one\n- two"),
        ("<table><tr><td>a</td><td>b</td></tr></table>", "a b"),
        ("<pre>a  b\n c</pre>", "a  b\n c"),
        # no tag makes a line: those of the text count
        ("Hello <b>you</b>\nsecond line", "Hello you\nsecond line"),
        ("a < b and <ann@example.com> or x<y AT&amp;T", "a < b and <ann@example.com> or x<y AT&T"),
        ("?a=1&copy=2 &unknown; R&D", "?a=1&copy=2 &unknown; R&D"),
        ('<a href="x>y" title=it\'s>link</a>', "link"),
    ],
)
def test_html_becomes_its_text(source: str, text: str) -> None:
    assert html_text.text_of(source) == text


QUOTED = {
    "en": "On Mon, 3 May 2021 at 10:15, Ann <ann@example.com> wrote:",
    "en, wrapped": "On Mon, 3 May 2021 at 10:15, Ann Example\n<ann@example.com> wrote:",
    "de": "Am 03.05.21 um 10:15 schrieb Anna Muster:",
    "de, after the name": "Anna Muster schrieb am 03.05.2021 um 10:15:",
    "fr": "Le lun. 3 mai 2021 à 10:15, Anne <anne@example.com> a écrit :",
    "es": "El lun, 3 may 2021 a las 10:15, Ana (<ana@example.com>) escribió:",
    "it": "Il giorno lun 3 mag 2021 alle ore 10:15 Anna <anna@example.com> ha scritto:",
    "nl": "Op ma 3 mei 2021 om 10:15 schreef Anna <anna@example.com>:",
    "pt": "Em seg., 3 de mai. de 2021 às 10:15, Ana <ana@example.com> escreveu:",
    "sv": "Den mån 3 maj 2021 kl 10:15 skrev Anna <anna@example.com>:",
    "pl": "W dniu pon., 3 maj 2021 o 10:15 Anna <anna@example.com> napisał(a):",
    "original": "-----Original Message-----",
    "original, de": "-----Ursprüngliche Nachricht-----",
    "Outlook": "From: Ann Example <ann@example.com>\nSent: Monday, 3 May 2021 10:15\nTo: "
    "Tom\nSubject: order",
    "Outlook, de": "_____\nVon: Anna <anna@example.com>\nGesendet: Montag\nAn: Tom\nBetreff: x",
    "Outlook, fr": "*De :* Anne\n*Envoyé :* lundi 3 mai\n*À :* Tom\n*Objet :* commande",
}


@pytest.mark.parametrize("head", QUOTED.values(), ids=QUOTED)
@pytest.mark.parametrize("mark", ["> ", ""], ids=["marked", "plain"])
def test_quoted_mail_is_cut_off(head: str, mark: str) -> None:
    mail = f"The parcel is late.\n\n{head}\n\n{mark}Dear Tom,\n{mark}it was sent."
    assert mail_text.without_quotations(mail) == "The parcel is late."


def test_answers_between_quoted_lines_stay() -> None:
    mail = "Hello,\n\nOn 3 May, 10:15, Ann wrote:\n> is it there?\nNo.\n> and the other?\nYes."
    assert mail_text.without_quotations(mail) == "Hello,\n\nNo.\nYes."


@pytest.mark.parametrize(
    "text",
    [
        # neither a time nor an address: a sentence
        "Am 3. Mai schrieb mir Ihr Kollege:\nDie Ware kommt.",
        "On Monday at 10:15 she wrote: nothing.",
        "From: Berlin\nI want to travel to Rome.",
        "FYI\n\n---------- Forwarded message ---------\nFrom: Ann\nthe order is late",
        "Subject: order\nPlease cancel.",
        "3 > 2 and 5 > 4",
    ],
)
def test_sentences_are_no_quoted_mail(text: str) -> None:
    assert mail_text.without_quotations(text) == text


CLOSINGS = [
    "Mit freundlichen Grüßen",
    "Mit freundlichem Gruß",
    "Viele Grüße",
    "Vielen Dank und beste Grüße",
    "Beste Gruesse Anna",
    "MfG",
    "Cheers",
    "LG, Anna",
    "Best regards,",
    "Kind regards",
    "Many thanks and best wishes,",
    "Yours sincerely",
    "Best,",
    "Regards, Tom",
    "Cordialement",
    "Bien à vous,",
    "Un saludo,",
    "Atentamente",
    "Cordiali saluti",
    "Met vriendelijke groet,",
    "Atenciosamente,",
    "Med vänliga hälsningar",
    "Med venlig hilsen",
    "Pozdrawiam",
    "-- ",
    "--",
]


@pytest.mark.parametrize("closing", CLOSINGS)
def test_a_signature_is_cut_off(closing: str) -> None:
    mail = f"Please cancel order 4711.\n\n{closing}\nAnna Muster\nMuster GmbH\nTel. 030 1234"
    assert mail_text.without_signature(mail) == "Please cancel order 4711."


@pytest.mark.parametrize(
    "text",
    [
        "Best price ever\nI want it",
        "LG Fernseher\nist kaputt",
        "Best regards to all of your colleagues\nand cancel it",
        "Best regards\nTom\n\nPS: the number is 4711",
        "Viele Grüße\nTom\n\nKommt die Ware noch?",
        "Regards\n" + "\n".join(f"line {k} of a long text" for k in range(30)),
        "no closing at all",
    ],
)
def test_sentences_are_no_signature(text: str) -> None:
    assert mail_text.without_signature(text) == text


@pytest.mark.parametrize(
    "line", ["Sent from my iPhone", "Von meinem iPhone gesendet", "Get Outlook for Android"]
)
def test_a_line_that_names_a_device_is_cut_out(line: str) -> None:
    assert mail_text.without_signature(f"one\n{line}\nPS: two") == "one\nPS: two"


def test_steps_have_an_order_and_name_what_they_changed() -> None:
    mail = (
        "<p>Cancel  order\u00a04711.</p><p>Best "
        "regards</p><p>Tom</p><blockquote>earlier</blockquote>"
    )
    replace = (Replacement(r"order (\d+)", r"order no. \1"), Replacement("never", ""))
    text, steps = cleaning.clean(mail, ("whitespace", "signatures", "html", "quoted_mail"), replace)
    assert text == "Cancel order no. 4711."
    assert steps == ("html", "quoted_mail", "signatures", r"replace order (\d+)")
    assert cleaning.step_names(("whitespace", "html"), replace) == [
        "html",
        r"replace order (\d+)",
        "replace never",
        "whitespace",
    ]


def test_white_space_is_tidied() -> None:
    assert cleaned(" a\t\tb \r\n\r\n\r\n\r\nc\u00a0d\u200b ", "whitespace") == "a b\n\nc d"


@pytest.mark.parametrize("text", ["> all of it", "-- \nAnna", "<img src=x>", " \n"])
def test_a_step_that_would_leave_nothing_leaves_the_text(text: str) -> None:
    assert cleaned(text).split() == text.split()


def test_a_replacement_cannot_blow_a_text_up() -> None:
    grows = (Replacement("a", "b" * 500),)
    assert cleaned("a" * 10_000, "html", replace=grows) == "a" * 10_000
    assert cleaned("an", "html", replace=grows) == "b" * 500 + "n"


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from("<>/ab p='\"&;!-\n>: "), max_size=80))
def test_any_text_is_cleaned_to_a_text(text: str) -> None:
    found = cleaned(text)
    assert found.strip() or not text.strip()
    assert cleaned(found, "whitespace") == found


SEEDS = [
    "<",
    "<!--",
    "<a ",
    "<a x='",
    "<a<",
    "<a \"'",
    "<script>",
    "</script",
    "<p>",
    "<pre>\n",
    "&amp",
    "\n>",
    "-- \n",
    "Best regards\n",
    "On 1:10\n",
    "From: x\n",
    "On x 1:10 wrote:\n",
    "-----\n",
    " ",
    "On ",
]


@pytest.mark.parametrize("seed", SEEDS)
def test_cleaning_takes_linear_time(seed: str) -> None:
    # html.parser takes 8 s for 32,000 characters of "<a ", a thousand times what 1,000 take
    def seconds(length: int) -> float:
        begun = time.process_time()
        cleaned((seed * length)[:length])
        return time.process_time() - begun

    assert seconds(50_000) < 50 * max(seconds(5_000), 0.01)


def test_a_conversation_is_cleaned_where_the_user_speaks() -> None:
    task = Task("generate", "t", "end", clean=("html",), replace=(Replacement("cancel", "stop"),))
    messages = [
        {"role": "system", "content": "<b>x</b>"},
        {"role": "user", "content": "<b>cancel</b>"},
    ]
    assert [message["content"] for message in task.cleaned(messages)] == ["<b>x</b>", "stop"]


def test_every_way_in_asks_what_was_trained() -> None:
    task = Task("generate", tiny.TEMPLATE, "<|im_end|>", clean=("html", "signatures"))
    raw, expected = "<p>hello</p><p>Best regards<br>Ann</p>", task.prompt(task.messages("hello"))
    assert [prompt.text for prompt in prompts.of_texts(task, [raw])] == [expected]

    model = ServedModel("desk", task)
    for form, body in (
        (CHAT, {"messages": [{"role": "user", "content": raw}]}),
        (TEXT, {"prompt": raw}),
    ):
        checked = form.read(body, model, ServeConfig())
        assert [request.prompt for request in checked.requests] == [expected]
        # a general model beside it gets what the client sent
        assert checked.sent[0]["content"] == raw

    class Listening:
        """An engine that keeps what it is asked."""

        heard: ClassVar[list[str]] = []

        def stream(self, request: Request) -> list[Any]:
            self.heard.append(request.prompt)
            return []

    terminal_chat.chat(Listening(), task, [raw], max_tokens=4, interactive=False, policy=None)  # type: ignore[arg-type]
    assert Listening.heard == [expected]


def test_white_space_leaves_the_pages_of_a_document() -> None:
    # `init` proposes the step for folders as labels, whose values were all on page 1
    clean = cleaning.STEPS["whitespace"]
    assert clean("  one  \n\f  two \n\n\n\n\fthree\t x ") == "one\n\f two\n\n\fthree x"
    assert clean(" \n\f \n") == ""
