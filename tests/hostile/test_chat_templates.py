"""Hostile chat templates: each ends within its budget, in a child, with a
sentence; the next text is rendered.
"""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hostile import templates
from hypothesis import given, settings
from hypothesis import strategies as st
from support import tiny
from support.scale import FULL

from slmctl.child import LineChild
from slmctl.errors import DataError, StageError
from slmctl.task import chat_template, chat_template_child
from slmctl.task.contract import Task, end_of_turn

BUDGET_S = 0.5
VALUES = {
    "messages": [
        {"role": "user", "content": "hello " * 20},
        {"role": "assistant", "content": "yes"},
    ],
    "tools": None,
    "add_generation_prompt": True,
    "bos_token": "<s>",
    "eos_token": "</s>",
}
GROWING = {  # each takes gigabytes or minutes where nothing ends it
    "tojson": "{{ messages" + "|tojson|list" * 16 + " }}",
    "tojson in a set": "{% set x = messages %}" + "{% set x = x|tojson|list %}" * 16 + "{{ x }}",
    "escapes": "{{ messages" + "|tojson" * 24 + " }}",
    "joined": "{% set x = messages|string %}" + "{% set x = x|list|join(x) %}" * 4 + "{{ x }}",
    "loops in loops": "{% for a in messages|string %}" * 4 + "x" + "{% endfor %}" * 4,
    "slices": "{% for a in (messages|string)|list %}{% for b in messages|string|list %}{{ "
    "(messages|string)[:] }}"
    "{% endfor %}{% endfor %}{% for a in range(99999) %}{% for b in range(999) %}{% endfor %}{% "
    "endfor %}",
    "macro": "{% macro m(x) %}{{ x }}{{ x }}{% endmacro %}{% set y = 'yy' %}"
    + "{% set y = m(y) %}" * 40
    + "{{ y }}",
    "recursive loop": "{% for a in [messages] recursive %}{{ loop([a, a]) }}{% endfor %}",
    "indent": "{{ messages|tojson(indent=99999999) }}",
    "center": "{{ 'x'|center(999999999) }}",
    "format": "{{ '%*d' % (999999999, 1) }}",
    "wordwrap": "{% for a in range(9999) %}{{ ('a b ' * 9999)|wordwrap(3) }}{% endfor %}",
    "nested parentheses": "{{ " + "(" * 9999 + "1" + ")" * 9999 + " }}",
    "nested ifs": "{% if 1 %}" * 3000 + "{% endif %}" * 3000 + "{{ raise_exception('deep') }}",
}


@pytest.mark.parametrize("name", GROWING)
def test_what_grows_is_ended_within_its_budget(name: str) -> None:
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match="the chat template"):
        chat_template.render(GROWING[name], VALUES, budget_s=BUDGET_S)
    assert time.monotonic() - began < 60 * BUDGET_S, "a bound against freezing, not a measurement"
    # kB, of this process
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10
    assert chat_template.render("{{ messages[1].content }}", VALUES) == "yes"


def test_pull_and_prepare_refuse_a_template_that_grows() -> None:
    with pytest.raises(DataError, match="the chat template"):
        end_of_turn(GROWING["tojson"], bos_token="", eos_token="")


def test_a_slow_text_does_not_hold_up_the_others() -> None:
    slow = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    done: list[str] = []

    def spin() -> None:
        with pytest.raises(chat_template.TemplateLimitError, match="was ended by SIGKILL"):
            chat_template.render(slow, VALUES, budget_s=600)
        done.append("slow")

    pool, thread = chat_template._pool, threading.Thread(target=spin)
    thread.start()
    while not (
        busy := [
            each._process
            for each in pool._all
            if each not in pool._idle.queue and each._process.alive
        ]
    ):
        threading.Event().wait(0.01)
    for k in range(5):
        assert chat_template.render(tiny.TEMPLATE, VALUES | {"bos_token": f"<{k}>"})
    assert not done
    os.kill(busy[0].pid, signal.SIGKILL)
    thread.join()


# Deaths


def child() -> chat_template._Child:
    return chat_template._Child()


