"""The base's license is carried, and a label that cannot be true is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from slmctl.artifacts.artifact import Artifact, foreign
from slmctl.errors import GateError
from slmctl.model_files.base_model import Base
from slmctl.stages.publish import license


def base(
    folder: Path, name: str, license: str, *, config: dict[str, object] | None = None, **files: str
) -> Artifact:
    folder.mkdir(exist_ok=True)
    Base(
        name=name,
        source=f"hf:acme/{name}@{'0' * 40}",
        license=license,
        parameters=1,
        chat_template="",
        template_origin="base",
        bos_token="",
        eos_token="",
        special_tokens=(),
    ).write(folder)
    (folder / "config.json").write_text(
        json.dumps(config or {"model_type": "llama", "vocab_size": 49152})
    )
    for file, text in files.items():
        (folder / file).write_text(text)
    return foreign(folder, "base")


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("gemma-3-270m", {}),
        ("my-Gemma-tune", {}),
        ("renamed", {"model_type": "gemma3_text"}),
        ("renamed", {"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"}}),
        ("Llama-3.2-1B-Instruct", {}),
        ("Meta-Llama-3.1-8B", {}),
        ("llama2-7b", {}),
        ("Llama_3.2_3B", {}),
        ("llama3base", {}),
        ("renamed", {"model_type": "llama", "vocab_size": 128256}),
        ("renamed", {"model_type": "llama4"}),
    ],
)
def test_no_apache_label_on_a_gemma_or_llama(
    tmp_path: Path, name: str, config: dict[str, object]
) -> None:
    with pytest.raises(GateError, match="cannot be under apache-2.0") as caught:  # noqa: RUF043
        license.license_of(base(tmp_path / "own", name, "Apache 2.0", config=config), None)
    assert caught.value.code == 5
    with pytest.raises(GateError, match="cannot be under"):
        license.license_of(base(tmp_path / "none", name, "", config=config), "mit")


@pytest.mark.parametrize(
    ("name", "label", "config"),
    [
        ("gemma-3-270m", "gemma", {"model_type": "gemma3_text"}),
        ("gemma-4-e2b", "apache-2.0", {"model_type": "gemma4"}),
        ("gemma_4_E2B", "apache-2.0", {"model_type": "gemma4"}),
        ("open_llama_3b_v2", "apache-2.0", {"model_type": "llama", "vocab_size": 32000}),
        ("Llama-3.2-1B", "llama3.2", {"model_type": "llama", "vocab_size": 128256}),
        ("SmolLM2-135M-Instruct", "apache-2.0", {}),
        ("TinyLlama-1.1B", "apache-2.0", {"model_type": "llama", "vocab_size": 32000}),
        ("Qwen3-0.6B", "apache-2.0", {"model_type": "qwen3"}),
        ("plain", "", {}),
    ],
)
def test_labels_that_can_be_true_hold(
    tmp_path: Path, name: str, label: str, config: dict[str, object]
) -> None:
    assert license.license_of(base(tmp_path / "base", name, label, config=config), None) == label


def test_the_base_s_own_label_holds(tmp_path: Path) -> None:
    stated = base(tmp_path / "stated", "plain", "mit")
    assert license.license_of(stated, "MIT") == "mit"
    with pytest.raises(
        GateError, match=r"publish\.license is apache-2\.0, and the base plain states mit"
    ):
        license.license_of(stated, "apache-2.0")
    assert (
        license.license_of(base(tmp_path / "silent", "plain", ""), "Apache License 2.0")
        == "apache-2.0"
    )


@pytest.mark.parametrize(
    ("label", "text", "fits"),
    [
        ("apache-2.0", "Gemma Terms of Use\nLast modified", False),
        ("apache-2.0", "LLAMA 3.2 COMMUNITY LICENSE AGREEMENT", False),
        ("mit", "Apache License\n  Version 2.0, January 2004", False),
        ("apache-2.0", "Apache License\n  Version 2.0, January 2004", True),
        ("mit", "Permission is hereby granted, free of charge, to any person", True),
        ("openrail", "Apache License\n  Version 2.0", True),  # of that label nothing is known
    ],
)
def test_the_text_must_be_that_of_the_label(
    tmp_path: Path, label: str, text: str, fits: bool
) -> None:
    made = base(tmp_path / "base", "plain", label, LICENSE=text)
    if fits:
        assert license.license_of(made, None) == label
    else:
        with pytest.raises(GateError, match="its LICENSE is the text of"):
            license.license_of(made, None)


def test_what_the_license_asks_goes_along(tmp_path: Path) -> None:
    files = {
        "LICENSE": "LLAMA 3.2 COMMUNITY LICENSE AGREEMENT",
        "USE_POLICY.md": "no harm",
        "NOTICE": "By Meta\n",
    }
    made = base(tmp_path / "base", "Llama-3.2-1B", "llama3.2", config=None, **files)
    out = tmp_path / "out"
    out.mkdir()
    license.carry(made, "llama3.2", "It was tuned.", out)
    assert (out / "LICENSE").read_text() == files["LICENSE"]
    assert (out / "USE_POLICY.md").read_text() == "no harm"
    notice = (out / "NOTICE").read_text()
    assert notice.startswith(
        "By Meta\n\nThis model is a modification of acme/Llama-3.2-1B. It was tuned.\n"
    )
    assert (
        "Llama 3.2 is licensed under the Llama 3.2 Community License, Copyright © Meta Platforms, "
        "Inc." in notice
    )
    assert "Built with Llama." in notice


def test_gemma_s_terms_are_named(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    license.carry(base(tmp_path / "base", "gemma-3-270m", "gemma"), "gemma", "It was tuned.", out)
    assert (
        "subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms"
        in (out / "NOTICE").read_text()
    )
    assert not (out / "LICENSE").exists()


def test_an_encoder_beside_a_file_is_named_and_not_taken_for_the_base(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    license.carry(base(tmp_path / "base", "gemma-3-270m", "gemma"), "gemma", "It was tuned.", out)
    license.carry_encoder(
        "pypi:words==1.0", "changed: they learned training and validation rows", "apache-2.0", out
    )
    notice = (out / "NOTICE").read_text()
    assert (
        "gemma-3-270m" in notice
        and "pypi:words==1.0 as ONNX, its weights changed: they learned" in notice
    )
    assert not (out / "LICENSE").exists()
    assert "Version 2.0, January 2004" in (out / "LICENSE.encoder").read_text()


def test_apache_s_text_goes_along_where_the_base_has_none(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    license.carry(
        base(tmp_path / "base", "plain", "apache-2.0"), "apache-2.0", "It was tuned.", out
    )
    license.carry_encoder("pypi:words==1.0", "unchanged", "apache-2.0", out)
    assert "Version 2.0, January 2004" in (out / "LICENSE").read_text()
    assert [path.name for path in out.glob("LICENSE*")] == ["LICENSE"]
