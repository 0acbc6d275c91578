"""Pairs of answers that people judge: which are shown, on which side,
and what stands in the file afterwards.
"""

from __future__ import annotations

import csv
import os
import signal
import stat
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from support import judged, tiny
from support.judged import DRAFTS, OTHERS
from support.program import slmctl
from support.reported import HOSTILE, small_report
from support.scale import sampled

from slmctl.errors import IntegrityError, LockedError, UsageError
from slmctl.pipeline.predictions import measured_with
from slmctl.production.review import spreadsheet
from slmctl.production.review.pairs import JudgedModels, PairDecision, PairSession
from slmctl.production.review.session import DecisionRefusedError
from slmctl.reports.evaluation_report import model_named, parse_report
from slmctl.sources.reviewed import is_reviewed, standing


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return judged.project(tmp_path)


def session_of(project: Path, reviewer: str = "ann") -> PairSession:
    return PairSession(judged.models(project), output=project / "pairs.jsonl", reviewer=reviewer)


def lines(project: Path) -> list[PairDecision]:
    return list(PairDecision.read(project / "pairs.jsonl"))


def winner_of(project: Path, line: PairDecision) -> str:
    """The name of the model that a decision prefers."""
    return line.names[("first", "second").index(line.decision)]


# The pairs


def test_rows_with_other_answers_are_shown_in_an_order_and_on_sides_that_chance_has_drawn(
    tmp_path: Path,
) -> None:
    many = [f"draft {k}" for k in range(400)]
    project = judged.project(
        tmp_path, many, [*many[:100], *(f"answer {k}" for k in range(100, 400))]
    )
    pairs = judged.models(project)
    assert (len(pairs.queue), pairs.equal) == (300, 100)
    assert [pair.id for pair in pairs.queue[:20]] != [f"r{k}" for k in range(100, 120)]
    swapped = Counter(pair.sides[0].startswith("draft") for pair in pairs.queue)
    assert 120 < swapped[True] < 180
    predictions, prepared = measured_with(project, "base", "Q8_0")
    assert JudgedModels.of(predictions, prepared) == pairs  # in either order


def test_a_decision_names_the_model_whatever_its_side(project: Path) -> None:
    with session_of(project) as session:
        sides = set()
        while (pair := session.next()) is not None:
            side = "left" if pair.sides[0] in DRAFTS else "right"
            sides.add(side)
            session.decide(pair.id, side)
        assert sides == {"left", "right"}
        assert session.summary().startswith(
            "11 pairs reviewed: 11 with a better answer, 0 the same, 0 both bad, 0 skip"
        )
    assert {winner_of(project, line) for line in lines(project)} == {"Q8_0"}
    assert stat.S_IMODE((project / "pairs.jsonl").stat().st_mode) == 0o600
    text = (project / "pairs.jsonl").read_text()
    assert not any(part in text for part in (*DRAFTS, *OTHERS, "where is"))  # no text of a customer
    assert not is_reviewed(project / "pairs.jsonl")


def test_every_word_of_a_reviewer_is_a_decision(project: Path) -> None:
    with session_of(project) as session:
        for word, decision in (
            ("same", "same"),
            (" Neither ", "neither"),
            (None, "skipped"),
            ("LEFT", None),
            ("right", None),
        ):
            pair = session.next()
            assert pair is not None
            made = session.decide(pair.id, word)
            assert made == decision if decision else made in ("first", "second")
            assert session.decide(pair.id, word) == "unchanged"
        with pytest.raises(
            DecisionRefusedError, match="'both' is none of left, right, same, neither"
        ):
            session.decide(session.open_rows()[0].id, "both")
        undone = session.undo()
        assert undone is not None and session.next() == undone
    assert Counter(line.decision for line in lines(project))["undone"] == 1
    assert len(standing(lines(project))) == 4


def test_decisions_on_other_models_are_others(project: Path, tmp_path: Path) -> None:
    with session_of(project) as session:
        session.decide("r1", "left")
    other = judged.project(tmp_path / "other", [text.upper() for text in DRAFTS])
    pairs = judged.models(other)
    with PairSession(pairs, output=project / "pairs.jsonl", reviewer="ben") as later:
        assert later.progress().decided == 0
        assert later.decide("r1", "same") == "same"
    assert [line.models for line in lines(project)] == [judged.models(project).models, pairs.models]
    with session_of(project) as session:
        assert session.progress().decided == 1


@pytest.mark.parametrize(
    ("tuned", "base", "words"),
    [
        (DRAFTS, DRAFTS, "both models gave the same answers"),
        (DRAFTS, [f"{text} " for text in DRAFTS], "gave equal answers to every row"),
    ],
)
def test_models_that_answer_alike_leave_nothing_to_judge(
    tmp_path: Path, tuned: list[str], base: list[str], words: str
) -> None:
    done = review(judged.project(tmp_path, tuned, base))
    assert (done.returncode, words in done.stderr) == (
        2 if words.startswith("both") else 3,
        True,
    ), done.stderr


