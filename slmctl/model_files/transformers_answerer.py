"""Answers of HF models (base, adapter on base, merged) by the label search and the grammar that the
engine uses.

The prefix that prompts share is computed once, the rest in batches of similar length. Labels are
scored on copies of the prompts' states and never decoded freely.
"""

from __future__ import annotations

import copy
import functools
import inspect
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import llguidance.hf
import numpy as np
import numpy.typing as npt
import torch
from peft import PeftConfig, PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from slmctl import console, hardware
from slmctl.errors import DataError, StageError
from slmctl.inference.engine import Answer, Answering, Outcomes, Request
from slmctl.inference.json_grammar import Rules, Walk
from slmctl.inference.label_search import LabelSearch, LabelTree, LabelTrie
from slmctl.inference.supervised_child import EngineError
from slmctl.model_files import hf_folder, memory, model_size, stored_weights
from slmctl.model_files.model_shape import (
    ANSWERED_TOGETHER,
    HELD_TOKENS,
    LABEL_LOGITS,
    STATE_TOKENS,
)

# of one batch without the shared prefix; and of its keys and values, if HELD_TOKENS do not fit
TOKENS = STATE_TOKENS
# of labels scored as wholes: 42 take twice the time of a search by token, 382 over four times
MOST_BEGINNINGS = 128
# compiled grammars in the cache: the task's, and those for conversations' own tools
KEPT_RULES = 32
# times the memory of a float32 copy must be free, which leaves some to other programs
COPY_MARGIN = 1.5
Scores = npt.NDArray[np.float32]


@dataclass
class State:
    """The computed state of a batch of sequences.

    Attributes:
        cache: Keys and values, (rows, heads, width, size) a layer; states of recurrent layers.
        mask: (rows, width), 0 where a row is padded.
        lengths: Number of tokens of each row, without padding.
    """

    cache: DynamicCache
    mask: torch.Tensor
    lengths: list[int]

    def of(self, rows: Sequence[int]) -> State:
        """A new state of these rows, which may repeat; this state is unchanged."""
        cache = copy.copy(self.cache)
        cache.layers = [_copy_of_layer(layer) for layer in self.cache.layers]
        # recurrent layers write into their tensors, others make new ones
        if list(rows) == list(range(len(self.lengths))) and all(map(_is_attention, cache.layers)):
            return State(cache, self.mask, list(self.lengths))
        index = torch.tensor(rows, device=self.mask.device)
        cache.reorder_cache(index)
        return State(cache, self.mask[index], [self.lengths[row] for row in rows])


class Step(NamedTuple):
    """Rows of a batch, their state, and the logits (vocabulary,) after each."""

    rows: Sequence[int]
    state: State
    scores: list[Scores]


def _copy_of_layer(layer: Any) -> Any:
    twin = copy.copy(layer)
    for name, value in vars(layer).items():
        if isinstance(value, dict):  # the states of a recurrent layer, by number
            setattr(twin, name, dict(value))
    return twin


def _is_attention(layer: Any) -> bool:
    """True for a layer that caches keys and values alone, where a
    mask can hide padding, or nothing.
    """
    return (
        type(layer) in (DynamicLayer, DynamicSlidingWindowLayer)
        or type(layer).__name__ == "DummyLayer"
    )


@dataclass
class ActiveSequence:
    """A sequence while it is generated."""

    tokens: list[int] = field(default_factory=list)
    logprob: float = 0.0  # sum over the generated tokens
    walk: Walk | None = None
    finish: str = ""
    ended: bool = False  # by an end token, which is counted and is not part of the text
    fault: str = ""  # the grammar's reason for ending it


class Alphabet(torch.nn.Module):
    """The output layer of a model, cut down to the tokens of the labels."""

    def __init__(self, head: torch.nn.Linear, tokens: Sequence[int]) -> None:
        super().__init__()
        index = torch.tensor(tokens)
        weight = head.weight.detach()[index]
        self.weight = weight.float() if isinstance(head, stored_weights.StoredLinear) else weight
        self.bias = None if head.bias is None else head.bias.detach()[index]

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """(…, width) -> (…, tokens)"""
        return torch.nn.functional.linear(states, self.weight, self.bias)


