"""The door for programs: the answers of `slmctl predict`, from one engine, in any thread."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support import ROOT, TESTS, teacher, tiny

import slmctl
from slmctl.errors import IntegrityError, UsageError
from slmctl.inference.escalation_policy import Policy
from slmctl.model_files.gguf_choice import gguf_file
from slmctl.pipeline import named
from slmctl.task.contract import Task

KEPT = TESTS / "fixtures" / "0.1.0"  # artifacts that were kept, with a model of 7,000 weights
TEXTS = [text for text, _ in tiny.rows(40, seed=5)]
RELEASE = named.open_model(KEPT / "published", ("published",))


@pytest.fixture(scope="module")
def answerer() -> Iterator[slmctl.Answerer]:
    with slmctl.Answerer(RELEASE.path) as opened:
        yield opened


def test_importing_the_package_is_light() -> None:
    code = (
        "import sys\nbefore = set(sys.modules)\nimport slmctl\nsys.stdout.write(' "
        "'.join(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["slmctl"]
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        slmctl.Nothing  # type: ignore[attr-defined]  # noqa: B018


def test_answers_are_those_of_predict(answerer: slmctl.Answerer, tmp_path: Path) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    words = ["--input", str(source), "--output", str(out), "--column", "text"]
    teacher.slmctl(tmp_path, "predict", str(RELEASE.path), *words)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    answers = answerer.answer(TEXTS)
    assert [(each.answer, each.error) for each in answers] == [
        (row["answer"], row["error"]) for row in rows
    ]
    # equal but for last digits, since the first prompt of a chunk may be computed alone
    assert [each.confidence for each in answers] == pytest.approx(
        [row["confidence"] for row in rows], abs=1e-3
    )
    for each in answers:
        assert next(iter(each.labels)) == each.answer
        assert each.labels[each.answer or ""] == pytest.approx(each.confidence, abs=1e-5)


def test_a_model_is_found_by_path_tag_and_artifact(tmp_path: Path) -> None:
    shutil.copytree(RELEASE.path, tmp_path / "registry" / "kept" / "1.0")
    with slmctl.Answerer("dir:registry#kept@1.0", directory=tmp_path) as opened:
        assert opened.digest == RELEASE.digest
    with slmctl.Answerer(KEPT / "gguf") as opened:
        assert opened.answer(TEXTS[:1])[0].answer in opened.task.labels
    with pytest.raises(IntegrityError, match="does not exist"):
        slmctl.Answerer("./nowhere")


def test_an_empty_cell_of_pandas_is_no_text(answerer: slmctl.Answerer) -> None:
    pandas = pytest.importorskip("pandas")
    cells = [pandas.NA, pandas.NaT]  # NA != NA is neither true nor false
    assert [each.error for each in answerer.answer(cells)] == ["'text' is empty"] * 2


def test_a_text_that_cannot_be_answered_does_not_hold_up_the_others(
    answerer: slmctl.Answerer,
) -> None:
    first, empty, last = answerer.answer([TEXTS[0], "  ", TEXTS[1]])
    assert (empty.answer, empty.error) == (None, "'text' is empty")
    assert [first.answer, last.answer] == [each.answer for each in answerer.answer(TEXTS[:2])]
    assert answerer.answer([]) == []
    assert [each.error for each in answerer.answer([None, float("nan")])] == ["'text' is empty"] * 2  # type: ignore[list-item]
    with pytest.raises(UsageError, match="takes a list of texts"):
        answerer.answer("refund my card")
    with pytest.raises(UsageError, match="text 1 is of type int"):
        answerer.answer(["a", 5])  # type: ignore[list-item]


def test_threads_take_turns(answerer: slmctl.Answerer) -> None:
    parts = [TEXTS[k::4] for k in range(4)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(answerer.answer, parts))
    assert [[each.answer for each in part] for part in together] == [
        [each.answer for each in answerer.answer(part)] for part in parts
    ]


def test_a_policy_says_how_likely_an_answer_is_right(
    answerer: slmctl.Answerer, tmp_path: Path
) -> None:
    policy = Policy(
        gguf_file(RELEASE).sha256,
        Task.read(RELEASE.path).digest,
        "classify",
        "the label",
        "",
        {"odds": 1.0, "allowed": 0.0},
        0.0,
        ((-20.0, 0.0), (20.0, 1.0)),
        3.0,
    )
    policy.write(tmp_path)
    with slmctl.Answerer(RELEASE.path, policy=tmp_path) as judged:
        answers = judged.answer(TEXTS[:8])
    assert [each.answer for each in answers] == [each.answer for each in answerer.answer(TEXTS[:8])]
    for each in answers:
        assert each.p_correct is not None and each.confidence is not None
        score = policy.score(
            {
                "confidence": each.confidence,
                "labels": each.labels,
                "logprobs": [0],
                "raw_logprobs": [0],
            }
        )
        assert each.p_correct == round(policy.p_correct(score), 4)
        assert each.keep == (score >= 3.0)
    dataclasses.replace(policy, gguf="0" * 64).write(tmp_path)
    with pytest.raises(IntegrityError, match="for another GGUF file"):
        slmctl.Answerer(RELEASE.path, policy=tmp_path)


def test_a_closed_one_refuses() -> None:
    with slmctl.Answerer(RELEASE.path) as opened:
        pass
    opened.close()
    with pytest.raises(UsageError, match="is closed"):
        opened.answer(TEXTS[:1])


def test_a_damaged_release_is_not_opened(tmp_path: Path) -> None:
    copy = Path(shutil.copytree(RELEASE.path, tmp_path / "release"))
    with (copy / gguf_file(RELEASE).path).open("r+b") as stream:
        stream.seek(-1, 2)
        stream.write(b"\xff")
    with pytest.raises(IntegrityError, match="is damaged"):
        slmctl.Answerer(copy)


# The examples of docs/predict.md


def examples() -> dict[str, str]:
    """The code below each heading of the third level."""
    page = (ROOT / "docs" / "predict.md").read_text(encoding="utf-8")
    code = {}
    for section in re.split(r"^### ", page, flags=re.MULTILINE)[1:]:
        title, _, body = section.partition("\n")
        lines = itertools.takewhile(
            lambda line: not line or line.startswith("    "), body.strip("\n").splitlines()
        )
        code[title] = "\n".join(line[4:] for line in lines).strip()
    return code


def test_the_examples_are_short_and_are_python() -> None:
    assert list(examples()) == ["pandas", "Ray Data", "Spark", "Dask"]
    for title, code in examples().items():
        assert len([line for line in code.splitlines() if line]) <= 10, title
        compile(code, title, "exec")


@pytest.mark.parametrize("title", ["pandas", "Dask"])
def test_an_example_answers_a_table(
    title: str, answerer: slmctl.Answerer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pd = pytest.importorskip("pandas")
    if title == "Dask":
        pytest.importorskip("dask.dataframe")
    monkeypatch.chdir(tmp_path)
    table = pd.DataFrame({"text": TEXTS[:9]})
    table.to_csv("tickets.csv", index=False)
    (tmp_path / "in").mkdir()
    table.to_parquet("in/0.parquet")
    code = examples()[title]
    for name in ("dir:registry#production", "/models/tickets"):
        code = code.replace(name, str(RELEASE.path))
    exec(compile(code, title, "exec"), {})
    made = pd.read_csv("answered.csv") if title == "pandas" else pd.read_parquet("out")
    assert made["answer"].tolist() == [each.answer for each in answerer.answer(TEXTS[:9])]


def test_a_release_answers_what_was_collected(
    answerer: slmctl.Answerer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    page = (ROOT / "docs" / "wheel.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"\n\n((?:    .*\n|\n)*    with slmctl.Answerer.*\n(?:    .*\n)+)", page)
    monkeypatch.chdir(tmp_path)
    given = [each.answer for each in answerer.answer(TEXTS[:4])]
    answers = [*given[:3], "otherwise"]
    rows = [
        {"id": f"r{k}", "messages": [{"role": "user", "content": text}], "answer": answer}
        for k, (text, answer) in enumerate(zip(TEXTS[:4], answers, strict=True))
    ]
    (tmp_path / "collected").mkdir()
    (tmp_path / "collected" / "2026-11-25.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows)
    )
    exec(
        compile(
            textwrap.dedent(code).replace("dir:registry#candidate", str(RELEASE.path)),
            "wheel",
            "exec",
        ),
        {},
    )
    assert capsys.readouterr().out == f"r3\totherwise\t{given[3]}\n"
