"""Every architecture that companies pick, as a small random model: copied, counted, trained,
merged, rehearsed.

A row of ARCHITECTURES says how an architecture trains, and a test asks the model itself.
"""

from __future__ import annotations

import copy
import functools
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.forks import Forks
from support.scale import FULL

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from peft import LoraConfig, PeftModel, get_peft_model  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from support.training import trained  # noqa: E402
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText  # noqa: E402

from benchmarks import architectures, bases, real_tokenizers  # noqa: E402
from slmctl.artifacts import artifact  # noqa: E402
from slmctl.artifacts.artifact import Artifact  # noqa: E402
from slmctl.config import MergeConfig  # noqa: E402
from slmctl.model_files import catalogue, hf_folder, model_size, tiny_copy  # noqa: E402
from slmctl.stages.finetune import layer_replacement, lora_targets, packing_check  # noqa: E402
from slmctl.stages.merge import merge  # noqa: E402
from slmctl.stages.pull import text_model  # noqa: E402

# of packages that would make some architectures faster, and of tied weights that PEFT unties
pytestmark = pytest.mark.filterwarnings("ignore")


@dataclass(frozen=True)
class Architecture:
    """An architecture as slmctl handles it.

    Attributes:
        training: `fast` (packed, with the CPU kernels in most layers), `packed`, or `padded`; of a
            multimodal base that of its text model, which is what `pull` keeps.
        merged_slowly: Merged in the slow tests alone: its modules, stored names and layers are
            those of another row.
        layers: Last names of the layers that `all-linear` adapts, where a test says them.
    """

    training: str = "fast"
    merged_slowly: bool = True
    layers: str = ""


ATTENTION, MLP = " q_proj k_proj v_proj o_proj", " gate_proj up_proj down_proj"
ARCHITECTURES = {
    "llama": Architecture(layers=ATTENTION + MLP),
    "smollm3": Architecture(),
    "qwen2": Architecture(),
    "qwen3": Architecture(),
    "mistral": Architecture(),
    "granite": Architecture(),
    "granite4": Architecture(),
    "granite4-h": Architecture("padded", False, ATTENTION + " in_proj input_linear output_linear"),
    "olmo2": Architecture(),
    "olmo3": Architecture(),
    "exaone4": Architecture(),
    "apertus": Architecture(),
    "gemma2": Architecture(),
    "gemma3-text": Architecture(),
    "gemma4-text": Architecture(),
    "phi3": Architecture("fast", False, "qkv_proj o_proj gate_up_proj down_proj"),
    "lfm2": Architecture("fast", False, "in_proj out_proj q_proj k_proj v_proj w1 w2 w3"),
    "qwen3.5-text": Architecture(
        "padded", False, ATTENTION + MLP + " in_proj_qkv in_proj_z in_proj_a in_proj_b out_proj"
    ),
    "falcon-h1": Architecture("padded", layers=ATTENTION + MLP + " in_proj"),
    "mamba2": Architecture("padded", False, "in_proj"),
    "bamba": Architecture("padded"),
    "hunyuan": Architecture(),
    "ernie4.5": Architecture(),
    "glm4": Architecture(),
    "cohere2": Architecture(),
    "qwen3-moe": Architecture("packed", False, ATTENTION),
    "granite-moe": Architecture("packed", False),
    "olmoe": Architecture("packed"),
    "deepseek-v3": Architecture(
        "packed", False, "q_a_proj q_b_proj kv_a_proj_with_mqa kv_b_proj o_proj"
    ),
    "gpt-oss": Architecture("padded", False),
    "nemotron-h": Architecture("padded", False, ATTENTION + " in_proj up_proj down_proj"),
    "bloom": Architecture("padded", False),
    "mpt": Architecture("padded"),
    "gemma3": Architecture(),
    "gemma4": Architecture("fast", False),
    "ministral3": Architecture("fast", False),
    "qwen3.5": Architecture("padded"),
}
MULTIMODAL = {name for name in ARCHITECTURES if architectures.ARCHITECTURES[name].multimodal}


