"""Rules of single stages, beside the stage table: their sources, their packages, their use of the network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from slmctl import config
from slmctl.config import Config
from slmctl.errors import SlmctlError
from slmctl.model_files import catalogue, encoder_source
from slmctl.network import guard
from slmctl.pipeline.stage_table import STAGES
from slmctl.releases import targets
from slmctl.sources import snapshot
from slmctl.sources.rows import format_of

SOURCES = Path("runs/.sources")  # copies of sources that are no files
ENCODERS = Path("runs/.encoders")  # those that were fetched, which data sets share
# Packages of what the config asks for; those that a stage always imports stand in the stage table.
TARGET_PACKAGES = {"hf": "huggingface_hub", "s3": "boto3"}
FORMAT_PACKAGES = {"parquet": "pyarrow", "xlsx": "python_calamine", "ods": "python_calamine"}


def _as_it_is(settings: Config, root: Path, section: Any) -> config.Section:
    return section


@dataclass(frozen=True)
class StageRule:
    """The rules of one stage; each gets the config and the project's folder.

    Attributes:
        completed: The section with the files that stand for its sources, its key and its base.
        checkable: The part of the section that can be checked before anything is copied or made.
        checks: Its module has `check`, which looks into the sources.
        packages: Packages that it needs because of what the config asks for.
        require_offline: With `--offline`, refuse what the stage would be refused later.
    """

    completed: Callable[[Config, Path, Any], config.Section] = _as_it_is
    checkable: Callable[[Config, Path, Any], config.Section | None] | None = None
    checks: bool = False
    packages: Callable[[Config], Iterable[str]] = lambda settings: ()
    require_offline: Callable[[Config, Path], None] = lambda settings, root: None


# pull


def _with_known_base(settings: Config, root: Path, section: config.PullConfig) -> config.Section:
    catalogue.require_source(settings.base, Path(section.base))
    catalogue.require_own_hash(section.base, section.sha256)
    return section


def _packages_of_pull(settings: Config) -> Iterator[str]:
    is_of_hub = settings.pull.base.startswith("hf:")
    if is_of_hub:
        yield "huggingface_hub"
    elif not Path(settings.pull.base).is_dir():
        yield "gguf"
    # of those for quantize none: without llama.cpp, the rehearsal leaves it out
    yield from STAGES["finetune"].imports if settings.pull.rehearse else ()


def _base_is_here(settings: Config, root: Path) -> None:
    if config.is_remote(settings.base):
        guard.require(f"base {settings.base}", hint="run `slmctl pull` once without --offline, or name a path")


# label


def _with_gold(settings: Config, root: Path, section: config.LabelConfig) -> config.Section:
    """The section with its files, and rows read as `prepare` reads them; its gold rows by default."""
    prepare, folder = settings.prepare, root / SOURCES
    own = snapshot.gathered(prepare.sources, folder)
    reading = config.RowReading(clean=prepare.clean, replace=prepare.replace, splits=prepare.splits, sources=own)
    gold = snapshot.gathered(section.gold, folder) or own
    files = {"sources": snapshot.gathered(section.sources, folder), "gold": gold}
    return section.model_copy(update={**files, "reading": reading})


def _known_gold(settings: Config, root: Path, section: config.LabelConfig) -> config.Section | None:
    sources = [*section.sources, *section.gold, *settings.prepare.sources]
    return _with_gold(settings, root, section) if all(map(snapshot.is_file, sources)) else None


def _teachers_are_here(settings: Config, root: Path) -> None:
    for teacher in settings.label.teachers if settings.label is not None else []:
        if teacher.url and not guard.is_local(urlsplit(teacher.url).hostname or ""):
            guard.require(f"the teacher {teacher.name}", hint="a release on this machine as label.teachers")


# prepare


def _with_sources(settings: Config, root: Path, section: config.PrepareConfig) -> config.Section:
    key = section.sensitive.pseudonym_key
    if key == root.resolve() / config.PSEUDONYM_KEY:
        from slmctl.sensitive import stand_ins  # as in stage_log

        stand_ins.make_key(key)  # its hash is part of the recipe: another key, other stand-ins
    return section.model_copy(update={"sources": snapshot.gathered(section.sources, root / SOURCES)})


def _known_sources(settings: Config, root: Path, section: config.PrepareConfig) -> config.Section:
    """The section with the sources that are files, and without a key that the first run makes."""
    files = snapshot.gathered(list(filter(snapshot.is_file, section.sources)), root / SOURCES)
    sensitive = section.sensitive
    if sensitive.pseudonym_key == root.resolve() / config.PSEUDONYM_KEY:
        sensitive = sensitive.model_copy(update={"pseudonym_key": None})
    return section.model_copy(update={"sources": files, "sensitive": sensitive})


def _packages_of_sources(settings: Config) -> Iterator[str]:
    for source in settings.prepare.sources:
        yield from ["sqlalchemy"] if source.sql is not None else []
        yield from ["huggingface_hub"] if source.hf is not None else []
        kind = source.format or (format_of_source(source) if source.path is not None else None)
        yield from [FORMAT_PACKAGES[kind]] if kind in FORMAT_PACKAGES else []


def format_of_source(source: config.Source) -> str | None:
    """The format of a source's file, by the config or by its name; None where neither says it."""
    try:
        return source.format or format_of(source.local)
    except SlmctlError:
        return None


