"""The child process of `quantizer`: llama.cpp quantizes GGUF files and probes them.

    python -m slmctl.model_files.quantizer_child quantize
        one lossless GGUF -> a file of every requested type
    python -m slmctl.model_files.quantizer_child probe
        a GGUF -> its vocabulary, token ids, end of turn, logits

The order comes as JSON on stdin; answers go to stdout as JSON lines. The engine that serves is
`slmctl.inference.llama_child`.
"""

from __future__ import annotations

import ctypes
import json
import sys
from typing import Any

import llama_cpp as lc
import numpy as np
import numpy.typing as npt

from slmctl import child
from slmctl.inference import expansion, model_loading

MAX_BUFFER_BYTES = 64 << 20  # of rows that llama.cpp holds at once; its own limit is 8 GiB


def quantize_all(order: dict[str, Any], send: Any) -> None:
    """Write `{"source", "threads", "importance", "rows", "targets":
    [{"type", "constant", "path", "weighted"}]}`.
    """
    weights = dict(np.load(order["importance"])) if order["importance"] else {}
    for target in order["targets"]:
        params = lc.llama_model_quantize_default_params()
        params.ftype = ftype(target)
        params.nthread = order["threads"]
        params.max_buf_size = MAX_BUFFER_BYTES
        kept = _attach(params, weights, order["rows"]) if target["weighted"] else None
        status = lc.llama_model_quantize(order["source"].encode(), target["path"].encode(), params)
        del kept  # the parameters point into it
        if status != 0:
            raise SystemExit(
                f"llama.cpp could not write {target['path']} as {target['type']} ({status})"
            )
        send(type=target["type"])


def ftype(target: dict[str, Any]) -> int:
    """llama.cpp's number of a target's type."""
    number = getattr(lc, target["constant"], None)
    if number is None:
        raise SystemExit(f"this llama.cpp has no quantization type {target['type']}")
    return int(number)


def _attach(params: Any, weights: dict[str, npt.NDArray[np.float32]], rows: int) -> list[Any]:
    """Point the parameters to an importance matrix and to its metadata;
    returns the objects that must stay alive.
    """
    # an entry without a name ends it
    entries = (lc.llama_model_imatrix_data * (len(weights) + 1))()
    for entry, (name, values) in zip(entries, sorted(weights.items()), strict=False):
        entry.name = name.encode()
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        entry.size = values.size
    facts: list[tuple[str, int | str]] = [
        ("quantize.imatrix.dataset", "the training records"),
        ("quantize.imatrix.entries_count", len(weights)),
        ("quantize.imatrix.chunks_count", rows),
    ]
    notes = (lc.llama_model_kv_override * (len(facts) + 1))()  # an entry without a key ends it
    for note, (key, value) in zip(notes, facts, strict=False):
        note.key = key.encode()
        if isinstance(value, int):
            note.tag, note.value.val_i64 = lc.LLAMA_KV_OVERRIDE_TYPE_INT, value
        else:
            note.tag, note.value.val_str = lc.LLAMA_KV_OVERRIDE_TYPE_STR, value.encode()
    params.imatrix, params.kv_overrides = entries, notes
    return [entries, notes, weights]


def probe(order: dict[str, Any], send: Any) -> None:
    """Answer `{"model", "timings", "lora", "threads", "texts", "end", "rows": [{"tokens",
    "positions"}], "logits"}`.

    The logits of the positions of all rows go to the file `logits`, (positions, vocabulary) in
    float32.
    """
    model = model_loading.load(order["model"])
    if not model:
        raise SystemExit(f"llama.cpp cannot load {order['model']}")
    larger = None
    if order["timings"] is not None:
        larger = expansion.faster(
            model, order["model"], threads=order["threads"], cache=order["timings"]
        )
    if larger is not None:
        lc.llama_model_free(model)
        model = larger
    vocab = lc.llama_model_get_vocab(model)
    end = _tokens(vocab, order["end"])
    send(
        end_of_turn=end,
        ends=bool(end) and bool(lc.llama_vocab_is_eog(vocab, end[0])),
        tokens=[_tokens(vocab, text) for text in order["texts"]],
        expanded=larger is not None,
    )
    rows = order["rows"]
    if rows:
        count = sum(len(row["positions"]) for row in rows)
        shape = (count, lc.llama_vocab_n_tokens(vocab))
        out = np.lib.format.open_memmap(order["logits"], mode="w+", dtype=np.float32, shape=shape)
        _compute(model, order, rows, out)
        out.flush()
    send(done=True)


def _compute(
    model: Any, order: dict[str, Any], rows: list[dict[str, Any]], out: npt.NDArray[np.float32]
) -> None:
    """Decode every row on its own, and keep the logits at its positions."""
    longest = max(len(row["tokens"]) for row in rows)
    settings = lc.llama_context_default_params()
    settings.n_ctx = settings.n_batch = settings.n_ubatch = longest
    settings.n_threads = settings.n_threads_batch = order["threads"]
    # it sums in float16, too coarse to compare a file
    settings.flash_attn_type = lc.LLAMA_FLASH_ATTN_TYPE_DISABLED
    context = lc.llama_init_from_model(model, settings)
    if not context:
        raise SystemExit(f"llama.cpp cannot make a context of {longest} tokens: out of memory")
    if order["lora"]:
        adapter = lc.llama_adapter_lora_init(model, order["lora"].encode())
        if not adapter:
            raise SystemExit(f"llama.cpp cannot load {order['lora']}")
        lc.llama_set_adapters_lora(
            context, (lc.llama_adapter_lora_p_ctypes * 1)(adapter), 1, (ctypes.c_float * 1)(1.0)
        )
    batch, filled = lc.llama_batch_init(longest, 0, 1), 0
    for row in rows:
        positions = set(row["positions"])
        lc.llama_memory_clear(lc.llama_get_memory(context), True)
        batch.n_tokens = len(row["tokens"])
        for k, token in enumerate(row["tokens"]):
            batch.token[k] = token
            batch.pos[k] = k
            batch.n_seq_id[k] = 1
            batch.seq_id[k][0], batch.logits[k] = 0, int(k in positions)
        status = lc.llama_decode(context, batch)
        if status != 0:
            raise SystemExit(f"llama_decode failed with {status}")
        for position in row["positions"]:
            logits = lc.llama_get_logits_ith(context, position)
            out[filled] = np.ctypeslib.as_array(logits, shape=(out.shape[1],))
            filled += 1


def _tokens(vocab: Any, text: str) -> list[int]:
    """Token ids of a rendered text as the engine tokenizes it:
    control tokens parsed, none added.
    """
    raw = text.encode()
    buffer = (lc.llama_token * (len(raw) + 8))()
    count = lc.llama_tokenize(vocab, raw, len(raw), buffer, len(buffer), False, True)
    return list(buffer[:count])


def main() -> None:
    """Run the order on stdin; stdout is for answers alone, so prints of llama.cpp go to stderr."""
    child.end_with_parent()  # else it would write into the folder of the next run
    answers = child.private_stdout()

    def send(**answer: Any) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    {"quantize": quantize_all, "probe": probe}[sys.argv[1]](json.load(sys.stdin), send)


if __name__ == "__main__":
    main()
