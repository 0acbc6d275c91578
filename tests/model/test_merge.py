"""merge: the same sum as PEFT's, in a new place, and only for adapters that are plain sums."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from slmctl import artifact
from slmctl.artifact import Artifact
from slmctl.config import MergeConfig
from slmctl.errors import StageError

torch = pytest.importorskip("torch")

from peft import PeftModel  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from slmctl import weights  # noqa: E402
from slmctl.model import merge  # noqa: E402


def run(base: Artifact, adapter: Artifact, out: Path, **settings: Any) -> dict[str, Any]:
    out.mkdir()
    return merge.run(MergeConfig.model_validate(settings), base=base, adapter=adapter, out=out)


@pytest.fixture
def changed(artifacts: dict[str, Artifact], tmp_path: Path) -> Any:
    """The tiny adapter with other settings or weights."""

    def call(weights_too: Any = None, **settings: Any) -> Artifact:
        folder = Path(shutil.copytree(artifacts["adapter"].path, tmp_path / "adapter"))
        (folder / "manifest.json").unlink()
        fields = json.loads((folder / "adapter_config.json").read_bytes())
        (folder / "adapter_config.json").write_text(json.dumps(fields | settings))
        if weights_too is not None:
            save_file(
                weights_too(load_file(folder / "adapter_model.safetensors")), folder / "adapter_model.safetensors"
            )
        return artifact.foreign(folder, "adapter")

    return call


@pytest.mark.parametrize("rslora", [False, True])
def test_it_equals_pefts_own_merge(artifacts: dict[str, Artifact], changed: Any, tmp_path: Path, rslora: bool) -> None:
    adapter = changed(use_rslora=rslora)
    run(artifacts["base"], adapter, tmp_path / "out", dtype="float32")
    theirs = PeftModel.from_pretrained(weights.load_model(artifacts["base"].path), adapter.path).merge_and_unload()
    ours = weights.load_model(tmp_path / "out")
    wanted = theirs.state_dict()
    for name, tensor in ours.state_dict().items():
        torch.testing.assert_close(tensor, wanted[name], rtol=1e-5, atol=1e-6)
    base = weights.load_model(artifacts["base"].path).state_dict()
    assert any(not torch.equal(tensor, base[name]) for name, tensor in ours.state_dict().items())


def test_its_inputs_are_not_touched(artifacts: dict[str, Artifact], tmp_path: Path) -> None:
    run(artifacts["base"], artifacts["adapter"], tmp_path / "out")
    assert not artifact.verify(artifacts["base"])
    assert not artifact.verify(artifacts["adapter"])


def test_the_same_bytes_twice(artifacts: dict[str, Artifact], tmp_path: Path) -> None:
    for name in ("one", "two"):
        run(artifacts["base"], artifacts["adapter"], tmp_path / name)
    assert artifact.scan(tmp_path / "one") == artifact.scan(tmp_path / "two")
    assert (tmp_path / "one" / "model.safetensors").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_the_type_is_written_and_said(artifacts: dict[str, Artifact], tmp_path: Path, dtype: str) -> None:
    run(artifacts["base"], artifacts["adapter"], tmp_path / "out", dtype=dtype)
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {getattr(torch, dtype)}
    assert json.loads((tmp_path / "out" / "config.json").read_bytes())["dtype"] == dtype


def test_the_card_names_base_and_licence(artifacts: dict[str, Artifact], tmp_path: Path) -> None:
    run(artifacts["base"], artifacts["adapter"], tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nbase_model: base\n")
    assert "\nlicense: apache-2.0\n" in card


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern"),
        ({"alpha_pattern": {"q_proj": 8}}, "alpha_pattern"),
        ({"bias": "all"}, "trained biases"),
        ({"peft_type": "LOHA"}, "type LOHA"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
    ],
)
def test_other_forms_are_refused_by_name(
    artifacts: dict[str, Artifact], changed: Any, tmp_path: Path, settings: dict[str, Any], named: str
) -> None:
    with pytest.raises(StageError, match=named):
        run(artifacts["base"], changed(**settings), tmp_path / "out")


def test_an_adapter_of_another_base_is_refused(artifacts: dict[str, Artifact], changed: Any, tmp_path: Path) -> None:
    adapter = changed(lambda state: {name.replace("layers.1.", "layers.7."): tensor for name, tensor in state.items()})
    with pytest.raises(StageError, match=r"it has no layer 'model\.layers\.7\."):
        run(artifacts["base"], adapter, tmp_path / "out")


def test_an_adapter_of_another_shape_is_refused(artifacts: dict[str, Artifact], changed: Any, tmp_path: Path) -> None:
    def narrow(state: dict[str, Any]) -> dict[str, Any]:
        return {name: tensor[:, :32].contiguous() if "lora_A" in name else tensor for name, tensor in state.items()}

    with pytest.raises(StageError, match="does not fit the base at"):
        run(artifacts["base"], changed(narrow), tmp_path / "out")


def test_what_the_type_cannot_hold_is_refused(artifacts: dict[str, Artifact], changed: Any, tmp_path: Path) -> None:
    adapter = changed(lambda state: {name: torch.full_like(tensor, 1e3) for name, tensor in state.items()})
    with pytest.raises(StageError, match=r"gives values that torch\.float16 cannot hold"):
        run(artifacts["base"], adapter, tmp_path / "out", dtype="float16")


def test_a_wider_type_keeps_the_sum(artifacts: dict[str, Artifact], tmp_path: Path) -> None:
    # the sum was once cast to the base's type first, and its lost digits then stored in float32
    folder = Path(shutil.copytree(artifacts["base"].path, tmp_path / "base"))
    (folder / "manifest.json").unlink()
    half = {name: tensor.bfloat16() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(half, folder / "model.safetensors", metadata={"format": "pt"})
    base = artifact.foreign(folder, "base")
    run(base, artifacts["adapter"], tmp_path / "out", dtype="float32")
    merged = load_file(tmp_path / "out" / "model.safetensors")
    state = load_file(artifacts["adapter"].file("adapter_model.safetensors"))
    name = "model.layers.0.mlp.down_proj"
    a, b = (state[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB")
    torch.testing.assert_close(merged[f"{name}.weight"], half[f"{name}.weight"].float() + 2 * (b @ a))
