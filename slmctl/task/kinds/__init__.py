"""Kinds of tasks: a module each, with all that differs between them."""

from __future__ import annotations

from slmctl.task.kinds.call import Calling
from slmctl.task.kinds.classify import Classification
from slmctl.task.kinds.extract import Extraction
from slmctl.task.kinds.generate import Generation
from slmctl.task.kinds.kind import TaskKind
from slmctl.task.kinds.tag import Tagging

KINDS: dict[str, type[TaskKind]] = {
    kind.name: kind for kind in (Classification, Tagging, Extraction, Generation, Calling)
}


def kind_of(name: str) -> type[TaskKind]:
    """The class of a kind by its name, such as `config.task.kind`; a
    task has an instance as `task.rules`.
    """
    return KINDS[name]
