"""`slmctl init`: a folder with a ready `slmctl.yaml` and the example data that it names."""

from __future__ import annotations

import shutil
from importlib import resources
from pathlib import Path

from slmctl.config import FILENAME, parse
from slmctl.errors import UsageError


def templates() -> dict[str, str]:
    """Name and first line of every template."""
    titles = {}
    for folder in sorted(resources.files("slmctl.templates").iterdir(), key=lambda entry: entry.name):
        if folder.joinpath(FILENAME).is_file():
            titles[folder.name] = folder.joinpath(FILENAME).read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
    return titles


def init(template: str, folder: Path) -> list[Path]:
    """Copy a template and its example data into `folder`; never overwrites.

    Returns:
        The files written.

    Raises:
        UsageError: `template` is unknown, or a file of its name exists.
    """
    if template not in templates():
        raise UsageError(f"no template '{template}'", hint=f"there are: {', '.join(templates())}")
    origin = resources.files("slmctl.templates").joinpath(template).joinpath(FILENAME)
    config = parse(origin.read_text(encoding="utf-8"), root=folder)
    files = {FILENAME: origin}
    named = [source.local for source in config.prepare.sources] + [p for p in [config.task.json_schema] if p]
    for path in named:
        files[path.name] = resources.files("slmctl.examples").joinpath("data").joinpath(path.name)
    in_the_way = [name for name in files if (folder / name).exists()]
    if in_the_way:
        raise UsageError(
            f"{folder / in_the_way[0]} exists already", hint="name another folder: slmctl init TEMPLATE DIR"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for name, entry in files.items():
        with resources.as_file(entry) as path:
            shutil.copyfile(path, folder / name)
    return [folder / name for name in files]
