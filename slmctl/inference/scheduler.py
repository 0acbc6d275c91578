"""Requests in, events out: decodes all requests together with a loaded model, batch by batch.

Every sequence has a place in one llama.cpp context; the tokens that they need next are decoded
together (continuous batching). Clients take turns, and as many sequences of each go on in a batch,
so that one that floods slows no other. A recurrent model has one state a sequence, copied whole or
not at all.
"""

from __future__ import annotations

import codecs
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from slmctl.errors import DataError
from slmctl.inference import kept_prefixes
from slmctl.inference.decoding_model import BATCH, DecodingModel, Item, Logits, common
from slmctl.inference.engine import Request
from slmctl.inference.events import TokenAlternative, TokenInfo, TokenText
from slmctl.inference.grammar_pool import Grammars, GrammarState
from slmctl.inference.label_search import LabelSearch, LabelTrie
from slmctl.inference.turns import Turns

NEVER = np.float32(-np.inf)  # the logit of a token that may not come
KEPT = 64  # tries of labels
COMPILING = 4  # schemas at the same time
KEPT_TOKENS = 1 << 16  # of all tries together, beside the last one: some dozen MB
TURN = 8  # batches in a row for the requests of one adapter, while others wait


class Text:
    """Turns bytes of tokens into text; holds back half characters and all
    that is or may become a stop string.
    """

    def __init__(self, stop: Iterable[str]) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode
        self._stop = [text for text in stop if text]
        self._held = ""
        self.stopped = False

    def push(self, raw: bytes, *, final: bool = False) -> str:
        """Take `raw`; return the text that may be shown now."""
        self._held += self._decode(raw, final)
        places = [place for place in (self._held.find(text) for text in self._stop) if place >= 0]
        if places:
            self.stopped = True
            shown, self._held = self._held[: min(places)], ""
            return shown
        keep = 0 if final else max((self._overlap(text) for text in self._stop), default=0)
        shown, self._held = (
            self._held[: len(self._held) - keep],
            self._held[len(self._held) - keep :],
        )
        return shown

    def _overlap(self, stop: str) -> int:
        """Length of the longest end of the held text that begins `stop`."""
        return next(
            (
                n
                for n in range(min(len(stop), len(self._held)), 0, -1)
                if self._held.endswith(stop[:n])
            ),
            0,
        )


@dataclass
class Sequence:
    """One request while it is answered."""

    id: str
    request: Request
    prompt: list[int]
    shared: int  # the first tokens of the prompt that it has in common with others
    max_tokens: int
    random: np.random.Generator
    text: Text
    search: LabelSearch | None = None  # for labels
    schema: str = ""  # for JSON
    grammar: GrammarState | None = None  # of what is answered so far; None while it is awaited
    # the token of which the grammar's state is awaited
    chosen: list[int] = field(default_factory=list)
    slot: int = 0
    # of a recurrent model: the sequence that keeps the state at the first choice of a label
    kept: int = 0
    first: int = 0  # tokens of the path that it holds
    position: int = 0  # tokens of this sequence in the context so far
    pending: list[int] = field(default_factory=list)  # tokens to decode next
    # tokens of labels in the context, after the prompt
    path: list[int] = field(default_factory=list)
    answered: int = 0
    probability: float = 1.0  # of the choices made, each among what was allowed
    logprobs: list[float] = field(default_factory=list)  # of each of these choices
    # log of all weights, by path of a label
    totals: dict[tuple[int, ...], float] = field(default_factory=dict)
    # tokens not sent, with their places in bytes
    untold: list[tuple[int, TokenInfo]] = field(default_factory=list)
    raw: int = 0  # bytes answered
    shown: int = 0  # of these, sent

    @property
    def room(self) -> int:
        return len(self.prompt) + self.max_tokens


