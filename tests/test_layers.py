"""The layers, held on the syntax trees: who may import whom, and what the product never does."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import slmctl
from slmctl.pipeline.stage_table import STAGES

ROOT = Path(slmctl.__file__).parent
GROUPS = ("data", "model", "release", "server")
ABOVE = ("cli", "given", "pipeline", "lineage", "trace", "gather", "doctor", "init", "chat")  # what no stage may know


def name_of(path: Path) -> str:
    return ".".join(["slmctl", *path.relative_to(ROOT).with_suffix("").parts]).removesuffix(".__init__")


TREES = {name_of(path): ast.parse(path.read_text(encoding="utf-8")) for path in sorted(ROOT.rglob("*.py"))}


def imports(node: ast.AST, *, lazy: bool = True) -> Iterator[str]:
    """Every module or name that a tree imports, as written; those inside functions too when `lazy`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        elif lazy or not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            if not lazy and isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
                continue
            yield from imports(child, lazy=lazy)


def own(found: Iterator[str]) -> set[str]:
    """The modules of this package among imports: `slmctl.artifacts.artifact.load` is `slmctl.artifacts.artifact`."""
    result = set()
    for name in found:
        for candidate in (name, name.rpartition(".")[0]):
            if candidate in TREES and candidate != "slmctl":
                result.add(candidate)
                break
    return result


def importers(package: str) -> set[str]:
    return {name for name, tree in TREES.items() if any(found.split(".")[0] == package for found in imports(tree))}


def group(name: str) -> str:
    """`data` of `slmctl.stages.pull.pull`, `artifact` of `slmctl.artifacts.artifact`."""
    return [*name.split("."), ""][1]


def test_the_trees_are_there() -> None:
    assert {"slmctl.cli.main", "slmctl.stages.pull.pull", "slmctl.server.app", "slmctl.errors"} <= TREES.keys()


@pytest.mark.parametrize("name", [name for name in TREES if group(name) in GROUPS])
def test_groups_know_neither_each_other_nor_what_runs_them(name: str) -> None:
    found = {group(one) for one in own(imports(TREES[name]))}
    assert not found & ({*GROUPS, *ABOVE} - {group(name)})


@pytest.mark.parametrize("name", [name for name in TREES if group(name) not in (*GROUPS, "cli")])
def test_only_cli_names_a_group_in_an_import(name: str) -> None:
    assert not {group(one) for one in own(imports(TREES[name]))} & {*GROUPS, "cli"}


@pytest.mark.parametrize("name", STAGES)
def test_no_stage_imports_another(name: str) -> None:
    others = {stage.module for stage in STAGES.values() if stage.name != name}
    assert not own(imports(TREES[STAGES[name].module])) & others


def test_modules_form_no_circle() -> None:
    left = {name: own(imports(tree, lazy=False)) - {name} for name, tree in TREES.items()}
    while left:
        ready = {name for name, needs in left.items() if not needs & left.keys()}
        assert ready, f"these import each other: {', '.join(sorted(left))}"
        left = {name: needs for name, needs in left.items() if name not in ready}


def test_errors_import_nothing_of_the_package() -> None:
    assert own(imports(TREES["slmctl.errors"])) == own(imports(TREES["slmctl.child_environment"])) == set()
    for name in ("slmctl.artifacts.artifact", "slmctl.network.guard", "slmctl.sources.rows.cells"):
        assert own(imports(TREES[name])) == {"slmctl.errors"}, name


def test_rows_need_errors_alone_and_what_reads_them_is_theirs() -> None:
    parts = {
        "slmctl.child_environment",
        "slmctl.sources.rows.cells",
        "slmctl.sources.rows.delimited",
        "slmctl.sources.rows.lines",
        "slmctl.sources.rows.objects",
        "slmctl.sources.rows.tables",
    }
    assert own(imports(TREES["slmctl.sources.rows"])) == {"slmctl.errors", *parts} - {"slmctl.child_environment"}
    for part in parts:
        assert own(imports(TREES[part])) <= {"slmctl.errors", *parts}, part


@pytest.mark.parametrize(
    ("package", "only"),
    [
        ("click", {"slmctl.cli.main"}),
        ("rich", {"slmctl.console"}),
        (
            "llama_cpp",
            {"slmctl.inference.llama_child", "slmctl.model_files.quantizer_child"},
        ),  # each the child process of its parent
        ("pydantic", {"slmctl.config"}),
        ("unsloth", {"slmctl.stages.finetune.finetune"}),
    ],
)
def test_one_importer(package: str, only: set[str]) -> None:
    assert importers(package) == only


def test_torch_stays_in_data_and_model() -> None:
    assert {group(name) for name in importers("torch")} <= {"data", "model", "weights", "products"}
    assert {group(name) for name in importers("transformers")} <= {"data", "model", "weights"}


@pytest.mark.parametrize("name", STAGES)
def test_stage_is_a_module_with_run(name: str) -> None:
    row = STAGES[name]
    assert row.module in TREES
    assert row.module.rpartition(".")[2] == row.name
    (run,) = [node for node in TREES[row.module].body if isinstance(node, ast.FunctionDef) and node.name == "run"]
    assert [argument.arg for argument in run.args.args] == ["config"]
    assert ast.unparse(run.args.args[0].annotation or run) == f"{row.name.capitalize()}Config"
    assert sorted(argument.arg for argument in run.args.kwonlyargs) == sorted(
        ["out", *(role.name for role in row.takes), *(["keep"] if row.resumes else [])]
    )


def test_every_module_of_a_group_is_a_stage_or_underscored() -> None:
    listed = {stage.module for stage in STAGES.values()}
    for name in TREES:
        if group(name) in ("data", "model", "release") and name.count(".") == 2:
            assert name in listed or name.rpartition(".")[2].startswith("_"), name


def test_each_kind_is_left_by_one_stage() -> None:
    kinds = [stage.leaves for stage in STAGES.values()]
    assert len(set(kinds)) == len(kinds)
    assert {kind for stage in STAGES.values() for role in stage.takes for kind in role.kinds} <= set(kinds)


@pytest.mark.parametrize("name", TREES)
def test_module_has_a_noun_and_a_contract(name: str) -> None:
    assert name.rpartition(".")[2].strip("_") not in {"utils", "util", "common", "helpers", "helper", "misc", "tools"}
    assert ast.get_docstring(TREES[name]), "a module's first line is its contract"


@pytest.mark.parametrize("name", TREES)
def test_what_the_product_never_does(name: str) -> None:
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.ExceptHandler):
            caught = {part.id for part in ast.walk(node.type) if isinstance(part, ast.Name)} if node.type else {"all"}
            assert not caught & {"all", "Exception", "BaseException"}, f"line {node.lineno} catches everything"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in {"print", "eval", "exec", "breakpoint"}, f"line {node.lineno}: {node.func.id}"


@pytest.mark.parametrize("name", [name for name in TREES if group(name) in ("data", "model", "release")])
def test_stages_raise_they_do_not_exit(name: str) -> None:
    calls = {ast.unparse(node.func) for node in ast.walk(TREES[name]) if isinstance(node, ast.Call)}
    assert not calls & {"sys.exit", "os._exit", "exit", "quit"}
