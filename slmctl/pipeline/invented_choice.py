"""The decision on rows that `label.invent` wrote, in a file below `runs/.invented/`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter

from slmctl import console
from slmctl.artifacts import artifact, atomic
from slmctl.artifacts.typed_json import read_typed

FOLDER = ".invented"
CONFIDENCE = 0.95  # that a training with the rows is better, one-sided


@dataclass(frozen=True)
class InventedChoice:
    """The decision on invented rows.

    Attributes:
        used: They are trained on.
        rows: Number of them that were accepted.
        loss_without, loss_with: Validation loss of both trainings, in nats an answer token.
        gain_at_least: Lower bound of the fall from the first to the second; None where nothing tells it.
        without, with_rows: The adapters, relative to the project.
    """

    used: bool
    rows: int
    loss_without: float
    loss_with: float
    gain_at_least: float | None
    without: str
    with_rows: str

    @property
    def sentence(self) -> str:
        """The decision in words."""
        losses = f"validation loss is {self.loss_with:.4f} with them and {self.loss_without:.4f} without"
        rows = f"{self.rows:,} rows that a teacher wrote for thin labels"
        if self.used:
            return (
                f"{rows} are trained on: {losses}, lower by at least {self.gain_at_least:.4f} "
                f"({console.percent(CONFIDENCE, 0)}, paired)"
            )
        return f"{rows} are left out: {losses}, which is not lower by more than chance"


def read(path: Path) -> InventedChoice | None:
    """The decision in a file; None where there is no file.

    Raises:
        IntegrityError: It cannot be read.
    """
    if not path.exists():
        return None
    fields = read_typed(path, InventedChoice, hint=f"rm {path}, and slmctl run decides again")
    made: InventedChoice = TypeAdapter(InventedChoice).validate_python(fields)
    return made


def write(path: Path, made: InventedChoice) -> None:
    """Write a decision."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic.file(path) as draft:
        draft.write_bytes(artifact.canonical(asdict(made)))
