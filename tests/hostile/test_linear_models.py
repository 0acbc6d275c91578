"""Linear models in files that lie: a sentence with exit code 7, and
never an answer, a traceback or a Ctrl-D.
"""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slmctl.errors import IntegrityError
from slmctl.metrics.label_sum import LabelSum

LABELS = ("account", "billing", "delivery")
SOUND: dict[str, Any] = {
    "labels": np.array(LABELS),
    "sum": np.array([0.5, 1.0, 1.0]),
    "weights": np.ones((3, 8), np.float32),
    "bias": np.zeros(3, np.float32),
    "coef": np.ones((3, 2), np.float16),
    "intercept": np.zeros(3),
    "words_places": np.array([3, 9], np.int32),
    "words_idf": np.ones(2, np.float32),
}


def npz(**changed: Any) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(
        stream, **{name: value for name, value in {**SOUND, **changed}.items() if value is not None}
    )
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
    words = (
        f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode()
        + b"\n"
    )
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
    "a shape beyond memory": archive(
        {name + ".npy": header("(1000000000, 1000000000)") for name in SOUND}
    ),
    "a shape beyond 64 bits": archive({name + ".npy": header("(1<<70,)") for name in SOUND}),
    "a head that is no tuple": archive(
        {name + ".npy": header("__import__('os')") for name in SOUND}
    ),
    "deep brackets": archive({name + ".npy": header("(" * 100) for name in SOUND}),
    "another compression": archive({"labels.npy": header("(0,)")}, zipfile.ZIP_LZMA),
    "objects": npz(labels=np.array([Run()], object)),
}
ARRAYS: dict[str, dict[str, Any]] = {
    "no labels": {"labels": None},
    "labels of numbers": {"labels": np.arange(3)},
    "labels of bytes": {"labels": np.array(LABELS, "S")},
    "no label": {"labels": np.array([], "U1")},
    "one text as labels": {"labels": np.array("account")},
    "a table of labels": {"labels": np.array([LABELS])},
    "the same label three times": {"labels": np.array(["billing"] * 3)},
    "labels of another task": {"labels": np.array(["x", "y", "z"])},
    "two labels for three rows": {"labels": np.array(LABELS[:2])},
    "a weight of no member": {"bias": None},
    "no member": {"bias": None, "coef": None, "sum": np.zeros(3)},
    # it ended the thread that answers
    "weights as texts": {"weights": np.ones((3, 8)).astype(str)},
    "weights as integers": {"weights": np.ones((3, 8), int)},
    "weights as complex numbers": {"weights": np.ones((3, 8), complex)},
    "weights of 16 bits": {"weights": np.ones((3, 8), np.float16)},
    "weights that are NaN": {"weights": np.full((3, 8), math.nan, np.float32)},
    "infinite weights": {"weights": np.full((3, 8), math.inf, np.float32)},
    "a row of weights": {"weights": np.ones(8, np.float32)},
    "weights of weights": {"weights": np.ones((3, 8, 2), np.float32)},
    "a short bias": {"bias": np.zeros(2, np.float32)},
    "a bias that is NaN": {"bias": np.full(3, math.nan, np.float32)},
    "a structure": {"bias": np.zeros(3, [("a", "f4")])},
    "two weights of three members": {"sum": np.zeros(2)},
    "an endless weight": {"sum": np.array([1.0, math.inf, 1.0])},
    "a weight below zero": {"sum": np.array([1.0, -1.0, 1.0])},
    "places as texts": {"words_places": np.array(["3", "9"])},
    "the same place twice": {"words_places": np.array([3, 3], np.int32)},
    "falling places": {"words_places": np.array([9, 3], np.int32)},
    "a place beyond the last": {"words_places": np.array([3, 1 << 20], np.int32)},
    "a place below the first": {"words_places": np.array([-1, 3], np.int32)},
    "fewer places than weights": {"words_places": np.array([3], np.int32)},
    "an idf that is NaN": {"words_idf": np.full(2, math.nan)},
    "infinite coefficients": {"coef": np.full((3, 2), math.inf, np.float16)},
    "coefficients of 64 bits": {"coef": np.ones((3, 2))},
    "no places": {"words_places": None},
}


def test_a_sound_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "sum.npz").write_bytes(npz())
    model = LabelSum.read(tmp_path / "sum.npz", LABELS)
    assert model.weights == {"file": 0.5, "encoder": 1.0, "words": 1.0}
    assert model.scored(["hello"], np.ones((1, 8), np.float32))[0].shape == (1, 3)


@pytest.mark.parametrize(
    "raw",
    [pytest.param(raw, id=what) for what, raw in FILES.items()]
    + [pytest.param(npz(**changed), id=what) for what, changed in ARRAYS.items()],
)
def test_a_file_that_lies_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], raw: bytes
) -> None:
    (tmp_path / "sum.npz").write_bytes(raw)
    with pytest.raises(IntegrityError, match=r"sum.npz holds no linear model"):
        LabelSum.read(tmp_path / "sum.npz", LABELS)
    assert capsys.readouterr().out == ""
