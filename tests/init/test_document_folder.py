"""`init FOLDER` of documents: the answers that stand in it or beside it make the task."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import papers, tiny, workbooks
from support.program import slmctl

pytestmark = pytest.mark.usefixtures("forked_readers")
TENANTS = ["Ann Möller", "Bert Koch", "Carl Sauer", "Dora Klein"]


def contracts(folder: Path, count: int = 120) -> list[tuple[str, str, int]]:
    """Contracts in three formats, and the fields of each."""
    rows: list[tuple[str, str, int]] = []
    for number in range(count):
        tenant, rent = f"{TENANTS[number % 4]} {number}", 400 + 7 * number
        text = f"Mietvertrag {number}\nDie Muster GmbH vermietet an {tenant} eine Wohnung.\nDie Miete ist {rent} Euro."
        if number % 40 < 2:
            kind, made = ("pdf", papers.pdf([text])) if number % 40 else ("docx", papers.word(*text.split("\n")))
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
    workbooks.write_xlsx(tmp_path / place, {"A": "".join(workbooks.row(k, *row) for k, row in enumerate(table, 1))})
    made, spoken = initialised(tmp_path, "contracts")
    assert made["task"]["kind"] == "extract"
    assert made["task"]["document"] == {"window": "auto", "overlap": "auto"}
    assert made["prepare"]["max_overlap"] == "100 %"  # contracts that share clauses ended prepare with 5
    (source,) = made["prepare"]["sources"]
    assert (source["path"], source["input"]) == ("contracts", "text")
    assert source["answers"] == {"path": place, "file": "Datei"}
    assert "tojson" in source["output"]
    schema = json.loads((tmp_path / "contracts.schema.json").read_text())
    assert set(schema["properties"]) == {"Mieter", "Miete"}
    assert "contracts: documents (114 .txt, 3 .docx, 3 .pdf), 120 rows" in spoken


def test_json_beside_makes_extract(tmp_path: Path) -> None:
    for name, tenant, rent in contracts(tmp_path / "contracts"):
        (tmp_path / "contracts" / f"{name}.json").write_text(json.dumps({"tenant": tenant, "rent": rent}))
    made, _ = initialised(tmp_path, "contracts")
    (source,) = made["prepare"]["sources"]
    assert (made["task"]["kind"], source["answers"], source["output"]) == ("extract", "json", "answer")


def test_folders_are_labels(tmp_path: Path) -> None:
    for number, (text, label) in enumerate(tiny.rows(200)):
        papers.write(tmp_path / "inbox" / label, {f"{number}.md": text})
    made, _ = initialised(tmp_path, "inbox")
    (source,) = made["prepare"]["sources"]
    assert (made["task"]["kind"], source["output"], "answers" in source) == ("classify", "folder", False)


def test_documents_without_answers_are_refused_with_what_to_do(tmp_path: Path) -> None:
    contracts(tmp_path / "contracts", 3)
    done = slmctl("init", "contracts", cwd=tmp_path)
    assert done.returncode == 3
    assert "the documents of contracts have no answers" in done.stderr
    assert "a table beside the folder with a column of file names" in done.stderr
    assert not (tmp_path / "slmctl.yaml").exists()


def test_a_plan_after_init_knows_the_documents_that_init_read(tmp_path: Path) -> None:
    for name, tenant, rent in contracts(tmp_path / "contracts"):
        (tmp_path / "contracts" / f"{name}.json").write_text(json.dumps({"tenant": tenant, "rent": rent}))
    initialised(tmp_path, "contracts")
    (copy,) = tmp_path.glob("runs/.sources/documents-*.jsonl")
    assert copy.stat().st_mode & 0o077 == 0
    planned = slmctl("run", "--plan", cwd=tmp_path)
    assert "not read yet" not in planned.stdout and "0 sources" not in planned.stdout
    assert "files      the source, with the columns that the config names" in planned.stdout
    assert re.search(r"rows       about \d+ to train on and about \d+ to test on, of 120", planned.stdout)
    copy.unlink()
    unread = slmctl("run", "--plan", cwd=tmp_path).stdout
    assert "120 documents of contracts not read yet" in unread and "with the columns" not in unread
