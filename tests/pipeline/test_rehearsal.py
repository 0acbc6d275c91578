"""The chain on a small random copy of a base: it passes, or says in one
sentence which stage would fail, and why.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support import tiny
from support.forks import Forks
from transformers import GPTNeoConfig, GPTNeoForCausalLM, PreTrainedTokenizerFast

from slmctl import console
from slmctl.config import PullConfig
from slmctl.errors import FullError
from slmctl.model_files.base_model import Base
from slmctl.pipeline import rehearsal
from slmctl.stages.pull import pull


def test_a_base_that_works_passes_and_its_description_says_so(
    tmp_path: Path, tiny_base: Path, stages: Forks
) -> None:
    folder = tmp_path / "desk"
    shutil.copytree(tiny_base, folder / "base")
    settings = tiny.CONFIG.replace("pull: {rehearse: false}\n", "")
    (folder / "slmctl.yaml").write_text(settings, encoding="utf-8")
    done = stages.run(folder, "pull", env={"XDG_CACHE_HOME": str(tmp_path / "cache")})
    tiny.ok(done)
    assert "rehearsing every stage on a small random copy" in done.stderr
    (made,) = folder.glob("runs/base/*")
    outcome = Base.read(made).rehearsal
    assert outcome["passed"]
    assert outcome["packed"]
    assert outcome["fast_layers"] == outcome["layers"] == 2
    assert outcome["remarks"] == []


def test_who_pulls_a_base_again_in_another_project_waits_for_no_second_rehearsal(
    tmp_path: Path, tiny_base: Path, stages: Forks
) -> None:
    settings = tiny.CONFIG.replace("pull: {rehearse: false}\n", "")
    said = []
    for name in ("first", "second", "other"):
        desk = tmp_path / name
        shutil.copytree(tiny_base, desk / "base")
        if name == "other":
            card = desk / "base" / "README.md"
            card.write_text(card.read_text(encoding="utf-8") + "another base\n", encoding="utf-8")
        (desk / "slmctl.yaml").write_text(settings, encoding="utf-8")
        done = stages.run(desk, "pull", env={"XDG_CACHE_HOME": str(tmp_path / "cache")})
        base = Base.read(Path(tiny.ok(done)))
        assert base.rehearsal["passed"] and base.rehearsal["layers"] == 2
        said.append("rehearsing every stage" in done.stderr)
        assert said[-1] != (
            "this version has rehearsed every stage on this base before" in done.stderr
        )
    assert said == [True, False, True]


def test_who_waits_for_a_rehearsal_reads_which_step_runs(
    tmp_path: Path,
    tiny_base: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(console, "SHOW_AFTER_S", -1)
    monkeypatch.setattr(console, "PLAIN_EVERY_S", -1)
    pull.run(PullConfig(base=str(tiny_base), rehearse=False), out=tmp_path)
    assert rehearsal.rehearse(tmp_path).passed
    said = [
        line for line in capsys.readouterr().err.splitlines() if line.startswith("  rehearsing")
    ]
    steps = ("prepare", "finetune", "merge", "quantize", "answers")
    assert said[0] == "  rehearsing every stage on a small random copy of the base"
    assert [line.split()[1] for line in said[1:]] == [f"{k}/6" for k in range(1, 6)]
    assert all(line.endswith(f"now {step}") for line, step in zip(said[1:], steps, strict=True))


def test_a_base_that_llama_cpp_does_not_know_is_refused_at_pull(
    tmp_path: Path, tiny_base: Path, stages: Forks
) -> None:
    """transformers trains a GPT-Neo, and the converter has no such architecture."""
    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    words = PreTrainedTokenizerFast.from_pretrained(base)
    shape = GPTNeoConfig(
        vocab_size=len(words),
        hidden_size=64,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        window_size=16,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=words.eos_token_id,
    )
    GPTNeoForCausalLM(shape).save_pretrained(base)
    (tmp_path / "slmctl.yaml").write_text("{project: desk, base: ./base}")
    done = stages.run(tmp_path, "pull")
    assert done.returncode == 3
    assert "this base cannot go through quantize: " in done.stderr
    assert "GPTNeoForCausalLM" in done.stderr
    assert not list(tmp_path.glob("runs/base/*"))


def test_lora_targets_that_cannot_be_converted_are_refused_before_the_training(
    desk: Path, stages: Forks
) -> None:
    before = list(desk.glob("runs/adapter/*"))
    targets = "finetune.lora.target_modules=[no_such_layer]"
    done = stages.run(desk, "finetune", "--set", targets, "--set", "pull.rehearse=true")
    assert done.returncode in (2, 3), done.stderr
    assert "no_such_layer" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(desk.glob("runs/adapter/*")) == before


def test_a_full_disk_is_no_fault_of_the_base(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **options: object) -> None:
        raise FullError("prepare: the disk is full (/tmp)", hint="df -h .")

    monkeypatch.setattr(rehearsal.runner, "run", full)
    (base,) = tiny_run.glob("runs/base/*")
    with pytest.raises(FullError, match="the disk is full"):
        rehearsal.rehearse(base)


def test_remarks_say_what_is_slower() -> None:
    slow = rehearsal.Rehearsal(True, layers=4, fast_layers=1, packed=True, attention="eager")
    assert len(slow.remarks) == 2
    assert "3 of 4 layers" in slow.remarks[0]
    assert (
        rehearsal.Rehearsal(True, layers=4, fast_layers=4, packed=True, attention="sdpa").remarks
        == []
    )
