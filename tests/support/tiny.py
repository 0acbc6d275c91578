"""A tiny random Llama with its tokenizer, a data set it can learn,
and the program as its user runs it.
"""

from __future__ import annotations

import base64
import contextlib
import csv
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Whether what some tests need of the system is said to be there: they fail without it, and are not
# skipped.
REQUIRED = os.environ.get("SLMCTL_REQUIRE", "") not in ("", "0")
STARTED: list[subprocess.Popen[Any]] = []  # that lead a process group of their own, in order
LABELS = {
    "billing": "invoice refund charged card payment euro bank price",
    "delivery": "parcel courier late truck doorstep carrier tracking shipped",
    "account": "password login locked profile username reset email signin",
}
WORDS = {label: text.split() for label, text in LABELS.items()}
FILLER = (
    "please hello today yesterday again still why how when my your the a this that since monday "
    "friday "
    "week month twice never always nobody someone phone office house garden letter answer green "
    "blue big small "
    "quick slow first last open close help thanks sorry really maybe order shop kettle lamp chair "
    "bicycle"
)
SYSTEM = "Name the category."
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + "
    "'\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CONFIG = """\
project: tiny-desk
version: "1.0"
base: ./base
pull: {rehearse: false}
task: {kind: classify, labels: from-data, system: Name the category.}
prepare:
  sources: [{path: tickets.csv, input: text, output: category}]
finetune: {epochs: 14, learning_rate: 4e-3, batch_size: 8, lora: {rank: 16, alpha: 32}}
quantize: {types: [Q8_0, F16]}
evaluate: {models: [base, adapter, gguf]}
"""


CALIBRATED = (
    CONFIG.replace(
        "output: category}]\n",
        "output: category}]\n  splits: {calibration: 0.45, validation: 0.05, test: 0.05}\n",
    )
    .replace("[Q8_0, F16]", "[Q8_0]")
    .replace("epochs: 14", "epochs: 7")
    + "calibrate: {max_error: 0.4}\n"
)


def rows(count: int = 300, seed: int = 0) -> list[tuple[str, str]]:
    """Distinct short texts with their categories; two words of each text tell the category."""
    choose = random.Random(seed)
    result: dict[str, str] = {}
    while len(result) < count:
        label = choose.choice(list(WORDS))
        words = [*choose.sample(WORDS[label], 2), *choose.sample(FILLER.split(), 5)]
        choose.shuffle(words)
        result[" ".join(words)] = label
    return list(result.items())


def write_csv(path: Path, pairs: list[tuple[str, str]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerows([("text", "category"), *pairs])
    return path


def edit_config(folder: Path, old: str, new: str) -> None:
    """Replace a text that a project's config has."""
    path = folder / "slmctl.yaml"
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def build_base(
    out: Path, *, template: str | None = TEMPLATE, vocabulary: int = 640, **shape: Any
) -> Path:
    """An HF folder: a seeded random Llama of 0.1 M weights, and a sentencepiece tokenizer trained
    here.

    llama.cpp's converter knows BPE tokenizers by a list of hashes; sentencepiece it takes as it is.
    `shape` replaces numbers of the LlamaConfig.
    """
    import sentencepiece
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaTokenizer

    out.mkdir(parents=True)
    known = [
        *FILLER.split(),
        *(word for group in WORDS.values() for word in group),
        *WORDS,
        *SYSTEM.split(),
    ]
    known += ["user", "assistant", "system", "Answer", "Message"]
    lines = [" ".join(known[k:] + known[:k]) + " . 0 1 2 3 4 5 6 7 8 9" for k in range(len(known))]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(
            [*lines, "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ .,:;?!'-"]
        ),
        model_writer=model,
        vocab_size=vocabulary,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=1.0,
        control_symbols=["<|im_start|>", "<|im_end|>"],
        pad_id=-1,
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        minloglevel=2,
        num_threads=1,
    )
    (out / "tokenizer.model").write_bytes(model.getvalue())
    tokenizer = LlamaTokenizer.from_pretrained(
        out,
        legacy=False,
        add_prefix_space=False,
        bos_token="<s>",
        eos_token="<|im_end|>",
        unk_token="<unk>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    )
    tokenizer.chat_template = template
    tokenizer.save_pretrained(out)
    torch.manual_seed(0)
    layers = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    shape = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "max_position_embeddings": 4096,
        **layers,
        **shape,
    }
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        initializer_range=0.1,
        bos_token_id=1,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=True,
        **shape,
    )
    LlamaForCausalLM(config).save_pretrained(out)
    (out / "README.md").write_text(
        "---\nlicense: apache-2.0\nlanguage:\n- en\n- de\n---\n# Tiny\n", encoding="utf-8"
    )
    return out


