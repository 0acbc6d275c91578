"""A teacher on the loopback that labels the tiny tickets: how often it is
right, and its faults, a test decides.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from slmctl.cli.main import cli
from slmctl.network import guard
from support import tiny
from support.endpoint import Turn, asked_of, decides, says

PRICES = "prices: {input: 2.0, output: 8.0, currency: EUR}"


def label_of(text: str) -> str:
    """The right label of a tiny ticket."""
    counts = {
        label: sum(word in words for word in text.split()) for label, words in tiny.WORDS.items()
    }
    return max(counts, key=lambda label: counts[label])


def chance(text: str, salt: str = "") -> float:
    """A number from 0 to 1 that follows from a text."""
    return int.from_bytes(hashlib.sha256(f"{salt}/{text}".encode()).digest()[:8]) / 2**64


def answer(body: dict[str, Any], *, wrong: float = 0.1) -> str:
    """The right label, but for a share of the texts: there another one, and not always the same."""
    text, labels = body["messages"][-1]["content"], list(tiny.WORDS)
    right = label_of(text)
    if chance(text) >= wrong:
        return right
    others = [label for label in labels if label != right]
    return others[int(chance(text, str(body.get("seed", 0))) * 2)]


def tokens(body: dict[str, Any]) -> int:
    """Tokens of a prompt: one for four characters."""
    return sum(len(message["content"]) for message in body["messages"]) // 4


def reply(body: dict[str, Any], text: str) -> Turn:
    """A good reply with its usage."""
    return says(
        text, usage={"prompt_tokens": tokens(body), "completion_tokens": max(1, len(text) // 4)}
    )


def manners(*, wrong: float = 0.1) -> Callable[[dict[str, Any], int], Turn]:
    """A teacher without faults."""
    return lambda body, before: reply(body, answer(body, wrong=wrong))


def decided(text: str, *, wrong: float = 0.1) -> tuple[str, float]:
    """The label that a teacher gives a text, and its probability: low where it is wrong."""
    label = answer({"messages": [{"content": text}]}, wrong=wrong)
    return label, 0.99 if label == label_of(text) else 0.6


def decisions(body: dict[str, Any], before: int) -> Turn:
    """A teacher that says how sure it is: with a decisions API, or by
    the probabilities of a chat's tokens.
    """
    label, sure = decided(asked_of(body))
    if "messages" not in body:
        return decides(body, label, sure)
    logprobs = (
        {"content": [{"token": label, "logprob": math.log(sure)}]} if body.get("logprobs") else None
    )
    return says(
        label,
        choices=[{"message": {"content": label}, "finish_reason": "stop", "logprobs": logprobs}],
    )


def project(
    folder: Path,
    url: str,
    *,
    rows: int = 120,
    gold: int = 260,
    more: str = "",
    teacher: str = PRICES,
) -> Path:
    """A project without a base that has gold rows and rows to label."""
    folder.mkdir(parents=True, exist_ok=True)
    pairs = tiny.rows(rows + gold, seed=3)
    tiny.write_csv(folder / "gold.csv", pairs[:gold])
    lines = ["text", *(text for text, _ in pairs[gold:])]
    (folder / "new.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "slmctl.yaml").write_text(
        'project: tiny-desk\nversion: "1.0"\nbase: ./base\npull: {rehearse: false}\n'
        "task: {kind: classify, labels: from-data, system: Name the category.}\n"
        "prepare:\n  sources: [{path: gold.csv, input: text, output: category}]\n  splits: {test: "
        "0.05}\n"
        "label:\n  sources: [{path: new.csv, input: text}]\n"
        f"  teachers: [{{url: {url}, model: large{', ' + teacher if teacher else ''}}}]\n{more}",
        encoding="utf-8",
    )
    return folder


def slmctl(folder: Path, *args: str) -> None:
    """Run a command in this process; raises what it raises."""
    guard.seal()
    cli.main(["-C", str(folder), *args], standalone_mode=False)


def labelled(folder: Path) -> Path:
    """The folder of the one labelled artifact."""
    (found,) = (folder / "runs" / "labelled").glob("[!.]*")
    return found


def lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON Lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
