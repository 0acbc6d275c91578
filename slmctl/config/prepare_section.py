"""The sections `task` and `prepare`: sources, splits, duplicates, personal data."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypedDict

from pydantic import (
    AfterValidator,
    Discriminator,
    Field,
    PrivateAttr,
    Tag,
    field_serializer,
    model_validator,
)

from slmctl.config import pattern_bound
from slmctl.config.fields import (
    Inherited,
    LocalPath,
    Moment,
    Outside,
    Percent,
    Section,
    Share,
    SourcePath,
    Text,
    WhenSet,
)
from slmctl.network.credentials import mask

KindName = Literal["classify", "tag", "extract", "generate", "call"]
# Keys, sections and stages that only some kinds of tasks have. Everything else about a kind is in
# task/kinds/.
OWN_KEYS: Mapping[str, tuple[str, ...]] = {
    "classify": (
        "labels",
        "labels.ordered",
        "descriptions",
        "sources.label",
        "encode",
        "sum",
        "teachers",
        "document",
    ),
    "tag": ("labels", "descriptions", "sources.separator", "document"),
    "extract": ("schema", "encode", "sum", "teachers", "document"),
    "generate": ("teachers", "must", "must_not"),
    "call": ("tools",),
}


WINDOW = 512  # tokens


def kinds_with(key: str) -> str:
    """The kinds of tasks that have a key of OWN_KEYS, in words:
    `classify, extract and generate`.
    """
    *names, last = (kind for kind, keys in OWN_KEYS.items() if key in keys)
    return f"{', '.join(names)} and {last}" if names else last


class Labels(Section):
    """The labels of a classification, and other names that rows have for them."""

    names: Literal["from-data"] | list[Text] = Field(
        "from-data", description="the labels, or from-data for every label in the sources"
    )
    map: dict[Text, Text] = Field(
        default_factory=dict,
        description="labels of rows that mean another, such as {Rechung: Rechnung}",
    )
    ordered: Annotated[bool, WhenSet()] = Field(
        False,
        description="true where the names are levels, from low to high, such as [low, medium, "
        "high]",
    )

    @model_validator(mode="after")
    def _ends_at_a_label(self) -> Labels:
        if self.ordered and self.names == "from-data":
            raise ValueError("'ordered' needs 'names', the labels from low to high")
        for name, label in self.map.items():
            if label in self.map:
                raise ValueError(
                    f"'{name}' is mapped to '{label}', which is mapped itself: name the last one"
                )
            if self.names != "from-data" and label not in self.names:
                raise ValueError(f"'{name}' is mapped to '{label}', which is none of 'names'")
        return self


class DocumentConfig(Section):
    """Windows in which texts are asked that are longer than one: contracts, reports, letters."""

    window: Literal["auto"] | Annotated[int, Field(ge=64, le=1_024)] = Field(
        "auto", description="tokens of a window; auto takes 512"
    )
    overlap: Literal["auto"] | Annotated[int, Field(ge=0, le=256)] = Field(
        "auto",
        description="tokens that two windows share at the least; auto takes an eighth of a window",
    )

    @model_validator(mode="after")
    def _moves_on(self) -> DocumentConfig:
        if 4 * self.shared > self.size:
            raise ValueError(f"'overlap' is over a quarter of the window of {self.size} tokens")
        return self

    @property
    def size(self) -> int:
        """Tokens of a window."""
        return WINDOW if self.window == "auto" else self.window

    @property
    def shared(self) -> int:
        """Tokens that two windows share at the least."""
        return self.size // 8 if self.overlap == "auto" else self.overlap


def _form_of_labels(value: object) -> str:
    """The union member for the written form of `labels`, so that
    pydantic reports a fault for this form only.
    """
    if isinstance(value, list):
        return "labels[list]"
    return "labels[section]" if isinstance(value, dict | Labels) else "labels[text]"


def _bounded(pattern: str) -> str:
    if fault := pattern_bound.fault_of(pattern):
        raise ValueError(fault)
    return pattern


Pattern = Annotated[Text, AfterValidator(_bounded)]


class TaskConfig(Section):
    """The task of the model: `classify`, `tag`, `extract`, `generate` or `call`."""

    kind: KindName = Field(
        "generate",
        description="classify: one of a set of labels; tag: any number of them; extract: JSON; "
        "generate: free text; "
        "call: one call of a tool, or none",
    )
    labels: Annotated[
        Annotated[Literal["from-data"], Tag("labels[text]")]
        | Annotated[list[Text], Tag("labels[list]")]
        | Annotated[Labels, Tag("labels[section]")],
        Discriminator(_form_of_labels),
    ] = Field(
        "from-data",
        description="classify, tag: the labels, or from-data for every label in the sources; a "
        "mapping also renames "
        "some",
    )
    json_schema: SourcePath | None = Field(
        None,
        alias="schema",
        description="extract: a JSON Schema file that every answer must satisfy",
    )
    tools: Annotated[SourcePath | list[dict[str, Any]] | None, WhenSet()] = Field(
        None,
        description="call: a JSON file with the tools in OpenAI's form, or the list itself; rows "
        "may have tools of "
        "their own",
    )
    system: Text = Field("", description="the system prompt, the same in training and in use")
    descriptions: Annotated[dict[Text, Text], WhenSet()] = Field(
        default_factory=dict,
        description="classify, tag: a sentence for each label, such as {refund: The customer wants "
        "money back}; read "
        "by models that were not trained for the task (label, evaluate --against)",
    )

    document: Annotated[DocumentConfig | None, WhenSet()] = Field(
        None,
        description="classify, tag, extract: ask a long text in windows and give one answer to all "
        "of them; a text of "
        "one window is asked as it is",
    )
    must: Annotated[list[Pattern], Field(max_length=20), WhenSet()] = Field(
        default_factory=list,
        description="generate: regular expressions that every draft must have, such as '^Hello'",
    )
    must_not: Annotated[list[Pattern], Field(max_length=20), WhenSet()] = Field(
        default_factory=list,
        description="generate: regular expressions that no draft may have, such as '(?i)we "
        "guarantee'",
    )

    @model_validator(mode="after")
    def _fits_kind(self) -> TaskConfig:
        if self.has("schema") and self.json_schema is None:
            raise ValueError(f"{self.kind} needs 'schema', the path of a JSON Schema file")
        used = {
            "schema": self.json_schema is not None,
            "tools": self.tools is not None,
            "labels": self.labels != "from-data",
            "descriptions": bool(self.descriptions),
            "labels.ordered": self.ordered,
            "document": self.document is not None,
            "must": bool(self.must),
            "must_not": bool(self.must_not),
        }
        for key, is_used in used.items():
            if is_used and not self.has(key):
                raise ValueError(
                    f"'{key}' belongs to {kinds_with(key)}, and the kind is {self.kind}"
                )
        if self.label_names is not None:
            self.require_described(self.label_names)
        return self

    def require_described(self, labels: Collection[str]) -> None:
        """Refuse descriptions of unknown labels.

        Raises:
            ValueError: A key of `descriptions` is not in `labels`; names the label that was
                probably meant.
        """
        for name in self.descriptions:
            if name not in labels:
                near = difflib.get_close_matches(name, labels, n=1)
                suggestion = f"; did you mean '{near[0]}'?" if near else ""
                raise ValueError(
                    f"'descriptions' describes '{name}', which is no label{suggestion}"
                )

    def has(self, key: str) -> bool:
        """True if this kind of task has a key of OWN_KEYS."""
        return key in OWN_KEYS[self.kind]

    @property
    def has_labels(self) -> bool:
        """True for a task with labels, one a row (`classify`) or several (`tag`)."""
        return self.has("labels")

    @property
    def label_names(self) -> tuple[str, ...] | None:
        """The labels of the config; None for `from-data`."""
        names = self.labels.names if isinstance(self.labels, Labels) else self.labels
        return None if names == "from-data" else tuple(names)

    @property
    def ordered(self) -> bool:
        """True where the labels are levels, from low to high."""
        return isinstance(self.labels, Labels) and self.labels.ordered

    @property
    def label_map(self) -> dict[str, str]:
        """Other names of labels in rows -> the label."""
        return self.labels.map if isinstance(self.labels, Labels) else {}


class Sql(Section):
    """A query to a database, only read from."""

    url: Text = Field(
        repr=False,
        description="SQLAlchemy's address of a database; ${NAME} in it stands for a variable of "
        "the environment",
    )
    query: Text = Field(
        repr=False, description="the SELECT whose rows are read, in an order that it fixes"
    )

    @field_serializer("url")
    def _masked(self, url: str) -> str:
        return mask(url)


class AnswerTable(Section):
    """A table with the answers to documents."""

    path: LocalPath = Field(description="a table or workbook, relative to slmctl.yaml")
    file: Text = Field(
        description="column with the name of each document's file, with or without folder and "
        "suffix"
    )
    sheet: Text | None = Field(None, description="its sheet or table, the first when left out")


class DocumentReading(Section):
    """Treatment of documents."""

    scanned: Literal["reject", "keep", "read"] = Field(
        "reject",
        description="pages without text, which are most often scanned: reject their document, "
        "keep it without them, or read them by optical recognition",
    )


def _form_of_answers(value: object) -> str:
    """The union member for the written form of `answers`."""
    if isinstance(value, dict | AnswerTable):
        return "answers[section]"
    return "answers[none]" if value is None else "answers[text]"


class ReadingOptions(TypedDict, total=False):
    """The keys of a source by which its file is read; those left out are recognised."""

    sheet: str | None
    format: str | None
    encoding: str | None
    header_row: int | None


class Source(Section):
    """Raw rows: a file, documents, a query to a database, or a data set of the hub."""

    path: SourcePath | None = Field(
        None,
        description="a file, a folder or a pattern such as exports/*.parquet, relative to "
        "slmctl.yaml; of documents "
        "(PDF, DOCX, EML, MBOX, HTML, TXT, MD) each is a row",
    )
    sql: Annotated[Sql | None, Outside()] = Field(None, description="a query, in place of a path")
    hf: Annotated[Text | None, Outside()] = Field(
        None, description="data set of the Hugging Face Hub, ORG/NAME@COMMIT, in place of a path"
    )
    file: Annotated[Text | None, Outside()] = Field(
        None, description="hf: data files, such as data/train-*.parquet"
    )
    answers: Annotated[
        Annotated[Literal["json"], Tag("answers[text]")]
        | Annotated[AnswerTable, Tag("answers[section]")]
        | Annotated[None, Tag("answers[none]")],
        Discriminator(_form_of_answers),
        Outside(),
    ] = Field(
        None,
        description="documents: a table with their answers, or json for a JSON file of the same "
        "name beside each",
    )
    documents: Annotated[DocumentReading | None, Outside()] = Field(
        None, description="documents: how they are read"
    )
    format: Literal["csv", "tsv", "jsonl", "json", "parquet", "xlsx", "ods", "sqlite"] | None = (
        Field(None, description="format of the file, where its name does not end in it")
    )
    encoding: Annotated[Text | None, WhenSet()] = Field(
        None, description="encoding of a text, such as cp1252; recognised when left out"
    )
    sheet: Text | list[Text] | None = Field(
        None,
        description='sheet of a workbook, the first when left out, several as [A, B], or "*" for '
        "all; table of an "
        "SQLite database, the only one when left out; or array of a JSON object",
    )
    header_row: Annotated[int | None, WhenSet()] = Field(
        None,
        ge=1,
        le=1_048_576,
        description="row of a sheet, or line of a text, that names the columns; found when left "
        "out",
    )
    name: Text | None = Field(
        None,
        description="name of this source in records and reports; the name of its file when left "
        "out",
    )
    conversation_format: Literal[
        "auto", "columns", "messages", "sharegpt", "alpaca", "prompt-completion"
    ] = Field(
        "auto", description="layout of a conversation in a row; auto recognises it by the columns"
    )
    input: Text = Field(
        "input",
        description="column of the input, or a template such as '{{ subject }}: {{ body }}'",
    )
    output: Text = Field("output", description="column of the reference answer, or a template")
    label: Annotated[Text | None, WhenSet()] = Field(
        None,
        description="classify: the label of every row of this source, in place of an answer of its "
        "own",
    )
    separator: Annotated[Text | None, WhenSet()] = Field(
        None,
        min_length=1,
        description="tag: text between the labels of a cell; ; and | and line breaks when left out",
    )
    id: Text | None = Field(
        None, description="column of a row's own id, by which slmctl trace --id finds it"
    )
    group: Text | None = Field(None, description="column whose equal values stay in one split")
    time: Text | None = Field(None, description="column of a row's date or time, for splits.time")
    weight: Annotated[Text | None, WhenSet()] = Field(
        None, description="column of a row's weight in training, from 0 to 100; 1 when left out"
    )
    split: Literal["train", "validation", "calibration", "test"] | None = Field(
        None, description="put every row of this source into one split"
    )

    _whole: str = PrivateAttr("")
    _documents: bool = PrivateAttr(False)

    @model_validator(mode="after")
    def _has_one_origin(self) -> Source:
        if sum(origin is not None for origin in (self.path, self.sql, self.hf)) != 1:
            raise ValueError("a source has one of 'path', 'sql' and 'hf'")
        if self.file is not None and self.hf is None:
            raise ValueError("'file' belongs to 'hf'")
        for key in ("answers", "documents"):
            if getattr(self, key) is not None and (self.path is None or self.format is not None):
                raise ValueError(f"'{key}' belongs to a 'path' of documents, without 'format'")
        if self.label is not None and "output" in self.model_fields_set:
            raise ValueError("'label' is the answer of every row, so 'output' names none")
        if self.path == Path("-"):
            raise ValueError(
                "standard input is no source; write the rows to a file first: cat > rows.csv"
            )
        if isinstance(self.sheet, list) and not self.sheet:
            raise ValueError("'sheet' names no sheet")
        return self

    @property
    def local(self) -> Path:
        """The file to read. Queries and data sets of the hub are
        copied to files before a stage runs.
        """
        assert self.path is not None
        return self.path

    @property
    def reading(self) -> ReadingOptions:
        """Options for reading the file. A source with several sheets is
        split into several before a stage runs.
        """
        assert not isinstance(self.sheet, list)
        return {
            "sheet": self.sheet,
            "format": self.format,
            "encoding": self.encoding,
            "header_row": self.header_row,
        }

    @property
    def title(self) -> str:
        """The name of this source in records; without its folder and without secrets."""
        name = self.local.name.encode("utf-8", "surrogateescape").decode(
            "utf-8", "backslashreplace"
        )
        return self.name or name + (f":{self.sheet}" if self.sheet else "")

    def place(self, columns: Mapping[str, object]) -> str:
        """The name of the file that a row is of; of documents each row is one."""
        return (
            f"{self.title}/{columns['file']}"
            if self._documents and "file" in columns
            else self.title
        )

    def copied(self, path: Path) -> Source:
        """This source of documents as its copy, in which each row has the file that it was."""
        update = {"path": path, "answers": None, "documents": None, "id": self.id or "file"}
        source = self.model_copy(update=update | {"name": self.name or self.local.name})
        source._documents = True
        return source

    @property
    def whole(self) -> str:
        """The name of the source that this is one file or sheet of;
        '' for a source as the config has it.
        """
        return self._whole

    def part(self, path: Path, name: str | None, *, sheet: str | None = None) -> Source:
        """One file or sheet of this source, with a new name; all
        parts must have the same columns.
        """
        part = self.model_copy(update={"hf": None, "file": None, "sheet": sheet, "name": name})
        return part.at(path, whole=self.name or self.hf or str(self.path))

    def at(self, path: Path, *, whole: str) -> Source:
        """This source at another path, as a part of `whole`."""
        source = self.model_copy(update={"path": path})
        source._whole = whole
        return source


class SourceLimits(Section):
    """Bounds on copying a source that is not a file: documents, a query, a data set of the hub."""

    timeout_s: float = Field(3600, gt=0, description="seconds that copying one source may take")
    size_gb: float = Field(
        20, gt=0, description="gigabytes (10^9 bytes) that the copy of one source may have"
    )

    @property
    def size_bytes(self) -> int:
        """The bytes that the copy of one source may have; bounded,
        since infinite GB are no number of bytes.
        """
        return int(min(self.size_gb, 1e9) * 1e9)


class Shares(Section):
    """Shares of the rows that are held out, each between 0 and 0.5; training gets the rest."""

    validation: Share = Field(
        0.10,
        description="share of rows by which training stops and settings are chosen; 0 where a "
        "source is bound to them",
    )
    calibration: Share = Field(
        0.15, description="share of rows on which the policy is fitted; 0 for none"
    )
    test: Share = Field(
        0.15,
        description="share of rows that are used for reports alone; 0 where a source is bound to "
        "them",
    )

    @model_validator(mode="after")
    def _leaves_training_rows(self) -> Self:
        if self.validation + self.calibration + self.test > 0.8:
            raise ValueError("the held-out shares leave less than 0.2 of the rows for training")
        return self


BEGIN_HELP = "first date or time of the rows of this split"


class Times(Section):
    """The first moment of each held-out split; earlier rows are for training."""

    validation: Moment = Field(description=BEGIN_HELP)
    calibration: Moment = Field(description=BEGIN_HELP)
    test: Moment = Field(description=BEGIN_HELP)

    @model_validator(mode="after")
    def _differ(self) -> Self:
        if len({self.validation, self.calibration, self.test}) < 3:
            raise ValueError("two splits begin at the same moment, so one of them would be empty")
        return self


class Splits(Shares):
    """Held-out rows: by shares of the rows, by other shares for some labels, or by time."""

    labels: dict[str, Shares] = Field(
        default_factory=dict,
        description="other shares for some labels, such as {fraud: {test: 0.3}}",
    )
    time: Times | None = Field(None, description="split by the sources' time column instead")

    def beside(self, bound: Collection[str | None]) -> Self:
        """The shares with 0 for validation and test where sources are bound to them, unless the
        config sets them.

        A source may be bound to calibration for out-of-scope rows alone, so that share stays.
        """
        given = ({"validation", "test"} & {*bound}) - self.model_fields_set
        if self.time is not None or not given:
            return self
        labels = {
            label: shares.model_copy(update=dict.fromkeys(given - shares.model_fields_set, 0.0))
            for label, shares in self.labels.items()
        }
        return self.model_copy(update={"labels": labels} | dict.fromkeys(given, 0.0))


class Duplicates(Section):
    """Treatment of duplicates: drop them, list them in repeated.jsonl, or keep them."""

    exact: Literal["drop", "list", "keep"] = Field(
        "drop",
        description="duplicates: rows whose inputs differ in case, spaces and punctuation alone; "
        "the first one stays",
    )
    near: Literal["drop", "list", "keep"] = Field("list", description="near-duplicates")
    similarity: float = Field(
        0.85,
        gt=0.5,
        le=1,
        description="similarity from which inputs are near-duplicates, also of training and "
        "held-out rows",
    )


Action = Literal["keep", "redact", "pseudonymise", "drop", "refuse"]
WithoutStandIn = Literal["keep", "redact", "drop", "refuse"]
KIND_HELP = (
    "of such values in texts: keep (counted), redact, pseudonymise (but for secrets), "
    "drop the row, or refuse"
)


class Sensitive(Section):
    """Treatment of personal data and secrets, by kind.

    `keep` only counts them and marks the record, `redact` writes a mark such as [CARD],
    `pseudonymise` writes the same stand-in for the same value, `drop` leaves the row out, `refuse`
    fails the stage.
    """

    email: Action = Field("keep", description=KIND_HELP)
    phone: Action = Field("keep", description=KIND_HELP)
    card: Action = Field("redact", description=KIND_HELP)
    iban: Action = Field("redact", description=KIND_HELP)
    ip: Action = Field("keep", description=KIND_HELP)
    secret: WithoutStandIn = Field("redact", description=KIND_HELP)
    pseudonym_key: SourcePath | None = Field(
        None,
        description="file with the secret that makes stand-ins; runs/.keys/pseudonyms when left "
        "out",
    )

    @property
    def actions(self) -> dict[str, Action]:
        """The action for each kind."""
        return {
            kind: getattr(self, kind) for kind in ("email", "phone", "card", "iban", "ip", "secret")
        }

    @model_validator(mode="after")
    def _does_something(self) -> Sensitive:
        if self.pseudonym_key is not None and "pseudonymise" not in self.actions.values():
            raise ValueError("'pseudonym_key' is for stand-ins, and no kind is pseudonymised")
        return self


class Replace(Section):
    """A replacement in the users' texts."""

    pattern: Text = Field(
        description="regular expression (Python's); a repetition before something else has a "
        "limit, as in [0-9]{1,20}"
    )
    replacement: Text = Field(
        "", alias="with", description="the text in place of each match; \\1 is the first group"
    )

    @model_validator(mode="after")
    def _ends_soon(self) -> Replace:
        if fault := pattern_bound.fault_of(self.pattern, self.replacement):
            raise ValueError(fault)
        return self


