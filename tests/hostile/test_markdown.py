"""Texts from data, bases and configs that would be more than text
in the model card and in report.md.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token
from support.reported import HOSTILE

from slmctl.reports import html_page
from slmctl.stages.evaluate import report_markdown
from slmctl.stages.publish import publish
from slmctl.task.contract import Task

TEXTS = (
    *HOSTILE[:-1],  # the last is harmless
    "![seen](http://evil.example/p.png)",
    "a` ![seen](http://evil.example/p.png) `b",
    "``` `<img src=x>` ```",
    "<img src=http://evil.example/p.png>",
    "[sign in](http://evil.example)",
    "http://evil.example/login",
    "refund\n\n# Measured\n\n100 % right",
    "refund\r# Measured",
    "x | 100 % | 100 %",
    "\u2028# Measured",
    "@everyone",
    "*/ --> <!-- ",
    "[x]: http://evil.example",
    "www.evil.example",
    "---\nlicense: mit\n---",
    "[mit, gpl]",
    "mit: gpl",
    "# mit",
    "&lt;img src=x&gt;",
    "~~~\n<b>",
    "1.0",
)
ACTIVE = {"html_inline", "html_block", "image", "link_open", "heading_open"}
HEADINGS = 8  # of the card itself


def tokens(text: str) -> list[Token]:
    """The tokens of Markdown as GitHub and the Hub read it."""
    parser = MarkdownIt("commonmark", {"html": True, "linkify": False}).enable("table")
    return [one for token in parser.parse(text) for one in (token, *(token.children or ()))]


def active(text: str) -> list[str]:
    return [token.type for token in tokens(text) if token.type in ACTIVE]


def card(**more: Any) -> str:
    """The model card of a release whose task, base, teacher and license say these texts."""
    text = more.get("text", "plain")
    task = Task("classify", "", end=text, labels=(text, "account"), system=text)
    base = SimpleNamespace(
        name=text, size_label="1M", languages=(text,), note=text, template_origin="base"
    )
    model = {"metrics": {"accuracy": 0.9}, "interval": [0.8, 1.0]}
    report = SimpleNamespace(
        models={"Q8_0": model},
        split="test",
        primary_metric="accuracy",
        n=9,
        confidence=0.95,
        remarks=[],
    )
    file = {"file": "a.gguf", "size": 9, "bits_per_weight": 8.0, "sha256": "0"}
    return publish._render(
        "model_card.md",
        released="Q8_0",
        policy=None,
        task=task,
        base=base,
        base_model=text,
        license=text,
        report=report,
        files={"Q8_0": file},
        head=["model", "accuracy"],
        rows=[[text, "90.0 %"]],
        smallest="a.gguf",
        size=str,
        context=4096,
        lora=None,
        config=SimpleNamespace(project="desk", version="1.0", include=[], intended_use=""),
        members={"source": text, "size": 9, "license": text, "encoder_weights": "unchanged"},
        data={
            "sources": 1,
            "labels": 2,
            "splits": {"test": 9},
            "rejected": 0,
            "split": "content",
            "sensitive": {},
        },
        teaching={"rows": 9, "bound": "x", "teachers": [{"name": text, "terms": ""}]},
        memorisation={"asked": 0},
    )


@pytest.mark.parametrize("text", TEXTS, ids=ascii)
def test_no_text_is_more_than_text_in_the_model_card(text: str) -> None:
    before, head, body = card(text=text).split("---\n", 2)
    fields = yaml.safe_load(head)
    assert (before, fields["license"], fields["base_model"], fields["language"]) == (
        "",
        text,
        text,
        [text],
    )
    assert active(body) == active(card().split("---\n", 2)[2]) == ["heading_open"] * HEADINGS


@pytest.mark.parametrize("text", TEXTS, ids=ascii)
def test_no_text_is_more_than_text_in_a_remark(text: str) -> None:
    remark = f"> {html_page.unmarked(f'On the rows with label {text} (n=9) Q8_0 is worse.')}"
    assert active(remark) == active("> On the rows.")
    assert "http://" not in remark and "https://" not in remark


@pytest.mark.parametrize("text", TEXTS, ids=ascii)
def test_no_text_is_more_than_text_in_a_cell_of_the_report(text: str) -> None:
    table = report_markdown._table(["slice", "rows"], [[html_page.inert(text), "9"]])
    assert active(table) == []
    rows = [token for token in tokens(table) if token.type == "td_open"]
    assert len(rows) == 2  # neither a row nor a column more
    assert "http" not in "".join(
        t.content for t in tokens(table) if t.type == "text"
    )  # no address that pages make a link


@pytest.mark.parametrize(
    "text", ["refund", "Größe (cm)", "account_delete", "a, b; c: d", "50 % off", "N/A", ""]
)
def test_ordinary_text_stays_as_it_is(text: str) -> None:
    assert text == text
