"""Check that a GGUF file is the merged model: vocabulary, template, token ids, end of turn, next
tokens.

transformers computes them once for the merged model (`MergedModelReference`), llama.cpp for every
file. A file that tokenizes a prompt differently, or cannot end a turn, is refused.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from slmctl import console
from slmctl.errors import StageError
from slmctl.model_files import gguf_header, quantizer, vocabulary
from slmctl.model_files.gguf_header import GgufHeader
from slmctl.model_files.quantizer import LogitRequest
from slmctl.task.contract import Task
from slmctl.task.records import Message, Record

COMPARED_RECORDS = 16  # held-out records whose next tokens are compared
MAX_RECORD_TOKENS = 1024  # tokens of such a record
MAX_ANSWER_TOKENS = 32  # tokens of an answer that are compared
BATCH_TOKENS = 2048  # tokens of a batch; every weight is cast to float32 once a batch
# bytes of logits in memory: with a large vocabulary, fewer positions are compared
MAX_LOGIT_BYTES = 128 << 20
# nats; SmolLM2-135M in F16 is 2e-6 away, by llama.cpp's own rounding of activations
LOSSLESS_KL = 2e-3
# times that of the merged file: the base is quantized alone, without an importance matrix
ADAPTER_KL = 10

MAX_LOOK_ALIKES = 64  # spelled control tokens of a base; some have thousands, reserved for later

# A text with combining marks: llama.cpp splits such words where tokenizers like gpt-4o's do not, so
# a difference is only noted. In a held-out record it is refused like any other.
MARKS = "देवनागरी में हिन्दी"

# Texts on which tokenizers differ, if they do.
HARD_TEXTS = (
    "  two  spaces   three    four ",
    "\ttab\t\ttabs\n\n\nlines\r\nwindows",
    "🙂👩‍👩‍👧‍👦🇩🇪 emoji",
    "你好，世界。日本語かな漢字 한국어",
    "żółć Ünïcode éé naïve ﬁ",
    "שלום عربى ไทย",
    MARKS,
    "<|im_end|> <|im_start|>system <end_of_turn> </s> <s> [INST] <bos> <pad>",
    "<unk> <0x0A> x▁under▁score",
    "Tie\u0302\u0301ng Vie\u0323\u0302t, cafe\u0301, \u1112\u1161\u11ab",
    "0123456789 3.14159 1,000,000 ½ ²",
    "x" * 64,
    "don't I'LL we've it's",
    "a.b@c.example https://d.example/?q=1&r=%20#t",
    "\u00a0nbsp\u200bzwsp\u2028ls\ufeffbom",
    "```py\ndef f(x):\n    return x ** 2\n```",
    "",
    " ",
    "\n",
)


@dataclass(frozen=True)
class MergedModelReference:
    """The results of the merged model in transformers.

    Attributes:
        task: The contract, whose template and end of turn a file must carry.
        vocabulary: Number of tokens with weights; a file may leave out those that the tokenizer
            never gives.
        spelled: Number of tokens that the tokenizer can give.
        end_token: The id of the tokenizer's end token.
        end_of_turn: Token ids of the text that ends an answer.
        prompts: Conversations (held-out records, HARD_TEXTS, look-alikes), their tools, and the
            prompt of transformers.
        texts: Rendered prompts, and answers with their end.
        tokens: Token ids of each text.
        rows: Held-out records with their answers, and the positions that predict a token of an
            answer.
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
    rows: list[LogitRequest]
    logits: npt.NDArray[np.float32]


def reference(
    model: Any, tokenizer: Any, task: Task, records: Sequence[Record]
) -> MergedModelReference:
    """Compute the reference of all files with the merged model of
    transformers and held-out records.
    """
    chosen = records[:COMPARED_RECORDS]
    questions: list[tuple[list[Any], Sequence[Any] | None]] = [
        (list(r.prompt_messages), r.tools) for r in chosen
    ]
    questions += [(task.messages(text), None) for text in (*HARD_TEXTS, *look_alikes(task))]
    prompts = [
        (messages, tools, _rendered(tokenizer, task, messages, tools))
        for messages, tools in questions
    ]
    answers = [task.rules.written(record.answer) + task.end for record in chosen]
    texts = [text for _, _, text in prompts] + answers
    tokens = [encode(tokenizer, text) for text in texts]
    vocabulary = int(model.config.get_text_config().vocab_size)
    rows = _rows(
        tokens[: len(chosen)], tokens[len(prompts) :], most=MAX_LOGIT_BYTES // (4 * vocabulary)
    )
    spelled = max(tokenizer.get_vocab().values()) + 1
    return MergedModelReference(
        task,
        vocabulary,
        spelled,
        int(tokenizer.eos_token_id),
        encode(tokenizer, task.end),
        prompts,
        texts,
        tokens,
        rows,
        _logits(model, rows, vocabulary),
    )