FEWEST_HELP = "fewest rows of this split, unless its share is 0"


class MinRows(Section):
    """The fewest rows of a split, and of each label in training, with
    which a model can be trained and measured.
    """

    train: int = Field(30, ge=0, description=FEWEST_HELP)
    validation: int = Field(5, ge=0, description=FEWEST_HELP)
    calibration: int = Field(0, ge=0, description=FEWEST_HELP)
    test: int = Field(10, ge=0, description=FEWEST_HELP)
    label: int = Field(
        1,
        ge=0,
        description="classify: fewest training rows of each label; a label without one cannot be "
        "learned",
    )


class PrepareConfig(Section):
    """Turn raw rows into training, validation, calibration and test records."""

    task: Annotated[TaskConfig, Inherited()] = TaskConfig()
    # where it is set, a teacher's labels are one more source
    label: Annotated[Any, Inherited(), Outside()] = None
    sources: Annotated[list[Source], Field(min_length=1)] = Field(
        default_factory=list, description="the sources to read, in order", validate_default=False
    )
    clean: Annotated[
        list[Literal["html", "quoted_mail", "signatures", "whitespace"]], WhenSet()
    ] = Field(
        default_factory=list,
        description="cleaning of the users' texts, also when the model is used: html, quoted_mail, "
        "signatures, "
        "whitespace; made in this order, whatever the order of the list",
    )
    replace: Annotated[list[Replace], Field(max_length=50), WhenSet()] = Field(
        default_factory=list,
        description="replacements in these texts, in order, before white space is tidied",
    )
    sensitive: Sensitive = Field(
        default_factory=Sensitive, description="treatment of personal data and secrets"
    )
    splits: Splits = Field(default_factory=Splits, description="held-out rows")
    duplicates: Duplicates = Field(
        default_factory=Duplicates, description="treatment of duplicates"
    )
    min_rows: Annotated[MinRows, WhenSet()] = Field(
        default_factory=MinRows,
        description="fewest rows of a split and of a label; fewer end the stage",
    )
    max_rejected: Percent = Field(0.10, description="largest share of rejected rows, such as 1 %")
    max_overlap: Percent = Field(
        0.25,
        description="largest share of a held-out split that may have a run of words in common with "
        "training rows",
    )
    limits: Annotated[SourceLimits, Outside()] = Field(
        default_factory=SourceLimits,
        description="bounds on copying documents, a query or a data set of the hub",
    )
    workers: Annotated[int | None, Outside()] = Field(
        None, ge=1, description="processes that read the rows; one a core when left out"
    )

    @property
    def bound_splits(self) -> list[str]:
        """Held-out splits with the rows of the sources that are bound
        to them, and no share of the others.
        """
        shares = [self.splits, *self.splits.labels.values()] if self.splits.time is None else []
        bound = {source.split for source in self.sources if shares}
        held_out = ("validation", "calibration", "test")
        return [
            name
            for name in held_out
            if name in bound and not any(getattr(each, name) for each in shares)
        ]
