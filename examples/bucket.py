"""Answer the Parquet files of a bucket with a release: Ray Data reads, has engines answer, and
writes.

    pip install '.[ray]'        # in a clone of slmctl
    python bucket.py /models/tickets s3://bucket/in/ s3://bucket/out/

The column `text` is asked; `answer` and `confidence` are added. On a cluster every node needs the
release under the same path. A node that is killed costs no row: Ray has its rows answered by
another one.
"""

from __future__ import annotations

import sys
from typing import Any

import ray

import slmctl


class Answers:
    """An actor of Ray with an engine of its own."""

    def __init__(self, model: str) -> None:
        self.model = slmctl.Answerer(model)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        answers = self.model.answer(batch["text"].tolist())
        return batch | {
            "answer": [each.answer for each in answers],
            "confidence": [each.confidence for each in answers],
        }


def main(model: str, source: str, target: str, engines: int = 1) -> None:
    """Answer the files below `source` by so many engines, into files below `target`."""
    pool = ray.data.ActorPoolStrategy(size=engines)
    rows = ray.data.read_parquet(source)
    rows.map_batches(
        Answers, fn_constructor_args=(model,), compute=pool, batch_size=512
    ).write_parquet(target)


if __name__ == "__main__":
    main(*sys.argv[1:4])
