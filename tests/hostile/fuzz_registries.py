"""Fuzz target `registries`: registry manifests, listings of S3, tags, gates and receipts, mutated and generated."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
import traceback
from pathlib import Path
from random import Random
from typing import Any

from hostile import answers
from hostile.fuzz import Outcome
from support import serving
from support.released import release

from slmctl import console
from slmctl.artifacts import artifact, lineage
from slmctl.artifacts.artifact import Artifact
from slmctl.errors import SlmctlError
from slmctl.provenance import diff, trace
from slmctl.releases import deliveries, registry, targets
from slmctl.releases.targets import Settings

PLACES = ("desk/1.0/manifest.json", "desk/.tags/production", "desk/.gates/1.0", "desk/1.0/report.json")


def run(seconds: float, seed: int) -> Outcome:
    """Damage a registry in one place or let an S3 service lie, then read it in every way that commands do."""
    console.set_level(-1)
    outcome, random = Outcome(), Random(seed)
    ends, settled, first = time.monotonic() + seconds, time.monotonic() + seconds / 10, 0
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        made = release(root / "runs")
        to = f"dir:{root}/whole"
        with targets.opened(to, Settings(root), purpose="fuzz") as target:
            targets.deliver(target, targets.plan(target, to, targets.shipment(made)))
        registry.promote(root / "whole", registry.find(root / "whole"), "production")
        deliveries.record(root / "runs", made, to)
        with answers.running({}) as server:
            while time.monotonic() < ends:
                outcome.cases += 1
                try:
                    if random.random() < 0.7:
                        _read_folder(root, random)
                    else:
                        _read_s3(server, made, root / "fetched", random)
                except SlmctlError:
                    pass
                except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
                    outcome.tracebacks += 1
                    outcome.notes.append("".join(traceback.format_exception(error)[-3:])[-600:])
                    if len(outcome.notes) > 20:
                        break
                size = serving.memory(os.getpid())
                if not first and time.monotonic() > settled:
                    first = size
                outcome.growth = max(outcome.growth, size - first if first else 0)
    return outcome


def _read_folder(root: Path, random: Random) -> None:
    place = root / "registry"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(root / "whole", place)
    path = place / random.choice(PLACES)
    raw = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(_damaged(raw, random))
    ways = [
        lambda: registry.find(place, "production"),
        lambda: registry.find(place, "1.0"),
        lambda: registry.manifests(place),
        lambda: registry.promote(place, registry.find(place, "1.0"), "canary"),
        lambda: artifact.verify_folder(place / "desk" / "1.0"),
        lambda: list(lineage.lines(lineage.show(root, artifact.load(place / "desk" / "1.0")))),
        lambda: lineage.to_json(lineage.show(root, artifact.load(place / "desk" / "1.0"))),
        lambda: trace.trace(root, text="a", registries=[place]).to_json(),
        lambda: diff.diff(place / "desk" / "1.0", root / "whole" / "desk" / "1.0"),
        lambda: _fetch(f"dir:{place}", random.choice(["", "production", "1.0", "desk@1.0"]), root / "fetched"),
    ]
    random.choice(ways)()


def _read_s3(server: answers.Server, made: Artifact, into: Path, random: Random) -> None:
    lying = answers.answers_of(made)
    key = random.choice([*lying, answers.MANIFEST, answers.LISTING])
    lying[key] = answers.Answer(_damaged(lying[key].body, random), status=random.choice([200] * 9 + [404, 403, 302]))
    server.answers = lying
    _fetch(answers.TO, random.choice(["", "1.0", "desk@1.0"]), into, endpoint=server.address)


def _fetch(to: str, name: str, into: Path, *, endpoint: str | None = None) -> None:
    shutil.rmtree(into, ignore_errors=True)
    with targets.opened(to, Settings(into, endpoint=endpoint), purpose="fuzz") as target:
        targets.fetch(target, name, None, into=into)


# Damage


def _damaged(raw: bytes, random: Random) -> bytes:
    """Bytes flipped, cut or grown; or JSON whose values have other types, with its own hash put right again."""
    kind = random.randrange(6)
    if kind == 0:
        at = random.randrange(len(raw) + 1)
        return raw[:at] + random.randbytes(random.randrange(1, 9)) + raw[at + random.randrange(9) :]
    if kind == 1:
        return raw[: random.randrange(len(raw) + 1)]
    if kind == 2:
        return random.choice([b"[", b'{"a":', b"\xef\xbb\xbf", b"9", b'"']) * random.choice([1, 1_000, 100_000])
    try:
        value = json.loads(raw)
    except ValueError:
        return b""
    for _ in range(random.randrange(1, 4)):
        value = _changed(value, random)
    if isinstance(value, dict) and "self" in value and kind > 3:
        value.pop("self")
        try:
            files = tuple(artifact.FileEntry(**entry) for entry in value.get("files", ()))
            value["digest"] = artifact.digest_of(files) if kind == 5 else value.get("digest")
            value["self"] = artifact.sha256_bytes(artifact.canonical(value))
        except (TypeError, ValueError, AttributeError):
            pass
    try:
        return artifact.canonical(value)
    except (ValueError, RecursionError):
        return json.dumps(value).encode()


def _changed(value: Any, random: Random) -> Any:
    """The same value with something inside it replaced, removed or added."""
    if isinstance(value, dict) and value and random.random() < 0.85:
        key = random.choice(list(value))
        if random.random() < 0.1:
            return {name: inner for name, inner in value.items() if name != key}
        return {**value, key: _changed(value[key], random)}
    if isinstance(value, list) and value and random.random() < 0.8:
        at = random.randrange(len(value))
        return [*value[:at], _changed(value[at], random), *value[at + 1 :]]
    return random.choice(
        [
            None, True, 0, -1, 1.5, 10**30, float("nan"), float("inf"), "", "x", "\ud800", "../../x", "/etc/passwd",
            "\0", "ü" * 300, [], {}, [[]], [{}], {"": None}, ["sha256:" + "0" * 64], "sha256:" + "0" * 64, "1.0",
            [value] * 3, {"nested": value},
        ]
    )  # fmt: skip
