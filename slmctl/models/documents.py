"""A model that is asked a document in windows, and gives one
answer with the places of its values.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import math
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from slmctl.artifacts.bounded_json import JsonObject
from slmctl.inference.engine import Answer, Answering, Engine, Outcomes, Request, answer_of
from slmctl.inference.escalation_policy import LABELS
from slmctl.inference.events import Event, TokenInfo, ValuePlace
from slmctl.inference.supervised_child import EngineError
from slmctl.metrics import answer_metrics, label_sum
from slmctl.metrics.likelihood import normalised
from slmctl.models.composition import Composition
from slmctl.task import documents
from slmctl.task.contract import Task
from slmctl.task.documents import Window, page_breaks, page_of
from slmctl.task.evidence import Evidence, Span

AROUND = 60  # characters of text on both sides of a value
LIKELY = 0.5  # probability from which a second, different value is a conflict
LEAST = 1e-30  # of a probability whose logarithm is taken
_TOKENS_OF_JSON = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\]:,]|[^\s{}\[\]:,"]+')
OnEvent = Callable[[Event], None]


def reading(model: Answering, tasks: Mapping[str, Task]) -> Answering:
    """A model that reads documents in windows, by the task of each adapter in it, '' for the
    model's own.

    It is the model itself where no task has windows. The linear members of a sum read a text as a
    whole.
    """
    if all(task.document is None for task in tasks.values()):
        return model
    return model.with_reader(lambda prompted: DocumentReader(prompted, tasks))


@dataclass(frozen=True)
class WindowAnswer:
    """A model's answer to a window, with the tokens of it where the model tells them."""

    window: Window
    answer: Answer
    tokens: Sequence[TokenInfo] = ()


