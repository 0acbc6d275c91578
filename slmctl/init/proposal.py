"""Described rows -> the proposal of a project: task, base, cleaning,
redaction, labels, gates; each with its reason.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

from slmctl import sensitive
from slmctl.artifacts.bounded_json import JsonObject
from slmctl.config import FinetuneConfig, Gate, KindName, Sensitive, Splits, below
from slmctl.console import duration, percent, size
from slmctl.errors import DataError
from slmctl.hardware import usable_cores
from slmctl.init import levels, task_proposal
from slmctl.init.answer_schema import SchemaBuilder
from slmctl.init.column_names import is_flag, suggests
from slmctl.init.columns import json_value
from slmctl.init.look import COUNTED
from slmctl.init.raw_data import RawData
from slmctl.init.task_proposal import TaskProposal
from slmctl.metrics.baseline import TfidfLogistic
from slmctl.metrics.gates import rows_needed
from slmctl.metrics.label_typos import label_typos
from slmctl.metrics.statistics import drop_bound, effective_groups, independent_rows
from slmctl.model_files import catalogue, memory, model_shape
from slmctl.model_files.catalogue import CatalogueEntry
from slmctl.reports import RELEASE
from slmctl.reports.html_page import either
from slmctl.sources.rows.cells import as_text
from slmctl.task import conversation_formats, language, split
from slmctl.task.cleaning import STEPS, clean
from slmctl.task.language import Languages

SEARCHED = 400  # texts of the sample that are searched for personal data
MIN_ROWS = 30  # with an answer, for a trial
ENOUGH_ROWS = 100  # with fewer, a project is a trial without gates
FEW = 10  # rows; of a label with fewer none may be left for training
THIN = 20  # rows; a label with fewer is noted
WORTH_CLEANING = 0.02  # least share of texts that a proposed step of cleaning changes
MAPPED = 40  # most misspelt labels that slmctl.yaml maps
SMALL = 1000  # rows; with fewer there is no calibration split, and a larger test split
FEW_TEST = 0.25  # share of the test split then
MAX_LENGTH = 1024  # tokens, the default of finetune.max_length
USUAL_CHARACTERS = 4.0  # of a token of everyday text
CHARACTERS_A_TOKEN = 2.5  # at least, in the languages and tokenizers that were looked at
DROPS = (0.02, 0.03, 0.05, 0.10)  # bounds of a gate; the tightest that so many rows can show
OPEN_LICENSES = ("apache-2.0", "mit")
LONGEST_MINUTES = 60.0  # of the whole training; a base that takes longer is not proposed
PROMPTS = {  # by language: classify, tag, extract, generate
    "en": (
        "Read the text and name its category.",
        "Read the text and name its categories.",
        "Read the text and give its fields as JSON.",
        "Answer the message.",
    ),
    "de": (
        "Lies den Text und nenne seine Kategorie.",
        "Lies den Text und nenne seine Kategorien.",
        "Lies den Text und gib seine Felder als JSON an.",
        "Beantworte die Nachricht.",
    ),
    "fr": (
        "Lis le texte et donne sa catégorie.",
        "Lis le texte et donne ses catégories.",
        "Lis le texte et donne ses champs en JSON.",
        "Réponds au message.",
    ),
    "es": (
        "Lee el texto y di su categoría.",
        "Lee el texto y di sus categorías.",
        "Lee el texto y da sus campos en JSON.",
        "Responde al mensaje.",
    ),
    "it": (
        "Leggi il testo e indica la categoria.",
        "Leggi il testo e indica le categorie.",
        "Leggi il testo e dai i suoi campi in JSON.",
        "Rispondi al messaggio.",
    ),
    "nl": (
        "Lees de tekst en noem de categorie.",
        "Lees de tekst en noem de categorieën.",
        "Lees de tekst en geef de velden als JSON.",
        "Beantwoord het bericht.",
    ),
    "pt": (
        "Leia o texto e diga a categoria.",
        "Leia o texto e diga as categorias.",
        "Leia o texto e dê os campos em JSON.",
        "Responda à mensagem.",
    ),
    "pl": (
        "Przeczytaj tekst i podaj jego kategorię.",
        "Przeczytaj tekst i podaj jego kategorie.",
        "Przeczytaj tekst i podaj jego pola jako JSON.",
        "Odpowiedz na wiadomość.",
    ),
}
EXAMPLES: Mapping[KindName, str] = {  # kind of task -> the template that shows one
    "classify": "support-triage",
    "tag": "topic-tagging",
    "extract": "field-extraction",
    "generate": "reply-drafting",
    "call": "tool-calls",
}
CALL_PROMPT = "Call the tool that the message asks for, or none."  # English, like most tools


@dataclass(frozen=True)
class BaseProposal:
    """A base for slmctl.yaml.

    Attributes:
        source: The value of `base`.
        sha256: Hash of its file, for `pull.sha256`; '' if its source is pinned in another way.
        about: A few words for a comment; further lines begin with #.
        reason: A sentence for the terminal.
        parameters: Number of weights; 0 for a base that is not in the catalogue.
        tools: True if its chat template supports tool calls; None if unknown.
        context: Tokens that it was trained for; 0 for a base that is not in the catalogue.
    """

    source: str
    sha256: str
    about: str
    reason: str
    parameters: int = 0
    tools: bool | None = None
    context: int = 0


@dataclass(frozen=True)
class Machine:
    """The speed of this machine: `rates` in GFLOP/s by dtype (empty if not
    measured); `dtype` of matrix products.
    """

    rates: Mapping[str, float]
    dtype: str

    def training_bytes(self, entry: CatalogueEntry, *, small: bool = False) -> int:
        """Estimated peak memory in bytes of training a base, at full
        speed or with small pieces of a batch.
        """
        pieces = model_shape.LEAST_PIECE_TOKENS if small else model_shape.PIECE_TOKENS
        return entry.training_bytes(2 if self.dtype == "bfloat16" else 4, pieces)

    def memory(self, entry: CatalogueEntry) -> str:
        """The memory of training a base in words; also with small pieces, if only these fit."""
        needed = self.training_bytes(entry)
        less = (
            ""
            if memory.fits(needed)
            else f", {size(self.training_bytes(entry, small=True))} in small pieces"
        )
        return f"{size(needed)} of memory{less}"

    def minutes(self, entry: CatalogueEntry, tokens: int) -> float:
        """Estimated minutes of training a base on `tokens` tokens;
        0 if this machine was not measured.
        """
        rate = self.rates.get(self.dtype)
        return (
            entry.training_seconds(rate, usable_cores(), rows=1, tokens=tokens) / 60
            if rate
            else 0.0
        )


def plain(text: str) -> str:
    """A text with folded case and single spaces, to compare rows by."""
    return " ".join(text.casefold().split())


@dataclass(frozen=True)
class Proposal:
    """The proposed project for some rows.

    Attributes:
        sensitive: Kind of personal data to redact -> share of the texts that hold it.
        kept: Kinds of personal data that are kept and not redacted, since answers hold them.
        clean: Step of cleaning -> share of the texts that it changes.
        label_map: Label that looks misspelt -> the label that is probably meant.
    """

    data: RawData
    task: TaskProposal
    base: BaseProposal
    languages: Languages
    sensitive: Mapping[str, float] = dataclasses.field(default_factory=dict)
    kept: tuple[str, ...] = ()
    clean: Mapping[str, float] = dataclasses.field(default_factory=dict)
    label_map: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def lost(self) -> float:
        """Share of the usable rows that hold tool calls, which the base does not support."""
        return self.task.calls if self.base.tools is False and not self.task.rules.calls else 0.0

    @property
    def rejected(self) -> float:
        """Share of the rows that `prepare` will leave out, also since they cannot be read."""
        look = self.data.look
        return 1 - self.usable * look.rows / max(look.rows + look.unusable, 1)

    @property
    def is_trial(self) -> bool:
        """True for so few rows that no figure carries a gate."""
        return round(self.data.look.rows * self.usable) < ENOUGH_ROWS

    @property
    def lacking_rows(self) -> int:
        """The number of rows that a trial lacks for the gates that `init` writes."""
        tested = [
            rows_needed(Gate.model_validate(gate))
            for gate, _ in gates(self.task, FEW_TEST * ENOUGH_ROWS)
        ]
        return max(ENOUGH_ROWS, math.ceil(max(tested) / FEW_TEST)) - round(
            self.data.look.rows * self.usable
        )

    @property
    def usable(self) -> float:
        """Share of the rows that will become records, estimated from the sample."""
        return self.task.usable * (1 - self.lost)

    @property
    def rows(self) -> int:
        """Number of rows that will become records and be split by
        shares, estimated from the sample.
        """
        return round((self.data.look.rows - self.data.held_out.total()) * self.usable)

    @property
    def shares(self) -> dict[str, float]:
        """Shares of splits that differ from the default: no calibration for few rows, 0 for a split
        with its own file.

        They are written into slmctl.yaml, not chosen by `prepare`: else a new source would move
        test rows to training.
        """
        few: dict[str, float] = {"calibration": 0, "test": FEW_TEST} if self.rows < SMALL else {}
        if self.is_trial:
            few |= {"validation": 0.2, "test": 0.3}
        return few | dict.fromkeys(self.data.held_out, 0)

    @property
    def split_reasons(self) -> list[str]:
        """The reasons of `shares`."""
        held = list(self.data.held_out)
        few = ["none for calibrate"] if self.rows < SMALL and "calibration" not in held else []
        few += ["more for the test"] if self.shares.get("test") else []
        reasons = [f"few rows: {', '.join(few)}"] if few else []
        reasons += (
            [f"{' and '.join(held)} {either(len(held), 'is a source', 'are sources')} apart"]
            if held
            else []
        )
        return reasons

    @property
    def actions(self) -> dict[str, str]:
        """The value of `prepare.sensitive`."""
        return dict.fromkeys(self.kept, "keep") | dict.fromkeys(sorted(self.sensitive), "redact")

    @cached_property
    def repeated(self) -> float:
        """Share of the rows with a text that an earlier row has too."""
        return 1 - len({plain(text) for text, _ in self.task.pairs}) / max(len(self.task.pairs), 1)

    @property
    def train_rows(self) -> int:
        """Expected number of rows in the training split."""
        shares = Splits(**self.shares)
        return round(
            self.rows
            * (1 - self.repeated)
            * (1 - shares.validation - shares.calibration - shares.test)
        )

    @property
    def test_rows(self) -> int:
        """Expected number of rows in the test split."""
        counted = (
            self.task.group and (column := self.data.look.column(self.task.group)) and column.counts
        )
        drawn = (
            sum(self.test_groups) * self.usable
            if counted
            else self.rows * Splits(**self.shares).test
        )
        return round(drawn * (1 - self.repeated) + self.data.held_out["test"] * self.usable)

    @cached_property
    def test_groups(self) -> list[int]:
        """Numbers of rows of the groups that the hash of `prepare` draws for the test; [] for rows
        without groups.

        Of a column with very many groups, those of the sample.
        """
        column = self.data.look.column(self.task.group)
        if column is None or self.data.held_out["test"]:
            return []
        sizes = column.counts or Counter(
            as_text(row.get(column.name)) for row in self.data.look.sample
        )
        share = Splits(**self.shares).test
        return [
            rows for name, rows in sizes.items() if split.position_of(split.group_id(name)) < share
        ]

    @property
    def independent_test_rows(self) -> float:
        """The number of independent rows that tell as much as those of
        the test, whose groups may be alike.
        """
        if not self.test_groups:
            return self.test_rows
        return min(self.test_rows, independent_rows(effective_groups(self.test_groups)))

    @property
    def least_rows(self) -> dict[str, int]:
        """The value of `prepare.min_rows`: lower limits for a trial and
        for rare labels; {} for the default.
        """
        splits = {name: 1 for name in ("train", "validation", "test") if self.is_trial}
        return splits | (
            {"label": 0} if any(splits or rows < FEW for rows in self.labels.values()) else {}
        )

    @cached_property
    def labels(self) -> dict[str, int]:
        """Label -> number of rows, the most frequent first; a misspelt
        one counts for the label that is meant.
        """
        counts = Counter[str]()
        for label, rows in self.task.labels.items():
            counts[self.label_map.get(label, label)] += rows
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))

    @cached_property
    def levels(self) -> list[str]:
        """The labels from low to high, without misspelt ones; [] if they are not levels."""
        labels = self.labels if self.task.rules.has("labels.ordered") else {}
        return levels.in_order(labels, self.task.output)

    @property
    def lacks_other(self) -> bool:
        """True for labels of which none is for the texts that fit no other."""
        are_topics = self.task.rules.chooses and not self.levels and not is_flag(self.labels)
        return are_topics and not any(suggests(label, "other") for label in self.labels)

    @cached_property
    def schema(self) -> JsonObject:
        """A JSON Schema that all answers satisfy: of every row for
        columns, of the sample for templates.
        """
        builder, task = SchemaBuilder(), self.task
        # rendering a conversation or a user's template for every row takes too long
        sampled = task.is_conversation or conversation_formats.is_template(task.output)
        for text, cell in task.pairs if sampled else self._cells():
            if (value := json_value(cell)) is not None:
                builder.add(value, text)
        return {"$schema": "https://json-schema.org/draft/2020-12/schema", **builder.schema()}

    def _cells(self) -> Iterator[tuple[str, object]]:
        """(text, answer) of every counted row, without the form of a template."""
        fields, read = (
            self.task.fields,
            task_proposal.columns_in(self.task.input, self.data.look.columns),
        )
        for row in islice(self.data.rows(), COUNTED):
            if not row.fault:
                text = " ".join(as_text(row.columns.get(name)) for name in read)
                yield text, fields.of(row.columns) if fields else row.columns.get(self.task.output)

    @property
    def longest(self) -> int:
        """Upper estimate of the number of tokens in the longest row of the sample."""
        characters = max(
            (len(question) + len(answer) for question, answer in self.task.pairs), default=0
        )
        return round(characters / CHARACTERS_A_TOKEN) + 50

    @property
    def tokens(self) -> int:
        """Estimated number of tokens in a row, a mean over the sample."""
        characters = sum(len(question) + len(answer) for question, answer in self.task.pairs)
        return round(characters / max(len(self.task.pairs), 1) / USUAL_CHARACTERS) + 50

    @property
    def in_windows(self) -> bool:
        """True for documents of a task that asks them in windows, whatever their length."""
        return self.data.output is not None and self.task.rules.has("document")

    @property
    def is_long(self) -> bool:
        """True if training would read less than half of the rows'
        texts, which nobody should do unasked.
        """
        return self.tokens > 2 * MAX_LENGTH and not self.in_windows

    @property
    def training(self) -> tuple[dict[str, object], str]:
        """The section `finetune` that the rows need, else the numbers that
        `auto` takes for them; and the reason.
        """
        if self.longest > MAX_LENGTH and not self.is_long and not self.in_windows:
            about = (
                f"the longest row has about {self.longest:,} tokens, max_length is {MAX_LENGTH:,}"
            )
            return {"too_long": "truncate"}, about
        structured, weights = self.task.rules.structured, self.base.parameters
        chosen = FinetuneConfig().resolved(self.train_rows, weights, structured=structured)
        about = "auto takes these: take off the first # to set them"
        if self.is_long:
            about += (
                f"; max_length is {MAX_LENGTH:,}, and the rows have some {self.tokens:,} tokens"
            )
        numbers = {"learning_rate": chosen.learning_rate, "batch_size": chosen.batch_size}
        return {"epochs": round(float(chosen.epochs)), **numbers}, about


def make(
    data: RawData,
    machine: Machine,
    *,
    input: str | None,
    output: str | None,
    kind: KindName | None,
    base: str | None,
) -> Proposal:
    """The project for some rows; arguments that are not None are kept, the others proposed.

    Raises:
        DataError: No task fits the rows, or they are too few.
        UsageError: A flag names something unknown, or does not go with the others.
    """
    task = task_proposal.propose(data.look, data.title, input=input, output=output, kind=kind)
    _require_rows(data, task)
    languages = language.of_texts(text for text, _ in task.pairs)
    rows = round((data.look.rows - data.held_out.total()) * task.usable)
    characters = sum(len(text) + len(answer) for text, answer in task.pairs) / max(
        len(task.pairs), 1
    )
    epochs = float(FinetuneConfig().resolved(rows, 0, structured=task.rules.structured).epochs)
    tokens = round(rows * epochs * (characters / CHARACTERS_A_TOKEN))
    texts = [text for text, _ in task.pairs]
    texts = texts[:: max(1, len(texts) // SEARCHED)]
    # data that answers must contain must not be redacted; a secret is, wherever it stands
    kinds = [kind for kind in sensitive.KINDS if kind != "secret"]
    held = (
        _sensitive([answer for _, answer in task.pairs[:SEARCHED]], kinds)
        if not task.labels
        else {}
    )
    shares, unasked = _sensitive(texts, ("email", "phone")), Sensitive().actions
    return Proposal(
        data,
        task,
        named_base(base)
        if base is not None
        else propose_base(
            languages.main,
            machine,
            tools=task.tools or task.calls > 0,
            calls=task.calls > 0 and not task.rules.calls,
            tokens=tokens,
        ),
        languages,
        sensitive={kind: share for kind, share in shares.items() if kind not in held},
        kept=tuple(
            kind for kind in kinds if kind in held and (kind in shares or unasked[kind] != "keep")
        ),
        clean=_cleaning(texts, task),
        label_map=_label_map(task.labels),
    )


def _require_rows(data: RawData, task: TaskProposal) -> None:
    rows = round(data.look.rows * task.usable)
    if rows >= MIN_ROWS:
        return
    template = "contract-terms" if data.output and task.rules.has("schema") else EXAMPLES[task.kind]
    raise DataError(
        f"{data.title} has {rows} rows with a text and an answer: too few to train a model and to "
        "measure it",
        hint=f"{MIN_ROWS - rows} more make a trial, {ENOUGH_ROWS - rows} more a project with "
        "gates; slmctl init "
        f"{template} shows one with enough",
    )


def system_prompt(kind: KindName, language: str) -> str:
    """A system prompt for a kind of task in this language, or else in English."""
    prompts = dict(
        zip(
            ("classify", "tag", "extract", "generate"),
            PROMPTS.get(language, PROMPTS["en"]),
            strict=True,
        )
    )
    return prompts.get(kind, CALL_PROMPT)


def _sensitive(texts: Sequence[str], kinds: Sequence[str]) -> dict[str, float]:
    """Kind of personal data, of these, -> share of the texts in which it was found."""
    counts = Counter(
        kind for text in texts for kind in {finding.kind for finding in sensitive.find(text, kinds)}
    )
    return {kind: count / len(texts) for kind, count in counts.items()}


def _cleaning(texts: Sequence[str], task: TaskProposal) -> dict[str, float]:
    """Step of cleaning -> share of the texts that it changes; {} if every step changes too few.

    Fields and answers may be in a quoted mail or a signature, so for those tasks only HTML is
    removed.
    """
    steps = [
        step for step in (STEPS if task.rules.has_labels else ("html",)) if step != "whitespace"
    ]
    shares = {
        step: sum(clean(text, (step,), ())[0] != text for text in texts) / len(texts)
        for step in steps
    }
    worth = {step: share for step, share in shares.items() if share >= WORTH_CLEANING}
    return {**worth, "whitespace": 0.0} if worth else {}


def _label_map(labels: Mapping[str, int]) -> dict[str, str]:
    """Label that looks misspelt -> the label that is probably meant."""
    typos = label_typos(labels)
    misspelt = {typo["label"] for typo in typos}
    return {
        typo["label"]: typo["likely"] for typo in typos[:MAPPED] if typo["likely"] not in misspelt
    }


# The base


def propose_base(
    code: str, machine: Machine, *, tools: bool, calls: bool = False, tokens: int
) -> BaseProposal:
    """The smallest base with an open license that knows the language and trains here in
    LONGEST_MINUTES.

    If none is so fast, the smallest that knows the language, with its time. If none knows it, or
    the language is unknown ('' as code), a base that needs no hub.

    Args:
        tools: True for only bases that support tool calls.
        calls: True for such a base even if it trains longer, since others cannot learn the rows.
        tokens: Number of tokens that training reads, over all epochs.
    """
    bases = [
        entry for entry in catalogue.entries() if _is_plain(entry) and (entry.tools or not tools)
    ]
    start = _without_hub(code, machine, tokens)
    speaking = [entry for entry in bases if entry.speaks(code)] if code not in ("", "en") else bases
    fitting = [
        entry for entry in speaking if memory.fits(machine.training_bytes(entry, small=True))
    ]
    quick = [entry for entry in fitting if machine.minutes(entry, tokens) <= LONGEST_MINUTES]
    if not quick and code not in ("", "en"):
        quick = fitting[:1]  # an hour more is a smaller loss than another language
    entry = next(iter(quick), None)
    name = language.NAMES.get(code, "English")
    skill = f"{name} and tool calls" if tools and code else "tool calls" if tools else name
    if entry is None:
        if not speaking:
            why = f"no base under an open license knows {skill}"
        else:
            why = (
                f"no base under an open license that knows {skill} trains on this machine in an "
                "hour"
            )
        if calls and speaking:
            return _of(speaking[0], f"{why}; this one is the smallest")
        about = (
            f"knows {_known(start, code)}, is small, has the license {start.license}, and "
            "needs no model hub"
        )
        return _of(start, f"{why}; this one {about}")
    minutes = machine.minutes(entry, tokens)
    needs = f"trains in about {machine.memory(entry)}"
    if minutes > LONGEST_MINUTES:
        needs += f" and {duration(60 * minutes)}"
    if entry.package:
        unknown = (
            ""
            if code
            else "; the language of the texts was not recognised: slmctl bases --language CODE"
        )
        return _of(entry, f"knows English, is small, {needs}, and needs no model hub{unknown}")
    proposal = _of(
        entry,
        f"the smallest under an open license that knows {skill}; {needs}, and comes from the hub",
    )
    if tools:
        return proposal
    without = (
        f"without a hub: {start.source}, which knows {_known(start, code)} (license "
        f"{start.license})"
    )
    return dataclasses.replace(
        proposal, about=f"{proposal.about}\n# {without}", reason=f"{proposal.reason}; {without}"
    )


def _without_hub(code: str, machine: Machine, tokens: int) -> CatalogueEntry:
    """The smallest base of the package index that knows the language, in
    LONGEST_MINUTES if possible; or the first.
    """
    offline = [entry for entry in catalogue.entries() if entry.package]
    quick = [entry for entry in offline if machine.minutes(entry, tokens) <= LONGEST_MINUTES]
    return next((entry for entry in (*quick, *offline) if entry.speaks(code or "en")), offline[0])


def _known(entry: CatalogueEntry, code: str) -> str:
    """The name of the language `code` if the base knows it, else `English alone`."""
    return language.NAMES.get(code, "English") if entry.speaks(code or "en") else "English alone"


def named_base(name: str) -> BaseProposal:
    """The base that the user named: a name in the catalogue, or any value of `base`.

    Raises:
        UsageError: It is neither a source nor a path, and not in the catalogue.
    """
    by_source = {entry.source: entry for entry in catalogue.entries()}
    if name not in by_source and (
        name.startswith(("pypi:", "hf:")) or below(Path(), Path(name)).exists()
    ):
        return BaseProposal(name, "", "slmctl bases lists others", "as asked for")
    return _of(by_source.get(name) or catalogue.find(name), "as asked for")


def _of(entry: CatalogueEntry, reason: str) -> BaseProposal:
    skills = (
        "English"
        if entry.languages == ("en",)
        else f"{entry.language_count or 'unknown'} languages"
    )
    about = f"{entry.short_name}, {skills}, {entry.license}"
    return BaseProposal(
        entry.source, entry.sha256, about, reason, entry.parameters, entry.tools, entry.context
    )


def _is_plain(entry: CatalogueEntry) -> bool:
    """True for a base that is pinned, not gated, under an open
    license, and trained by the fast path.
    """
    pinned = bool(entry.package or entry.commit)
    return (
        pinned
        and entry.license in OPEN_LICENSES
        and "gated" not in entry.note
        and entry.training != "slow"
    )


# The gates

ENOUGH = 200  # independent test rows that show a gain which is worth a model at 80 % confidence


def surely_better(rows: float) -> float:
    """The confidence of a gate against a cheap model: smaller with
    few rows, which can show no more.
    """
    return 0.8 if rows >= ENOUGH else 0.5


# Kind of task -> (metric that must be better than the base's, gates on the form of answers).
BETTER: Mapping[str, tuple[str, list[tuple[dict[str, object], str]]]] = {
    "extract": (
        "field_f1",
        [
            (
                {"metric": "valid_schema", "model": RELEASE, "min": 0.9},
                "share of answers that satisfy the schema",
            ),
        ],
    ),
    "call": (
        "exact_match",
        [
            (
                {"metric": "valid_call", "model": RELEASE, "min": 0.95},
                "share of answers that call an offered tool rightly, or none",
            ),
        ],
    ),
}


def gates(task: TaskProposal, rows: float) -> list[tuple[dict[str, object], str]]:
    """(gate, reason) pairs that this number of independent test rows can pass."""
    gain = {"model": RELEASE, "against": "base", "min_gain": 0}
    if not task.rules.has_labels:
        better, form = BETTER.get(task.kind, (task.rules.primary, []))
        return [*form, ({"metric": better, **gain}, "better than before training")]
    linear: dict[str, object] = {
        "against": TfidfLogistic.name,
        "min_gain": 0,
        "confidence": surely_better(rows),
    }
    drop = next((drop for drop in DROPS if drop_bound(1, 0, rows) <= drop), None)
    loss: dict[str, object] = {"model": "Q8_0", "against": "adapter", "max_drop": drop}
    kept = "quantization costs at most that"
    if not task.rules.chooses:
        gates = [
            (
                {"metric": task.rules.row_metric, "model": RELEASE, **linear},
                "else a linear model does as well",
            )
        ]
        return (
            [*gates, ({"metric": task.rules.primary, **loss}, kept)] if drop is not None else gates
        )
    commonest = max(task.labels.values()) / sum(task.labels.values())
    least = round(min(max(0.5, commonest + 0.1), (1 + commonest) / 2), 2)
    accuracy: dict[str, object] = {"metric": task.rules.primary, "model": RELEASE}
    gates = [
        (
            accuracy | {"min": least},
            f"the commonest label alone has {percent(commonest, 0)}: set what you need",
        ),
        (accuracy | linear, "else a linear model does as well"),
    ]
    return [*gates, (accuracy | loss, kept)] if drop is not None else gates
