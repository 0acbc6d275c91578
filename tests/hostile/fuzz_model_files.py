"""Fuzz target `model_files`: headers of GGUF and safetensors files, settings and cards, read in this process."""

from __future__ import annotations

import json
import resource
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from hostile import model_files
from hostile.fuzz import Outcome

from slmctl.artifacts import bounded_json
from slmctl.errors import DataError, SlmctlError
from slmctl.model_files import gguf_header, lora_adapter, safetensors_stream
from slmctl.model_files.base_model import Base
from slmctl.stages.pull import model_card

SLOW_S = 2.0  # for one file of a few kilobytes, on a machine that is busy


def run(seconds: float, seed: int) -> Outcome:
    """Mutations of sound files until the time is over; a file is read, or refused with an error of slmctl."""
    choose, outcome, end = Random(seed), Outcome(), time.monotonic() + seconds
    first = 0
    with tempfile.TemporaryDirectory() as place:
        while time.monotonic() < end:
            name, attempt = _attempt(choose, Path(place))
            began = time.monotonic()
            try:
                attempt()
            except SlmctlError:
                pass
            except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError, OSError,
                    MemoryError, AssertionError) as error:  # fmt: skip
                outcome.tracebacks += 1
                outcome.notes.append(f"case {outcome.cases}, {name}: {traceback.format_exception(error)[-1][:200]}")
            if time.monotonic() - began > SLOW_S:
                outcome.notes.append(f"case {outcome.cases}, {name}: {time.monotonic() - began:.1f} s")
            outcome.cases += 1
            now = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
            first = first if first and outcome.cases > 50 else now
            outcome.growth = now - first
    return outcome


def _attempt(choose: Random, place: Path) -> tuple[str, Callable[[], Any]]:
    """A file and the function that reads it."""
    match choose.randrange(7):
        case 0 | 1:
            path = model_files.write(place / "m.gguf", model_files.mutate(choose, model_files.SOUND_GGUF))
            return "gguf", lambda: gguf_header.read(path)
        case 2 | 3:
            raw = model_files.mutate(choose, model_files.SOUND_SAFETENSORS)
            if choose.random() < 0.3:
                raw = model_files.safetensors(model_files.any_json(choose), b"\0" * 32)
            path = model_files.write(place / "model.safetensors", raw)
            return "safetensors", lambda: safetensors_stream.stored_tensors(path.parent)
        case 4:
            path = model_files.write(place / "README.md", model_files.any_card(choose))
            return "card", lambda: model_card.read(path)
        case 5:
            value = model_files.any_json(choose)
            base = {"name": "n", "source": "s", "license": "", "parameters": 1, "chat_template": "", "bos_token": "",
                    "template_origin": "", "eos_token": "", "special_tokens": [], "languages": []}  # fmt: skip
            base[choose.choice(list(base))] = value
            path = model_files.write(place / "base.json", json.dumps(choose.choice((value, base))).encode())
            return "base.json", lambda: (bounded_json.read_object(path, error=DataError, follow=True), Base.read(place))
        case _:
            settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "init_lora_weights": True}
            settings[choose.choice(("lora_alpha", "alpha_pattern", "modules_to_save", "r"))] = model_files.any_json(
                choose
            )
            folder = place / "adapter"
            folder.mkdir(exist_ok=True)
            model_files.write(folder / lora_adapter.SETTINGS, json.dumps(settings).encode())
            shapes = {"base_model.model.a.lora_A.weight": [2, 3], "base_model.model.a.lora_B.weight": [4, 2]}
            shapes[choose.choice(list(shapes))] = [choose.randrange(3), choose.randrange(5)]
            header, at = {}, 0
            for name, (rows, columns) in shapes.items():
                header[name] = model_files.entry("F32", [rows, columns], [at, at + 4 * rows * columns])
                at += 4 * rows * columns
            model_files.write(folder / lora_adapter.WEIGHTS, model_files.safetensors(header, b"\0" * at))
            return "adapter", lambda: lora_adapter.read(folder)
