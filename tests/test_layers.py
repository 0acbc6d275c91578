"""The house, held on the syntax trees: who may import whom, how long things
are, and what the product never does.
"""

from __future__ import annotations

import ast
import functools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from support import TESTS

import slmctl
from slmctl.pipeline import LEAVES
from slmctl.pipeline.graph import stage_class
from slmctl.task.kinds import KINDS as TASK_KINDS

PACKAGE = Path(slmctl.__file__).parent
# Each folder or module may import those of the layers below its own; none of its own layer but
# itself.
LAYERS = (
    ("__main__",),
    ("cli",),
    ("stages", "provenance", "init"),
    ("server",),
    ("pipeline",),
    ("production",),
    ("models",),
    ("deduplication",),
    ("releases", "task"),
    ("sources", "model_files", "metrics"),
    ("config", "inference"),
    ("network", "reports", "sensitive"),
    ("artifacts",),
    ("child",),
    ("console", "child_environment", "hardware", "installation", "normal_forms"),
    ("errors",),
)
LEVEL = {room: level for level, layer in enumerate(reversed(LAYERS)) for room in layer}
MAX_FILE, MAX_FUNCTION = 416, 38  # statements
MAX_STATEMENT, MAX_NAMES = 40, 2  # nodes of the syntax tree; in one assignment
Trees = Mapping[str, ast.Module]
Rule = Callable[[Trees], Iterable[str]]  # one sentence a violation


# What is read and computed once is kept: every rule looks at all of it, and each process of pytest
# collects this file.


@functools.cache
def sources() -> dict[str, str]:
    """The source of every module by its name."""
    paths = sorted(PACKAGE.rglob("*.py"))
    names = [".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in paths]
    return {
        name.removesuffix(".__init__"): path.read_text("utf-8")
        for name, path in zip(names, paths, strict=True)
    }


@functools.cache
def house() -> Trees:
    return {name: ast.parse(source) for name, source in sources().items()}


@functools.cache
def nodes(tree: ast.AST) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(tree))


@functools.cache
def imported(tree: ast.AST) -> frozenset[str]:
    """Every module or name that a tree imports, as written: at the
    top, inside functions, for types alone.
    """
    plain = (
        alias.name for node in nodes(tree) if isinstance(node, ast.Import) for alias in node.names
    )
    of_modules = (node for node in nodes(tree) if isinstance(node, ast.ImportFrom))
    return frozenset(
        [*plain, *(f"{node.module}.{alias.name}" for node in of_modules for alias in node.names)]
    )


def teardown_module() -> None:
    """Let go of hundreds of thousands of nodes, which every later
    collection of garbage would visit.
    """
    for kept in (sources, house, nodes, imported, blind_titles):
        kept.cache_clear()


def room(name: str) -> str:
    """`inference` of `slmctl.inference.engine`, `errors` of
    `slmctl.errors`, and nothing of `slmctl` itself.
    """
    return [*name.split("."), ""][1]


def stage_of(name: str) -> str:
    """`quantize` of `slmctl.stages.quantize.parity`; nothing of what is no stage's."""
    parts = name.split(".")
    return parts[2] if len(parts) > 2 and parts[1] == "stages" else ""


def own_imports(name: str, trees: Trees) -> list[str]:
    """The modules of this package that a module imports; of
    `slmctl.errors.DataError` that is `slmctl.errors`.
    """
    targets = imported(trees[name])
    modules = {
        target if target in trees else target.rpartition(".")[0] for target in targets - {"slmctl"}
    }
    return sorted(modules & trees.keys() - {"slmctl", name})


# The rules


def of_each_module(faults: Callable[[str, ast.Module], Iterator[str]]) -> Rule:
    """A rule that looks at modules one by one."""
    listed = functools.cache(lambda name, tree: tuple(faults(name, tree)))

    @functools.wraps(faults)
    def rule(trees: Trees) -> Iterator[str]:
        yield from (
            f"{name}{fault}" for name, tree in trees.items() for fault in listed(name, tree)
        )

    return rule


