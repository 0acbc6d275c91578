"""Raw rows: every format's oddities become rows or faults with their numbers, never a traceback."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from support.workbooks import row, write_xlsx

from slmctl import child
from slmctl.errors import DataError, UsageError
from slmctl.sources.rows import (
    FileForm,
    Row,
    as_csv,
    columns_of,
    encodings,
    form_of,
    read_rows,
    unescaped,
)
from slmctl.sources.rows.encodings import Encoding
from slmctl.task.records import write_jsonl

UTF8 = Encoding("utf-8")


def rows(tmp_path: Path, name: str, content: str | bytes) -> list[Row]:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return list(read_rows(path))


def good(found: list[Row]) -> list[dict[str, Any]]:
    assert [row.fault for row in found] == [""] * len(found)
    return [row.columns for row in found]


@pytest.mark.parametrize(
    ("name", "content"),
    [*(("a.csv", text) for text in ("", "\ufeff", "a,b\n", "a,b")), ("a.jsonl", "[]\n{\n")],
)
def test_a_file_without_a_good_row_has_no_columns(tmp_path: Path, name: str, content: str) -> None:
    assert not [row for row in rows(tmp_path, name, content) if not row.fault]
    with pytest.raises(DataError, match=rf"{name} holds no rows") as caught:
        columns_of(tmp_path / name)
    assert "at least one row" in caught.value.hint


# JSONL


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
def test_jsonl_only_a_newline_ends_a_line(tmp_path: Path, mark: str) -> None:
    # str.splitlines would cut a row in two at these, which JSON allows inside a text (U+0085 and
    # above)
    text = json.dumps({"a": f"one{mark}two"}, ensure_ascii=mark < " ")
    assert good(rows(tmp_path, "a.jsonl", text + "\n")) == [{"a": f"one{mark}two"}]


# Files


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl"])
def test_an_encoding_can_be_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(
        'text\n"größe"\n'.encode("cp850")
        if name != "a.jsonl"
        else '{"text": "größe"}'.encode("cp850")
    )
    for known in ("cp850", "IBM850"):
        assert good(list(read_rows(path, encoding=known))) == [{"text": "größe"}]
    with pytest.raises(UsageError, match="'klingon' is no encoding"):
        list(read_rows(path, encoding="klingon"))
    with pytest.raises(DataError, match=rf"{name} is not UTF-8: line . holds the byte 0x94"):
        list(read_rows(path, encoding="utf-8"))


@pytest.mark.parametrize(
    "name", ["utf-7", "idna", "base64", "rot13", "unicode_escape", "undefined", "a\0b", ""]
)
def test_what_is_no_plain_encoding_of_text_is_none(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.csv").write_text("text\na\n")
    with pytest.raises(UsageError, match="is no encoding"):
        list(read_rows(tmp_path / "a.csv", encoding=name))


@pytest.mark.parametrize("name", ["latin-1", "iso-8859-1", "ascii"])
def test_a_named_latin1_is_cp1252(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.csv").write_bytes("text\n5 € – ä\n".encode("cp1252"))
    assert good(list(read_rows(tmp_path / "a.csv", encoding=name))) == [{"text": "5 € – ä"}]


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"]
)
def test_a_named_encoding_has_its_mark_or_not(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "a.csv"
    for mark in (
        ("", "\ufeff") if encoding not in ("cp1252", "utf-8-sig", "utf-16", "utf-32") else ("",)
    ):
        path.write_bytes(f"{mark}text\ngröße\n".encode(encoding))
        assert good(list(read_rows(path, encoding=encoding))) == [{"text": "größe"}]


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("größe über straße geht´s", "cp850"),
        ("заказ не пришёл", "cp1251"),
        ("заказ не пришёл", "koi8-r"),
        ("proszę o pieniądze", "cp1250"),
        ("Καλημέρα κόσμε", "cp1253"),
        ("注文が届きません", "shift_jis"),
        ("订单还没有到", "gb18030"),
    ],
)
def test_an_unknown_encoding_is_refused_with_those_that_read_as_text(
    tmp_path: Path, text: str, encoding: str
) -> None:
    with pytest.raises(
        DataError, match=r"a\.csv is neither UTF-8 nor CP1252: line 2 holds the byte"
    ) as caught:
        rows(tmp_path, "a.csv", f"id,text\n1,{text}\n".encode(encoding))
    assert f"{encoding} reads '" in caught.value.hint
    assert max((word for word in text.split() if not word.isascii()), key=len) in caught.value.hint


def test_a_large_file_is_sampled_and_what_contradicts_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encodings, "SAMPLE", 100)
    monkeypatch.setattr(encodings, "PIECE", 10)
    line, path = b"a,b\n", tmp_path / "a.csv"
    path.write_bytes(b"a,b\n" + line * 5000 + b"\x80,b\n")
    assert form_of(path).encoding == Encoding("cp1252", certain=False)  # the end is in the sample
    path.write_bytes(b"a,b\n" + line * 3000 + b"\x80,b\n" + line * 2050)
    assert form_of(path).encoding == UTF8
    with pytest.raises(
        DataError, match=r"a\.csv is not UTF-8: line 3002 holds the byte 0x80"
    ) as caught:
        list(read_rows(path))
    assert caught.value.hint.startswith("encoding: cp1252")
    umlauts = "ö".encode() * 4096  # pieces begin and end inside characters
    path.write_bytes(b"a\n" + umlauts + b"\n")
    assert form_of(path) == FileForm("csv", UTF8, 1, ",")


def test_form_of_a_text(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("text;label\r\n5 €, bitte;a\r\n".encode("cp1252"))
    assert form_of(path) == FileForm("csv", Encoding("cp1252", certain=False), 1, ";")
    assert form_of(path, encoding="cp1252").encoding == Encoding("cp1252")
    path.write_text("Tickets, 2024\n\ntext\tlabel\na, b\tc\nd\te\n")
    assert form_of(path) == FileForm("csv", UTF8, 3, "\t")
    (tmp_path / "a.json").write_text('{"a": 1}\n{"a": 2}\n')
    assert form_of(tmp_path / "a.json") == FileForm("jsonl", UTF8)


@pytest.mark.usefixtures("forked_readers")
def test_form_of_what_is_no_text(tmp_path: Path) -> None:
    title, header = row(1, "Tickets of 2024"), row(4, "text", "label", "day")
    book = write_xlsx(
        tmp_path / "a.xlsx",
        {"One": title + header + row(5, "a", "b") + row(6, "c", "d"), "Two": ""},
    )
    assert form_of(book) == FileForm("xlsx", None, 4, None, ("One", "Two"))
    assert good(list(read_rows(book)))[0] == {"text": "a", "label": "b", "day": ""}
    assert form_of(book, sheet="Two").header_row == 0
    assert columns_of(book, header_row=5) == ["a", "b"]
    with pytest.raises(UsageError, match="is no text"):
        form_of(book, encoding="utf-8")


def test_unknown_kind_lists_the_known(tmp_path: Path) -> None:
    for name, kind in (("a.dat", ".dat"), ("a", ""), ("a.parquet.gz", ".parquet.gz"), (".csv", "")):
        with pytest.raises(DataError, match=f"{name} has an unknown kind '{kind}'") as caught:
            rows(tmp_path, name, b"PK")
        assert caught.value.hint.startswith(
            "known: .csv, .tsv, .jsonl, .ndjson, .json, .parquet, .xlsx,"
        )


def test_columns_come_from_the_first_good_row_or_of_json_from_many(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('nonsense\n{"b": 1, "a": 2}\n')
    assert columns_of(tmp_path / "a.jsonl") == ["b", "a"]
    # a column was unknown whose key the first row lacks, as exporters leave out what is null
    for name, content in (
        ("c.jsonl", '{"b": 1}\n{"a": 2, "b": 3}\n'),
        ("c.json", '[{"b": 1}, {"a": 2}]'),
    ):
        (tmp_path / name).write_text(content)
        assert columns_of(tmp_path / name) == ["b", "a"]
    (tmp_path / "a.csv").write_text("text,category\nshort\n1,2\n")
    assert columns_of(tmp_path / "a.csv") == ["text", "category"]


# CSV for people


@pytest.mark.parametrize(
    ("cell", "written"),
    [
        ("=1+1", "'=1+1"),
        ("+49 170", "'+49 170"),
        ("-cmd", "'-cmd"),
        ("@sum", "'@sum"),
        ("\tx", "'\tx"),
        ("\rx", '"\'\rx"'),
        ("=", "'="),
        ("-", "'-"),
        ("-1-2", "'-1-2"),
        ("-0x1", "'-0x1"),
        ("-3.5", "-3.5"),
        ("+7", "+7"),
        ("-3,5", '"-3,5"'),
        ("-1e-5", "-1e-5"),
        ("-.5", "-.5"),
        ("-50%", "-50%"),
        (-3.5, "-3.5"),
        ("a=b", "a=b"),
        ("", ""),
        (None, ""),
        (True, "true"),
        ({"a": "ö"}, '"{""a"": ""ö""}"'),
        ("'quoted'", "'quoted'"),
        # parts that a spreadsheet with another separator cuts off, or that a line break does:
        # quotes do not hold there
        ("x;=1+1", "x;'=1+1"),
        ("x;=1+1;y", "x;'=1+1;y"),
        ("x; =1+1", "x; '=1+1"),
        ("x\t=1+1", "x\t'=1+1"),
        ("x\n=1+1", '"x\n\'=1+1"'),
        ("x;@SUM(A1)", "x;'@SUM(A1)"),
        ("x;-1+1", "x;'-1+1"),
        ("x;+(1)", "x;'+(1)"),
        ("x;-cmd|' /c calc'!A0", "x;'-cmd|' /c calc'!A0"),
        ('x;"=1', '"x;""\'=1"'),
        ({"a": ";=1;"}, '"{""a"": "";\'=1;""}"'),
        ("x;'=1", "x;''=1"),
        ("'=1", "''=1"),
        ("x;-5", "x;-5"),
        ("x;-5;+7%", "x;-5;+7%"),
        ("a\n- one (1)\n-----\n====", '"a\n- one (1)\n-----\n===="'),
        ("call\n+49 170 1234", '"call\n+49 170 1234"'),
        ("ok; @jane", "ok; @jane"),
        ("a;b=c", "a;b=c"),
    ],
)
def test_formulas_are_escaped_and_numbers_are_not(cell: Any, written: str) -> None:
    assert as_csv([{"a": cell, "b": 1}]) == f"a,b\n{written},1\n"


def test_the_own_separator_of_a_file_begins_no_formula() -> None:
    text = "a,=1;b,=2"
    (_, semicolons), (_, commas) = (
        as_csv([{"a": text}], separator=mark).splitlines() for mark in ";,"
    )
    assert (semicolons, commas) == ("\"a,'=1;b,'=2\"", '"a,=1;b,=2"')
    assert unescaped("a,'=1;b,'=2", separator=";") == text
    assert unescaped("'=a;'=1;'b") == "=a;=1;'b"
    assert (
        as_csv([{"a": '["x","+49(0)30"]'}], separator=";").splitlines()[1]
        == '"[""x"",""\'+49(0)30""]"'
    )


def test_columns_of_all_rows_are_written() -> None:
    assert as_csv([{"=a": 1}, {"b": 2}]) == "'=a,b\n1,\n,2\n"


# Invariants

KEEP = settings(
    deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


@given(
    st.integers(1, 4).flatmap(
        lambda width: st.tuples(
            st.lists(texts.filter(bool), min_size=width, max_size=width, unique=True),
            st.lists(st.lists(texts, min_size=width, max_size=width), max_size=5),
        )
    ),
    st.sampled_from([("a.csv", ","), ("a.tsv", "\t")]),
)
@KEEP
@example((["a"], [["\r"], ["\n"], ["\u2028"], [""]]), ("a.csv", ","))
@example((["a", "b"], [["\x00", '"'], ["\ufeff", " "]]), ("a.csv", ","))
def test_csv_round_trip(
    tmp_path: Path, drawn: tuple[list[str], list[list[str]]], kind: tuple[str, str]
) -> None:
    header, body = drawn
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=kind[1], quoting=csv.QUOTE_ALL)
    numbers = []
    for fields in [header, *body]:
        numbers.append(1 + len(re.findall(r"\r\n|\r|\n", out.getvalue())))
        writer.writerow(fields)
    found = rows(tmp_path, kind[0], out.getvalue())
    assert good(found) == [dict(zip(header, fields, strict=True)) for fields in body]
    assert [row.number for row in found] == numbers[1:]


@given(st.lists(st.dictionaries(texts, json_values, max_size=4), max_size=5))
@KEEP
def test_jsonl_round_trip(tmp_path: Path, values: list[dict[str, Any]]) -> None:
    assert write_jsonl(tmp_path / "a.jsonl", values) == len(values)
    assert good(list(read_rows(tmp_path / "a.jsonl"))) == values


@given(st.binary(max_size=200), st.sampled_from(["a.csv", "a.tsv", "a.jsonl"]))
@KEEP
@example(b'a,b\n"x"y,\x00', "a.csv")
@example(b"\xef\xbb\xbf", "a.jsonl")
@example(b"\xff\xfea\x00", "a.csv")
@example(b"a\r\rb\r", "a.csv")
@example(b'"', "a.csv")  # a header whose quote is never closed raised csv's own error
def test_any_bytes_are_rows_faults_or_a_data_error(
    tmp_path: Path, content: bytes, name: str
) -> None:
    try:
        found = rows(tmp_path, name, content)
    except DataError as error:
        assert error.message
        return
    numbers = [row.number for row in found]
    assert numbers == sorted(set(numbers))
    assert not any(row.columns for row in found if row.fault)


@given(
    st.text(st.sampled_from("'=+-@;,\t\r\n\" 1a(|!5%A"), max_size=12) | texts,
    st.sampled_from(",;\t|"),
)
@KEEP
@example("'=16", ",")  # the id of a reviewed row, which was then not in the queue
@example("+,-,=", "\t")
def test_any_text_in_a_review_sheet_comes_back_as_it_was(text: str, separator: str) -> None:
    (_, (cell,)) = csv.reader(
        io.StringIO(as_csv([{"a": text}], separator=separator), newline=""), delimiter=separator
    )
    assert unescaped(cell, separator=separator) == text


@given(st.lists(st.dictionaries(st.sampled_from("abc"), texts, min_size=3), min_size=1, max_size=4))
@KEEP
@example([{"a": "x;=1\n=2", "b": ";'=1", "c": "\t'=1;;=2"}])
@example([{"a": "one\rtwo", "b": "\r", "c": "\n"}])  # a CR was not quoted, and ended the row
def test_csv_for_people_reads_back(tmp_path: Path, values: list[dict[str, str]]) -> None:
    found = good(rows(tmp_path, "a.csv", as_csv(values)))
    assert [{name: unescaped(text) for name, text in row.items()} for row in found] == values


def test_a_child_that_is_killed_within_a_line_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # half a line was no JSON, and a traceback
    @contextlib.contextmanager
    def killed(*_: object, **options: object) -> Iterator[IO[bytes]]:
        yield io.BytesIO(b'{"columns": ["text"]}\n["one"]\n["tw')
        raise child.DiedError(-signal.SIGKILL, "")

    monkeypatch.setattr(child, "output", killed)
    (tmp_path / "a.parquet").touch()
    rows = read_rows(tmp_path / "a.parquet")
    assert next(rows) == Row(1, {"text": "one"})
    with pytest.raises(
        DataError, match="cannot be read as Parquet: it takes too much memory or time"
    ):
        next(rows)


@pytest.mark.parametrize(
    "said",
    ['["DataError", "no row", "more"]', '["os", "x", ""]', '["ValueError", "x", ""]', "{", "5"],
)
def test_a_child_refuses_by_an_expected_error_alone(said: str) -> None:
    refusal = child.DiedError(1, f"a warning\nslmctl refuses: {said}\n").refusal
    assert (refusal is not None) == ("DataError" in said)
    assert refusal is None or (type(refusal), refusal.message, refusal.hint) == (
        DataError,
        "no row",
        "more",
    )
