"""A LoRA adapter of every architecture: trained for a step, saved, merged by name, loaded again, the same answers."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from benchmarks import architectures  # noqa: E402
from slmctl.artifacts import artifact  # noqa: E402
from slmctl.config import FinetuneConfig, MergeConfig  # noqa: E402
from slmctl.model_files import hf_folder  # noqa: E402
from slmctl.model_files.base_model import Base  # noqa: E402
from slmctl.stages.finetune import finetune  # noqa: E402
from slmctl.stages.merge import merge  # noqa: E402
from slmctl.stages.pull import text_model  # noqa: E402

BASE = Base("tiny", "tiny", "", 1, "", "base", "", "</s>", ())
# Those whose modules, stored names or layers differ most; the others differ from these in sizes.
QUICK = ("granite4-h", "phi3", "lfm2", "qwen3.5-text", "mamba2", "qwen3-moe", "granite-moe", "deepseek-v3", "gpt-oss",
         "nemotron-h", "bloom", "gemma4", "ministral3")  # fmt: skip


def pulled(name: str, tmp_path: Path, *, whole: bool = False) -> Path:
    """The HF folder of a tiny base as `pull` leaves it, or the whole of a multimodal one as earlier versions did."""
    model, folder = architectures.model(name), tmp_path / "base"
    model.save_pretrained(tmp_path / "download" if not whole else folder)
    if not whole and (text := text_model.find(tmp_path / "download")) is not None:
        folder.mkdir()
        text.write(folder)
    elif not whole:
        (tmp_path / "download").rename(folder)
    BASE.write(folder)
    return folder


def after_merge(base: Path, tmp_path: Path) -> tuple[Any, Any, Any]:
    """Logits of base, base with an adapter that took a step, and merged model."""
    torch.manual_seed(0)
    config = FinetuneConfig.model_validate({"lora": {"rank": 4, "alpha": 8}, "matmul_dtype": "float32"})
    model = finetune.load_transformers(config, base)
    tokens = torch.arange(5, 27)[None]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-2)
    for _ in range(2):  # B is zero at first, and A gets its gradient from it
        optimizer.zero_grad()
        model(input_ids=tokens, labels=tokens).loss.backward()
        assert all(parameter.grad is not None for parameter in trained)
        optimizer.step()
    assert all(bool(parameter.grad.any()) for parameter in trained)
    for name in ("adapter", "merged"):
        (tmp_path / name).mkdir()
    finetune._save(model, SimpleNamespace(path=base), tmp_path / "adapter")  # type: ignore[arg-type]
    adapter = artifact.foreign(tmp_path / "adapter", "adapter")
    merge.run(MergeConfig(), base=artifact.foreign(base, "base"), adapter=adapter, out=tmp_path / "merged")
    with torch.no_grad():
        tuned = model.eval()(input_ids=tokens).logits
        with model.disable_adapter():
            plain = model(input_ids=tokens).logits
        return plain, tuned, hf_folder.load_model(tmp_path / "merged")(input_ids=tokens).logits


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in architectures.ARCHITECTURES],
)
def test_merged_answers_like_base_and_adapter(name: str, tmp_path: Path) -> None:
    plain, tuned, merged = after_merge(pulled(name, tmp_path), tmp_path)
    torch.testing.assert_close(merged, tuned, rtol=0, atol=1e-3)
    assert (tuned - plain).abs().max() > 3e-3  # Granite divides its logits, and starts them small


def test_a_multimodal_base_pulled_by_an_earlier_version_is_merged(tmp_path: Path) -> None:
    # transformers calls the layers model.language_model.…, and the files language_model.model.…
    base = pulled("gemma3", tmp_path, whole=True)
    _, tuned, merged = after_merge(base, tmp_path)
    torch.testing.assert_close(merged, tuned, rtol=0, atol=1e-3)
