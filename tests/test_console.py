"""What is shown: cleaned of what a terminal would obey, on stderr, and as quiet as asked."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from support import ROOT

from slmctl import console


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b[2J\x1b[1;1Hclear", "clear"),
        ("\x1b[?1049hscreen", "screen"),
        ("\x1b[>4;2mkeys", "keys"),
        ("\x1b]0;title\x07text", "text"),
        ("\x1b]8;;https://example.invalid\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1b]52;c;cm0gLXJm\x07clipboard", "clipboard"),
        ("\x9b31mC1", "31mC1"),
        ("\x9d0;title\x9ctext", "0;titletext"),
        ("\x1bcreset", "creset"),
        ("\x1b[31", "[31"),
        ("\x1b]0;never closed", "]0;never closed"),
        ("over\rwritten\x08\x7f", "overwritten"),
        ("\x00\x07\x0b\x0c", ""),
        ("user\u202egpj.exe", "usergpj.exe"),
        ("\u2066a\u2067b\u2068c\u2069\u202a\u202b\u202c\u202d", "abc"),
        ("line\n\ttab", "line\n\ttab"),
        ("größe 日本 😀 שלום", "größe 日本 😀 שלום"),
    ],
    ids=ascii,
)
def test_clean(raw: str, shown: str) -> None:
    assert console.clean(raw) == shown


@given(
    st.lists(
        st.sampled_from(["\x1b", "[", "]", "0;", "31m", "\x07", "\\", "\x9b", "\u202e", "a", "\n"]),
        max_size=15,
    )
)
@settings(deadline=None, max_examples=200)
def test_nothing_a_terminal_obeys_is_left(parts: list[str]) -> None:
    shown = console.clean("".join(parts))
    assert not set(shown) & {"\x1b", "\x07", "\x9b", "\u202e"}
    assert console.clean(shown) == shown


@given(st.text(st.characters(exclude_categories=["C"], include_characters="\n\t"), max_size=40))
@settings(deadline=None, max_examples=100)
def test_plain_text_is_left_alone(text: str) -> None:
    assert console.clean(text) == text


FIGURES: dict[Callable[[Any], str], dict[float, str]] = {
    console.duration: {
        0: "0.0 s",
        0.44: "0.4 s",
        9.94: "9.9 s",
        9.96: "10 s",
        59.4: "59 s",
        59.6: "1 min 00 s",
        200: "3 min 20 s",
        3599.4: "59 min 59 s",
        3599.6: "1 h 00 min",
        7500: "2 h 05 min",
        90_000: "25 h 00 min",
    },
    # a share is not rounded to nothing or all, unless four decimals say as little
    console.percent: {
        0.925: "92.5 %",
        0.0: "0.0 %",
        1.0: "100.0 %",
        0.9999: "99.99 %",
        0.00031: "0.03 %",
        1e-9: "0.0 %",
        1 - 1e-9: "100.0 %",
    },
    console.size: {
        0: "0 B",
        999: "999 B",
        1000: "1.0 kB",
        98_400_000: "98.4 MB",
        999_949: "999.9 kB",
        999_999: "1.0 MB",
        1_200_000_000: "1.20 GB",
        64_000_000_000: "64.00 GB",
    },
}


@pytest.mark.parametrize("write", FIGURES, ids=lambda write: write.__name__)
def test_figures(write: Callable[[Any], str]) -> None:
    assert {value: write(value) for value in FIGURES[write]} == FIGURES[write]


def test_percent_has_one_form() -> None:
    # once `92.0%` in the terminal, `0.9200` in a gate and `92.0 %` in the README
    sources = [path for path in (ROOT / "slmctl").rglob("*.py") if path.name != "console.py"]
    assert len(sources) > 100
    assert [
        path for path in sources if re.search(r":\.?\d*%\}", path.read_text(encoding="utf-8"))
    ] == []


def test_results_go_to_stdout_and_all_else_to_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    console.say("what happens")
    console.complain("it failed", "do this")
    console.table("A title", ["model", "n"], [["base", "3"]])
    console.write("result\n")
    out, err = capfd.readouterr()
    assert out == "result\n"
    assert err.splitlines()[:3] == ["what happens", "error: it failed", " hint: do this"]
    assert all(word in err for word in ("A title", "model", "base", "3"))


HEAD = ["model", "size", "accuracy", "latency"]
ROWS = [
    ["Q4_K_M", "98.4 MB", "92.0 %", "32 ms"],
    ["größeres 日本語 (8-shot)", "-", "91.5 %", "1,204 ms"],
]


@pytest.mark.parametrize("width", [None, 200, *range(70, 8, -3)])
def test_no_cell_is_cut_whatever_the_width(width: int | None) -> None:
    lines = console.fitted(HEAD, ROWS, width=width, optional=["latency", "size"])
    text = "\n".join(lines)
    assert "…" not in text
    assert all(cell in text for row in ROWS for cell in (row[0], row[2]))
    # the list's longest cell
    least = max(cell_len(line) for line in console.fitted(HEAD, ROWS, width=1))
    assert width is None or max(map(cell_len, lines)) <= max(width, least)


def test_columns_go_in_the_order_given_and_then_the_table_is_a_list() -> None:
    shown = {
        tuple(console.fitted(HEAD, ROWS, width=width, optional=["latency", "size"])[0].split())
        for width in range(60, 20, -1)
    }
    assert shown == {tuple(HEAD), ("model", "size", "accuracy"), ("model", "accuracy"), ("Q4_K_M",)}
    assert console.fitted(HEAD, ROWS, width=10)[:4] == [
        "Q4_K_M",
        "  size      98.4 MB",
        "  accuracy  92.0 %",
        "  latency   32 ms",
    ]


def test_a_table_in_a_pipe_is_whole(capfd: pytest.CaptureFixture[str]) -> None:
    console.table("T", ["model", "note"], [["m" * 90, "n" * 90]])
    assert f"{'m' * 90}  {'n' * 90}" in capfd.readouterr().err


def test_text_is_no_markup_and_no_control_sequence(capfd: pytest.CaptureFixture[str]) -> None:
    console.say("[bold]a[/bold] \x1b[31m[/nonsense]")
    console.complain("'\x1b]0;x\x07y'")
    console.table("T", ["model"], [["\x1b[31mred"]])
    _, err = capfd.readouterr()
    assert err.splitlines()[:2] == ["[bold]a[/bold] [/nonsense]", "error: 'y'"]
    assert "\x1b" not in err


@pytest.mark.parametrize(
    ("level", "shown"),
    [
        (-1, ["error: wrong"]),
        (0, ["happens", "error: wrong"]),
        (1, ["happens", "detail", "error: wrong"]),
    ],
)
def test_levels(level: int, shown: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    console.set_level(level)
    console.say("happens")
    console.detail("detail")
    console.complain("wrong")
    assert capfd.readouterr().err.splitlines() == shown


def test_table_takes_brackets_as_text(capfd: pytest.CaptureFixture[str]) -> None:
    # a model whose name looked like rich's markup once ended in a traceback
    console.table("[T]", ["[m]"], [["[/nonsense]"], ["[bold]b"]])
    shown = capfd.readouterr().err
    assert all(word in shown for word in ("[T]", "[m]", "[/nonsense]", "[bold]b"))


def test_long_lines_are_not_wrapped(capfd: pytest.CaptureFixture[str]) -> None:
    console.say("/a/long/path" * 40)
    assert capfd.readouterr().err == "/a/long/path" * 40 + "\n"


def test_short_work_shows_no_progress(capfd: pytest.CaptureFixture[str]) -> None:
    with console.progress("training", 10, "steps") as meter:
        for _ in range(10):
            meter.advance()
    assert meter.done == 10
    assert capfd.readouterr().err == ""


def test_progress_in_a_log_is_plain_lines(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "SHOW_AFTER_S", 0.0)
    monkeypatch.setattr(console, "PLAIN_EVERY_S", 0.0)
    with console.progress("training", 3, "steps") as meter:
        meter.advance(note="loss 0.5")
        meter.advance()
        meter.advance()
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 2  # the last step needs no line: what comes next says that it is done
    assert lines[0].startswith("  training: 1/3 steps, ")
    assert lines[1].endswith(" left, loss 0.5")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("two\nlines\tand  spaces ", "two lines and spaces"),
        ("\x1b[31mred\x1b[0m \u202eevil", "red evil"),
        ("a lone \ud800 half", "a lone ? half"),
        ("x" * 50, "x" * 19 + "…"),
        ("x" * 20, "x" * 20),
        ("", ""),
    ],
)
def test_what_is_shown_is_one_short_line(text: str, line: str) -> None:
    assert console.shown(text, 20) == line
    line.encode()


def test_json_on_a_terminal_holds_nothing_that_it_obeys(monkeypatch: pytest.MonkeyPatch) -> None:
    value = {"a": "\x9b31m \x7f \u202e größe \x1b"}
    text = json.dumps(value, ensure_ascii=False) + "\n"
    for terminal in (True, False):
        out = io.StringIO()
        monkeypatch.setattr(out, "isatty", lambda terminal=terminal: terminal, raising=False)
        monkeypatch.setattr(sys, "stdout", out)
        console.write_json(text)
        assert json.loads(out.getvalue()) == value
        assert (out.getvalue() == text) is not terminal
        assert not terminal or not {"\x9b", "\x7f", "\u202e", "\x1b"} & set(out.getvalue())
