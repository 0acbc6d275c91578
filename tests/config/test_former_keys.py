"""Keys by the names that they had in 0.1.0: understood, with one notice, and still the keys of recipes."""

from __future__ import annotations

import json
import re
import shutil
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel
from support import TESTS, tiny

from slmctl import config
from slmctl.artifacts import artifact
from slmctl.artifacts.artifact import fingerprint
from slmctl.config import former_keys
from slmctl.config.fields import Outside, bare_type, former_name, is_inherited, section_in
from slmctl.config.sections import Config
from slmctl.errors import UsageError

DOCS, TEMPLATES = TESTS.parent / "docs", TESTS.parent / "templates"
FIXTURES = TESTS / "fixtures" / "0.1.0"
HEAD: dict[str, Any] = {"project": "acme", "base": "pypi:x==1", "prepare": {"sources": [{"path": "a.csv"}]}}
# Values other than the default, for keys whose default says nothing of their type.
VALUES: dict[str, Any] = {
    "finetune.batch_size": 8, "finetune.gradient_accumulation_steps": 4, "finetune.max_steps": 9,
    "finetune.lr_scheduler": "linear", "finetune.matmul_dtype": "float32",
    "finetune.lora.target_modules": ["q_proj"], "quantize.importance_matrix": 64, "quantize.lora_gguf": True,
    "evaluate.choose.reference": "Q8_0", "calibrate.min_token_f1": 0.5, "publish.allowed_texts": ["a@b.de"],
    "publish.signing_key": "key.pem", "publish.s3_endpoint": "http://localhost:9000", "publish.allowed_hosts": ["h"],
    "prepare.sources[].conversation_format": "columns", "label.sources[].conversation_format": "columns",
    "label.gold[].conversation_format": "columns",
    "prepare.sensitive.pseudonym_key": "secret", "serve.decision_log": "log.jsonl", "serve.max_prompt_tokens": 99,
    "finetune.load_in_4bit": True,
    "serve.requests_per_minute": 5, "serve.cors_origins": ["https://example.org"],
}  # fmt: skip
# Keys that another key asks for.
BESIDE: dict[str, dict[str, Any]] = {
    "evaluate.choose.reference": {"smallest_within": 0.01},
    "prepare.sensitive.pseudonym_key": {"email": "pseudonymise"},
    "label.sources[].conversation_format": {"path": "a.csv"},
    "label.gold[].conversation_format": {"path": "a.csv"},
}


