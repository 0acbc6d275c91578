"""`init FOLDER` of documents: the answers that stand in it or beside it make the task."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import TESTS, messy, papers, tiny, workbooks
from support.program import slmctl

pytestmark = pytest.mark.usefixtures("forked_readers")
TENANTS = ["Ann Möller", "Bert Koch", "Carl Sauer", "Dora Klein"]


def contracts(folder: Path, count: int = 120) -> list[tuple[str, str, int]]:
    """Contracts in three formats, and the fields of each."""
    rows: list[tuple[str, str, int]] = []
    for number in range(count):
        tenant, rent = f"{TENANTS[number % 4]} {number}", 400 + 7 * number
        text = (
            f"Mietvertrag {number}\nDie Muster GmbH vermietet an {tenant} eine Wohnung.\nDie "
            f"Miete ist {rent} Euro."
        )
        if number % 40 < 2:
            kind, made = (
                ("pdf", papers.pdf([text]))
                if number % 40
                else ("docx", papers.word(*text.split("\n")))
            )
        else:
            kind, made = "txt", text.encode()
        papers.write(folder, {f"{number:03}.{kind}": made})
        rows.append((f"{number:03}", tenant, rent))
    return rows


def initialised(root: Path, *arguments: str) -> tuple[dict[str, Any], str]:
    """Returns (slmctl.yaml, stderr) of an `init` in a folder."""
    done = slmctl("init", *arguments, cwd=root)
    assert done.returncode == 0, done.stderr
    return yaml.safe_load((root / "slmctl.yaml").read_text()), done.stderr


@pytest.mark.parametrize("place", ["felder.xlsx", "contracts/felder.xlsx"])
def test_a_table_of_fields_makes_extract(tmp_path: Path, place: str) -> None:
    table = [("Datei", "Mieter", "Miete"), *contracts(tmp_path / "contracts")]
    workbooks.write_xlsx(
        tmp_path / place, {"A": "".join(workbooks.row(k, *row) for k, row in enumerate(table, 1))}
    )
    made, spoken = initialised(tmp_path, "contracts")
    assert made["task"]["kind"] == "extract"
    assert made["task"]["document"] == {"window": "auto", "overlap": "auto"}
    # contracts that share clauses ended prepare with 5
    assert made["prepare"]["max_overlap"] == "100 %"
    (source,) = made["prepare"]["sources"]
    assert (source["path"], source["input"]) == ("contracts", "text")
    assert source["answers"] == {"path": place, "file": "Datei"}
    assert "tojson" in source["output"]
    schema = json.loads((tmp_path / "contracts.schema.json").read_text())
    assert set(schema["properties"]) == {"Mieter", "Miete"}
    assert "contracts: documents (114 .txt, 3 .docx, 3 .pdf), 120 rows" in spoken


def test_json_beside_makes_extract(tmp_path: Path) -> None:
    for name, tenant, rent in contracts(tmp_path / "contracts"):
        (tmp_path / "contracts" / f"{name}.json").write_text(
            json.dumps({"tenant": tenant, "rent": rent})
        )
    made, _ = initialised(tmp_path, "contracts")
    (source,) = made["prepare"]["sources"]
    assert (made["task"]["kind"], source["answers"], source["output"]) == (
        "extract",
        "json",
        "answer",
    )


def test_folders_are_labels(tmp_path: Path) -> None:
    for number, (text, label) in enumerate(tiny.rows(200)):
        papers.write(tmp_path / "inbox" / label, {f"{number}.md": text})
    made, _ = initialised(tmp_path, "inbox")
    (source,) = made["prepare"]["sources"]
    assert (made["task"]["kind"], source["output"], "answers" in source) == (
        "classify",
        "folder",
        False,
    )


PARTIES = [
    "Ahlers GmbH",
    "Lindow AG",
    "Oakfield Ltd",
    "Vidal S.A.",
    "Nordhaus KG",
    "Kestrel Row plc",
]


def agreements(root: Path, count: int) -> None:
    """Different agreements in a folder, and a table of what people have read from them."""
    answers = ["file,supplier,fee,currency"]
    texts = [text for text, _ in messy.tickets(3 * count)]
    for number in range(count):
        supplier, fee, currency = PARTIES[number % 6], 700 + 13 * number, ("EUR", "USD")[number % 2]
        text = f"{' '.join(texts[number::count])}\n{supplier} asks {fee} {currency} a year."
        papers.write(root / "contracts", {f"deal-{number:03}.txt": text})
        answers.append(f"deal-{number:03}.txt,{supplier},{fee},{currency}")
    (root / "terms.csv").write_text("\n".join(answers) + "\n")


def test_a_lawyer_with_sixty_documents_gets_a_trial_that_prepare_takes(tmp_path: Path) -> None:
    agreements(tmp_path, 59)
    unread = {"locked.pdf": papers.pdf(["x"], password="secret"), "scan.pdf": papers.pdf([None])}
    papers.write(
        tmp_path / "contracts",
        unread | {f"old-{number}.pdf": papers.pdf([None]) for number in range(6)},
    )
    made, spoken = initialised(tmp_path, "contracts")
    assert (made["gates"], made["prepare"]["min_rows"]) == (
        [],
        {"train": 1, "validation": 1, "test": 1},
    )
    assert (
        "note: 8 documents cannot be used; locked.pdf is encrypted: its text needs a password"
        in spoken
    )
    assert "41 more rows carry gates" in spoken
    assert (
        "note: currency takes only the 2 values seen; another one cannot be answered: EUR, USD; "
        "type: string" in spoken
    )
    schema = json.loads((tmp_path / "contracts.schema.json").read_text())
    # a party that is not among them can be answered
    assert schema["properties"]["supplier"] == {"type": "string"}
    done = slmctl("prepare", "--base", str(TESTS / "fixtures" / "0.1.0" / "base"), cwd=tmp_path)
    # eight of 67 are over max_rejected as it is by default
    assert done.returncode == 0, done.stderr
    data = Path(done.stdout.strip())
    assert all(
        (data / f"{split}.jsonl").read_text().count("\n")
        for split in ("train", "validation", "test")
    )


def test_a_folder_of_few_documents_is_told_how_many_are_missing(tmp_path: Path) -> None:
    agreements(tmp_path, 21)
    done = slmctl("init", "contracts", cwd=tmp_path)
    assert done.returncode == 3
    assert "contracts has 21 rows with a text and an answer: too few" in done.stderr
    assert (
        "9 more make a trial, 79 more a project with gates; slmctl init contract-terms shows one"
        in done.stderr
    )


def test_documents_without_answers_are_refused_with_what_to_do(tmp_path: Path) -> None:
    contracts(tmp_path / "contracts", 3)
    done = slmctl("init", "contracts", cwd=tmp_path)
    assert done.returncode == 3
    assert "the documents of contracts have no answers" in done.stderr
    assert "a table beside the folder with a column of file names" in done.stderr
    assert not (tmp_path / "slmctl.yaml").exists()


def test_a_plan_after_init_knows_the_documents_that_init_read(tmp_path: Path) -> None:
    for name, tenant, rent in contracts(tmp_path / "contracts"):
        (tmp_path / "contracts" / f"{name}.json").write_text(
            json.dumps({"tenant": tenant, "rent": rent})
        )
    initialised(tmp_path, "contracts")
    (copy,) = tmp_path.glob("runs/.sources/documents-*.jsonl")
    assert copy.stat().st_mode & 0o077 == 0
    planned = slmctl("run", "--plan", cwd=tmp_path)
    assert "not read yet" not in planned.stdout and "0 sources" not in planned.stdout
    assert "files      the source, with the columns that the config names" in planned.stdout
    assert re.search(
        r"rows       about \d+ to train on and about \d+ to test on, of 120", planned.stdout
    )
    copy.unlink()
    unread = slmctl("run", "--plan", cwd=tmp_path).stdout
    assert "120 documents of contracts not read yet" in unread and "with the columns" not in unread
