"""Finds and removes the lines of collected answers, feedback and reviews that hold a row or a
near-duplicate of it.

Unlike a data set's hashes these files hold texts, so a text is also found inside a longer one.
Feedback and decisions on a row, which have its id, are found and removed with it.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slmctl.artifacts import json_lines
from slmctl.artifacts.bounded_json import JsonObject
from slmctl.deduplication import minhash, row_fingerprints
from slmctl.deduplication.row_fingerprints import QueryFingerprint
from slmctl.errors import UsageError
from slmctl.normal_forms import in_normal_form
from slmctl.sensitive.conversation_veto import texts_in
from slmctl.sensitive.unmask import FOLDS

# characters of a text to look for inside others; a shorter one would be in half of them
SHORTEST = 8
SHORTEST_NAME = 4  # the same of a name whose rows and lines are listed, and none removed
AT_ONCE = 1024  # lines of a batch
_ESCAPE = re.compile(r"\\+(?:u([0-9a-fA-F]{4})|([\"/]))")  # escapes of JSON inside a text


@dataclass(frozen=True)
class CollectedFile:
    """A file of collected answers, feedback or reviews, and the number of its lines that belong to
    the row.

    Attributes:
        lines: Number of lines that held the row, or belonged to a line that did.
        forgotten: Number of these that were removed.
    """

    path: str
    lines: int
    forgotten: int = 0


@dataclass
class _Sought:
    """The row to look for: its text, from `shortest` characters inside
    others too, and ids of lines that hold it.
    """

    text: str
    similarity: float
    shortest: int = SHORTEST
    ids: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.inside = _plain(self.text) if len(_plain(self.text)) >= self.shortest else ""
        self.print: QueryFingerprint | None = (
            row_fingerprints.query_fingerprint(self.text) if self.text else None
        )

    def collect(self, lines: Sequence[JsonObject]) -> None:
        """Add the ids of the lines that hold the row to `ids`."""
        texts = [_texts(line) for line in lines]
        questions = [minhash.normalise(own[0]) for own in texts]
        alike = [False] * len(lines)
        if self.print is not None:
            sketches = minhash.compact(minhash.sketch(questions))
            estimates = minhash.estimate(sketches, self.print.sketch) >= self.similarity
            equal = [minhash.digest(text) == self.print.digest for text in questions]
            alike = [bool(near) or same for near, same in zip(estimates, equal, strict=True)]
        for line, own, near in zip(lines, texts, alike, strict=True):
            if near or any(map(self.stands_in, own)):
                self.ids.add(_id_of(line))

    def stands_in(self, text: str) -> bool:
        """True if a text, which may hold JSON with escapes, contains the row."""
        return bool(self.inside) and (
            self.inside in _plain(text) or self.inside in _plain(_ESCAPE.sub(_unescape, text))
        )


def holder(text: str, shortest: int) -> Callable[[str], bool]:
    """A function that is true for a text with another one in it, whatever its case and white space.

    Raises:
        UsageError: The text has fewer than `shortest` characters.
    """
    sought = _Sought(text, 1.0, shortest)
    if not sought.inside:
        hint = (
            f"--forget removes by {SHORTEST} and more; --contains alone lists by "
            f"{SHORTEST_NAME} and more"
        )
        raise UsageError(
            f"a text of fewer than {shortest} characters would be in half of all rows", hint=hint
        )
    return sought.stands_in


def search(
    paths: Sequence[Path],
    *,
    text: str | None,
    id: str | None,
    similarity: float,
    forget: bool,
    shortest: int = SHORTEST,
) -> Iterator[CollectedFile]:
    """Search files for the lines that hold a row, and for lines with the ids of these.

    A line holds the row if its question equals it or is a near-duplicate, or if any string of the
    line contains it.

    Args:
        paths: Files, and folders of them.
        id: The id of a request.
        similarity: Estimated similarity from which a question counts as a near-duplicate, 0 to 1.
        forget: Remove these lines. A server or a reviewer may add lines meanwhile.
        shortest: Characters from which a text is looked for inside others.

    Raises:
        OSError: A file cannot be read or rewritten.
    """
    files = [
        file
        for path in paths
        for file in (sorted(path.glob("*.jsonl")) if path.is_dir() else [path])
    ]
    files = list(dict.fromkeys(file.resolve() for file in files))
    sought = _Sought(text or "", similarity, shortest, {id} if id is not None else set())
    if text is not None:
        for file in files:
            for lines in _batches(file):
                sought.collect(lines)
    for file in files:
        count = sum(_id_of(line) in sought.ids for line in json_lines.read(file))
        torn = sum(map(sought.stands_in, json_lines.torn(file)))
        gone = 0
        if forget and (count or torn):
            gone = (
                json_lines.rewrite(
                    file, lambda line: _id_of(line) not in sought.ids, with_torn=bool(torn)
                )
                + torn
            )
        yield CollectedFile(str(file), max(count + torn, gone), gone)


def lines(files: Sequence[CollectedFile]) -> Iterator[str]:
    holding = [file for file in files if file.lines]
    if files:
        yield (
            "collected and reviewed files that hold it:"
            if holding
            else "no collected or reviewed file holds it"
        )
    for file in holding:
        gone = f", {file.forgotten} of them removed" if file.forgotten else ""
        yield f"  {file.lines:>11}  {'line' if file.lines == 1 else 'lines'} of {file.path}{gone}"


def _batches(path: Path) -> Iterator[list[JsonObject]]:
    batch: list[JsonObject] = []
    for line in json_lines.read(path):
        batch.append(line)
        if len(batch) == AT_ONCE:
            yield batch
            batch = []
    if batch:
        yield batch


def _texts(line: JsonObject) -> list[str]:
    """The question of a line in the form of a data set's input, then every string of the line."""
    listed: Any = line.get("messages")
    messages = [m for m in listed if isinstance(m, dict)] if isinstance(listed, list) else []
    contents = [str(m.get("content", "")) for m in messages if m.get("role") != "system"]
    return ["\n".join(contents), *_strings(line)]


def _strings(value: Any) -> Iterator[str]:
    """The strings of a JSON value at any depth, and those of JSON inside
    a string, such as a call's arguments.
    """
    for text in texts_in(value):
        yield text
        if text.lstrip()[:1] in ("{", "[", '"'):
            with contextlib.suppress(ValueError, RecursionError):
                yield from _strings(json.loads(text))


def _id_of(line: JsonObject) -> str:
    """The id of a line; the line as JSON if it has none."""
    return str(line.get("id") or json.dumps(line))


def _plain(text: str) -> str:
    """A text with NFKC normalisation, folded case and look-alikes, and single spaces."""
    return " ".join(in_normal_form(text, "NFKC").casefold().translate(FOLDS).split())


def _unescape(escape: re.Match[str]) -> str:
    return chr(int(escape[1], 16)) if escape[1] else escape[2]