class Scheduler:
    """Admits the requests that fit, and moves the admitted ones on in each step.

    Args:
        slots: Requests at the same time.
        spare: Places beside these, for clients that have no sequence yet.

    Attributes:
        fills: `all` while more requests of a run follow at once: a batch waits until they take all
            places, and for the grammars of all; `rest` once the last one is here: for the grammars
            alone. The same run makes the same batches then, however fast its parts come. Empty for
            requests that come as they like.
    """

    fills = ""

    def __init__(
        self,
        model: DecodingModel,
        slots: int,
        context: int,
        send: Callable[..., None],
        grammars: Grammars,
        adapters: Iterable[str] = (),
        *,
        spare: int = 0,
    ) -> None:
        self.model = model
        self.context = context
        self.send = send
        self.grammars = grammars
        self.slots, self.spare = slots, spare
        places = slots + self.spare
        self.free = list(range(places, 0, -1))
        self.unread = Turns[Sequence]()  # their schemas have not been compiled yet
        self.compiling: dict[str, Sequence] = {}
        self.adapters = [*adapters, ""]
        prefixes = kept_prefixes.count_of(model.recurrent, len(self.adapters) - 1)
        self.prefixes = kept_prefixes.KeptPrefixes(
            model, [0, *range(places + 1, places + prefixes)]
        )
        self.waiting = Turns[Sequence]()
        self.active: list[Sequence] = []
        self._turn, self._left = "", TURN
        self._tries: dict[tuple[str | tuple[str, ...], ...], LabelTrie] = {}

    @property
    def busy(self) -> bool:
        """True where there is something to do that does not wait for a
        grammar, nor for requests that fill a batch.
        """
        if self.fills and (self.awaits_grammar or self.compiling):
            return False
        if self.fills == "all" and len(self.waiting) < self._places:
            return False
        return self._next_admitted() is not None or any(
            sequence.pending for sequence in self.active
        )

    @property
    def _places(self) -> int:
        """Number of requests that the free places are enough for, the spare ones left out."""
        following = self.waiting.next()
        return (len(self.free) - self.spare) // (
            2 if following is not None and self._keeps_state(following) else 1
        )

    @property
    def awaits_grammar(self) -> bool:
        """True while an answer waits for the state of its grammar."""
        return any(sequence.chosen for sequence in self.active)

    def _next_admitted(self) -> Sequence | None:
        """The request whose turn it is, where there are as many free places as it takes."""
        sequence = self.waiting.next(self._may_enter)
        return (
            sequence
            if sequence and len(self.free) >= (2 if self._keeps_state(sequence) else 1)
            else None
        )

    def _may_enter(self, client: str) -> bool:
        """False for a client with sequences where the spare places alone are left."""
        return len(self.free) > self.spare or all(
            sequence.request.client != client for sequence in self.active
        )

    def _keeps_state(self, sequence: Sequence) -> bool:
        return self.model.recurrent and sequence.search is not None

    def submit(self, id: str, request: Request) -> None:
        """Take a request; one that cannot be answered gets its error at once."""
        try:
            sequence = self._sequence(id, request)
            self._require_fit(sequence, request)
        except DataError as error:
            self.send(id=id, error=error.message, refused=True)
            return
        (self.unread if sequence.schema else self.waiting).put(request.client, sequence)
        self._compile()

    def _compile(self) -> None:
        """Have schemas compiled, a few at a time, and no more than
        there are places for their answers.
        """
        held = len(self.compiling) + sum(
            bool(sequence.schema) for sequence in (*self.waiting, *self.active)
        )
        while self.unread and len(self.compiling) < COMPILING and held < self.slots + COMPILING:
            sequence = self.unread.take()
            self.compiling[sequence.id] = sequence
            self.grammars.begin(sequence.id, sequence.schema)
            held += 1

    def take_grammar(self, id: str, state: GrammarState | str) -> None:
        """Take the grammar's state for an answer, or the error
        sentence of a grammar that failed.
        """
        sequence = self.compiling.pop(id, None)
        if sequence is not None:
            if isinstance(state, str):
                self.grammars.end(id)
                self.send(id=id, error=state, refused=True)
            else:
                sequence.grammar = state
                self.waiting.put(sequence.request.client, sequence)
            self._compile()
            return
        for sequence in [
            sequence for sequence in self.active if sequence.id == id and sequence.chosen
        ]:
            if isinstance(state, str):
                self._fail(sequence, state)
            else:
                tokens = [*sequence.chosen, *state.forced]
                sequence.chosen = []
                sequence.grammar = state
                self._append(sequence, tokens)

    def _require_fit(self, sequence: Sequence, request: Request) -> None:
        count = len(sequence.prompt)
        if not count:
            raise DataError("the prompt is empty")
        if request.shorten and count < self.context:
            sequence.max_tokens = min(sequence.max_tokens, self.context - count)
        if sequence.room > self.context:
            raise DataError(
                f"a prompt of {count} tokens with an answer of up to {sequence.max_tokens} "
                f"does not fit the context of {self.context} tokens"
            )

    def cancel(self, id: str) -> None:
        """Forget a request and free its place."""
        self.unread.remove(lambda sequence: sequence.id == id)
        if self.compiling.pop(id, None) or any(
            sequence.id == id and sequence.schema for sequence in self.waiting
        ):
            self.grammars.end(id)
        self.waiting.remove(lambda sequence: sequence.id == id)
        for sequence in [sequence for sequence in self.active if sequence.id == id]:
            self._release(sequence)
        self._compile()

    def step(self) -> None:
        """Admit, decode one batch, choose the next tokens."""
        self._admit()
        adapter = self._whose_turn()
        turn = [
            sequence
            for sequence in self.active
            if sequence.request.adapter == adapter and sequence.pending
        ]
        items: list[Item] = []
        for part, room in self._parts(turn):
            end = len(items) + room
            for sequence in part:
                items += self._next_items(sequence, end - len(items))
        if not items:
            return
        by_slot = {sequence.slot: sequence for sequence in turn}
        self.model.use(adapter)
        for slot, logits in self.model.decode(items):
            self._heard(by_slot[slot], logits)
        # Sequences that generate go before those that still read a prompt, so a long prompt cannot
        # stall answers.
        self.active.sort(key=lambda sequence: len(sequence.pending) > 1)

    def _parts(self, turn: list[Sequence]) -> list[tuple[list[Sequence], int]]:
        """Of each client the sequences that go on now, as many of each, and the tokens that they
        may take.

        A client alone has all of its own in a batch. Where another one asked lately, one of them
        reads its prompt, so that the other one, when it comes again, waits for no longer batch than
        a client with one request makes.
        """
        by_client: dict[str, list[Sequence]] = {}
        for sequence in turn:
            by_client.setdefault(sequence.request.client, []).append(sequence)
        if not by_client:
            return []
        fewest, room = min(map(len, by_client.values())), max(1, BATCH // len(by_client))
        if len(by_client) == 1 and self.waiting.is_shared:
            # those that generate are the first ones
            fewest = 1 + sum(len(sequence.pending) == 1 for sequence in turn)
        return [(part[:fewest], room) for part in by_client.values()]

    def _whose_turn(self) -> str:
        """The adapter of the next batch: an adapter changes the whole model, so a batch has one."""
        names = list(
            dict.fromkeys(sequence.request.adapter for sequence in self.active if sequence.pending)
        )
        if self._turn not in names or (self._left <= 0 and len(names) > 1):
            order = self.adapters
            later = order[order.index(self._turn) + 1 :] + order
            self._turn, self._left = next((name for name in later if name in names), ""), TURN
        self._left -= 1
        return self._turn

    def _sequence(self, id: str, request: Request) -> Sequence:
        prompt, head = self.model.tokenize(request.prompt), self.model.tokenize(request.prefix)
        # the last token must be decoded, to have its logits
        shared = max(0, min(common(prompt, head), len(prompt) - 1))
        random, text = np.random.default_rng(request.seed), Text(request.stop)
        sequence = Sequence(id, request, prompt, shared, request.max_tokens, random, text)
        if request.labels:
            trie = self._trie(request.labels, request.written_labels, request.end)
            sequence.search = LabelSearch(trie, rest=request.rest)
            # a label needs no more room than the longest one has tokens
            sequence.max_tokens = trie.depth
        elif request.schema:
            # the grammar ends an answer; a stop string may stand inside a value
            sequence.text = Text(())
            sequence.schema = request.schema
        return sequence

    def _next_items(self, sequence: Sequence, room: int) -> list[Item]:
        take, sequence.pending = sequence.pending[:room], sequence.pending[room:]
        begin, end = sequence.position, sequence.position + len(take)
        sequence.position = end
        # the position whose logits are needed; it may come in a later batch
        last = end - (not sequence.pending)
        return [
            Item(token, k, sequence.slot, k == last) for k, token in enumerate(take, start=begin)
        ]

    def _admit(self) -> None:
        while (sequence := self._next_admitted()) is not None:
            prefix = sequence.prompt[: sequence.shared]
            free = self.model.cells - sequence.room - sum(other.room for other in self.active)
            if not self.prefixes.make_room(free, sequence.request.adapter, prefix):
                if self.active:
                    return
                self.prefixes.clear()
            self.waiting.take(self._may_enter)
            source, sequence.shared = self.prefixes.share(sequence.request.adapter, prefix)
            sequence.slot = self.free.pop()
            sequence.kept = self.free.pop() if self._keeps_state(sequence) else 0
            if sequence.shared:
                self.model.copy(source, sequence.slot, sequence.shared)
            sequence.position = sequence.shared
            sequence.pending = sequence.prompt[sequence.shared :]
            self.active.append(sequence)
            if sequence.grammar is not None:
                self._append(sequence, list(sequence.grammar.forced))
            elif sequence.search is not None and sequence.search.path is None:
                self._end_label(sequence)  # there is only one label
            elif (
                sequence.search is not None and sequence.search.path
            ):  # all labels begin with these tokens
                sequence.path = list(sequence.search.path)
                sequence.pending = [*sequence.pending, *sequence.path]

    def _heard(self, sequence: Sequence, logits: Logits) -> None:
        """Continue a sequence with the logits of its next token."""
        if math.isnan(logits.max()):
            self._fail(
                sequence,
                "llama.cpp computed NaN: the file is damaged, or its products are wrong here",
            )
        elif sequence.search is not None:
            self._label(sequence, sequence.search, logits)
        elif sequence.grammar is not None:
            self._json(sequence, sequence.grammar, logits)
        else:
            self._free_text(sequence, logits)

    def _label(self, sequence: Sequence, search: LabelSearch, logits: Logits) -> None:
        """Walk the trie: ask only where there is a choice, go back
        where another branch is likelier.
        """
        assert search.path is not None
        sequence.totals[tuple(search.path)] = log_sum(logits)
        search.take(logits)
        path = search.path
        if path is None:
            self._end_label(sequence)
            return
        if sequence.kept and len(sequence.totals) == 1:
            self.model.copy(sequence.slot, sequence.kept, sequence.position)
            sequence.first = len(sequence.path)
        same = common(sequence.path, path)
        if same < len(sequence.path):
            same = self._go_back(sequence, same)
        sequence.position = len(sequence.prompt) + same
        sequence.pending, sequence.path = path[same:], path

    def _go_back(self, sequence: Sequence, same: int) -> int:
        """Have a sequence hold fewer tokens of its path, `same` at most; returns how many."""
        if not sequence.kept:
            self.model.forget(sequence.slot, len(sequence.prompt) + same)
            return same
        self.model.forget(sequence.slot)
        self.model.copy(sequence.kept, sequence.slot, len(sequence.prompt) + sequence.first)
        return sequence.first

    def _end_label(self, sequence: Sequence) -> None:
        search = sequence.search
        assert search is not None
        index, sequence.probability = search.best
        tokens, label = search.trie.tokens[index], search.trie.labels[index]
        sequence.answered = len(tokens)
        choices = {len(choice.path): choice for choice in search.choices()}
        sequence.logprobs = [log(choice.shares[tokens[k]]) for k, choice in choices.items()]
        among_all = [
            rounded(item + choice.weight - sequence.totals[choice.path])
            for item, choice in zip(sequence.logprobs, choices.values(), strict=True)
        ]
        for k, token in enumerate(tokens if sequence.request.alternatives >= 0 else ()):
            shares = choices[k].shares if k in choices else {token: 1.0}
            if not self.model.ends(token):
                self._tell(
                    sequence,
                    token,
                    log(shares[token]),
                    [(item, log(share)) for item, share in shares.items()],
                )
        sequence.raw = len(label.encode())
        self._emit(sequence, label)
        more = {"distribution": search.distribution()} if sequence.request.rest < 1 else {}
        self._finish(
            sequence, "stop", labels=search.probabilities(), raw_logprobs=among_all, **more
        )

    def _json(self, sequence: Sequence, grammar: GrammarState, logits: Logits) -> None:
        """Choose among what the grammar allows; its state then says
        what it forces, which is not asked for.
        """
        if not grammar.allowed.any():
            self._fail(sequence, "the grammar allows nothing more")
            return
        token = self._choose(sequence, np.where(grammar.allowed[: len(logits)], logits, NEVER))
        if self.model.ends(token):
            sequence.answered += 1
            self._end_text(sequence, "stop")
            return
        sequence.chosen, sequence.grammar = [token], None
        self.grammars.accept(sequence.id, token)

    def _free_text(self, sequence: Sequence, logits: Logits) -> None:
        token = self._choose(sequence, logits)
        if self.model.ends(token):
            sequence.answered += 1
            self._end_text(sequence, "stop")
        else:
            self._append(sequence, [token])

    def _choose(self, sequence: Sequence, logits: Logits) -> int:
        """Draw the next token, never one with the logit NEVER, and record its probability."""
        token, probability = self._sample(sequence, logits)
        sequence.probability *= probability
        sequence.logprobs.append(log(probability))
        if sequence.request.alternatives >= 0 and not self.model.ends(token):
            count = min(sequence.request.alternatives, int(np.isfinite(logits).sum()))
            best = np.argpartition(-logits, count - 1)[:count] if count else np.empty(0, np.intp)
            total = log_sum(logits)
            others = [(int(k), rounded(float(logits[k]) - total)) for k in best]
            self._tell(sequence, token, sequence.logprobs[-1], others)
        return token

    def _tell(
        self, sequence: Sequence, token: int, logprob: float, others: list[tuple[int, float]]
    ) -> None:
        """Keep a token for a request that asks for tokens, with the likeliest ones in its place."""
        raw = self.model.piece(token)
        likeliest = sorted(others, key=lambda entry: -entry[1])[: sequence.request.alternatives]
        top: list[TokenAlternative] = [
            {**named(self.model.piece(id)), "logprob": value} for id, value in likeliest
        ]
        begins = (
            sequence.untold[-1][0] + len(sequence.untold[-1][1]["bytes"])
            if sequence.untold
            else sequence.raw
        )
        sequence.untold.append((begins, {**named(raw), "logprob": logprob, "top": top}))

    def _append(self, sequence: Sequence, tokens: list[int]) -> None:
        """Go on with these tokens, or end where they end the answer."""
        room = sequence.max_tokens - sequence.answered
        cut, tokens = len(tokens) > room, tokens[:room]
        sequence.answered += len(tokens)
        if sequence.request.alternatives >= 0 and sequence.grammar is not None:
            # the first one was chosen, the others are forced
            for token in tokens[1 if sequence.logprobs else 0 :]:
                self._tell(sequence, token, 0.0, [(token, 0.0)])
        raw = b"".join(map(self.model.piece, tokens))
        sequence.raw += len(raw)
        self._emit(sequence, sequence.text.push(raw))
        if sequence.text.stopped:
            self._finish(sequence, "stop")
        elif sequence.grammar is not None and sequence.grammar.finished and not cut:
            self._end_text(sequence, "stop")
        elif sequence.answered >= sequence.max_tokens:
            self._end_text(sequence, "length")
        else:
            sequence.pending += tokens

    def _sample(self, sequence: Sequence, logits: Logits) -> tuple[int, float]:
        """The next token, and its probability at temperature 1.

        A draw goes through the tokens in the order of the vocabulary: with a seed it then hardly
        depends on the last bits of the logits, which differ with the company that a sequence is
        decoded in.
        """
        token = int(logits.argmax())
        scores = logits - logits[token]
        total = float(np.exp(scores).sum(dtype=np.float64))
        if sequence.request.temperature > 0:
            shares = np.exp(scores.astype(np.float64) / sequence.request.temperature)
            if sequence.request.top_p < 1:
                order = np.argsort(-shares, kind="stable")
                kept = (
                    int(
                        np.searchsorted(
                            np.cumsum(shares[order]), sequence.request.top_p * shares.sum()
                        )
                    )
                    + 1
                )
                shares[order[kept:]] = 0
            sums = np.cumsum(shares)
            token = int(np.searchsorted(sums, sequence.random.random() * sums[-1], side="right"))
            # the last one that has a share
            token = min(token, int(np.searchsorted(sums, sums[-1])))
        return token, math.exp(float(scores[token])) / total

    def _emit(self, sequence: Sequence, text: str) -> None:
        if text:
            sequence.shown += len(text.encode())
            self.send(id=sequence.id, piece=text, **self._tokens(sequence, sequence.shown))

    def _tokens(self, sequence: Sequence, end: int) -> dict[str, list[TokenInfo]]:
        """The tokens that begin before a byte of the answer and have not been sent yet."""
        count = sum(begins < end for begins, _ in sequence.untold)
        tokens, sequence.untold = (
            [token for _, token in sequence.untold[:count]],
            sequence.untold[count:],
        )
        return {"tokens": tokens} if tokens else {}

    def _end_text(self, sequence: Sequence, reason: str) -> None:
        self._emit(sequence, sequence.text.push(b"", final=True))
        self._finish(sequence, reason, **self._tokens(sequence, sequence.raw + 1))

    def _finish(self, sequence: Sequence, reason: str, **more: Any) -> None:
        self.send(
            id=sequence.id,
            finish=reason,
            prompt_tokens=len(sequence.prompt),
            completion_tokens=sequence.answered,
            confidence=rounded(sequence.probability),  # of a long text it is small
            logprobs=sequence.logprobs,
            **more,
        )
        self._release(sequence)

    def _fail(self, sequence: Sequence, message: str) -> None:
        self.send(id=sequence.id, error=message)
        self._release(sequence)

    def _release(self, sequence: Sequence) -> None:
        self.active.remove(sequence)
        for place in [sequence.kept, sequence.slot] if sequence.kept else [sequence.slot]:
            self.model.forget(place)
            self.free.append(place)
        if sequence.schema:
            self.grammars.end(sequence.id)
            self._compile()

    def _trie(self, labels: tuple[str, ...], written: tuple[str, ...], end: str) -> LabelTrie:
        """The trie of the tokens of every label followed by the end of the turn."""
        key = (end, tuple(labels), tuple(written))
        if key not in self._tries:
            try:
                trie = LabelTrie(
                    labels, [self.model.tokenize(label + end) for label in written or labels]
                )
            except ValueError as error:
                raise DataError(str(error)) from None
            # a client may send labels with each request
            if (
                len(self._tries) >= KEPT
                or sum(item.size for item in self._tries.values()) > KEPT_TOKENS
            ):
                self._tries.clear()
            self._tries[key] = trie
        return self._tries[key]


def log_sum(logits: Logits) -> float:
    """Log of the sum of the exponentials."""
    top = float(logits.max())
    return top + math.log(float(np.exp(logits - top).sum(dtype=np.float64)))


def log(probability: float) -> float:
    """A log probability, rounded as it is sent."""
    return rounded(math.log(max(probability, 1e-300)))


def rounded(value: float) -> float:
    return float(f"{value:.6g}")


def named(raw: bytes) -> TokenText:
    """A token's text and bytes."""
    return {"token": raw.decode(errors="replace"), "bytes": list(raw)}
