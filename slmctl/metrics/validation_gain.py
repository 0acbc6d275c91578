"""Validations of two trainings on the same records -> how much better the second one surely is.

Records differ more than trainings do, so the two are compared block by block of records, which
shows small differences.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from slmctl.metrics.statistics import t_quantile

if TYPE_CHECKING:
    from slmctl.metrics.statistics import Floats


def sure_gain(first: Floats, second: Floats, confidence: float) -> float:
    """Lower confidence bound, one-sided, of the fall in loss from one training to another, in nats
    an answer token.

    Seeds are no part of it: another seed of the same settings may gain as much.

    Args:
        first, second: Blocks of each validation, (blocks, 3): records, the weight of their answer
            tokens, and nats.

    Raises:
        ValueError: The trainings do not validate on the same records.
    """
    if first.shape != second.shape or (first[:, :2] != second[:, :2]).any():
        raise ValueError("trainings that validate on other records cannot be compared")
    count = len(first)
    if count < 2:
        return -math.inf
    tokens = first[:, 1]
    fall = first[:, 2] - second[:, 2]
    mean = fall.sum() / tokens.sum()
    spread = ((fall - mean * tokens) ** 2).sum()
    error = np.sqrt(count / (count - 1) * spread) / tokens.sum()
    return float(mean - t_quantile(confidence, count - 1) * error)