class HfAnswerer(Answering):
    """Answers with transformers: in float32 on a CPU, in bfloat16 on a GPU.

    Args:
        folder: The folder of a whole model.
        adapter: The folder of an adapter that goes on it.
        labels: The allowed answers; empty for texts.
        end: The text that ends an answer, such as `<|im_end|>`.
        max_tokens: The longest text.
        matmul_dtype: The type of the layers' matrix products on a CPU, `float32` or `bfloat16`; the
            output head and everything between the products are computed in float32.
        whole_labels: Score every label as a whole, in place of a search token by token, unless the
            labels have more than MOST_BEGINNINGS.

    Attributes:
        matmul_dtype: The type in use: as given if the model allows it; on a GPU `bfloat16`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        max_tokens: int,
        adapter: Path | None = None,
        labels: tuple[str, ...] = (),
        end: str = "",
        matmul_dtype: str = "float32",
        whole_labels: bool = False,
    ) -> None:
        self.labels = labels
        self.end = end
        self.max_tokens = max_tokens
        self._whole = whole_labels
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.matmul_dtype = "bfloat16" if self.device == "cuda" else matmul_dtype
        if self.device == "cpu":
            hardware.reuse_freed_memory()
        self.tokenizer: Any = hf_folder.load_tokenizer(folder)
        self.model: Any = hf_folder.load_model(folder, dtype=self._dtype(folder))
        self._takes = inspect.signature(self.model.forward).parameters
        self._require_cache()
        if adapter is not None:
            self.model = _with_adapter(self.model, adapter)
            if self.device == "cpu" and not stored_weights.is_widened(self.model):
                # exact to float32, and a third of the layers' calls
                self.model = self.model.merge_and_unload()
        narrow = self.device == "cpu" and matmul_dtype == "bfloat16"
        if narrow and not stored_weights.multiply_in(self.model, torch.bfloat16):
            self.matmul_dtype = "float32"
        self.alphabet: list[int] = []  # the tokens of the labels, in the order of their logits
        self.trie = self._trie() if labels else None
        self.model.to(self.device)
        self.pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0
        ends = {self.tokenizer.convert_tokens_to_ids(end), self.tokenizer.eos_token_id}
        self.ends = sorted(ends - {None, self.tokenizer.unk_token_id})
        self._shared: tuple[list[int], State | None] = ([], None)
        self._rules = functools.lru_cache(KEPT_RULES)(self._compiled)

    def _dtype(self, folder: Path) -> torch.dtype | str:
        """The type to load weights in: on a CPU a float32 copy where it fits, since each step then
        casts nothing.

        An adapter is merged into that copy, before `matmul_dtype` rounds it.

        Raises:
            StageError: Not even the weights as they are stored fit.
        """
        self._cells = HELD_TOKENS
        if self.device == "cuda":
            return torch.bfloat16
        memory.trim_heap()  # memory that an earlier stage has freed would count as held
        size = model_size.read(folder)
        logits = (
            LABEL_LOGITS // size.vocabulary if self._whole and self.labels else ANSWERED_TOGETHER
        )
        # beside a mapped file
        rounded = 0 if size.halves or self.matmul_dtype == "float32" else 2 * size.linear
        for self._cells in (HELD_TOKENS, TOKENS):
            kept = 2 * self._cells * size.cache * 4  # keys and values of a batch, and a copy
            if memory.fits(
                int(COPY_MARGIN * (size.copied_bytes(TOKENS, kept=logits) + kept + rounded))
            ):
                return torch.float32
        needed = size.stored_bytes(TOKENS, kept=logits) + kept
        memory.require(needed, "answering", hint="the model's GGUF file, or a machine with more")
        return "stored"

    def close(self) -> None:
        memory.trim_heap()  # the keys and values of its batches

    @torch.inference_mode()
    def ask_all(self, requests: Iterable[Request], **how: object) -> Outcomes:
        listed = list(requests)
        rows = [self._tokens(request.prompt) for request in listed]
        heads = [
            self._head(self._tokens(request.prefix), row)
            for request, row in zip(listed, rows, strict=True)
        ]
        longest = (
            getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
            or math.inf
        )
        room = self.trie.depth if self.trie else self.max_tokens
        fits: list[int] = []
        for index, row in enumerate(rows):
            if row and len(row) + room <= longest:
                fits.append(index)
                continue
            what = (
                f"a prompt of {len(row)} tokens with an answer of up to {room} does not fit "
                f"the context of {longest}"
            )
            yield index, EngineError(what if row else "the prompt is empty")
        self._padded = self._pads and all(len(rows[index]) + room <= self._window for index in fits)
        # like prefixes, then like lengths together
        fits.sort(key=lambda index: (heads[index], len(rows[index])))
        for indices in _batches(fits, rows, heads, self._cells, alike=not self._padded):
            batch, head = [rows[index] for index in indices], list(heads[indices[0]])
            if self.trie:
                yield from zip(
                    indices,
                    (self._scored if self._whole else self._labels)(head, batch),
                    strict=True,
                )
            else:
                rules = [self._rules(listed[index].schema) for index in indices]
                yield from zip(indices, self._texts(head, batch, rules), strict=True)

    def _require_cache(self) -> None:
        """Check how the model caches the tokens that it has read, and if padding is allowed between
        them.

        Padding stands between a shared prefix and the rest of a prompt. A mask hides it from
        attention; it would count in a sliding window, in distances without position ids, and in the
        state of a recurrent layer.

        Raises:
            StageError: It has a cache class of its own.
        """
        layers = DynamicCache(config=self.model.config).layers
        if self.model.config._attn_implementation == "eager" and any(map(_is_attention, layers)):
            console.say(
                f"  note: {type(self.model).__name__} is computed with eager attention: "
                "transformers has no other"
            )
        windows = [
            layer.sliding_window for layer in layers if isinstance(layer, DynamicSlidingWindowLayer)
        ]
        self._window: float = min(windows, default=math.inf)
        self._pads = all(map(_is_attention, layers)) and "position_ids" in self._takes
        self._padded = self._pads
        # transformers renamed it; drop the old name with the releases before 5.20
        self._cache = "cache" if "cache" in self._takes else "past_key_values"
        if self._cache not in self._takes:
            raise StageError(
                f"{type(self.model).__name__} keeps its state in a class of its own, which predict "
                "cannot copy",
                hint="predict with its GGUF: evaluate.models: [gguf]",
            )

    def _tokens(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False).input_ids

    @staticmethod
    def _head(prefix: list[int], row: list[int]) -> tuple[int, ...]:
        """Longest common prefix of `prefix` and `row`, at most len(row) - 1
        tokens: the last one must be computed.
        """
        length = min(len(prefix), max(len(row) - 1, 0))
        return tuple(row[: next((k for k in range(length) if prefix[k] != row[k]), length)])

    # Labels

    def _labels(self, head: list[int], batch: list[list[int]]) -> list[Answer]:
        """Search the labels' trie; each path is computed on the kept state of its prompt."""
        assert self.trie is not None
        state, scores = self._begun(head, batch)
        searches = [LabelSearch(self.trie) for _ in batch]
        for search, logits in zip(searches, scores, strict=True):
            if search.path == []:
                search.take(logits)
        while asking := [row for row, search in enumerate(searches) if search.path is not None]:
            paths = {
                row: [self.alphabet[place] for place in searches[row].path or []] for row in asking
            }
            for rows, _, scores in self._continued(state, range(len(batch)), paths):
                for row, logits in zip(rows, scores, strict=True):
                    searches[row].take(logits)
        return [
            self._label(search, length)
            for search, length in zip(searches, state.lengths, strict=True)
        ]

    @staticmethod
    def _label(search: LabelSearch, length: int) -> Answer:
        index, probability = search.best
        confidence = float(f"{probability:.6g}")
        count = len(search.trie.tokens[index])
        return Answer(
            search.trie.labels[index], "stop", confidence, length, count, search.probabilities()
        )

    def _scored(self, head: list[int], batch: list[list[int]]) -> list[Answer]:
        """Score every label by all of its tokens, each among the whole vocabulary."""
        assert self.trie is not None
        tokens = self.trie.tokens
        state, scores = self._begun(head, batch)
        first = torch.from_numpy(np.stack(scores)).log_softmax(-1)
        # (prompts, labels), the others are added
        totals = first[:, [label[0] for label in tokens]].double().numpy()
        positions = max(1, LABEL_LOGITS // first.shape[-1])
        order = [k for k, label in enumerate(tokens) if len(label) > 1]
        # a model that allows padding also allows several branches in one sequence
        for labels in [order] if self._padded and order else [[label] for label in order]:
            tree = LabelTree([tokens[label] for label in labels])
            some = max(1, positions // len(tree.places))
            for rows in (range(k, min(k + some, len(batch))) for k in range(0, len(batch), some)):
                logits = self._branched(state.of(rows), tree)
                weights = torch.stack([row.logsumexp(-1) for row in logits])
                for label, way in zip(labels, tree.ways, strict=True):
                    shares = logits[:, way, tokens[label][1:]] - weights[:, way]
                    totals[rows.start : rows.stop, label] += shares.double().sum(-1).numpy()
        return [
            self._likeliest(row, length) for row, length in zip(totals, state.lengths, strict=True)
        ]

    def _likeliest(self, total: npt.NDArray[np.float64], length: int) -> Answer:
        """The answer from the log probabilities (labels,) of all labels."""
        assert self.trie is not None
        weights = np.exp(total - total.max())
        among, best = weights / weights.sum(), int(total.argmax())
        chances = {
            self.trie.labels[k]: float(f"{among[k]:.6g}") for k in np.argsort(-among, kind="stable")
        }
        label = self.trie.labels[best]
        return Answer(label, "stop", chances[label], length, len(self.trie.tokens[best]), chances)

    def _branched(self, state: State, tree: LabelTree) -> torch.Tensor:
        """The logits (rows, beginnings, vocabulary) after each beginning of
        a tree, which follow the state's rows.
        """
        rows, count = len(state.lengths), len(tree.places)
        ids = torch.tensor([[path[-1] for path in tree.places]] * rows, device=self.device)
        depths = torch.tensor([len(path) - 1 for path in tree.places], device=self.device)
        mask = None
        if self._padded:
            seen = torch.from_numpy(tree.seen).to(self.device).expand(rows, -1, -1)
            seen = torch.cat([state.mask.bool()[:, None].expand(-1, count, -1), seen], dim=2)[
                :, None
            ]
            dtype = torch.bfloat16 if self.device == "cuda" else torch.float32
            mask = torch.zeros(seen.shape, dtype=dtype, device=self.device).masked_fill(
                ~seen, torch.finfo(dtype).min
            )
        positions = torch.tensor(state.lengths, device=self.device)[:, None] + depths
        return self._computed(ids, mask, positions, state, count).float().cpu()

    def _trie(self) -> LabelTrie:
        """The labels as indices into the alphabet; reduces the
        model's head to the alphabet's tokens.
        """
        tokens = [self._tokens(label + self.end) for label in self.labels]
        if self._whole and (count := len(LabelTree(tokens).places)) > MOST_BEGINNINGS:
            self._whole = False
            console.say(
                f"  note: labels are chosen token by token: their {count} beginnings take long to "
                "compute"
            )
        head = self.model.get_output_embeddings()
        if isinstance(head, torch.nn.Linear) and not self._whole:
            self.alphabet = sorted({token for label in tokens for token in label})
            whole = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
            whole.set_output_embeddings(Alphabet(head, self.alphabet))
        else:  # the whole vocabulary is needed, or an unmerged adapter is on the head
            self.alphabet = list(range(len(self.tokenizer)))
        places = {token: place for place, token in enumerate(self.alphabet)}
        try:
            return LabelTrie(self.labels, [[places[token] for token in label] for label in tokens])
        except ValueError as error:
            raise DataError(str(error)) from None

    # Texts, free or under a schema

    def _texts(
        self, head: list[int], batch: list[list[int]], rules: Sequence[Rules | None]
    ) -> list[Answer | EngineError]:
        """Greedy decoding; under a schema, among the tokens that it allows."""
        state, scores = self._begun(head, batch)
        prompts = list(state.lengths)
        lines = [ActiveSequence(walk=each.begin() if each else None) for each in rules]
        forced = {row: line.walk.forced() if line.walk else [] for row, line in enumerate(lines)}
        for row, tokens in forced.items():
            self._append(lines[row], tokens)
        work = [Step(range(len(batch)), state, scores)]
        if any(forced.values()):  # a schema forces the same beginning on every row
            work = list(self._continued(state, range(len(batch)), forced))
        while work:
            step = work.pop()
            added = {
                row: self._chosen(lines[row], logits)
                for row, logits in zip(step.rows, step.scores, strict=True)
                if not lines[row].finish
            }
            going = {row: tokens for row, tokens in added.items() if not lines[row].finish}
            work += self._continued(step.state, step.rows, going)
        return [self._text(line, length) for line, length in zip(lines, prompts, strict=True)]

    def _chosen(self, line: ActiveSequence, scores: Scores) -> list[int]:
        """The next token of a sequence, with the tokens that the grammar forces after it."""
        allowed = line.walk.allowed() if line.walk else None
        if allowed is not None and not len(allowed):
            line.finish, line.fault = "error", "the grammar allows nothing more"
            return []
        among = scores if allowed is None else scores[allowed]
        best = int(among.argmax())
        line.logprob -= math.log(float(np.exp(among - among[best]).sum(dtype=np.float64)))
        token = best if allowed is None else int(allowed[best])
        if token in self.ends:
            line.finish, line.ended = "stop", True
            return []
        try:
            return self._append(line, [token, *(line.walk.accept(token) if line.walk else [])])
        except DataError as error:
            line.finish, line.fault = "error", error.message
            return []

    def _append(self, line: ActiveSequence, tokens: list[int]) -> list[int]:
        room = self.max_tokens - len(line.tokens)
        cut, tokens = len(tokens) > room, tokens[:room]
        line.tokens += tokens
        if line.walk is not None and line.walk.finished and not cut:
            line.finish = "stop"
        elif len(line.tokens) >= self.max_tokens:
            line.finish = "length"
        return tokens

    def _text(self, line: ActiveSequence, length: int) -> Answer | EngineError:
        if line.fault:
            return EngineError(line.fault)
        text = self.tokenizer.decode(line.tokens, skip_special_tokens=True)
        count = len(line.tokens) + line.ended
        return Answer(text, line.finish, float(f"{math.exp(line.logprob):.6g}"), length, count)

    def _compiled(self, constraint: str) -> Rules | None:
        if not constraint:
            return None
        size = int(self.model.config.get_text_config().vocab_size)
        guide = llguidance.hf.from_tokenizer(self.tokenizer, n_vocab=size, eos_token=self.ends)
        return Rules(guide, constraint)

    # Computing

    def _begun(self, head: list[int], batch: list[list[int]]) -> tuple[State, list[Scores]]:
        """The state of prompts that share the prefix `head`, and
        the logits (vocabulary,) after each.
        """
        if head != self._shared[0]:
            self._shared = head, None
            if head:
                state = self._empty(1)
                self._grown(state, [head])
                self._shared = head, state
        shared = self._shared[1]
        state = shared.of([0] * len(batch)) if shared else self._empty(len(batch))
        return state, self._grown(state, [row[len(head) :] for row in batch])

    def _empty(self, count: int) -> State:
        mask = torch.ones((count, 0), dtype=torch.long, device=self.device)
        return State(DynamicCache(config=self.model.config), mask, [0] * count)

    def _continued(
        self, state: State, rows: Sequence[int], added: dict[int, list[int]]
    ) -> Iterator[Step]:
        """Compute more tokens of some rows of a state, which is unchanged; by length if padding is
        not allowed.
        """
        batches: dict[int, list[int]] = {}
        for row, tokens in added.items():
            batches.setdefault(0 if self._padded else len(tokens), []).append(row)
        for batch in batches.values():
            part = state.of([rows.index(row) for row in batch])
            yield Step(batch, part, self._grown(part, [added[row] for row in batch]))

    def _grown(self, state: State, added: list[list[int]]) -> list[Scores]:
        """Compute `added` tokens of each row; returns the logits (vocabulary,) after each row."""
        longest = max(map(len, added))
        ids = torch.tensor(
            [[self.pad] * (longest - len(row)) + row for row in added], device=self.device
        )
        new = torch.tensor(
            [[0] * (longest - len(row)) + [1] * len(row) for row in added], device=self.device
        )
        positions = torch.tensor(
            [
                [max(0, begun + k - longest + len(row)) for k in range(longest)]
                for begun, row in zip(state.lengths, added, strict=True)
            ],
            device=self.device,
        )
        state.mask = torch.cat([state.mask, new], dim=1)
        state.lengths = [begun + len(row) for begun, row in zip(state.lengths, added, strict=True)]
        logits = self._computed(ids, state.mask if self._padded else None, positions, state, 1)
        return list(logits[:, -1].float().cpu().numpy())

    def _computed(
        self,
        ids: torch.Tensor,
        mask: torch.Tensor | None,
        positions: torch.Tensor,
        state: State,
        kept: int,
    ) -> torch.Tensor:
        """Compute tokens (rows, n) after a state; returns the logits (rows,
        kept or more, vocabulary) of the last.
        """
        more = {"position_ids": positions, "logits_to_keep": kept, self._cache: state.cache}
        out = self.model(
            input_ids=ids,
            attention_mask=mask,
            use_cache=True,
            **{name: value for name, value in more.items() if name in self._takes},
        )
        logits: torch.Tensor = out.logits
        return logits


def _batches(
    order: Sequence[int],
    rows: Sequence[Sequence[int]],
    heads: Sequence[tuple[int, ...]],
    cells: int,
    *,
    alike: bool,
) -> Iterator[list[int]]:
    """Batches of prompts with one common prefix, and of one length if `alike`; the longest of a
    batch is its last.

    Args:
        cells: Tokens of a batch, the shared prefix counted for each prompt; a single prompt may
            have more.
    """
    batch: list[int] = []
    for index in order:
        length, count = len(rows[index]) - len(heads[index]), len(batch) + 1
        full = (
            len(batch) == ANSWERED_TOGETHER
            or count * length > TOKENS
            or count * len(rows[index]) > cells
        )
        other = bool(batch) and (
            heads[index] != heads[batch[0]] or (alike and len(rows[index]) != len(rows[batch[0]]))
        )
        if batch and (full or other):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _with_adapter(model: Any, adapter: Path) -> Any:
    """The base with the adapter's weights on it.

    Raises:
        StageError: The adapter has a layer that the base lacks.
    """
    settings = json.loads((adapter / "adapter_config.json").read_bytes())
    hf_folder.refuse_code_of_adapter(settings)
    config = PeftConfig.from_peft_type(
        **{key: value for key, value in settings.items() if value is not None}
    )
    tuned = PeftModel(model, config)
    loaded = set_peft_model_state_dict(tuned, load_file(adapter / "adapter_model.safetensors"))
    if loaded.unexpected_keys:
        raise StageError(
            f"the adapter does not fit the base: it has no layer '{loaded.unexpected_keys[0]}'"
        )
    return tuned.eval()
