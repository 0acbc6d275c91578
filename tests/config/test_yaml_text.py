"""Values put into slmctl.yaml: everything else of the file stays as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from slmctl import config
from slmctl.config import yaml_text
from slmctl.errors import UsageError

VALUES = {"finetune.learning_rate": "8e-4", "finetune.lora.rank": "32", "finetune.lora.alpha": "64"}
FLOW = "project: x   # name\nbase: b\nfinetune: {epochs: 3, lora: {rank: 16}}   # passes\ngates: []  # none yet\n"
BLOCK = """\
# of the desk
project: x
base: b
finetune:   # the training
  # passes
  epochs: 3
  lora:
    rank: 16      # as in the paper
  learning_rate: 4e-4   # found by hand
gates: []
"""
FORMS = {
    "flow": FLOW,
    "block": BLOCK,
    "CRLF": BLOCK.replace("\n", "\r\n"),
    "BOM": "\ufeff" + BLOCK,
    "no section": "project: x\nbase: b",
    "empty section": "project: x\nfinetune:   # later\nbase: b\n",
    "empty braces": "project: x\nfinetune: {}\nbase: b\n",
    "comment in braces": "project: x\nbase: b\nfinetune: {epochs: 3,  # passes\n  # the end\n  }\n",
    "all in braces": "{project: x, base: b}\n",
}


@pytest.mark.parametrize("text", FORMS.values(), ids=FORMS)
def test_values_are_set_and_comments_stay(text: str, tmp_path: Path) -> None:
    path = tmp_path / "slmctl.yaml"
    path.write_bytes(text.encode())
    config.write_values(path, VALUES)
    written = path.read_bytes().decode()
    section = config.load(path).finetune
    assert (section.learning_rate, section.lora.rank, section.lora.alpha) == (8e-4, 32, 64)
    assert section.epochs == 3
    for line in text.removeprefix("\ufeff").splitlines():
        comment = line.partition("#")[2]
        assert not comment or comment in written
    assert written.count("\r\n") == (written.count("\n") if "\r\n" in text else 0)
    assert written.startswith("\ufeff") == text.startswith("\ufeff")


def test_the_lines_that_do_not_change_are_the_same_bytes() -> None:
    before = BLOCK.splitlines()
    after = yaml_text.with_values(BLOCK, VALUES).splitlines()
    assert [line for line in after if line not in before] == [
        "    alpha: 64",
        "    rank: 32      # as in the paper",
        "  learning_rate: 8e-4   # found by hand",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "project: x\nbase: b\nfinetune: &one {epochs: 3}\nmerge: *one\n",  # what is changed would change twice
    ],
)
def test_a_file_that_would_mean_something_else_is_left_alone(text: str, tmp_path: Path) -> None:
    path = tmp_path / "slmctl.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match="cannot be changed") as caught:
        config.write_values(path, {"finetune.batch_size": "16"})
    assert caught.value.hint == "write it there: finetune.batch_size: 16"
    assert path.read_text() == text


def test_lists_of_values() -> None:
    assert config.listed("2e-4, 4e-4,8e-4") == ["2e-4", "4e-4", "8e-4"]
    assert config.listed("all-linear,[q_proj, v_proj]") == ["all-linear", "[q_proj, v_proj]"]
    for text in ("", "[1", "1], [2", "1]"):
        with pytest.raises(UsageError, match="not a list of values"):
            config.listed(text)


def test_values_that_yaml_reads_are_what_was_listed() -> None:
    assert [yaml.safe_load(value) for value in config.listed("16,32,true,null")] == [16, 32, True, None]