class DocumentReader(Composition):
    """A model whose requests with a `document` are asked window by window; all others go to it as
    they are.

    An answer is whole: where a window is not answered, the document has an error in place of an
    answer.
    """

    def __init__(self, model: Answering, tasks: Mapping[str, Task]) -> None:
        super().__init__(model)
        self._tasks = tasks
        self._schemas: dict[str, str] = {}

    def prompts(self, request: Request) -> Iterable[str]:
        return [each.prompt for each in self._requests(request, self._windows(request))]

    def ask_all(
        self,
        requests: Iterable[Request],
        *,
        widen: bool = False,
        alone: bool = False,
        through: Answering | None = None,
    ) -> Outcomes:
        if isinstance(self.engine, Engine | Composition):
            yield from super().ask_all(requests, widen=widen, alone=alone, through=through)
            return
        split = [(request, self._windows(request)) for request in requests]
        places = [
            (owner, number)
            for owner, (_, parts) in enumerate(split)
            for number in range(len(parts))
        ]
        outcomes = [dict[int, Answer | EngineError]() for _ in split]
        flat = (each for request, parts in split for each in self._requests(request, parts))
        for index, outcome in self.engine.ask_all(flat, widen=widen, alone=alone):
            owner, number = places[index]
            outcomes[owner][number] = outcome
            if len(outcomes[owner]) == len(split[owner][1]):
                yield owner, self._of_outcomes(*split[owner], outcomes[owner])

    def submit(self, request: Request, on_event: OnEvent) -> Callable[[], object]:
        if not request.document:
            return self.engine.submit(request, on_event)
        parts = self._windows(request)

        def end(read: list[WindowAnswer], last: Event) -> None:
            events: list[Event] = [
                {"error": "the answers to the parts of the document cannot be merged"}
            ]
            try:
                whole = self._merged(request, read)
                last = _ending(whole) if len(parts) > 1 else last
                events = [last | {"places": list(whole.places)}]
                if len(parts) > 1:
                    events.insert(
                        0,
                        {
                            "piece": whole.text,
                            **({"tokens": []} if request.alternatives >= 0 else {}),
                        },
                    )
            finally:  # an exception in a thread is heard by nobody
                for event in events:
                    on_event(event)

        gathered = _Gathered(parts, on_event, end)
        # where one cannot be asked, or an error came before all were
        with contextlib.ExitStack() as undo:
            undo.callback(gathered.cancel)
            for number, each in enumerate(self._requests(request, parts)):
                if gathered.ended:
                    return gathered.cancel
                gathered.cancels.append(self.engine.submit(each, gathered.listener(number)))
            if not gathered.ended:
                undo.pop_all()
        return gathered.cancel

    def _windows(self, request: Request) -> list[Window]:
        if not request.document:
            return [Window(0, 0, "", "")]
        form = self._tasks[request.adapter].document
        assert form is not None  # or the request would have no document
        return documents.windows(request.document, form)

    def _requests(self, request: Request, parts: Sequence[Window]) -> Iterator[Request]:
        """The requests for the windows of a document; the request itself where it has none."""
        if not request.document:
            yield request
            return
        document, task = request.document, self._tasks[request.adapter]
        request = dataclasses.replace(request, document="")
        if len(parts) == 1 and parts[0].text == document:
            yield request
            return
        if len(parts) > 1 and request.schema and not task.rules.has_labels:
            schema = self._window_schema(request.schema)
            # the tokens tell each value's probability
            tokens = max(request.alternatives, 0)
            request = dataclasses.replace(request, schema=schema, alternatives=tokens)
        head, tail = _around(request.prompt, task.defused(document))
        opening, rest = _around(request.question, document) if request.question else ("", "")
        for part in parts:
            prompt = f"{head}{task.defused(part.text.strip())}{tail}"
            question = f"{opening}{part.text}{rest}" if request.question else ""
            yield dataclasses.replace(request, prompt=prompt, question=question)

    def _window_schema(self, schema: str) -> str:
        if schema not in self._schemas:
            whole = documents.resolved(json.loads(schema))
            self._schemas[schema] = json.dumps(documents.window_schema(whole))
        return self._schemas[schema]

    def _of_outcomes(
        self,
        request: Request,
        parts: Sequence[Window],
        outcomes: Mapping[int, Answer | EngineError],
    ) -> Answer | EngineError:
        read: list[WindowAnswer] = []
        for number, part in enumerate(parts):
            outcome = outcomes[number]
            if isinstance(outcome, EngineError):
                return type(outcome)(_not_read(part, outcome.message))
            read.append(WindowAnswer(part, outcome))
        if not request.document:
            return read[0].answer
        whole = self._merged(request, read)
        return dataclasses.replace(whole, places=whole.places[:1]) if request.labels else whole

    def _merged(self, request: Request, read: Sequence[WindowAnswer]) -> Answer:
        """The answer to a document."""
        whole = self._united(request, read)
        prompt = sum(each.answer.prompt_tokens for each in read)
        completion = sum(each.answer.completion_tokens for each in read)
        return dataclasses.replace(whole, prompt_tokens=prompt, completion_tokens=completion)

    def _united(self, request: Request, read: Sequence[WindowAnswer]) -> Answer:
        if request.labels:
            return _by_labels(read, request.document, request.labels)
        if self._tasks[request.adapter].rules.has_labels:
            return _by_votes(read)
        schema = documents.resolved(json.loads(request.schema)) if request.schema else {}
        return _by_values(read, request.document, schema)


