"""A router and the models that it names, asked one after the other: held-out rows -> answers of the whole fleet."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from slmctl import console
from slmctl.artifacts.artifact import Artifact
from slmctl.config import NO_TASK, Source
from slmctl.errors import DataError, StageError
from slmctl.inference import engine
from slmctl.inference.escalation_policy import LABELS, Policy
from slmctl.stages.predict import predict
from slmctl.stages.predict.prompts import asked
from slmctl.task.contract import Task
from slmctl.task.records import Message, Record


@dataclass(frozen=True)
class FleetModel:
    """A model of the fleet: its release, whose smallest GGUF file answers, its task, and its policy if it has one."""

    release: Artifact
    task: Task
    policy: Policy | None


@dataclass(frozen=True)
class Judged:
    """An answer with what a policy says of it.

    Attributes:
        score: The policy's score; infinite where there is no policy, which keeps everything, and -inf where no
            threshold keeps it: the answer has no log probabilities, or is the out-of-scope label.
        keep: The policy keeps it at its own threshold.
        tokens: Of the prompt and of the answer.
    """

    text: str = field(repr=False)
    score: float
    keep: bool
    tokens: tuple[int, int]


@dataclass(frozen=True)
class FleetRow:
    """A held-out row as the fleet answers it.

    Attributes:
        id: The record's, among the router's.
        origin: The id of the same record among those of its own model; empty where it is for none.
        task: The name of the model that it is for, or NO_TASK.
        expected: The reference answer of that model; empty for none.
        named: The router's answer.
        answered: By model the answer of the one that is named, then that of its larger one; none where none is named.
    """

    id: str
    origin: str
    task: str
    expected: str = field(repr=False)
    named: Judged
    answered: Mapping[str, Judged]


@dataclass(frozen=True)
class Timing:
    """Median and 95th percentile of one answer in ms, one caller at a time."""

    median_ms: float
    p95_ms: float


def originals(sources: Sequence[Source], records: Sequence[Record]) -> list[Record | None]:
    """The record of its own model for each record of a router; None where it is for no model.

    Raises:
        DataError: A source is not the prepared data of a model any more.
    """
    by_title = {source.title: source for source in sources}
    read: dict[Path, list[str]] = {}
    records_of: list[Record | None] = []
    for record in records:
        if record.answer == NO_TASK:
            records_of.append(None)
            continue
        source = by_title.get(record.source["file"])
        if source is None:
            raise DataError(f"no source of slmctl.yaml is called '{record.source['file']}'", hint="slmctl prepare")
        if source.local not in read:
            read[source.local] = source.local.read_text(encoding="utf-8").split("\n")
        lines = read[source.local]
        try:
            records_of.append(Record.from_json(json.loads(lines[record.source["row"] - 1])))
        except (LookupError, ValueError, TypeError):
            raise DataError(
                f"{source.local} holds no record in line {record.source['row']}", hint="slmctl prepare, and run again"
            ) from None
    return records_of


def answers(
    models: Mapping[str, FleetModel], router: str, records: Sequence[Record], own: Sequence[Record | None],
    *, larger: Mapping[str, str], max_tokens: int,
) -> tuple[list[FleetRow], dict[str, Timing]]:  # fmt: skip
    """Ask the router about every record, then each model about those that it, or a model before it, is named for.

    A larger model is asked about all of them, since a threshold that is not known yet says where it is needed.

    Args:
        models: The fleet by name.
        router: The name of the router.
        larger: The larger model of each that has one, by name.
        records: Rows of the router's project.
        own: `originals` of them.
        max_tokens: The longest answer, in tokens.

    Raises:
        StageError: A row could not be answered.
    """
    timings: dict[str, Timing] = {}
    named, timings[router] = _judged(models[router], router, dict(enumerate(records)), max_tokens)
    ways = {place: [name for name in (judged.text, larger.get(judged.text)) if name] for place, judged in named.items()}
    answers_of: dict[str, dict[int, Judged]] = {}
    for name in models:
        places = [place for place, way in ways.items() if name in way]
        if places and name != router:
            turns = {
                place: _as_asked(models, name, records[place], own[place], router=router, named=ways[place][0])
                for place in places
            }
            answers_of[name], timings[name] = _judged(models[name], name, turns, max_tokens)
    rows = [
        FleetRow(
            record.id, other.id if other is not None else "", record.answer, other.answer if other is not None else "",
            named[place], {name: answers_of[name][place] for name in ways[place] if name in answers_of},
        )
        for place, (record, other) in enumerate(zip(records, own, strict=True))
    ]  # fmt: skip
    return rows, timings


def _as_asked(
    models: Mapping[str, FleetModel], name: str, record: Record, own: Record | None, *, router: str, named: str
) -> Record:  # fmt: skip
    """A record as a model is asked it: its own as it stands, another one's with the model's system prompt and cleaning.

    A larger model than the one that is `named` gets the record of that one's task.
    """
    if own is not None and record.answer == name:
        return own
    task = models[name].task
    source, of = (own, named) if own is not None and record.answer == named else (record, router)
    turns = [message for message in source.messages if message["role"] != "system"]
    if _cleans_otherwise(task, models[of].task):
        turns = task.cleaned(turns)
    system: list[Message] = [{"role": "system", "content": task.system}] if task.system else []
    return dataclasses.replace(source, messages=(*system, *turns))


def remarks(models: Mapping[str, FleetModel], larger: Mapping[str, str]) -> list[str]:
    """Sentences on larger models that are asked other texts here than where they are served, which gives them raw ones.

    The raw texts are not here: records hold what the model that they were prepared for is asked.
    """
    return [
        f"{other} cleans texts otherwise than {name}: its rows are cleaned by both here, and by its own task alone "
        "where it is served."
        for name, other in larger.items()
        if _cleans_otherwise(models[other].task, models[name].task)
    ]


def _cleans_otherwise(task: Task, other: Task) -> bool:
    return (task.clean, task.replace) != (other.clean, other.replace)


def _judged(
    model: FleetModel, name: str, records: Mapping[int, Record], max_tokens: int
) -> tuple[dict[int, Judged], Timing]:
    """The answers of a model by place, each judged by its policy."""
    prompts = {place: asked(model.task, record) for place, record in records.items()}
    places = list(prompts)
    judgements: dict[int, Judged] = {}
    with predict.opened(model.release, model.task, max_tokens=max_tokens) as (answerer, _):
        timing = predict.latency_ms(answerer, list(prompts.values()))
        with console.progress(f"ask {name}", len(prompts), "rows") as meter:
            for index, answer in answerer.answer(list(prompts.values())):
                if isinstance(answer, engine.EngineError):
                    raise StageError(f"row {records[places[index]].id} could not be answered: {answer.message}")
                judgements[places[index]] = of_policy(model.policy, answer)
                meter.advance()
    return {place: judgements[place] for place in sorted(judgements)}, Timing(timing["median"], timing["p95"])


def of_policy(policy: Policy | None, answer: engine.Answer) -> Judged:
    """An answer under a policy; one that tells nothing of how sure it is is not kept."""
    tokens, text = (answer.prompt_tokens, answer.completion_tokens), answer.text.strip()
    if policy is None:
        return Judged(text, float("inf"), keep=True, tokens=tokens)
    fields = {
        "confidence": answer.confidence, "labels": dict(list(answer.labels.items())[:LABELS]),
        "logprobs": answer.logprobs, "raw_logprobs": answer.raw_logprobs,
    }  # fmt: skip
    try:
        decision, score = policy.judge(fields, text), policy.score(fields)
    except ValueError:  # it has no log probabilities
        return Judged(text, -float("inf"), keep=False, tokens=tokens)
    return Judged(text, -float("inf") if decision.reason == "out-of-scope" else score, decision.keep, tokens)