def environment(**more: str) -> dict[str, str]:
    """The environment of a program under test: no variable of the outside decides what it does."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("HF_", "SLMCTL", "PYTEST"))
    }
    return kept | {"COLUMNS": "200", "OMP_NUM_THREADS": "1"} | more


def command(folder: Path, *args: str) -> list[str]:
    return [sys.executable, "-m", "slmctl", "-C", str(folder), *args]


def slmctl(folder: Path, *args: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the program in a folder and wait for it."""
    options.setdefault("env", environment())
    return subprocess.run(
        command(folder, *args), capture_output=True, text=True, **{"timeout": 300, **options}
    )


def start(folder: Path, *args: str, **options: Any) -> subprocess.Popen[str]:
    """Start the program in a folder, in a process group of its own, which
    does not outlive the test that started it.
    """
    options.setdefault("env", environment())
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    child = subprocess.Popen(command(folder, *args), text=True, start_new_session=True, **options)
    STARTED.append(child)
    return child


def end_from(number: int) -> None:
    """Kill the groups that were started from the `number`th on and still
    run, as after an assertion that failed.
    """
    for child in STARTED[number:]:
        with contextlib.suppress(OSError):  # those of forks whose server has ended
            if child.returncode is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
        for stream in filter(None, (child.stdin, child.stdout, child.stderr)):
            with contextlib.suppress(OSError):  # what was not read by the child is lost
                stream.close()
    del STARTED[number:]


def kill_group(child: subprocess.Popen[str]) -> None:
    """kill -9 of a program and everything it started."""
    os.killpg(child.pid, signal.SIGKILL)
    child.communicate()


def ok(done: subprocess.CompletedProcess[str]) -> str:
    """The stdout of a program that must have succeeded, without its last line break."""
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def calibrated(folder: Path, base: Path, run: Callable[..., Any] = slmctl) -> Path:
    """A project after `slmctl calibrate`, which wants 200 rows that
    nothing learned from; `run` runs a command.
    """
    shutil.copytree(base, folder / "base")
    (folder / "slmctl.yaml").write_text(CALIBRATED, encoding="utf-8")
    write_csv(folder / "tickets.csv", rows(800))
    for args in (("run", "--yes", "--until", "quantize"), ("calibrate",)):
        ok(run(folder, *args))
    return folder


SCHEMA = {
    "type": "object",
    "required": ["topic", "items"],
    "additionalProperties": False,
    "properties": {
        "topic": {"type": "string"},
        "items": {
            "type": "array",
            "items": {"type": "object", "properties": {"name": {"type": "string"}}},
        },
    },
}


ITEM = {
    "type": "object",
    "properties": {"item": {"type": "string", "maxLength": 12}},
    "required": ["item"],
}
TOOLS = [
    {
        "type": "function",
        "function": {"name": name, "description": f"About {name}.", "parameters": ITEM},
    }
    for name in ("billing", "delivery")
]


def project(folder: Path, base: Path, kind: str, *, extra: str = "") -> Path:
    """A project of any task kind, trained for some seconds: enough
    to end its answers, not to be right.
    """
    shutil.copytree(base, folder / "base")
    task = {
        "classify": "{kind: classify, labels: from-data, system: Name the category.}",
        "tag": "{kind: tag, system: Name the categories.}",
        "extract": "{kind: extract, schema: schema.json, system: Name the category.}",
        "generate": "{kind: generate, system: Answer.}",
        "call": "{kind: call, tools: tools.json, system: Name the category.}",
    }[kind]
    lines = []
    for k, (text, label) in enumerate(rows()):
        words = text.split()
        answer: Any = {
            "classify": label,
            "tag": [label] * (k % 5 > 0)
            + [other for other in WORDS if other != label and other[0] == words[0][0]],
            "extract": {"topic": label, "items": [{"name": word} for word in words[:1]]},
            "generate": f"{label} {words[0]}",
            "call": None
            if label == "account"
            else {"name": label, "arguments": {"item": words[0]}},
        }[kind]
        lines.append({"text": text, "answer": answer, "customer": f"c{k % 9}"})
    (folder / "schema.json").write_text(json.dumps(SCHEMA), encoding="utf-8")
    (folder / "tools.json").write_text(json.dumps(TOOLS), encoding="utf-8")
    (folder / "rows.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8"
    )
    (folder / "slmctl.yaml").write_text(
        f'project: tiny-{kind}\nversion: "1.0"\nbase: ./base\npull: {{rehearse: false}}\ntask: '
        f"{task}\n"
        "prepare: {sources: [{path: rows.jsonl, input: text, output: answer}]}\n"
        "finetune: {max_steps: 80, learning_rate: 1e-2, batch_size: 8}\nquantize: {types: [Q8_0, "
        "F16]}\n"
        f"predict: {{max_tokens: 24}}\n{extra}",
        encoding="utf-8",
    )
    return folder


