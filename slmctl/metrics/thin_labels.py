"""Training rows by label -> the labels that have too few to be learned well: one rule for every stage."""

from __future__ import annotations

from collections.abc import Mapping

THIN = 20  # training rows of a label; with fewer, what a model learns of it hangs on single rows


def thin(counts: Mapping[str, int]) -> list[str]:
    """The thin labels, those with the fewest training rows first."""
    return sorted((name for name, many in counts.items() if many < THIN), key=lambda name: (counts[name], name))
