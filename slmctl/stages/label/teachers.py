"""rows -> answers of a teacher in its journal: an endpoint with the task in its prompt, or a
release on this machine.

An endpoint is sent only what `rows.clearances` allows. A release answers as it was trained,
restricted to the labels or the schema, and sees every row.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from slmctl import console
from slmctl.artifacts import artifact
from slmctl.artifacts.artifact import canonical, sha256_bytes
from slmctl.config import LabelConfig, Teacher
from slmctl.errors import StageError, UsageError
from slmctl.inference.engine import MOST_DEADLY, Request
from slmctl.inference.supervised_child import EngineDiedError, EngineError
from slmctl.models.model import Loading, Model
from slmctl.network.decisions import CHAT, Choice
from slmctl.network.endpoint_pool import EndpointPool
from slmctl.network.endpoint_replies import BYTES_A_TOKEN, EndpointError, Reply
from slmctl.network.openai_client import EndpointRequest, constraint
from slmctl.sensitive.conversation_veto import Cleared, restore
from slmctl.stages.label.journal import Budget, Journal, Permission, TeacherAnswer, cost_of
from slmctl.stages.label.rows import LabelRow
from slmctl.task import untuned_prompt
from slmctl.task.contract import Task
from slmctl.task.engine_requests import engine_request
from slmctl.task.records import question_of

REFUSED = 400  # the status of a request that the engine refuses
WARM = 0.7  # temperature of every vote but the first
PASSES = 3  # over the rows without an answer, since a failure may be temporary
PaidRequest = tuple[str, EndpointRequest, float]  # key, request, the most that it may cost
KINDS = ("published", "gguf")  # of a release that may teach


@dataclass(frozen=True)
class Vote:
    """One answer of a teacher (by number) to a row, as it is read;
    `is_valid` if the task allows it.
    """

    teacher: int
    answer: str
    is_valid: bool
    confidence: float | None


class NearestExamples:
    """The gold rows of a pool that are nearest to a text, by TF-IDF of words and word pairs."""

    def __init__(self, pool: Sequence[LabelRow], count: int) -> None:
        self._pool, self._count = pool, min(count, len(pool))
        if self._count:
            from sklearn.feature_extraction.text import TfidfVectorizer

            words = r"(?u)\b\w+\b|[^\w\s]"  # signs too, so that no text is without a word
            self._vectorizer = TfidfVectorizer(
                ngram_range=(1, 2), sublinear_tf=True, token_pattern=words
            )
            self._matrix = self._vectorizer.fit_transform([row.text for row in pool])

    def of(self, row: LabelRow) -> list[LabelRow]:
        """The nearest gold rows, the nearest last; never the row itself."""
        if not self._count:
            return []
        alike = (self._matrix @ self._vectorizer.transform([row.text]).T).toarray().ravel()
        order = sorted(range(len(self._pool)), key=lambda k: (-alike[k], self._pool[k].id))
        nearest = [self._pool[k] for k in order[: self._count + 1] if self._pool[k].id != row.id][
            : self._count
        ]
        return nearest[::-1]


class JournalTeacher(abc.ABC):
    """A model that labels; its journal keeps every request, by row and vote, with its outcome.

    Attributes:
        where: `endpoint` or `release`.
        votes: Answers to each row.
        concurrency: Number of requests at the same time.
        prompt_hash: The hash of the part that all its prompts share, and of the settings of a
            request.
    """

    where: ClassVar[str]
    prompt_hash: str

    def __init__(
        self,
        config: LabelConfig,
        teacher: Teacher,
        journal: Journal,
        budget: Budget,
        *,
        votes: int,
        concurrency: int,
    ) -> None:
        self.name = teacher.name
        self.journal = journal
        self.votes = votes
        self.concurrency = concurrency
        self._config = config
        self._teacher = teacher
        self._budget = budget
        self._keys: dict[tuple[str, int], str] = {}

    @abc.abstractmethod
    def may_see(self, row: LabelRow) -> bool:
        """True for a row that may be shown to the model."""

    @abc.abstractmethod
    def look_up(self, rows: Sequence[LabelRow]) -> None:
        """Find the answers to rows in the journal, without asking, for `answers`."""

    @abc.abstractmethod
    def ask(self, rows: Sequence[LabelRow]) -> None:
        """Ask for every answer that is not in the journal, as far as the budget goes.

        Raises:
            NetworkError: The endpoint cannot be reached, or refuses the key or the model.
            StageError: The file of a release cannot be loaded, or rows end the engine.
        """

    def asked_for(self, rows: Sequence[LabelRow]) -> int:
        return sum(map(self.may_see, rows)) * self.votes

    def answers(self, row: LabelRow) -> list[TeacherAnswer]:
        return self.journal.found(self._keys.get((row.id, vote), "") for vote in range(self.votes))

    def is_open(self, row: LabelRow) -> bool:
        """True for a row that may be shown, and of which the journal
        holds neither an answer nor a refusal.
        """
        keys = [self._keys.get((row.id, vote), "") for vote in range(self.votes)]
        return self.may_see(row) and not any(
            key in self.journal.answers or key in self.journal.refused for key in keys
        )


class EndpointTeacher(JournalTeacher):
    """A model behind an endpoint, which sees the rows that may leave."""

    where = "endpoint"

    def __init__(
        self,
        config: LabelConfig,
        teacher: Teacher,
        journal: Journal,
        budget: Budget,
        *,
        task: Task,
        examples: NearestExamples,
        cleared: Mapping[str, Cleared],
    ) -> None:
        assert teacher.url is not None and teacher.model is not None
        # a decisions API would repeat itself, and returns probabilities, so one answer is enough
        votes = config.votes if teacher.api == CHAT else 1
        super().__init__(
            config, teacher, journal, budget, votes=votes, concurrency=teacher.concurrency
        )
        self._task = task
        self._examples = examples
        self._cleared = cleared
        self._choice = untuned_prompt.choice(task, teacher.api)
        self._pool = EndpointPool(
            [teacher.url],
            teacher.model,
            teacher.key_env,
            teacher.concurrency,
            teacher.timeout_s,
            api=teacher.api,
        )
        self._options = {"logprobs": True, **constraint(task.labels, task.rules.constraint())}
        settings: list[object] = [
            untuned_prompt.brief(task),
            config.examples,
            config.votes,
            config.max_tokens,
        ]
        if self._choice is not None:
            settings = [teacher.api, *dataclasses.astuple(self._choice), config.examples]
        self.prompt_hash = sha256_bytes(canonical(settings))[7:19]

    def may_see(self, row: LabelRow) -> bool:
        return not self._cleared[row.id].reason

    def look_up(self, rows: Sequence[LabelRow]) -> None:
        for _ in self._requests(self._pairs(rows)):
            pass

    def ask(self, rows: Sequence[LabelRow]) -> None:
        pairs = self._pairs(rows)
        with console.progress(f"asking {self.name}", len(pairs), "answers") as meter:
            for _ in range(PASSES):
                left = [
                    (row, k)
                    for row, k in pairs
                    if self._keys.get((row.id, k)) not in self.journal.answers
                ]
                if not left or self._budget.reached:
                    break
                watch = _PaidRequests(self.journal, self._budget, self._answer)
                for _, reply in self._pool.ask_all(
                    watch.noted(self._unanswered(left, meter)), watch=watch
                ):
                    meter.advance(isinstance(reply, Reply))

    def _unanswered(
        self, pairs: Sequence[tuple[LabelRow, int]], meter: console.Meter
    ) -> Iterator[PaidRequest]:
        """The requests without an answer in the journal, until the ceiling is reached."""
        out = set[str]()
        for key, request in self._requests(pairs):
            if self._budget.reached:
                return
            if key in self.journal.answers or key in out:
                meter.resume(meter.done + 1)
                continue
            out.add(key)
            yield (
                key,
                request,
                cost_of(self._teacher.prices, request.most_prompt_tokens, request.max_tokens),
            )

    def _pairs(self, rows: Sequence[LabelRow]) -> list[tuple[LabelRow, int]]:
        return [(row, vote) for row in rows if self.may_see(row) for vote in range(self.votes)]

    def _requests(
        self, pairs: Sequence[tuple[LabelRow, int]]
    ) -> Iterator[tuple[str, EndpointRequest]]:
        """Each request with its key in the journal, which is kept."""
        # the votes of a row come one after another
        shown = functools.lru_cache(maxsize=64)(self._messages)
        for row, vote in pairs:
            request = EndpointRequest(
                shown(row),
                self._config.max_tokens,
                WARM if vote else 0.0,
                options=self._options | ({"seed": vote} if vote else {}),
                choice=self._question(row),
            )
            self._keys[row.id, vote] = key = self._key(request, vote)
            yield key, request

    def _question(self, row: LabelRow) -> Choice | None:
        """The question for a decisions API, with the row's examples; None
        for a chat, whose messages have them.
        """
        if self._choice is None:
            return None
        shown = [
            (self._cleared[example.id].messages[0]["content"], example.gold)
            for example in self._examples.of(row)
        ]
        return untuned_prompt.choice(self._task, self._teacher.api, shown)

    def _messages(self, row: LabelRow) -> tuple[dict[str, str], ...]:
        if self._choice is not None:
            return (self._cleared[row.id].messages[0],)
        turns = [{"role": "system", "content": untuned_prompt.brief(self._task)}]
        for example in self._examples.of(row):
            shown = self._cleared[example.id].messages
            answer = example.gold if self._task.rules.chooses else shown[1]["content"]
            turns += [shown[0], {"role": "assistant", "content": answer}]
        return (*turns, self._cleared[row.id].messages[0])

    def _key(self, request: EndpointRequest, vote: int) -> str:
        content = [list(request.messages), request.max_tokens, request.temperature, vote]
        content += [dataclasses.astuple(request.choice)] if request.choice is not None else []
        return sha256_bytes(canonical(content))[7:39]

    def _answer(self, reply: Reply) -> TeacherAnswer:
        prompt, completion = reply.prompt_tokens or 0, reply.completion_tokens or 0
        # counts of no prompt tokens, or of fewer than the text of an answer needs, are taken as no
        # counts
        written = len(reply.text.encode()) if self._choice is None else 0
        counted = prompt > 0 and completion * BYTES_A_TOKEN >= written
        cost = cost_of(self._teacher.prices, prompt, completion)
        return TeacherAnswer(
            reply.text,
            reply.finish,
            prompt,
            completion,
            round(reply.seconds, 3),
            reply.confidence,
            cost,
            counted,
        )


class _PaidRequests:
    """Sends the requests of a pool as the budget allows, and
    records their outcomes in the journal.
    """

    def __init__(
        self, journal: Journal, budget: Budget, read: Callable[[Reply], TeacherAnswer]
    ) -> None:
        self._journal = journal
        self._budget = budget
        self._read = read
        self._keys: dict[int, str] = {}
        self._most: dict[int, float] = {}

    def noted(self, requests: Iterator[PaidRequest]) -> Iterator[EndpointRequest]:
        """The requests; keeps the key and the highest cost of each by its index."""
        for index, (key, request, most) in enumerate(requests):
            self._keys[index], self._most[index] = key, most
            yield request

    def may_send(self, index: int) -> Permission:
        """Permission for an attempt, see `Budget.take`."""
        return self._budget.take(self._journal, self._keys[index], self._most[index])

    def answered(self, index: int, reply: Reply) -> None:
        self._journal.answer(self._keys[index], self._read(reply))

    def failed(self, index: int, error: EndpointError) -> None:
        self._journal.fail(self._keys[index], error.status)


class ReleaseTeacher(JournalTeacher):
    """A GGUF file on this machine, which sees every row: asked once a
    row, and for free texts `votes` times.
    """

    where = "release"

    def __init__(
        self,
        config: LabelConfig,
        teacher: Teacher,
        journal: Journal,
        budget: Budget,
        *,
        task: Task,
        model: Model,
        loading: Loading | None = None,
    ) -> None:
        votes = config.votes if task.rules.is_free else 1
        super().__init__(config, teacher, journal, budget, votes=votes, concurrency=1)
        self._task = task
        self._model = model
        self._loading = loading or Loading()
        self.prompt_hash = sha256_bytes(canonical([self._task.digest, self._model.digest]))[7:19]

    def may_see(self, row: LabelRow) -> bool:
        return True

    def look_up(self, rows: Sequence[LabelRow]) -> None:
        for row in rows:
            for vote in range(self.votes):
                content = [self._model.digest, self._task.digest, row.text, vote]
                self._keys[row.id, vote] = sha256_bytes(canonical(content))[7:39]

    def ask(self, rows: Sequence[LabelRow]) -> None:
        self.look_up(rows)
        pairs = [(row, vote) for row in rows for vote in range(self.votes)]
        left = [
            (row, vote)
            for row, vote in pairs
            if self._keys[row.id, vote] not in self.journal.answers
        ]
        if not left:
            return
        from slmctl.models import documents  # with it comes numpy

        self._model.require_room(self._loading)
        with (
            documents.reading(self._model.load(self._loading), {"": self._task}) as engine,
            console.progress(f"asking {self.name}", len(left), "answers") as meter,
        ):
            deadly = 0
            for index, answer in engine.ask_all(self._requests(left), widen=True, alone=True):
                row, vote = left[index]
                key = self._keys[row.id, vote]
                if isinstance(answer, EngineError):
                    console.detail(f"{row.file} row {row.number}: {answer.message}")
                    self.journal.fail(key, REFUSED)
                    deadly += isinstance(answer, EngineDiedError)
                    continue
                counts = answer.prompt_tokens, answer.completion_tokens
                self.journal.answer(
                    key,
                    TeacherAnswer(
                        answer.text, answer.finish, *counts, confidence=answer.confidence
                    ),
                )
                meter.advance()
        if deadly >= MOST_DEADLY:
            raise StageError(
                f"{deadly} rows end the engine of {self.name}",
                hint="is the memory full? the same command goes on with the rows that are left",
            )

    def _requests(self, pairs: Sequence[tuple[LabelRow, int]]) -> Iterator[Request]:
        task, mark = self._task, "\x00"
        prefix = task.prompt(task.messages(mark)).partition(mark)[0]
        for row, vote in pairs:
            if self._budget.take(self.journal, self._keys[row.id, vote], 0.0) == "stop":
                return
            yield engine_request(
                task,
                task.prompt(task.messages(row.text)),
                prefix=prefix,
                max_tokens=self._config.max_tokens,
                temperature=WARM if vote else 0.0,
                seed=vote,
                question=question_of(task.messages(row.text)),
                document=row.text,
            )


def task_of(folder: Path, task: Task) -> Task:
    """The contract of a release, after a check that it may teach a task.

    Raises:
        IntegrityError: The folder is not an artifact, or carries no contract.
        UsageError: It is of another kind, or of another task.
    """
    made = artifact.load(folder)
    if made.kind not in KINDS:
        raise UsageError(
            f"{folder} is of kind '{made.kind}', and a teacher is a release",
            hint=" or ".join(KINDS),
        )
    own = Task.read(folder)
    if own.kind != task.kind:
        raise UsageError(
            f"the teacher {folder} is of a {own.kind} task, and this one is {task.kind}"
        )
    if foreign := sorted(set(own.labels) - set(task.labels)):
        raise UsageError(
            f"the teacher {folder} answers with labels that this task has not: "
            f"{', '.join(foreign[:5])}",
            hint="task.labels and the gold rows name the labels of this task",
        )
    return own


def votes_of(
    teachers: Sequence[JournalTeacher], task: Task, row: LabelRow, marks: Mapping[str, str]
) -> list[Vote]:
    """The votes of all teachers on a row, with the values that `marks` stand for put back."""
    votes = []
    for number, teacher in enumerate(teachers):
        for answer in teacher.answers(row):
            text = untuned_prompt.read(task, answer.text)
            is_valid = (
                task.accepts(text)
                and (task.rules.chooses or answer.finish != "length")
                and bool(text)
            )
            if is_valid and not task.rules.chooses:
                text = restore(text, marks, is_json=task.rules.structured)
            votes.append(Vote(number, text, is_valid, answer.confidence))
    return votes


def journal_path(folder: Path, teacher: Teacher) -> Path:
    """The journal of a teacher: one file for each address and model, or each release."""
    named = (
        [teacher.url, teacher.model]
        if teacher.release is None
        else [artifact.load(teacher.release).digest]
    )
    return folder / f"{sha256_bytes(canonical(named))[7:19]}.jsonl"
