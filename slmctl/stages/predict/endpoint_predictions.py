"""prepared -> predictions of a general model behind an endpoint, told the task in its prompt or as
a choice of labels.

It is given every chance: the labels or the schema stand in its system prompt, examples from the
training rows may stand before the question, and its answer is read kindly. Records marked sensitive
are never sent, neither as a question nor as an example.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import math
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slmctl import console
from slmctl.artifacts import json_lines
from slmctl.artifacts.artifact import Artifact, canonical, sha256_bytes
from slmctl.artifacts.json_lines import JsonLines
from slmctl.config import PredictConfig, Prices
from slmctl.errors import DataError
from slmctl.inference.escalation_policy import LABELS
from slmctl.network.decisions import CHAT
from slmctl.network.endpoint_pool import EndpointPool, Refusal
from slmctl.network.endpoint_replies import Reply
from slmctl.network.openai_client import EndpointRequest
from slmctl.stages.predict.latency import quantiles
from slmctl.task import tool_calls, untuned_prompt
from slmctl.task.contract import Task
from slmctl.task.records import (
    Message,
    MessageCall,
    Record,
    read_records,
    require_records,
    write_jsonl,
)


def run(config: PredictConfig, *, model: Artifact, prepared: Artifact, out: Path) -> dict[str, Any]:
    """Ask every record of one split that may be sent, and write `predictions.jsonl` in the records'
    order.

    Raises:
        DataError: Every record is marked sensitive, so none may be sent.
        NetworkError: The endpoint cannot be reached, or refuses the key or the model.
        UsageError: The variable that should hold the key is not set, or the API takes no such task.
    """
    settings = json.loads(model.path.read_bytes())  # as `pipeline.endpoint` wrote it
    task = Task.read(prepared.path)
    records = require_records(prepared.file(f"{config.split}.jsonl"))
    examples = untuned_prompt.shots(
        task, read_records(prepared.file("train.jsonl")), settings["shots"]
    )
    asking = config.endpoint
    api = settings.get("api", CHAT)
    logprobs = "logprobs" in settings
    question = untuned_prompt.choice(
        task, api, [(example.input, example.answer) for example in examples]
    )
    pool = EndpointPool(
        [settings["url"]],
        settings["model"],
        asking.key_env,
        asking.concurrency,
        asking.timeout_s,
        api=api,
    )
    sent = [k for k, record in enumerate(records) if not record.sensitive]
    if not sent:
        raise DataError(
            f"every one of the {len(records)} {config.split} records is marked sensitive: none may "
            "be sent"
        )
    name = f"{settings['model']} ({f'{len(examples)}-shot' if examples else 'zero-shot'})"
    if question is None:
        requests = {
            k: _request(task, records[k], examples, config.max_tokens, logprobs=logprobs)
            for k in sent
        }
    else:
        requests = {
            k: EndpointRequest(untuned_prompt.turns(task, records[k])[:-1], choice=question)
            for k in sent
        }
    answered = model.path.with_name(f".{model.path.stem}-{config.split}.jsonl")
    replies, rate = _ask(pool, requests, answered, name, asking.prices)
    sure = question is not None or logprobs
    lines = (_line(task, record, replies.get(k), sure=sure) for k, record in enumerate(records))
    write_jsonl(out / "predictions.jsonl", lines)
    times = [reply.seconds * 1000 for reply in replies.values() if isinstance(reply, Reply)]
    answered.unlink(missing_ok=True)
    failed = [reply for reply in replies.values() if isinstance(reply, Refusal)]
    if failed:
        causes = Counter(refusal.message for refusal in failed)
        console.say(
            f"  {name}: no answer to {console.count(len(failed), 'row')}, most often: "
            f"{causes.most_common(1)[0][0]}"
        )
    return {
        "model": name,
        "kind": "endpoint",
        "endpoint": pool.urls[0],
        "split": config.split,
        "n": len(records),
        "size": None,
        "sha256": "",
        "prompt_lists_labels": bool(task.labels),
        "shots": len(examples),
        "labels_shown": len({example.answer for example in examples}) if task.labels else 0,
        "not_sent": len(records) - len(sent),
        "failed": len(failed),
        "retries": pool.retries,
        "latency_ms": quantiles(times) if times else None,  # with `concurrency` requests in flight
        "rows_per_s": rate,
    }


def _request(
    task: Task, record: Record, examples: Sequence[Record], max_tokens: int, *, logprobs: bool
) -> EndpointRequest:
    """The question of a record. Where the task is to call, the prompt has the
    tools, as its examples answer in text.
    """
    head = untuned_prompt.opening(task, examples, tools=record.tools)
    tools = () if task.rules.calls else tuple(record.tools or ())
    options = {"logprobs": True} if logprobs else {}
    return EndpointRequest(
        [*head, *untuned_prompt.turns(task, record)[:-1]], max_tokens, tools=tools, options=options
    )


def _ask(
    pool: EndpointPool,
    requests: dict[int, EndpointRequest],
    answered: Path,
    name: str,
    prices: Prices | None,
) -> tuple[dict[int, Reply | Refusal], float | None]:
    """Every reply by row, and how many came a second.

    Answers may cost money, so each is written down as it comes: where an earlier run was stopped,
    only the rest is asked. The file lies next to the one that names the endpoint, and is removed at
    the end.
    """
    keys = {k: _key(request) for k, request in requests.items()}
    earlier = _written(answered)
    replies: dict[int, Reply | Refusal] = {
        k: earlier[key] for k, key in keys.items() if key in earlier
    }
    left = [k for k in requests if k not in replies]
    if replies:
        console.say(
            f"  {name}: {console.count(len(replies), 'row')} answered before it was stopped"
        )
    if prices is not None:
        most = [(requests[k].most_prompt_tokens, requests[k].max_tokens) for k in left]
        cost = sum(prices.of_tokens(*tokens) for tokens in most)
        console.say(
            f"  {name}: {console.count(len(left), 'row')} to ask, at most {cost:,.4f} "
            f"{prices.currency}"
        )
    begun = time.monotonic()
    with (
        console.progress(f"predict {name}", len(left), "rows") as meter,
        JsonLines(answered, sync=False) as journal,
    ):
        for index, reply in pool.ask_all(requests[k] for k in left):
            k = left[index]
            replies[k] = reply
            if isinstance(reply, Reply):
                journal.append({"key": keys[k]} | dataclasses.asdict(reply))
            meter.advance()
    return replies, round(len(left) / max(time.monotonic() - begun, 1e-9), 2) if left else None


def _key(request: EndpointRequest) -> str:
    more = [request.tools] if request.tools else []
    more += [dataclasses.astuple(request.choice)] if request.choice is not None else []
    return sha256_bytes(canonical([request.messages, request.max_tokens, *more]))


def _written(path: Path) -> dict[str, Reply]:
    """The replies that were written down, by request; a torn line counts as none."""
    replies = {}
    for fields in json_lines.read(path) if path.exists() else ():
        with contextlib.suppress(TypeError, KeyError):
            key = fields.pop("key")
            replies[key] = Reply(**fields)
    return replies


def _line(
    task: Task, record: Record, reply: Reply | Refusal | None, *, sure: bool = False
) -> dict[str, Any]:
    """A line of predictions: the answer as read and as replied, with
    probabilities if `sure`; or an error.
    """
    line: dict[str, Any] = {
        "id": record.id,
        "answer": None,
        "expected": record.answer,
        "confidence": None,
    }
    if reply is None:
        return line | {"not_sent": "sensitive", "prompt_tokens": 0, "completion_tokens": 0}
    if isinstance(reply, Refusal):
        return line | {"error": reply.message, "prompt_tokens": 0, "completion_tokens": 0}
    text = _said(task, record, reply)
    return line | {
        "answer": untuned_prompt.read(task, text),
        "said": text,
        "finish": reply.finish,
        "prompt_tokens": reply.prompt_tokens,
        "completion_tokens": reply.completion_tokens,
        **(
            _probabilities(reply, reply.confidence) if sure and reply.confidence is not None else {}
        ),
    }


def _probabilities(reply: Reply, confidence: float) -> dict[str, Any]:
    """The fields that `escalation_policy.signals` reads, of a reply as of one choice.

    A decisions API can only answer with a label, so a label is as likely among all texts as among
    labels.
    """
    logprobs = [math.log(max(confidence, sys.float_info.min))]
    labels = dict(itertools.islice(reply.labels.items(), LABELS))
    more = {"labels": labels, "raw_logprobs": logprobs} if labels else {}
    return {"confidence": confidence, "logprobs": logprobs, **more}


def _said(task: Task, record: Record, reply: Reply) -> str:
    """The text of a reply; a tool call is written by the base's chat
    template, as in the reference answer.
    """
    if not reply.tool_calls:
        return reply.text
    if task.rules.calls:
        return tool_calls.answer_of_openai(reply.tool_calls) or reply.text
    calls: list[MessageCall] = []
    for call in reply.tool_calls:
        with contextlib.suppress(TypeError, KeyError):
            name, arguments = call["function"]["name"], call["function"].get("arguments") or "{}"
            with contextlib.suppress(ValueError, RecursionError):
                arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
            calls.append(
                {"type": "function", "function": {"name": str(name), "arguments": arguments}}
            )
    message: Message = {"role": "assistant", "content": reply.text, "tool_calls": calls}
    try:
        return str(
            task.with_calls_as_text(record.prompt_messages, message, record.tools)["content"]
        )
    except DataError:  # a call that the template cannot write is none that was asked for
        return reply.text
