"""The child process of `encoder_process`: llama.cpp computes the vector of each text.

python -m slmctl.models.encoder_child MODEL.gguf THREADS     batches of texts in, vectors out
"""

from __future__ import annotations

import base64
import logging
import queue
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import llama_cpp as lc
import numpy as np
import numpy.typing as npt

from slmctl.inference import model_loading
from slmctl.inference.supervised_child import Parent

# Tokens and texts of a batch. Attention is among all tokens of a batch, so larger ones are slower: 1,000 questions of
# Banking77 took 8.5 s of processor time with 128 tokens, 11 s with 256 and 17 s with 512.
TOKENS, TEXTS = 128, 32
LONGEST = 512  # tokens that count of a text


class LoadedEncoder:
    """A loaded encoder, with a context for each thread: threads of one context would wait for each other at every
    layer, which is slow where other work shares the processor."""

    def __init__(self, path: str, threads: int) -> None:
        self.model = model_loading.load(path)
        if not self.model:
            raise SystemExit(f"error: llama.cpp cannot load {path}")
        self.vocab = lc.llama_model_get_vocab(self.model)
        self.size = lc.llama_model_n_embd(self.model)
        self.most = min(lc.llama_model_n_ctx_train(self.model), LONGEST)
        self._contexts: queue.SimpleQueue[_Context] = queue.SimpleQueue()
        for _ in range(threads):
            self._contexts.put(_Context(self.model, max(self.most, TOKENS)))
        self._pool = ThreadPoolExecutor(threads)

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text with its first and last token, at most as many as the encoder was trained on.

        Control tokens that the text spells out are read as text.
        """
        raw = text.encode(errors="replace")
        room, count = len(raw) + 8, -1
        while count < 0:  # a normal form may be longer than the text; llama.cpp then says by how much
            buffer = (lc.llama_token * room)()
            count = lc.llama_tokenize(self.vocab, raw, len(raw), buffer, room, True, False)
            room = max(room, -count)
        tokens = list(buffer[:count])
        return tokens if count <= self.most else [*tokens[: self.most - 1], tokens[-1]]

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """The vectors (texts, size) of some texts, each of length 1."""
        vectors = np.zeros((len(texts), self.size), np.float32)
        tokens = [self.tokenize(text) for text in texts]

        def compute(batch: Sequence[int]) -> None:
            context = self._contexts.get()
            try:
                vectors[batch] = context.encode([tokens[index] for index in batch], self.size)
            finally:
                self._contexts.put(context)

        list(self._pool.map(compute, _batches(tokens)))
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return vectors


class _Context:
    """One context of a model, computed by one thread."""

    def __init__(self, model: Any, tokens: int) -> None:
        settings = lc.llama_context_default_params()
        settings.embeddings = True
        settings.n_ctx = settings.n_batch = settings.n_ubatch = tokens
        settings.n_seq_max, settings.kv_unified = TEXTS, True
        settings.n_threads = settings.n_threads_batch = 1
        self.context = lc.llama_init_from_model(model, settings)
        if not self.context:
            raise SystemExit("error: llama.cpp cannot make a context: out of memory")
        if lc.llama_pooling_type(self.context) in (lc.LLAMA_POOLING_TYPE_NONE, lc.LLAMA_POOLING_TYPE_RANK):
            raise SystemExit("error: the model gives no vector of a text: it is no sentence encoder")
        self.batch = lc.llama_batch_init(tokens, 0, 1)

    def encode(self, texts: Sequence[Sequence[int]], size: int) -> npt.NDArray[np.float32]:
        """The vectors (texts, size) of at most TEXTS texts, as the model pools them."""
        rows = [(token, at, k) for k, tokens in enumerate(texts) for at, token in enumerate(tokens)]
        self.batch.n_tokens = len(rows)
        for place, (token, at, k) in enumerate(rows):
            self.batch.token[place], self.batch.pos[place], self.batch.logits[place] = token, at, True
            self.batch.n_seq_id[place], self.batch.seq_id[place][0] = 1, k
        memory = lc.llama_get_memory(self.context)
        if memory:  # a decoder that was made an encoder
            lc.llama_memory_clear(memory, True)
        if (status := (lc.llama_decode if memory else lc.llama_encode)(self.context, self.batch)) != 0:
            raise RuntimeError(f"llama.cpp failed with {status}")
        pooled = [lc.llama_get_embeddings_seq(self.context, k) for k in range(len(texts))]
        return np.stack([np.ctypeslib.as_array(vector, shape=(size,)).copy() for vector in pooled])


def _batches(tokens: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Indices of texts that are computed together, short ones first."""
    batch: list[int] = []
    held = 0
    places = [k for k, each in enumerate(tokens) if each]  # a text without a token keeps the vector of zeros
    for index in sorted(places, key=lambda k: (len(tokens[k]), k)):
        if batch and (held + len(tokens[index]) > TOKENS or len(batch) == TEXTS):
            yield batch
            batch, held = [], 0
        batch.append(index)
        held += len(tokens[index])
    if batch:
        yield batch


def main(path: str, threads: int) -> None:
    """Answer the parent's messages until it has gone."""
    parent = Parent()
    logging.getLogger("llama-cpp-python").setLevel(logging.ERROR)  # it writes a line for each tensor
    model = LoadedEncoder(path, threads)
    parent.ready(size=model.size, build=lc.__version__)
    while True:
        message = parent.inbox.get()
        parent.works(True)
        vectors = model.encode(message["texts"])
        parent.works(False)
        parent.send(id=message["id"], vectors=base64.b64encode(vectors.tobytes()).decode())


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
