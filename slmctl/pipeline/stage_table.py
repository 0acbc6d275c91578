"""The stage table: what each stage takes and leaves, and where its code is. Imports nothing of slmctl."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Role:
    """One input of a stage: what kinds may fill it, whether none or many may, and what asks for it."""

    name: str
    kinds: tuple[str, ...]
    optional: bool = False
    many: bool = False
    when: str = ""  # a field of the stage's section that asks for it


@dataclass(frozen=True)
class Stage:
    """A row of the table: what a stage takes, what it leaves, and where its code is."""

    name: str  # the subcommand, the section of the config, the last part of the module
    takes: tuple[Role, ...]
    leaves: str
    module: str  # imported only when the stage runs
    imports: tuple[str, ...] = ()  # packages that it cannot do without, whatever the config asks for
    uses: tuple[str, ...] = ()  # distributions whose versions go into the manifest
    version: int = 1  # raise it when the same recipe should give another result
    resumes: bool = False  # it goes on where an unfinished run of the same recipe stopped
    options: tuple[str, ...] = ()  # arguments of its `run` that are no part of the recipe

    @property
    def id(self) -> str:
        return f"{self.name}/{self.version}"


BASE, PREPARED = Role("base", ("base",)), Role("prepared", ("prepared",))
LABELLED = Role("labelled", ("labelled",), when="label")
_HF = ("torch", "transformers", "tokenizers")
STAGES = {
    stage.name: stage
    for stage in (
        Stage("pull", (), "base", "slmctl.stages.pull.pull", _HF, (*_HF, "gguf"), version=3, options=("foreign",)),
        Stage("label", (), "labelled", "slmctl.stages.label.label", ("sklearn", "httpx"),
              ("scikit-learn", "httpx", "llama_cpp_python"), version=2, options=("journals",)),
        Stage("prepare", (BASE, LABELLED), "prepared", "slmctl.stages.prepare.prepare", ("tokenizers",),
              ("tokenizers", "rapidfuzz", "pyarrow", "python-calamine", "sqlalchemy", "scikit-learn"), version=8),
        Stage("encode", (PREPARED,), "encoder", "slmctl.stages.encode.encode", ("llama_cpp", "sklearn"),
              ("llama_cpp_python", "scikit-learn"), version=3, options=("encoders",)),
        Stage(
            "finetune", (BASE, PREPARED), "adapter", "slmctl.stages.finetune.finetune",
            ("torch", "transformers", "trl", "peft"), (*_HF, "trl", "peft", "unsloth"), version=6, resumes=True,
        ),
        Stage("merge", (BASE, Role("adapter", ("adapter",))), "merged", "slmctl.stages.merge.merge", ("torch",),
              ("torch",), version=2),
        Stage(
            "quantize",
            (
                Role("merged", ("merged",)),
                PREPARED,
                Role("adapter", ("adapter",), when="lora_gguf"),
                Role("base_files", ("gguf",), optional=True, many=True, when="lora_gguf"),  # of the base alone
                Role("base", ("base",), optional=True),  # in place of all others: its own file is written
            ),
            "gguf",
            "slmctl.stages.quantize.quantize", ("torch", "transformers", "llama_cpp", "gguf"),
            ("llama_cpp_python", "gguf", "torch", "transformers"), version=5,
            options=("must_end",),
        ),
        Stage(
            "predict",
            (
                Role("model", ("gguf", "base", "adapter", "merged", "published", "encoder")),
                PREPARED,
                Role("base", ("base", "gguf"), optional=True),  # an adapter answers on top of it
                Role("encoder", ("encoder",), optional=True),  # its opinion is added to the file's
            ),
            "predictions", "slmctl.stages.predict.predict", (),
            ("llama_cpp_python", "llguidance", *_HF, "peft"), version=7,
        ),
        Stage(
            "evaluate",
            (
                Role("predictions", ("predictions",), many=True),
                PREPARED,
                Role("validation", ("predictions",), optional=True, many=True),  # to choose a file by
                Role("released", ("prepared",), optional=True),  # data set of the release that gates compare with
            ),
            "report", "slmctl.stages.evaluate.evaluate", ("sklearn", "llama_cpp", "llguidance"),
            ("scikit-learn",), version=9,
        ),
        Stage(
            "calibrate",
            (Role("predictions", ("predictions",)), Role("outside", ("predictions",), optional=True)),
            "policy", "slmctl.stages.calibrate.calibrate", ("llama_cpp", "llguidance"), ("numpy",), version=2,
        ),
        Stage(
            "publish",
            (
                BASE, PREPARED, Role("adapter", ("adapter",)), Role("merged", ("merged",)),
                Role("gguf", ("gguf",)), Role("report", ("report",)), LABELLED,
                Role("encoder", ("encoder",), when="encode"),
            ),
            "published", "slmctl.stages.publish.publish", ("llama_cpp", "gguf"),
            ("llama_cpp_python", "gguf"), version=5,
        ),
    )
}  # fmt: skip
BY_KIND = {stage.leaves: stage for stage in STAGES.values()}
