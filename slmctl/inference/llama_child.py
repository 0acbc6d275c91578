"""The child process of `engine`: llama.cpp through llama-cpp-python's low-level batch API.

    python -m slmctl.inference.llama_child MODEL.gguf SETTINGS
        requests as JSON lines in, events out

Only this module, `expansion`, `model_loading` and `model_files.quantizer_child` import
llama_cpp; `scheduler` decides what is decoded next.
"""

from __future__ import annotations

import ctypes
import json
import queue
import sys
from collections.abc import Callable
from typing import Any

import llama_cpp as lc
import llguidance.llamacpp
import numpy as np

from slmctl.errors import DataError
from slmctl.inference import expansion, kept_prefixes, model_loading
from slmctl.inference.decoding_model import BATCH, Item, Logits
from slmctl.inference.engine import Request
from slmctl.inference.events import EXPANDED
from slmctl.inference.grammar_pool import Grammars
from slmctl.inference.scheduler import Scheduler
from slmctl.inference.supervised_child import Message, Parent

GRAMMAR_WAIT_S = 0.003
SPARE = 4  # places for clients that have none yet, beside those of all
NOT_QUANTIZED = ("0", "1", "32")  # `general.file_type` of F32, F16 and BF16


def _loaded(path: str) -> Any:
    """The model of a file; ends the process if llama.cpp cannot load it, or not generate by it."""
    model = model_loading.load(path)
    if not model:
        raise SystemExit(f"llama.cpp cannot load {path}")
    if lc.llama_model_has_encoder(model) or lc.llama_model_is_diffusion(model):
        raise SystemExit("error: the model does not generate its text token by token from a prompt")
    return model


