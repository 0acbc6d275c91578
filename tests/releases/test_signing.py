"""Signatures: whoever has the public key can tell the release from
any other, and needs nothing else.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from support.released import make_key, release

from slmctl.artifacts import artifact
from slmctl.artifacts.artifact import Artifact
from slmctl.errors import IntegrityError, UsageError
from slmctl.releases import signing

pytest.importorskip("model_signing")

PASSPHRASE = "never" + "-to-be-seen"


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    (tmp_path / "keys").mkdir()
    return make_key(tmp_path / "keys")


def signed(tmp_path: Path, key: Path) -> Artifact:
    """A release as it is fetched: with its signature, under another name."""
    made = release(tmp_path)
    signature = signing.sign(made, key, tmp_path / "runs")
    elsewhere = made.path.rename(tmp_path / "fetched")
    (elsewhere / "model.sig").write_bytes(signature.read_bytes())
    return artifact.load(elsewhere)


def test_a_signed_release_verifies_with_the_public_key_alone(
    tmp_path: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    private, public = keys
    found = signed(tmp_path, private)
    secret = private.read_bytes()
    private.unlink()
    signing.verify(found.path, public)
    monkeypatch.chdir(tmp_path)
    signing.verify(Path("fetched"), Path("keys") / public.name)  # as it is typed: a relative path
    assert artifact.verify(found) == []
    body = secret.split(b"\n")[1]
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and body in p.read_bytes()], (
        "the key was copied"
    )


def test_the_same_release_is_signed_once(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    made = release(tmp_path)
    first = signing.sign(made, keys[0], tmp_path / "runs").read_bytes()
    # so that nothing is sent again
    assert signing.sign(made, keys[0], tmp_path / "runs").read_bytes() == first
    other, _ = make_key(tmp_path, "other")
    assert signing.sign(made, other, tmp_path / "runs").read_bytes() != first


@pytest.mark.parametrize(
    "what", ["flip", "manifest", "add", "git", "remove", "link", "signature", "nested"]
)
def test_any_change_is_found(tmp_path: Path, keys: tuple[Path, Path], what: str) -> None:
    private, public = keys
    folder = signed(tmp_path, private).path
    card = folder / "README.md"
    if what == "flip":
        card.write_bytes(card.read_bytes().replace(b"Desk", b"Task"))
    elif what == "manifest":
        raw = (folder / "manifest.json").read_bytes()
        (folder / "manifest.json").write_bytes(raw.replace(b'"mit"', b'"bsd"'))
    elif what in ("add", "git"):
        (folder / {"add": "more.py", "git": ".gitignore"}[what]).write_text("x")
    elif what == "remove":
        card.unlink()
    elif what == "link":
        card.rename(tmp_path / "moved")
        card.symlink_to(tmp_path / "moved")
    elif what == "signature":
        raw = (folder / "model.sig").read_text()
        at = raw.index('"sig"') + 12
        (folder / "model.sig").write_text(
            raw[:at] + ("A" if raw[at] != "A" else "B") + raw[at + 1 :]
        )
    elif what == "nested":
        (folder / "adapter" / "evil.py").write_text("x")
    with pytest.raises(IntegrityError):
        signing.verify(folder, public)


def test_another_key_or_none_is_refused(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    found = signed(tmp_path, keys[0])
    _, other = make_key(tmp_path, "other")
    with pytest.raises(IntegrityError, match="does not hold|not by this key"):  # noqa: RUF043
        signing.verify(found.path, other)
    (found.path / "model.sig").unlink()
    with pytest.raises(IntegrityError, match="is not signed"):
        signing.verify(found.path, keys[1])


def test_a_signature_of_another_release_does_not_hold(
    tmp_path: Path, keys: tuple[Path, Path]
) -> None:
    found = signed(tmp_path, keys[0])
    other = release(tmp_path, weights=b"other")
    (other.path / "model.sig").write_bytes((found.path / "model.sig").read_bytes())
    with pytest.raises(IntegrityError, match="does not hold"):
        signing.verify(other.path, keys[1])


@pytest.mark.parametrize("raw", [b"", b"{}", b"\x00\xff", b'{"dsseEnvelope": {}}', b"[1, 2]"])
def test_garbage_is_no_signature(tmp_path: Path, keys: tuple[Path, Path], raw: bytes) -> None:
    found = signed(tmp_path, keys[0])
    (found.path / "model.sig").write_bytes(raw)
    with pytest.raises(IntegrityError):
        signing.verify(found.path, keys[1])


def test_a_key_among_the_artifacts_is_refused(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    (tmp_path / "runs").mkdir()
    inside = keys[0].rename(tmp_path / "runs" / "key.pem")
    with pytest.raises(UsageError, match="lies below"):
        signing.sign(release(tmp_path), inside, tmp_path / "runs")


def test_an_encrypted_key_takes_its_password_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private, public = make_key(tmp_path, "locked", password=PASSPHRASE)
    made = release(tmp_path)
    with pytest.raises(UsageError, match="no private key that can sign") as caught:
        signing.sign(made, private, tmp_path / "runs")
    assert signing.PASSWORD in caught.value.hint
    monkeypatch.setenv(signing.PASSWORD, PASSPHRASE)
    (made.path / "model.sig").write_bytes(
        signing.sign(made, private, tmp_path / "runs").read_bytes()
    )
    signing.verify(made.path, public)


def test_what_is_no_key_is_said(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    made = release(tmp_path)
    odd, _ = make_key(tmp_path, "odd", curve="secp256k1")
    for path in (odd, keys[1], tmp_path / "missing.pem"):
        with pytest.raises(UsageError, match="no private key that can sign"):
            signing.sign(made, path, tmp_path / "runs")
    with pytest.raises(UsageError, match="is no public key"):
        signing.verify(signed(tmp_path / "x", keys[0]).path, keys[0])
