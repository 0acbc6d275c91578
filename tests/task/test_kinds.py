"""Kinds of tasks: a kind is known wherever it is named."""

from __future__ import annotations

from typing import get_args

from slmctl import config
from slmctl.cli import init_command
from slmctl.task.kinds import KINDS


def test_every_kind_has_its_keys_and_is_a_choice_of_config_and_init() -> None:
    names = tuple(KINDS)
    assert names == get_args(config.KindName) == tuple(config.OWN_KEYS) == init_command.KINDS
