"""Whether a GGUF is the merged model: the same vocabulary, template, token ids, end of turn, and next tokens.

What the merged model does is computed once with transformers (`Reference`); every file is then loaded by
llama.cpp and held against it. A file that reads a prompt otherwise, or cannot end a turn, never counts.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from slmctl.errors import StageError
from slmctl.model_files import quantizer
from slmctl.model_files.gguf_header import Head
from slmctl.model_files.quantizer import Row
from slmctl.task.contract import Message, Task
from slmctl.task.records import Record

ROWS = 16  # held-out records whose next tokens are compared
LONGEST = 1024  # tokens of such a record
ANSWER = 32  # tokens of an answer that are compared
LOGITS = 128 << 20  # bytes of logits that are kept: fewer records where the vocabulary is large
LOSSLESS_KL = 2e-3  # nats; SmolLM2-135M in F16 is 2e-6 away, by llama.cpp's own rounding of activations

# Where tokenizers differ, if they do.
NASTY = (
    "  two  spaces   three    four ", "\ttab\t\ttabs\n\n\nlines\r\nwindows", "🙂👩‍👩‍👧‍👦🇩🇪 emoji",
    "你好，世界。日本語かな漢字 한국어",
    "żółć Ünïcode éé naïve ﬁ",
    "שלום عربى हिन्दी ไทย", "<|im_end|> <|im_start|>system <end_of_turn> </s> <s> [INST] <bos> <pad>",
    "<unk> <0x0A> ▁under▁score",
    "0123456789 3.14159 1,000,000 ½ ²", "x" * 64, "don't I'LL we've it's", "a.b@c.example https://d.example/?q=1&r=%20#t",
    "\u00a0nbsp\u200bzwsp\u2028ls\ufeffbom", "```py\ndef f(x):\n    return x ** 2\n```", "", " ", "\n",
)  # fmt: skip


@dataclass(frozen=True)
class Reference:
    """What the merged model is, by transformers.

    Attributes:
        task: The contract, whose template and end of turn a file must carry.
        vocabulary: How many tokens the model has weights for; a file may leave out those that no text gives.
        spelled: How many of them the tokenizer gives.
        end_token: The id of the tokenizer's end token.
        end_of_turn: Token ids of the text that ends an answer.
        prompts: The conversations of held-out records and nasty texts, their tools, and how transformers renders them.
        texts: Rendered prompts, and answers with their end.
        tokens: Token ids of each text.
        rows: Held-out records with their answers, and the positions that predict a token of an answer.
        logits: Logits of those positions, (positions, vocabulary) in float32.
    """

    task: Task
    vocabulary: int
    spelled: int
    end_token: int
    end_of_turn: list[int]
    prompts: Sequence[tuple[Sequence[Message], Sequence[Any] | None, str]]
    texts: list[str]
    tokens: list[list[int]]
    rows: list[Row]
    logits: npt.NDArray[np.float32]


def reference(model: Any, tokenizer: Any, task: Task, records: Sequence[Record]) -> Reference:
    """Compute what a file must match.

    Args:
        model: The merged model of transformers.
        records: Held-out records.
    """
    chosen = records[:ROWS]
    asked: list[tuple[list[Any], Sequence[Any] | None]] = [(list(r.prompt_messages), r.tools) for r in chosen]
    asked += [(task.messages(text), None) for text in NASTY]
    prompts = [(messages, tools, _rendered(tokenizer, task, messages, tools)) for messages, tools in asked]
    answers = [task.defused(record.answer) + task.end for record in chosen]
    texts = [text for _, _, text in prompts] + answers
    tokens = [encode(tokenizer, text) for text in texts]
    vocabulary = int(model.config.get_text_config().vocab_size)
    rows = _rows(tokens[: len(chosen)], tokens[len(prompts) :], most=LOGITS // (4 * vocabulary))
    spelled = max(tokenizer.get_vocab().values()) + 1
    return Reference(
        task, vocabulary, spelled, int(tokenizer.eos_token_id), encode(tokenizer, task.end), prompts, texts, tokens,
        rows, _logits(model, rows, vocabulary),
    )  # fmt: skip


def encode(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a rendered text, none added."""
    ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    return ids


def _rendered(tokenizer: Any, task: Task, messages: Sequence[Message], tools: Sequence[Any] | None) -> str:
    """A conversation as transformers renders it, control tokens in it broken up as everywhere."""
    safe = task.safe(messages)
    return str(
        tokenizer.apply_chat_template(
            safe, tools=task.safe(tools) if tools else None, tokenize=False, add_generation_prompt=True
        )
    )


def _rows(prompts: Sequence[list[int]], answers: Sequence[list[int]], *, most: int) -> list[Row]:
    """Prompts with their answers, `most` positions in all; the last token of a prompt predicts the answer's first."""
    rows: list[Row] = []
    for prompt, answer in zip(prompts, answers, strict=True):
        answer = answer[: min(ANSWER, most)]
        most -= len(answer)
        if answer and 0 < len(prompt) <= LONGEST - len(answer):
            rows.append(Row([*prompt, *answer[:-1]], list(range(len(prompt) - 1, len(prompt) + len(answer) - 1))))
    return rows


