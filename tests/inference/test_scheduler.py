"""The scheduler over a model that keeps what each sequence holds."""

from __future__ import annotations

import hashlib
import itertools
import json
import unicodedata
from collections import Counter, deque
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmctl.inference import kept_prefixes
from slmctl.inference.decoding_model import Item, Logits
from slmctl.inference.engine import Request
from slmctl.inference.grammar_pool import Grammars
from slmctl.inference.scheduler import KEPT, KEPT_TOKENS, Scheduler
from slmctl.inference.turns import LATELY, Turns
from slmctl.task.contract import Task
from slmctl.task.engine_requests import engine_request

HEADS = ("", "one long prefix: ", "one long prefix!! ", "one long", "another one: ")
LABELS = ("aaa", "aab", "abc", "b", "ba_", "bab")


class Remembering:
    """A model of single bytes, whose logits follow from all tokens of a sequence and from the
    adapter.

    A recurrent one refuses what llama.cpp refuses: to copy or to forget a part of a sequence.
    """

    cells = 4096

    def __init__(self, *, recurrent: bool) -> None:
        self.recurrent, self.adapter, self.decoded, self.copies = recurrent, "", 0, 0
        self.held: dict[int, list[tuple[str, int]]] = {}

    def tokenize(self, text: str) -> list[int]:
        return list(text.encode())

    def piece(self, token: int) -> bytes:
        return bytes([token])

    def ends(self, token: int) -> bool:
        return token == 0

    def decode(self, items: list[Item]) -> list[tuple[int, Logits]]:
        self.decoded += len(items)
        found = []
        for token, position, sequence, wanted in items:
            held = self.held.setdefault(sequence, [])
            assert position == len(held)
            held.append((self.adapter, token))
            if wanted:
                seed = int.from_bytes(hashlib.sha256(json.dumps(held).encode()).digest()[:8])
                found.append(
                    (sequence, np.random.default_rng(seed).normal(size=128).astype(np.float32))
                )
        return found

    def copy(self, source: int, target: int, length: int) -> None:
        assert not self.held.get(target)
        held = self.held.get(source, [])
        assert length == len(held) if self.recurrent else length <= len(held)
        self.held[target] = held[:length]
        self.copies += 1

    def forget(self, sequence: int, start: int = 0) -> None:
        assert start == 0 or not self.recurrent
        self.held[sequence] = self.held.get(sequence, [])[:start]

    def use(self, adapter: str) -> None:
        self.adapter = adapter


def answers(
    model: Remembering, requests: list[Request], *, slots: int, cancelled: int | None = None
) -> list[Any]:
    """What each request is answered, all submitted together."""
    return scheduled(model, requests, slots=slots, cancelled=cancelled)[1]


def scheduled(
    model: Remembering,
    requests: list[Request],
    *,
    slots: int,
    cancelled: int | None = None,
    spare: int = 0,
) -> tuple[Scheduler, list[Any]]:
    said: dict[str, list[Any]] = {str(k): [] for k in range(len(requests))}

    def send(id: str, **event: Any) -> None:
        said[id].append(event)

    scheduler = Scheduler(
        model, slots, 512, send, Grammars("", lambda *_: None), ["lora"], spare=spare
    )
    for k, one in enumerate(requests):
        scheduler.submit(str(k), one)
    if cancelled is not None:
        scheduler.step()
        scheduler.cancel(str(cancelled))
    while scheduler.busy:
        scheduler.step()
    assert sorted(scheduler.free) == list(range(1, slots + spare + 1))
    assert not scheduler.active
    return scheduler, list(said.values())


def request(kind: str, head: str, text: str, adapter: str) -> Request:
    more: dict[str, Any] = {
        "free": {"max_tokens": 5},
        "labels": {"labels": LABELS, "end": "\0"},
        "begun": {"labels": ("aaab", "aaba", "aabb"), "end": "\0"},
        "single": {"labels": ("abc",), "end": "\0"},
    }[kind]
    return Request(head + text, prefix=head, adapter=adapter, **more)


KINDS = st.sampled_from(["free", "labels", "begun", "single"])
ASKED = st.tuples(
    KINDS,
    st.sampled_from(HEADS),
    st.sampled_from(["x", "yy", "! zz"]),
    st.sampled_from(["", "lora"]),
)


@pytest.mark.parametrize("recurrent", [False, True])
@settings(max_examples=60, deadline=None)
@given(asked=st.lists(ASKED, min_size=1, max_size=9), cancel=st.booleans())
def test_answers_do_not_depend_on_what_is_shared(
    recurrent: bool, asked: list[Any], cancel: bool
) -> None:
    requests = [request(*one) for one in asked]
    model = Remembering(recurrent=recurrent)
    cancelled = 0 if cancel else None
    together = answers(model, requests, slots=4, cancelled=cancelled)
    for k, one in enumerate(requests):
        if k != cancelled:
            alone = answers(
                Remembering(recurrent=False), [Request(**{**one.__dict__, "prefix": ""})], slots=2
            )
            assert together[k] == alone[0]


