"""Fill the marked parts of the documentation: `python
docs/readme.py`; with `--check` it only compares.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # benchmarks/ is not installed

from benchmarks import banking77, base_outcomes, result  # noqa: E402
from benchmarks import demo as demo_benchmark  # noqa: E402
from slmctl import config  # noqa: E402
from slmctl.cli.main import cli  # noqa: E402
from slmctl.pipeline import LEAVES  # noqa: E402
from slmctl.pipeline.graph import stage_class  # noqa: E402

MOST_USED = (
    "project",
    "version",
    "base",
    "task.kind",
    "task.labels",
    "task.schema",
    "task.system",
    "prepare.sources[].path",
    "prepare.sources[].input",
    "prepare.sources[].output",
    "prepare.clean",
    "prepare.splits.test",
    "finetune.epochs",
    "finetune.learning_rate",
    "finetune.max_length",
    "quantize.types",
    "gates[].metric",
    "gates[].model",
    "gates[].min",
    "publish.to",
)
FILES = (
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "benchmarks" / "README.md",
)


def stages() -> str:
    """The table of stages."""
    lines = ["| stage | takes | leaves | what it does |", "|---|---|---|---|"]
    for name, leaves in LEAVES.items():
        stage = stage_class(name)
        takes = (
            ", ".join(role.name for role in stage.takes if not role.optional) or "a model source"
        )
        takes += " + sources" if stage.name == "prepare" else ""
        takes = "sources + teachers" if stage.name == "label" else takes
        about = cli.commands[stage.name].get_short_help_str(200)
        lines.append(f"| `{stage.name}` | {takes} | `runs/{leaves}/` | {about} |")
    return "\n".join(lines)


def keys() -> str:
    """Tables of config keys: those that most people set, then the others by section."""
    rows = {name: (default, about) for name, default, about in config.reference()}
    tables: dict[str, list[str]] = {"Most used": list(MOST_USED), "The file": []}
    for name in rows:
        section = (
            name.partition(".")[0].removesuffix("[]") if "." in name or "[]" in name else "The file"
        )
        if name not in MOST_USED:
            tables.setdefault(section, []).append(name)
    parts = []
    for title, names in tables.items():
        if names:
            parts += [f"## {title}", "", "| key | default | what it is |", "|---|---|---|"]
            parts += [_row(name, *rows[name]) for name in names] + [""]
    return "\n".join(parts).rstrip()


def _row(name: str, default: str, about: str) -> str:
    shown = f"`{default}`" if default not in ("", "required") else default
    return f"| `{name}` | {shown} | {about.replace('|', '/')} |"


def help_text() -> str:
    """`slmctl --help`, as it is printed."""
    context = cli.make_context(
        "slmctl", [], resilient_parsing=True, max_content_width=100, terminal_width=100
    )
    with context:
        text = cli.get_help(context)
    return "\n".join(
        ["    $ slmctl --help", *(f"    {line}".rstrip() for line in text.splitlines())]
    )


def measured(name: str) -> str:
    """A benchmark's table, with the machine and the versions that it was measured on."""
    found = json.loads((result.FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    machine, versions = found["machine"], found["versions"]
    known = ", ".join(f"{package} {version}" for package, version in versions.items())
    where = (
        f"{machine['cores']} cores of {machine['processor']} ({', '.join(machine['flags'])}); "
        f"{known}"
    )
    return f"{result.table(name)}\n\n{where}."


def filled(text: str) -> str:
    """A page with every marked part made anew."""
    for name, make in (
        ("demo-table", demo_benchmark.table),
        ("stages", stages),
        ("config", keys),
        ("help", help_text),
        ("standings", result.standings),
        ("goals", result.goals),
        ("banking77", banking77.table),
        ("bases", lambda: base_outcomes.table(base_outcomes.read())),
    ):
        block = f"<!-- {name} -->\n{make()}\n<!-- /{name} -->"
        text = re.sub(
            f"<!-- {name} -->.*?<!-- /{name} -->",
            lambda _, block=block: block,
            text,
            flags=re.DOTALL,
        )
    return re.sub(
        r"<!-- measured (\S+) -->.*?<!-- /measured \1 -->",
        lambda found: (
            f"<!-- measured {found[1]} -->\n{measured(found[1])}\n<!-- /measured {found[1]} -->"
        ),
        text,
        flags=re.DOTALL,
    )


def main() -> None:
    """Write the pages, or say which are not current."""
    for path in FILES:
        now = path.read_text(encoding="utf-8")
        wanted = filled(now)
        if "--check" in sys.argv and now != wanted:
            sys.exit(f"{path.name} is not current: make readme")
        path.write_text(wanted, encoding="utf-8")


if __name__ == "__main__":
    main()
