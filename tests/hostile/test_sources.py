"""Sources that are made to hurt: each ends with its documented code, within a bound on time and
memory.

A case is a class, a generator of the source, the exit code, and a part of the sentence. Sizes are
small here, and full with `SLMCTL_TORTURE=1`.
"""

from __future__ import annotations

import gzip
import json
import os
import resource
import signal
import sqlite3
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hostile.source_reading import SourceReading
from pyarrow import parquet
from support.odd_files import unix_socket
from support.scale import FULL
from support.workbooks import cell, row, write_ods, write_xlsx

from slmctl.config import PrepareConfig, Source, recipe
from slmctl.errors import DataError, UsageError
from slmctl.task import conversation_formats

SCALE = 10 if FULL else 1
SECONDS = 60  # that a case may take; the machine may be busy
MEMORY = 2200  # MB, of the process and of each of its children
WORKBOOK = 3300  # MB: a sheet is read as a whole
SECRET = "never-to-be-" + "seen"


@dataclass(frozen=True)
class Case:
    """One source, and how reading it ends.

    Attributes:
        make: Writes what the source needs into a folder, and gives its fields in the config.
        code: 0, or the exit code of the error.
        says: A part of the error's sentence; of code 0, of the faults of the rows.
    """

    group: str
    name: str
    make: Callable[[Path], dict[str, Any]]
    code: int
    says: str = ""
    limits: dict[str, float] = field(default_factory=dict)


def file(name: str, content: bytes | Callable[[Path], object]) -> Callable[[Path], dict[str, Any]]:
    def make(folder: Path) -> dict[str, Any]:
        path = folder / name
        if callable(content):
            content(path)
        else:
            path.write_bytes(content)
        return {"path": str(path)}

    return make


def table(columns: Callable[[], dict[str, Any]]) -> Callable[[Path], dict[str, Any]]:
    return file(
        "a.parquet", lambda path: parquet.write_table(pa.table(columns()), path, compression="zstd")
    )


def dictionary(rows: int, characters: int) -> pa.DictionaryArray:
    """A column of one text that its file holds once."""
    return pa.DictionaryArray.from_arrays(
        pa.array([0] * rows, pa.int32()), pa.array(["x" * characters])
    )


def lists_of_nothing() -> pa.Array:
    starts = pa.array(range(0, 100_000_001, 1_000_000), pa.int32())
    return pa.ListArray.from_arrays(starts, pa.nulls(100_000_000, pa.int8()))


def gzip_bomb(path: Path) -> None:
    path.write_bytes(gzip.compress(b"text\n" + b"x" * 100_000_000 * SCALE))


def shared_strings(path: Path) -> None:
    """A workbook whose cells all refer to one text."""
    rows = "".join(
        f'<row r="{k}"><c r="A{k}" t="s"><v>0</v></c></row>' for k in range(1, 20_000 * SCALE)
    )
    write_xlsx(path, {"One": rows})
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        space = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
        archive.writestr(
            "xl/sharedStrings.xml", f'<sst xmlns="{space}"><si><t>{"y" * 300_000}</t></si></sst>'
        )
        old = archive.read("xl/_rels/workbook.xml.rels").decode()
        kind = "http://schemas.openxmlformats.org/officeDocument/2006/relationships/sharedStrings"
        link = f'<Relationship Id="s" Type="{kind}" Target="sharedStrings.xml"/>'
    with_link = old.replace("</Relationships>", link + "</Relationships>").encode()
    rezip(path, {"xl/_rels/workbook.xml.rels": with_link})


def rezip(path: Path, changes: dict[str, bytes]) -> None:
    """Write an archive again with other contents of some files."""
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in (contents | changes).items():
            archive.writestr(name, content)


def lying_zip(path: Path) -> None:
    """A workbook whose directory names a size of 1 for a sheet that unpacks to 100 MB."""
    write_xlsx(path, {"One": row(1, "text") + " " * 100_000_000})
    raw = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\x01\x02", 24), (b"PK\x03\x04", 22)):
        place = raw.find(mark)
        while place >= 0:
            if struct.unpack_from("<I", raw, place + offset)[0] > 1_000_000:
                struct.pack_into("<I", raw, place + offset, 1)
            place = raw.find(mark, place + 4)
    path.write_bytes(raw)


def repeated_cells(path: Path) -> None:
    """A sheet of one cell that says that it stands there a billion times."""
    write_ods(path, [["text"], ["x" * 1000]])
    with zipfile.ZipFile(path) as archive:
        head, mark, tail = archive.read("content.xml").rpartition(b"<table:table-row")
    rezip(path, {"content.xml": head + mark + b' table:number-rows-repeated="1000000000"' + tail})