def test_a_recurrent_model_computes_a_prefix_once() -> None:
    head, model = "a long system prompt that all have in common: ", Remembering(recurrent=True)
    rests = [f"question {k}" for k in range(10)]
    # the last token of one prompt's prefix has merged with its text, and the others' prefix stays
    odd = Request(head[:-1] + "\x01", prefix=head, max_tokens=1)
    requests = [Request(head + rest, prefix=head, max_tokens=1) for rest in rests]
    answers(model, [*requests[:5], odd, *requests[5:]], slots=4)
    assert model.decoded == len(head) + sum(map(len, rests)) + len(odd.prompt)


def test_a_recurrent_model_goes_back_to_the_first_choice_of_a_label() -> None:
    model, count = Remembering(recurrent=True), 20
    answers(
        model, [Request(f"hello {k:2}", labels=LABELS, end="\0") for k in range(count)], slots=2
    )
    assert model.copies > count, "each search keeps its first choice, and none went back to it"
    assert model.decoded < count * (len("hello  0") + sum(map(len, LABELS)) + len(LABELS))


def test_clients_with_different_system_prompts_do_not_displace_each_other() -> None:
    heads = [
        f"client {client} has this system prompt: " for client in range(kept_prefixes.PREFIXES)
    ]
    requests = [
        Request(heads[k % len(heads)] + "hello", prefix=heads[k % len(heads)], max_tokens=1)
        for k in range(40)
    ]
    model = Remembering(recurrent=False)
    answers(model, requests, slots=4)
    assert model.decoded == sum(map(len, heads)) + 40 * len("hello")


def test_a_prefix_that_nobody_asks_for_is_forgotten() -> None:
    model = Remembering(recurrent=False)
    once = Request(
        "a system prompt that comes once: hello",
        prefix="a system prompt that comes once: ",
        max_tokens=1,
    )
    answers(model, [once, *[Request("hello", max_tokens=1)] * (kept_prefixes.IDLE + 1)], slots=2)
    assert not any(model.held.values())


def test_prefixes_make_room_for_a_request_that_needs_it() -> None:
    model = Remembering(recurrent=False)
    model.cells = 160
    heads = [f"{client}: {'x' * 40}" for client in range(kept_prefixes.PREFIXES)]
    requests = [
        Request(heads[k % len(heads)] + "hello", prefix=heads[k % len(heads)], max_tokens=1)
        for k in range(12)
    ]
    alone = [answers(Remembering(recurrent=False), [one], slots=2)[0] for one in requests]
    assert answers(model, requests, slots=4) == alone
    assert sum(map(len, model.held.values())) <= model.cells


def test_labels_are_searched_by_the_tokens_that_were_learned() -> None:
    # the labels of a Mac (folders, CSV) were searched in their own Unicode form, which no answer
    # was learned in
    class Bytes(Remembering):
        def tokenize(self, text: str) -> list[int]:
            return [byte % 128 for byte in text.encode()]

    composed, apart = (
        tuple(unicodedata.normalize(form, each) for each in ("Äpfel", "Öl"))
        for form in ("NFC", "NFD")
    )
    tasks = [
        Task("classify", "", "\0", labels=labels, normal_form="NFC") for labels in (composed, apart)
    ]
    requests = [engine_request(task, "hello", max_tokens=1) for task in tasks]
    (first, *_, before), (second, *_, after) = answers(Bytes(recurrent=False), requests, slots=2)
    assert (first["piece"] in composed, second["piece"] in apart) == (True, True)
    assert {
        unicodedata.normalize("NFC", label): p for label, p in after["labels"].items()
    } == before["labels"]


def test_labels_and_their_tokens_are_kept_within_bounds() -> None:
    # a client may send other ones with each request
    few = [Request("hello", labels=(f"{k}", "other"), end="\0") for k in range(3 * KEPT)]
    scheduler, said = scheduled(Remembering(recurrent=False), few, slots=4)
    assert all("finish" in events[-1] for events in said)
    assert len(scheduler._tries) <= KEPT
    long = [
        Request("hi", labels=(f"{k}", *("x" * 500 + f"{n:02}" for n in range(60))))
        for k in range(20)
    ]
    scheduler, _ = scheduled(Remembering(recurrent=False), long, slots=4)
    assert sum(trie.size for trie in scheduler._tries.values()) <= KEPT_TOKENS + 31_000


def test_a_model_that_computes_nan_gives_no_answer() -> None:
    class Broken(Remembering):
        def decode(self, items: list[Item]) -> list[tuple[int, Logits]]:
            return [
                (sequence, np.full(128, np.nan, dtype=np.float32))
                for sequence, _ in super().decode(items)
            ]

    for kind in ("free", "labels"):
        (events,) = answers(Broken(recurrent=False), [request(kind, "", "x", "")], slots=1)
        assert "NaN" in events[-1]["error"]