def renamed(model: type[BaseModel] = Config, prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key of today, former name) of every renamed key."""
    for name, field in model.model_fields.items():
        dotted = prefix + (field.alias or name)
        if (former := former_name(field)) is not None:
            yield dotted, former
        inner = section_in(field.annotation)
        if inner is not None and not is_inherited(field):  # what is inherited cannot be written there
            listed = typing.get_origin(bare_type(field.annotation)) is list
            yield from renamed(inner, dotted + ("[]." if listed else "."))


RENAMED = list(renamed())


def default_of(dotted: str) -> Any:
    model: Any = Config
    for key in dotted.replace("[]", "").split("."):
        field = model.model_fields[key]
        model = section_in(field.annotation) or model
    return field.get_default(call_default_factory=True)


def document(dotted: str, key: str) -> dict[str, Any]:
    """A config that sets one key, by the name `key`."""
    values: dict[str, Any] = json.loads(json.dumps(HEAD))
    *sections, _ = dotted.split(".")
    inner: Any = values
    for section in sections:
        name = section.removesuffix("[]")
        inner = inner.setdefault(name, [{}] if section.endswith("[]") else {})
        inner = inner[0] if isinstance(inner, list) else inner
    value = VALUES[dotted] if dotted in VALUES else default_of(dotted) * 2
    inner.update(BESIDE.get(dotted, {}), **{key: value})
    return values


def last(dotted: str) -> str:
    return dotted.rpartition(".")[2]


def parse(values: dict[str, Any], *overrides: str) -> Config:
    return config.parse(yaml.safe_dump(values, sort_keys=False), overrides)


@pytest.fixture(autouse=True)
def _no_notice_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(former_keys, "_noticed", set())


def test_there_are_renamed_keys_and_no_two_of_a_section_share_a_name() -> None:
    assert len(RENAMED) >= 25
    names = [f"{dotted.rpartition('.')[0]}.{former}" for dotted, former in RENAMED] + [
        name for name, _, _ in config.table()
    ]
    assert len(set(names)) == len(names)  # a former name is the key of nothing else


@pytest.mark.parametrize(("dotted", "former"), RENAMED, ids=[dotted for dotted, _ in RENAMED])
def test_the_former_name_means_the_same_with_one_notice(
    dotted: str, former: str, capfd: pytest.CaptureFixture[str]
) -> None:
    today = parse(document(dotted, last(dotted)))
    assert capfd.readouterr().err == ""
    assert parse(document(dotted, former)) == today
    assert parse(document(dotted, former)) == today  # a command reads the config more than once
    (notice,) = capfd.readouterr().err.splitlines()
    place = f"{dotted.rpartition('.')[0].replace('[]', '')}.{former}"
    assert notice == f"note: {place} is now called {last(dotted)}; the former name still works"


@pytest.mark.parametrize(("dotted", "former"), RENAMED, ids=[dotted for dotted, _ in RENAMED])
def test_both_names_at_once_are_a_fault_with_its_line(dotted: str, former: str) -> None:
    values = document(dotted, former)
    inner: Any = values
    for section in dotted.split(".")[:-1]:
        inner = inner[section.removesuffix("[]")]
        inner = inner[0] if isinstance(inner, list) else inner
    inner[last(dotted)] = inner[former]
    text = yaml.safe_dump(values, sort_keys=False)
    with pytest.raises(UsageError) as caught:
        config.parse(text)
    line = next(k for k, row in enumerate(text.splitlines(), 1) if row.lstrip(" -").startswith(f"{former}:"))
    assert f"slmctl.yaml:{line}: " in caught.value.message
    assert f"is the former name of '{last(dotted)}', which is set too" in caught.value.message


@pytest.mark.parametrize("inside", ["batch", "batch_size"])
@pytest.mark.parametrize("flag", ["batch", "batch_size"])
def test_an_override_wins_by_either_name(inside: str, flag: str) -> None:
    assert parse(HEAD | {"finetune": {inside: 8}}, f"finetune.{flag}=4").finetune.batch_size == 4
    with pytest.raises(UsageError, match=r"--set: finetune\.batch"):
        parse(HEAD | {"finetune": {inside: 8}}, f"finetune.{flag}=0")


def test_a_fault_of_a_former_name_has_the_line_where_it_stands() -> None:
    with pytest.raises(UsageError, match=r"slmctl\.yaml:4: finetune\.batch_size: found '0'"):
        config.parse("project: a\nbase: pypi:x==1\nfinetune:\n  batch: 0\n")


# Recipes keep the names of 0.1.0, so that its artifacts stay current


def sections_of(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for field in model.model_fields.values():
        inner = section_in(field.annotation)
        if inner is not None:
            yield inner
            yield from sections_of(inner)


@pytest.mark.parametrize(
    "section", sorted(set(sections_of(Config)), key=lambda one: one.__name__), ids=lambda one: one.__name__
)
def test_a_recipe_says_the_former_names(section: type[BaseModel]) -> None:
    for name, field in section.model_fields.items():
        former = former_name(field)
        if former is None or any(isinstance(mark, Outside) for mark in field.metadata):
            continue
        made = section.model_construct(**dict.fromkeys(section.model_fields))
        assert former in config.recipe(made)
        assert name not in config.recipe(made)


KEPT = {
    "base": config.PullConfig, "prepared": config.PrepareConfig, "adapter": config.FinetuneConfig,
    "merged": config.MergeConfig, "gguf": config.QuantizeConfig, "report": config.EvaluateConfig,
    "policy": config.CalibrateConfig, "published": config.PublishConfig,
}  # fmt: skip


@pytest.mark.parametrize("kind", KEPT)
def test_a_kept_recipe_comes_back_to_the_byte(kind: str, tmp_path: Path) -> None:
    recorded = artifact.load(FIXTURES / kind).manifest.config
    content = tmp_path / "content"
    content.write_text("stands for what was hashed")
    stand_in = fingerprint(content)
    text = json.dumps(recorded, sort_keys=True)
    for found in {part for part in text.split('"') if part.startswith("sha256:")}:
        text = text.replace(found, stand_in)
    section = config.restored(KEPT[kind], json.loads(text), lambda digest: content)
    assert json.dumps(config.recipe(section), sort_keys=True) == text


def test_kept_artifacts_are_reproduced(tmp_path: Path) -> None:
    for kind in ("base", "adapter", "merged", "prepared"):
        made = artifact.load(FIXTURES / kind)
        shutil.copytree(made.path, tmp_path / "runs" / kind / made.manifest.recipe_id.removeprefix("sha256:")[:12])
    (merged,) = (tmp_path / "runs" / "merged").iterdir()
    done = tiny.slmctl(tmp_path, "reproduce", str(merged))
    assert done.returncode == 0, done.stderr
    assert artifact.load(FIXTURES / "merged").digest[:19] in done.stdout or "same" in done.stdout


@pytest.mark.parametrize("page", [*DOCS.glob("*.md"), *TEMPLATES.rglob("*.yaml")], ids=lambda path: path.name)
def test_pages_and_templates_use_the_names_of_today(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for dotted, former in RENAMED:
        place = f"{dotted.rpartition('.')[0].replace('[]', '')}.{former}"
        assert not re.search(rf"(?<![\w.]){re.escape(place)}(?![\w.])", text), place
