"""What counts of a judge's verdicts: every pair must have been asked, and
each judge that was tried has its price.
"""

from __future__ import annotations

from dataclasses import replace

from slmctl.production.review.pairs import AnswerPair, JudgedModels, PairDecision
from slmctl.production.review.verdicts import JudgeVerdict, Verdicts, entry_of, verdicts_of
from slmctl.reports.evaluation_report import JudgeEntry

MODELS = ("sha256:a", "sha256:b")
JUDGED = JudgedModels(
    MODELS,
    ("a", "b"),
    [AnswerPair(f"r{k}", [], ("long" * (k % 2), "even"), is_swapped=False) for k in range(100)],
    0,
)
PEOPLE = {
    f"r{k}": PairDecision(f"r{k}", "12:00", "ann", "second" if k % 3 == 0 else "first", MODELS)
    for k in range(40)
}


def line(k: int, judge: str = "large", *, errs: int = 100) -> JudgeVerdict:
    """A verdict of a judge that agrees with people, but for each row of the number `errs`."""
    is_second = (k % 3 == 0) != (k % errs == errs - 1)
    return JudgeVerdict(
        f"r{k}", judge, MODELS, ("second", "second") if is_second else ("first", "first")
    )


def entry(lines: list[JudgeVerdict], people: dict[str, PairDecision] | None = None) -> JudgeEntry:
    return entry_of(JUDGED, people or PEOPLE, verdicts_of(lines)[MODELS], confidence=0.95)


def test_pairs_that_were_never_asked_are_no_verdicts() -> None:
    """They counted as "the same": half a file gave a rate far from the truth, without a word."""
    whole = [line(k) for k in range(100)]
    assert entry(whole)["missing"] == 0 and "win_rate" in entry(whole)
    cut, short = entry(whole[:70]), entry(whole[30:])
    assert (cut["admitted"], cut["missing"], "win_rate" in cut) == (True, 30, False)
    assert (short["admitted"], short["missing"], "win_rate" in short) == (False, 30, False)
    stays = [replace(each, answers=("", "")) if k == 99 else each for k, each in enumerate(whole)]
    assert (
        entry(stays)["missing"] == 0
        and entry(stays)["no_verdict"] == 1
        and "win_rate" in entry(stays)
    )


def test_each_judge_that_was_tried_widens_the_interval_and_admits_less() -> None:
    """Judges could be tried until one passed: 20 useless ones were admitted nearly always."""
    whole = [line(k, errs=5) for k in range(100)]
    alone = entry(whole)
    others = [line(k, f"other {n}", errs=5) for n in range(9) for k in range(100)]
    tried = entry([*others, *whole])
    assert (alone["tried"], tried["tried"], tried["judge"]) == (1, 10, "large")
    assert tried["lead"] < alone["lead"] and tried["interval"][0] < alone["interval"][0]
    rubrics = [replace(each, prompt=str(n)) for n in range(3) for each in whole]
    assert entry(rubrics)["tried"] == 3
    assert entry([*whole, *whole])["tried"] == 1  # the same one again is no other try


def test_skipped_pairs_are_left_out() -> None:
    """People skip hard pairs, which stood for rows that nobody can
    judge among those that the judge did.
    """
    people = PEOPLE | {"r50": replace(PEOPLE["r1"], id="r50", decision="skipped")}
    whole = entry([line(k) for k in range(100) if k != 50], people)
    assert (whole["skipped"], whole["rows"], whole["pairs"], whole["missing"]) == (1, 99, 40, 0)


def test_lines_of_other_models_and_judges_do_not_mix() -> None:
    foreign = replace(line(0), models=("sha256:a", "sha256:c"))
    by_models = verdicts_of([line(0, "other"), line(1), foreign, line(2)])
    assert {models: [*each.by_row] for models, each in by_models.items()} == {
        MODELS: ["r1", "r2"],
        foreign.models: ["r0"],
    }
    assert by_models[MODELS] == Verdicts({each.id: each for each in (line(1), line(2))}, 2)
