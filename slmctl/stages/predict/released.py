"""A release as it was published: the task contract that it answers
by, and records as it is asked them.
"""

from __future__ import annotations

import dataclasses

from slmctl.artifacts.artifact import Artifact
from slmctl.errors import UsageError
from slmctl.task.contract import Task
from slmctl.task.records import Message, Record, without_weight


def contract(release: Artifact, task: Task) -> Task:
    """The release's own task contract, for the records of a task; labels are compared by their
    names.

    Labels that the release does not know may be missing: of those rows it gets none right, as in
    production.

    Raises:
        IntegrityError: The release carries no contract.
        UsageError: It is of another kind of task, or has labels that the task lacks, so its answers
            cannot be right.
    """
    own, name = (
        Task.read(release.path),
        f"{release.metrics['project']} {release.metrics['version']}",
    )
    if own.kind != task.kind:
        raise UsageError(
            f"{name} is of a {own.kind} task, and this one is {task.kind}",
            hint="leave out the gate against it",
        )
    if foreign := sorted(set(own.labels) - set(task.labels)):
        listed = ", ".join(f"'{label}'" for label in foreign[:5]) + (
            ", …" if len(foreign) > 5 else ""
        )
        raise UsageError(
            f"{name} answers with labels that this task has not: {listed}, so the same rows cannot "
            "be compared",
            hint="keep the labels' names (task.labels.map), or leave out the gate against it for "
            "one release",
        )
    return own


def as_asked(record: Record, own: Task, task: Task) -> Record:
    """A record of `task` as a release with the contract `own` is asked it:
    with its system prompt and its cleaning.
    """
    turns: list[Message] = [without_weight(message) for message in record.prompt_messages]
    # either contract's system prompt stands in place of the rows' own
    if task.system or own.system:
        turns = [message for message in turns if message["role"] != "system"]
    if own.system:
        turns.insert(0, {"role": "system", "content": own.system})
    return dataclasses.replace(record, messages=(*own.cleaned(turns), record.messages[-1]))