def test_a_child_that_is_killed_is_named_with_its_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    renderer = child()
    renderer.render("x", [b"{}"], 20.0)
    answers = LineChild.answers

    def killed(self: LineChild, *args: Any) -> Any:
        os.kill(self.pid, signal.SIGKILL)
        return answers(self, *args)

    monkeypatch.setattr(LineChild, "answers", killed)
    with pytest.raises(chat_template.TemplateLimitError, match="was ended by SIGKILL"):
        renderer.render("x", [b"{}"], 20.0)
    monkeypatch.undo()
    assert renderer.render("x", [b"{}"], 20.0) == ["x"]
    renderer.close()


def test_a_child_without_its_module_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "jinja2").mkdir()
    (tmp_path / "jinja2" / "__init__.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'jinja2'\")"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(
        StageError, match="exit code 1: ModuleNotFoundError: No module named 'jinja2'"
    ):
        child().render("x", [b"{}"], 20.0)


def test_a_child_that_cannot_be_started_is_an_error_and_no_traceback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(StageError, match="cannot be started"):
        child().render("x", [b"{}"], 20.0)


def test_a_refusal_within_many_is_told_and_leaves_no_answer_behind() -> None:
    source = "{% if n == 3 %}{{ raise_exception('three') }}{% endif %}{{ n }}"
    renderer = child()
    with pytest.raises(chat_template.TemplateRefusedError, match="three"):
        renderer.render(source, [b'{"n": %d}' % n for n in range(9)], 20.0)
    assert renderer.render(source, [b'{"n": 7}'], 20.0) == ["7"]
    renderer.close()


def test_a_child_that_has_grown_is_replaced_among_many() -> None:
    source = "{{ ('x' * (60000000 if n == 3 else 1))|length }}"
    renderer = child()
    source = "{% set x = 'x' * (60000000 if n == 3 else 1) %}" + source
    texts = renderer.render(source, [b'{"n": %d}' % n for n in range(6)], 20.0)
    assert texts == ["1", "1", "1", "60000000", "1", "1"]
    renderer.close()


def test_many_texts_come_in_order_and_large_ones_too() -> None:
    values = [
        {"messages": [{"role": "user", "content": f"{k} " * (30_000 if k % 7 == 0 else 3)}]}
        for k in range(60)
    ]
    source = "{% for m in messages %}{{ m.content }}{% endfor %}"
    texts = chat_template.render_all(source, values)
    assert texts == [chat_template_child.render(source, value) for value in values]


def test_a_fork_renders_by_itself() -> None:
    code = (
        "import os\nfrom slmctl.task import chat_template as c\n"
        "assert c.render('{{ n }}', {'n': 1}) == '1'\npid = os.fork()\n"
        "text = c.render('{{ n }}', {'n': 2})\nassert text == '2'\n"
        "if pid == 0: os._exit(0)\nassert os.waitpid(pid, 0)[1] == 0\n"
        "assert c.render('{{ n }}', {'n': 3}) == '3'\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


# Generated


@pytest.mark.parametrize("seed", range(2000 if FULL else 60))
def test_any_template_gives_a_text_or_a_sentence(seed: int) -> None:
    choose, before = random.Random(seed), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        text = chat_template.render(
            templates.body(choose, 4), templates.values(choose), budget_s=0.5
        )
    except DataError as error:
        assert error.message.startswith("the ")
    else:
        assert len(text) <= chat_template_child.LONGEST
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10


JSON: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(
    st.lists(
        st.dictionaries(st.sampled_from(["role", "content", "tool_calls", "name"]), JSON),
        max_size=3,
    ),
    JSON,
)
@settings(max_examples=200 if FULL else 40, deadline=None, derandomize=True)
def test_any_messages_give_a_prompt_or_a_sentence(
    messages: list[dict[str, Any]], tools: Any
) -> None:
    task = Task("generate", tiny.TEMPLATE, "<|im_end|>", special_tokens=("<|im_end|>",))
    try:
        assert isinstance(task.prompt(messages, tools=[tools]), str)
    except DataError as error:
        assert error.message.startswith("the chat template")


def test_threads_get_their_own_texts() -> None:
    def prompt(k: int) -> str:
        return chat_template.render("{{ n }}:{{ bos_token }}", {"n": k, "bos_token": "x" * (k % 5)})

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(prompt, range(200))) == [f"{k}:{'x' * (k % 5)}" for k in range(200)]
