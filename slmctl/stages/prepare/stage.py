"""The stage prepare in the graph of stages: raw rows to records."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from slmctl import config, console
from slmctl.artifacts.artifact import Artifact
from slmctl.config import AnswerTable, PrepareConfig, Source
from slmctl.errors import IntegrityError, SlmctlError, UsageError
from slmctl.metrics import gates
from slmctl.model_files import catalogue
from slmctl.model_files.model_shape import ModelShape
from slmctl.network import guard
from slmctl.pipeline import gathering, project_gates, row_estimate
from slmctl.pipeline.estimates import PLAIN_BYTES, ROW_BYTES, KnownSizes, StageEstimate
from slmctl.pipeline.graph import BASE, LABELLED, Project, Role, Stage
from slmctl.sources import snapshot
from slmctl.sources.documents import folder
from slmctl.sources.rows.files import known_format

FORMAT_PACKAGES = {"parquet": "pyarrow", "xlsx": "python_calamine", "ods": "python_calamine"}
DOCUMENT_KINDS = {"pdf", "mail", "mailbox"}  # that pypdfium2 reads; a mail may have a PDF attached
NAMED = 3  # labels in a note
PREPARED_SHARE = 3  # of the sources' bytes: records, left-out rows, hashes, the page
TRIED_BYTES = 4_000_000  # of the sources, which take some seconds
PREPARE_SECONDS, ROWS_A_SECOND = 5, 3000


class Prepare(Stage[PrepareConfig]):
    """Turn raw rows into training, validation, calibration and test records."""

    name = "prepare"
    takes = (BASE, LABELLED)
    imports = ("tokenizers",)
    uses = ("tokenizers", "rapidfuzz", "pyarrow", "python-calamine", "sqlalchemy", "scikit-learn")
    version = 9

    def _own_key(self, section: PrepareConfig) -> bool:
        """True where the project's own key makes the stand-ins, which the first run writes."""
        return section.sensitive.pseudonym_key == self.project.root.resolve() / config.PSEUDONYM_KEY

    def asks_for(self, role: Role, section: PrepareConfig) -> bool:
        """Labels do without a base that is not here, for linear models:
        lengths in tokens are then estimated.
        """
        if role == BASE and self.project.config.encodes:
            return self.project.has_base()
        return super().asks_for(role, section)

    def completed(self, section: PrepareConfig) -> PrepareConfig:
        key = section.sensitive.pseudonym_key
        if key is not None and self._own_key(section):
            from slmctl.sensitive import stand_ins  # its patterns take a tenth of a second to build

            stand_ins.make_key(key)  # its hash is part of the recipe: another key, other stand-ins
        files = snapshot.gathered(section.sources, self.project.sources)
        return section.model_copy(update={"sources": files})

    def _is_here(self, source: Source) -> bool:
        """True for a file, and for documents that were read."""
        if snapshot.is_file(source):
            return True
        return folder.is_documents(source) and self._copy_of(source).exists()

    def _copy_of(self, source: Source) -> Path:
        return snapshot.copy_of(source, self.project.sources)

    def checkable(self) -> PrepareConfig:
        """The section with the sources that are here, and
        without a key that the first run makes.
        """
        section = self.settings
        sensitive = section.sensitive
        here = list(filter(self._is_here, section.sources))
        files = snapshot.gathered(here, self.project.sources)
        if self._own_key(section):
            sensitive = sensitive.model_copy(update={"pseudonym_key": None})
        return section.model_copy(update={"sources": files, "sensitive": sensitive})

    def checked(self, section: PrepareConfig) -> str:
        with contextlib.suppress(ModuleNotFoundError):  # which the requirement `packages` tells
            from slmctl.stages.prepare import prepare

            prepare.check(section)
        count = len(section.sources)
        if not count:
            return ""
        sources = "the source," if count == 1 else f"{count} sources"
        return f"{sources} with the columns that the config names"

    def checks(self) -> Mapping[str, Callable[[], str]]:
        """The rows themselves before a base is fetched for them,
        where they are few and in files.
        """
        return {"rows": self._tried}

    def _tried(self) -> str:
        pull = self.project.stage("pull")
        with contextlib.suppress(SlmctlError):  # which the requirement `files` tells
            if (
                BASE.name in self.project.named
                or not any(pull.downloads(None))
                or pull.default().path.exists()
            ):
                return ""
        if self.project.config.label is not None:
            return ""
        if not all(map(snapshot.is_file, self.settings.sources)):
            return ""
        section = self.checkable()
        # which the requirements `packages` and `files` tell
        with contextlib.suppress(ModuleNotFoundError, OSError):
            sizes = [source.local.stat().st_size for source in section.sources]
            if sum(sizes) > TRIED_BYTES:
                return ""
            from slmctl.stages.prepare import prepare

            prepare.try_out(section)
        return ""

    def packages(self) -> Iterator[str]:
        for source in self.settings.sources:
            if source.sql is not None:
                yield "sqlalchemy"
            if source.hf is not None:
                yield "huggingface_hub"
            if folder.is_documents(source) and folder.kinds(source) & DOCUMENT_KINDS:
                yield "pypdfium2"
                if folder.scanned(source) == "read":
                    yield "rapidocr"
            formats = []
            if isinstance(source.answers, AnswerTable):
                formats.append(known_format(source.answers.path))
            if source.format:
                formats.append(source.format)
            elif source.path is not None:
                formats.append(row_estimate.format_of_source(source))
            for name in formats:
                if name in FORMAT_PACKAGES:
                    yield FORMAT_PACKAGES[name]

    def _hosts(self) -> Iterator[str]:
        """Hosts that sources are read from."""
        for source in self.settings.sources:
            host = snapshot.host_of(source, self.project.sources)
            if host:
                yield host

    def require_offline(self) -> None:
        for host in self._hosts():
            guard.require(f"a source on {host}", hint="export it once, and name the file as path")

    def downloads(self, shape: ModelShape | None) -> Iterator[tuple[str, int | None]]:
        for host in self._hosts():
            yield f"a source on {host}", None

    def notes(self, shape: ModelShape | None) -> Iterator[tuple[str, str]]:
        """Notes on documents that are not read yet, and on calls of
        tools, which the base does not write.
        """
        from slmctl.task.kinds import kind_of

        for source in filter(folder.is_documents, self.settings.sources):
            if self._copy_of(source).exists():
                continue
            documents = console.count(len(folder.files(source)), "document")
            text = f"{documents} of {source.local.name} not read yet"
            yield "documents", f"{text}; rows and times are known after slmctl prepare"
        for text in self._doubtful_labels():
            yield "labels", text
        settings = self.project.config
        entry = catalogue.of_source(settings.base)
        if entry is None or entry.tools is not False or kind_of(settings.task.kind).calls:
            return
        calling = looked = 0
        # which `files` and `packages` tell
        with contextlib.suppress(SlmctlError, OSError, ModuleNotFoundError):
            calling, looked = row_estimate.rows_with_calls(self.project)
        if calling:
            rows = f"{calling} of the first {looked} rows hold calls of tools"
            way = "so prepare rejects them; slmctl bases --tools lists others"
            yield "calls", f"{rows}, which {entry.short_name} does not write, {way}"

    def _doubtful_labels(self) -> Iterator[str]:
        """Sentences on labels that the config lacks, and on those of too
        few rows, where labels are a column's.
        """
        section = self.settings
        if not section.task.has("sources.label"):
            return
        counts = row_estimate.labels_of(self.project)
        counts.pop("", None)
        splits = section.splits
        learned = 1 - splits.validation - splits.calibration - splits.test
        names = section.task.label_names
        unknown = []
        if names is not None:
            unknown = [entry for entry in counts.most_common() if entry[0] not in names]
        for name, rows in unknown[:NAMED]:
            label = f"{console.count(rows, 'row')} of the label '{name[:60]}'"
            trained, tested = round(learned * rows), round(splits.test * rows)
            shows = f"some {trained} of them train a model and {tested} test it"
            if splits.test * rows < row_estimate.FEW:
                shows += ", too few for a score of its own"
            yield (
                f"{label}, which task.labels lacks: prepare leaves them out, so no model learns it "
                f"and no gate counts them; named there, {shows}"
            )
        for name, _ in unknown:
            del counts[name]
        thin = [(rows, name) for name, rows in counts.items() if learned * rows < row_estimate.THIN]
        if thin:
            rarest = sorted(thin, key=lambda each: each[0])
            named = ", ".join(f"'{name[:60]}' {rows}" for rows, name in rarest[:NAMED])
            if len(thin) > NAMED:
                named += ", …"
            labels = f"few rows for {len(thin)} of {console.count(len(counts), 'label')} ({named})"
            few = f"fewer than {row_estimate.THIN} of each train a model"
            yield f"{labels}: {few}, and what it scores on such a label alone says little"

    def choices(self, sizes: KnownSizes | None = None) -> str:
        names = self.settings.bound_splits
        if not names:
            return ""
        them = "it" if len(names) == 1 else "them"
        return f"{' and '.join(names)}: rows of the sources bound to {them}, no share of the others"

    def cost(self, sizes: KnownSizes) -> StageEstimate:
        rows = sizes.rows
        if rows is None:
            return StageEstimate()
        peak = int(PLAIN_BYTES + ROW_BYTES * rows.rows)
        seconds = PREPARE_SECONDS + rows.rows / ROWS_A_SECOND
        return StageEstimate(PREPARED_SHARE * rows.size, peak, seconds)

    def before(self) -> None:
        gathering.gather_sources(self.project)

    def after(self, made: Artifact, *, current: bool) -> None:
        """Say which gates cannot pass on the rows that are there,
        before a model is trained for them.
        """
        settings = self.project.config
        text = self.choices()
        if text and not current:
            console.say(f"  {text}")
        split = settings.predict.split
        rows = made.metrics.get(split, 0)
        if rows:
            checked = project_gates.checked_gates(settings, self.project.root)
            groups = row_estimate.groups_of(made, split)
            for sentence in gates.out_of_reach(checked, rows, groups):
                console.say(f"  {sentence}")
        gathering.say_report(made, current=current)


STAGE = Prepare


def reading(project: Project) -> tuple[PrepareConfig, Artifact | None]:
    """The section by which sources are read, and the base; None where there is none yet.

    Raises:
        UsageError: A source file does not exist.
    """
    stage = Prepare(project)
    stage.before()
    section = stage.completed(stage.settings)
    config.recipe(section)
    try:
        return section, project.artifact(BASE)
    except (IntegrityError, UsageError):
        return section, None
