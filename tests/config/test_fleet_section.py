"""The section `serve.fleet`: sizes with their unit, names, and what it goes together with."""

from __future__ import annotations

from pathlib import Path

import pytest

from slmctl import config
from slmctl.config import ServeConfig
from slmctl.errors import UsageError


def serve(text: str, root: Path = Path()) -> ServeConfig:
    return config.parse(f"{{project: a, base: none, serve: {text}}}", root=root).serve


@pytest.mark.parametrize(
    ("text", "bytes"),
    [("3GiB", 3 << 30), ("1.5GB", 1_500_000_000), ("'512 MiB'", 512 << 20), ("2kB", 2000), ("2KB", 2000), ("7B", 7),
     ("1500", 1500), (".5GB", 500_000_000)],
)  # fmt: skip
def test_a_size_may_have_a_unit(text: str, bytes: int) -> None:
    assert serve(f"{{memory: {text}}}").memory == bytes


@pytest.mark.parametrize("text", ["3XB", "GiB", "-1GB", "3 GiB more", "lots"])
def test_what_is_no_size_is_named(text: str) -> None:
    with pytest.raises(UsageError, match=f"serve.memory: '{text}' is not a number of bytes such as 3GiB, 1500MB"):
        serve(f"{{memory: '{text}'}}")


def test_a_path_of_a_model_is_below_the_folder_and_its_policy_too(tmp_path: Path) -> None:
    text = "{fleet: {a: {release: published, policy: fitted/policy.json}, b: {release: 'dir:r#b@1.0', policy: true}}}"
    first, second = serve(text, tmp_path).fleet.values()
    assert first.policy == tmp_path.resolve() / "fitted" / "policy.json"
    assert (second.policy, second.pin) == (True, False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{fleet: {a: {relese: x}}}", "serve.fleet.a.relese: unknown key; did you mean 'release'"),
        ("{fleet: {a: {release: 'dir:r'}}}", "which names no release: dir:r#PROJECT@production"),
        ("{fleet: {default: {release: x}}}", "'default' in 'fleet' is no name of a model"),
        ("{fleet: {a/b: {release: x}}}", "'a/b' in 'fleet' is no name of a model"),
        ("{policy: p, fleet: {a: {release: x}}}", "'policy' and 'fleet' exclude each other"),
        ("{engine: {url: 'http://h/v1', model: m}, fleet: {a: {release: x}}}", "'engine' and 'fleet' exclude"),
        ("{generalist: {url: 'http://h/v1', model: m}, fleet: {a: {release: x}}}", "'generalist' needs 'policy'"),
    ],
)
def test_what_does_not_go_together_is_named(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        serve(text)


def test_the_table_of_keys_has_those_of_a_model() -> None:
    names = {name for name, _, _ in config.table()}
    assert {f"serve.fleet.NAME.{key}" for key in ("release", "policy", "pin")} <= names
