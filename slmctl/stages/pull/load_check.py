"""Child process that loads a foreign base within bounds, before any other code trusts its files.

    python -m slmctl.stages.pull.load_check FOLDER [GGUF]

It loads tokenizer and config with transformers, builds the model without weights, and compares it
with the weights that are there. Limits of address space and time end it where a file asks for more;
the parent then refuses the base. It prints one JSON object: `{}`, `{"error": …}` or `{"missing":
PACKAGE}`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from slmctl import child, child_environment
from slmctl.artifacts import bounded_json
from slmctl.errors import DataError, SlmctlError
from slmctl.model_files import gguf_header, safetensors_header
from slmctl.network import guard

LIMIT_S = 600  # a sentencepiece model of 262,144 tokens is converted in under a minute
# of address space, on top of the mapped GGUF file; gemma-3's tokenizer takes 2 GB
LIMIT_BYTES = 4 << 30
# characters that a tokenizer's normalizer or decoder may make of one; a space becomes one U+2581
MAX_GROWTH = 64
MAX_TOKENIZER_BYTES = 64 << 20  # gemma-3's tokenizer.json has 33 MB
MAX_VOCABULARY = 4 << 20
HINT = "take a base that transformers loads"


def require_loadable(folder: Path, gguf: str = "") -> None:
    """Load a base in a child process, from an HF folder or from one GGUF file in a folder.

    Raises:
        DataError: transformers cannot load it, or it needs more memory or time than its size
            explains.
        ModuleNotFoundError: A package is missing that its files need.
    """
    try:
        done = child.run(
            __name__,
            str(folder),
            *([gguf] if gguf else []),
            env=child_environment.bare(**guard.SWITCHES),
            timeout_s=LIMIT_S,
        )
    except child.LateError:
        raise DataError(f"loading the base takes longer than {LIMIT_S} s", hint=HINT) from None
    except child.DiedError as death:
        why = str(death)
        if death.out_of_memory:
            why = f"it needs more than {LIMIT_BYTES >> 30} GB of memory"
        raise DataError(f"the base cannot be loaded: {why}", hint=HINT) from None
    answer: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    if "missing" in answer:
        raise ModuleNotFoundError(f"No module named {answer['missing']!r}", name=answer["missing"])
    if "error" in answer:
        raise DataError(answer["error"], hint=HINT)


def _check(folder: Path, gguf: str) -> None:
    """Load everything but the weights.

    Raises:
        DataError: It cannot be loaded, or its weights do not fit its config.
    """
    from slmctl.model_files import hf_folder  # after the limits are set

    if gguf:
        head = gguf_header.read(folder / gguf)
        shapes = {tensor.name: tensor.shape for tensor in head.tensors}
        with hf_folder.gguf_parsed_once():
            hf_folder.require_consistent(folder, shapes, gguf=gguf)
            _check_tokenizer(hf_folder.load_tokenizer(folder, gguf_file=gguf))
        return
    for name in ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt"):
        path = folder / name
        if path.exists():
            bounded_json.read_bytes(path, limit=MAX_TOKENIZER_BYTES, error=DataError, follow=True)
    stored = safetensors_header.read_folder(folder)
    shapes = {tensor.name: tensor.shape for tensor in stored}
    hf_folder.require_consistent(folder, shapes)
    _check_tokenizer(hf_folder.load_tokenizer(folder))


def _check_tokenizer(tokenizer: Any) -> None:
    if len(tokenizer) > MAX_VOCABULARY:
        raise DataError(
            f"the tokenizer of the base has {len(tokenizer)} tokens, at most {MAX_VOCABULARY} are "
            "read"
        )
    backend = getattr(tokenizer, "backend_tokenizer", None)
    parts = json.loads(backend.to_str()) if backend is not None else {}
    for part in ("normalizer", "decoder"):
        growth = text_growth(parts.get(part) or {})
        if growth > MAX_GROWTH:
            raise DataError(
                f"the {part} of the base's tokenizer makes up to {growth} characters of one"
            )


def text_growth(part: dict[str, Any]) -> int:
    """Upper bound of the characters that a normalizer or decoder of
    tokenizer.json makes of one, at most 2**40.
    """
    kind = part.get("type")
    if kind == "Sequence":
        growth = 1
        for inner in part.get("normalizers") or part.get("decoders") or []:
            growth = min(growth * text_growth(inner), 1 << 40)
        return growth
    if kind == "Replace":
        growth = len(part.get("content", ""))
        if not part.get("pattern", {}).get("String"):
            growth += 1  # a regex can match before each one
        return max(1, growth)
    return max(1, len(part.get("prepend", ""))) if kind == "Prepend" else 1


def main() -> None:
    """Check the base that the arguments name, within limits, and print the answer."""
    folder, gguf = Path(sys.argv[1]), "".join(sys.argv[2:3])
    mapped = (folder / gguf).stat().st_size if gguf else 0
    child.bound(memory=LIMIT_BYTES + mapped, cpu_s=LIMIT_S)
    guard.seal()
    answer: dict[str, str] = {}
    try:
        _check(folder, gguf)
    except SlmctlError as error:
        answer = {"error": error.message}
    except ModuleNotFoundError as error:
        answer = {"missing": error.name or str(error)}
    sys.stdout.write("\n" + json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
