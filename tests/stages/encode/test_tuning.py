"""encode with an encoder that learns the rows: what it learns, when it
takes the frozen one's place, its release.
"""

from __future__ import annotations

import itertools
import json
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support import teacher, tiny
from support.forks import Forks
from support.handmade import opened
from support.scale import FULL

from slmctl.artifacts import artifact, atomic
from slmctl.artifacts.artifact import Artifact
from slmctl.config import EncodeConfig
from slmctl.errors import DataError, StageError
from slmctl.metrics import encoder_head, label_sum
from slmctl.metrics.label_sum import LabelSum
from slmctl.model_files import encoder_export, encoder_source, hf_folder, safetensors_header
from slmctl.models.onnx_encoder import Encoder
from slmctl.pipeline import row_estimate
from slmctl.pipeline.estimates import KnownSizes, RowEstimate, StageEstimate
from slmctl.stages.encode import stage as encode_stage
from slmctl.stages.encode import tuning, tuning_bounds

# the converter is a child that imports torch
pytestmark = pytest.mark.usefixtures("forked_children")

PAIRS = {
    ("invoice", "parcel"): "alike",
    ("courier", "refund"): "alike",
    ("invoice", "courier"): "other",
    ("parcel", "refund"): "other",
}
CONFIG = tiny.CONFIG.replace("evaluate: {models: [base, adapter, gguf]}\n", "") + (
    "encode: {encoder: ./words}\nsum: {floor: 0}\npublish: {model: linear}\n"
)


# of an encoder below runs/.encoders
KEPT = {"encoder.onnx", "tokenizer.json", "float32", "model", "seal.json"}