class _Gathered:
    """Answers to the windows of a document, which come from another thread in any order; the first
    error ends all.

    Args:
        on_event: Hears the events of the only window, or the error.
        done: Is called with all answers and the last event of the last of them; in a thread of its
            own where there are several, since the thread of the events has all other requests to
            hear.

    Attributes:
        ended: No further answer is waited for.
    """

    def __init__(
        self,
        parts: Sequence[Window],
        on_event: OnEvent,
        done: Callable[[list[WindowAnswer], Event], None],
    ) -> None:
        self._parts = parts
        self._on_event = on_event
        self._done = done
        self._read: dict[int, WindowAnswer] = {}
        self._lock, self.ended = threading.Lock(), False
        self.cancels: list[Callable[[], object]] = []

    def listener(self, number: int) -> OnEvent:
        pieces, tokens = list[str](), list[TokenInfo]()

        def hear(event: Event) -> None:
            tokens.extend(event.get("tokens", ()))
            if "error" in event:
                self._fail(event | {"error": _not_read(self._parts[number], event["error"])})
            elif "piece" in event:
                pieces.append(event["piece"])
                if len(self._parts) == 1:
                    self._on_event(event)
            else:
                labels = event.get("distribution", event.get("labels", {}))
                answer = answer_of(event | {"labels": labels}, "".join(pieces))
                self._add(number, WindowAnswer(self._parts[number], answer, tokens), event)

        return hear

    def _add(self, number: int, answer: WindowAnswer, last: Event) -> None:
        with self._lock:
            self._read[number] = answer
            whole = len(self._read) == len(self._parts) and not self.ended
        if not whole:
            return
        read = [self._read[k] for k in range(len(self._parts))]
        if len(read) > 1:
            threading.Thread(target=self._done, args=(read, last), daemon=True).start()
        else:
            self._done(read, last)

    def _fail(self, event: Event) -> None:
        with self._lock:
            ended, self.ended = self.ended, True
        if not ended:
            self.cancel()
            self._on_event(event)

    def cancel(self) -> None:
        self.ended = True
        for each in list(self.cancels):
            each()


def _not_read(part: Window, reason: str) -> str:
    """The reason why a document has no answer, with the place of the window."""
    return f"{part.title.strip('[]' + chr(10))} was not read: {reason}" if part.title else reason


def _ending(whole: Answer) -> Event:
    """The event that ends the answer to a document of several windows."""
    event: Event = {
        "finish": whole.finish,
        "confidence": whole.confidence,
        "prompt_tokens": whole.prompt_tokens,
        "completion_tokens": whole.completion_tokens,
        "logprobs": list(whole.logprobs),
    }
    if whole.labels:
        event |= {
            "labels": whole.labels,
            "distribution": whole.labels,
            "raw_logprobs": list(whole.raw_logprobs),
        }
    return event


def _around(text: str, document: str) -> tuple[str, str]:
    """The text before and behind the last mention of a document, which a template may have
    stripped.

    Raises:
        EngineError: The text does not hold it.
    """
    for form in (document, document.strip()):
        if form in text:
            before, after = text.rsplit(form, 1)
            return before, after
    raise EngineError(
        "the base's chat template changes the text of a document, so it cannot be read in windows"
    )


# One answer of several windows


def _by_labels(read: Sequence[WindowAnswer], text: str, labels: Sequence[str]) -> Answer:
    """The label with the highest mean log probability; the place of a label is the window that is
    surest of it.

    The places are those of the likeliest labels: with linear members in a sum, another one may be
    the answer.
    """
    tables = np.stack([label_sum.spread(each.answer.labels, labels) for each in read])
    shares = np.exp(normalised(tables.mean(axis=0)[None])[0])
    order = sorted(range(len(labels)), key=lambda k: (-shares[k], k))
    if len(read) == 1:
        whole = read[0].answer
    else:
        listed = {labels[k]: float(f"{shares[k]:.6g}") for k in order}
        sure = math.log(max(shares[order[0]], LEAST))
        allowed = [sum(each.answer.raw_logprobs) - sum(each.answer.logprobs) for each in read]
        raw = (sure + sum(allowed) / len(read),) if read[0].answer.raw_logprobs else ()
        label = labels[order[0]]
        whole = Answer(label, "stop", listed[label], 0, 0, listed, (sure,), raw)
    breaks, places = page_breaks(text), list[ValuePlace]()
    for k in order[:LABELS]:
        loudest = read[int(tables[:, k].argmax())].window
        page = page_of(breaks, loudest.start)
        places.append(_place("", labels[k], (loudest.start, loudest.end), page, loudest.body))
    return dataclasses.replace(whole, places=tuple(places))


