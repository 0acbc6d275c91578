"""The child process of `engine`: llama.cpp through llama-cpp-python's low-level batch API.

    python -m slmctl._llama serve MODEL.gguf SETTINGS     requests as JSON lines in, events out

Only this module and `_quantizer` import llama_cpp. It holds N sequences in one context and decodes whatever they
need next together in one batch (continuous batching). Sequence 0 keeps the prompt prefix that
requests have in common; a new request copies it instead of computing it.
"""

from __future__ import annotations

import codecs
import ctypes
import json
import math
import os
import queue
import sys
import threading
from dataclasses import dataclass, field
from typing import Any, TextIO

import llama_cpp as lc
import numpy as np
import numpy.typing as npt

BATCH = 512  # tokens that one decode call takes at most
Logits = npt.NDArray[np.float32]


@dataclass
class Node:
    """A node of the label trie: the tokens that may follow, and the label that ends here."""

    next: dict[int, Node] = field(default_factory=dict)
    label: str | None = None

    @property
    def depth(self) -> int:
        """Tokens of the longest answer below this node."""
        return max((1 + node.depth for node in self.next.values()), default=0)


class Text:
    """Bytes of tokens in, text out: never half a character, never a stop string or what might become one."""

    def __init__(self, stop: list[str]) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode
        self._stop = [text for text in stop if text]
        self._held = ""
        self.stopped = False

    def push(self, raw: bytes, *, final: bool = False) -> str:
        """What may be shown now that `raw` has come."""
        self._held += self._decode(raw, final)
        places = [place for place in (self._held.find(text) for text in self._stop) if place >= 0]
        if places:
            self.stopped = True
            shown, self._held = self._held[: min(places)], ""
            return shown
        keep = 0 if final else max((self._overlap(text) for text in self._stop), default=0)
        shown, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return shown

    def _overlap(self, stop: str) -> int:
        """Length of the longest end of the held text that begins `stop`."""
        return next((n for n in range(min(len(stop), len(self._held)), 0, -1) if self._held.endswith(stop[:n])), 0)


@dataclass
class Sequence:
    """One request while it is answered."""

    id: str
    prompt: list[int]
    shared: int  # the first tokens of the prompt that sequence 0 holds too
    max_tokens: int
    temperature: float
    top_p: float
    random: np.random.Generator
    text: Text
    node: Node | None  # where the answer is in the label trie; None for free text
    slot: int = 0
    position: int = 0  # tokens of this sequence in the context so far
    pending: list[int] = field(default_factory=list)  # tokens to decode next
    answered: int = 0
    probability: float = 1.0  # of the choices made, each among what was allowed

    @property
    def room(self) -> int:
        return len(self.prompt) + self.max_tokens