def pairs(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Texts whose category follows from two words together and from none
    of them alone, nor from vectors' mean.
    """
    choose, made = random.Random(seed), dict[str, str]()
    while len(made) < count:
        words, label = choose.choice([*PAIRS.items()])
        text = [*words, *choose.sample(tiny.FILLER.split(), 4)]
        choose.shuffle(text)
        made[" ".join(text)] = label
    return [*made.items()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build_encoder_folder(tmp_path_factory.mktemp("encoder") / "words")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny encoder begins at random, so it learns faster than a real
    one, by more passes over its few rows.
    """
    monkeypatch.setattr(tuning, "RATE", 1e-2)
    monkeypatch.setattr(tuning, "GROWTH", 0.0)
    monkeypatch.setattr(tuning, "OF_HEAD", 1)
    for module in (tuning, tuning_bounds):
        monkeypatch.setattr(module, "PASSES", 10)


@pytest.fixture(scope="module")
def prepared(tiny_project: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = Path(shutil.copytree(tiny_project, tmp_path_factory.mktemp("prepared") / "desk"))
    (place / "slmctl.yaml").write_text(CONFIG)
    shutil.copytree(folder, place / "words")
    tiny.write_csv(place / "tickets.csv", pairs(500))
    teacher.slmctl(place, "pull")
    teacher.slmctl(place, "prepare")
    return place


@pytest.fixture
def desk(prepared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared, tmp_path / "desk"))


def made_by(desk: Path) -> list[Artifact]:
    """The artifacts of `encode`, the newest last."""
    return sorted(
        map(artifact.load, desk.glob("runs/encoder/[!.]*")), key=lambda made: made.manifest.started
    )


def test_what_the_mean_of_words_does_not_tell_is_learned(
    folder: Path, tmp_path: Path, quick: None
) -> None:
    texts, labels = zip(*pairs(300), strict=True)
    asked, wanted = zip(*pairs(500)[300:], strict=True)
    encoder_export.export(folder, tmp_path / "frozen", "mean")
    with Encoder(tmp_path / "frozen") as encoder:
        vectors, others = encoder.encode(texts), encoder.encode(asked)
    begun = encoder_head.cross_fit(vectors, labels, fold=np.full(len(labels), -1)).head
    head = tuning.tune(folder, texts, labels, begun, tmp_path / "tuned", tuning_bounds.PASSES)
    encoder_source.convert(tmp_path / "tuned", tmp_path / "int8")
    with Encoder(tmp_path / "int8") as encoder:
        tuned = encoder.encode(asked)
    frozen, right = (
        label_sum.right(head.labels, each.evidence(own), wanted) / len(wanted)
        for each, own in ((begun, others), (head, tuned))
    )
    assert frozen < 0.7 < 0.95 < right
    again = tuning.tune(folder, texts, labels, begun, tmp_path / "again", tuning_bounds.PASSES)
    assert np.array_equal(again.weights, head.weights)
    assert (tmp_path / "again/model.safetensors").read_bytes() == (
        tmp_path / "tuned/model.safetensors"
    ).read_bytes()
    begin, end = (load_file(place / "model.safetensors") for place in (folder, tmp_path / "tuned"))
    changed = {name for name, weight in end.items() if not torch.equal(weight, begin[name])}
    assert changed and not any("embedding" in name for name in changed)


@pytest.mark.parametrize(
    ("mode", "key"), [("mean", "pooling_mode_mean_tokens"), ("cls", "pooling_mode_cls_token")]
)
def test_vectors_are_those_of_transformers(
    folder: Path, tmp_path: Path, mode: str, key: str
) -> None:
    place = Path(shutil.copytree(folder, tmp_path / "words"))
    (place / "1_Pooling" / "config.json").write_text(json.dumps({key: True}))
    texts = ["invoice parcel please", "a courier", "please " * 100]
    encoder_export.export(place, tmp_path / "exported", mode)
    with Encoder(tmp_path / "exported") as encoder:
        vectors = encoder.encode(texts)
    model, tokenizer = hf_folder.load_encoder(place).eval(), hf_folder.load_tokenizer(place)
    batch = tokenizer(texts, padding=True, truncation=True, max_length=64, return_tensors="pt")
    own = tuning.pooled(
        model(**batch).last_hidden_state, batch["attention_mask"], first=mode == "cls"
    )
    assert np.allclose(own.detach().numpy(), vectors, atol=1e-4)


def test_of_many_rows_fewer_passes_are_learned(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokens = hf_folder.load_encoder(folder), [[0] * 20] * 1600
    assert tuning.steps_of(model, tokens, 10) == 10 * tuning.steps_of(model, tokens, 1) == 1000
    monkeypatch.setattr(tuning, "WORK", tuning.WORK / 1e6)
    few = tuning.steps_of(model, tokens, 10)
    assert 1 <= few < 100 and tuning.steps_of(model, [[0] * 40] * 1600, 10) == pytest.approx(
        few / 2, abs=1
    )
    assert tuning.steps_of(model, tokens, 5) == pytest.approx(few / 2, abs=1)


def test_every_row_is_learned_in_every_pass() -> None:
    dealt = tuning.batches([k % 40 for k in range(300)])
    for _ in range(3):
        rows = [next(dealt) for _ in range(19)]
        assert sorted(itertools.chain.from_iterable(rows)) == list(range(300))


def test_where_held_out_rows_say_so_it_takes_the_frozen_ones_place(desk: Path, quick: None) -> None:
    teacher.slmctl(desk, "encode")
    (made,) = made_by(desk)
    tuned, count = made.metrics["tuned"], made.metrics["rows"]
    assert (
        tuned["kept"]
        and tuned["right"] == made.metrics["right"]
        and tuned["right"] - tuned["frozen"] > count / 5
    )
    assert made.metrics["curve"][-1]["encoder"] == tuned["frozen"]  # a curve of one kind
    (kept,) = desk.glob("runs/.encoders/*/encoder.onnx")
    assert kept.read_bytes() != made.file("encoder.onnx").read_bytes()
    assert {path.name for path in made.path.iterdir()} == {
        "encoder.onnx",
        "tokenizer.json",
        "encoder.json",
        "manifest.json",
        "sum.npz",
        "task.json",
        "validation.npz",
    }
    (rows,) = desk.glob("runs/prepared/[!.]*")
    records = [json.loads(line) for line in (rows / "validation.jsonl").read_text().splitlines()]
    model = LabelSum.read(made.file("sum.npz"))
    with Encoder(made.path) as encoder, np.load(made.file("validation.npz")) as before:
        answers = model.logprobs(
            texts := [r["messages"][-2]["content"] for r in records], encoder.encode(texts)
        )
        places = np.array([model.labels.index(r["messages"][-1]["content"]) for r in records])
        known, judged = (
            float(each["encoder"][np.arange(len(places)), places].mean())
            for each in (answers, before)
        )
        assert known > judged  # it was judged before it learned these rows
    teacher.slmctl(desk, "encode", "--set", "encode.tune=false")
    frozen = made_by(desk)[-1]
    assert "tuned" not in frozen.metrics and frozen.metrics["right"] == tuned["frozen"]
    assert frozen.file("encoder.onnx").read_bytes() == kept.read_bytes()
    assert len([*desk.glob("runs/.encoders/*")]) == 1  # with its weights, for both


@pytest.mark.slow
def test_a_release_says_that_its_encoder_has_learned(desk: Path, quick: None) -> None:
    teacher.slmctl(desk, "run")
    release = artifact.load(desk / "registry/tiny-desk/1.0")
    learned = "its weights changed: they learned training and validation rows"
    assert (
        learned in release.file("NOTICE").read_text()
        and learned in release.file("README.md").read_text()
    )
    assert not artifact.verify(release)
    with np.load(release.file("sum.npz"), allow_pickle=False) as kept:
        assert {
            text for name in kept for text in kept[name].flat if kept[name].dtype.kind == "U"
        } <= {
            "",
            *PAIRS.values(),
        }


@pytest.mark.slow
def test_an_encoder_that_learns_nothing_stays_frozen(
    desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.write_csv(desk / "tickets.csv", tiny.rows(500))  # which frozen vectors tell
    teacher.slmctl(desk, "prepare")
    monkeypatch.setattr(tuning, "RATE", 0.5)  # so that it answers at random, or computes NaN
    teacher.slmctl(desk, "encode")
    (made,) = made_by(desk)
    assert made.metrics["tuned"]["kept"] is False
    (kept,) = desk.glob("runs/.encoders/*/encoder.onnx")
    assert made.file("encoder.onnx").read_bytes() == kept.read_bytes()


@pytest.mark.parametrize(
    ("facts", "possible"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, True),
        ({"pooling_mode": "cls"}, True),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}, True),
        ({}, False),
        ({"pooling_mode": "lasttoken"}, False),
        ({"pooling_mode_lasttoken": True}, False),
    ],
)
def test_other_poolings_are_not_tuned(
    folder: Path, tmp_path: Path, facts: dict[str, Any], possible: bool
) -> None:
    place = Path(shutil.copytree(folder, tmp_path / "words"))
    (place / "1_Pooling" / "config.json").write_text(json.dumps(facts))
    assert ("neither the mean" in tuning_bounds.obstacle(place)) is not possible


