"""Linear models in files that lie: a sentence with exit code 7, and never an answer, a traceback or a Ctrl-D."""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slmctl.errors import IntegrityError
from slmctl.metrics import linear_baseline
from slmctl.metrics.encoder_head import EncoderModel, OpinionHead

LABELS = ("account", "billing", "delivery")
SOUND: dict[str, Any] = {
    "labels": np.array(LABELS), "weights": np.ones((3, 8), np.float32), "bias": np.zeros(3, np.float32),
    "mixed": np.array([0.5, 1.0]), "coef": np.ones((3, 2)), "intercept": np.zeros(3), "words_idf": np.ones(2),
    "words_terms": np.array("hello\nworld"), "made_of": np.array("x"),
}  # fmt: skip
READERS: dict[str, Callable[[Path], object]] = {
    "second_opinion.npz": lambda path: OpinionHead.read(path.parent, LABELS),
    "head.npz": lambda path: EncoderModel.read(path.parent, LABELS),
    "tfidf.npz": lambda path: linear_baseline.read(path, LABELS),
}
HEADS, TFIDF = ("second_opinion.npz", "head.npz"), ("tfidf.npz",)


def npz(**changed: Any) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **{name: value for name, value in {**SOUND, **changed}.items() if value is not None})
    return stream.getvalue()


def archive(entries: dict[str, bytes], how: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", how) as packed:
        for name, raw in entries.items():
            packed.writestr(name, raw)
    return stream.getvalue()


def header(shape: str, kind: str = "<f4") -> bytes:
    """The head of an array that says what it likes, with no numbers behind it."""
    stream = io.BytesIO()
    np.save(stream, np.zeros(0, np.float32))
    words = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
    return stream.getvalue()[:8] + len(words).to_bytes(2, "little") + words


class Run:
    def __reduce__(self) -> Any:
        return (print, ("run",))


FILES = {
    "empty": b"",  # it ended with exit 130, without a word
    "a text": b"weights",
    "a pickle": pickle.dumps(Run()),
    "one array": header("(0,)"),
    "cut": npz()[:-30],
    "cut in the middle": npz()[: len(npz()) // 2],
    "an archive of nothing": archive({}),
    "no arrays in it": archive({name + ".npy": b"text" for name in SOUND}),
    "empty arrays in it": archive({name + ".npy": b"" for name in SOUND}),
    "cut arrays": archive({name + ".npy": header("(3, 8)") for name in SOUND}),
    "a shape beyond memory": archive({name + ".npy": header("(1000000000, 1000000000)") for name in SOUND}),
    "a shape beyond 64 bits": archive({name + ".npy": header("(1<<70,)") for name in SOUND}),
    "a head that is no tuple": archive({name + ".npy": header("__import__('os')") for name in SOUND}),
    "deep brackets": archive({name + ".npy": header("(" * 100) for name in SOUND}),
    "another compression": archive({"labels.npy": header("(0,)")}, zipfile.ZIP_LZMA),
    "objects": npz(labels=np.array([Run()], object)),
}
ARRAYS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "no labels": ((*HEADS, *TFIDF), {"labels": None}),
    "labels of numbers": ((*HEADS, *TFIDF), {"labels": np.arange(3)}),
    "labels of bytes": ((*HEADS, *TFIDF), {"labels": np.array(LABELS, "S")}),
    "no label": ((*HEADS, *TFIDF), {"labels": np.array([], "U1")}),
    "one text as labels": ((*HEADS, *TFIDF), {"labels": np.array("account")}),
    "a table of labels": ((*HEADS, *TFIDF), {"labels": np.array([LABELS])}),
    "the same label three times": ((*HEADS, *TFIDF), {"labels": np.array(["billing"] * 3)}),
    "labels of another task": ((*HEADS, *TFIDF), {"labels": np.array(["x", "y", "z"])}),
    "two labels for three rows": ((*HEADS, *TFIDF), {"labels": np.array(LABELS[:2])}),
    "labels in another order": (TFIDF, {"labels": np.array(LABELS[::-1])}),
    "no weights": (HEADS, {"weights": None}),
    "weights as texts": (HEADS, {"weights": np.ones((3, 8)).astype(str)}),  # it ended the thread that answers
    "weights as integers": (HEADS, {"weights": np.ones((3, 8), int)}),
    "weights as complex numbers": (HEADS, {"weights": np.ones((3, 8), complex)}),
    "weights of 16 bits": (HEADS, {"weights": np.ones((3, 8), np.float16)}),
    "weights that are NaN": (HEADS, {"weights": np.full((3, 8), math.nan, np.float32)}),
    "infinite weights": (HEADS, {"weights": np.full((3, 8), math.inf, np.float32)}),
    "a row of weights": (HEADS, {"weights": np.ones(8, np.float32)}),
    "weights of weights": (HEADS, {"weights": np.ones((3, 8, 2), np.float32)}),
    "a short bias": (HEADS, {"bias": np.zeros(2, np.float32)}),
    "a bias that is NaN": (HEADS, {"bias": np.full(3, math.nan, np.float32)}),
    "a structure": (HEADS, {"bias": np.zeros(3, [("a", "f4")])}),
    "one number in place of two": (("head.npz",), {"mixed": np.zeros(1)}),
    "an endless sharpness": (("head.npz",), {"mixed": np.array([1.0, math.inf])}),
    "terms as a list": (TFIDF, {"words_terms": np.array(["hello", "world"])}),
    "the same term twice": (TFIDF, {"words_terms": np.array("hello\nhello")}),
    "fewer terms than weights": (TFIDF, {"words_terms": np.array("hello")}),
    "an idf that is NaN": (TFIDF, {"words_idf": np.full(2, math.nan)}),
    "infinite coefficients": (TFIDF, {"coef": np.full((3, 2), math.inf)}),
    "no terms": (TFIDF, {"words_terms": None}),
}


@pytest.mark.parametrize("name", READERS)
def test_a_sound_file_is_read(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(npz())
    assert READERS[name](tmp_path / name)


@pytest.mark.parametrize(
    ("name", "raw"),
    [pytest.param(name, raw, id=f"{name}-{what}") for what, raw in FILES.items() for name in READERS]
    + [
        pytest.param(name, npz(**changed), id=f"{name}-{what}")
        for what, (names, changed) in ARRAYS.items() for name in names
    ],
)  # fmt: skip
def test_a_file_that_lies_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, raw: bytes
) -> None:  # fmt: skip
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(IntegrityError, match=rf"{name} holds no linear model"):
        READERS[name](tmp_path / name)
    assert capsys.readouterr().out == ""
