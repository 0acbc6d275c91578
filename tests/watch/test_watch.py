"""`slmctl watch` on files as a server and reviewers leave them: figures, alarms, the command and its page."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from support import TESTS
from support.traffic import BEGIN, MadeUp

from slmctl.cli.main import cli
from slmctl.config import Prices
from slmctl.errors import DataError, GateError, UsageError
from slmctl.inference.escalation_policy import Policy
from slmctl.metrics.statistics import exact_interval
from slmctl.production.records import CollectedRow, Review
from slmctl.watch import figures, traffic
from slmctl.watch.measured import MeasuredFigures, measured
from slmctl.watch.traffic import DAY_S
from slmctl.watch.watch import Watched, lines, watch


@pytest.fixture(scope="module")
def stays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty days of traffic that stays as it is."""
    return MadeUp().days(40).write(tmp_path_factory.mktemp("stays"))


@pytest.fixture(scope="module")
def changes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty days, and then ten with a new subject."""
    return MadeUp().days(30).days(10, new=0.15).write(tmp_path_factory.mktemp("changes"))


def run(folder: Path, *words: str) -> Result:
    return CliRunner().invoke(cli, ["watch", "-C", str(folder), *words])


def looked(folder: Path, **settings: float) -> Watched:
    places = [folder / name for name in ("decisions.jsonl", "collected", "reviewed.jsonl")]
    return watch(traffic.read(places), MeasuredFigures(), **settings)


def test_traffic_that_stays_raises_no_alarm(stays: Path) -> None:
    watched = looked(stays)
    assert watched.alarms == [] and watched.command == ""
    assert watched.requests == 4000 and not watched.sampled
    assert [window.requests for window in watched.windows] == [700] * 5  # of 7 days, the first one begins earlier
    assert {course.name for course in watched.courses} == {
        "p_correct", "kept", "novel", "unfamiliar", "length", "labels", "unsure labels",
    }  # fmt: skip


def test_a_new_subject_is_noticed_dated_and_sent_to_review(changes: Path) -> None:
    watched = looked(changes)
    named = {alarm.signal for alarm in watched.alarms}
    assert {"p_correct", "novel", "unfamiliar"} <= named and "length" not in named
    for alarm in watched.alarms:
        assert "2026-10-20" <= alarm.since < alarm.noticed <= "2026-11-09T23:59:59Z"
    estimated = next(alarm for alarm in watched.alarms if alarm.signal == "p_correct")
    assert estimated.after < estimated.before - 0.01
    assert watched.command == ""  # everything was reviewed


def test_rows_that_nobody_reviewed_are_named(changes: Path) -> None:
    places = [changes / "decisions.jsonl", changes / "collected"]
    watched = watch(traffic.read(places), MeasuredFigures())
    assert watched.command == f"slmctl review {changes / 'collected'}"
    rows = {row.id: row for day in (changes / "collected").iterdir() for row in CollectedRow.read(day)}
    listed = [rows[id].p_correct or 0.0 for id in watched.to_review]
    assert listed == sorted(listed) and listed[0] < 0.2


def test_a_longer_text_is_noticed(tmp_path: Path) -> None:
    folder = MadeUp(seed=2).days(20).days(8, tokens=26).write(tmp_path)
    assert [alarm.signal for alarm in looked(folder).alarms] == ["length"]


def test_a_label_that_rises_is_named(tmp_path: Path) -> None:
    made = MadeUp(seed=3, kept_share=1.0).days(10)
    rows = [
        CollectedRow(
            f"{n}", traffic.time_of(BEGIN + n * 600), [{"role": "user", "content": "x"}],
            answer="late" if n % (12 if n < 1500 else 3) == 0 else f"other {n % 7}", labels={"late": 1.0},
            uniform=True, uniform_probability=1.0, chosen="uniform", p_correct=0.9, reason="confident",
        )
        for n in range(2200)
    ]  # fmt: skip
    made.decisions, made.collected, made.right = [], rows, {row.id: True for row in rows}
    watched = looked(made.write(tmp_path))
    assert watched.sampled  # without a log of decisions
    assert [alarm.signal for alarm in watched.alarms] == ["label late"]
    assert watched.alarms[0].before == pytest.approx(1 / 12, abs=0.02)


def test_verified_accuracy_is_of_the_rows_drawn_by_chance(stays: Path) -> None:
    made = MadeUp().days(40)
    end = BEGIN + 40 * DAY_S
    watched = looked(stays, last_s=20 * DAY_S, window_s=20 * DAY_S)
    (window,) = watched.windows
    uniform = [row for row in made.collected if row.uniform and end - 20 * DAY_S <= traffic.seconds_of(row.time)]
    right = sum(made.right[row.id] for row in uniform)
    verified = window.verified
    assert verified is not None
    assert (verified.uniform.rows, verified.uniform.right) == (len(uniform), right)
    assert (verified.uniform.low, verified.uniform.high) == exact_interval(right, len(uniform))
    assert verified.rows > len(uniform)
    assert window.estimated is not None and verified.weighted is not None
    assert abs(verified.weighted - verified.uniform.share) < 0.05
    kept = [made.right[row.id] for row in uniform if row.reason == "confident"]
    assert (verified.kept_rows, verified.kept_wrong) == (len(kept), len(kept) - sum(kept))


def test_cost_follows_the_prices(stays: Path) -> None:
    prices = Prices(
        machine_per_hour=0.01, api_per_million_input_tokens=1000, api_per_million_output_tokens=2000, currency="EUR"
    )
    material = traffic.read([stays / "decisions.jsonl"])
    cost = watch(material, MeasuredFigures(), window_s=DAY_S, last_s=DAY_S, prices=prices).now.cost
    assert cost is not None
    day = [json.loads(line) for line in (stays / "decisions.jsonl").read_text(encoding="utf-8").splitlines()][-100:]
    paid, avoided = (
        sum(line["prompt_tokens"] * 1e-3 + 3 * 2e-3 for line in day if line["route"] == route)
        for route in ("generalist", "local")
    )
    assert (cost.paid, cost.avoided) == (pytest.approx(paid), pytest.approx(avoided))
    assert cost.savings == pytest.approx(avoided - 24 * 0.01)


@pytest.mark.parametrize(
    ("answer", "after", "labels", "right"),
    [
        ("invoice", "invoice ", {"invoice": 1.0}, True),
        ("in-voice", "in voice", {"invoice": 1.0}, False),  # of labels every sign counts
        ('{"a": 1, "b": 2}', '{"b": 2, "a": 1.0}', {}, True),
        ('{"a": 1}', '{"a": 2}', {}, False),
        ("Yes, it is.", "yes it is", {}, True),
        ("yes", "no", {}, False),
    ],
)
def test_a_right_answer_is_what_calibrate_counts_as_one(
    answer: str, after: str, labels: dict[str, float], right: bool
) -> None:
    row = CollectedRow("1", "2026-10-01T00:00:00Z", [], answer=answer, labels=labels)
    assert figures.is_right(Review("1", row.time, "ada", "corrected", before=answer, after=after), row) is right


def test_the_log_of_the_server_is_read_too(stays: Path, tmp_path: Path) -> None:
    decisions = (stays / "decisions.jsonl").read_text(encoding="utf-8").splitlines()[:300]
    events = [{"time": "2026-10-01T00:00:00.000Z", "event": "start"}]
    events += [json.loads(line) | {"event": "decision"} for line in decisions]
    log = tmp_path / "serve.log"
    torn = '{"time": "2026-11-0'
    log.write_text("".join(f"{json.dumps(event)}\n" for event in events) + torn, encoding="utf-8")
    assert len(traffic.read([log]).traffic) == 300


@pytest.mark.parametrize(
    "damage",
    [
        {"time": "9999-12-31T23:59:59Z"}, {"time": "0001-01-01"}, {"time": "soon"}, {"time": 7},
        {"p_correct": 1.5}, {"p_correct": "0.5"}, {"prompt_tokens": 2**80}, {"completion_tokens": -1},
        {"route": None},
    ],
    ids=str,
)  # fmt: skip
def test_a_damaged_line_is_passed_over(stays: Path, tmp_path: Path, damage: dict[str, object]) -> None:
    first, second, *_ = (stays / "decisions.jsonl").read_text(encoding="utf-8").splitlines()
    log = tmp_path / "decisions.jsonl"
    log.write_text(f"{first}\n{json.dumps(json.loads(second) | damage)}\n", encoding="utf-8")
    seen = watch(traffic.read([log]), MeasuredFigures())
    assert seen.requests == (2 if damage == {"p_correct": "0.5"} else 1)  # a number may be written as a text


def test_lines_before_a_day_are_left_out(stays: Path) -> None:
    material = traffic.read([stays / "decisions.jsonl"], since=traffic.seconds_of("2026-10-31"))
    assert len(material.traffic) == 1000
    assert (np.diff(material.traffic.seconds) > 0).all()


def test_files_of_another_kind_are_refused(tmp_path: Path) -> None:
    other = tmp_path / "rows.jsonl"
    other.write_text('{"text": "hello"}\n', encoding="utf-8")
    with pytest.raises(DataError, match="holds neither decisions nor collected rows nor reviews"):
        traffic.read([other])
    with pytest.raises(UsageError, match="does not exist"):
        traffic.read([tmp_path / "none.jsonl"])
    other.write_text("", encoding="utf-8")
    with pytest.raises(DataError, match="there is no request to look at"):
        traffic.read([other])


def test_the_command_without_an_alarm(stays: Path) -> None:
    result = run(stays)
    assert result.exit_code == 0, result.output
    for words in ("estimated accuracy", "verified accuracy", "drawn by chance", "novel", "no alarm"):
        assert words in result.output
    assert (stays / "runs" / "watch.html").exists()


def test_the_command_with_an_alarm(changes: Path) -> None:
    result = run(changes)
    assert isinstance(result.exception, GateError) and result.exception.code == 5
    assert "ALARM  the estimated accuracy fell from" in result.output


def test_the_json_has_the_figures(changes: Path) -> None:
    result = run(changes, "--json", "--window", "10d", "--last", "20d", str(changes / "decisions.jsonl"))
    printed = json.loads(result.stdout[: result.stdout.rindex("}") + 1])
    assert printed["alarm"] is True and printed["requests"] == 4000
    assert [window["requests"] for window in printed["windows"]] == [1000, 1000]
    assert printed["windows"][1]["verified"] is None
    assert {signal["name"] for signal in printed["signals"]} == {"p_correct", "kept", "novel", "unfamiliar", "length"}
    assert printed["false_alarms_a_month"] == 0.05


def test_the_policy_that_was_named_is_compared_with(stays: Path, tmp_path: Path) -> None:
    policy = Policy(
        "0" * 64, "1" * 64, "classify", "the reference label", "", {"odds": 1.0}, 0.0, ((0.0, 0.5),), 0.0,
        {"accuracy": 0.876, "kept": 0.912, "max_error": 0.05, "tested_on": 700},
    )  # fmt: skip
    policy.write(tmp_path)
    result = run(stays, "--policy", str(tmp_path / "policy.json"))
    assert "calibration 87.6 %" in result.output and "calibration 91.2 %" in result.output


@pytest.mark.parametrize("words", [("--since", "yesterday"), ("--window", "7"), ("--last", "0d")])
def test_a_wrong_time_is_refused(stays: Path, words: tuple[str, ...]) -> None:
    assert run(stays, *words).exit_code != 0


def test_a_folder_without_files_says_what_writes_them(tmp_path: Path) -> None:
    result = run(tmp_path)
    assert isinstance(result.exception, UsageError)
    assert "serve.decision_log" in result.exception.hint


def test_the_page_holds_no_text_of_a_request(changes: Path) -> None:
    run(changes)
    page = (changes / "runs" / "watch.html").read_text(encoding="utf-8")
    assert "question 1" not in page and "The estimated accuracy fell" in page
    assert page.count("<svg") >= 2


def test_too_few_requests_are_said(tmp_path: Path) -> None:
    watched = looked(MadeUp().days(3).write(tmp_path))
    assert not any(course.tested for course in watched.courses)
    assert any(line.startswith("not tested yet") for line in lines(watched))


def test_the_figures_to_compare_with_are_those_of_the_newest_policy_and_of_the_report_on_its_file(
    tmp_path: Path,
) -> None:
    for kind in ("report", "policy"):
        shutil.copytree(TESTS / "fixtures" / "0.1.0" / kind, tmp_path / "runs" / kind / "0123456789ab")
    before = measured(tmp_path)
    assert (before.accuracy, before.rows, before.max_error) == (pytest.approx(0.324, abs=1e-3), 259, 0.4)
    assert before.report is None  # it is on another file
    shutil.rmtree(tmp_path / "runs" / "policy")
    alone = measured(tmp_path)
    assert (alone.report_metric, alone.report, alone.report_rows) == ("accuracy", pytest.approx(1 / 6, abs=1e-4), 6)
    assert alone.policy == "" and alone.accuracy is None
    assert measured(tmp_path / "nowhere") == MeasuredFigures()