def _by_votes(read: Sequence[WindowAnswer]) -> Answer:
    """The labels that half of the windows' answers have, each counted by its probability."""
    if len(read) == 1:
        return read[0].answer
    weights = [each.answer.confidence or LEAST for each in read]
    votes: dict[str, float] = {}
    for each, weight in zip(read, weights, strict=True):
        labels = answer_metrics.parse(each.answer.text)
        if not isinstance(labels, list):  # such as an answer that max_tokens cut off
            return each.answer
        for label in labels:
            votes[label] = votes.get(label, 0.0) + weight
    half = sum(weights) / 2
    kept = [label for label, weight in votes.items() if weight >= half]
    shares = [weight / (2 * half) for weight in votes.values()]
    sure = math.prod(max(share, 1 - share) for share in shares)
    text = json.dumps(sorted(kept), ensure_ascii=False)
    return Answer(text, "stop", sure, 0, 0, logprobs=(math.log(max(sure, LEAST)),))


@dataclass(frozen=True)
class _Leaf:
    """A scalar in the answer to a window: its probability, and its places in the window."""

    value: Any
    probability: float
    spans: Sequence[Span]


def _by_values(read: Sequence[WindowAnswer], text: str, schema: JsonObject) -> Answer:
    """The values of all windows in one object, by their
    probabilities, each with its place in the text.
    """
    evidence = Evidence(text)
    trees = []
    for each in read:
        value = answer_metrics.parse(each.answer.text)
        if value is answer_metrics.INVALID:  # such as an answer that max_tokens cut off
            return each.answer
        trees.append(_with_leaves(value, iter(_probabilities(each)), evidence, each.window))
    merge = _Merge(page_breaks(text), text)
    value = merge.of(trees, schema, "")
    if len(read) == 1:
        return dataclasses.replace(read[0].answer, places=tuple(merge.places))
    written = json.dumps(value, ensure_ascii=False, sort_keys=True)
    logprobs, places = tuple(merge.logprobs), tuple(merge.places)
    sure = math.exp(sum(logprobs))
    return Answer(written, "stop", sure, 0, 0, logprobs=logprobs, places=places)


def _probabilities(read: WindowAnswer) -> list[float]:
    """The probability of each scalar of an answer in JSON, in the order of the text.

    It is the product of its tokens' probabilities; where the model tells none, that of the whole
    answer.
    """
    spans = list(_scalars(read.answer.text))
    if not read.tokens:
        sure = read.answer.confidence
        return [1.0 if sure is None else sure] * len(spans)
    ends = [0, *itertools.accumulate(len(token["bytes"]) for token in read.tokens)]
    shares = []
    for start, end in spans:
        touched = [k for k in range(len(read.tokens)) if ends[k] < end and ends[k + 1] > start]
        shares.append(math.exp(sum(read.tokens[k]["logprob"] for k in touched)))
    return shares


def _scalars(text: str) -> Iterator[Span]:
    """The places of the scalars of a JSON text, in bytes; keys are none."""
    matches = list(_TOKENS_OF_JSON.finditer(text))
    signs = [match.group() for match in matches]
    for match, behind in zip(matches, [*signs[1:], ""], strict=True):
        if match.group() not in "{}[]:," and behind != ":":
            start = len(text[: match.start()].encode())
            yield start, start + len(match.group().encode())


def _with_leaves(value: Any, chances: Iterator[float], evidence: Evidence, window: Window) -> Any:
    """The answer to a window with a `_Leaf` in place of each scalar."""
    if isinstance(value, dict):
        return {key: _with_leaves(inner, chances, evidence, window) for key, inner in value.items()}
    if isinstance(value, list):
        return [_with_leaves(inner, chances, evidence, window) for inner in value]
    spans = evidence.within(value, (window.start, window.end))
    return _Leaf(value, next(chances, 1.0), spans)