@torch.inference_mode()
def _logits(model: Any, rows: Sequence[Row], vocabulary: int) -> npt.NDArray[np.float32]:
    """Logits at the positions of all rows, (positions, vocabulary)."""
    out = np.empty((sum(len(row.positions) for row in rows), vocabulary), np.float32)
    filled = 0
    for row in rows:
        ids, wanted = torch.tensor([row.tokens]), torch.tensor(row.positions)
        logits = model(input_ids=ids, logits_to_keep=wanted, use_cache=False).logits[0].float()
        out[filled : filled + len(wanted)] = logits.numpy()
        filled += len(wanted)
    return out


def check_head(name: str, head: Head, wanted: Reference) -> None:
    """What can be seen without loading the file, which llama.cpp may refuse to do.

    Raises:
        StageError: Its vocabulary, chat template or end token is not the merged model's.
    """
    vocabulary = len(head.metadata.get("tokenizer.ggml.tokens", []))
    rows = {tensor.name: tensor.shape[-1] for tensor in head.tensors}.get("token_embd.weight", vocabulary)
    if vocabulary != rows or not wanted.spelled <= vocabulary <= wanted.vocabulary:
        raise StageError(
            f"the vocabulary of {name} has {vocabulary} tokens with weights for {rows}; the merged model has weights "
            f"for {wanted.vocabulary}, and its tokenizer gives {wanted.spelled}"
        )
    template = head.metadata.get("tokenizer.chat_template", "")
    if template != wanted.task.chat_template:
        raise StageError(f"{name} carries another chat template than it was trained with")
    own = dataclasses.replace(wanted.task, chat_template=template)
    for messages, tools, rendered in wanted.prompts:
        if (written := own.prompt(messages, tools=tools)) != rendered:
            raise StageError(
                f"the chat template of {name} renders otherwise than transformers does: "
                f"{json.dumps(_apart(written, rendered), ensure_ascii=False)}"
            )
    if (end := head.metadata.get("tokenizer.ggml.eos_token_id")) != wanted.end_token:
        raise StageError(f"{name} ends with token {end}, the merged model's end token is {wanted.end_token}")


def check(path: Path, head: Head, wanted: Reference, *, scratch: Path) -> dict[str, Any]:
    """Load a file and hold it against the merged model.

    Returns:
        `kl_mean` and `kl_max` in nats, `top1_agreement`, and over how many positions and texts.

    Raises:
        StageError: It is not the merged model; the message names what differs.
    """
    check_head(path.name, head, wanted)
    logits = scratch / "logits.npy"
    found = quantizer.probe(path, texts=wanted.texts, end=wanted.task.end, rows=wanted.rows, logits=logits)
    for text, theirs, own in zip(wanted.texts, wanted.tokens, found["tokens"], strict=True):
        if own != theirs:
            raise StageError(
                f"the tokenizer of {path.name} reads {json.dumps(text[-60:], ensure_ascii=False)} otherwise than the "
                f"merged model's: {_apart(own, theirs)}"
            )
    if len(found["end_of_turn"]) != 1 or found["end_of_turn"] != wanted.end_of_turn:
        raise StageError(f"{path.name} does not read '{wanted.task.end}' as one token, so it could not end a turn")
    if not found["ends"]:
        raise StageError(f"generation with {path.name} does not stop at '{wanted.task.end}', the end of a turn")
    distance = compare(wanted.logits, np.load(logits, mmap_mode="r")) if wanted.rows else {}
    logits.unlink(missing_ok=True)
    if distance and not np.isfinite(distance["kl_mean"]):
        raise StageError(f"{path.name} computes next tokens that are no numbers")
    return {**distance, "texts": len(wanted.texts)}


def check_lossless(found: dict[str, Any], name: str) -> None:
    """Raises StageError when the lossless file predicts other tokens than the merged model."""
    if found.get("kl_mean", 0.0) > LOSSLESS_KL:
        raise StageError(
            f"the next-token distributions of {name}, which lost nothing, are {found['kl_mean']:.3f} nats from the "
            f"merged model's (at most {LOSSLESS_KL}): llama.cpp does not compute this architecture as transformers does"
        )


def compare(wanted: npt.NDArray[np.float32], found: npt.NDArray[np.float32]) -> dict[str, Any]:
    """KL divergence from the merged model's distributions to a file's, and how often both prefer the same token.

    Both are logits, (positions, vocabulary); tokens that a file leaves out count in neither.
    """
    divergences, same = [], 0
    for theirs, own in zip(wanted, found, strict=True):
        theirs = theirs[: len(own)]
        p, q = _log_softmax(theirs), _log_softmax(own)
        divergences.append(float(np.sum(np.exp(p) * (p - q))))
        same += int(np.argmax(theirs) == np.argmax(own))
    return {
        "kl_mean": round(float(np.mean(divergences)), 6),
        "kl_max": round(float(np.max(divergences)), 6),
        "top1_agreement": round(same / len(divergences), 4),
        "positions": len(divergences),
    }


def _log_softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    scores = logits.astype(np.float64)
    scores -= scores.max()
    result: npt.NDArray[np.float64] = scores - np.log(np.exp(scores).sum())
    return result


def _apart(own: Sequence[Any], theirs: Sequence[Any]) -> list[Any]:
    """Where two sequences begin to differ: a little of each."""
    at = next((k for k, (a, b) in enumerate(zip(own, theirs, strict=False)) if a != b), min(len(own), len(theirs)))
    return [own[at : at + 8], theirs[at : at + 8]]