def test_a_model_that_no_report_measures_is_named(project: Path) -> None:
    with pytest.raises(
        IntegrityError, match="no report below runs/ measures both Q8_0 and Q2_K"
    ) as raised:
        measured_with(project, "Q8_0", "Q2_K")
    assert raised.value.hint == "the newest measures Q4_K_M, Q8_0, adapter, base"


def test_a_plain_name_finds_the_base_with_whatever_examples(tmp_path: Path) -> None:
    project = judged.project(tmp_path, base_name="base (11-shot)")
    done = review(project, "--csv", "sheet.csv")
    assert "11 pairs written" in done.stderr, done.stderr
    (_, plain), _ = measured_with(project, "Q8_0", "base")
    assert plain.metrics["model"] == "base (11-shot)"
    with pytest.raises(
        IntegrityError, match="no report below runs/ measures both Q8_0 and base \\(4-shot\\)"
    ):
        measured_with(project, "Q8_0", "base (4-shot)")


def test_a_plain_name_of_two_forms_in_one_report_is_asked_back() -> None:
    report = parse_report(
        small_report({"base (4-shot)": {}, "base (11-shot)": {}, "Q8_0": {}}), where="it"
    )
    with pytest.raises(
        UsageError, match=r"'base' may be base \(4-shot\) or base \(11-shot\)"
    ) as raised:
        model_named(report, "base")
    assert raised.value.hint == "one of them in quotes: 'base (4-shot)'"
    assert [model_named(report, name) for name in ("base (4-shot)", "Q8_0", "Q8", "")] == [
        "base (4-shot)",
        "Q8_0",
        "",
        "",
    ]


# Rounds


def test_whoever_judges_five_pairs_at_a_time_ends_each_round_and_goes_on(project: Path) -> None:
    seen: list[str] = []
    # the second round is resumed
    for begun, size, stop in ((0, 5, 2), (2, 5, 3), (0, 5, 5), (0, 1, 1), (1, 1, 0)):
        with session_of(project) as session:
            session.begin_round(5)
            done = session.progress()
            assert (done.decided, done.total) == (begun, size)
            for _ in range(stop):
                pair = session.next()
                assert pair is not None
                seen.append(pair.id)
                session.decide(pair.id, None if pair.id == "r3" else "same")
            if begun + stop == size:
                assert session.next() is None
    assert seen == [pair.id for pair in judged.models(project).queue]  # which chance has ordered


def test_a_sheet_of_a_round_is_read_back_once_more(project: Path) -> None:
    done = review(project, "--count", "4", "--csv", "sheet.csv")
    assert "4 pairs written" in done.stderr, done.stderr
    filled(project / "sheet.csv", "same")
    for counted in (
        "4 the same, 0 both bad, 0 skipped, 0 read before",
        "0 the same, 0 both bad, 0 skipped, 4 read",
    ):
        done = review(project, "--count", "4", "--csv", "sheet.csv")
        assert (done.returncode, counted in done.stderr) == (0, True), done.stderr
    done = review(project, "--count", "4", "--csv", "second.csv")
    assert "4 pairs written" in done.stderr, done.stderr
    second = (project / "second.csv").read_text("utf-8-sig").splitlines()[1:]
    assert not {line.partition(",")[0] for line in second} & {line.id for line in lines(project)}


# The file


def test_two_writers_are_one_after_the_other(project: Path) -> None:
    with session_of(project) as session:
        with pytest.raises(LockedError, match=r"another slmctl review fills pairs\.jsonl"):
            session_of(project, "ben")
        session.decide("r1", "left")
    with session_of(project, "ben") as session:
        assert session.progress().decided == 1
        with pytest.raises(DecisionRefusedError, match="row 'r1' is decided otherwise, by ann"):
            session.decide("r1", "same")
        session.decide("r2", "same")
    assert [line.reviewer for line in lines(project)] == ["ann", "ben"]


JUDGE = """
import sys
from pathlib import Path
from support import judged
from slmctl.production.review.pairs import PairSession
project = Path(sys.argv[1])
with PairSession(judged.models(project), output=project / "pairs.jsonl", reviewer="ann") as session:
    while True:
        for pair in session.open_rows():
            session.decide(pair.id, "left")
            print(pair.id, flush=True)
        while session.undo() is not None:
            pass
"""


@pytest.mark.parametrize("lines_first", sampled([1, 7, 23], [23]))
def test_a_session_that_is_killed_loses_no_decision(project: Path, lines_first: int) -> None:
    own = os.environ | {"PYTHONPATH": f"{Path(judged.__file__).parents[1]}"}
    command = [sys.executable, "-c", JUDGE, str(project)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=own) as child:
        assert child.stdout is not None
        shown = [child.stdout.readline().strip() for _ in range(lines_first)]
        time.sleep(0.003 * lines_first)
        os.kill(child.pid, signal.SIGKILL)
        shown += child.stdout.read().split()
    written = [line.id for line in lines(project) if line.decision != "undone"]
    assert written[: len(shown)] == shown and len(written) <= len(shown) + 1
    with session_of(project) as session:
        before = session.progress().decided
        assert (
            session.decide(session.open_rows()[0].id, "same") == "same"
            if session.open_rows()
            else True
        )
    assert before == len(standing(lines(project))) - (before < 11)