def upward_imports(trees: Trees) -> Iterator[str]:
    for name in trees:
        for module in own_imports(name, trees):
            if (
                room(name)
                and room(name) != room(module)
                and LEVEL[room(name)] <= LEVEL[room(module)]
            ):
                yield f"{name} imports {module}, which is not of a layer below"


def stages_that_know_stages(trees: Trees) -> Iterator[str]:
    for name in trees:
        for module in own_imports(name, trees):
            if stage_of(name) and stage_of(module) not in ("", stage_of(name)):
                yield f"{name} imports {module}, which is another stage's"


def circles(trees: Trees) -> Iterator[str]:
    left = {name: {*own_imports(name, trees)} for name in trees}
    while left:
        ready = {name for name, needs in left.items() if not needs & left.keys()}
        if not ready:
            yield f"these import each other: {', '.join(sorted(left))}"
            return
        left = {name: needs for name, needs in left.items() if name not in ready}


def classes_of_one_name(trees: Trees) -> Iterator[str]:
    homes = defaultdict(list)
    for name, tree in trees.items():
        for node in nodes(tree):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes[node.name].append(name)
    yield from (
        f"{title} stands in {', '.join(modules)}"
        for title, modules in homes.items()
        if len(modules) > 1
    )


@of_each_module
def empty_names(name: str, tree: ast.Module) -> Iterator[str]:
    parts = {*name.split(".")} - {"__main__"}
    if any(part.startswith("_") for part in parts):
        yield " has an underscore"
    if parts & {"utils", "util", "common", "helpers", "helper", "misc", "tools"}:
        yield " says nothing"


@of_each_module
def modules_without_a_contract(name: str, tree: ast.Module) -> Iterator[str]:
    if not ast.get_docstring(tree):
        yield " has no docstring: a module's first line is its contract"


@of_each_module
def docstrings_that_begin_with_a_pronoun(name: str, tree: ast.Module) -> Iterator[str]:
    for node in nodes(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node) or ""
            if text.startswith(("What ", "Who ", "Whether ", "Where ", "Which ", "How ")):
                yield f" begins with no verb or noun: {text}"


def statements(node: ast.AST) -> int:
    """Statements below a node, at every depth."""
    return sum(isinstance(part, ast.stmt) for part in ast.walk(node)) - isinstance(node, ast.stmt)


@of_each_module
def long_functions(name: str, tree: ast.Module) -> Iterator[str]:
    for node in nodes(tree):
        is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if is_function and (count := statements(node)) > MAX_FUNCTION:
            yield f".{node.name} has {count} statements"


SIMPLE = (
    ast.Assign,
    ast.AnnAssign,
    ast.AugAssign,
    ast.Expr,
    ast.Return,
    ast.Raise,
    ast.Assert,
    ast.Delete,
)
CONTEXT = (ast.Load, ast.Store, ast.Del)


def weight(statement: ast.stmt) -> int:
    """Nodes of a statement that are read at once: an entry of a list or dictionary, and a keyword
    argument, is read by itself.
    """
    entries: list[ast.AST] = []
    for node in ast.walk(statement):
        if isinstance(node, ast.Dict):
            entries += node.values
        if isinstance(node, ast.List | ast.Tuple | ast.Set):
            entries += node.elts
        if isinstance(node, ast.Call):
            entries += [keyword.value for keyword in node.keywords]
    own = {id(node) for node in ast.walk(statement) if not isinstance(node, CONTEXT)}
    heaviest = 0
    for entry in sorted(entries, key=lambda entry: len(list(ast.walk(entry)))):
        inside = {id(node) for node in ast.walk(entry)} & own
        heaviest = max(heaviest, len(inside))
        own -= inside
    return max(heaviest, len(own))


