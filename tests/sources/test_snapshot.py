"""Sources that are no files: what they hold becomes a file, what
is secret stays out of everything.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError
from support import hub as hub_server
from support import postgres, tiny
from support.forks import Forks
from support.hub import COMMIT

from slmctl import config, console
from slmctl.config import Source, SourceLimits
from slmctl.errors import (
    DataError,
    IntegrityError,
    LockedError,
    MissingError,
    NetworkError,
    SlmctlError,
    UsageError,
)
from slmctl.network import credentials
from slmctl.pipeline import gathering
from slmctl.pipeline.graph import Project
from slmctl.sources import snapshot, sql, sql_address
from slmctl.sources.rows import read_rows

pytestmark = pytest.mark.usefixtures("forked_readers")
LIMITS = SourceLimits()
SECRET = "never" + "-to-be-seen"


def source(**fields: Any) -> Source:
    return Source.model_validate(fields)


def rows_of(found: Source) -> list[dict[str, Any]]:
    rows = list(read_rows(found.local, **found.reading))
    assert not any(row.fault for row in rows)
    return [row.columns for row in rows]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where copies go, in a project."""
    return tmp_path / "project" / "runs" / ".sources"


# Databases


@pytest.fixture(scope="module")
def server() -> Iterator[postgres.Server]:
    if postgres.binary("postgres") is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    with postgres.running() as running:
        running.execute(
            f"create role reader login password '{postgres.READER_PASSWORD}'",
            "create table tickets as select n as id, 'ticket ' || n as text, 'kind ' || n % 3 as "
            "category"
            " from generate_series(1, 2500) n",
            "create table written (n int)",
            "grant all on tickets, written to public",
            "create function write() returns int language sql as 'insert into written values (1) "
            "returning n'",
        )
        yield running