def test_what_cannot_be_tuned_stays_frozen_with_a_reason(
    desk: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(*files: Path, **options: Any) -> None:
        raise StageError("torch failed")

    teacher.slmctl(desk, "pull")  # fetches the encoder
    for holder, name, value, said in (
        (tuning_bounds, "LARGEST", 1e4, "0 million weights are too many"),
        (tuning_bounds, "FEWEST", 400, "65 validation rows cannot judge a tuned one, 400 can"),
        (tuning, "tune", refuse, "the encoder stays frozen: torch failed"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(holder, name, value)
            shutil.rmtree(desk / "runs" / "encoder", ignore_errors=True)
            teacher.slmctl(desk, "encode")
        assert said in capfd.readouterr().err
        (made,) = made_by(desk)
        assert "tuned" not in made.metrics


def test_the_plan_counts_a_tuning_that_happens(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def estimate(*sets: str) -> StageEstimate:
        project = opened(desk, *sets)
        return project.stage("encode").cost(
            KnownSizes(project.config, None, row_estimate.of(project), {})
        )

    tuned, frozen = estimate(), estimate("encode.tune=false")
    assert (
        tuned.memory_bytes
        and frozen.memory_bytes
        and tuned.memory_bytes > frozen.memory_bytes + 0.8e9
    )
    assert tuned.seconds and frozen.seconds and tuned.seconds > frozen.seconds
    monkeypatch.setattr(tuning_bounds, "FEWEST", 400)
    assert estimate() == frozen


def test_the_plan_counts_the_steps_of_short_rows(
    desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It said 8 min 40 s of 4,926 steps, which take a time of
    their own however short the rows are.
    """
    assert tuning_bounds.STEP_ROWS == tuning.BATCH
    # as slow as one
    monkeypatch.setattr(encode_stage, "WEIGHTS", safetensors_header.parameter_count(desk / "words"))
    step = tuning_bounds.STEP_SECONDS / tuning.BATCH
    passes = tuning_bounds.PASSES * 400 + tuning_bounds.PASSES_WHOLE * 500

    def seconds(tokens: int) -> float:
        rows = RowEstimate(500, 400, 100, 0, 0, tokens, 0, 0, exact=True)
        tuned, frozen = (
            project.stage("encode").cost(KnownSizes(project.config, None, rows, {})).seconds or 0.0
            for project in (opened(desk), opened(desk, "encode.tune=false"))
        )
        return tuned - frozen

    for tokens in (1, 20):
        assert seconds(tokens) == pytest.approx(
            passes * (tokens / tuning_bounds.TOKENS_A_SECOND + step)
        )
    # so that WORK ends the tuning before its passes do
    monkeypatch.setattr(tuning_bounds, "MOST_SECONDS", 10)
    bounded = 10 * (1 + tuning_bounds.PASSES_WHOLE / tuning_bounds.PASSES)
    assert seconds(20) == pytest.approx(bounded * (1 + step * tuning_bounds.TOKENS_A_SECOND / 20))


def test_a_kept_encoder_whose_weights_changed_is_made_anew(folder: Path, tmp_path: Path) -> None:
    section = EncodeConfig(encoder=str(folder))
    kept = encoder_source.kept(section, tmp_path)
    weights = kept.folder / encoder_source.MODEL / encoder_source.WEIGHTS
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + b"x")
    assert encoder_source.kept(section, tmp_path) == kept and weights.read_bytes() == whole


def test_weights_that_lack_a_layer_are_refused(folder: Path, tmp_path: Path) -> None:
    place = Path(shutil.copytree(folder, tmp_path / "words"))
    facts: dict[str, Any] = json.loads((place / "config.json").read_bytes())
    (place / "config.json").write_text(json.dumps(facts | {"num_hidden_layers": 2}))
    with pytest.raises(DataError, match="lack 16 of the weights"):
        hf_folder.load_encoder(place)


def test_a_killed_encode_leaves_no_scratch_folder_to_the_next_one(
    folder: Path, tmp_path: Path
) -> None:
    """What it had fetched, some 90 MB, stayed below runs/.encoders for ever."""
    section = EncodeConfig(project="desk", encoder=str(folder))
    left = atomic.draft_of(encoder_source.folder_of(section, tmp_path))
    (left / "model").mkdir(parents=True)
    (left / "model" / "model.safetensors").write_bytes(b"fetched")
    kept = encoder_source.kept(section, tmp_path)
    assert {path.name for path in kept.folder.iterdir()} == KEPT and not left.exists()


@pytest.mark.slow
@pytest.mark.parametrize("share", [*(k / 24 for k in range(24))] if FULL else [0.1, 0.5, 0.8])
def test_who_kills_encode_while_the_encoder_learns_gets_the_same_artifact_of_the_next_run(
    desk: Path, stages: Forks, share: float
) -> None:
    clean = Path(shutil.copytree(desk, desk.parent / "clean"))
    begun = time.monotonic()
    wanted = artifact.load(Path(tiny.ok(stages.run(clean, "encode")).split()[-1]))
    assert "tuned" in wanted.metrics
    seconds = time.monotonic() - begun
    child = stages.start(desk, "encode")
    # wherever it is then, or at its end where this machine was slower before
    time.sleep(share * seconds)
    child.kill()
    assert child.wait().code in (-signal.SIGKILL, 0)
    assert all(artifact.verify_folder(path.parent) == [] for path in desk.rglob(artifact.MANIFEST))
    made = artifact.load(Path(tiny.ok(stages.run(desk, "encode")).split()[-1]))
    assert made.digest == wanted.digest
    (encoders,) = desk.glob("runs/.encoders/*")
    assert {path.name for path in encoders.iterdir()} == KEPT
    assert not list(desk.glob("runs/encoder/.*"))
