"""A proposal or a template -> the folder of a project: `slmctl.yaml` with
comments, and the files that it names.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from slmctl import config
from slmctl.config import FILENAME
from slmctl.errors import UsageError
from slmctl.init.proposal import Proposal, named_base
from slmctl.init.texts import SCHEMA_FILE, SCHEMA_LINE, config_text, project_name, schema_name

UNPACKED = "data"  # the folder in a template's archive


def copy_template(template: str, folder: Path) -> list[Path]:
    """Copy a template and its example data into `folder`; its name becomes the project's name.

    A template with documents has them in an archive of its name, since their bytes have much in
    common.

    Returns:
        The written files, and the unpacked folder.

    Raises:
        UsageError: One of the files exists; nothing is overwritten.
    """
    text = (
        resources.files("slmctl.templates")
        .joinpath(template)
        .joinpath(FILENAME)
        .read_text(encoding="utf-8")
    )
    settings = config.parse(text, root=folder)
    examples = resources.files("slmctl.examples").joinpath("data")
    archive = examples.joinpath(f"{template}.tar.xz")
    has_documents = archive.is_file()
    named = [] if has_documents else [source.local for source in settings.prepare.sources]
    named += [
        path for path in (settings.task.json_schema, settings.task.tools) if isinstance(path, Path)
    ]
    text = re.sub(r"(?m)^project: .*$", f"project: {project_name(folder)}", text, count=1)
    files = {path.name: examples.joinpath(path.name).read_bytes() for path in named}
    require_free(folder, *([UNPACKED] if has_documents else []))
    written = _write_files(f"{SCHEMA_LINE}\n{text}", files, folder)
    if has_documents:
        with archive.open("rb") as raw, tarfile.open(fileobj=raw, mode="r:xz") as documents:
            documents.extractall(folder, filter="data")
        written.append(folder / UNPACKED)
    return written


def write(proposal: Proposal, folder: Path) -> list[Path]:
    """Write the files of a proposal into a folder.

    Raises:
        UsageError: One of the files exists; nothing is overwritten.
    """
    files: dict[str, bytes] = {}
    if proposal.task.rules.has("schema"):
        content = json.dumps(proposal.schema, indent=2, ensure_ascii=False) + "\n"
        files[schema_name(proposal)] = content.encode()
    text = config_text(proposal, folder)
    config.parse(text, root=folder)  # check that it is valid before anything is written
    return _write_files(text, files, folder)


def _write_files(text: str, files: Mapping[str, bytes], folder: Path) -> list[Path]:
    """Write slmctl.yaml and its files, unless one of them exists; only
    the editors' schema is overwritten.
    """
    schema = json.dumps(config.schema(), indent=1) + "\n"
    files = {FILENAME: text.encode(), **files, SCHEMA_FILE: schema.encode()}
    require_free(folder, *(name for name in files if name != SCHEMA_FILE))
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return [folder / name for name in files]


def require_free(folder: Path, *names: str, base: str | None = None) -> None:
    """Refuse a folder that holds one of these files; the hint tells how to change the base instead.

    Raises:
        UsageError: One of the files exists, or `base` is unknown.
    """
    for name in names:
        if (folder / name).exists():
            way = (
                ""
                if name != FILENAME
                else f"slmctl run takes it; to change its base, {_other_base(base)}; or "
            )
            raise UsageError(
                f"{folder / name} exists already",
                hint=f"{way}name another folder: slmctl init SOURCE FOLDER",
            )


def _other_base(name: str | None) -> str:
    """A phrase for a hint: how to change the two keys of slmctl.yaml that name the base."""
    if name is None:
        return "edit base and pull.sha256 in it (slmctl bases NAME shows both)"
    base = named_base(name)
    pin = f"pull: {{sha256: {base.sha256}}}" if base.sha256 else "no pull.sha256"
    return f"write into it base: {base.source} and {pin}"