def _sources_are_here(settings: Config, root: Path) -> None:
    for source in settings.prepare.sources:
        if host := snapshot.host_of(source, root / SOURCES):
            guard.require(f"a source on {host}", hint="export it once, and name the file as path")


# encode


def _packages_of_encoder(settings: Config) -> Iterator[str]:
    encoder = settings.encode.encoder if settings.encode is not None else ""
    yield from ["huggingface_hub"] if encoder.startswith("hf:") else []
    yield from () if encoder.endswith(".gguf") else ("torch", "transformers", "gguf")  # the conversion


def _encoder_is_here(settings: Config, root: Path) -> None:
    section = config.stage_config(settings, "encode")
    assert isinstance(section, config.EncodeConfig)
    if encoder_source.is_to_fetch(section, root / ENCODERS):
        guard.require(f"encoder {section.encoder}", hint="run `slmctl pull` once without --offline, or name a path")


# finetune


def _trackers_are_here(settings: Config, root: Path) -> None:
    if settings.finetune.report_to:
        guard.require(f"finetune.report_to ({', '.join(settings.finetune.report_to)})")


# publish


def target_settings(settings: Config, root: Path) -> targets.Settings:
    """The settings of the target that releases go to."""
    return targets.Settings(root, settings.publish.public, tuple(settings.publish.allowed_hosts))


def _with_signing_key(settings: Config, root: Path, section: config.PublishConfig) -> config.Section:
    if section.signing_key is not None:
        config.require_path(section.signing_key)
    return section


def _packages_of_target(settings: Config) -> Iterator[str]:
    kind = settings.publish.to.partition(":")[0]
    yield from [TARGET_PACKAGES[kind]] if kind in TARGET_PACKAGES else []
    yield from ["model_signing"] if settings.publish.signing_key is not None else []


RULES = {name: StageRule() for name in STAGES} | {
    "pull": StageRule(_with_known_base, packages=_packages_of_pull, require_offline=_base_is_here),
    "label": StageRule(_with_gold, _known_gold, checks=True, require_offline=_teachers_are_here),
    "prepare": StageRule(
        _with_sources, _known_sources, checks=True, packages=_packages_of_sources, require_offline=_sources_are_here
    ),
    "encode": StageRule(
        packages=_packages_of_encoder,
        require_offline=_encoder_is_here,
    ),
    "finetune": StageRule(
        packages=lambda settings: ["unsloth"] if settings.finetune.backend == "unsloth" else [],
        require_offline=_trackers_are_here,
    ),
    "publish": StageRule(
        checkable=_with_signing_key, packages=_packages_of_target,
        require_offline=lambda settings, root: targets.require_reachable(
            settings.publish.to, target_settings(settings, root)
        ),
    ),
}  # fmt: skip