@pytest.fixture
def address(server: postgres.Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """The server's address for the reader, whose password comes from the environment."""
    monkeypatch.setenv("READER_PASSWORD", postgres.READER_PASSWORD)
    return f"postgresql://reader:${{READER_PASSWORD}}@127.0.0.1:{server.port}/postgres"


def test_a_query_becomes_a_file_of_its_rows(address: str, folder: Path) -> None:
    asked = source(
        sql={"url": address, "query": "select id, text, category from tickets order by id"}
    )
    (found,) = snapshot.gather([asked], folder, LIMITS)
    assert (found.sql, found.local.parent, found.local.suffix) == (None, folder, ".jsonl")
    rows = rows_of(found)
    assert len(rows) == 2500
    assert rows[-1] == {"id": 2500, "text": "ticket 2500", "category": "kind 1"}
    assert stat.S_IMODE(found.local.stat().st_mode) == 0o600
    assert [path.name for path in folder.iterdir()] == [found.local.name]
    assert snapshot.gathered([asked], folder) == [found]


def test_a_database_s_types_become_what_json_has(address: str, folder: Path) -> None:
    query = r"""
        select 1.10::numeric as price, 12345678901234567890::numeric as big, date '2026-11-24' as day,
               timestamptz '2026-11-24 12:00:00+02' at time zone 'UTC' as at, true as yes, null::text as nothing,
               jsonb_build_object('a', array[1, 2]) as json, '\x6869'::bytea as text, '\xff00'::bytea as bytes,
               array['x', 'y'] as list, 'NaN'::float8 as nan, 1.5::float8 as half, interval '90 min' as span,
               'f47ac10b-58cc-4372-a567-0e02b2c3d479'::uuid as id, '10.0.0.1'::inet as ip order by 1
    """
    (found,) = snapshot.gather([source(sql={"url": address, "query": query})], folder, LIMITS)
    assert rows_of(found) == [
        {
            "price": "1.10",
            "big": "12345678901234567890",
            "day": "2026-11-24",
            "at": "2026-11-24T10:00:00",
            "yes": True,
            "nothing": None,
            "json": {"a": [1, 2]},
            "text": "hi",
            "bytes": None,
            "list": ["x", "y"],
            "nan": None,
            "half": 1.5,
            "span": "1:30:00",
            "id": "f47ac10b-58cc-4372-a567-0e02b2c3d479",
            "ip": "10.0.0.1",
        }
    ]


def test_a_query_is_passed_on_as_it_is(address: str, folder: Path) -> None:
    # SQLAlchemy's text() takes `:name` for a parameter, psycopg takes `%` for one, inside quotes
    # too
    query = "select ':name at 10:30' as a, '100%' as b, '%s %(x)s' as c order by 1"
    (found,) = snapshot.gather([source(sql={"url": address, "query": query})], folder, LIMITS)
    assert rows_of(found) == [{"a": ":name at 10:30", "b": "100%", "c": "%s %(x)s"}]


@pytest.mark.parametrize(
    ("query", "fault"),
    [
        ("insert into written values (1) returning n", "syntax error"),
        ("select write() as n order by 1", "cannot execute INSERT in a read-only transaction"),
        ("select 1 as n; delete from tickets", "multiple commands"),
        ("drop table tickets", "syntax error"),
        ("select nothing from tickets", 'column "nothing" does not exist'),
        # rows had been written by then
        ("select 1 / (2400 - id) as n from tickets order by id", "division by zero"),
        ("select 1 as a, 2 as a order by 1", "the query names a column twice: a, a"),
        ("", "syntax error"),
    ],
)
def test_a_query_that_is_no_reading_is_refused(
    server: postgres.Server, address: str, folder: Path, query: str, fault: str
) -> None:
    with pytest.raises(DataError, match=re.escape(fault)):
        snapshot.gather([source(sql={"url": address, "query": query})], folder, LIMITS)
    assert list(folder.iterdir()) == []
    assert server.execute("select count(*) from tickets") == [(2500,)]
    assert server.execute("select count(*) from written") == [(0,)]


def test_an_address_may_come_from_the_environment_as_a_whole(
    server: postgres.Server, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPASSWORD", postgres.OWNER_PASSWORD)
    monkeypatch.setenv(
        "CRM", f"postgresql://owner@/postgres?host={server.folder}&port={server.port}"
    )
    (found,) = snapshot.gather(
        [source(sql={"url": "${CRM}", "query": "select 1 as one order by 1"})], folder, LIMITS
    )
    assert rows_of(found) == [{"one": 1}]


@pytest.mark.parametrize(
    ("url", "kind", "said"),
    [
        (
            "postgresql://reader:{secret}@127.0.0.1:{port}/postgres",
            NetworkError,
            "password authentication failed",
        ),
        ("postgresql://reader:{secret}@127.0.0.1:1/postgres", NetworkError, "cannot be reached"),
        (
            "postgresql://reader:{secret}@127.0.0.1:{port}/{secret}",
            NetworkError,
            "cannot be reached",
        ),
        (
            "postgresql://reader@127.0.0.1:{port}/postgres?passfile={secret}",
            NetworkError,
            "cannot be reached",
        ),
        ("reader:{secret}@127.0.0.1/postgres", UsageError, "is malformed"),
        ("nothing://reader:{secret}@127.0.0.1/postgres", UsageError, "Can't load plugin"),
        ("mysql://reader:{secret}@127.0.0.1/postgres", MissingError, "needs the package 'MySQLdb'"),
        (
            "postgresql://reader:${{UNSET}}@127.0.0.1/postgres",
            UsageError,
            "the variable UNSET is not set",
        ),
    ],
)
def test_no_error_names_the_password(
    server: postgres.Server,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    url: str,
    kind: type[SlmctlError],
    said: str,
) -> None:
    url = url.format(secret=SECRET, port=server.port)
    with pytest.raises(kind, match=said) as caught:
        snapshot.gather([source(sql={"url": url, "query": "select 1 as one"})], folder, LIMITS)
    spoken = capsys.readouterr()
    assert SECRET not in f"{caught.value.message} {caught.value.hint} {spoken.out} {spoken.err}"


def test_the_host_is_said_before_it_is_asked(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    console.set_level(0)
    url = f"postgresql://reader:{SECRET}@127.0.0.1:1/crm"
    with pytest.raises(NetworkError):
        snapshot.gather([source(sql={"url": url, "query": "select 1 as one"})], folder, LIMITS)
    said = capsys.readouterr().err
    assert "asking the postgresql database on 127.0.0.1" in said
    assert "no ORDER BY" in said


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://u:pw@h/d", "postgresql://u:***@h/d"),
        ("postgresql+psycopg://u@tenant:p@w@h/d?x=1", "postgresql+psycopg://u@tenant:***@h/d?x=1"),
        ("postgresql://u:p/w@h/d", "postgresql://u:***@h/d"),
        ("postgresql://u:${PW}@h:5432/d", "postgresql://u:${PW}@h:5432/d"),
        ("postgresql://h:5432/d?password=pw&x=1", "postgresql://h:5432/d?password=***&x=1"),
        ("mssql+pyodbc://?odbc_connect=PWD%3Dpw", "mssql+pyodbc://?odbc_connect=***"),
        ("u:pw@h/d", "u:***@h/d"),
        ("sqlite:///a.db", "sqlite:///a.db"),
    ],
)
def test_an_address_is_masked(url: str, shown: str) -> None:
    assert credentials.mask(url) == shown
    made = config.Sql(url=url, query="select 1")
    assert made.model_dump()["url"] == shown
    assert "pw" not in repr(made) + str(made)


def test_a_fault_in_the_config_does_not_show_the_password() -> None:
    with pytest.raises(UsageError) as caught:
        config.parse(
            f"project: a\nbase: b\nprepare: {{sources: [{{sql: 'postgresql://u:{SECRET}@h/d'}}]}}"
        )
    assert SECRET not in caught.value.message
    with pytest.raises(UsageError) as caught:
        config.parse(
            "project: a\nbase: b",
            [f"prepare.sources.url='postgresql://u:{SECRET}@h/d'", f"x://u:{SECRET}@h"],
        )
    assert SECRET not in caught.value.message


@pytest.fixture
def tickets(folder: Path) -> Path:
    """An SQLite file beside slmctl.yaml."""
    root = folder.parents[1]
    root.mkdir(parents=True, exist_ok=True)
    with sqlite3.connect(root / "crm.db") as connection:
        connection.execute("create table tickets (text, category)")
        connection.executemany(
            "insert into tickets values (?, ?)", [("one", "a"), (b"\xff", 2.5), (None, 1)]
        )
    connection.close()
    return root / "crm.db"


def test_sqlite(tickets: Path, folder: Path) -> None:
    asked = source(sql={"url": "sqlite:///crm.db", "query": "select * from tickets order by rowid"})
    (found,) = snapshot.gather([asked], folder, LIMITS)
    assert rows_of(found) == [
        {"text": "one", "category": "a"},
        {"text": None, "category": 2.5},
        {"text": None, "category": 1},
    ]


@pytest.mark.parametrize(
    ("url", "query", "fault"),
    [
        ("sqlite:///crm.db", "delete from tickets", "not authorized"),
        ("sqlite:///crm.db", "attach database 'new.db' as n", "not authorized"),  # it made a file
        ("sqlite:///crm.db", "vacuum into 'new.db'", "authorization denied"),
        (
            "sqlite:///file:new.db?mode=rwc&uri=true",
            "create table t (n)",
            "file:new.db?mode=rwc&uri=true' does not exist",
        ),
        (
            "sqlite+pysqlite:///file%3Anew.db?mode=rwc&uri=true",
            "create table t (n)",
            "does not exist",
        ),
        ("sqlite:///file:///new.db?mode=memory&uri=1", "create table t (n)", "does not exist"),
        ("sqlite:///file:crm.db?mode=rwc&uri=true", "create table t (n)", "not authorized"),
        (
            "sqlite:///file:crm.db?mode=rw&cache=shared&uri=true",
            "delete from tickets",
            "has the parameter 'cache'",
        ),
        (
            "sqlite:///crm.db?mode=rwc&uri=true",
            "insert into tickets values (1, 2) returning text",
            "not authorized",
        ),
        ("sqlite:///crm.db?vfs=unix-dotfile", "select 1 as n", "has the parameter 'vfs'"),
        ("sqlite:///crm.db", "pragma journal_mode = wal", "not authorized"),
        ("sqlite:///crm.db", "pragma writable_schema = 1", "not authorized"),
        ("sqlite:///crm.db", "select load_extension('x')", "not authorized"),
        ("sqlite://", "vacuum into 'new.db'", "authorization denied"),
        ("sqlite://", "attach 'new.db' as n", "not authorized"),
        ("sqlite:///crm.db", "pragma user_version", ""),
        ("sqlite:///crm.db", "begin", "it is no SELECT"),
        (
            "sqlite:///none.db",
            "select 1",
            "the database file of 'sqlite:///none.db' does not exist",
        ),
        ("sqlite:///slmctl.yaml", "select * from tickets", "file is not a database"),
    ],
)
def test_sqlite_is_only_read(tickets: Path, folder: Path, url: str, query: str, fault: str) -> None:
    (tickets.parent / "slmctl.yaml").write_text("project: a\n" * 100)
    before = tickets.read_bytes(), sorted(tickets.parent.iterdir())
    with (
        pytest.raises((DataError, UsageError), match=re.escape(fault))
        if fault
        else contextlib.nullcontext()
    ):
        snapshot.gather([source(sql={"url": url, "query": query})], folder, LIMITS)
    assert (
        tickets.read_bytes(),
        [path for path in sorted(tickets.parent.iterdir()) if path.name != "runs"],
    ) == before


def test_an_address_keeps_its_harmless_parameters(tickets: Path) -> None:
    asked = sql_address.parse("sqlite:///crm.db?timeout=7&mode=rwc").read_only(tickets.parent)
    assert asked.url.query == {"timeout": "7", "mode": "ro", "uri": "true"}
    with pytest.raises(DataError):  # it was a traceback
        sql_address.parse("sqlite:///~nobody-here/crm.db").read_only(tickets.parent)


def test_a_copy_is_whole_or_not_there(tickets: Path, folder: Path) -> None:
    asked = source(
        sql={
            "url": "sqlite:///crm.db",
            "query": "select text, category from tickets order by rowid",
        }
    )
    (found,) = snapshot.gather([asked], folder, LIMITS)
    before = found.local.read_bytes()
    (folder / f".draft-{found.local.name}").write_text("of a process that was killed")
    with sqlite3.connect(tickets) as connection:
        connection.execute("drop table tickets")
    connection.close()
    with pytest.raises(DataError, match="no such table"):
        snapshot.gather([asked], folder, LIMITS)
    assert [path.name for path in folder.iterdir()] == [found.local.name]
    assert found.local.read_bytes() == before


def test_a_source_that_was_not_gathered_says_what_to_do(folder: Path) -> None:
    for asked in (
        source(sql={"url": f"postgresql://u:{SECRET}@h/d", "query": "select 1"}),
        source(hf=f"acme/tickets@{COMMIT}"),
    ):
        with pytest.raises(IntegrityError, match="there is no copy of the source") as caught:
            snapshot.gathered([asked], folder)
        assert caught.value.hint == "slmctl prepare"
        assert SECRET not in caught.value.message


def test_a_pipe_is_refused_and_not_waited_for(folder: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "rows.csv")
    with pytest.raises(DataError, match=r"rows\.csv is not a file: it is a pipe") as caught:
        snapshot.gather([source(path=tmp_path / "rows.csv")], folder, LIMITS)
    assert caught.value.hint == "write the rows to a file first: cat > rows.csv"


def test_standard_input_is_no_source() -> None:
    with pytest.raises(ValidationError, match=r"standard input is no source.*cat > rows\.csv"):
        source(path="-", format="csv")


def test_the_child_that_asks_a_database_starts_without_the_config() -> None:
    # it once imported pydantic and every section, which took longer than most queries
    modules = "slmctl.sources.row_child, slmctl.sources.sql_address, slmctl.network.guard"
    code = f"import sys, {modules}\nsys.exit(int('pydantic' in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_files_stay_where_they_are(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\none\n")
    asked = [source(path=tmp_path / "a.csv"), source(path=tmp_path / "missing.csv")]
    assert snapshot.gather(asked, folder, LIMITS) == asked