# In a spreadsheet


def filled(path: Path, word: str) -> None:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        head = stream.readline()
        names = spreadsheet.PAIR_COLUMNS
        rows = list(csv.DictReader(stream, names, delimiter=";" if ";" in head else ","))
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, spreadsheet.PAIR_COLUMNS, delimiter=";")
        writer.writeheader()
        for row in rows:
            side = "left" if row["left"] in DRAFTS else "right"
            writer.writerow({**row, "better": word or side})


def test_a_sheet_comes_back(project: Path) -> None:
    path = project / "sheet.csv"
    with session_of(project) as session:
        assert spreadsheet.write_pairs(path, session) == 11
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        text = path.read_text(encoding="utf-8-sig")
        assert (
            "where is parcel 3?" in text
            and "Be kind" not in text
            and "Q8_0" not in text
            and "base" not in text
        )
        filled(path, "")
        read = {"column": "better", "stamp": session.judged.stamp}
        done = spreadsheet.read(path, session, **read)
        assert (done.counts.total(), done.empty, done.refused) == (11, 0, ())
        assert spreadsheet.read(path, session, **read).counts == {"unchanged": 11}
    assert {winner_of(project, line) for line in lines(project)} == {"Q8_0"}


def test_a_sheet_of_other_answers_is_refused(project: Path, tmp_path: Path) -> None:
    path = project / "sheet.csv"
    with session_of(project) as session:
        spreadsheet.write_pairs(path, session)
    filled(path, "left")
    other = judged.project(tmp_path / "other", [text.upper() for text in DRAFTS])
    with session_of(other) as session:
        done = spreadsheet.read(path, session, column="better", stamp=session.judged.stamp)
    assert (done.counts, len(done.refused)) == ({}, 11)
    assert done.refused[0] == "row 2: it shows other answers than the two models gave here"


def test_hostile_texts_are_cells(tmp_path: Path) -> None:
    texts = [*(text.encode("utf-8", "replace").decode() for text in HOSTILE), "long " * 20_000]
    project = judged.project(tmp_path, texts, [f"{text}." for text in texts], questions=texts)
    with session_of(project) as session:
        spreadsheet.write_pairs(tmp_path / "sheet.csv", session)
    with (tmp_path / "sheet.csv").open(encoding="utf-8-sig", newline="") as stream:
        rows = list(csv.DictReader(stream))
    cells = [row[name] for row in rows for name in ("text", "left", "right")]
    assert len(rows) == len(texts) and not any(
        cell.startswith(("=", "+", "-", "@")) for cell in cells
    )
    assert max(map(len, cells)) < 20_100
    assert any("… (80,000 characters more)" in cell for cell in cells)


# The command


def review(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return slmctl("review", "--pairs", "Q8_0", "base", *args, cwd=folder)


def test_the_command_writes_and_reads_a_sheet(project: Path) -> None:
    done = review(project, "--csv", "sheet.csv")
    assert (
        tiny.ok(done) == "sheet.csv" and "11 pairs written; fill the column better" in done.stderr
    )
    filled(project / "sheet.csv", "same")
    done = review(project, "--csv", "sheet.csv", "--reviewer", "ann")
    tiny.ok(done)
    assert (
        "0 with a better answer, 11 the same, 0 both bad, 0 skipped, 0 read before, 0 without"
        in done.stderr
    )
    assert {line.reviewer for line in lines(project)} == {"ann"}
    filled(project / "sheet.csv", "left or right")
    done = review(project, "--csv", "sheet.csv")
    assert (done.returncode, "row 2: 'left or right' is none of left" in done.stderr) == (
        3,
        True,
    ), done.stderr


def test_collected_answers_are_no_pairs(project: Path) -> None:
    done = review(project, "collected")
    assert (done.returncode, "--pairs shows the rows of a report" in done.stderr) == (2, True), (
        done.stderr
    )


@pytest.mark.slow
def test_from_a_sheet_to_a_gate_that_refuses_the_worse_model(project: Path) -> None:
    (project / "slmctl.yaml").write_text("project: desk\nbase: ./none\ntask: {kind: generate}\n")
    tiny.ok(review(project, "--csv", "sheet.csv"))
    filled(project / "sheet.csv", "")  # Q8_0 is always better
    tiny.ok(review(project, "--csv", "sheet.csv"))
    for model, against, code in (("Q8_0", "base", 0), ("base", "Q8_0", 5)):
        (project / "slmctl.yaml").write_text(
            "project: desk\nbase: ./none\ntask: {kind: generate}\nevaluate: {pairs: pairs.jsonl}\n"
            f"gates: [{{metric: win_rate, model: {model}, against: {against}, min: 0.5}}]\n"
        )
        done = slmctl("evaluate", "--compare", "runs/report/0", cwd=project)
        assert (done.returncode, f"{model} wins at least" in done.stderr) == (code, True), (
            done.stderr
        )
    assert "People preferred Q8_0 to base in 11 of 11 decided pairs" in done.stderr
    assert "Judged by people" in (project / "runs" / "report.html").read_text()
