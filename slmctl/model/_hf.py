"""Answers of HF models: base, adapter on base, merged. Batched by length, labels by the same trie as the engine's."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftConfig, PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file

from slmctl import weights
from slmctl.artifact import Artifact
from slmctl.engine import Answer, EngineError
from slmctl.errors import StageError
from slmctl.task import Task

if TYPE_CHECKING:
    from slmctl.model.predict import Prompt

BATCH = 16  # prompts decoded together


class HfAnswerer:
    """Answers with transformers, in float32 on a CPU and bfloat16 on a GPU."""

    def __init__(self, model: Artifact, task: Task, *, base: Artifact | None, max_tokens: int) -> None:
        self.task, self.max_tokens = task, max_tokens
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = torch.bfloat16 if self.device == "cuda" else torch.float32
        folder = (base or model).path
        self.tokenizer: Any = weights.load_tokenizer(folder)
        self.model: Any = weights.load_model(folder, dtype=dtype, attn_implementation="sdpa")
        if model.kind == "adapter":
            if base is None:
                raise StageError("an adapter answers on top of its base, which is not here", hint="--base PATH")
            self.model = _with_adapter(self.model, model)
        self.model.to(self.device)
        self.pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0

    @torch.inference_mode()
    def answer(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, Answer | EngineError]]:
        rows = [self.tokenizer(prompt.text, add_special_tokens=False).input_ids for prompt in prompts]
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]))  # like lengths together
        for start in range(0, len(order), BATCH):
            indices = order[start : start + BATCH]
            batch = [rows[index] for index in indices]
            answers = self._labels(batch) if self.task.labels else self._free_text(batch)
            yield from zip(indices, answers, strict=True)

    def _labels(self, batch: list[list[int]]) -> list[Answer]:
        """Walk the label trie; a row is computed again with its choice while it still has one to make."""
        ends = [self.tokenizer(label + self.task.end, add_special_tokens=False).input_ids for label in self.task.labels]
        paths: list[list[int]] = [[] for _ in batch]
        probability, asking = [1.0] * len(batch), list(range(len(batch)))
        chosen: list[int] = [0] * len(batch)
        while asking:
            logits = self._last_logits([batch[row] + paths[row] for row in asking])
            still = []
            for row, scores in zip(asking, logits, strict=True):
                depth = len(paths[row])
                left = [k for k, tokens in enumerate(ends) if tokens[:depth] == paths[row]]
                allowed = sorted({ends[k][depth] for k in left})
                shares = torch.softmax(scores[allowed].double(), dim=0)
                best = int(shares.argmax())
                probability[row] *= float(shares[best])
                left = [k for k in left if ends[k][depth] == allowed[best]]
                if len(left) == 1:
                    chosen[row] = left[0]
                    continue
                depth += 1
                while len({ends[k][depth] for k in left}) == 1:  # forced: the model is not asked
                    depth += 1
                paths[row] = ends[left[0]][:depth]
                still.append(row)
            asking = still
        return [
            Answer(
                self.task.labels[chosen[row]],
                "stop",
                round(probability[row], 6),
                len(batch[row]),
                len(ends[chosen[row]]),
            )
            for row in range(len(batch))
        ]

    def _last_logits(self, rows: list[list[int]]) -> torch.Tensor:
        """Logits of the token after each row, (rows, vocabulary)."""
        logits: torch.Tensor = (
            self.model(**self._padded(rows), logits_to_keep=1, use_cache=False).logits[:, -1].float().cpu()
        )
        return logits

    def _free_text(self, batch: list[list[int]]) -> list[Answer]:
        end = self.tokenizer.convert_tokens_to_ids(self.task.end)
        inputs = self._padded(batch)
        out = self.model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=self.max_tokens,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            pad_token_id=self.pad,
            eos_token_id=[end, self.tokenizer.eos_token_id],
            output_logits=True,
            return_dict_in_generate=True,
        )
        width, answers = inputs["input_ids"].shape[1], []
        for row in range(len(batch)):
            tokens = out.sequences[row, width:].tolist()
            stops = [k for k, token in enumerate(tokens) if token in (end, self.tokenizer.eos_token_id)]
            count = stops[0] + 1 if stops else len(tokens)
            shares = [torch.log_softmax(out.logits[k][row].double(), 0)[tokens[k]] for k in range(count)]
            text = self.tokenizer.decode(tokens[: stops[0] if stops else count], skip_special_tokens=True)
            confidence = round(float(torch.stack(shares).sum().exp()), 6)
            answers.append(Answer(text, "stop" if stops else "length", confidence, len(batch[row]), count))
        return answers

    def _padded(self, rows: list[list[int]]) -> dict[str, torch.Tensor]:
        """Token ids, mask and positions (rows, length), padded on the left."""
        length = max(map(len, rows))
        ids = torch.tensor([[self.pad] * (length - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        return {
            "input_ids": ids.to(self.device),
            "attention_mask": mask.to(self.device),
            "position_ids": positions.to(self.device),
        }


def _with_adapter(model: Any, adapter: Artifact) -> Any:
    """Put an adapter's weights on its base; every one of them must find its place."""
    settings = json.loads(adapter.file("adapter_config.json").read_bytes())
    config = PeftConfig.from_peft_type(**{key: value for key, value in settings.items() if value is not None})
    tuned = PeftModel(model, config)
    loaded = set_peft_model_state_dict(tuned, load_file(adapter.file("adapter_model.safetensors")))
    if loaded.unexpected_keys:
        raise StageError(f"the adapter does not fit the base: it has no layer '{loaded.unexpected_keys[0]}'")
    return tuned.eval()
