"""The child process of `gguf_converter`: llama.cpp's own script, with three loops over the
vocabulary made faster.

    python gguf_converter_child.py FOLDER SCRIPT ARGUMENT...

It writes the same bytes as the script alone, which a test compares, except where the script
misreads added tokens or a config as transformers saves it. On a vocabulary of 262,144 tokens with
514,906 merges the script spends most of its time packing them one by one. It must run as a file,
and import nothing of slmctl: the script takes the gguf package in its own folder.
"""

from __future__ import annotations

import importlib
import json
import resource
import runpy
import struct
import sys
import types
from pathlib import Path
from typing import Any

# of transformers 5 -> of the script
GRANITE_LAYERS = {"linear_attention": "mamba", "full_attention": "attention"}
# bytes of private memory beside the model: libraries, and a vocabulary of 262,144 tokens
MEMORY = 8 << 30
LONG_ARRAY = 1000  # items; from so many on, an array is packed as a whole


def pack_array(items: list[Any], value_type: Any) -> bytes | None:
    """A GGUF array of texts, 32-bit integers or floats as bytes; None for items of another type."""
    kinds = {type(item) for item in items}
    if kinds == {str}:
        parts = [struct.pack("<IQ", value_type.STRING, len(items))]
        for item in items:
            raw = item.encode()
            parts += (len(raw).to_bytes(8, "little"), raw)
        return b"".join(parts)
    if all(issubclass(kind, int) and kind is not bool for kind in kinds):
        return struct.pack(f"<IQ{len(items)}i", value_type.INT32, len(items), *items)
    if kinds == {float}:
        return struct.pack(f"<IQ{len(items)}f", value_type.FLOAT32, len(items), *items)
    return None


def joined(merges: Any) -> Any:
    """Merges given as pairs, as the texts that the script converts them to:
    a space inside a part becomes U+0120.
    """
    if isinstance(merges, list) and merges and isinstance(merges[0], list) and len(merges[0]) == 2:
        return [f"{a.replace(' ', chr(288))} {b.replace(' ', chr(288))}" for a, b in merges]
    return merges


def install(gguf: Any) -> None:
    """Replace the script's slow loops in the gguf package."""
    slow, value_type = gguf.GGUFWriter._pack_val, gguf.GGUFValueType

    def pack(self: Any, val: Any, vtype: Any, add_vtype: bool, sub_type: Any = None) -> bytes:
        if (
            vtype == value_type.ARRAY
            and isinstance(val, list)
            and len(val) >= LONG_ARRAY
            and sub_type is None
        ):
            packed = (
                pack_array(val, value_type) if self.endianess == gguf.GGUFEndian.LITTLE else None
            )
            if packed is not None:
                return (struct.pack("<I", vtype) if add_vtype else b"") + packed
        return bytes(slow(self, val, vtype, add_vtype, sub_type))

    gguf.GGUFWriter._pack_val = pack

    def load(stream: Any) -> Any:
        value = json.load(stream)
        model = value.get("model") if isinstance(value, dict) else None
        if isinstance(model, dict) and "merges" in model:
            model["merges"] = joined(model["merges"])
        return value

    gguf.vocab.json = types.SimpleNamespace(**{**vars(json), "load": load})
    type_added_tokens(gguf)


def type_added_tokens(gguf: Any) -> None:
    """Give added tokens inside a vocabulary their type, such as `<start_of_turn>` and `</s>` in
    Gemma's.

    The script marks only tokens with a role, such as the end token, as control tokens, and the
    others as plain text.
    """
    plain, kinds = gguf.LlamaHfVocab.get_token_type, gguf.TokenType

    def get_token_type(self: Any, token_id: int, token_text: bytes, special_ids: set[int]) -> Any:
        kind = plain(self, token_id, token_text, special_ids)
        if not hasattr(self, "added"):
            self.added = self.tokenizer.added_tokens_decoder
        if kind != kinds.NORMAL or token_id not in self.added:
            return kind
        return kinds.CONTROL if self.added[token_id].special else kinds.USER_DEFINED

    gguf.LlamaHfVocab.get_token_type = get_token_type


def rename(config: dict[str, Any]) -> None:
    """Rename values of a config to those that the script expects,
    where transformers saves others.
    """
    if config.get("model_type") == "granitemoehybrid" and config.get("layer_types"):
        config["layer_types"] = [GRANITE_LAYERS.get(kind, kind) for kind in config["layer_types"]]
    if config.get("model_type") == "falcon_h1" and config.get("head_dim") is None:
        config["head_dim"] = config["hidden_size"] // config["num_attention_heads"]


def bound(folders: list[Path]) -> None:
    """Limit the memory of this process by the bytes of some folders: a
    config may promise more than weights hold.
    """
    held = sum(
        path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file()
    )
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    limit = MEMORY + 2 * held if most == resource.RLIM_INFINITY else min(MEMORY + 2 * held, most)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def main() -> None:
    """Run the script with its arguments as the main program."""
    bound([path for path in map(Path, sys.argv[3:]) if path.is_dir()])
    place, script = Path(sys.argv[1]), sys.argv[2]
    sys.path[0] = str(place)
    sys.path.insert(1, str(place / "gguf-py"))
    import gguf  # the package in the script's folder

    install(gguf)
    # Layers for multi-token prediction are not in the model that transformers trains, and pull may
    # have left them out; without this, the converter of Qwen3.5 requires them.
    base = importlib.import_module("conversion.base").ModelBase
    base.no_mtp = True
    begin = base.__init__

    def begin_renamed(self: Any, *args: Any, **options: Any) -> None:
        rename(options.get("hparams") or {})
        begin(self, *args, **options)

    base.__init__ = begin_renamed
    sys.argv = [str(place / script), *sys.argv[3:]]
    runpy.run_path(str(place / script), run_name="__main__")


if __name__ == "__main__":
    main()
