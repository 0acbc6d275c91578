"""Finds the data sets that hold a row or a near-duplicate of it, and every model and release made
of them.

Data sets are searched by the hashes in their `rows.bin`, or by their texts for a part of a row; the
rest follows from the digests in the manifests. An artifact counts as clear only if all its
ancestors are here and could be searched.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

from slmctl import config, console, models
from slmctl.artifacts import lineage
from slmctl.artifacts.artifact import MANIFEST, Artifact, has_content
from slmctl.console import percent
from slmctl.deduplication.row_fingerprints import (
    FILENAME,
    FingerprintMatch,
    Fingerprints,
    QueryFingerprint,
    query_fingerprint,
)
from slmctl.errors import IntegrityError, UsageError
from slmctl.production import forgetting
from slmctl.production.forgetting import CollectedFile
from slmctl.releases import registry
from slmctl.sensitive.conversation_veto import texts_in
from slmctl.task.records import SPLITS

HELD_OUT = frozenset(("validation", "calibration", "test"))
SHOWN = 5  # rows of a data set that are printed; --json has all

# Kind of an artifact -> the splits of its data set that influenced it; other kinds: all splits. A
# report trains baselines on the training rows and does not keep them. Predictions have the split in
# their config. Labelled rows in a data set are found by its own hashes; the gold rows (calibration)
# set their threshold.
_TRAINED = frozenset(("train", "validation"))
_READS = {
    "adapter": _TRAINED,
    "encoder": _TRAINED,
    "sum": {"validation"},
    "report": {"validation"},
    "prepared": {"calibration"},
}
# splits besides the training rows whose rows an artifact of a kind has learned
_LEARNED = {"encoder": {"validation"}}
_HOLD_ROWS = ("prepared", "labelled")
# a data set's files of texts -> the split of their rows; rows that no teacher labelled surely are
# in none
_TEXTS = {f"{split}.jsonl": split for split in SPLITS}
_TEXTS |= {"accepted.jsonl": "train", "review.jsonl": "rejected", "refused.jsonl": "rejected"}


# rows, and the reason why not all could be searched
_Searched: TypeAlias = tuple[tuple[FingerprintMatch, ...], str]


class Standing(StrEnum):
    """The relation of an artifact to the row."""

    TRAINED = "trained"  # the row or a near-duplicate was in its training data
    # only in rows by which it was measured, chosen or calibrated, or in its prompt
    HELD_OUT = "held out"
    CLEAR = "clear"  # in none of them
    UNKNOWN = "unknown"  # an ancestor is missing or cannot be searched


@dataclass(frozen=True)
class DataSet:
    """A data set, and its records that match the row; `fault` is the
    reason why it could not be searched.
    """

    path: str
    digest: str
    rows: tuple[FingerprintMatch, ...]
    fault: str = ""


@dataclass(frozen=True)
class Holding:
    """An artifact or a release, and its relation to the row.

    Attributes:
        missing: Reasons why the relation is not sure, such as a missing ancestor.
    """

    path: str
    kind: str
    digest: str
    standing: Standing
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class Trace:
    """The result of a search; it contains no text of rows.

    Attributes:
        collected: The searched files of collected answers, feedback and reviews.
        contains: The rows that contain the text were looked for.
        by_id: The row of an id was looked for.
    """

    data_sets: tuple[DataSet, ...]
    artifacts: tuple[Holding, ...]
    releases: tuple[Holding, ...]
    collected: tuple[CollectedFile, ...] = ()
    contains: bool = False
    by_id: bool = False

    @property
    def found(self) -> bool:
        """True if a data set or collected file holds the row or a
        near-duplicate; rejected rows do not count.
        """
        in_files = any(file.lines > file.forgotten for file in self.collected)
        return in_files or any(
            row.split != "rejected" for data_set in self.data_sets for row in data_set.rows
        )

    @property
    def sure(self) -> bool:
        """True if data sets or releases were searched, and no relation is unknown."""
        holdings = (*self.artifacts, *self.releases)
        searched = bool(self.data_sets or self.releases)
        return searched and all(entry.standing != Standing.UNKNOWN for entry in holdings)

    def to_json(self) -> dict[str, Any]:
        """The result as JSON values."""
        fields = asdict(self)
        for data_set, file in zip(self.data_sets, fields["data_sets"], strict=True):
            file["rows"] = [row.to_json() for row in data_set.rows]
        return {"found": self.found, "sure": self.sure, **fields}


def trace(
    root: Path,
    *,
    text: str | None = None,
    id: str | None = None,
    similarity: float = 0.6,
    registries: Sequence[Path] = (),
    collected: Sequence[Path] = (),
    forget: bool = False,
    contains: bool = False,
) -> Trace:
    """Search every data set below `root/runs/` for a row, and follow matches to everything made of
    them.

    Args:
        id: A record's id; near-duplicates of the record with this id in any data set are found too.
        similarity: Estimated similarity, 0 to 1, from which a row counts as a near-duplicate.
        registries: Folders of releases, `PROJECT/VERSION/` each.
        collected: Files of collected answers, feedback and reviews, or folders of them, to search
            too.
        forget: Remove the matching lines from these files.
        contains: Find the rows with the text in them, such as the name of a person in documents, by
            their texts.

    Raises:
        IntegrityError: There is nothing to search: no data set, no artifact made of one, no
            collected file.
        OSError: A collected file cannot be read or rewritten.
        UsageError: The folder is not a project, or the text to look for in rows is too short.
    """
    shortest = forgetting.SHORTEST_NAME if contains and not forget else forgetting.SHORTEST
    holds = forgetting.holder(text, shortest) if contains and text is not None else None
    own = forgetting.search(
        collected, text=text, id=id, similarity=similarity, forget=forget, shortest=shortest
    )
    files = tuple(own)
    whole = [lineage.opened(folder) for folder in lineage.folders(root)]
    here = [entry for entry in whole if isinstance(entry, Artifact)]
    sets = [entry for entry in here if entry.kind in _HOLD_ROWS]
    if holds is not None:
        searched = [_containing(entry, holds) for entry in sets]
    else:
        searched = _alike(sets, text, id, similarity)
    data_sets = tuple(
        DataSet(_shown(entry.path, root), entry.digest, *result)
        for entry, result in zip(sets, searched, strict=True)
    )
    released = _released(registries)
    if not (files or data_sets or released) and all(
        isinstance(e, Artifact) and e.is_base for e in whole
    ):
        _refuse(root)
    exposures = _Exposures(
        [*here, *(entry for entry in released if isinstance(entry, Artifact))], data_sets
    )
    return Trace(
        data_sets,
        tuple(exposures.holding(entry, root) for entry in whole),
        tuple(exposures.holding(entry, root) for entry in released),
        tuple(dataclasses.replace(file, path=_shown(Path(file.path), root)) for file in files),
        contains,
        by_id=id is not None,
    )


def _alike(
    sets: Sequence[Artifact], text: str | None, id: str | None, similarity: float
) -> list[_Searched]:
    """The rows of each data set that are a row or nearly the same, by the hashes."""
    prints = [_fingerprints(entry) for entry in sets]
    readable = [each for each in prints if isinstance(each, Fingerprints)]
    probes: list[QueryFingerprint] = [] if text is None else [query_fingerprint(text)]
    if id is not None:
        probes += [entry for each in readable for entry in each.queries(id)]
    return [
        ((), each)
        if isinstance(each, str)
        else (tuple(each.look_up(probes, id=id, threshold=similarity)), "")
        for each in prints
    ]


def _containing(data_set: Artifact, holds: Callable[[str], bool]) -> _Searched:
    """The rows of a data set that contain a text; a file that is gone or
    has changed is a fault, not an empty one.
    """
    hashes = {file.path: file.sha256 for file in data_set.manifest.files if file.path in _TEXTS}
    rows: list[FingerprintMatch] = []
    faults = [] if hashes else ["it has no texts"]
    for name, split in _TEXTS.items():
        path = data_set.path / name
        if name not in hashes:
            continue
        if not has_content(path, hashes[name]):
            faults.append(f"its {name} is missing or has changed")
            continue
        with path.open(encoding="utf-8") as stream:
            for row in map(json.loads, stream):
                if any(map(holds, texts_in(row))):
                    place = (
                        console.place(row["source"]["file"], row["source"]["row"])
                        if "source" in row
                        else ""
                    )
                    rows.append(
                        FingerprintMatch(split, str(row.get("id", "")), True, 1.0, False, place)
                    )
    return tuple(rows), f"{_name(data_set)}: {', '.join(faults)}" if faults else ""


def _released(registries: Sequence[Path]) -> list[Artifact | Path]:
    """The releases in registries; a folder in place of one with a damaged manifest."""
    folders = [folder for place in registries for folder in registry.folders(place)]
    return [lineage.opened(folder) for folder in folders if (folder / MANIFEST).exists()]


def _refuse(root: Path) -> NoReturn:
    """Raise an error for a folder without rows, since "not found"
    would be taken for an all-clear.
    """
    hint = (
        "slmctl -C PROJECT trace names the folder with slmctl.yaml and runs/; --registry DIR "
        "searches releases"
    )
    if not (root / "runs").is_dir() and not (root / config.FILENAME).exists():
        raise UsageError(
            f"{root} is no project: it has neither {config.FILENAME} nor runs/", hint=hint
        )
    text = f"there is no data set below {root / 'runs'}, so nothing can be said about the row"
    raise IntegrityError(text, hint=f"slmctl run makes one; {hint}")


class _Exposures:
    """For each artifact, the splits by which the row influenced
    it, followed through the manifests.
    """

    def __init__(self, artifacts: Sequence[Artifact], data_sets: Sequence[DataSet]) -> None:
        self._by_digest: dict[str, list[Artifact]] = {}
        # by sha256, since a base may be a model that was made here
        self._by_file: dict[str, list[Artifact]] = {}
        for entry in artifacts:
            self._by_digest.setdefault(entry.digest, []).append(entry)
            if not entry.is_base:
                for file in entry.manifest.files:
                    self._by_file.setdefault(file.sha256, []).append(entry)
        # of data sets: splits with the row, faults
        self._held: dict[str, tuple[frozenset[str], frozenset[str]]] = {}
        for data_set in data_sets:  # equal digests hold equal rows
            splits = frozenset(row.split for row in data_set.rows) & (HELD_OUT | {"train"})
            self._held[data_set.digest] = splits, frozenset(filter(None, [data_set.fault]))
        self._seen: dict[str, tuple[frozenset[str], frozenset[str]]] = {}

    def holding(self, entry: Artifact | Path, root: Path) -> Holding:
        if isinstance(entry, Path):
            return Holding(
                _shown(entry, root),
                entry.parent.name,
                "",
                Standing.UNKNOWN,
                (f"its {MANIFEST} is missing or damaged",),
            )
        splits, missing = self._of(entry)
        if "train" in splits:
            standing = Standing.TRAINED
        elif missing:
            standing = Standing.UNKNOWN
        else:
            standing = Standing.HELD_OUT if splits else Standing.CLEAR
        return Holding(
            _shown(entry.path, root), entry.kind, entry.digest, standing, tuple(sorted(missing))
        )

    def _of(self, entry: Artifact) -> tuple[frozenset[str], frozenset[str]]:
        """Returns (splits by which the row influenced an
        artifact, reasons why this is not sure).
        """
        if entry.digest in self._seen:
            return self._seen[entry.digest]
        # an artifact cannot be its own ancestor
        self._seen[entry.digest] = frozenset(), frozenset()
        splits, missing = self._own(entry)
        for same in self._by_digest[entry.digest]:  # equal bytes, made in more than one way
            for role, digest in same.manifest.parents:
                if digest not in self._by_digest:
                    missing |= (
                        set() if _is_remote(same, role) else {f"{role} {digest[:19]} is not here"}
                    )
                elif same.is_release and role == "labelled":
                    continue  # its data set says what was taken of it
                elif digest in self._held:
                    held, faults = self._held[digest]
                    splits |= _taken(same, held)
                    missing |= faults
                else:
                    more, lacking = self._of(self._by_digest[digest][0])
                    if same.is_release and role == "report":
                        # what the release was measured beside is no part of it
                        more, lacking = more - {"train"}, frozenset()
                    splits |= more
                    missing |= lacking
        self._seen[entry.digest] = frozenset(splits), frozenset(missing)
        return self._seen[entry.digest]

    def _own(self, entry: Artifact) -> tuple[set[str], set[str]]:
        """`_of` without inputs: for a data set by its own rows, for a
        base by the models with the same files.
        """
        held, faults = self._held.get(entry.digest, (frozenset[str](), frozenset[str]()))
        splits, missing = set(held), set(faults)
        for sha256 in entry.metrics.get("source_sha256", {}).values() if entry.is_base else ():
            for source in self._by_file.get(sha256.removeprefix("sha256:"), ()):
                more, lacking = self._of(source)
                splits |= more
                missing |= lacking
        return splits, missing


def _taken(entry: Artifact, held: frozenset[str]) -> frozenset[str]:
    """The splits among `held`, which hold the row, that influenced
    an artifact made of the data set.
    """
    if entry.kind == "predictions" and "split" in entry.manifest.config:
        shown = (
            frozenset(("shots",))
            if entry.metrics.get("shots") and "train" in held
            else frozenset[str]()
        )
        return held & {entry.manifest.config["split"]} | shown
    learned = {"train"} if held & _LEARNED.get(entry.kind, set()) else set[str]()
    return held & _READS.get(entry.kind, HELD_OUT | {"train"}) | learned


def _is_remote(entry: Artifact, role: str) -> bool:
    """True if an input is a model at somebody else's address, which nothing here was made of."""
    return (
        entry.kind == "predictions"
        and role == "model"
        and models.class_of(entry.metrics.get("kind", "")).is_remote
    )


