"""Recipe ids of every stage, for a project of each kind of task, as they have been since they were
written down.

A recipe id names an artifact below `runs/`: one that changes makes every user's artifacts of that
stage anew. `SLMCTL_UPDATE_GOLDEN=1 pytest tests/pipeline/test_golden_recipes.py` writes them anew.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import TESTS, handmade

from slmctl.artifacts.artifact import Artifact
from slmctl.pipeline import predictions
from slmctl.pipeline.graph import Project, StageRequest
from slmctl.stages.evaluate.stage import report_inputs
from slmctl.stages.quantize.stage import base_file_requests

GOLDEN = TESTS / "golden" / "recipes.json"
SHARED = """\
project: acme
base: ./base.gguf
quantize: {types: [Q8_0, Q4_K_M]}
prepare: {sources: [{path: rows.csv, input: text, output: answer}]}
"""
SOURCES = {
    "rows.csv": "text,answer\nhello,greeting\nbye,farewell\n",
    "more.csv": "text\nand another\n",
    "schema.json": '{"type": "object", "properties": {"n": {"type": "integer"}}}',
    "tools.json": '[{"type": "function", "function": {"name": "look_up", "parameters": {"type": '
    '"object"}}}]',
}
# Each asks for another part of what the pipeline can: the kinds of task, and the inputs that a
# setting adds.
PROJECTS = {
    "classify": """\
task: {kind: classify, labels: [greeting, farewell], system: Name it.}
label: {sources: [{path: more.csv, input: text}], teachers: [{url: http://localhost:1/v1, model: m}]}
encode: {}
evaluate: {models: [base, adapter, merged, gguf], choose: {smallest_within: 0.01}}
calibrate: {max_error: 0.1, out_of_scope: farewell}
predict: {shots: 2}
publish: {include: [merged, adapter]}
""",
    "tag": """\
task: {kind: tag, labels: [greeting, farewell]}
calibrate: {max_error: 0.2}
""",
    "extract": """\
task: {kind: extract, schema: schema.json}
evaluate: {models: [base, gguf]}
predict: {shots: 3}
finetune: {lora: {rank: 8, target_modules: [q_proj]}, max_steps: 5}
""",
    "generate": """\
task: {kind: generate}
evaluate: {models: [gguf, lora]}
quantize: {types: [Q8_0, Q4_K_M], lora_gguf: true}
publish: {to: "dir:./registry", include: [lora]}
""",
    "call": """\
task: {kind: call, tools: tools.json}
finetune: {max_length: 512}
calibrate: {}
merge: {dtype: float32}
""",
}
OPTIONAL = ("label", "encode", "calibrate")  # stages of sections that may be left out


def written(root: Path, kind: str) -> Project:
    for name, text in SOURCES.items():
        (root / name).write_text(text)
    (root / "base.gguf").write_bytes(b"GGUF")
    own = PROJECTS[kind]
    shared = (
        SHARED.replace("quantize: {types: [Q8_0, Q4_K_M]}\n", "") if "quantize:" in own else SHARED
    )
    (root / "slmctl.yaml").write_text(shared + own)
    return handmade.opened(
        root, "finetune.matmul_dtype=float32", "finetune.backend=transformers"
    )  # auto is the machine's


def leave(request: StageRequest) -> Artifact:
    """An artifact with the files and figures that later stages
    look for, as if its stage had run.
    """
    # see finetune's `auto`
    metrics: dict[str, object] = {"train": 10_000} if request.stage.name == "prepare" else {}
    files = {"content.txt": request.recipe_id.encode()}
    if request.stage.name == "quantize":
        types = request.section.types
        files |= {f"acme-{name}.gguf": f"{name} {request.recipe_id}".encode() for name in types}
        metrics["files"] = {
            name: {"file": f"acme-{name}.gguf", "sha256": 64 * str(k)}
            for k, name in enumerate(types)
        }
        bases = request.inputs.get("base_files", [])
        assert isinstance(bases, list)
        if bases:
            named = {
                name: {"artifact": base.digest} for name, base in zip(types, bases, strict=True)
            }
            metrics["lora"] = {"file": "acme-lora.gguf", "bases": named}
    if request.stage.name == "evaluate":
        metrics = {"choice": {"model": "Q8_0"}}
    if request.stage.name == "sum":
        metrics = {"weights": {"file": 0.5, "words": 0.5}}
    asked = {
        "kind": request.stage.leaves,
        "stage": request.stage.id,
        "recipe_id": request.recipe_id,
    }
    return handmade.make(
        request.path, files, **asked, config=request.recipe, inputs=request.digests, metrics=metrics
    )


def requests(project: Project) -> Iterator[tuple[str, StageRequest]]:
    """Every request that the config makes, in order, each under its
    name; artifacts are left on the way.
    """

    def of(name: str) -> tuple[str, StageRequest]:
        project.forget()
        request = project.request(name)
        leave(request)
        return name, request

    for name in ("pull", "label", "prepare", "encode", "finetune", "merge"):
        if name not in OPTIONAL or getattr(project.config, name) is not None:
            yield of(name)
    if project.config.quantize.lora_gguf:
        adapter = project.artifact("adapter")
        for request in base_file_requests(project, project.config.quantize, adapter):
            leave(request)
            yield f"quantize {request.section.types[0]} of the base", request
    yield of("quantize")
    for name in ("evaluate", "calibrate"):
        answered: list[StageRequest] = []
        if name in OPTIONAL and getattr(project.config, name) is None:
            continue

        def answer(request: StageRequest, answered: list[StageRequest] = answered) -> Artifact:
            answered.append(request)
            return (
                leave(request)
                if not request.path.exists()
                else handmade.artifact.load(request.path)
            )

        for model in (
            ("gguf", "encoder")
            if name == "calibrate" and project.config.encode is not None
            else ("gguf",)
        ):
            project.forget()
            if name == "evaluate":
                inputs = report_inputs(project, project.config.measured, answer)
            else:
                inputs = predictions.calibration_inputs(project, answer, model)
            request = project.stage(name).request(inputs)
            yield from (
                (f"predict {k} for {name} of {model}", each) for k, each in enumerate(answered)
            )
            answered.clear()
            leave(request)
            yield f"{name} {model}", request
            project.forget()
            assert request.recipe_id in {each.recipe_id for each in project.stage(name).current()}
    yield of("publish")


@pytest.mark.parametrize("kind", PROJECTS)
def test_recipe_ids_stay(tmp_path: Path, kind: str) -> None:
    ids = {
        name: request.recipe_id.removeprefix("sha256:")
        for name, request in requests(written(tmp_path, kind))
    }
    if os.environ.get("SLMCTL_UPDATE_GOLDEN"):
        kept = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
        GOLDEN.write_text(json.dumps(kept | {kind: ids}, indent=1, sort_keys=True) + "\n")
    assert ids == json.loads(GOLDEN.read_text())[kind]