def is_table(statement: ast.stmt) -> bool:
    """True for a display of constants, which holds data and no thought."""
    value = getattr(statement, "value", None)
    kinds = (ast.Dict, ast.List, ast.Tuple, ast.Set, ast.Constant, ast.Name, ast.Attribute)
    return value is not None and all(
        isinstance(node, (*kinds, *CONTEXT, ast.keyword)) for node in ast.walk(value)
    )


@of_each_module
def crowded_statements(name: str, tree: ast.Module) -> Iterator[str]:
    for node in nodes(tree):
        if isinstance(node, SIMPLE) and not is_table(node) and weight(node) > MAX_STATEMENT:
            yield f":{node.lineno} says {weight(node)} things at once"


def is_bound(node: ast.AST) -> bool:
    """True for a name or attribute that an assignment binds; `_` stands for none."""
    is_stored = isinstance(getattr(node, "ctx", None), ast.Store)
    named = isinstance(node, ast.Name | ast.Attribute)
    return is_stored and named and getattr(node, "id", "") != "_"


@of_each_module
def many_names_at_once(name: str, tree: ast.Module) -> Iterator[str]:
    for node in nodes(tree):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                stored = [part for part in ast.walk(target) if is_bound(part)]
                if len(stored) > MAX_NAMES:
                    yield f":{node.lineno} assigns {len(stored)} names at once"


