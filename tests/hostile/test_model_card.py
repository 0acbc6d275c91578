"""Labels and system prompts of a model card: no element of HTML, and no Markdown that a label breaks out into."""

from __future__ import annotations

import jinja2
import pytest
from support import ROOT

from slmctl.task.contract import Task

TEXTS = (
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "a</em><iframe src=//evil>", "`[click](//evil)`", "``",
    'a" onload="x', "<!-- ", "]]>", "\u202e<b>",
)  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_stays_a_text(text: str) -> None:
    lines = (ROOT / "templates" / "model_card.md").read_text().splitlines()
    (start,) = [k for k, line in enumerate(lines) if line.startswith("**Task**")]
    task = Task("classify", "", "", labels=(text, "other"), system=text)
    card = jinja2.Environment().from_string("\n".join(lines[start : start + 4])).render(task=task)
    assert "<" not in card
    assert card.partition("labels: ")[2].count("`") == 4, "each label is one piece of code"
