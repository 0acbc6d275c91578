"""What became of each base that `benchmarks.bases` sent through the chain; read without torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from benchmarks import result


@dataclass(frozen=True)
class Outcome:
    """A base's way through the chain.

    Attributes:
        base: Its name.
        architecture: `model_type` of its config.
        verdict: `passed`, `refused at STAGE`, or `crashed` where a traceback was printed.
        sentence: The error, if there is one.
        training: `fast`, `packed` (k of n layers fast) or `padded`.
        remarks: Those that the rehearsal at pull made.
        seconds: Wall time.
    """

    base: str
    architecture: str
    verdict: str
    sentence: str
    training: str
    remarks: list[str]
    seconds: float


def read() -> list[Outcome]:
    """The outcomes that were recorded, in the order of the table."""
    path = result.FOLDER / "bases.json"
    return (
        [Outcome(**entry) for entry in json.loads(path.read_bytes())["bases"]]
        if path.exists()
        else []
    )


def record(outcome: Outcome, order: Sequence[str]) -> None:
    """Put an outcome into the results, in the place of an earlier one of that base.

    Args:
        order: Names of all bases, in the order of the table.
    """
    kept = {entry.base: asdict(entry) for entry in read()} | {outcome.base: asdict(outcome)}
    packages = ("torch", "transformers", "trl", "peft", "llama-cpp-python")
    bases = [kept[name] for name in order if name in kept]
    result.write("bases", "python -m benchmarks.bases", [], packages, bases=bases)


def table(outcomes: Sequence[Outcome]) -> str:
    """The outcomes as a Markdown table."""
    lines = ["| base | architecture | whole chain | training | remarks |", "|---|---|---|---|---|"]
    lines += [
        f"| {o.base} | {o.architecture} | {o.verdict} | {o.training} | "
        f"{o.sentence or '; '.join(o.remarks)} |"
        for o in outcomes
    ]
    return "\n".join(lines)