# A hub on the loopback. Its address is read when the client is imported, hence the child processes.


FILES = {
    "README.md": b"# Tickets\n",
    "dataset_infos.json": b"{}",
    "data/train-0.csv": b"text,category\none,a\n",
    "data/train-1.csv": b"text,category\ntwo,b\n",
    "data/test.jsonl": b'{"text": "three", "category": "c"}\n',
    "load.py": b"raise SystemExit\n",
}


@pytest.fixture
def hub() -> Iterator[hub_server.Hub]:
    with hub_server.running() as server:
        server.add("datasets/acme/tickets", dict(FILES))
        yield server


CHILD = """
import json, sys
from pathlib import Path
from slmctl.sources import snapshot
from slmctl.network import guard
from slmctl.config import Source, SourceLimits
from slmctl.errors import SlmctlError
limits = SourceLimits(**json.loads(sys.argv[3]))
guard.seal()
for fields in json.loads(sys.argv[2]):
    try:
        found = snapshot.gather([Source.model_validate(fields)], Path(sys.argv[1]), limits)
        print(json.dumps([[one.title, str(one.local)] for one in found]))
    except SlmctlError as error:
        print(json.dumps([type(error).__name__, error.message, error.hint]))
"""


def fetch(
    url: str, folder: Path, *sources: dict[str, str], **limits: float
) -> tuple[list[list[Any]], str]:
    """Fetch sources one by one in a process of its own: the outcome of each, and what it said."""
    env = hub_server.environment(url, folder)
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(folder), json.dumps(sources), json.dumps(limits)],
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()], done.stderr


