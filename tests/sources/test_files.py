"""Folders, patterns, sheets and tables: several files as one source, in
one order, each by a name of its own.
"""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from support.workbooks import row, write_xlsx

from slmctl import config
from slmctl.config import PrepareConfig, Source
from slmctl.errors import DataError, UsageError
from slmctl.sources import snapshot
from slmctl.sources.rows import files, form_of, read_rows


@pytest.fixture
def exports(tmp_path: Path) -> Path:
    """A folder as programs leave it: data, marks of the writer,
    hidden copies, and a page for people.
    """
    folder = tmp_path / "exports"
    for name in (
        "part-10.csv",
        "part-2.csv",
        "2024/part-1.csv",
        ".part-3.csv",
        "_SUCCESS",
        "_tmp/a.csv",
        "README.md",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("text\na\n")
    return folder


def parts(tmp_path: Path, path: Path, **fields: Any) -> list[Source]:
    return snapshot.gathered(
        [Source.model_validate({"path": path, **fields})], tmp_path / "runs" / ".sources"
    )


def titles(found: list[Source]) -> list[str]:
    return [part.title for part in found]


def test_a_folder_is_its_data_files_in_order_of_their_names(tmp_path: Path, exports: Path) -> None:
    found = parts(tmp_path, exports)
    assert titles(found) == ["2024/part-1.csv", "part-10.csv", "part-2.csv"]
    assert titles(parts(tmp_path, exports, name="crm"))[0] == "crm/2024/part-1.csv"
    assert {part.whole for part in found} == {str(exports)}


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.csv", ["part-10.csv", "part-2.csv"]),
        ("part-?.csv", ["part-2.csv"]),
        ("*/part-*.csv", ["2024/part-1.csv"]),
        ("**/*.csv", ["2024/part-1.csv", "part-10.csv", "part-2.csv"]),
        ("part-[12]*", ["part-10.csv", "part-2.csv"]),
    ],
)
def test_a_pattern_is_what_it_matches(
    tmp_path: Path, exports: Path, pattern: str, expected: list[str]
) -> None:
    assert titles(parts(tmp_path, exports / pattern)) == expected


def test_a_folder_whose_name_looks_like_a_pattern_is_that_folder(
    tmp_path: Path, exports: Path
) -> None:
    (tmp_path / "p [1]").mkdir()
    moved = exports.rename(tmp_path / "p [1]" / "exports")
    assert titles(parts(tmp_path, moved / "part-?.csv")) == ["part-2.csv"]
    assert titles(parts(tmp_path, moved / "*" / "part-*.csv")) == ["2024/part-1.csv"]
    assert not files.is_several(moved / "gone.csv")


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path: Path) -> None:
    (tmp_path / "a[1].csv").write_text("text\na\n")
    (found,) = parts(tmp_path, tmp_path / "a[1].csv")
    assert (found.title, found.whole) == ("a[1].csv", "")


def test_what_a_folder_or_a_pattern_cannot_be(
    tmp_path: Path, exports: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match=r"\*\.parquet matches no file") as caught:
        parts(tmp_path, exports / "*.parquet")
    assert caught.value.hint == "paths are relative to the folder of slmctl.yaml"
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty is a folder without a data file"):
        parts(tmp_path, tmp_path / "empty")
    (exports / "notes.log").write_text("a")
    with pytest.raises(DataError, match=r"notes\.log has an unknown kind '\.log'"):
        parts(tmp_path, exports / "*.log")
    (exports / "notes.log").unlink()
    (exports / "a.jsonl").write_text("{}")
    with pytest.raises(DataError, match="has files of several kinds: 3 csv, 1 jsonl") as mixed:
        parts(tmp_path, exports)
    assert mixed.value.hint == "name those of one, such as path: exports/**/*.csv"
    # and the page for people, as it was asked
    assert len(parts(tmp_path, exports / "*.*", format="csv")) == 4
    monkeypatch.setattr(files, "MAX_FILES", 2)
    with pytest.raises(DataError, match="has more than 2 files"):
        parts(tmp_path, exports / "**" / "*.csv")
    monkeypatch.undo()
    monkeypatch.setattr(files, "_MAX_ENTRIES", 3)  # of `/`, say
    with pytest.raises(DataError, match="has more than 10,000 files"):
        parts(tmp_path, exports)


def test_every_file_is_part_of_the_recipe_and_its_place_is_not(
    tmp_path: Path, exports: Path
) -> None:
    def recipe(folder: Path) -> dict[str, Any]:
        return config.recipe(PrepareConfig(sources=parts(folder.parent, folder)))

    first = recipe(exports)
    moved = exports.rename(tmp_path / "elsewhere")
    assert recipe(moved) == first
    (moved / "README.md").write_text("other words")
    assert recipe(moved) == first
    (moved / "2024" / "part-1.csv").write_text("text\nb\n")
    second = recipe(moved)
    assert second != first
    (moved / "part-3.csv").write_text("text\na\n")
    assert recipe(moved) not in (first, second)


@pytest.mark.usefixtures("forked_readers")
def test_sheets_by_name_and_all_of_them(tmp_path: Path) -> None:
    sheet = row(1, "text") + row(2, "a")
    book = write_xlsx(tmp_path / "book.xlsx", {"May": sheet, "June": sheet, "Notes": ""})
    assert titles(parts(tmp_path, book)) == ["book.xlsx"]
    assert titles(parts(tmp_path, book, sheet="June")) == ["book.xlsx:June"]
    assert titles(parts(tmp_path, book, sheet=["June", "May"])) == [
        "book.xlsx:June",
        "book.xlsx:May",
    ]
    assert titles(parts(tmp_path, book, sheet="*", name="crm")) == [
        "crm:May",
        "crm:June",
        "crm:Notes",
    ]
    # its recipe says so
    assert titles(parts(tmp_path, tmp_path / "gone.xlsx", sheet="*")) == ["gone.xlsx:*"]
    (tmp_path / "a.csv").write_text("text\na\n")
    with pytest.raises(UsageError, match=r"a\.csv is no workbook and no database"):
        parts(tmp_path, tmp_path / "a.csv", sheet="*")


@pytest.mark.usefixtures("forked_readers")
def test_tables_of_a_database(tmp_path: Path) -> None:
    path = tmp_path / "crm.db"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as base:
        base.execute("create table old (text)")
        base.execute("create table new (text)")
        base.execute("create view both_ as select * from old union all select * from new")
        assert titles(parts(tmp_path, path, sheet="*")) == ["crm.db:old", "crm.db:new"]
        assert form_of(path).sheets == ("old", "new")  # so that one can be named
        with pytest.raises(UsageError, match=r"crm\.db holds 2 tables: old, new") as caught:
            list(read_rows(path))
        assert caught.value.hint == "name one: sheet: old"
        base.execute("pragma journal_mode = wal")
        base.execute("insert into old values ('a')")
        with pytest.raises(
            DataError, match=r"crm\.db is being written: its last changes are still in crm\.db-wal"
        ):
            list(read_rows(path, sheet="old"))
    assert [found.columns for found in read_rows(path, sheet="old")] == [{"text": "a"}]
    assert [entry.name for entry in tmp_path.iterdir()] == ["crm.db"]
