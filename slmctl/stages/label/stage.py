"""The stage label in the graph of stages: what teachers label, before the split."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from urllib.parse import urlsplit

from slmctl import config
from slmctl.artifacts.artifact import Artifact
from slmctl.artifacts.bounded_json import JsonObject
from slmctl.config import LabelConfig
from slmctl.network import guard
from slmctl.pipeline import gathering
from slmctl.pipeline.graph import Project, Stage
from slmctl.pipeline.system_errors import spoken
from slmctl.sources import snapshot


class Label(Stage[LabelConfig]):
    """Label rows that have no answer, by a larger model, with a price before and a bound after."""

    name = "label"
    imports = ("sklearn", "httpx")
    uses = ("scikit-learn", "httpx", "llama_cpp_python")
    version = 3
    made_once = "holds labels of teachers, which are not asked again"

    def completed(self, section: LabelConfig) -> LabelConfig:
        """The section with its files, and rows read as `prepare`
        reads them; its gold rows by default.
        """
        prepare, folder = self.project.config.prepare, self.project.sources
        own = snapshot.gathered(prepare.sources, folder)
        reading = config.RowReading(
            clean=prepare.clean, replace=prepare.replace, splits=prepare.splits, sources=own
        )
        gold = snapshot.gathered(section.gold, folder) or own
        files = {"sources": snapshot.gathered(section.sources, folder), "gold": gold}
        return section.model_copy(update={**files, "reading": reading})

    def checkable(self) -> LabelConfig | None:
        section = self.settings
        sources = [*section.sources, *section.gold, *self.project.config.prepare.sources]
        return self.completed(section) if all(map(snapshot.is_file, sources)) else None

    def checked(self, section: LabelConfig) -> str:
        with contextlib.suppress(ModuleNotFoundError):  # which the requirement `packages` tells
            from slmctl.stages.label import label

            label.check(section)
        return ""

    def require_offline(self) -> None:
        for teacher in self.settings.teachers:
            if teacher.url and not guard.is_local(urlsplit(teacher.url).hostname or ""):
                guard.require(
                    f"the teacher {teacher.name}",
                    hint="a release on this machine as label.teachers",
                )

    def before(self) -> None:
        gathering.gather_sources(self.project)

    def options(self) -> Mapping[str, object]:
        return {"journals": self.project.journals}

    def after(self, made: Artifact, *, current: bool) -> None:
        gathering.say_report(made, current=current)


STAGE = Label


def plan(project: Project) -> tuple[JsonObject, list[str]]:
    """The cost of labelling, as JSON values and as lines; some rows are asked for it, and their
    answers kept.

    Raises:
        What the stage raises.
    """
    stage = Label(project)
    stage.before()
    section = stage.completed(stage.settings)
    config.recipe(section)  # refuses a path that does not exist
    with spoken(stage.name, project.runs), guard.written_down(project.root, "label --plan"):
        from slmctl.stages.label import label

        made = label.plan(section, journals=project.journals)
    return made.to_json(), list(made.lines())