def test_a_pinned_data_set_is_fetched_once(hub: hub_server.Hub, folder: Path) -> None:
    asked = {"hf": f"acme/tickets@{COMMIT}", "file": "data/train-*.csv"}
    (found,), said = fetch(hub.url, folder, asked)
    assert [title for title, _ in found] == [
        "acme/tickets/data/train-0.csv",
        "acme/tickets/data/train-1.csv",
    ]
    assert [Path(path).read_bytes() for _, path in found] == [
        FILES["data/train-0.csv"],
        FILES["data/train-1.csv"],
    ]
    assert "asking the hub for acme/tickets" in said
    assert not any("load.py" in path for path in hub.asked)
    hub.asked.clear()
    (again,), said = fetch(hub.url, folder, asked)
    assert (again, said, hub.asked) == (found, "", [])


UNPINNED = "source 'hf: {}' is not pinned: what it names can change"
PIN = f"put this line into slmctl.yaml: hf: acme/tickets@{COMMIT}"
AMONG = "file: NAME or a pattern chooses among: data/train-0.csv, data/train-1.csv, data/test.jsonl"


REFUSED: list[tuple[dict[str, str], str, str, str | None]] = [
    ({"hf": "acme/tickets"}, "UsageError", UNPINNED.format("acme/tickets"), PIN),
    ({"hf": "acme/tickets@main"}, "UsageError", UNPINNED.format("acme/tickets@main"), PIN),
    ({"hf": f"acme/tickets@{COMMIT}"}, "UsageError", "acme/tickets has 3 data files", AMONG),
    (
        {"hf": f"acme/tickets@{COMMIT}", "file": "*.parquet"},
        "UsageError",
        "acme/tickets has no data file '*.parquet'",
        AMONG,
    ),
    (
        {"hf": f"acme/other@{COMMIT}", "file": "*"},
        "NetworkError",
        "the hub gave no acme/other:",
        None,
    ),
    ({"hf": "no-organisation"}, "UsageError", "hf: no-organisation is malformed", None),
]