def test_no_architecture_is_left_out() -> None:
    assert set(ARCHITECTURES) == set(architectures.ARCHITECTURES)


@functools.lru_cache(maxsize=1)  # the tests of one architecture come together
def built(name: str) -> Any:
    return architectures.model(name)


@pytest.fixture(params=ARCHITECTURES, scope="module")
def name(request: pytest.FixtureRequest) -> Iterator[str]:
    yield request.param


def test_a_copy_computes(name: str) -> None:
    model = built(name)
    with torch.no_grad():
        logits = model(input_ids=torch.arange(3, 60)[None]).logits
    assert logits.shape == (1, 57, 640)
    assert torch.isfinite(logits).all()
    assert sum(p.numel() for p in model.parameters()) < 7e6


def test_a_model_is_packed_and_fast_by_what_it_computes(name: str) -> None:
    # small random weights, as their classes draw them: BLOOM's lost biases change little there
    model, training = copy.deepcopy(built(name)), "padded"
    if name in MULTIMODAL:
        assert not packing_check.supports_packing(model)
        model = tiny_copy.random_model(architectures.config(name, vocabulary=640).get_text_config())
    packs = packing_check.supports_packing(model)
    assert packing_check.supports_packing(copy.deepcopy(model).bfloat16()) == packs
    if packs:
        lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
        layers = layer_replacement.install_kernels(get_peft_model(model, lora))
        training = "fast" if 2 * layers["fast_layers"] > layers["layers"] else "packed"
    assert training == ARCHITECTURES[name].training


@pytest.mark.parametrize("name", sorted({entry.architecture for entry in catalogue.entries()}))
def test_the_catalogue_says_how_a_base_trains(name: str) -> None:
    entry = next(entry for entry in catalogue.entries() if entry.architecture == name)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            architectures.config(name, vocabulary=640).get_text_config()
        )
    assert type(model).__name__ == entry.model_class
    assert entry.training == ARCHITECTURES[name].training.replace("padded", "slow")


def test_every_weight_is_counted_once(name: str, tmp_path: Path) -> None:
    if name in MULTIMODAL:
        pytest.skip("pull keeps the text model alone")
    built(name).save_pretrained(tmp_path)
    found = model_size.read(tmp_path)
    assert found.weights == sum(parameter.numel() for parameter in built(name).parameters())
    assert found.channels > 4 * found.hidden * found.layers
    assert found.stored_bytes(100) < found.stored_bytes(1000)
    assert not found.halves


def empty(name: str) -> Any:
    """The model without memory for weights."""
    factory = AutoModelForImageTextToText if name in MULTIMODAL else AutoModelForCausalLM
    with torch.device("meta"):
        return factory.from_config(architectures.config(name, vocabulary=640))


def test_all_linear_adapts_layers_of_the_text_model(name: str) -> None:
    targets = lora_targets.adapted_layers(empty(name), "all-linear")
    assert targets
    if name in MULTIMODAL:  # towers are left alone
        assert all(target.startswith("model.language_model.") for target in targets)
    leaves = ARCHITECTURES[name].layers.split()
    assert not leaves or {target.rpartition(".")[2] for target in targets} == set(leaves)


# An adapter that is trained, saved, merged by name and loaded again gives the same answers.


@pytest.fixture(scope="module")
def few(
    artifacts: dict[str, Artifact], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Artifact]:
    """The tiny base and a data set of some records."""
    prepared = Path(
        shutil.copytree(artifacts["prepared"].path, tmp_path_factory.mktemp("few") / "prepared")
    )
    for split in ("train", "validation"):
        lines = (prepared / f"{split}.jsonl").read_text().splitlines(keepends=True)
        (prepared / f"{split}.jsonl").write_text("".join(lines[:8]))
    (prepared / "manifest.json").unlink()
    return {"base": artifacts["base"], "prepared": artifact.foreign(prepared, "prepared")}


