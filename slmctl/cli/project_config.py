"""A proposal -> the text of `slmctl.yaml`, a comment a key, at most MAX_LINES long."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import yaml

from slmctl.cli.base_proposal import BaseProposal
from slmctl.cli.project_template import SCHEMA_LINE
from slmctl.cli.task_proposal import TaskProposal, labels_of
from slmctl.console import percent
from slmctl.metrics.statistics import drop_bound

MAX_LINES = 30
_COMMENT_AT = 46  # column of the comments
WIDTH = 120  # characters of a line that is wrapped
SMALL = 1000  # rows; of fewer none are kept for calibration
# Twice the default rate had 12 to 41 % less validation loss on 600 and 1,200 rows with the two smallest bases, after
# three passes and after five. On 10,000 rows it gained nothing, and larger bases were not tried.
HIGH_RATE, FEW_ROWS, SMALL_BASE = 8e-4, 5_000, 500_000_000
CHARACTERS_A_TOKEN = 2.5  # at least, in the languages and tokenizers that were looked at
MAX_LENGTH = 1024  # tokens, the default of finetune.max_length
DROPS = (0.02, 0.03, 0.05, 0.10)  # bounds of a gate; the tightest that so many rows can show

PROMPTS = {  # by language: classify, extract, generate
    "en": ("Read the text and name its category.", "Read the text and give its fields as JSON.", "Answer the message."),
    "de": ("Lies den Text und nenne seine Kategorie.", "Lies den Text und gib seine Felder als JSON an.",
           "Beantworte die Nachricht."),
    "fr": ("Lis le texte et donne sa catégorie.", "Lis le texte et donne ses champs en JSON.", "Réponds au message."),
    "es": ("Lee el texto y di su categoría.", "Lee el texto y da sus campos en JSON.", "Responde al mensaje."),
    "it": ("Leggi il testo e indica la categoria.", "Leggi il testo e dai i suoi campi in JSON.",
           "Rispondi al messaggio."),
    "nl": ("Lees de tekst en noem de categorie.", "Lees de tekst en geef de velden als JSON.",
           "Beantwoord het bericht."),
    "pt": ("Leia o texto e diga a categoria.", "Leia o texto e dê os campos em JSON.", "Responda à mensagem."),
    "pl": ("Przeczytaj tekst i podaj jego kategorię.", "Przeczytaj tekst i podaj jego pola jako JSON.",
           "Odpowiedz na wiadomość."),
}  # fmt: skip
_KINDS = ("classify", "extract", "generate")
CALL_PROMPT = "Call the tool that the message asks for, or none."


@dataclass(frozen=True)
class ProjectProposal:
    """All that `slmctl.yaml` is written from.

    Attributes:
        project: Name of the project.
        origin: The keys of the source that say where its rows are, such as `path` and `sheet`.
        rows: Usable rows.
        language: Code of the texts' language; empty if it is not known.
        schema: Name of the JSON Schema file; empty for none.
        sensitive: Share of the rows with a finding, by kind.
        clean: Share of the texts that a step of cleaning changes, by step.
        label_map: Labels that look misspelt, with the likely ones.
        rare_labels: Number of labels with so few rows that none may be left for training.
        about_source: A few words on it for a comment.
    """

    project: str
    origin: Mapping[str, object]
    task: TaskProposal
    base: BaseProposal
    rows: int
    language: str
    schema: str = ""
    sensitive: Mapping[str, float] = field(default_factory=dict)
    about_source: str = ""
    clean: Mapping[str, float] = field(default_factory=dict)
    label_map: Mapping[str, str] = field(default_factory=dict)
    rare_labels: int = 0


def system_prompt(kind: str, language: str) -> str:
    """A system prompt in the language, or in English."""
    if kind == "call":  # the tools that stand below it are in English as a rule
        return CALL_PROMPT
    return PROMPTS.get(language, PROMPTS["en"])[_KINDS.index(kind)]


def text(proposal: ProjectProposal) -> str:
    """The content of slmctl.yaml."""
    rest = [*_prepare(proposal), *_stages(proposal)]
    lines = [SCHEMA_LINE, *_head(proposal, wrapped=True), *rest]
    if len(lines) > MAX_LINES:
        lines = [SCHEMA_LINE, *_head(proposal, wrapped=False), *rest]
    return "\n".join(lines) + "\n"


def _head(proposal: ProjectProposal, *, wrapped: bool) -> Iterator[str]:
    """The lines up to the task; `wrapped` has a mapping of labels take several."""
    task, base = proposal.task, proposal.base
    yield line("project", proposal.project, "in the names of releases and model files")
    yield line("version", "0.1", "of the release")
    yield line("base", base.source, base.about)
    if base.sha256:
        yield line("pull", {"sha256": base.sha256}, "of this base: remove it with another")
    yield "task:"
    yield line("  kind", task.kind, "classify: a label; extract: JSON; generate: a text; call: a tool")
    count = len(labels_of(task)) - len(proposal.label_map)
    if task.kind == "classify" and proposal.label_map:
        about = f"the {count} of the answers; {len(proposal.label_map)} more look misspelt: check them"
        if not wrapped:
            yield line("  labels", {"map": proposal.label_map}, about)
        else:
            yield f"{'  labels:':<{_COMMENT_AT}}  # {about}"
            yield from _wrapped("    map: ", proposal.label_map)
    elif task.kind == "classify":
        yield line("  labels", "from-data", f"the {count} that the answers hold")
    if proposal.schema:
        yield line("  schema", proposal.schema, "derived from the answers: correct it before you train")
    if not task.own_system:
        prompt = system_prompt(task.kind, proposal.language)
        yield line("  system", prompt, "the same in training and in use: make it yours")


def _prepare(proposal: ProjectProposal) -> Iterator[str]:
    task = proposal.task
    yield "prepare:"
    yield "  sources:"
    columns = (
        ("input", task.input, "the column that is read, or a template"),
        ("output", task.output, "the column with the right answer"),
        ("id", task.id, "what slmctl trace --id asks for"),
        ("group", task.group, "rows with the same value stay in one split"),
        ("time", task.time, "for splits.time"),
    )
    about = {"sheet": "the sheet, table or array", "encoding": "a guess: see that accents and signs read right"}
    about |= {next(iter(proposal.origin)): proposal.about_source}
    keys = [(key, value, about.get(key, "")) for key, value in proposal.origin.items()]
    keys += [(key, value, comment) for key, value, comment in columns if value]
    for place, (key, value, comment) in enumerate(keys):
        yield line(f"    {'- ' if place == 0 else '  '}{key}", value, comment)
    if proposal.clean:
        shares = ", ".join(f"{step} in {percent(share, 0)}" for step, share in proposal.clean.items() if share)
        yield line("  clean", list(proposal.clean), f"{shares} of the texts; when the model is used, too")
    if kinds := _redacted(proposal.sensitive):
        shares = ", ".join(f"{kind} in {percent(proposal.sensitive[kind], 0)}" for kind in kinds)
        yield line("  sensitive", dict.fromkeys(kinds, "redact"), f"{shares} of the rows; or keep, pseudonymise")
    if task.usable < 0.9:
        left_out = math.ceil(100 * (1.02 - task.usable))
        yield line(
            "  max_rejected", f"{min(left_out, 100)} %", f"{percent(1 - task.usable, 0)} of the rows have no answer"
        )
    if proposal.rare_labels:
        yield line("  min_rows", {"label": 0}, "some labels have so few rows that none may be left for training")
    if proposal.rows < SMALL:
        yield line("  splits", {"calibration": 0, "test": 0.25}, "few rows: none for calibrate, more for the test")


def _stages(proposal: ProjectProposal) -> Iterator[str]:
    training: dict[str, object] = {"epochs": epochs(proposal.rows)}
    about = "passes over the training rows"
    if proposal.rows < FEW_ROWS and 0 < proposal.base.parameters < SMALL_BASE:
        training["learning_rate"] = HIGH_RATE
        about = "passes, and twice the default rate: few rows and a small base"
    if (tokens := _longest(proposal.task)) > MAX_LENGTH:
        training["too_long"] = "truncate"
        about = f"the longest row has about {tokens:,} tokens, max_length is {MAX_LENGTH:,}"
    yield line("finetune", training, about)
    yield line("quantize", {"types": ["Q8_0"]}, "add Q4_K_M and see what 4 bits cost")
    yield "gates:"
    for gate, comment in gates(proposal.task, test_rows(proposal.rows)):
        yield line("  -", gate, comment)
    yield line("publish", {"to": "dir:./registry"}, "or hf:, s3://")


def epochs(rows: int) -> int:
    """Passes over the training rows: more of few rows."""
    return 8 if rows < 500 else 5 if rows < 1500 else 3 if rows < 20_000 else 1


def test_rows(rows: int) -> int:
    """Expected rows of the test split."""
    return round(rows * (0.25 if rows < SMALL else 0.15))


def gates(task: TaskProposal, rows: int) -> list[tuple[dict[str, object], str]]:
    """Gates that so many test rows can pass, each with its reason."""
    gain = {"against": "base", "min_gain": 0}
    if task.kind == "generate":
        return [({"metric": "token_f1", "model": "Q8_0", **gain}, "better than before training")]
    if task.kind == "call":
        valid = {"metric": "valid_call", "model": "Q8_0", "min": 0.95}
        return [
            (valid, "share of answers that call an offered tool rightly, or none"),
            ({"metric": "exact_match", "model": "Q8_0", **gain}, "better than before training"),
        ]
    if task.kind == "extract":
        valid = {"metric": "valid_schema", "model": "Q8_0", "min": 0.9}
        return [
            (valid, "share of answers that satisfy the schema"),
            ({"metric": "field_f1", "model": "Q8_0", **gain}, "better than before training"),
        ]
    counts = labels_of(task)
    commonest = max(counts.values()) / sum(counts.values())
    least = round(min(max(0.5, commonest + 0.1), (1 + commonest) / 2), 2)
    accuracy: dict[str, object] = {"metric": "accuracy", "model": "Q8_0"}
    linear: dict[str, object] = {"against": "tfidf_logistic", "min_gain": 0, "confidence": 0.5}
    gates = [
        (accuracy | {"min": least}, f"the commonest label alone has {percent(commonest, 0)}: set what you need"),
        (accuracy | linear, "else a linear model does as well"),
    ]
    drop = next((drop for drop in DROPS if drop_bound(1, 0, rows) <= drop), None)
    loss: dict[str, object] = {"against": "adapter", "max_drop": drop}
    return [*gates, (accuracy | loss, "quantization costs at most that")] if drop is not None else gates


def _redacted(shares: Mapping[str, float]) -> list[str]:
    return [kind for kind in ("email", "phone") if shares.get(kind, 0) > 0]


def _longest(task: TaskProposal) -> int:
    """Tokens of the longest row of the sample, estimated from above."""
    characters = max((len(question) + len(answer) for question, answer in task.pairs), default=0)
    return round(characters / CHARACTERS_A_TOKEN) + 50


def _wrapped(head: str, values: Mapping[str, str]) -> Iterator[str]:
    """A mapping in braces, over as many lines as it takes."""
    entries = [f"{_flow(key)}: {_flow(value)}" for key, value in values.items()]
    line = head + "{"
    for place, entry in enumerate(entries):
        piece = entry + (", " if place < len(entries) - 1 else "}")
        if len(line) + len(piece) > WIDTH and line.strip():
            yield line.rstrip()
            line = " " * (len(head) + 1)
        line += piece
    yield line


def line(key: str, value: object, comment: str = "") -> str:
    """`key: value  # comment`; the key `  -` begins an entry of a list."""
    plain = yaml.safe_dump(value, allow_unicode=True, width=10**9).removesuffix("...\n").strip()
    text = plain if isinstance(value, str) and "\n" not in value else _flow(value)
    written = f"{key} {text}" if key.endswith("-") else f"{key}: {text}"
    return f"{written:<{_COMMENT_AT}}  # {comment}" if comment else written


def _flow(value: object) -> str:
    """A value as YAML on one line, to stand in a list or mapping on one line too."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_flow(key)}: {_flow(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, str) and "\n" in value:
        return json.dumps(value, ensure_ascii=False)
    # in a list, so that what may stand in no list or mapping on one line is quoted
    return yaml.safe_dump([value], default_flow_style=True, allow_unicode=True, width=10**9)[1:-2]