def test_a_data_set_that_cannot_be_fetched(hub: hub_server.Hub, folder: Path) -> None:
    outcomes, _ = fetch(hub.url, folder, *(fields for fields, *_ in REFUSED))
    for (found, said, advice), (fields, kind, message, hint) in zip(outcomes, REFUSED, strict=True):
        assert (found, said[: len(message)]) == (kind, message), fields
        assert hint is None or advice == hint
    assert not any("/resolve/" in path for path in hub.asked)


def test_a_file_that_is_not_the_commit_s_is_refused(hub: hub_server.Hub, folder: Path) -> None:
    hub.damaged.add("data/test.jsonl")
    ((kind, message, _),), _ = fetch(
        hub.url, folder, {"hf": f"acme/tickets@{COMMIT}", "file": "data/test.jsonl"}
    )
    assert (kind, message[:46]) == (
        "IntegrityError",
        "data/test.jsonl is not what the hub says it is",
    )
    assert not list(folder.glob("hf-*"))


def test_a_data_set_that_takes_too_long_is_refused(hub: hub_server.Hub, folder: Path) -> None:
    both = {"hf": f"acme/tickets@{COMMIT}", "file": "data/train-*.csv"}
    ((kind, message, _),), _ = fetch(hub.url, folder, both, timeout_s=1e-9)
    assert (kind, message) == (
        "DataError",
        "the data set acme/tickets took longer than 1e-09 s (prepare.limits.timeout_s)",
    )
    assert not list(folder.glob("hf-*"))


