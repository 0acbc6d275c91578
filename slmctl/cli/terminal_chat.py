"""`slmctl chat`: a conversation in the terminal, or one line after another through a pipe."""

from __future__ import annotations

from collections.abc import Iterable

from slmctl import console
from slmctl.console import percent
from slmctl.errors import StageError
from slmctl.inference.engine import Answer, Answering
from slmctl.inference.escalation_policy import Decision, Policy
from slmctl.inference.supervised_child import EngineError
from slmctl.task.contract import Task
from slmctl.task.engine_requests import engine_request
from slmctl.task.records import Message, question_of


def chat(
    engine: Answering,
    task: Task,
    lines: Iterable[str],
    *,
    max_tokens: int,
    interactive: bool,
    policy: Policy | None,
) -> None:
    """Answer line by line, on stdout; through a pipe, stderr names the answers that the policy
    would not keep.

    A model for `classify`, `extract` or `call` answers each line by itself; for `generate` the
    prompt holds the whole conversation. A call is shown whole, in the form in which answers are
    kept. Where a line has no answer, its line on stdout is empty.

    Raises:
        StageError: Lines of a pipe have no answer; all others have been answered.
    """
    history, failed = task.messages("")[:-1], 0
    for count, text in enumerate(filter(None, map(str.strip, lines)), 1):
        question: Message = {"role": "user", "content": task.cleaned_text(text)[0]}
        turns = [*(history if task.rules.is_free else task.messages("")[:-1]), question]
        request = engine_request(
            task,
            task.prompt(turns),
            max_tokens=max_tokens,
            question=question_of(turns),
            document=question["content"],
        )
        try:
            for piece in engine.stream(request):
                if isinstance(piece, Answer):
                    if task.rules.calls:
                        console.write(console.clean(task.rules.kept(piece.text)))
                    history = [*turns, {"role": "assistant", "content": piece.text}]
                    verdict = _verdict(policy, piece)
                    note = "; ".join(
                        [f"confidence {piece.confidence:.2f}"] * bool(task.labels) + _said(verdict)
                    )
                    console.write(f"   ({note})\n" if note and interactive else "\n")
                    if verdict is not None and not verdict.keep and not interactive:
                        console.say(f"  {note}")
                elif not task.rules.calls:
                    console.write(console.clean(piece))
        except (
            EngineError
        ) as error:  # such as a line that is too long: the next one may be answered
            failed += 1
            console.write("\n")
            console.say(f"  no answer to line {count}: {error.message}")
    if failed and not interactive:
        raise StageError(
            f"{failed} of {count} lines have no answer",
            hint="shorter lines, or a smaller --max-tokens",
        )


def _verdict(policy: Policy | None, answer: Answer) -> Decision | None:
    """The policy's decision on an answer; None without a policy, and where
    the answer does not say how sure it is.
    """
    try:
        return policy.judge(answer.probabilities(), answer.text) if policy is not None else None
    except ValueError:
        return None


def _said(verdict: Decision | None) -> list[str]:
    if verdict is None:
        return []
    chance = f"right with a probability of {percent(verdict.p_correct, 0)}"
    return [chance] if verdict.keep else [f"{chance}: a person should see it"]
