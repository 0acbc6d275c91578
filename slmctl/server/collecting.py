"""Handing the answers of a request over to the collector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from slmctl.console import timestamp
from slmctl.production.collector import Collector
from slmctl.production.records import CollectedRow
from slmctl.server.forms.request import LABELS, CheckedRequest, ReplyChoice
from slmctl.server.routed import Routed

NO_POLICY = "no-policy"  # the reason where nothing decides who answers
HELD_BACK = "held_back"  # the code of the error, and the reason of the row


def hand_over(
    checked: CheckedRequest,
    choices: Sequence[ReplyChoice],
    routed: Routed | None,
    *,
    id: str,
    is_marked: bool,
    client: str,
    collector: Collector,
    held: bool = False,
) -> None:
    """Remember the answers for feedback, and have a random sample written down, without waiting for
    the disk.

    Args:
        routed: The router's decision; None where no policy decides.
        id: The request's; further answers of one request get `ID-2` and so on.
        is_marked: The client has marked it as sensitive, so nothing of it is written down.
        client: The name of the key that it came with.
        held: They were held back by a check, and are for a person.
    """
    has_tools = checked.offer is not None and checked.offer.is_clients
    for index, choice in enumerate(choices):
        name = id if index == 0 else f"{id}-{index + 1}"
        line = collector.answered(name, checked.model.name, offers=has_tools)
        row = _row(checked, index, choice, routed, line)
        if held:
            row = replace(row, reason=HELD_BACK)
        is_unsure = held or (routed is not None and not routed.sure)
        draw = collector.draw(escalated=row.route != "local", unsure=is_unsure)
        if is_marked or checked.unread:  # texts that were not searched are not written down
            if draw.chosen is not None:
                collector.drop("sensitive" if is_marked else "doubt")
        else:
            collector.take(row, draw, id=name, also=checked.also, client=client)


def _row(
    checked: CheckedRequest, index: int, choice: ReplyChoice, routed: Routed | None, id: str
) -> CollectedRow:
    """One answer as a line of the collected rows, without its probability of being chosen."""
    kept = checked.model.task.rules.kept  # a call in one form, whatever the model writes
    escalated, answer = routed is not None and routed.route != "local", kept(choice.text)
    own = [
        each
        for each in choice.last.get("labels", {}).items()
        if each[0] in checked.model.task.labels
    ]
    return CollectedRow(
        id=id,
        time=timestamp(),
        messages=[dict(message) for message in checked.conversation(index)],
        answer=answer,
        digest=checked.model.digest,
        model=checked.model.name,
        version=checked.model.version,
        local_answer=kept(routed.local["text"]) if routed is not None and escalated else "",
        general_answer=answer if escalated else "",
        route=routed.route if routed is not None else "local",
        reason=routed.reason if routed is not None else NO_POLICY,
        p_correct=routed.p_correct if routed is not None else None,
        confidence=choice.last.get("confidence"),
        labels=dict(own[:LABELS]),  # a client's own choices are texts that were not searched
        tools=list(checked.offer.tools)
        if checked.offer is not None and checked.offer.is_clients
        else [],
    )