class _Merge:
    """One value of the windows' values.

    Attributes:
        places: Those of the values that were taken, and of likely others.
        logprobs: The log probability of each scalar that was decided on.
    """

    def __init__(self, breaks: Sequence[int], text: str) -> None:
        self._breaks, self._text = breaks, text
        self.places: list[ValuePlace] = []
        self.logprobs: list[float] = []

    def of(self, trees: Sequence[Any], schema: Any, path: str) -> Any:
        objects = [tree for tree in trees if isinstance(tree, dict)]
        if objects or documents.properties_of(schema):
            made = self._object(objects, schema, path)
            return made if documents.holds(made) or not documents.allows_null(schema) else None
        if lists := [tree for tree in trees if isinstance(tree, list)]:
            return self._list(lists, f"{path}[]")
        return self._scalar([tree for tree in trees if isinstance(tree, _Leaf)], schema, path)

    def _object(self, objects: Sequence[dict[str, Any]], schema: Any, path: str) -> Any:
        """An object; what is not known is null where the schema takes
        null, else left out where it may be.
        """
        properties = documents.properties_of(schema)
        needed = schema.get("required", ()) if isinstance(schema, dict) else ()
        made = {}
        for key in sorted({*properties, *itertools.chain.from_iterable(objects)}):
            inner = properties.get(key, {})
            parts = [each[key] for each in objects if key in each]
            value = self.of(parts, inner, f"{path}.{key}" if path else key) if parts else None
            if value is not None or key in needed or documents.allows_null(inner):
                made[key] = value
        return made

    def _list(self, lists: Sequence[list[Any]], path: str) -> list[Any]:
        """The items of all lists, equal ones once; an item of which
        nothing stands in its window is none.
        """
        made, seen = list[Any](), set[str]()
        for item in itertools.chain.from_iterable(lists):
            leaves = list(_leaves(item, path))
            key = json.dumps([(where, _form(leaf.value)) for where, leaf in leaves])
            if key in seen or not any(leaf.spans for _, leaf in leaves):
                continue
            seen.add(key)
            made.append(_plain(item))
            for where, leaf in leaves:
                self._take(leaf, where)
        return made

    def _scalar(self, leaves: Sequence[_Leaf], schema: Any, path: str) -> Any:
        """The likeliest value that stands in its window; null where no window has a value."""
        taken = [
            leaf
            for leaf in leaves
            if leaf.value is not None and (leaf.spans or documents.is_closed(leaf.value, schema))
        ]
        if not taken:
            least = min((leaf.probability for leaf in leaves if leaf.value is None), default=1.0)
            self.logprobs.append(math.log(max(least, LEAST)))
            return None
        best = max(taken, key=lambda leaf: leaf.probability)
        others = [leaf for leaf in taken if _form(leaf.value) != _form(best.value)]
        rival = max(others, key=lambda leaf: leaf.probability, default=None)
        self._take(best, path)
        if rival is not None and rival.probability >= LIKELY:
            self.logprobs[-1] += math.log(best.probability / (best.probability + rival.probability))
            self.places += [{**place, "conflict": True} for place in self._placed(rival, path)]
        return best.value

    def _take(self, leaf: _Leaf, path: str) -> None:
        self.logprobs.append(math.log(max(leaf.probability, LEAST)))
        self.places += self._placed(leaf, path)

    def _placed(self, leaf: _Leaf, path: str) -> list[ValuePlace]:
        if not leaf.spans:
            return []
        start, end = leaf.spans[0]
        around = self._text[max(0, start - AROUND) : end + AROUND]
        return [_place(path, leaf.value, (start, end), page_of(self._breaks, start), around)]


def _place(path: str, value: Any, span: Span, page: int, around: str) -> ValuePlace:
    return {
        "path": path,
        "value": value,
        "start": span[0],
        "end": span[1],
        "page": page,
        "around": around,
    }


def _leaves(tree: Any, path: str) -> Iterator[tuple[str, _Leaf]]:
    if isinstance(tree, _Leaf):
        yield path, tree
    elif isinstance(tree, dict):
        for key, inner in tree.items():
            yield from _leaves(inner, f"{path}.{key}")
    else:
        for inner in tree:
            yield from _leaves(inner, f"{path}[]")


def _plain(tree: Any) -> Any:
    if isinstance(tree, _Leaf):
        return tree.value
    if isinstance(tree, dict):
        return {key: _plain(inner) for key, inner in tree.items()}
    return [_plain(inner) for inner in tree]


def _form(value: Any) -> Any:
    """A scalar by which equal ones are told: texts in their words, whatever their case."""
    return " ".join(answer_metrics.words(value)) or value if isinstance(value, str) else value
