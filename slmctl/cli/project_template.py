"""`slmctl init TEMPLATE`: a folder with a ready `slmctl.yaml` and the example data that it names."""

from __future__ import annotations

import json
import re
import unicodedata
from importlib import resources
from pathlib import Path

from slmctl import config
from slmctl.config import FILENAME
from slmctl.errors import UsageError

SCHEMA_FILE = ".slmctl.schema.json"  # beside slmctl.yaml; editors read it without a network
SCHEMA_LINE = f"# yaml-language-server: $schema={SCHEMA_FILE}"


def templates() -> dict[str, str]:
    """Name and first line of every template."""
    titles = {}
    for folder in sorted(resources.files("slmctl.templates").iterdir(), key=lambda entry: entry.name):
        if folder.joinpath(FILENAME).is_file():
            titles[folder.name] = folder.joinpath(FILENAME).read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
    return titles


def init(template: str, folder: Path) -> list[Path]:
    """Copy a template and its example data into `folder`, whose name becomes the project's; never overwrites.

    Returns:
        The files written.

    Raises:
        UsageError: `template` is unknown, or a file of its name exists.
    """
    if template not in templates():
        raise UsageError(f"no template '{template}'", hint=f"there are: {', '.join(templates())}")
    text = resources.files("slmctl.templates").joinpath(template).joinpath(FILENAME).read_text(encoding="utf-8")
    settings = config.parse(text, root=folder)
    named = [source.local for source in settings.prepare.sources]
    named += [path for path in (settings.task.json_schema, settings.task.tools) if isinstance(path, Path)]
    examples = resources.files("slmctl.examples").joinpath("data")
    text = re.sub(r"(?m)^project: .*$", f"project: {project_name(folder)}", text, count=1)
    files = {FILENAME: f"{SCHEMA_LINE}\n{text}".encode(), SCHEMA_FILE: schema_text().encode()}
    files |= {path.name: examples.joinpath(path.name).read_bytes() for path in named}
    return write(files, folder)


def write(files: dict[str, bytes], folder: Path) -> list[Path]:
    """Write files by name into a folder, all or none; only an editor's schema is written over.

    Raises:
        UsageError: One of them exists.
    """
    in_the_way = [name for name in files if (folder / name).exists() and name != SCHEMA_FILE]
    if in_the_way:
        raise UsageError(
            f"{folder / in_the_way[0]} exists already", hint="name another folder: slmctl init SOURCE FOLDER"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return [folder / name for name in files]


def schema_text() -> str:
    """The JSON Schema of slmctl.yaml, for editors."""
    return json.dumps(config.schema(), indent=1) + "\n"


def project_name(folder: Path) -> str:
    """A project's name from its folder's: small letters, digits and hyphens."""
    name = folder.resolve().name.replace("ß", "ss").replace("ł", "l")
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", plain.lower()).strip("-")[:40].strip("-") or "project"
