"""Eight architectures through the whole chain, with the real tokenizers that can be had: nothing fails after pull."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.forks import Forks

from benchmarks import architectures, bases, real_tokenizers

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.mark.parametrize("name", bases.QUICK)
def test_the_chain_passes(name: str, stages: Forks, tmp_path: Path) -> None:
    try:
        real_tokenizers.fetch(bases.FAMILIES[architectures.ARCHITECTURES[name].family].vocabulary)
    except real_tokenizers.UnavailableError as error:
        pytest.skip(str(error))
    # pull ends with the rehearsal of all that follows
    outcome = bases.try_base(name, tmp_path, until="pull", run=stages.run)
    assert (outcome.verdict, outcome.sentence) == ("passed", "")
    expected = {"granite4-h": "padded", "qwen3.5": "padded", "falcon-h1": "padded"}
    assert outcome.training.startswith(expected.get(name, "packed" if name == "qwen3-moe" else "fast"))
