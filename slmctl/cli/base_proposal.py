"""The base for a language, a task and this machine, with the reasons."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from slmctl.console import size
from slmctl.model_files import catalogue, memory
from slmctl.model_files.catalogue import CatalogueEntry
from slmctl.sources.first_look import language as languages

OPEN_LICENSES = ("apache-2.0", "mit")
LONGEST_MINUTES = 60.0  # of the whole training; a base that takes longer is no start


@dataclass(frozen=True)
class BaseProposal:
    """A base for slmctl.yaml.

    Attributes:
        source: The value of `base`.
        sha256: Of its file, for `pull.sha256`; empty if its source is pinned otherwise.
        about: A few words for a comment.
        reason: A sentence for the terminal.
        parameters: Its weights; 0 if it is not of the catalogue.
    """

    source: str
    sha256: str
    about: str
    reason: str
    parameters: int = 0


def propose(language: str, *, tools: bool, tokens: int, rates: Mapping[str, float], dtype: str) -> BaseProposal:
    """The smallest base with an open license that knows the language and trains here in LONGEST_MINUTES.

    Where there is none, or the language is not known, it is the one that needs no hub.

    Args:
        language: A code such as `de`; empty if it is not known.
        tools: True if it must know tool calls.
        tokens: Tokens that training reads, over all epochs.
        rates: GFLOP/s of this machine by data type; empty if they were not measured.
        dtype: The data type in which it multiplies frozen weights.
    """
    bases = [entry for entry in catalogue.entries() if _is_plain(entry) and (entry.tools or not tools)]
    start = next(entry for entry in catalogue.entries() if entry.package)
    speaking = [entry for entry in bases if entry.speaks(language)] if language not in ("", "en") else bases
    quick = [entry for entry in speaking if _minutes(entry, tokens, rates, dtype) <= LONGEST_MINUTES]
    fitting = [entry for entry in quick if memory.fits(_bytes(entry, dtype))]
    name = languages.NAMES.get(language, "English")
    skill = f"{name} and tool calls" if tools and language else "tool calls" if tools else name
    if not fitting:
        why = f"no base that knows {skill} trains on this machine in an hour" if speaking else f"no base knows {skill}"
        return _of(start, f"{why}; this one knows English, is small, and needs no model hub")
    entry = fitting[0]
    needs = f"trains in about {size(_bytes(entry, dtype))} of memory"
    if entry.package:
        return _of(entry, f"knows English, is small, {needs}, and needs no model hub")
    proposal = _of(entry, f"the smallest under an open license that knows {skill}; {needs}, and comes from the hub")
    without = "" if tools else f"; without a hub: {start.source}"
    return dataclasses.replace(proposal, about=proposal.about + without)


def named(name: str) -> BaseProposal:
    """The base that a person asked for: a name of the catalogue, or any value of `base`.

    Raises:
        UsageError: It is neither a source nor a path, and the catalogue does not have it.
    """
    from pathlib import Path

    by_source = {entry.source: entry for entry in catalogue.entries()}
    if name in by_source:
        return _of(by_source[name], "as asked for")
    if name.startswith(("pypi:", "hf:")) or Path(name).expanduser().exists():
        return BaseProposal(name, "", "slmctl bases lists others", "as asked for")
    return _of(catalogue.find(name), "as asked for")


def _of(entry: CatalogueEntry, reason: str) -> BaseProposal:
    skills = "English" if entry.languages == ("en",) else f"{entry.language_count or 'unknown'} languages"
    return BaseProposal(
        entry.source, entry.sha256, f"{entry.short_name}, {skills}, {entry.license}", reason, entry.parameters
    )


def _is_plain(entry: CatalogueEntry) -> bool:
    """True for a base that can be pulled as it stands: pinned, not gated, under an open license, and trained fast."""
    pinned = bool(entry.package or entry.commit)
    return pinned and entry.license in OPEN_LICENSES and "gated" not in entry.note and entry.training != "slow"


def _bytes(entry: CatalogueEntry, dtype: str) -> int:
    """Estimated peak memory of its training, in small pieces."""
    return entry.training_bytes(2 if dtype == "bfloat16" else 4, catalogue.LEAST_PIECE_TOKENS)


def _minutes(entry: CatalogueEntry, tokens: int, rates: Mapping[str, float], dtype: str) -> float:
    """Estimated minutes of training; 0 where this machine was not measured."""
    from slmctl.inference.engine import usable_cores

    rate = rates.get(dtype)
    return entry.training_seconds(rate, usable_cores(), rows=1, tokens=tokens) / 60 if rate else 0.0
