"""Vectors of rows, some with labels -> a label and a weight for each of the others, which a model
then learns too.

Label spreading over nearest neighbours (Zhou et al. 2004, "Learning with local and global
consistency"). The seed of an unlabelled row is what a model of the labelled rows says of it, so
rows far from all labels take the label of no far neighbour.

scikit-learn (the extra `evaluate`) is imported when labels are spread.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]
NEIGHBOURS = 10  # of each row
POWER = 4  # of the cosine similarity: a near neighbour counts for more than a distant one
PULL = 0.5  # share of a row's scores that its neighbours give in each step; its seed gives the rest
STEPS = 10  # the seed of a row so many steps away has a share of PULL**STEPS, a thousandth
WEIGHT = 0.3  # of an unlabelled row with a sure label; a labelled row has 1


def spread(
    vectors: Floats, labels: Indices, unlabelled: Floats, chances: Floats
) -> tuple[Indices, Floats]:
    """Returns (label (m,), weight (m,)) of each unlabelled row; the weight is WEIGHT *
    probability**2.

    Each label's scores are scaled to its share of the labelled rows, so a frequent label takes no
    rows from a rare one. The time grows with (n + m)**2: 15,000 rows take some seconds.

    Args:
        vectors, labels: (n, size) and (n,) of the labelled rows and of the labels' names; a label
            is an index below L.
        unlabelled: (m, size) vectors of the unlabelled rows.
        chances: (m, L) probabilities of the labels for them, by a model of the labelled rows.
    """
    if not len(unlabelled):
        return np.zeros(0, np.int64), np.zeros(0, np.float32)
    rows = np.eye(chances.shape[1], dtype=np.float32)[labels]
    seeds = np.concatenate([rows, chances.astype(np.float32)])  # (n + m, L)
    graph = _graph(np.concatenate([vectors, unlabelled]))
    scores = seeds
    for _ in range(STEPS):
        scores = PULL * (graph @ scores) + (1 - PULL) * seeds
    scale = rows.sum(axis=0) / np.maximum(scores.sum(axis=0), 1e-12)
    scores = scores[len(labels) :] * scale
    best = scores.max(axis=1) / np.maximum(scores.sum(axis=1), 1e-12)
    weights = WEIGHT * best**2
    return scores.argmax(axis=1), weights.astype(np.float32)


def _graph(vectors: Floats) -> Any:
    """Sparse (rows, rows): the similarity of neighbours, symmetric, each
    divided by the root of both rows' sums.
    """
    from sklearn.neighbors import kneighbors_graph

    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors = vectors / np.maximum(lengths, 1e-12)
    graph = kneighbors_graph(vectors, min(NEIGHBOURS, len(vectors) - 1), mode="distance")
    cosines = 1 - graph.data.astype(np.float32) ** 2 / 2  # of unit vectors
    graph.data = np.maximum(cosines, 0) ** POWER
    graph = graph.maximum(graph.T)
    sums = np.asarray(graph.sum(axis=1)).ravel()
    scale = 1 / np.sqrt(np.maximum(sums, 1e-12)).astype(np.float32)
    return graph.multiply(scale[:, None]).multiply(scale[None]).tocsr()