@of_each_module
def forbidden_calls(name: str, tree: ast.Module) -> Iterator[str]:
    forbidden = {"print", "eval", "exec", "breakpoint"}
    if room(name) == "stages":  # a stage raises
        forbidden |= {"sys.exit", "os._exit", "exit", "quit"}
    for node in nodes(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in forbidden:
            yield f":{node.lineno} calls {ast.unparse(node.func)}"


@of_each_module
def broad_handlers(name: str, tree: ast.Module) -> Iterator[str]:
    for node in nodes(tree):
        if isinstance(node, ast.ExceptHandler):
            caught = (
                {part.id for part in ast.walk(node.type) if isinstance(part, ast.Name)}
                if node.type
                else {"all"}
            )
            if caught & {"all", "Exception", "BaseException"}:
                yield f":{node.lineno} catches everything"


HEAVY = {
    "torch",
    "transformers",
    "peft",
    "trl",
    "datasets",
    "llama_cpp",
    "sklearn",
    "numpy",
    "pyarrow",
}


@of_each_module
def heavy_stages(name: str, tree: ast.Module) -> Iterator[str]:
    """Packages at the top of a `stage.py`, or of the graph, which every
    command that looks at a project imports.
    """
    if name.endswith(".stage") or room(name) == "pipeline":
        for node in tree.body:
            targets = imported(node) if isinstance(node, ast.Import | ast.ImportFrom) else ()
            if packages := {target.split(".")[0] for target in targets} & HEAVY:
                yield f":{node.lineno} imports {', '.join(sorted(packages))} before it is needed"


WRITER = "slmctl.artifacts.atomic"  # of drafts and temporary names
RENAMES = {"os.replace", "os.rename", "os.renames", "shutil.move"}
TEMPORARY = {"mkstemp", "mkdtemp", "mktemp"}


@of_each_module
def writes_by_hand(name: str, tree: ast.Module) -> Iterator[str]:
    """Renames of paths and temporary names that nobody removes, outside the module that has them
    once.

    `path.rename(x)` and `path.replace(x)` take one argument, which tells them from `str.replace`
    and pandas' `rename`.
    """
    for node in () if name == WRITER else nodes(tree):
        if isinstance(node, ast.ImportFrom) and node.module in ("os", "shutil", "tempfile"):
            titles = {f"{node.module}.{alias.name}" for alias in node.names} | {
                alias.name for alias in node.names
            }
            if titles & (RENAMES | TEMPORARY):
                yield f":{node.lineno} imports {', '.join(sorted(titles & (RENAMES | TEMPORARY)))}"
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        title, last = ast.unparse(node.func), node.func.attr
        renames = last in ("rename", "replace") and len(node.args) == 1 and not node.keywords
        kept = last.endswith("TemporaryFile") and any(
            key.arg == "delete" and ast.unparse(key.value) == "False" for key in node.keywords
        )
        if title in RENAMES or last in TEMPORARY or renames or kept:
            yield f":{node.lineno} writes by hand: {title}"


# By one function, in linear time; a single character, and the reader of documents in a child, do
# not need it.
NORMALISE = {"slmctl.normal_forms", "slmctl.sensitive.unmask", "slmctl.sources.documents.readers"}


@of_each_module
def normalises_by_hand(name: str, tree: ast.Module) -> Iterator[str]:
    for node in () if name in NORMALISE else nodes(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "unicodedata.normalize":
            yield f":{node.lineno} normalises in quadratic time: in_normal_form"


BLIND = "dict[str, Any]"  # a structure of which mypy knows neither keys nor values
# the one name for JSON whose keys its writer defines
DOCUMENTS = {("slmctl.artifacts.bounded_json", "JsonObject")}


def is_blind(node: ast.stmt) -> bool:
    """True for a function, a method or field of a class, or an alias, whose
    types hold BLIND; private ones do not.
    """
    if isinstance(node, ast.ClassDef):
        return any(map(is_blind, node.body))
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        arguments = ast.walk(node.args)
        types = [
            node.returns,
            *(each.annotation for each in arguments if isinstance(each, ast.arg)),
        ]
        return (not node.name.startswith("_") or node.name == "__init__") and any(
            each and BLIND in ast.unparse(each) for each in types
        )
    if isinstance(node, ast.AnnAssign):
        return BLIND in ast.unparse(node.annotation) and not title_of(node).startswith("_")
    return isinstance(node, ast.Assign) and BLIND in ast.unparse(node.value)


def title_of(node: ast.stmt) -> str:
    """The name that a statement at the top of a module binds."""
    if isinstance(node, ast.Assign | ast.AnnAssign):
        return ast.unparse(node.targets[0] if isinstance(node, ast.Assign) else node.target)
    return getattr(node, "name", "_")


@functools.cache
def blind_titles(tree: ast.Module) -> frozenset[str]:
    titles = (title_of(node) for node in tree.body if is_blind(node))
    return frozenset(title for title in titles if not title.startswith("_"))


def names_used(name: str, trees: Trees) -> set[tuple[str, str]]:
    """(module, name) of what a module imports by name, or reaches through an imported module."""
    pairs = {
        (target.rpartition(".")[0], target.rpartition(".")[2]) for target in imported(trees[name])
    }
    modules = {
        title: f"{module}.{title}" for module, title in pairs if f"{module}.{title}" in trees
    }
    reached = {
        (modules[node.value.id], node.attr)
        for node in nodes(trees[name])
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id in modules
    }
    return pairs | reached


def dicts_that_cross_folders(trees: Trees) -> Iterator[str]:
    blind = {
        (name, title) for name, tree in trees.items() for title in blind_titles(tree)
    } - DOCUMENTS
    for name in trees:
        for module, title in sorted(names_used(name, trees) & blind):
            if (stage_of(module) or room(module)) != (stage_of(name) or room(name)):
                yield f"{name} uses {module}.{title}, whose types hold {BLIND}"


@dataclass(frozen=True)
class Kinds:
    """Names that only the homes of the things with these names compare.

    Attributes:
        homes: The packages and modules that may.
        allowed: The reason for each module outside that does; one of another meaning of a name says
            so.
    """

    names: frozenset[str]
    homes: tuple[str, ...]
    allowed: Mapping[str, str]


MODEL_KINDS = frozenset(
    {
        "base",
        "adapter",
        "merged",
        "gguf",
        "published",
        "encoder",
        "linear",
        "endpoint",
        "lora",
        "LORA",
        "sum",
        "SUM",
    }
)
COMPARED = (
    Kinds(frozenset(TASK_KINDS), ("slmctl.task.kinds",), {}),
    Kinds(
        frozenset(LEAVES),
        (),
        {
            "slmctl.cli.run_plan": "the time of a download, which nobody knows, is that of pull",
            "slmctl.init.columns": "label is a kind of column",
            "slmctl.init.task_proposal": "label is a kind of column",
        },
    ),
    Kinds(
        MODEL_KINDS,
        ("slmctl.models",),
        {
            "slmctl.artifacts.artifact": "a manifest names a release and a base by what they hold, "
            "below all models",
            "slmctl.cli.inspect_commands": "the name that a person types for the base of the "
            "config",
            "slmctl.cli.predict_command": "names that a person types, and the options that do not "
            "go with them",
            "slmctl.config.sections": "values of keys, which rule each other out",
            "slmctl.pipeline.model_lookup": "names that a person types, for which there is no "
            "artifact of that kind",
            "slmctl.pipeline.named": "the name that a person types, in a hint",
            "slmctl.pipeline.predictions": "names of the config for which there is no artifact of "
            "that kind",
            "slmctl.stages.evaluate.stage": "names that a person types or the config lists",
            "slmctl.stages.publish.publish": "a value of publish.include",
            "slmctl.cli.doctor_checks": "base is an origin of chat templates",
            "slmctl.cli.init_command": "base is a key of the config",
            "slmctl.stages.merge.merge": "base is a data type",
            "slmctl.stages.quantize.lora_gguf": "lora is a type in the head of a GGUF file",
            "slmctl.model_files.lora_adapter": "LORA is a type of adapters of PEFT",
        },
    ),
)


def names_compared(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, text) of each text or constant with which something is
    compared, by itself or in a list, or matched.
    """
    for node in nodes(tree):
        sides = [node.left, *node.comparators] if isinstance(node, ast.Compare) else []
        sides += [node.value] if isinstance(node, ast.MatchValue) else []
        for side in sides:
            for part in side.elts if isinstance(side, ast.Tuple | ast.List | ast.Set) else [side]:
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    yield part.lineno, part.value
                elif isinstance(part, ast.Name | ast.Attribute):
                    title = part.id if isinstance(part, ast.Name) else part.attr
                    yield part.lineno, title if title.isupper() else ""


@of_each_module
def kinds_compared(name: str, tree: ast.Module) -> Iterator[str]:
    for kinds in COMPARED:
        if (
            not f"{name}.".startswith(tuple(f"{home}." for home in kinds.homes))
            and name not in kinds.allowed
        ):
            yield from (
                f":{at} compares '{text}'"
                for at, text in names_compared(tree)
                if text in kinds.names
            )


PLANTED = (
    (upward_imports, "slmctl.errors", "def late():\n    from slmctl.network import guard\n"),
    (upward_imports, "slmctl.config.loader", "from slmctl.inference import engine\n"),
    (upward_imports, "slmctl.server.app", "from slmctl.stages.predict import predict\n"),
    (
        upward_imports,
        "slmctl.task.contract",
        "if TYPE_CHECKING:\n    from slmctl.pipeline import graph\n",
    ),
    (
        stages_that_know_stages,
        "slmctl.stages.merge.merge",
        "from slmctl.stages.quantize import parity\n",
    ),
    (circles, "slmctl.errors", "def late():\n    from slmctl.network import guard\n"),
    (
        circles,
        "slmctl.hardware",
        "if TYPE_CHECKING:\n    from slmctl.stages.finetune import backend\n",
    ),
    (classes_of_one_name, "slmctl.hardware", "class Manifest: ...\n"),
    (empty_names, "slmctl.stages.merge._hidden", "x = 1\n"),
    (empty_names, "slmctl.utils", '"""A contract."""'),
    (modules_without_a_contract, "slmctl.errors", "x = 1"),
    (
        docstrings_that_begin_with_a_pronoun,
        "slmctl.errors",
        'def code():\n    """What a process ends with."""',
    ),
    (long_functions, "slmctl.errors", "def long():\n" + "    x = 1\n" * (MAX_FUNCTION + 1)),
    (crowded_statements, "slmctl.errors", f"x = {' + '.join(['f(1)'] * 14)}"),
    (crowded_statements, "slmctl.errors", f"x = {{'a': 1, 'b': {' + '.join(['f(1)'] * 14)}}}"),
    (many_names_at_once, "slmctl.errors", "a, b, c = 1, 2, 3"),
    (many_names_at_once, "slmctl.errors", "self.a, (b, c) = 1, (2, 3)"),
    (forbidden_calls, "slmctl.errors", "print(1)"),
    (forbidden_calls, "slmctl.stages.merge.merge", "sys.exit(1)"),
    (broad_handlers, "slmctl.errors", "try:\n    x = 1\nexcept Exception:\n    pass"),
    (broad_handlers, "slmctl.errors", "try:\n    x = 1\nexcept:\n    pass"),
    (heavy_stages, "slmctl.stages.merge.stage", "import torch\n"),
    (heavy_stages, "slmctl.pipeline.graph", "from numpy import array\n"),
    (writes_by_hand, "slmctl.releases.registry", "os.replace(draft, path)\n"),
    (writes_by_hand, "slmctl.stages.merge.merge", "half.rename(path)\n"),
    (writes_by_hand, "slmctl.server.api_keys", "path.with_name('.new').replace(path)\n"),
    (
        writes_by_hand,
        "slmctl.server.api_keys",
        "handle, name = tempfile.mkstemp(dir=path.parent)\n",
    ),
    (
        writes_by_hand,
        "slmctl.network.guard",
        "stream = tempfile.NamedTemporaryFile(delete=False)\n",
    ),
    (writes_by_hand, "slmctl.network.guard", "from os import replace\n"),
    (normalises_by_hand, "slmctl.task.contract", "text = unicodedata.normalize(form, text)\n"),
    (dicts_that_cross_folders, "slmctl.network.guard", "def receipt() -> dict[str, Any]: ...\n"),
    (
        dicts_that_cross_folders,
        "slmctl.task.records",
        "class Record:\n    source: dict[str, Any]\n",
    ),
    (dicts_that_cross_folders, "slmctl.task.records", "Message = dict[str, Any]\n"),
    (kinds_compared, "slmctl.server.router", "calls = self.task.kind == 'call'\n"),
    (kinds_compared, "slmctl.pipeline.plan", "trains = 'finetune' in names\n"),
    (kinds_compared, "slmctl.server.served_fleet", "alone = artifact.kind == 'encoder'\n"),
    (kinds_compared, "slmctl.stages.calibrate.calibrate", "both = SUM in models\n"),
    (kinds_compared, "slmctl.stages.label.rows", "has_labels = kind not in ('classify', 'tag')\n"),
    (
        kinds_compared,
        "slmctl.init.proposal",
        "match kind:\n    case 'generate' | 'extract':\n        x = 1\n",
    ),
)


@pytest.mark.parametrize(
    "rule", dict.fromkeys(rule for rule, _, _ in PLANTED), ids=lambda rule: rule.__name__
)
def test_the_house_keeps_the_rule(rule: Rule) -> None:
    assert list(rule(house())) == []


@pytest.mark.parametrize(
    ("rule", "name", "source"), PLANTED, ids=lambda value: getattr(value, "__name__", "")
)
def test_a_planted_violation_is_found(rule: Rule, name: str, source: str) -> None:
    assert list(rule({**house(), name: ast.parse(source)})) != []


def test_names_say_what_they_hold() -> None:
    dialect = {"found", "one", "wanted", "asked", "given", "told", "said", "known"}
    bound = [
        f"{name}:{node.lineno}"
        for name, tree in house().items()
        for node in nodes(tree)
        if (isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id in dialect)
        or (isinstance(node, ast.arg) and node.arg in dialect)
    ]
    assert len(bound) <= 10, bound


def test_each_module_that_may_compare_a_kind_does() -> None:
    for kinds in COMPARED:
        for name in kinds.allowed:
            assert kinds.names & {text for _, text in names_compared(house()[name])}, name


def test_no_file_is_long() -> None:
    assert {
        name: count for name, tree in house().items() if (count := statements(tree)) > MAX_FILE
    } == {}


def test_every_room_has_its_layer() -> None:
    assert {room(name) for name in sources()} - {""} == LEVEL.keys()


def test_only_cli_reaches_into_a_stage() -> None:
    for name in house():
        if room(name) not in ("cli", "stages", ""):  # and the door for programs, slmctl itself
            assert not {module for module in own_imports(name, house()) if stage_of(module)}, name


def test_tests_mirror_the_package() -> None:
    # helpers and data; tests of the whole program
    shared = {"support", "fixtures", "golden", "promises", "hostile"}
    folders = {path.relative_to(TESTS).as_posix() for path in TESTS.rglob("*") if path.is_dir()}
    for folder in sorted(folders):
        if folder.split("/")[0] not in shared and "__pycache__" not in folder:
            assert (PACKAGE / folder).is_dir(), f"tests/{folder} mirrors nothing"


def importers(package: str) -> set[str]:
    return {
        name
        for name, tree in house().items()
        if any(target.split(".")[0] == package for target in imported(tree))
    }


@pytest.mark.parametrize(
    ("package", "rooms"),
    [
        ("click", {"cli"}),
        ("rich", {"console"}),
        ("torch", {"stages", "model_files"}),
        ("transformers", {"stages", "model_files"}),
    ],
)
def test_a_package_stays_in_its_rooms(package: str, rooms: set[str]) -> None:
    assert {room(name) for name in importers(package)} <= rooms


@pytest.mark.parametrize(
    ("package", "only"),
    [
        # three child processes, and what they share
        (
            "llama_cpp",
            {
                "inference.llama_child",
                "model_files.quantizer_child",
                "inference.expansion",
                "inference.model_loading",
            },
        ),
        ("unsloth", {"stages.finetune.finetune"}),
    ],
)
def test_one_importer(package: str, only: set[str]) -> None:
    assert importers(package) == {f"slmctl.{name}" for name in only}


def test_errors_import_nothing_of_the_package() -> None:
    for name in ("slmctl.errors", "slmctl.child_environment", "slmctl.hardware", "slmctl.pipeline"):
        assert own_imports(name, house()) == [], name
    assert own_imports("slmctl.network.guard", house()) == ["slmctl.errors"]


OPTIONS = {  # no recipe's
    "pull": ["foreign", "otherwise"],
    "label": ["journals"],
    "encode": ["encoders"],
    "quantize": ["must_end"],
    "publish": ["page"],
}


def test_stage_is_a_folder_with_run() -> None:
    for name in LEAVES:
        stage, module = stage_class(name), house()[f"slmctl.stages.{name}.{name}"]
        (run,) = [
            node for node in module.body if isinstance(node, ast.FunctionDef) and node.name == "run"
        ]
        assert [argument.arg for argument in run.args.args] == ["config"], name
        assert ast.unparse(run.args.args[0].annotation or run) == f"{stage.name.capitalize()}Config"
        # which linear_release.run takes
        roles = [role.name for role in stage.takes if role.when != "linear"]
        assert sorted(argument.arg for argument in run.args.kwonlyargs) == sorted(
            ["out", *roles, *(["keep"] if stage.resumes else []), *OPTIONS.get(name, [])]
        ), name


def test_each_kind_is_left_by_one_stage() -> None:
    kinds = [*LEAVES.values()]
    assert len(set(kinds)) == len(kinds)
    assert {
        kind for name in LEAVES for role in stage_class(name).takes for kind in role.kinds
    } <= set(kinds)
