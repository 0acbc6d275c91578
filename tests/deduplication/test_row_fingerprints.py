"""Hashes of the records of a data set: they find a row and its
near-duplicates, and hold no text.
"""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import numpy as np
import pytest

from slmctl.deduplication import minhash
from slmctl.deduplication.row_fingerprints import (
    ENTRY,
    Fingerprints,
    FingerprintWriter,
    query_fingerprint,
)
from slmctl.errors import IntegrityError

TEXTS = {
    "train": [
        "Where is my parcel 4711? It was sent on Monday.",
        "I cannot log in since the update of yesterday",
    ],
    "test": ["The invoice names the wrong VAT number, please correct it", "!!!"],
}


def hashed(texts: list[str]) -> tuple[bytes, minhash.U64]:
    normalised = [minhash.normalise(text) for text in texts]
    return b"".join(map(minhash.digest, normalised)), minhash.compact(minhash.sketch(normalised))


def identity(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write(path: Path) -> Path:
    with FingerprintWriter(path) as writer:
        for side, texts in TEXTS.items():
            writer.add_texts(side, [identity(text) for text in texts], texts)
        writer.add(
            "train",
            [identity(TEXTS["train"][0])],
            *hashed(["Where is my parcel? [date removed]"]),
            as_trained=True,
        )
    return path


@pytest.fixture
def fingerprints(tmp_path: Path) -> Fingerprints:
    return Fingerprints(write(tmp_path / "rows.bin"))


@pytest.mark.parametrize("side", TEXTS)
@pytest.mark.parametrize("k", [0, 1])
def test_a_row_is_found_by_text_and_by_id(fingerprints: Fingerprints, side: str, k: int) -> None:
    text = TEXTS[side][k]
    for matches in (
        fingerprints.look_up([query_fingerprint(text)]),
        fingerprints.look_up([], id=identity(text)),
    ):
        (match,) = matches
        assert (match.split, match.id, match.exact, match.similarity) == (
            side,
            identity(text),
            True,
            1.0,
        )
        assert not match.as_trained


def test_case_digits_and_punctuation_do_not_hide_a_row(fingerprints: Fingerprints) -> None:
    (match,) = fingerprints.look_up(
        [query_fingerprint("WHERE is my parcel (9999)?? it was sent on monday")]
    )
    assert match.exact


def test_a_near_duplicate_is_found_with_its_similarity(fingerprints: Fingerprints) -> None:
    (match,) = fingerprints.look_up(
        [query_fingerprint("I cannot log in since the update of Tuesday")]
    )
    assert (match.split, match.exact) == ("train", False)
    assert 0.6 <= match.similarity < 1


def test_the_text_as_trained_is_found_too(fingerprints: Fingerprints) -> None:
    (match,) = fingerprints.look_up([query_fingerprint("where is my parcel [date removed]")])
    assert (match.exact, match.as_trained, match.id) == (True, True, identity(TEXTS["train"][0]))


def test_an_id_leads_to_the_texts_that_are_like_its_own(
    fingerprints: Fingerprints, tmp_path: Path
) -> None:
    with FingerprintWriter(tmp_path / "other.bin") as writer:
        writer.add("rejected", ["ticket 17"], *hashed([TEXTS["test"][0] + " soon"]))
    other = Fingerprints(tmp_path / "other.bin")
    queries = other.queries("ticket 17")
    assert len(queries) == 1
    assert [match.split for match in fingerprints.look_up(queries, id="ticket 17")] == ["test"]
    assert fingerprints.queries("ticket 17") == []


def test_nothing_is_found_of_what_was_not_there(fingerprints: Fingerprints) -> None:
    assert (
        fingerprints.look_up(
            [query_fingerprint("How do I change the colour of the lamp in the office?")]
        )
        == []
    )
    assert fingerprints.look_up([query_fingerprint("")]) == []
    assert fingerprints.look_up([], id="0123456789abcdef") == []


def test_the_file_has_no_word_and_no_freedom(tmp_path: Path) -> None:
    one, other = write(tmp_path / "a").read_bytes(), write(tmp_path / "b").read_bytes()
    assert one == other
    assert len(one) == one.index(b"\n") + 1 + 5 * ENTRY.itemsize
    assert ENTRY.itemsize == 90
    assert b"parcel" not in one


def test_many_rows_are_read_a_part_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slmctl.deduplication.row_fingerprints._BATCH", 16)
    rng = random.Random(3)
    texts = ["".join(rng.choices("abcdefgh ", k=60)) for _ in range(100)]
    with FingerprintWriter(tmp_path / "rows") as writer:
        for start in range(0, 100, 30):
            part = texts[start : start + 30]
            writer.add("train", [identity(text) for text in part], *hashed(part))
    found = Fingerprints(tmp_path / "rows")
    for text in texts[::7]:
        assert [match.id for match in found.look_up([query_fingerprint(text)])] == [identity(text)]


@pytest.mark.parametrize(
    "change",
    [lambda raw: raw[:-1], lambda raw: b"{}\n" + raw, lambda raw: b"", lambda raw: b"\xff" * 9000],
)
def test_a_file_of_another_kind_is_refused(tmp_path: Path, change: object) -> None:
    path = write(tmp_path / "rows")
    path.write_bytes(change(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(IntegrityError, match=r"another version|cut off"):
        Fingerprints(path)


def test_digests_come_joined_or_as_rows(tmp_path: Path) -> None:
    raw, compact = hashed(TEXTS["train"])
    for name, digests in (
        ("joined", raw),
        ("rows", np.frombuffer(raw, dtype=np.uint8).reshape(-1, 16)),
    ):
        with FingerprintWriter(tmp_path / name) as writer:
            writer.add("test", ["a", "b"], digests, compact)
    assert (tmp_path / "joined").read_bytes() == (tmp_path / "rows").read_bytes()
