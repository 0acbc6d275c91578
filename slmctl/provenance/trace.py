"""Who saw a row: the data sets that hold it or nearly the same, and every model and release made of them.

Data sets answer from their `rows.bin`; the rest follows from the digests in the manifests. An
artifact is only said to be clear when all it was made of is here and could be asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from slmctl.artifacts import lineage
from slmctl.artifacts.artifact import MANIFEST, Artifact, sha256_file
from slmctl.deduplication.row_fingerprints import (
    FILENAME,
    FingerprintMatch,
    Fingerprints,
    QueryFingerprint,
    query_fingerprint,
)
from slmctl.errors import IntegrityError
from slmctl.releases import registry

HELD_OUT = frozenset(("validation", "calibration", "test"))
SHOWN = 5  # rows of a data set that are printed; --json has all

# Which sides of its data set an artifact took something from; of a kind that is not here, all of them.
# A report trains its baselines on the training rows, and keeps none. Predictions name their side.
_READS = {"adapter": {"train", "validation"}, "report": {"validation"}}


class Standing(StrEnum):
    """What an artifact has to do with the row."""

    TRAINED = "trained"  # its training data held the row, or nearly the same
    HELD_OUT = "held out"  # only rows that it was measured, chosen, set or prompted by did
    CLEAR = "clear"  # neither
    UNKNOWN = "unknown"  # something that it was made of is not here, or cannot be asked


@dataclass(frozen=True)
class DataSet:
    """A prepared data set, and which of its records are the row; `fault` says why it could not be asked."""

    path: str
    digest: str
    rows: tuple[FingerprintMatch, ...]
    fault: str = ""


@dataclass(frozen=True)
class Holding:
    """An artifact or a release, and what it has to do with the row.

    Attributes:
        missing: What keeps the answer from being sure.
    """

    path: str
    kind: str
    digest: str
    standing: Standing
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class Trace:
    """The whole answer. It holds no text."""

    data_sets: tuple[DataSet, ...]
    artifacts: tuple[Holding, ...]
    releases: tuple[Holding, ...]

    @property
    def found(self) -> bool:
        """Whether any data set holds the row, or nearly the same."""
        return any(row.split != "rejected" for data_set in self.data_sets for row in data_set.rows)

    @property
    def sure(self) -> bool:
        """Whether nothing is unknown."""
        return all(one.standing != Standing.UNKNOWN for one in (*self.artifacts, *self.releases))

    def to_json(self) -> dict[str, Any]:
        """This answer as JSON values."""
        fields = asdict(self)
        for data_set, entry in zip(self.data_sets, fields["data_sets"], strict=True):
            entry["rows"] = [row.to_json() for row in data_set.rows]
        return {"found": self.found, "sure": self.sure, **fields}


def trace(
    root: Path,
    *,
    text: str | None = None,
    id: str | None = None,
    similarity: float = 0.6,
    registries: Sequence[Path] = (),
) -> Trace:
    """Ask every data set below `root/runs/` for a row, and follow it into everything made of them.

    Args:
        root: The project's folder.
        text: The row's text.
        id: A record's id; rows that are like a record of that id in any data set are found too.
        similarity: Estimated similarity (0 to 1) from which another row counts as nearly the same.
        registries: Folders of releases, `PROJECT/VERSION/` each.
    """
    whole = [lineage.opened(folder) for folder in lineage.folders(root)]
    here = [one for one in whole if isinstance(one, Artifact)]
    asked = {one.path: _fingerprints(one) for one in here if one.kind == "prepared"}
    readable = {path: found for path, found in asked.items() if isinstance(found, Fingerprints)}
    probes: list[QueryFingerprint] = [] if text is None else [query_fingerprint(text)]
    if id is not None:
        probes += [one for found in readable.values() for one in found.queries(id)]
    rows = {path: tuple(found.look_up(probes, id=id, threshold=similarity)) for path, found in readable.items()}
    data_sets = tuple(
        DataSet(_shown(one.path, root), one.digest, rows.get(one.path, ()), _fault(asked[one.path]))
        for one in here
        if one.kind == "prepared"
    )
    released = [
        lineage.opened(folder)
        for place in registries
        for folder in registry.folders(place)
        if (folder / MANIFEST).exists()
    ]
    exposures = _Exposures([*here, *(one for one in released if isinstance(one, Artifact))], data_sets)
    return Trace(
        data_sets,
        tuple(exposures.holding(one, root) for one in whole),
        tuple(exposures.holding(one, root) for one in released),
    )


class _Exposures:
    """What each artifact took from which sides that hold the row, followed through the manifests."""

    def __init__(self, artifacts: Sequence[Artifact], data_sets: Sequence[DataSet]) -> None:
        self._by_digest: dict[str, list[Artifact]] = {}
        self._by_file: dict[str, list[Artifact]] = {}  # a base may be a model that was made here
        for one in artifacts:
            self._by_digest.setdefault(one.digest, []).append(one)
            if one.kind != "base":
                for entry in one.manifest.files:
                    self._by_file.setdefault(entry.sha256, []).append(one)
        self._sides: dict[str, frozenset[str]] = {}
        self._faults: dict[str, str] = {}
        for data_set in data_sets:  # equal digests hold equal rows
            self._sides[data_set.digest] = frozenset(row.split for row in data_set.rows) & (HELD_OUT | {"train"})
            self._faults[data_set.digest] = data_set.fault
        self._seen: dict[str, tuple[frozenset[str], frozenset[str]]] = {}

    def holding(self, one: Artifact | Path, root: Path) -> Holding:
        if isinstance(one, Path):
            return Holding(
                _shown(one, root), one.parent.name, "", Standing.UNKNOWN, (f"its {MANIFEST} is missing or damaged",)
            )
        sides, missing = self._of(one)
        if "train" in sides:
            standing = Standing.TRAINED
        elif missing:
            standing = Standing.UNKNOWN
        else:
            standing = Standing.HELD_OUT if sides else Standing.CLEAR
        return Holding(_shown(one.path, root), one.kind, one.digest, standing, tuple(sorted(missing)))

    def _of(self, one: Artifact) -> tuple[frozenset[str], frozenset[str]]:
        """The sides that hold the row and that an artifact took something from, and what is missing to be sure."""
        if one.digest in self._seen:
            return self._seen[one.digest]
        self._seen[one.digest] = frozenset(), frozenset()  # an artifact cannot be its own ancestor
        sides, missing = self._own(one)
        for same in self._by_digest[one.digest]:  # equal bytes, made in more than one way
            for role, value in same.manifest.inputs.items():
                for digest in value if isinstance(value, list) else [value]:
                    if digest not in self._by_digest:
                        missing |= set() if _is_remote(same, role) else {f"{role} {digest[:19]} is not here"}
                    elif digest in self._sides:
                        sides |= _taken(same, self._sides[digest])
                        missing |= {fault for fault in [self._faults[digest]] if fault}
                    else:
                        more, lacking = self._of(self._by_digest[digest][0])
                        if same.kind == "published" and role == "report":
                            # what the release was measured beside is no part of it
                            more, lacking = more - {"train"}, frozenset()
                        sides |= more
                        missing |= lacking
        self._seen[one.digest] = frozenset(sides), frozenset(missing)
        return self._seen[one.digest]

    def _own(self, one: Artifact) -> tuple[set[str], set[str]]:
        """The same of an artifact without its inputs: a data set holds rows, a base may be a model made here."""
        if one.kind == "prepared":
            fault = self._faults.get(one.digest, "")
            return set(self._sides.get(one.digest, ())), {fault} if fault else set()
        sides, missing = set[str](), set[str]()
        for sha256 in one.metrics.get("source_sha256", {}).values() if one.kind == "base" else ():
            for source in self._by_file.get(sha256.removeprefix("sha256:"), ()):
                more, lacking = self._of(source)
                sides |= more
                missing |= lacking
        return sides, missing


def _taken(one: Artifact, held: frozenset[str]) -> frozenset[str]:
    """Of the sides of its data set that hold the row, those that an artifact took something from."""
    if one.kind == "predictions" and "split" in one.manifest.config:
        shown = frozenset(("shots",)) if one.metrics.get("shots") and "train" in held else frozenset[str]()
        return held & {one.manifest.config["split"]} | shown
    return held & _READS.get(one.kind, HELD_OUT | {"train"})


def _is_remote(one: Artifact, role: str) -> bool:
    """Whether an input is a model at somebody else's address, which nothing here was made of."""
    return one.kind == "predictions" and role == "model" and one.metrics.get("kind") == "endpoint"


