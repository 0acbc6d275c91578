"""The order of test files over pytest's processes: the longest first,
so that none is left alone at the end.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from support import TESTS

# Files of ten seconds and more, the longest first: of `make slow`, then of `make test`. Both list
# what files took. The first two of either do not wait for the same fixture.
LONGEST = (
    "test_architectures.py",
    "hostile/test_sources.py",
    "promises/test_nothing_torn.py",
    "stages/finetune/test_distributed.py",
    "stages/pull/test_real_tokenizers.py",
    "test_end_to_end.py",
    "promises/test_reproduce.py",
    "test_copied.py",
    "stages/encode/test_tuning.py",
    "stages/encode/test_encode.py",
    "stages/label/test_label.py",
    "stages/label/test_judge.py",
    "promises/test_nothing_leaves.py",
    "promises/test_no_code.py",
    "stages/evaluate/test_recompute.py",
    "stages/finetune/test_checkpoint.py",
    "stages/publish/test_memorisation_probe.py",
    "test_tutorial.py",
    "server/test_faults.py",
    "stages/calibrate/test_calibrate.py",
    "stages/finetune/test_finetune.py",
    "stages/predict/test_endpoint_predictions.py",
    "init/test_init_file.py",
    "sources/test_snapshot.py",
    "server/test_served_adapters.py",
    "stages/quantize/test_quantize.py",
    "server/test_gateway.py",
    "server/test_web.py",
    "stages/sum/test_sum.py",
    "hostile/test_foreign_replies.py",
    "hostile/test_command_line.py",
    "stages/prepare/test_prepare.py",
    "sources/test_bad_input.py",
    "stages/predict/test_file_prediction.py",
    "pipeline/test_pipeline.py",
    "stages/pull/test_pull.py",
    "pipeline/test_rehearsal.py",
    "stages/publish/test_publish.py",
    "hostile/test_changing_source.py",
    "model_files/test_transformers_answerer.py",
    "inference/test_engine.py",
)
SHOWN = 25  # files that are listed


def sort(items: list[pytest.Item]) -> None:
    """Sort tests by their files: those of LONGEST first; tests of a file stay in order."""
    places = {TESTS / name: place for place, name in enumerate(LONGEST)}
    assert all(path.exists() for path in places), "a file of LONGEST has another name now"
    items.sort(key=lambda item: places.get(item.path, len(places)))


def seconds_of_files(reports: list[pytest.TestReport]) -> list[tuple[str, float]]:
    """Files of tests with their seconds, fixtures included, the longest first; at most SHOWN."""
    seconds: Counter[str] = Counter()
    for report in reports:
        seconds[str(Path(report.nodeid.partition("::")[0]).relative_to(TESTS.name))] += (
            report.duration
        )
    return seconds.most_common(SHOWN)
