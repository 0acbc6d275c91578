"""No code from data: pickles, configs that name code and hostile chat
templates are refused or ended; none is run.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.forks import Done, Forks
from support.scale import FULL

from slmctl.errors import DataError
from slmctl.task import chat_template, chat_template_child
from slmctl.task.contract import Task, end_of_turn

weights = pytest.importorskip("slmctl.model_files.hf_folder")
VALUES = {
    "messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "yes"}],
    "tools": None,
    "add_generation_prompt": True,
    "bos_token": "<s>",
    "eos_token": "</s>",
}


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    """A file that code from data would make; it must never be there."""
    path = tmp_path / "canary"
    yield path
    assert not path.exists(), "code from data was run"


class Touch:
    """What unpickling would run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


def zipped(payload: bytes) -> bytes:
    """A pickle as torch.save packs it."""
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w") as archive:
        archive.writestr("archive/data.pkl", payload)
        archive.writestr("archive/version", "3\n")
    return raw.getvalue()


def array(payload: Touch) -> bytes:
    raw = io.BytesIO()
    np.save(raw, np.array([payload], dtype=object), allow_pickle=True)
    return raw.getvalue()


def pickles(canary: Path) -> dict[str, bytes]:
    """Twelve, under the names by which loaders would take them."""
    touch = Touch(canary)
    plain, old = pickle.dumps(touch), pickle.dumps(touch, protocol=0)
    return {
        "pytorch_model.bin": zipped(plain),
        "model.pt": zipped(plain),
        "weights.pth": plain,
        "model.ckpt": plain,
        "adapter_model.bin": zipped(plain),
        "training_args.bin": plain,
        "optimizer.pt": zipped(plain),
        "scheduler.pt": plain,
        "rng_state.pth": plain,
        "tokenizer.pkl": old,
        "importance.npy": array(touch),
        "pytorch_model.bin.index.json": old,
    }