def nested(opening: str, depth: int) -> bytes:
    return (opening * depth).encode()


def not_utf8(folder: Path) -> dict[str, Any]:
    path = os.fsencode(folder) + b"/caf\xe9.csv"
    Path(os.fsdecode(path)).write_bytes(b"text,label\na,b\n")
    return {"path": os.fsdecode(path)}


def query(text: str, url: str = "sqlite:///crm.db") -> Callable[[Path], dict[str, Any]]:
    def make(folder: Path) -> dict[str, Any]:
        with sqlite3.connect(folder / "crm.db") as connection:
            connection.execute("create table tickets (text, label)")
            connection.execute("insert into tickets values ('a', 'b')")
        connection.close()
        return {"sql": {"url": url, "query": text}}

    return make


ENDLESS = "with recursive c(n) as (select 1 union all select n + 1 from c)"
FEW_SECONDS, SMALL = {"timeout_s": 1.5}, {"size_gb": 0.02}
FAR = f'<row r="1048576">{cell("XFD1048576", "x")}</row>'
DATES: dict[str, pa.Array] = {
    "timestamp in microseconds": pa.array([2**62], pa.timestamp("us")),
    "timestamp in milliseconds": pa.array([-(2**62)], pa.timestamp("ms")),
    "timestamp in seconds": pa.array([2**62], pa.timestamp("s")).cast(
        pa.timestamp("ms"), safe=False
    ),
    "timestamp in nanoseconds": pa.array([2**62 + 1], pa.timestamp("ns")),
    "day": pa.array([2**31 - 1], pa.int32()).cast(pa.date32()),
    "day before all": pa.array([-(2**31)], pa.int32()).cast(pa.date32()),
    "list of days": pa.array([[2**31 - 1, 0]], pa.list_(pa.int32())).cast(pa.list_(pa.date32())),
    "duration": pa.array([2**62], pa.duration("us")),
    "time of day": pa.array([2**62], pa.int64()).view(pa.time64("us")),
}

