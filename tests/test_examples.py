"""The example data: generated, the same everywhere, and as its README says."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import jsonschema
import pytest
import yaml
from support import EXAMPLES as DATA
from support import ROOT
from support.made_contracts import files as contracts

from examples import demo
from slmctl import config
from slmctl.metrics.grounding import ungrounded
from slmctl.sources.documents import mails, readers
from slmctl.task.documents import PAGE
from slmctl.task.evidence import Evidence

FILES = (
    "support_tickets.csv",
    "order_emails.jsonl",
    "order_emails.schema.json",
    "replies.jsonl",
    "help_desk.jsonl",
    "help_desk.tools.json",
    "customer_letters.csv",
)


def tickets() -> list[dict[str, str]]:
    with (DATA / "support_tickets.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def usable() -> list[dict[str, str]]:
    return [row for row in tickets() if row["text"].strip() and row["category"].strip()]


def jsonl(name: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


def terms() -> dict[str, dict[str, str]]:
    """The rows of the workbook of terms, by the name of the document."""
    workbook = pytest.importorskip("python_calamine").CalamineWorkbook
    head, *rows = (
        workbook.from_filelike(io.BytesIO(contracts()["data/terms.xlsx"]))
        .get_sheet_by_index(0)
        .to_python()
    )
    return {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in rows}


def readme() -> str:
    return (DATA / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_generator_writes_the_same_bytes(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-W", "error", DATA / "generate.py", "--out", tmp_path],
        env=os.environ | {"PYTHONHASHSEED": "1", "LC_ALL": "C", "PYTHONUTF8": "0"},
        check=True,
        capture_output=True,
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (DATA / name).read_bytes(), name


def test_enough_rows_and_categories() -> None:
    rows = usable()
    counts = Counter(row["category"] for row in rows)
    assert len(rows) >= 2400
    assert len(counts) == 11
    # the rare one
    assert [name for name, count in counts.items() if count < 150] == ["privacy_request"]
    assert counts["privacy_request"] >= 60
    german = [
        row
        for row in rows
        if re.search(r"\b(ich|bitte|können|könnten|nicht)\b", row["text"], re.IGNORECASE)
    ]
    assert 0.07 < len(german) / len(rows) < 0.15
    assert sum("\n>" in row["text"] for row in rows) > 30  # a quoted mail


def test_the_demo_claims_what_was_measured() -> None:
    def entry(low: float, accuracy: float, high: float, **facts: object) -> dict[str, object]:
        measured = {"metrics": {"accuracy": accuracy}, "intervals": {"accuracy": [low, high]}}
        return measured | {"size": 269_100_000, "latency_ms": {"median": 80.0}} | facts

    baselines = {"tfidf_logistic": entry(0.74, 0.77, 0.80)}
    models = {
        "base (11-shot)": entry(0.1, 0.2, 0.3, shots=11),
        "Q8_0": entry(0.88, 0.9, 0.92, size=144_800_000, latency_ms={"median": 40.0}),
    }
    report = {"n": 600, "focus": "Q8_0", "models": models, "baselines": baselines}
    policy = {"kept": 0.7, "max_error": 0.05, "confidence": 0.95}
    precise, smaller, private, sure = demo.shown(report, policy, sent=0, made=9)
    assert precise.startswith(
        "More precise: of 600 held-out tickets Q8_0 sorts 90.0 % (88.0 % to 92.0 %) correctly"
    )
    assert "with 11 examples in its prompt 20.0 %" in precise
    assert "145 MB in place of the base's 269 MB" in smaller
    assert smaller.startswith("Smaller and faster: ")
    assert "9 artifacts add up to 0 bytes sent" in private
    assert "keeps 70 % of the answers, at least 95 % of them right" in sure
    # not above the baseline's interval
    models["Q8_0"] = entry(0.79, 0.82, 0.85, latency_ms={"median": 90.0})
    measured, smaller, *_ = demo.shown(report, policy, sent=0, made=9)
    assert measured.startswith("Measured: ")
    assert smaller.startswith("Smaller: ")


def test_readme_counts_the_rows() -> None:
    stated = re.search(
        r"`support_tickets\.csv` \| ([\d,]+) \(([\d,]+) usable\) \| classification into (\d+)",
        readme(),
    )
    assert stated
    categories = {row["category"] for row in usable()}
    assert [int(text.replace(",", "")) for text in stated.groups()] == [
        len(tickets()),
        len(usable()),
        len(categories),
    ]
    for name in ("order_emails", "replies", "help_desk"):
        found = re.search(rf"`{name}\.jsonl`.*? \| (\d+) \|", readme())
        assert found
        assert int(found[1]) == len(jsonl(f"{name}.jsonl"))


def test_letters_ask_for_none_to_three_things() -> None:
    with (DATA / "customer_letters.csv").open(encoding="utf-8", newline="") as stream:
        cells = [row["topics"] for row in csv.DictReader(stream)]
    sets = [cell.split("; ") if cell != "[]" else [] for cell in cells]
    assert f"`customer_letters.csv` | {len(cells)} |" in readme()
    assert set(map(len, sets)) == {0, 1, 2, 3}
    assert all(topics == sorted(set(topics)) for topics in sets)
    assert {topic for topics in sets for topic in topics} == {row["category"] for row in usable()}


def test_help_desk_calls_satisfy_their_tools() -> None:
    tools = {
        tool["function"]["name"]: tool["function"]
        for tool in json.loads((DATA / "help_desk.tools.json").read_text())
    }
    counts: Counter[str] = Counter()
    for row in jsonl("help_desk.jsonl"):
        question, answer = row["messages"]  # type: ignore[misc] # a list of two
        assert re.match(r"Sent 2026-\d\d-\d\d\n", question["content"])
        # every slot and alternative is filled
        assert not re.search(r"[\[\]{}|]", question["content"])
        for call in answer.get("tool_calls", []):
            name, arguments = call["function"]["name"], call["function"]["arguments"]
            jsonschema.Draft202012Validator(tools[name]["parameters"]).validate(arguments)
            assert set(arguments) == set(tools[name]["parameters"]["properties"])
        counts[call["function"]["name"] if answer.get("tool_calls") else "none"] += 1
    assert set(counts) == {*tools, "none"}
    assert min(counts.values()) > 100
    stated = re.search(r"`No tool fits\.` \((\d+) rows\)", readme())
    assert stated
    assert int(stated[1]) == counts["none"]


def test_contracts_have_terms_that_satisfy_their_schema() -> None:
    names = {name.removeprefix("data/contracts/") for name in contracts()} - {"data/terms.xlsx"}
    found, schema = terms(), json.loads((DATA / "contract_terms.schema.json").read_text())
    assert names == set(found)
    assert {name.rpartition(".")[2] for name in names} == {"pdf", "docx", "eml"}
    assert f"`contract_terms.schema.json` | {len(found)} |" in readme()
    assert (DATA / "contract-terms.tar.xz").stat().st_size < 600_000
    validator = jsonschema.Draft202012Validator(schema)
    for name, row in found.items():
        answer = {key: value or None for key, value in row.items()}
        answer["deliverables"] = row["deliverables"].split("; ") if row["deliverables"] else []  # type: ignore[assignment]
        assert not list(validator.iter_errors(answer)), name
        assert re.fullmatch(r"|[a-z.]+@example\.(com|org|net)", row["contact_email"])
    assert all(
        any(not row[key] for row in found.values())
        for key in ("annual_fee", "governing_law", "deliverables")
    )


def test_every_term_stands_in_its_document_as_slmctl_reads_it() -> None:
    pytest.importorskip("pypdfium2")
    shipped, later = contracts(), 0
    sizes = []
    for name, row in terms().items():
        data, kind = shipped[f"data/contracts/{name}"], readers.kind_of(name)
        text = (mails.read(data) if kind == "mail" else readers.read(data, kind)).text
        evidence, values = Evidence(text), {**row, "deliverables": None}
        for value in [*values.values(), *filter(None, row["deliverables"].split("; "))]:
            assert not value or evidence.spans(value), (name, value)
        sizes.append(text.count(PAGE) + 1)
        later += PAGE in text[: evidence.spans(row["start_date"])[0][0]]
    assert 20 < max(sizes) <= 30
    assert sum(size > 5 for size in sizes) > 12
    assert later > 0.25 * len(sizes)  # so that the first page is not enough


@pytest.mark.slow
def test_generator_writes_the_same_contracts(tmp_path: Path) -> None:
    pytest.importorskip("docx")
    pytest.importorskip("fpdf")
    environment = os.environ | {"PYTHONHASHSEED": "1", "LC_ALL": "C", "PYTHONUTF8": "0"}
    command = [sys.executable, "-W", "error", DATA / "make_contracts.py", "--out", tmp_path]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    (archive,) = tmp_path.iterdir()
    made, shipped = contracts(archive), contracts()
    assert list(made) == list(shipped)  # their bytes follow the versions of python-docx and fpdf2
    assert made["data/terms.xlsx"] == shipped["data/terms.xlsx"]


def test_readme_counts_the_categories() -> None:
    stated = {
        name: int(count)
        for name, count in re.findall(r"^\| `(\w+)` \| (\d+) \|", readme(), re.MULTILINE)
    }
    assert stated == Counter(row["category"] for row in usable())


def test_the_template_lists_the_labels_that_usable_rows_have() -> None:
    # It listed four labels more, each of one row that has no text, and the served demo showed 15
    # categories.
    config = (ROOT / "templates" / "support-triage" / "slmctl.yaml").read_text(encoding="utf-8")
    assert yaml.safe_load(config)["task"]["labels"] == sorted({row["category"] for row in usable()})


def test_readme_counts_the_faults() -> None:
    rows = tickets()
    stated = re.search(r"- (\d+) rows have no text or no category", readme())
    assert stated
    assert int(stated[1]) == len(rows) - len(usable())
    stated = re.search(r"- (\d+) rows repeat another row exactly", readme())
    assert stated
    texts = Counter((row["text"], row["category"]) for row in usable())
    assert int(stated[1]) == sum(count - 1 for count in texts.values())


def test_tickets_have_ids_of_their_own() -> None:
    ids = [row["ticket_id"] for row in tickets()]
    assert len(set(ids)) == len(ids)


def test_extracted_fields_satisfy_their_schema() -> None:
    validator = jsonschema.Draft202012Validator(
        json.loads((DATA / "order_emails.schema.json").read_text())
    )
    for row in jsonl("order_emails.jsonl"):
        assert list(row) == ["id", "email", "fields"]
        assert not list(validator.iter_errors(row["fields"])), row["id"]


def test_replies_answer_messages() -> None:
    for row in jsonl("replies.jsonl"):
        assert list(row) == ["id", "message", "reply"]
        assert all(str(value).strip() for value in row.values())


def test_the_template_states_what_replies_promise() -> None:
    # 305 replies had values that stood nowhere, so no gate could tell them from invented ones
    project = yaml.safe_load(
        (ROOT / "templates" / "reply-drafting" / "slmctl.yaml").read_text(encoding="utf-8")
    )
    for row in jsonl("replies.jsonl"):
        assert (
            ungrounded(row["reply"], [row["message"]], constants=project["task"]["system"]) == []
        ), row["id"]


@pytest.mark.parametrize(
    "path", sorted(ROOT.glob("templates/*/slmctl.yaml")), ids=lambda path: path.parent.name
)
def test_the_task_of_a_template_may_be_released(path: Path) -> None:
    pytest.importorskip("gguf")
    from slmctl.stages.publish import leak_scan

    leak_scan.require_clean_task(config.load(path))


def test_personal_data_is_invented() -> None:
    text = "".join((DATA / name).read_text(encoding="utf-8") for name in FILES)
    hosts = {host.lower().rstrip(".") for host in re.findall(r"[\w.+-]+@([\w.-]+)", text)}
    assert hosts <= {"example.com", "example.org", "example.net"}