@pytest.mark.parametrize("kind", ["labels", "free"])
@pytest.mark.parametrize("recurrent", [False, True])
@settings(max_examples=20, deadline=None)
@given(delays=st.lists(st.integers(0, 4), min_size=1, max_size=20))
def test_full_batches_are_the_same_however_fast_requests_come(
    recurrent: bool, kind: str, delays: list[int]
) -> None:
    """What is decoded together, where a request comes after as many
    looks at the inbox as its delay says.
    """

    def decoded(delays: Iterable[int]) -> list[list[Item]]:
        model, batches = Remembering(recurrent=recurrent), list[list[Item]]()
        decode, asked = model.decode, (request(kind, "head: ", f"text {k}", "") for k in range(23))
        inbox = deque[tuple[int, Request | None]]()

        def recorded(items: list[Item]) -> list[tuple[int, Logits]]:
            batches.append(items)
            return decode(items)

        def feed(**event: Any) -> None:
            if not event or "finish" in event:
                inbox.append((next(delays), next(asked, None)))

        model.decode, delays = recorded, iter(delays)  # type: ignore[method-assign]
        scheduler = Scheduler(model, 8, 512, feed, Grammars("", lambda *_: None))
        scheduler.fills = "all"
        for _ in range(16):
            feed()
        for id in itertools.count():
            if inbox and (inbox[0][0] == 0 or not scheduler.busy):
                _, came = inbox.popleft()
                scheduler.fills = "all" if came is not None else "rest"
                if came is not None:
                    scheduler.submit(str(id), came)
            elif not scheduler.busy:
                return batches
            else:
                scheduler.step()
                if inbox:
                    inbox[0] = inbox[0][0] - 1, inbox[0][1]
        raise AssertionError

    assert decoded(itertools.cycle(delays)) == decoded(itertools.repeat(0))


# Clients


def batches(flood: int, text: str, *, slots: int = 8) -> int:
    """Batches until a second client's short answer has come, which asks
    when the first one has had all its places.
    """
    model = Remembering(recurrent=False)
    ends: list[str] = []
    scheduler = Scheduler(
        model,
        slots,
        512,
        lambda id, **event: ends.append(id) if "finish" in event else None,
        Grammars("", lambda *_: None),
        spare=2,
    )
    for k in range(flood):
        scheduler.submit(f"a{k}", Request(f"{text} {k}", max_tokens=40, client="a"))
    for _ in range(3):
        scheduler.step()
    scheduler.submit("b", Request("short", max_tokens=5, client="b"))
    count = 0
    while "b" not in ends:
        scheduler.step()
        count += 1
    scheduler.cancel("b")
    return count


@pytest.mark.parametrize("text", ["a", "a long text " * 20])
def test_a_client_that_floods_delays_another_one_by_no_batch(text: str) -> None:
    # it waited until one of the flood's answers had ended, and then for batches of all of them
    assert batches(200, text) == batches(1, text) == 5


def test_a_batch_takes_as_many_sequences_of_each_client() -> None:
    model, decoded = Remembering(recurrent=False), list[Counter[str]]()
    decode, owner = model.decode, dict[int, str]()
    scheduler = Scheduler(model, 8, 512, lambda **_: None, Grammars("", lambda *_: None), spare=2)

    def counted(items: list[Item]) -> list[tuple[int, Logits]]:
        owner.update({sequence.slot: sequence.request.client for sequence in scheduler.active})
        decoded.append(Counter(owner[slot] for slot in {item[2] for item in items}))
        return decode(items)

    model.decode = counted  # type: ignore[method-assign]
    for client, count in {"a": 20, "b": 2, "c": 3}.items():
        for k in range(count):
            scheduler.submit(f"{client}{k}", Request(f"hello {k}", max_tokens=9, client=client))
    while scheduler.busy:
        scheduler.step()
    together = [clients for clients in decoded if len(clients) > 1]
    assert together and all(len(set(clients.values())) == 1 for clients in together)
    assert max(sum(clients.values()) for clients in decoded) == 8, "a client alone has all places"


def test_clients_take_turns_however_many_entries_each_has() -> None:
    queue = Turns[str]()
    for k in range(4):
        queue.put("a", f"a{k}")
    assert (queue.take(), queue.is_shared) == ("a0", False)
    for entry in ("b0", "b1", "c0"):
        queue.put(entry[0], entry)
    queue.remove(lambda entry: entry == "a2")
    assert [queue.take() for _ in range(2)] == ["b0", "c0"] and queue.is_shared
    assert queue.next(lambda client: client != "a") == "b1" and len(queue) == 3
    assert [queue.take() for _ in range(3)] == ["a1", "b1", "a3"] and queue.next() is None
    for _ in range(LATELY):
        queue.put("a", "later")
        queue.take()
    assert not queue.is_shared
