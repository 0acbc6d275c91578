"""Log probabilities of labels -> the inverse temperature by which
validation rows are the likeliest.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Logprobs = npt.NDArray[np.float64]
# inverse temperatures tried
SHARPNESS = (0.25, 0.32, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 1.5, 2.0, 2.5, 3.2)
# nats of all judged rows: a dearer model must make them likelier by more to be taken
LEAST_GAIN = 1.0


def normalised(scores: Logprobs) -> Logprobs:
    """Log probabilities (n, L) of scores."""
    scores = scores - scores.max(axis=1, keepdims=True)
    result: Logprobs = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
    return result


def sharpest(
    names: Sequence[str], scores: Logprobs, references: Sequence[str]
) -> tuple[float, float]:
    """Returns (inverse temperature of log probabilities, log likelihood of the references with it).

    A reference that is none of the names counts for nothing; without any other the inverse
    temperature is 1.

    Args:
        names: The L labels, sorted as scikit-learn sorts classes.
        scores: (n, L) log probabilities.
        references: The n right labels.
    """
    learned = np.isin(references, names)
    if not learned.any():
        return 1.0, 0.0
    scores = scores[learned]
    places = np.searchsorted(np.array(names), np.array(references)[learned])
    rows = np.arange(len(places))

    def likelihood(sharpness: float) -> float:
        logprobs = normalised(sharpness * scores)
        return float(logprobs[rows, places].sum())

    best = max(SHARPNESS, key=likelihood)
    return best, likelihood(best)