def build_encoder(out: Path, *, size: int = 64) -> Path:
    """A sentence encoder as a folder with ONNX: a text is the mean of its words' vectors."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    words = sorted({*FILLER.split(), *" ".join(LABELS.values()).split()})
    tokens = {token: k for k, token in enumerate([*special, *words])}
    tokenizer = Tokenizer(models.WordLevel(tokens, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.add_special_tokens(special)
    tokenizer.enable_truncation(64)
    (out / "1_Pooling").mkdir(parents=True)
    (out / "1_Pooling" / "config.json").write_text('{"pooling_mode": "mean"}', encoding="utf-8")
    (out / "README.md").write_text("---\nlicense: mit\n---\n# Tiny\n", encoding="utf-8")
    tokenizer.save(str(out / "tokenizer.json"))
    table = np.random.default_rng(0).normal(size=(len(tokens), size)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("LayerNormalization", ["rows", "ones"], ["last_hidden_state"]),
    ]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["texts", "tokens"])
        for name in ("input_ids", "attention_mask", "token_type_ids")
    ]
    outputs = [
        helper.make_tensor_value_info(
            "last_hidden_state", TensorProto.FLOAT, ["texts", "tokens", size]
        )
    ]
    arrays = {"table": table, "ones": np.ones(size, np.float32)}
    stored = [numpy_helper.from_array(values, name) for name, values in arrays.items()]
    graph = helper.make_graph(nodes, "words", inputs, outputs, stored)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8),
        out / "model.onnx",
    )
    return out


def build_encoder_folder(out: Path) -> Path:
    """A sentence encoder as an HF folder: a seeded random XLM-R of one
    layer, and a tokenizer of the tiny words.
    """
    import sentencepiece
    import torch
    from sentencepiece import sentencepiece_model_pb2 as stored
    from transformers import XLMRobertaConfig, XLMRobertaModel, XLMRobertaTokenizer

    words, written = sorted({*FILLER.split(), *" ".join(LABELS.values()).split()}), io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(words[k:] + words[:k]) for k in range(len(words))]),
        model_writer=written,
        vocab_size=150,
        hard_vocab_limit=False,
        model_type="unigram",
        minloglevel=2,
        num_threads=1,
    )
    trained = stored.ModelProto.FromString(written.getvalue())
    special = [(token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>")]
    pieces = [
        *special,
        *((each.piece, each.score) for each in trained.pieces if each.type == 1),
        ("<mask>", 0.0),
    ]
    XLMRobertaTokenizer(vocab=pieces).save_pretrained(out)
    tokenizer = json.loads((out / "tokenizer.json").read_bytes())
    charsmap = base64.b64encode(trained.normalizer_spec.precompiled_charsmap).decode()
    tokenizer["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": charsmap}
    (out / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    torch.manual_seed(0)
    XLMRobertaModel(
        XLMRobertaConfig(
            vocab_size=len(pieces),
            hidden_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=66,
            type_vocab_size=1,
            initializer_range=0.1,
        )
    ).save_pretrained(out)
    (out / "1_Pooling").mkdir()
    (out / "1_Pooling" / "config.json").write_text(
        '{"pooling_mode_mean_tokens": true}', encoding="utf-8"
    )
    parts = {"Transformer": "", "Pooling": "1_Pooling"}
    listed = [
        {"path": path, "type": f"sentence_transformers.models.{name}"}
        for name, path in parts.items()
    ]
    (out / "modules.json").write_text(json.dumps(listed), encoding="utf-8")
    (out / "README.md").write_text("---\nlicense: mit\n---\n# Tiny\n", encoding="utf-8")
    return out