def plant(folder: Path, canary: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, raw in pickles(canary).items():
        (folder / name).write_bytes(raw)


def test_the_pickles_would_run(tmp_path: Path) -> None:
    """The control: each of them runs its code when it is loaded as what it is."""
    path = tmp_path / "control"
    for raw in pickles(path).values():
        if raw[:2] == b"PK":
            raw = zipfile.ZipFile(io.BytesIO(raw)).read("archive/data.pkl")
        elif raw[:6] == b"\x93NUMPY":
            raw = raw[raw.index(b"\n") + 1 :]
        pickle.loads(raw)
        assert path.exists()
        path.unlink()


def refused(done: Done, *codes: int) -> None:
    assert done.code in codes, (done.code, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr, done.stderr


@pytest.mark.parametrize(
    "name", ["rows.csv", "rows.jsonl", "rows.json", "rows.parquet", "rows.xlsx", "rows.csv.gz"]
)
def test_a_pickle_is_no_source(preparing: Forks, desk: Path, canary: Path, name: str) -> None:
    plain = pickle.dumps(Touch(canary))
    for raw in (plain, zipped(plain)) if FULL else (zipped(plain),):
        (desk / name).write_bytes(raw)
        source = f"prepare.sources=[{{path: {name}, input: text, output: category}}]"
        refused(preparing.run(desk, "prepare", "--set", source), 3)


def test_a_base_of_pickles_is_refused(tiny_base: Path, tmp_path: Path, canary: Path) -> None:
    base = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    plant(base, canary)
    (base / "pytorch_model.bin.index.json").unlink()
    (base / "model.safetensors").unlink()
    with pytest.raises(DataError, match=r"only pickles \(.*pytorch_model\.bin"):
        weights.refuse_code(base)


@pytest.mark.slow
def test_pickles_beside_a_base_are_left_behind(
    stages: Forks, tiny_run: Path, tmp_path: Path, canary: Path
) -> None:
    desk = Path(shutil.copytree(tiny_run, tmp_path / "desk"))
    plant(desk / "base", canary)
    # no JSON at all: refused by itself, see below
    (desk / "base" / "pytorch_model.bin.index.json").unlink()
    shutil.rmtree(desk / "runs" / "base")
    done = stages.run(desk, "pull")
    assert done.code == 0, done.stderr
    brought = {path.name for path in Path(done.stdout.strip()).iterdir()}
    assert not brought & pickles(canary).keys()
    (desk / "base" / "pytorch_model.bin.index.json").write_bytes(pickle.dumps(Touch(canary)))
    shutil.rmtree(desk / "runs" / "base")
    refused(stages.run(desk, "pull"), 3)


@pytest.mark.slow
def test_pickles_in_every_slot_of_a_model(
    stages: Forks, tiny_run: Path, tmp_path: Path, canary: Path
) -> None:
    """In every artifact, as a bare file of weights, as an HF folder,
    as an adapter, and in a checkpoint.
    """
    desk = Path(shutil.copytree(tiny_run, tmp_path / "desk"))
    (desk / "in.csv").write_text("text\nhello\n")
    ask = ("--input", str(desk / "in.csv"), "--output", str(tmp_path / "out.csv"))
    for kind in ("base", "adapter", "merged", "gguf", "published"):
        (folder,) = desk.glob(f"runs/{kind}/[!.]*")
        for name, raw in pickles(canary).items():
            (folder / name).write_bytes(raw)
            if FULL or name in ("adapter_model.bin", "pytorch_model.bin"):
                refused(stages.run(desk, "predict", str(folder), *ask), 7)
            (folder / name).unlink()
    # a pickle that is called what it is not
    for name in ("model.safetensors", "adapter_model.safetensors"):
        foreign = tmp_path / "foreign" / name
        (source,) = desk.glob("runs/merged/[!.]*" if name[0] == "m" else "runs/adapter/[!.]*")
        shutil.copytree(source, foreign)
        (foreign / "manifest.json").unlink()
        (foreign / name).write_bytes(pickle.dumps(Touch(canary)))
        done = stages.run(desk, "predict", str(foreign), *ask)
        assert done.code != 0
    bare = tmp_path / "model.gguf"
    bare.write_bytes(zipped(pickle.dumps(Touch(canary))))
    refused(stages.run(desk, "predict", str(bare), *ask), 7)
    steps = ("--set", "finetune.max_steps=8", "--set", "finetune.validate_every=4")
    made = Path(stages.run(desk, "finetune", *steps).stdout.strip())
    shutil.rmtree(made)
    checkpoint = made.parent / f".resume-{made.name}" / "step-00000004"
    plant(checkpoint, canary)
    hashes = {path.name: "sha256:" + "0" * 64 for path in checkpoint.iterdir()}
    (checkpoint / "hashes.json").write_text(json.dumps(hashes))
    assert stages.run(desk, "finetune", *steps).code == 0


# Configs that name code


# the file, and the keys that have a loader import something
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "auto_map": (
        "config.json",
        {"auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}},
    ),
    "tokenizer": (
        "tokenizer_config.json",
        {"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}},
    ),
    "nested": (
        "config.json",
        {"text_config": {"auto_map": {"AutoModel": "other/repo--evil.Model"}}},
    ),
    "trusted": ("config.json", {"trust_remote_code": True, "model_type": "evil"}),
    "kernel": ("config.json", {"_attn_implementation": "evil/kernel"}),
    "pipeline": ("config.json", {"custom_pipelines": {"evil": {"impl": "evil.Pipeline"}}}),
}


def evil_base(tiny_base: Path, place: Path, canary: Path, name: str) -> Path:
    base = Path(shutil.copytree(tiny_base, place / "base"))
    code = f"open({str(canary)!r}, 'w').close()\nclass Config: pass\nModel = Tokenizer = Config\n"
    (base / "evil.py").write_text(code)
    file, keys = CONFIGS[name]
    written = json.dumps(json.loads((base / file).read_text()) | keys)
    # an escape in a key hides it from whoever searches the text
    (base / file).write_text(
        written.replace('"auto_map"', '"auto\\u005fmap"') if name == "nested" else written
    )
    return base


ADAPTERS: dict[str, dict[str, Any]] = {
    "auto_mapping": {"auto_mapping": {"base_model_class": "Model", "parent_library": "evil"}},
    "megatron_config": {"megatron_config": {"a": 1}, "megatron_core": "megatron.core"},
    "megatron_core": {"megatron_core": "evil"},
    "tokenizer_kwargs": {"tokenizer_kwargs": {"trust_remote_code": True}},
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters_that_name_code_are_refused(name: str) -> None:
    with pytest.raises(DataError, match=f"'{name}': it would run the author's Python code"):
        weights.refuse_code_of_adapter({"peft_type": "LORA", **ADAPTERS[name]})


def test_an_adapter_as_peft_saves_it_passes() -> None:
    library = {
        "base_model_class": "LlamaForCausalLM",
        "parent_library": "transformers.models.llama.modeling_llama",
    }
    for mapping in (None, library):
        weights.refuse_code_of_adapter(
            {"auto_mapping": mapping, "megatron_core": "megatron.core", "megatron_config": None}
        )


def test_the_command_refuses_an_adapter_that_names_code(
    stages: Forks, tiny_run: Path, tmp_path: Path
) -> None:
    (source,) = tiny_run.glob("runs/adapter/[!.]*")
    foreign = Path(shutil.copytree(source, tmp_path / "foreign"))
    (foreign / "manifest.json").unlink()
    settings = json.loads((foreign / "adapter_config.json").read_bytes())
    (foreign / "adapter_config.json").write_text(json.dumps(settings | ADAPTERS["megatron_config"]))
    (tmp_path / "in.csv").write_text("text\nhello\n")
    ask = ("--input", str(tmp_path / "in.csv"), "--output", str(tmp_path / "out.csv"))
    refused(stages.run(tiny_run, "predict", str(foreign), *ask), 3)
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_that_name_code_are_refused(
    tiny_base: Path, tmp_path: Path, canary: Path, name: str
) -> None:
    base = evil_base(tiny_base, tmp_path, canary, name)
    with pytest.raises(DataError, match="it would run the model author's Python code"):
        weights.refuse_code(base)
    with pytest.raises(DataError, match="it would run the model author's Python code"):
        weights.load_model(base)


# Chat templates


def hostile(canary: Path) -> dict[str, str]:
    """Ten: code, time and memory."""
    return {
        "subclasses": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "globals": f"{{{{ cycler.__init__.__globals__.os.system('touch {canary}') }}}}",
        "attribute": f"{{{{ (lipsum|attr('__globals__'))['os'].popen('touch {canary}').read() }}}}",
        "format": "{{ '{0.__class__.__init__.__globals__}'.format(raise_exception) }}",
        "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "recursion": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro "
        "%}{{ m(60) }}",
        "power": "{{ (7 ** 99999999) % 10 }}",
        "repeat": "{{ 'a' * 10 ** 11 }}",
        "width": "{{ '%99999999999d' % 1 }}",
        "doubling": "{% set n = namespace(x='aa') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x "
        "%}{% endfor %}",
    }


@pytest.mark.parametrize("name", hostile(Path()))
def test_hostile_templates_are_refused_or_ended(canary: Path, name: str) -> None:
    with pytest.raises(DataError, match="the chat template"):
        chat_template.render(hostile(canary)[name], VALUES, budget_s=0.3)
    # and the next request is answered
    assert (
        chat_template.render("{% macro m() %}{% endmacro %}{{ messages[0].content }}", VALUES)
        == "hello"
    )


@pytest.mark.slow
@pytest.mark.parametrize("config", ["", "nested"])
def test_the_command_refuses_a_template_and_a_config_with_code(
    stages: Forks, tiny_base: Path, tiny_project: Path, tmp_path: Path, canary: Path, config: str
) -> None:
    desk = Path(shutil.copytree(tiny_project, tmp_path / "desk"))
    if config:
        shutil.rmtree(desk / "base")
        evil_base(tiny_base, desk, canary, config)
    else:
        (desk / "base" / "chat_template.jinja").write_text(hostile(canary)["globals"])
    refused(stages.run(desk, "pull"), 3)
    assert not list(desk.glob("runs/base/*/manifest.json"))


def test_a_template_of_a_book_is_refused() -> None:
    with pytest.raises(DataError, match="more than 262144 characters"):
        end_of_turn("x" * 300_000, bos_token="", eos_token="")


def test_a_long_conversation_has_an_end() -> None:
    task = Task("generate", "{% for m in messages %}{{ m.content }}{% endfor %}", "")
    text = "x" * (chat_template_child.LONGEST // 2 + 1)
    with pytest.raises(
        DataError, match=f"it writes more than {chat_template_child.LONGEST} characters"
    ):
        task.prompt([{"role": "user", "content": text}, {"role": "user", "content": text}])