def pulled(name: str, tmp_path: Path, tokenizer: Artifact, *, whole: bool = False) -> Artifact:
    """A small base as `pull` leaves it, or a multimodal one as it ships."""
    download, folder = tmp_path / "download", tmp_path / "base"
    built(name).save_pretrained(download)
    kept = shutil.ignore_patterns(
        "*.safetensors", "config.json", "generation_config.json", "manifest.json"
    )
    shutil.copytree(tokenizer.path, folder, ignore=kept)
    text = None if whole else text_model.find(download)
    if text is not None:
        text.write(folder)
    else:
        shutil.copytree(download, folder, dirs_exist_ok=True)
    return artifact.foreign(folder, "base")


def require_merged(base: Artifact, few: dict[str, Artifact], tmp_path: Path) -> dict[str, Any]:
    """Train and merge, and ask the base, it with the adapter, and the
    merged model; the metrics of the training.
    """
    settings = {
        "learning_rate": 2e-2,
        "warmup_ratio": 0.0,
        "lr_scheduler": "constant",
        "matmul_dtype": "float32",
    }
    metrics = trained(
        few | {"base": base}, tmp_path / "adapter", max_steps=2, batch_size=4, **settings
    )
    updates = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert all(bool(tensor.any()) for tensor in updates.values())  # B is zero at first
    (tmp_path / "merged").mkdir()
    adapter = artifact.foreign(tmp_path / "adapter", "adapter")
    merge.run(MergeConfig(), base=base, adapter=adapter, out=tmp_path / "merged")
    tokens = torch.arange(5, 27)[None]
    with torch.no_grad():
        model = PeftModel.from_pretrained(hf_folder.load_model(base.path), adapter.path).eval()
        tuned = model(input_ids=tokens).logits
        with model.disable_adapter():
            plain = model(input_ids=tokens).logits
        merged = hf_folder.load_model(tmp_path / "merged")(input_ids=tokens).logits
    torch.testing.assert_close(merged, tuned, rtol=0, atol=1e-3)
    assert (tuned - plain).abs().max() > 3e-3  # Granite divides its logits, and starts them small
    return metrics


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * row.merged_slowly)
        for name, row in ARCHITECTURES.items()
    ],
)
def test_an_adapter_trains_and_merges(name: str, few: dict[str, Artifact], tmp_path: Path) -> None:
    metrics = require_merged(pulled(name, tmp_path, few["base"]), few, tmp_path)
    fast, layers = metrics.get("fast_layers"), metrics.get("layers", 0)
    assert (
        "padded" if fast is None else "fast" if 2 * fast > layers else "packed"
    ) == ARCHITECTURES[name].training


def test_an_adapter_of_a_multimodal_base_is_merged(
    few: dict[str, Artifact], tmp_path: Path
) -> None:
    # transformers calls the layers model.language_model.…, and the files language_model.model.…
    require_merged(pulled("gemma3", tmp_path, few["base"], whole=True), few, tmp_path)


# The whole chain, with the real tokenizers that can be had: nothing fails after pull.


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", bases.QUICK if FULL else ("gemma4", "granite4-h", "qwen3-moe"))
def test_the_chain_passes(name: str, stages: Forks, tmp_path: Path) -> None:
    try:
        real_tokenizers.fetch(bases.FAMILIES[architectures.ARCHITECTURES[name].family].vocabulary)
    except real_tokenizers.UnavailableError as error:
        pytest.skip(str(error))
    # pull ends with the rehearsal of all that follows
    # no rehearsal is kept there
    run = functools.partial(stages.run, env={"XDG_CACHE_HOME": str(tmp_path / "cache")})
    outcome = bases.try_base(name, tmp_path, until="pull", run=run)
    assert (outcome.verdict, outcome.sentence) == ("passed", "")
    assert outcome.training.startswith(ARCHITECTURES[name].training)