# From the command line


def configure(desk: Path, sources: list[dict[str, Any]]) -> None:
    values = yaml.safe_load((desk / "slmctl.yaml").read_text())
    values["prepare"]["sources"] = sources
    (desk / "slmctl.yaml").write_text(yaml.safe_dump(values))


def test_prepare_reads_a_database_and_no_file_holds_the_password(
    stages: Forks, server: postgres.Server, desk: Path
) -> None:
    pairs = tiny.rows(300)
    server.execute("drop table if exists desk", "create table desk (text text, category text)")
    values = ", ".join(f"('{text}', '{category}')" for text, category in pairs)
    server.execute(f"insert into desk values {values}", "grant select on desk to public")
    query = "select text, category from desk order by text"
    url = f"postgresql://owner:{postgres.OWNER_PASSWORD}@127.0.0.1:{server.port}/postgres"
    configure(desk, [{"sql": {"url": url, "query": query}, "input": "text", "output": "category"}])
    done = stages.run(desk, "prepare", "-v")
    path = Path(tiny.ok(done))
    assert json.loads((path / "manifest.json").read_text())["metrics"]["rows_in"] == 300
    shown = stages.run(desk, "config", "show")
    assert "owner:***@127.0.0.1" in shown.stdout
    assert postgres.OWNER_PASSWORD not in done.stdout + done.stderr + shown.stdout + shown.stderr
    holders = [
        file.name
        for file in (desk / "runs").rglob("*")
        if file.is_file() and postgres.OWNER_PASSWORD.encode() in file.read_bytes()
    ]
    assert holders == []
    # the same rows at another address, with the password in the environment: the same recipe
    url = f"postgresql://owner:${{PW}}@localhost:{server.port}/postgres"
    configure(desk, [{"sql": {"url": url, "query": query}, "input": "text", "output": "category"}])
    again = stages.run(desk, "prepare", env={"PW": postgres.OWNER_PASSWORD})
    assert Path(tiny.ok(again)) == path
    assert "current" in again.stderr


def test_commands_after_prepare_take_its_copy(stages: Forks, desk: Path) -> None:
    with sqlite3.connect(desk / "crm.db") as connection:
        connection.execute("create table tickets (text, category)")
        connection.executemany("insert into tickets values (?, ?)", tiny.rows(300))
    connection.close()
    sql = {"url": "sqlite:///crm.db", "query": "select text, category from tickets order by rowid"}
    configure(desk, [{"sql": sql, "input": "text", "output": "category"}])
    refused = stages.run(desk, "finetune", "--preview", "1")
    assert refused.returncode == 7
    assert "there is no copy of the source 'sqlite:///crm.db'" in refused.stderr
    assert "hint: slmctl prepare" in refused.stderr
    path = Path(tiny.ok(stages.run(desk, "prepare")))
    (desk / "crm.db").unlink()
    project = Project(root=desk, config=config.load(desk / config.FILENAME))
    assert project.request("prepare").path == path
    gone = stages.run(desk, "prepare")
    assert gone.returncode == 3
    assert "the database file of 'sqlite:///crm.db' does not exist" in gone.stderr


def test_two_who_gather_wait_for_each_other(desk: Path) -> None:
    from slmctl.artifacts import locks

    configure(desk, [{"sql": {"url": "sqlite:///crm.db", "query": "select 1"}}])
    project = Project(root=desk, config=config.load(desk / config.FILENAME), wait=False)
    held = locks.lock(desk / "runs" / ".locks" / "sources", wait=False, on_wait=lambda holder: None)
    with held, pytest.raises(LockedError):
        gathering.gather_sources(project)


def test_where_a_query_goes_is_said_without_its_user() -> None:
    url = f"postgresql://somebody:{SECRET}@db.example:5432/crm"
    assert sql.place(url) == "the postgresql database on db.example"
    assert sql.place("sqlite:///crm.db") == "the sqlite database on this machine"
