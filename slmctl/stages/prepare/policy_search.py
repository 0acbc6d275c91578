"""Personal data and secrets in a record: found, and kept or replaced as the policy has it."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from typing import Any, Literal

from slmctl import console, sensitive
from slmctl.errors import DataError
from slmctl.sensitive import Applied, SensitivePolicy, Tally
from slmctl.task.kinds.kind import TaskKind
from slmctl.task.records import Record, RowRejectedError

REMEMBERED = 4096  # system prompts and labels whose findings are cached

# a step of cleaning, a label that was renamed, or a kind of value with a mark in its place in the
# answer
Change = tuple[Literal["clean", "label", "answer"], str]


@dataclass(eq=False)
class Findings:
    """The findings among the rows of a batch so far: personal data and secrets, the rows with
    some, and rows with each change.
    """

    tally: Tally = field(default_factory=Tally)
    rows: int = 0
    changes: Counter[Change] = field(default_factory=Counter)


class PolicySearch:
    def __init__(self, policy: SensitivePolicy, rules: TaskKind) -> None:
        self._policy = policy
        self._rules = rules
        self._applied: dict[str, Applied] = {}

    def apply(
        self, record: Record, fields: Sequence[str], findings: Findings
    ) -> tuple[Record, bool]:
        """Returns (record after the policy on personal data and secrets, True if there were
        findings).

        The fields of the conversation's format name the columns that findings are counted for. A
        label is searched but never changed, or it would be another label.

        Raises:
            RowRejectedError: The policy leaves the row out.
            DataError: The policy ends the run.
        """
        names = dict(zip(("user", "assistant"), fields, strict=True))
        last = len(record.messages) - 1
        rules = self._rules
        messages = list(record.messages)
        has_findings = left = False
        for at, message in enumerate(record.messages):
            role = message["role"]
            is_label = at == last and rules.has_labels
            if role == "system" or is_label:
                applied = self._apply_remembered(message["content"])
            else:
                in_json = at == last and rules.structured
                applied = self._apply(message["content"], in_json=in_json)
            if not applied.findings:
                continue
            has_findings = True
            findings.tally.add(names.get(role, role), applied, self._policy)
            kinds = {finding.kind for finding in applied.findings}
            _require_kept(record, applied, kinds)
            left = left or applied.sensitive or is_label
            if is_label:
                continue
            messages[at] = {**message, "content": applied.text}
            if at == last and messages[at] != message:
                actions = self._policy.actions
                marked = [kind for kind in kinds if actions[kind] == "redact"]
                findings.changes.update(("answer", kind) for kind in marked)
        if not has_findings:
            return record, False
        return dataclasses.replace(record, messages=tuple(messages), sensitive=left), True

    def _apply_remembered(self, text: str) -> Applied:
        """Apply the policy to a text that many rows share, with a cache."""
        if text not in self._applied:
            if len(self._applied) == REMEMBERED:
                self._applied.clear()
            self._applied[text] = self._policy.apply(text)
        return self._applied[text]

    def _apply(self, text: str, *, in_json: bool) -> Applied:
        """Apply the policy to a text; to each string of an
        answer in JSON, so that it stays JSON.
        """
        if not in_json:
            return self._policy.apply(text)
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return self._policy.apply(text)
        parts: list[Applied] = []
        changed = self._in_values(value, parts)
        touched = [part for part in parts if part.findings]
        if not touched:
            return Applied(text)
        action = max((part.action for part in touched), key=sensitive.FATES.index)
        kept = any(part.sensitive for part in touched)
        findings = tuple(finding for part in touched for finding in part.findings)
        return Applied(json.dumps(changed, ensure_ascii=False), findings, action, kept)

    def _in_values(self, value: Any, parts: list[Applied], key: str = "") -> Any:
        """A JSON value with the policy applied to its texts; keys and numbers are searched, and
        stay what they are.

        A text or number that stays as it is is searched again behind its key: `{"password":
        "hunter2"}`.
        """
        if isinstance(value, dict):
            parts += (_unchanged(self._apply_remembered(name)) for name in value)
            return {name: self._in_values(inner, parts, name) for name, inner in value.items()}
        if isinstance(value, list):
            return [self._in_values(inner, parts, key) for inner in value]
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            return value
        head = f"{key}: "
        applied = self._apply_behind_key(key, head, str(value))
        if not isinstance(value, str):
            parts.append(_unchanged(applied))
            return value
        parts.append(applied)
        return applied.text.removeprefix(head)

    def _apply_behind_key(self, key: str, head: str, written: str) -> Applied:
        """Apply the policy to a value, and where it stays, to the value behind its key."""
        applied = self._policy.apply(written)
        stays = (applied.action, applied.text) == ("keep", written)
        if not key or not stays or self._apply_remembered(key).findings:
            return applied
        named = self._policy.apply(head + written)
        return named if named.findings else applied


def _require_kept(record: Record, applied: Applied, kinds: Set[str]) -> None:
    """Refuse a record that the policy does not keep, for findings of some kinds.

    Raises:
        RowRejectedError: The policy leaves the row out.
        DataError: The policy ends the run.
    """
    named = ", ".join(sorted(kinds))
    if applied.action == "refuse":
        where = console.place(record.source["file"], record.source["row"])
        raise DataError(f"{where} holds what the config refuses: {named}", hint="prepare.sensitive")
    if applied.action == "drop":
        raise RowRejectedError("sensitive", f"holds personal data or a secret: {named}")


def _unchanged(applied: Applied) -> Applied:
    """The findings of a key or number, which stays, so that its row is
    sensitive whatever would replace them.
    """
    return dataclasses.replace(applied, sensitive=bool(applied.findings))