CASES = [
    # Sizes that a file only claims
    Case(
        "size",
        "Parquet: dictionary",
        table(lambda: {"text": dictionary(10_000, 1_000_000)}),
        3,
        "times its size",
    ),
    Case(
        "size",
        "Parquet: huge cells",
        table(lambda: {"text": dictionary(400, 40_000_000 * SCALE)}),
        3,
        "cannot be read as Parquet",
    ),
    Case(
        "size",
        "Parquet: one text",
        table(lambda: {"text": ["z" * 1_000_000] * 200}),
        3,
        "times its size",
    ),
    Case(
        "size",
        "Parquet: lists of nothing",
        table(lambda: {"text": lists_of_nothing()}),
        3,
        "cannot be read as Parquet",
    ),
    Case(
        "size",
        "Parquet: rows of nothing",
        table(lambda: {"text": pa.nulls(3_000_000, pa.string())}),
        3,
        "times its size",
    ),
    Case("size", "gzip", file("a.csv.gz", gzip_bomb), 3, "gzip bomb"),
    Case(
        "size",
        "workbook: shared text",
        file("a.xlsx", shared_strings),
        3,
        "cannot be read as a workbook",
    ),
    Case(
        "size",
        "workbook: directory that lies",
        file("a.xlsx", lying_zip),
        3,
        "cannot be read as a workbook",
    ),
    Case(
        "size",
        "workbook: repeated cells",
        file("a.ods", repeated_cells),
        3,
        "cannot be read as a workbook",
    ),
    Case(
        "size",
        "workbook: cell in the last corner",
        file("a.xlsx", lambda path: write_xlsx(path, {"One": row(1, "a") + FAR})),
        3,
        "too much memory",
    ),
    Case(
        "size",
        "JSON: a value of brackets",
        file("a.json", b'[{"a": [' + b"[]," * 3_000_000 + b"[]]}]"),
        0,
    ),
    Case(
        "size",
        "JSON: a value without an end",
        file("a.json", b'[{"a": "' + b"x" * 30_000_000),
        3,
        "not valid JSON",
    ),
    # Nesting
    Case(
        "nesting",
        "array of arrays",
        file("a.json", nested("[", 100_000 * SCALE)),
        3,
        "nested more than 100 deep",
    ),
    Case(
        "nesting",
        "line of arrays",
        file("a.jsonl", nested("[", 100_000 * SCALE)),
        0,
        "nested more than 100 deep",
    ),
    Case(
        "nesting",
        "objects",
        file("a.json", nested('[{"a":', 100_000)),
        3,
        "nested more than 100 deep",
    ),
    Case(
        "nesting",
        "line of objects",
        file("a.jsonl", nested('{"a":', 100_000)),
        0,
        "nested more than 100 deep",
    ),
    Case(
        "nesting",
        "beside the rows",
        file("a.json", b'{"x": ' + nested("[[[1],", 50_000)),
        3,
        "nested more than 100",
    ),
    # What is not a file
    Case("no file", "pipe without a writer", file("a.csv", os.mkfifo), 3, "it is a pipe"),
    Case("no file", "folder", file("a.csv", Path.mkdir), 3, "is a folder"),
    Case("no file", "socket", file("a.csv", unix_socket), 3, "device or socket"),
    Case(
        "no file",
        "endless device",
        file("a.csv", lambda path: path.symlink_to("/dev/zero")),
        3,
        "device or socket",
    ),
    # Names
    Case("name", "not UTF-8", not_utf8, 0),
    Case(
        "name",
        "too long",
        lambda folder: {"path": str(folder / ("n" * 300 + ".csv"))},
        3,
        "name too long",
    ),
    Case(
        "name",
        "too long a path",
        lambda folder: {"path": str(folder / ("n/" * 5000 + "a.csv"))},
        3,
        "name too long",
    ),
    Case(
        "name",
        "a database's, too long",
        query("select 1", f"sqlite:///{'n' * 300}.db"),
        3,
        "does not exist",
    ),
    Case("name", "NUL", lambda folder: {"path": str(folder / "a\0b.csv")}, 3, "is not a file"),
    # Dates that no calendar reaches
    *(
        Case("date", name, table(lambda values=values: {"day": values}), 0)
        for name, values in DATES.items()
    ),
    # Queries
    Case(
        "query",
        "endless",
        query(f"{ENDLESS} select max(n) as n from c order by 1"),
        3,
        "took longer",
        FEW_SECONDS,
    ),
    Case(
        "query",
        "endless rows",
        query(f"{ENDLESS} select n, hex(zeroblob(99)) as h from c"),
        3,
        "more than 0.02 GB",
        SMALL,
    ),
    Case(
        "query",
        "endless sort",
        query(f"{ENDLESS} select n, hex(zeroblob(999)) as h from c order by -n"),
        3,
        "the query failed",
        SMALL,
    ),
    Case(
        "query", "huge cell", query("select hex(zeroblob(900000000)) as h"), 3, "the query failed"
    ),
    Case(
        "query",
        "huge rows",
        query(f"{ENDLESS} select hex(zeroblob(4000000)) as h from c"),
        3,
        "more than",
        SMALL,
    ),
    # Values of the environment
    *(
        Case("secret", url, query("select 1 as n", url), code)
        for url, code in (
            ("sqlite:///${HIDDEN}.db", 3),
            ("${HIDDEN}", 2),
            ("${HIDDEN}://h/d", 2),
            ("sqlite:///crm.db?x=${HIDDEN}", 2),
            ("postgresql://u:${HIDDEN}@127.0.0.1:1/d", 9),
            ("postgresql://${HIDDEN}@127.0.0.1:1/${HIDDEN}", 9),
            ("postgresql://u@127.0.0.1:1/d?passfile=/${HIDDEN}&options=${HIDDEN}", 9),
            ("${HIDDEN_URL}", 9),
        )
    ),
]


LONG = (  # others end as they do
    "Parquet: rows of nothing",
    "Parquet: lists of nothing",
    "workbook: shared text",
    "workbook: repeated cells",
    "JSON: a value of brackets",
)


def environment() -> dict[str, str]:
    address = f"postgresql://{SECRET}:{SECRET}@127.0.0.1:1/{SECRET}"
    return {**os.environ, "HIDDEN": SECRET, "HIDDEN_URL": address, "PYTHONIOENCODING": "utf-8"}