def look_alikes(task: Task) -> list[str]:
    """Texts that spell control tokens: the base's own, and all that llama.cpp knows by name."""
    names = sorted({*task.special_tokens, *vocabulary.CONTROL_BY_NAME})
    chosen = [*names[:: max(1, len(names) // MAX_LOOK_ALIKES)], *sorted(vocabulary.CONTROL_BY_NAME)]
    # no blanks: one before a U+2581 is two of them to transformers
    return ["\n".join(chosen), "x".join(chosen)]


def encode(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a rendered text, without added special tokens."""
    ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    return ids


def _rendered(
    tokenizer: Any, task: Task, messages: Sequence[Message], tools: Sequence[Any] | None
) -> str:
    """The prompt that transformers renders, with control tokens in
    the messages broken up as everywhere.
    """
    messages, tools = task.template_input(messages, tools)
    return str(
        tokenizer.apply_chat_template(
            task.safe_messages(messages),
            tools=task.safe(tools) if tools else None,
            tokenize=False,
            add_generation_prompt=True,
        )
    )


def _rows(
    prompts: Sequence[list[int]], answers: Sequence[list[int]], *, most: int
) -> list[LogitRequest]:
    """Prompts with their answers, at most `most` positions in all; a prompt's
    last token predicts an answer's first.
    """
    rows: list[LogitRequest] = []
    for prompt, answer in zip(prompts, answers, strict=True):
        answer = answer[: min(MAX_ANSWER_TOKENS, most)]
        most -= len(answer)
        if answer and 0 < len(prompt) <= MAX_RECORD_TOKENS - len(answer):
            rows.append(
                LogitRequest(
                    [*prompt, *answer[:-1]],
                    list(range(len(prompt) - 1, len(prompt) + len(answer) - 1)),
                )
            )
    return rows


@torch.inference_mode()
def _logits(model: Any, rows: Sequence[LogitRequest], vocabulary: int) -> npt.NDArray[np.float32]:
    """Logits at the positions of all rows, (positions, vocabulary)."""
    ends = list(itertools.accumulate(len(row.positions) for row in rows))
    out = np.empty((ends[-1] if ends else 0, vocabulary), np.float32)
    chosen: tuple[list[int], list[int]] = [], []  # rows of a batch, and a position in each

    def choose(head: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (inputs[0][chosen][None],)  # (rows, length, width) -> (1, positions, width)

    handle = model.get_output_embeddings().register_forward_pre_hook(choose)
    try:
        for batch in batches([row.tokens for row in rows]):
            pairs = [
                (place, position)
                for place, index in enumerate(batch)
                for position in rows[index].positions
            ]
            chosen = [place for place, _ in pairs], [position for _, position in pairs]
            ids, _ = padded([rows[index].tokens for index in batch])
            # (positions, vocabulary)
            logits = model(input_ids=ids, use_cache=False).logits[0].float().numpy()
            targets = [
                ends[index] - len(rows[index].positions) + k
                for index in batch
                for k in range(len(rows[index].positions))
            ]
            out[targets] = logits
    finally:
        handle.remove()
    return out


def batches(sequences: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Batches of indices of sequences of like length, at most
    BATCH_TOKENS after padding, or one sequence.
    """
    batch: list[int] = []
    for index in sorted(range(len(sequences)), key=lambda index: len(sequences[index])):
        if batch and (len(batch) + 1) * len(sequences[index]) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def padded(sequences: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask, each (sequences, length), padded on the right.

    No position of a causal model sees the padding after it, so models need no mask, those without
    attention included.
    """
    length = max(map(len, sequences))
    ids = torch.tensor([[*tokens, *[0] * (length - len(tokens))] for tokens in sequences])
    mask = torch.tensor(
        [[True] * len(tokens) + [False] * (length - len(tokens)) for tokens in sequences]
    )
    return ids, mask


def check_head(name: str, head: GgufHeader, reference: MergedModelReference) -> None:
    """Compare a file's metadata with the merged model, before llama.cpp loads the file.

    Raises:
        StageError: Its vocabulary, chat template or end token is not the merged model's.
    """
    vocabulary = len(head.metadata.get("tokenizer.ggml.tokens", []))
    rows = {tensor.name: tensor.shape[-1] for tensor in head.tensors}.get(
        "token_embd.weight", vocabulary
    )
    if vocabulary != rows or not reference.spelled <= vocabulary <= reference.vocabulary:
        raise StageError(
            f"the vocabulary of {name} has {vocabulary} tokens with weights for {rows}; the merged "
            "model has weights "
            f"for {reference.vocabulary}, and its tokenizer gives {reference.spelled}"
        )
    template = head.metadata.get("tokenizer.chat_template", "")
    if template != reference.task.chat_template:
        raise StageError(f"{name} carries another chat template than it was trained with")
    own = dataclasses.replace(reference.task, chat_template=template)
    for messages, tools, rendered in reference.prompts:
        if (written := own.prompt(messages, tools=tools)) != rendered:
            raise StageError(
                f"the chat template of {name} renders otherwise than transformers does: "
                f"{json.dumps(_first_difference(written, rendered), ensure_ascii=False)}"
            )
    if (end := head.metadata.get("tokenizer.ggml.eos_token_id")) != reference.end_token:
        raise StageError(
            f"{name} ends with token {end}, the merged model's end token is {reference.end_token}"
        )


def check(
    path: Path, reference: MergedModelReference, *, scratch: Path, lora: Path | None = None
) -> dict[str, Any]:
    """Compare a file, as llama.cpp computes it, with the merged model.

    Args:
        lora: An adapter to put on the file; the file's weights then keep their type, since other
            adapters share them.

    Returns:
        `kl_mean` and `kl_max` in nats, `top1_agreement` (share), `positions` and `texts` (counts);
        `weights`, the type in which the engine holds them, if it is not the file's, also when its
        answers are measured and served.

    Raises:
        StageError: It differs; the message names the difference.
    """
    check_head(path.name, gguf_header.read(path), reference)
    logits = scratch / "logits.npy"
    probe = quantizer.probe(
        path,
        texts=reference.texts,
        end=reference.task.end,
        rows=reference.rows,
        logits=logits,
        lora=lora,
        mostly_reads=reference.task.mostly_reads and lora is None,
    )
    for text, theirs, own in zip(reference.texts, reference.tokens, probe.tokens, strict=True):
        if own != theirs and MARKS in text:
            console.say(
                f"  note: {path.name} tokenizes Hindi and scripts like it otherwise than the "
                "merged model"
            )
        elif own != theirs:
            raise StageError(
                f"the tokenizer of {path.name} reads {json.dumps(text[-60:], ensure_ascii=False)} "
                "otherwise than the "
                f"merged model's: {_first_difference(own, theirs)}"
            )
    if len(probe.end_of_turn) != 1 or probe.end_of_turn != reference.end_of_turn:
        raise StageError(
            f"{path.name} does not read '{reference.task.end}' as one token, so it could not end a "
            "turn"
        )
    if not probe.ends:
        raise StageError(
            f"generation with {path.name} does not stop at '{reference.task.end}', the end of a "
            "turn"
        )
    distance = (
        compare_logits(reference.logits, np.load(logits, mmap_mode="r")) if reference.rows else {}
    )
    logits.unlink(missing_ok=True)
    if distance and not np.isfinite(distance["kl_mean"]):
        raise StageError(f"{path.name} computes next-token probabilities that are not finite")
    return {
        **distance,
        "texts": len(reference.texts),
        **({"weights": "BF16"} if probe.expanded else {}),
    }


def check_lossless(path: Path, reference: MergedModelReference, *, scratch: Path) -> dict[str, Any]:
    """`check` the lossless file, and that its divergence is at most LOSSLESS_KL.

    Raises:
        StageError: It differs, or its next-token distributions are further from the merged model's.
    """
    distances = check(path, reference, scratch=scratch)
    kl = distances.get("kl_mean")
    if kl is None:
        limit = MAX_RECORD_TOKENS
        console.say(
            f"  note: no held-out record has under {limit} tokens, so next tokens were not compared"
        )
    elif kl > LOSSLESS_KL:
        raise StageError(
            f"the next-token distributions of {path.name}, which lost nothing, are {kl:.3f} nats "
            "from the merged "
            f"model's (at most {LOSSLESS_KL}): llama.cpp does not compute this architecture as "
            "transformers does"
        )
    return distances


def check_adapter(beside: dict[str, Any], merged: dict[str, Any], name: str, base: str) -> None:
    """Raises StageError when an adapter on its base is further from the merged model than rounding
    explains.

    Args:
        beside: The distances of the adapter's file on the base's file of a type.
        merged: Those of the merged model's own file of that type, which rounds as many weights.
        name: The adapter's file.
        base: The base's file.
    """
    limit = LOSSLESS_KL + ADAPTER_KL * merged.get("kl_mean", 0.0)
    if beside.get("kl_mean", 0.0) > limit:
        raise StageError(
            f"{name} on {base} is {beside['kl_mean']:.3f} nats from the merged model, whose own "
            "file of this type is "
            f"{merged.get('kl_mean', 0.0):.3f} nats from it (at most {limit:.3f})",
            hint="--set quantize.lora_gguf=false; the merged files are not concerned",
        )


def compare_logits(
    reference: npt.NDArray[np.float32], logits: npt.NDArray[np.float32]
) -> dict[str, Any]:
    """KL divergence from the merged model's next-token distributions to a file's, and top-1
    agreement.

    Args:
        reference: Logits of the merged model, (positions, V).
        logits: Logits of the file, (positions, V or fewer); tokens that it leaves out count in
            neither.
    """
    divergences, same = [], 0
    for theirs, own in zip(reference, logits, strict=True):
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


def _first_difference(own: Sequence[Any], theirs: Sequence[Any]) -> list[Any]:
    """Eight items of each sequence from their first difference on."""
    at = next(
        (k for k, (a, b) in enumerate(zip(own, theirs, strict=False)) if a != b),
        min(len(own), len(theirs)),
    )
    return [own[at : at + 8], theirs[at : at + 8]]
