"""`calibrate --endpoint` with endpoints that lie about how sure they are: a
bound that holds on its rows, or none.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hostile import replies
from support import endpoint, teacher, tiny
from support.endpoint import Turn, asked_of, decides
from support.forks import Forks

from slmctl.artifacts import artifact

pytest.importorskip("httpx")

Manners = Callable[[dict[str, Any], int], Turn]


def sure(share: float, **more: Any) -> Manners:
    """An endpoint that is right in nine of ten and equally sure of each."""
    return lambda body, before: decides(body, teacher.decided(asked_of(body))[0], share, **more)


def odd(body: dict[str, Any], before: int) -> Turn:
    """A reply with one part exchanged, by the text that is asked about."""
    choose = Random(asked_of(body))
    _, _, raw = teacher.decisions(body, before)
    changed = replies.exchanged(
        json.loads(raw), choose.choice(replies.DECIDED), choose.choice(replies.ODD)
    )
    return 200, {}, json.dumps(changed).encode()


def reversed_(body: dict[str, Any], before: int) -> Turn:
    """Surest where it is wrong."""
    label, share = teacher.decided(asked_of(body), wrong=0.3)
    return decides(body, label, 0.6 if share > 0.9 else 0.99)


ENDPOINTS: dict[str, tuple[Manners, set[int]]] = {  # and the exit codes that may follow
    "always sure, a tenth wrong": (sure(1.0), {5}),
    "never sure": (sure(0.0), {5}),
    "least number": (sure(5e-324), {5}),
    "over one": (
        sure(0.9, probabilities=[{"value": label, "probability": 1.0} for label in tiny.WORDS]),
        {5},
    ),
    "probabilities of nothing": (sure(0.9, probabilities=[]), {3}),
    "not a number": (
        sure(0.9, probabilities=[{"value": label, "probability": "NaN"} for label in tiny.WORDS]),
        {3},
    ),
    "surest where wrong": (reversed_, {0, 5}),  # what it is unsure of is right, and may be kept
    "odd parts": (odd, {0, 3, 5, 9}),  # 9 where sixteen in a row are odd
    "hangs up": (lambda body, before: (0, {}, b""), {9}),
}


@pytest.mark.slow
def test_an_endpoint_that_lies_gets_no_bound_that_its_rows_refute(
    stages: Forks, desk: Path
) -> None:
    config = (desk / "slmctl.yaml").read_text()
    tiny.write_csv(desk / "tickets.csv", tiny.rows(1500))
    tiny.ok(stages.run(desk, "prepare"))
    for name, (manners, codes) in ENDPOINTS.items():
        with endpoint.serving(manners) as fake:
            own = (
                f"predict:\n  endpoint: {{url: {fake.url}, model: large, api: decisions, "
                f"timeout_s: 5}}\n"
            )
            (desk / "slmctl.yaml").write_text(config + own)
            done = stages.run(desk, "calibrate", "--endpoint", "large")
        assert done.returncode in codes, (name, done.returncode, done.stderr)
        assert "Traceback" not in done.stderr, (name, done.stderr)
        assert "nan" not in done.stderr.lower().split(), (name, done.stderr)
        if done.returncode == 0:
            figures = artifact.load(Path(tiny.ok(done))).metrics
            assert 0 < figures["error_bound"] <= 0.05, name
            assert 0 <= figures.get("least_confidence", 0) <= 1, name