class Model:
    """A loaded GGUF with its context."""

    def __init__(self, path: str, *, sequences: int, context: int, threads: int) -> None:
        params = lc.llama_model_default_params()
        params.n_gpu_layers = -1
        self.model = lc.llama_model_load_from_file(path.encode(), params)
        if not self.model:
            raise SystemExit(f"llama.cpp cannot load {path}")
        self.vocab = lc.llama_model_get_vocab(self.model)
        self.n_vocab = lc.llama_vocab_n_tokens(self.vocab)
        self.cells = context * sequences
        settings = lc.llama_context_default_params()
        settings.n_ctx, settings.n_batch, settings.n_ubatch = self.cells, BATCH, BATCH
        settings.n_seq_max = sequences + 1
        settings.n_threads = settings.n_threads_batch = threads
        settings.kv_unified = True
        self.context = lc.llama_init_from_model(self.model, settings)
        if not self.context:
            raise SystemExit(f"llama.cpp cannot make a context of {self.cells} tokens: out of memory")
        self.memory = lc.llama_get_memory(self.context)
        self.batch = lc.llama_batch_init(BATCH, 0, 1)

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a rendered prompt, its control tokens read as such, none added."""
        raw = text.encode()
        buffer = (lc.llama_token * (len(raw) + 8))()
        count = lc.llama_tokenize(self.vocab, raw, len(raw), buffer, len(buffer), False, True)
        return list(buffer[:count])

    def piece(self, token: int) -> bytes:
        """The bytes of a token; nothing for a control token."""
        buffer = ctypes.create_string_buffer(256)
        count = lc.llama_token_to_piece(self.vocab, token, buffer, 256, 0, False)
        return buffer.raw[:count] if count > 0 else b""

    def ends(self, token: int) -> bool:
        return bool(lc.llama_vocab_is_eog(self.vocab, token))

    def metadata(self, key: str) -> str:
        buffer = ctypes.create_string_buffer(1 << 16)
        count = lc.llama_model_meta_val_str(self.model, key.encode(), buffer, len(buffer))
        return buffer.value.decode(errors="replace") if count >= 0 else ""

    def chat_template(self) -> str:
        raw = lc.llama_model_chat_template(self.model, None)
        return raw.decode() if raw else ""

    def decode(self, items: list[tuple[int, int, int, bool]]) -> dict[int, Logits]:
        """Decode (token, position, sequence, wants logits); at most BATCH of them.

        Returns:
            Logits (n_vocab,) by sequence, for the items that want them.
        """
        self.batch.n_tokens = len(items)
        for k, (token, position, sequence, wants) in enumerate(items):
            self.batch.token[k], self.batch.pos[k] = token, position
            self.batch.n_seq_id[k], self.batch.logits[k] = 1, int(wants)
            self.batch.seq_id[k][0] = sequence
        status = lc.llama_decode(self.context, self.batch)
        if status != 0:
            raise RuntimeError(f"llama_decode failed with {status}")
        rows = {}
        for k, (_, _, sequence, wants) in enumerate(items):
            if wants:
                pointer = lc.llama_get_logits_ith(self.context, k)
                rows[sequence] = np.ctypeslib.as_array(pointer, shape=(self.n_vocab,))
        return rows


class Scheduler:
    """Requests in, events out: admits what fits, and moves every admitted sequence on in each step."""

    def __init__(self, model: Model, slots: int, send: Any) -> None:
        self.model, self.send = model, send
        self.free = list(range(slots, 0, -1))
        self.waiting: list[Sequence] = []
        self.active: list[Sequence] = []
        self.prefix: list[int] = []  # the tokens that sequence 0 holds
        self._tries: dict[tuple[str, ...], Node] = {}

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.active)

    def submit(self, request: dict[str, Any]) -> None:
        model = self.model
        prompt = model.tokenize(request["prompt"])
        head = model.tokenize(request["prefix"])
        shared = next(
            (k for k, (a, b) in enumerate(zip(prompt, head, strict=False)) if a != b), min(len(head), len(prompt))
        )
        node = self._trie(request["labels"], request["end"]) if request["labels"] else None
        sequence = Sequence(
            id=request["id"],
            prompt=prompt,
            shared=min(shared, len(prompt) - 1),  # the last token must be decoded, to have its logits
            # a label needs no more room than the longest one has tokens
            max_tokens=node.depth if node else request["max_tokens"],
            temperature=request["temperature"],
            top_p=request["top_p"],
            random=np.random.default_rng(request["seed"]),
            text=Text(request["stop"]),
            node=node,
        )
        if not prompt:
            self._fail(sequence, "the prompt is empty")
        elif sequence.room + len(self.prefix) > model.cells or sequence.room > request["context"]:
            self._fail(
                sequence,
                f"a prompt of {len(prompt)} tokens with an answer of up to {sequence.max_tokens} does not fit "
                f"the context of {request['context']} tokens",
            )
        else:
            self.waiting.append(sequence)

    def cancel(self, id: str) -> None:
        self.waiting = [sequence for sequence in self.waiting if sequence.id != id]
        for sequence in [sequence for sequence in self.active if sequence.id == id]:
            self._release(sequence)

    def step(self) -> None:
        """Admit, decode one batch, choose the next tokens."""
        self._admit()
        items: list[tuple[int, int, int, bool]] = []
        for sequence in self.active:
            take = sequence.pending[: BATCH - len(items)]
            last = len(take) == len(sequence.pending)
            for k, token in enumerate(take):
                items.append((token, sequence.position + k, sequence.slot, last and k == len(take) - 1))
            sequence.pending = sequence.pending[len(take) :]
            sequence.position += len(take)
            if len(items) == BATCH:
                break
        if not items:
            return
        rows = self.model.decode(items)
        for sequence in [sequence for sequence in self.active if sequence.slot in rows]:
            self._choose(sequence, rows[sequence.slot])
        # whoever was served last comes first next time, so a long prompt starves nobody
        self.active.sort(key=lambda sequence: len(sequence.pending) > 1)

    def _admit(self) -> None:
        while self.waiting and self.free:
            used = len(self.prefix) + sum(sequence.room for sequence in self.active)
            if used + self.waiting[0].room > self.model.cells and self.active:
                return
            sequence = self.waiting.pop(0)
            self._share(sequence)
            sequence.slot = self.free.pop()
            if sequence.shared:
                lc.llama_memory_seq_cp(self.model.memory, 0, sequence.slot, 0, sequence.shared)
            sequence.position = sequence.shared
            sequence.pending = sequence.prompt[sequence.shared :]
            self.active.append(sequence)

    def _share(self, sequence: Sequence) -> None:
        """Have sequence 0 hold the prefix of this request, computing it when it is a new one."""
        wanted = sequence.prompt[: sequence.shared]
        if self.prefix[: len(wanted)] == wanted:
            return
        lc.llama_memory_seq_rm(self.model.memory, 0, -1, -1)
        for start in range(0, len(wanted), BATCH):
            part = wanted[start : start + BATCH]
            self.model.decode([(token, start + k, 0, False) for k, token in enumerate(part)])
        self.prefix = wanted

    def _choose(self, sequence: Sequence, logits: Logits) -> None:
        if sequence.node is None:
            self._free_text(sequence, logits)
        else:
            self._label(sequence, logits)

    def _label(self, sequence: Sequence, logits: Logits) -> None:
        """Walk the trie: the model is asked only where it has a choice."""
        node = sequence.node
        assert node is not None
        allowed = list(node.next)
        scores = logits[allowed].astype(np.float64)
        weights = np.exp(scores - scores.max())
        best = int(weights.argmax())
        sequence.probability *= float(weights[best] / weights.sum())
        path = [allowed[best]]
        node = node.next[path[0]]
        while node.label is None and len(node.next) == 1:
            token = next(iter(node.next))
            path.append(token)
            node = node.next[token]
        sequence.answered += len(path)
        if node.label is not None:
            self.send(id=sequence.id, piece=node.label)
            self._finish(sequence, "stop")
            return
        sequence.node, sequence.pending = node, path

    def _free_text(self, sequence: Sequence, logits: Logits) -> None:
        token, probability = self._sample(sequence, logits)
        sequence.answered += 1
        sequence.probability *= probability
        if self.model.ends(token):
            self._emit(sequence, sequence.text.push(b"", final=True))
            self._finish(sequence, "stop")
            return
        self._emit(sequence, sequence.text.push(self.model.piece(token)))
        if sequence.text.stopped:
            self._finish(sequence, "stop")
        elif sequence.answered >= sequence.max_tokens:
            self._emit(sequence, sequence.text.push(b"", final=True))
            self._finish(sequence, "length")
        else:
            sequence.pending = [token]

    def _sample(self, sequence: Sequence, logits: Logits) -> tuple[int, float]:
        """The next token and its probability at temperature 1."""
        scores = logits.astype(np.float64)
        scores -= scores.max()
        log_total = math.log(np.exp(scores).sum())
        if sequence.temperature <= 0:
            token = int(scores.argmax())
        else:
            order = np.argsort(-scores, kind="stable")
            weights = np.exp(scores[order] / sequence.temperature)
            weights /= weights.sum()
            kept = int(np.searchsorted(np.cumsum(weights), sequence.top_p)) + 1
            weights = weights[:kept] / weights[:kept].sum()
            token = int(order[sequence.random.choice(len(weights), p=weights)])
        return token, math.exp(scores[token] - log_total)

    def _emit(self, sequence: Sequence, text: str) -> None:
        if text:
            self.send(id=sequence.id, piece=text)

    def _finish(self, sequence: Sequence, reason: str) -> None:
        self.send(
            id=sequence.id,
            finish=reason,
            prompt_tokens=len(sequence.prompt),
            completion_tokens=sequence.answered,
            confidence=round(sequence.probability, 6),
        )
        self._release(sequence)

    def _fail(self, sequence: Sequence, message: str) -> None:
        self.send(id=sequence.id, error=message)

    def _release(self, sequence: Sequence) -> None:
        lc.llama_memory_seq_rm(self.model.memory, sequence.slot, -1, -1)
        self.active.remove(sequence)
        self.free.append(sequence.slot)

    def _trie(self, labels: list[str], end: str) -> Node:
        """The trie of the tokens of every label followed by the end of the turn."""
        key = (end, *labels)
        if key not in self._tries:
            root = Node()
            for label in labels:
                node = root
                for token in self.model.tokenize(label + end):
                    node = node.next.setdefault(token, Node())
                node.label = label
            self._tries[key] = root
        return self._tries[key]


def serve(path: str, settings: dict[str, int]) -> None:
    """Answer requests from stdin until it closes."""
    events = _private_stdout()

    def send(**event: Any) -> None:
        events.write(json.dumps(event, ensure_ascii=False) + "\n")
        events.flush()

    model = Model(path, sequences=settings["sequences"], context=settings["context"], threads=settings["threads"])
    scheduler = Scheduler(model, settings["sequences"], send)
    send(
        ready=True,
        n_vocab=model.n_vocab,
        chat_template=model.chat_template(),
        name=model.metadata("general.name"),
        trained_context=lc.llama_model_n_ctx_train(model.model),
        build=lc.__version__,
        system=lc.llama_print_system_info().decode(),
    )
    inbox: queue.Queue[dict[str, Any] | None] = queue.Queue()
    threading.Thread(target=_read, args=(inbox,), daemon=True).start()
    while True:
        wait = not scheduler.busy
        try:
            message = inbox.get(block=wait)
        except queue.Empty:
            scheduler.step()
            continue
        if message is None:
            os._exit(0)  # the parent has gone; unloading is the kernel's work
        if "cancel" in message:
            scheduler.cancel(message["cancel"])
        elif "tokenize" in message:
            send(id=message["id"], tokens=model.tokenize(message["tokenize"]))
        else:
            scheduler.submit({"context": settings["context"], **message})


def _read(inbox: queue.Queue[dict[str, Any] | None]) -> None:
    for line in sys.stdin:
        inbox.put(json.loads(line))
    inbox.put(None)


def _private_stdout() -> TextIO:
    """Keep stdout for events: whatever a library prints goes to stderr instead."""
    own = os.dup(1)
    os.dup2(2, 1)
    return os.fdopen(own, "w", encoding="utf-8")


if __name__ == "__main__":
    serve(sys.argv[2], json.loads(sys.argv[3]))
