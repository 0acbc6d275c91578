"""Probabilities of labels, computed from all logits: what a search
that asks for few of them is held to.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slmctl.model_files import quantizer
from slmctl.model_files.quantizer import LogitRequest


def last_logits(
    gguf: Path, rows: Sequence[tuple[Sequence[int], int]]
) -> list[npt.NDArray[np.float32]]:
    """The logits (last, vocabulary) after the last tokens of each
    row, by llama.cpp without the engine.
    """
    requests = [
        LogitRequest(list(tokens), list(range(len(tokens) - last, len(tokens))))
        for tokens, last in rows
    ]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "logits.npy")
        quantizer.probe(gguf, texts=[], end="", rows=requests, logits=file)
        return np.split(np.load(file), np.cumsum([last for _, last in rows])[:-1])


def whole_label_probabilities(
    tokens: Mapping[str, Sequence[int]], rows_of: Callable[[str], Sequence[Any]]
) -> dict[str, float]:
    """The probability of each label's whole tokens among the whole
    vocabulary, over that of all labels together.
    """
    logs = {}
    for label, own in tokens.items():
        rows = np.asarray(rows_of(label))[: len(own)].astype(float)
        rows -= rows.max(axis=1, keepdims=True)
        logs[label] = float(
            (rows[np.arange(len(own)), list(own)] - np.log(np.exp(rows).sum(axis=1))).sum()
        )
    every = np.logaddexp.reduce(list(logs.values()))
    return {label: float(np.exp(log - every)) for label, log in logs.items()}


def label_probabilities(
    tokens: Mapping[str, Sequence[int]], rows_of: Callable[[str], Sequence[Any]]
) -> dict[str, float]:
    """The probability of each label: of every token of it, among those that the labels allow there.

    Args:
        tokens: The tokens of each label.
        rows_of: Gives the logits (vocabulary,) in the place of each token of a label.
    """
    found = {}
    for label, own in tokens.items():
        rows, found[label] = rows_of(label), 1.0
        for k, token in enumerate(own):
            allowed = sorted(
                {other[k] for other in tokens.values() if len(other) > k and other[:k] == own[:k]}
            )
            scores = np.asarray(rows[k])[allowed].astype(float)
            weights = np.exp(scores - scores.max())
            found[label] *= float(weights[allowed.index(token)] / weights.sum())
    return found
