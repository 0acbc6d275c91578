"""Novelty of questions by the hashes of a data set, and the data set that a model was trained on."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from slmctl.deduplication import minhash
from slmctl.deduplication.row_fingerprints import FILENAME, FingerprintWriter
from slmctl.errors import IntegrityError
from slmctl.server import novelty
from slmctl.server.novelty import USUAL, Novelty

WORDS = ("kettle", "parcel", "courier", "invoice", "refund", "broken", "late", "address", "card", "charged")


def sentences(count: int, seed: int) -> list[str]:
    chance = random.Random(seed)
    return ["please help, my " + " ".join(chance.choices(WORDS, k=6)) for _ in range(count)]


def written(path: Path, **splits: list[str]) -> Path:
    with FingerprintWriter(path) as writer:
        for split, texts in splits.items():
            plain = [minhash.normalise(text) for text in texts]
            digests = b"".join(map(minhash.digest, plain))
            writer.add(split, [f"{k:016x}" for k in range(len(texts))], digests, minhash.compact(minhash.sketch(plain)))
    return path


def test_some_five_of_a_hundred_like_the_data_are_novel_and_all_that_are_unlike_it(tmp_path: Path) -> None:
    path = written(tmp_path / FILENAME, train=sentences(2000, 1), test=sentences(400, 2))
    questions = Novelty.read(path)
    assert questions is not None
    likely = [questions.is_novel(text) for text in sentences(400, 3)]
    assert 0.01 < sum(likely) / len(likely) < 0.11
    assert not any(map(questions.is_novel, sentences(50, 1)))
    assert all(map(questions.is_novel, ("violins in autumn", "wie wird das wetter morgen in hamburg", "?")))


def test_without_held_out_rows_the_usual_bound_holds_and_without_training_rows_nothing(tmp_path: Path) -> None:
    questions = Novelty.read(written(tmp_path / "few.bin", train=sentences(10, 1), test=sentences(5, 2)))
    assert questions is not None
    assert questions.bound == USUAL
    assert Novelty.read(written(tmp_path / "none.bin", rejected=sentences(10, 1))) is None


def test_many_training_rows_are_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(novelty, "MOST", 100)
    questions = Novelty.read(written(tmp_path / FILENAME, train=sentences(1000, 1)))
    assert questions is not None
    assert sum(not questions.is_novel(text) for text in sentences(1000, 1)) >= 100


def test_a_file_that_the_config_names_has_to_be_there(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="no file"):
        novelty.of_model(tmp_path, None, tmp_path / "rows.bin")  # type: ignore[arg-type]
