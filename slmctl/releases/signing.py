"""Signatures of releases in OpenSSF's model-signing format, with a
private key and without network access.
"""

from __future__ import annotations

from pathlib import Path

from slmctl.artifacts import artifact, atomic
from slmctl.artifacts.artifact import MANIFEST, SIGNATURE, Artifact
from slmctl.errors import IntegrityError, UsageError
from slmctl.network.credentials import secret

PASSWORD = "SLMCTL_KEY_PASSWORD"  # noqa: S105 - the environment variable for an encrypted private key


def sign(release: Artifact, key: Path, runs: Path) -> Path:
    """Sign every file of a release and its manifest; returns the path of the signature.

    An elliptic curve signature differs each time, so it is kept in `runs/.signatures/`: signing the
    same release with the same key again gives the same bytes.

    Args:
        key: The private key (PEM), on the curve P-256, P-384 or P-521. It is read and never copied.

    Raises:
        UsageError: The key is below `runs`, or cannot sign.
        ModuleNotFoundError: model-signing is not installed.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from model_signing import hashing, signing

    if key.resolve().is_relative_to(runs.resolve()):
        raise UsageError(
            f"the private key {key} lies below {runs}",
            hint="keep it outside of what is copied around",
        )
    password = secret(PASSWORD)
    opened = password.encode() if password else None
    try:
        private = serialization.load_pem_private_key(key.read_bytes(), opened)
        # it wants bytes, says str
        signer = signing.Config().use_elliptic_key_signer(private_key=key, password=opened)
    except (OSError, ValueError, TypeError, AttributeError, UnsupportedAlgorithm):
        # the library's message is left out, since it could quote the key
        raise UsageError(
            f"{key} is no private key that can sign",
            hint=f"openssl ecparam -name prime256v1 -genkey -noout -out {key.name}; an encrypted "
            f"one needs {PASSWORD}",
        ) from None
    public = private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    manifest = artifact.sha256_file(release.path / MANIFEST)[7:19]
    # `gc` finds the release of a signature by the first part of the name
    kept = (
        runs
        / ".signatures"
        / f"{release.digest[7:19]}-{manifest}-{artifact.sha256_bytes(public)[7:19]}.sig"
    )
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        signer.set_hashing_config(
            hashing.Config().set_ignored_paths(paths=[], ignore_git_paths=False)
        )
        with atomic.file(kept) as draft:
            signer.sign(release.path, draft)
    return kept


def verify(folder: Path, public_key: Path, *, name: str = "") -> None:
    """Check that the holder of a key signed exactly the files in a release's folder.

    Args:
        public_key: Public key (PEM) of the signer.
        name: Name of the release in errors; by default its folder.

    Raises:
        IntegrityError: The release is not signed, or by another key, or has changed since.
        UsageError: The public key cannot be read.
        ModuleNotFoundError: model-signing is not installed.
    """
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from model_signing import hashing, verifying

    called = name or folder
    # with a relative path the library takes the signature for a file of the release
    folder = folder.absolute()
    signature = folder / SIGNATURE
    if not signature.is_file() or signature.is_symlink():
        raise IntegrityError(
            f"{called} is not signed: it has no {SIGNATURE}",
            hint="its publisher signs with --set publish.signing_key=KEY.pem; without --key no "
            "signature is required",
        )
    try:
        verifier = verifying.Config().use_elliptic_key_verifier(public_key=public_key)
    except (OSError, ValueError, TypeError, AttributeError, UnsupportedAlgorithm):
        raise UsageError(
            f"{public_key} is no public key", hint="openssl ec -in PRIVATE -pubout -out PUBLIC"
        ) from None
    everything = hashing.Config().set_ignored_paths(paths=[signature], ignore_git_paths=False)
    try:
        verifier.set_hashing_config(everything).verify(folder, signature)
    except InvalidSignature:
        raise IntegrityError(f"the signature of {called} is not by this key") from None
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, OSError) as error:
        reason = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
        raise IntegrityError(f"the signature of {called} does not hold: {reason}") from None
    faults = artifact.verify_folder(folder)
    if faults:
        raise IntegrityError(f"{called} is damaged: {'; '.join(faults)}")