def _fingerprints(data_set: Artifact) -> Fingerprints | str:
    """What a data set can be asked by, or why it cannot."""
    name = f"prepared {data_set.digest[:19]}"
    entries = [entry for entry in data_set.manifest.files if entry.path == FILENAME]
    if not entries:
        return f"{name} has no {FILENAME}: it was made before rows could be traced"
    path = data_set.path / FILENAME
    if not path.is_file() or sha256_file(path) != "sha256:" + entries[0].sha256:
        return f"{name}: its {FILENAME} is missing or has changed"
    try:
        return Fingerprints(path)
    except IntegrityError as error:
        return f"{name}: {error.message}"


def _fault(found: Fingerprints | str) -> str:
    return found if isinstance(found, str) else ""


def _shown(path: Path, root: Path) -> str:
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def lines(found: Trace) -> Iterator[str]:
    """The answer for people, a line each."""
    listed = [data_set for data_set in found.data_sets if data_set.rows]
    if found.found:
        yield "data sets that hold it or nearly the same:"
    else:
        yield "no data set here holds it or nearly the same" + (", and these rejected it:" if listed else "")
    for data_set in listed:
        yield f"  {data_set.path}"
        for row in data_set.rows[:SHOWN]:
            how = "the same" if row.exact else f"{row.similarity:.0%} alike"
            yield f"    {row.split:<11}  {row.id}  {how}{', as trained' if row.as_trained else ''}"
        if len(data_set.rows) > SHOWN:
            yield f"    and {len(data_set.rows) - SHOWN} more (--json lists all)"
    titles = {
        Standing.TRAINED: "trained on it:",
        Standing.HELD_OUT: "not trained on it, but measured, chosen, set or prompted by it:",
        Standing.UNKNOWN: "cannot be ruled out:",
        Standing.CLEAR: "did not see it:",
    }
    for standing, title in titles.items():
        of_it = [one for one in (*found.artifacts, *found.releases) if one.standing == standing]
        if of_it:
            yield title
        for one in of_it:
            release = "release" if one in found.releases else one.kind
            yield f"  {release:<11}  {one.path}"
            yield from (f"               {reason}" for reason in one.missing if standing == Standing.UNKNOWN)