def _fingerprints(data_set: Artifact) -> Fingerprints | str:
    """The fingerprints of a data set, or the reason why they cannot be read."""
    name = _name(data_set)
    entries = [file for file in data_set.manifest.files if file.path == FILENAME]
    if not entries:
        return f"{name} has no {FILENAME}: it was made before rows could be traced"
    path = data_set.path / FILENAME
    if not has_content(path, entries[0].sha256):
        return f"{name}: its {FILENAME} is missing or has changed"
    try:
        return Fingerprints(path)
    except IntegrityError as error:
        return f"{name}: {error.message}"


def _name(data_set: Artifact) -> str:
    return f"{data_set.kind} {data_set.digest[:19]}"


def _shown(path: Path, root: Path) -> str:
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def lines(trace: Trace) -> Iterator[str]:
    """The result as lines of text."""
    listed = [data_set for data_set in trace.data_sets if data_set.rows]
    if any(row.split != "rejected" for data_set in listed for row in data_set.rows):
        yield (
            "data sets that hold it or nearly the same:"
            if not trace.contains
            else "data sets with rows that contain it:"
        )
    elif trace.by_id and not listed:
        yield (
            "no row here has this id: an id is a record's own (16 hexadecimal digits, as in "
            "test.jsonl) or a value of "
            "the column that a source names as its `id`; of documents without such a column it is "
            "the file's name"
        )
    else:
        yield "no data set here holds it or nearly the same" + (
            ", and these rejected it:" if listed else ""
        )
    for data_set in listed:
        yield f"  {data_set.path}"
        for row in data_set.rows[:SHOWN]:
            how = "the same" if row.exact else f"{percent(row.similarity, 0)} alike"
            how = (row.place or "contains it") if trace.contains else how
            yield f"    {row.split:<11}  {row.id}  {how}{', as trained' if row.as_trained else ''}"
        if len(data_set.rows) > SHOWN:
            yield f"    and {len(data_set.rows) - SHOWN} more (--json lists all)"
    yield from forgetting.lines(trace.collected)
    titles = {
        Standing.TRAINED: "trained on it:",
        Standing.HELD_OUT: "not trained on it, but measured, chosen, set or prompted by it:",
        Standing.UNKNOWN: "cannot be ruled out:",
        Standing.CLEAR: "did not see it:",
    }
    for standing, title in titles.items():
        of_it = [
            entry for entry in (*trace.artifacts, *trace.releases) if entry.standing == standing
        ]
        if of_it:
            yield title
        for entry in of_it:
            release = "release" if entry in trace.releases else entry.kind
            yield f"  {release:<11}  {entry.path}"
            yield from (
                f"               {reason}"
                for reason in entry.missing
                if standing == Standing.UNKNOWN
            )
