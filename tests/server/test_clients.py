"""The examples of docs/clients.md, run as they stand against a server of a classifier."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import textwrap
from pathlib import Path

import openai
import pytest
from support import ROOT, tiny
from support.program import printed

# The interpreter of an environment with the clients as their registry has them: `make test-clients`
# makes one. Some of them want other versions of what slmctl itself needs, so they are not installed
# beside it.
PYTHON = os.environ.get("SLMCTL_CLIENTS", "")


def examples() -> dict[str, str]:
    """The program of each section, by its title."""
    text = (ROOT / "docs" / "clients.md").read_text(encoding="utf-8")
    found = re.findall(r"^## (.+)\n\n((?:(?:    .*)?\n)+)", text, re.MULTILINE)
    return {title: textwrap.dedent(code) for title, code in found}


@pytest.fixture
def url(desk_url: str) -> str:
    return f"{desk_url}/v1"


def said(title: str, url: str, folder: Path) -> str:
    """The output of an example."""
    environment = tiny.environment(
        BASE_URL=url, HOME=str(folder), LITELLM_LOCAL_MODEL_COST_MAP="True"
    )
    command = [PYTHON, "-c", examples()[title]]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, cwd=folder, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_openais_own_client(url: str) -> None:
    first, second, parsed = printed(examples()["OpenAI"], BASE_URL=url).splitlines()
    assert first in tiny.LABELS
    assert (second, parsed) == (first, f"category='{first}'")


def decided(lines: str) -> list[tuple[str, dict[str, float]]]:
    """The label and the probabilities in each line of an output."""
    found = [re.search(r"(\w+) (\{.*\})$", line) for line in lines.splitlines()]
    return [(line[1], ast.literal_eval(line[2])) for line in found if line is not None]


def test_openais_own_client_asks_for_decisions(url: str) -> None:
    if not hasattr(openai.OpenAI, "decisions"):
        pytest.skip("an older openai")
    output = printed(examples()["Decisions"], BASE_URL=url)
    (desk, all), (other, both) = decided(output)
    assert output.startswith("desk ") and list(all) == ["billing", "delivery", "account"]
    assert all[desk] == max(all.values()) and both == {other: max(both.values()), **both}
    assert sum(all.values()) == pytest.approx(1, abs=0.02)


@pytest.mark.clients
@pytest.mark.parametrize("title", ["LangChain decisions", "TypeSafe"])
def test_a_client_of_decisions_as_it_comes(title: str, url: str, tmp_path: Path) -> None:
    if not PYTHON:
        pytest.skip("make test-clients")
    label, shares = decided(said(title, url, tmp_path))[0]
    assert set(shares) == tiny.LABELS.keys() and shares[label] == max(shares.values())


@pytest.mark.clients
@pytest.mark.parametrize(
    ("title", "answers"), [("LangChain", 2), ("LiteLLM", 2), ("Instructor", 1), ("DSPy", 1)]
)
def test_a_client_as_it_comes(title: str, answers: int, url: str, tmp_path: Path) -> None:
    if not PYTHON:
        pytest.skip("make test-clients")
    lines = said(title, url, tmp_path).split()
    assert len(lines) == answers and set(lines) <= tiny.LABELS.keys()
    assert len(set(lines)) == 1