class LlamaModel:
    """A loaded GGUF with its context."""

    def __init__(
        self,
        path: str,
        *,
        sequences: int,
        context: int,
        threads: int,
        adapters: dict[str, str],
        grammars: bool = False,
        mostly_reads: bool = False,
        timings: str = "",
    ) -> None:
        self.model = _loaded(path)
        larger = (
            expansion.faster(self.model, path, threads=threads, cache=timings)
            if mostly_reads
            else None
        )
        self.expanded = larger is not None
        if larger is not None:
            lc.llama_model_free(self.model)
            self.model = larger
        self.recurrent = model_loading.is_recurrent(self.model)
        # A label takes two sequences of a recurrent model, see `scheduler`.
        self.sequences = max(2, sequences) if self.recurrent else sequences
        self.vocab = lc.llama_model_get_vocab(self.model)
        self.n_vocab = lc.llama_vocab_n_tokens(self.vocab)
        self.cells = context * sequences
        settings = lc.llama_context_default_params()
        settings.n_ctx = self.cells
        settings.n_batch = BATCH
        settings.n_ubatch = BATCH
        others = self.sequences + kept_prefixes.count_of(self.recurrent, len(adapters))
        # each of a recurrent model has a state of its own
        self.spare = (
            0 if self.recurrent else min(SPARE, max(0, lc.llama_max_parallel_sequences() - others))
        )
        settings.n_seq_max = others + self.spare
        settings.n_threads = settings.n_threads_batch = threads
        settings.kv_unified = True
        # The fused attention sums in float16, and is 20 % faster. Without it a file that is not
        # quantized gives the same logits to 1e-6 whatever is decoded beside a sequence, so the same
        # texts; a quantized one does not anyway.
        if self.metadata("general.file_type") in NOT_QUANTIZED and (grammars or not mostly_reads):
            settings.flash_attn_type = lc.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.context = lc.llama_init_from_model(self.model, settings)
        if not self.context:
            raise SystemExit(
                f"llama.cpp cannot make a context of {self.cells} tokens: out of memory"
            )
        self.memory = lc.llama_get_memory(self.context)
        self.batch = lc.llama_batch_init(BATCH, 0, 1)
        self._tokens = np.ctypeslib.as_array(self.batch.token, shape=(BATCH,))
        self._positions = np.ctypeslib.as_array(self.batch.pos, shape=(BATCH,))
        self._needed = np.ctypeslib.as_array(self.batch.logits, shape=(BATCH,))
        np.ctypeslib.as_array(self.batch.n_seq_id, shape=(BATCH,))[:] = 1
        self._adapters = {name: self._adapter(name, file) for name, file in adapters.items()}
        self._used = ""

    def _adapter(self, name: str, path: str) -> Any:
        adapter = lc.llama_adapter_lora_init(self.model, path.encode())
        if not adapter:
            raise SystemExit(f"error: the adapter '{name}' ({path}) is no LoRA for this model")
        return adapter

    def use(self, adapter: str) -> None:
        """Have the next batches computed with this LoRA adapter; with none for the empty name."""
        if adapter == self._used:
            return
        count = 1 if adapter else 0
        chosen = (lc.llama_adapter_lora_p_ctypes * count)(
            *([self._adapters[adapter]] if adapter else [])
        )
        if lc.llama_set_adapters_lora(self.context, chosen, count, (ctypes.c_float * 1)(1.0)):
            raise RuntimeError(f"llama.cpp cannot take the adapter '{adapter}'")
        self._used = adapter

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a rendered prompt, its control tokens read as such, none added.

        Raises:
            DataError: The text is not valid Unicode.
        """
        try:
            raw = text.encode()
        except UnicodeEncodeError:
            raise DataError(
                "the text holds half of a surrogate pair, which is no Unicode"
            ) from None
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

    def controls(self) -> dict[str, Any]:
        """Texts of the control tokens and of the tokens that begin and
        end a text; see `events.ControlTokens`.
        """
        listed = [
            t
            for t in range(self.n_vocab)
            if lc.llama_vocab_is_control(self.vocab, t) or self.ends(t)
        ]
        begin, end = lc.llama_vocab_bos(self.vocab), lc.llama_vocab_eos(self.vocab)
        return {
            "tokens": [text for text in map(self._name, listed) if text],
            "bos": self._name(begin),
            "eos": self._name(end),
            "adds_bos": bool(lc.llama_vocab_get_add_bos(self.vocab)),
        }

    def _name(self, token: int) -> str:
        return (
            lc.llama_vocab_get_text(self.vocab, token).decode(errors="replace")
            if token >= 0
            else ""
        )

    def chat_template(self) -> str:
        raw = lc.llama_model_chat_template(self.model, None)
        return raw.decode() if raw else ""

    def decode(self, items: list[Item]) -> list[tuple[int, Logits]]:
        """Decode (token, position, sequence, wants logits); at most BATCH of them.

        Returns:
            For the items that want them, in order: the sequence, and logits (n_vocab,) that the
            next call overwrites.
        """
        if self.recurrent:
            # llama.cpp computes consecutive sequences together
            items = sorted(items, key=lambda item: item.sequence)
        count = len(items)
        self.batch.n_tokens = count
        self._tokens[:count] = [item.token for item in items]
        self._positions[:count] = [item.position for item in items]
        self._needed[:count] = [item.needed for item in items]
        for k, item in enumerate(items):
            self.batch.seq_id[k][0] = item.sequence
        status = lc.llama_decode(self.context, self.batch)
        if status != 0:
            raise RuntimeError(f"llama_decode failed with {status}")
        return [(item.sequence, self._logits(k)) for k, item in enumerate(items) if item.needed]

    def _logits(self, index: int) -> Logits:
        """The logits (n_vocab,) after an item of the last call, which the next one overwrites."""
        pointer = lc.llama_get_logits_ith(self.context, index)
        return np.ctypeslib.as_array(pointer, shape=(self.n_vocab,))

    def copy(self, source: int, target: int, length: int) -> None:
        """Have `target` hold the first `length` tokens of `source`, which
        are all of them in a recurrent model.
        """
        lc.llama_memory_seq_cp(
            self.memory, source, target, *((-1, -1) if self.recurrent else (0, length))
        )

    def forget(self, sequence: int, start: int = 0) -> None:
        """Free the cells of a sequence from position `start` on."""
        if not lc.llama_memory_seq_rm(self.memory, sequence, start, -1):
            raise RuntimeError(
                f"llama.cpp cannot take sequence {sequence} back to position {start}"
            )


def grammar_tokenizer(path: str) -> llguidance.LLTokenizer:
    """The vocabulary of a GGUF file as grammars need it; takes a
    second or two, and loads no weights.
    """
    params = lc.llama_model_default_params()
    params.vocab_only = True
    model = lc.llama_model_load_from_file(path.encode(), params)
    if not model:
        raise SystemExit(f"llama.cpp cannot load the vocabulary of {path}")
    vocab = lc.llama_model_get_vocab(model)
    ends = [
        token
        for token in range(lc.llama_vocab_n_tokens(vocab))
        if lc.llama_vocab_is_eog(vocab, token)
    ]
    return llguidance.llamacpp.lltokenizer_from_vocab(vocab, eos_token=ends or None)


def serve(path: str, settings: dict[str, Any]) -> None:
    """Answer requests from stdin until it closes."""
    parent = Parent()
    # of the parent, and {"grammar": id, "state": its state or the sentence that ends it}
    inbox = parent.inbox

    grammars = Grammars(path, lambda id, state: inbox.put({"grammar": id, "state": state}))
    if settings["grammars"]:
        grammars.prepare()
    model = LlamaModel(path, **settings)
    scheduler = Scheduler(
        model,
        model.sequences,
        settings["context"],
        parent.send,
        grammars,
        settings["adapters"],
        spare=model.spare,
    )
    parent.ready(
        chat_template=model.chat_template(),
        trained_context=lc.llama_model_n_ctx_train(model.model),
        build=lc.__version__ + (EXPANDED if model.expanded else ""),
        expanded=model.expanded,
    )
    while True:
        parent.works(scheduler.busy)
        try:
            if not scheduler.busy:
                message = inbox.get()
            elif (
                scheduler.awaits_grammar
            ):  # in a moment their tokens can be decoded with the others'
                message = inbox.get(timeout=GRAMMAR_WAIT_S)
            else:
                message = inbox.get_nowait()
        except queue.Empty:
            scheduler.step()
            continue
        _take(message, model, scheduler, parent.send)


def _take(
    message: Message, model: LlamaModel, scheduler: Scheduler, send: Callable[..., None]
) -> None:
    """Carry out one message of the parent."""
    if "grammar" in message:
        scheduler.take_grammar(message["grammar"], message["state"])
    elif "cancel" in message:
        scheduler.cancel(message["cancel"])
    elif "fill" in message:
        scheduler.fills = message["fill"]
    elif "tokenize" in message:
        try:
            send(id=message["id"], tokens=model.tokenize(message["tokenize"]))
        except DataError as error:
            send(id=message["id"], error=error.message, refused=True)
    elif "controls" in message:
        send(id=message["id"], controls=model.controls())
    else:
        scheduler.submit(message.pop("id"), Request(**message))


if __name__ == "__main__":
    serve(sys.argv[1], json.loads(sys.argv[2]))
