"""Which tests need neither torch nor llama-cpp-python: derived from
imports and fixtures, for `make check`.
"""

from __future__ import annotations

import ast
import functools
import importlib.abc
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import TESTS

PACKAGES = ("torch", "llama_cpp")  # blocked while light tests run, so that none is light by mistake
HEAVY = {
    *PACKAGES,
    "transformers",
    "peft",
    "trl",
    "datasets",
    "sentencepiece",
    "gguf",
    "unsloth",
    "accelerate",
}
PROGRAMS = {"support.browser", "support.postgres", "support.forks"}  # what starts other programs


class Blocker(importlib.abc.MetaPathFinder):
    """Refuses the import of heavy packages."""

    def find_spec(self, fullname: str, path: object, target: object = None) -> None:
        if fullname.split(".")[0] in PACKAGES:
            raise ModuleNotFoundError(f"a light test imports {fullname}", name=fullname)


def select(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the light tests of the files that are light, and block the heavy packages."""
    sys.meta_path.insert(0, Blocker())
    light = [item for item in items if is_light(item)]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(light)])
    items[:] = light


def is_light(item: pytest.Item) -> bool:
    """False for a test with a mark, or with a fixture that is made of a model."""
    assert isinstance(item, pytest.Function)
    return "tiny_base" not in item.fixturenames and not any(
        map(item.get_closest_marker, ("slow", "gpu", "unsloth"))
    )


def is_heavy_file(path: Path) -> bool:
    """True for a file that imports one of PROGRAMS, or a heavy package, directly or by what it
    imports.

    In tests an import counts at any depth, in the product at the top of a module alone.
    """
    if imports_of(path) & PROGRAMS:
        return True
    left, seen = [path], {path}
    while left:
        names = imports_of(left.pop())
        if any(name.split(".")[0] in HEAVY for name in names):
            return True
        new = {place for name in names for place in places(name)} - seen
        seen |= new
        left += new
    return False


@functools.cache
def imports_of(path: Path) -> frozenset[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = ast.walk(tree) if path.is_relative_to(TESTS) else iter(tree.body)
    return frozenset(name for node in nodes for name in imported(node))


def imported(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
        yield from (f"{node.module}.{alias.name}" for alias in node.names)
        yield node.module


def places(name: str) -> Iterator[Path]:
    """The files that an import of a module of the product or of tests/support may run."""
    root = TESTS if name.startswith("support") else TESTS.parent
    if name.startswith(("support.", "slmctl.")):
        base = root.joinpath(*name.split("."))
        yield from (
            place for place in (base.with_suffix(".py"), base / "__init__.py") if place.is_file()
        )