@pytest.fixture(scope="module")
def reading() -> Iterator[SourceReading]:
    made = SourceReading(environment())
    yield made
    made.close()


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(
            case,
            id=f"{case.group}: {case.name}"[:80],
            marks=[pytest.mark.slow] * (case.name in LONG),
        )
        for case in CASES
    ],
)
def test_a_hostile_source_ends_as_documented(
    case: Case, reading: SourceReading, tmp_path: Path
) -> None:
    fields = case.make(tmp_path)
    before = {path.name for path in tmp_path.iterdir()}
    begun = time.monotonic()
    done = reading.read(tmp_path, fields, case.limits, timeout_s=SECONDS * SCALE)
    assert done.returncode == 0, done.stderr
    code, said, _, memory = json.loads(done.stdout)
    assert (code, SECRET in done.stdout + done.stderr) == (case.code, False), said
    assert case.says in " ".join(said)
    assert memory < (WORKBOOK if "workbook" in case.name else MEMORY)
    assert {path.name for path in tmp_path.iterdir()} - before <= {"runs"}
    assert not list(tmp_path.glob("runs/.sources/.draft-*"))
    assert time.monotonic() - begun < SECONDS * SCALE


def test_a_signal_is_heard_while_a_source_is_waited_for(tmp_path: Path) -> None:
    source = query(f"{ENDLESS} select max(n) as n from c")(tmp_path)
    config = {"project": "a", "base": "./base", "prepare": {"sources": [source]}}
    (tmp_path / "slmctl.yaml").write_text(json.dumps(config))
    command = [sys.executable, "-m", "slmctl", "-C", str(tmp_path), "prepare"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=environment()) as process:
        drafts = tmp_path / "runs" / ".sources"
        while not list(drafts.glob(".draft-*")) and process.poll() is None:
            time.sleep(0.05)
        time.sleep(1)  # the query is running by then
        process.send_signal(signal.SIGTERM)
        begun = time.monotonic()
        assert process.wait(SECONDS) == 128 + signal.SIGTERM
        assert time.monotonic() - begun < 10
        assert b"Traceback" not in process.communicate()[1]
    assert not list(drafts.glob("*"))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (os.mkfifo, "is neither a file nor a folder"),
        (unix_socket, "is neither a file nor a folder"),
        (lambda path: path.symlink_to("/dev/zero"), "is neither a file nor a folder"),
        (lambda path: path.symlink_to(path), "cannot be read: too many levels of symbolic links"),
        (lambda path: None, "does not exist"),
    ],
    ids=["pipe", "socket", "device", "circle", "nothing"],
)
@pytest.mark.parametrize("key", ["schema", "pseudonym_key"])
def test_a_path_of_the_config_that_is_no_file_is_refused_before_it_is_hashed(
    make: Callable[[Path], object], says: str, key: str, tmp_path: Path
) -> None:
    make(tmp_path / "file")
    section = PrepareConfig.model_validate(
        {"task": {"kind": "extract", "schema": tmp_path / "file"}}
        if key == "schema"
        else {"sensitive": {"email": "pseudonymise", "pseudonym_key": tmp_path / "file"}}
    )
    with pytest.raises(UsageError, match=says):
        recipe(section)


def test_a_path_of_the_config_that_is_too_long_is_refused(tmp_path: Path) -> None:
    for name in ("n" * 300, "n/" * 5000, "a\0b"):
        section = PrepareConfig.model_validate(
            {"task": {"kind": "extract", "schema": tmp_path / name}}
        )
        with pytest.raises(UsageError, match=r"cannot be read|does not exist"):
            recipe(section)


TEMPLATES = {
    "a product of loops": "{% for a in range(99999) %}{% for b in range(99999) %}{{ a }}{% endfor "
    "%}{% endfor %}",
    "a text that doubles": "{% set t = namespace(x=body) %}{% for a in range(60) %}{% set t.x = "
    "t.x ~ t.x %}"
    "{% endfor %}",
    "a constant that is computed early": "{{ body }}{{ 'a' * 9999999999 }}",
    "a filter of constants": "{{ body }}{{ 'a' | center(9999999999) }}",
    "a format": "{{ body }}{{ '%9999999999d' % 1 }}",
    "a power": "{{ body }}{{ 9 ** (9 ** 9) }}",
    "a list of lists": "{% for a in body|list * 9999999 %}{{ body|list * 9999999 }}{% endfor %}",
    "a macro that calls itself": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}{{ body }}",
    "parentheses": "{{ " + "(" * 20_000 + "body" + ")" * 20_000 + " }}",
    "minus signs": "{{ " + "-" * 5_000 + "1 }}{{ body }}",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_over_columns_is_bounded(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversation_formats, "TEMPLATE_S", 0.4)
    source = Source.model_validate({"path": "a.csv", "input": TEMPLATES[name], "output": "label"})
    begun, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError):
        conversation_formats.recognise(source, ["body", "label"]).read(
            {"body": "abc" * 100, "label": "x"}
        )
    assert time.monotonic() - begun < SECONDS
    # kB of this process
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000
