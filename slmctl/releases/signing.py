"""Signatures over releases in OpenSSF's model-signing form, with a key and without any network."""

from __future__ import annotations

from pathlib import Path

from slmctl.artifacts import artifact, atomic
from slmctl.artifacts.artifact import MANIFEST, SIGNATURE, Artifact
from slmctl.errors import IntegrityError, UsageError
from slmctl.network.credentials import secret

PASSWORD = "SLMCTL_KEY_PASSWORD"  # noqa: S105 - the variable's name, where the private key is encrypted


def sign(release: Artifact, key: Path, runs: Path) -> Path:
    """Sign every file of a release and its manifest.

    An elliptic curve signature is another one each time, so it is kept beside the artifacts: the same release
    signed by the same key is the same bytes.

    Args:
        key: The private key, PEM, on one of the curves P-256, P-384 and P-521. It is read and never copied.
        runs: The project's `runs/`; signatures are kept below it.

    Raises:
        UsageError: The key lies among the artifacts, or is none that can sign.
        ModuleNotFoundError: model-signing is not installed.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from model_signing import hashing, signing

    if key.resolve().is_relative_to(runs.resolve()):
        raise UsageError(f"the private key {key} lies below {runs}", hint="keep it outside of what is copied around")
    password = secret(PASSWORD)
    opened = password.encode() if password else None
    try:
        private = serialization.load_pem_private_key(key.read_bytes(), opened)
        signer = signing.Config().use_elliptic_key_signer(private_key=key, password=opened)  # it wants bytes, says str
    except (OSError, ValueError, TypeError, AttributeError, UnsupportedAlgorithm):
        # the library's own words could quote the file
        raise UsageError(
            f"{key} is no private key that can sign",
            hint=f"openssl ecparam -name prime256v1 -genkey -noout -out {key.name}; an encrypted one needs {PASSWORD}",
        ) from None
    public = private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    manifest = artifact.sha256_file(release.path / MANIFEST)[7:19]
    # gc knows by the first part which release it is of
    kept = runs / ".signatures" / f"{release.digest[7:19]}-{manifest}-{artifact.sha256_bytes(public)[7:19]}.sig"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        signer.set_hashing_config(hashing.Config().set_ignored_paths(paths=[], ignore_git_paths=False))
        with atomic.file(kept) as draft:
            signer.sign(release.path, draft)
    return kept


def verify(folder: Path, public_key: Path, *, name: str = "") -> None:
    """Check that the holder of a key signed a release as it lies here: every file, and nothing else.

    Args:
        public_key: Of who must have signed it, PEM.
        name: What errors call the release; by default its folder.

    Raises:
        IntegrityError: It is not signed, or by somebody else, or something has changed since.
        UsageError: The public key cannot be read.
        ModuleNotFoundError: model-signing is not installed.
    """
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from model_signing import hashing, verifying

    called = name or folder
    folder = folder.absolute()  # the library takes the signature for a file of the release where its path is relative
    signature = folder / SIGNATURE
    if not signature.is_file() or signature.is_symlink():
        raise IntegrityError(
            f"{called} is not signed: it has no {SIGNATURE}",
            hint="its publisher signs with --set publish.signing_key=KEY.pem; without --key no signature is required",
        )
    try:
        verifier = verifying.Config().use_elliptic_key_verifier(public_key=public_key)
    except (OSError, ValueError, TypeError, AttributeError, UnsupportedAlgorithm):
        raise UsageError(f"{public_key} is no public key", hint="openssl ec -in PRIVATE -pubout -out PUBLIC") from None
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
