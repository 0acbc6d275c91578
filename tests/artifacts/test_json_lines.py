"""Append-only files of JSON lines: torn ends, other writers, and
lines that are taken out meanwhile.
"""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
from pathlib import Path

import pytest

from slmctl.artifacts import json_lines
from slmctl.artifacts.json_lines import JsonLines


def numbers(path: Path) -> list[int]:
    return [int(fields["n"]) for fields in json_lines.read(path)]


@pytest.mark.parametrize("block", [1 << 20, 7])
def test_a_torn_line_is_passed_over_and_cut_off_by_the_next_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(json_lines, "_BLOCK", block)
    path = tmp_path / "lines.jsonl"
    path.write_text('{"n": 0, "text": "torn from the fir')
    with JsonLines(path) as lines:
        lines.append({"n": 1})
        with path.open("a") as torn:  # another writer, which a kill ended
            torn.write('{"n": 2, "text": "wh')
        assert numbers(path) == [1]
        lines.append({"n": 3, "text": "\udc80"})
        with path.open("a") as edited:  # by hand, without an end
            edited.write('{"n": 4}')
        lines.append({"n": 5})
    assert numbers(path) == [1, 3, 4, 5]
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_a_disk_that_takes_a_part_of_a_line_keeps_nothing_of_it(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    code = (
        "import resource, sys; from pathlib import Path; from slmctl.artifacts.json_lines import "
        "JsonLines\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100)); lines = "
        "JsonLines(Path(sys.argv[1]))\n"
        "lines.append({'n': 1})\n"
        "try:\n    lines.append({'n': 2, 'text': 'x' * 200})\n"
        "except OSError as error:\n    lines.append({'n': 3, 'error': error.errno})\n"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)
    assert [json.loads(line)["n"] for line in path.read_text().splitlines()] == [1, 3]


def test_a_full_disk_is_an_error_and_the_file_goes_on_after_it(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.symlink_to("/dev/full")
    lines = JsonLines(path, sync=False)
    with pytest.raises(OSError, match="No space left"):
        lines.append({"n": 1})
    path.unlink()
    lines.append({"n": 2})
    lines.flush()
    lines.close()
    assert numbers(path) == [2]


def test_lines_are_taken_out_with_mode_and_order_kept_and_torn_ones_with_them(
    tmp_path: Path,
) -> None:
    path = tmp_path / "lines.jsonl"
    with JsonLines(path, mode=0o600) as lines:
        for n in range(5):
            lines.append({"n": n})
    with path.open("a") as torn:
        torn.write('{"n": 9, "text": "a secr')
    before = path.stat()
    assert json_lines.rewrite(path, lambda fields: True) == 0
    assert path.stat().st_ino == before.st_ino  # nothing to do, nothing done
    assert json_lines.rewrite(path, lambda fields: int(fields["n"]) % 2 == 0) == 2
    assert (numbers(path), path.stat().st_mode) == ([0, 2, 4], before.st_mode)
    assert "secr" not in path.read_text()
    assert [entry.name for entry in tmp_path.iterdir()] == ["lines.jsonl"]


def add(path: Path, first: int, count: int) -> None:
    with JsonLines(path, sync=False) as lines:
        for n in range(first, first + count):
            lines.append({"n": n})


def test_no_line_is_lost_while_others_are_taken_out(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.touch()
    fork = multiprocessing.get_context("fork")
    writers = [fork.Process(target=add, args=(path, 1000 * k, 1000)) for k in range(3)]
    for writer in writers:
        writer.start()
    gone = 0
    while any(writer.is_alive() for writer in writers):
        gone += json_lines.rewrite(path, lambda fields: int(fields["n"]) % 3 > 0)
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    gone += json_lines.rewrite(path, lambda fields: int(fields["n"]) % 3 > 0)
    assert gone == 1000
    assert sorted(numbers(path)) == [n for n in range(3000) if n % 3]
    assert all(json.loads(line) for line in path.read_text().splitlines())
