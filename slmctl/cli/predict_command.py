"""`slmctl predict`: records of a split, or rows of files, answered by one model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from slmctl.cli import file_answers
from slmctl.cli.group import (
    Options,
    artifact_option,
    open_project,
    print_artifact,
    say_outcome,
    stage_options,
    value_option,
)
from slmctl.errors import UsageError


def _file_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say which file is answered, in which form, and
    where; the last one is shown first.
    """
    for decorate in (
        click.option(
            "--first-look",
            is_flag=True,
            help="Take the linear members' answer where the policy keeps it, and ask the file for "
            "the rest.",
        ),
        click.option(
            "--strict",
            is_flag=True,
            help="End with 3 where a row has an error; the answers are written all the same.",
        ),
        click.option(
            "--ray",
            metavar="ADDRESS",
            help="Answer on a Ray cluster, an engine a node: HOST:PORT, or local for one on this "
            "machine.",
        ),
        click.option(
            "--concurrency",
            type=click.IntRange(1, 256),
            default=8,
            show_default=True,
            help="Requests in flight at each endpoint.",
        ),
        click.option(
            "--engine-key-env",
            metavar="NAME",
            help="Environment variable that holds the endpoint's key.",
        ),
        click.option("--engine-model", metavar="NAME", help="Name of the model at the endpoint."),
        click.option(
            "--engine-url",
            "urls",
            multiple=True,
            metavar="URL",
            help="Send the rows to this OpenAI-compatible endpoint; repeatable.",
        ),
        click.option(
            "--shard",
            metavar="K/N",
            help="Answer the K-th of N parts of the rows; their outputs, concatenated in order, "
            "are the "
            "whole.",
        ),
        click.option(
            "--format",
            "format_name",
            metavar="FORMAT",
            help="Format of the file, such as csv; jsonl by default for -.",
        ),
        click.option(
            "--plain",
            is_flag=True,
            help="Write UTF-8, commas and LF, and not the encoding and delimiter of the file.",
        ),
        click.option(
            "--encoding",
            metavar="NAME",
            help="Encoding of the file, such as cp1252; recognised by default.",
        ),
        click.option(
            "--sheet",
            metavar="NAME",
            help="Sheet of a workbook or table of a database; the first or only one by default.",
        ),
        click.option(
            "--column", metavar="NAME", help="Input column of the file; the config's by default."
        ),
        click.option(
            "--output",
            "target",
            metavar="FILE",
            help="File for the answers: .csv, .tsv, .jsonl (these also as .gz), .parquet, .xlsx, "
            "or - for "
            "stdout.",
        ),
        click.option(
            "--input",
            "source",
            metavar="FILE",
            help="Answer the rows of this file (CSV, JSONL, Parquet, Excel and more), or these "
            "documents.",
        ),
    ):
        command = decorate(command)
    return command


@click.command()
@click.argument("model", required=False)
@value_option("--type", "type_name", metavar="TYPE", key="predict.type")
@value_option(
    "--split", type=click.Choice(["validation", "calibration", "test"]), key="predict.split"
)
@_file_options
@artifact_option("prepared", "A prepared data set to use in place of the config's.")
@stage_options
@click.pass_obj
def predict(
    options: Options,
    /,
    model: str | None,
    type_name: str | None,
    split: str | None,
    **files: Any,
) -> None:
    """Answer every row of one split, or of a file of yours, with one model.

    MODEL is base, adapter, merged, gguf, encoder or sum (gguf with linear members; the default for
    a file where a release answers by it, else gguf), or the path of an artifact, a release, a .gguf
    file or an HF folder. With --engine-url an endpoint answers, and MODEL gives the task contract
    alone; rows that their column "sensitive" marks are not sent. A run that was killed resumes.
    """
    if files["source"] is not None or files["target"] is not None:
        if files["source"] is None or files["target"] is None:
            raise UsageError(
                "--input and --output come together", hint="--input in.csv --output out.csv"
            )
        _answer(options, model, type_name, files, records=bool(split or options.named))
        return
    if any(value for name, value in files.items() if name != "concurrency"):
        raise UsageError(
            "--shard, --format, --column, --sheet, --encoding, --plain, --strict, --first-look, "
            "--ray and "
            "--engine-url are for a file",
            hint="--input FILE --output FILE",
        )
    from slmctl.pipeline import predictions, runner

    project = open_project(options)
    for step in predictions.predictions_of(project, model or "gguf", split, type_name):
        print_artifact(options, say_outcome(step.stage.name, runner.run(project, step)).artifact)


def _answer(
    options: Options,
    model: str | None,
    type_name: str | None,
    files: dict[str, Any],
    *,
    records: bool,
) -> None:
    """Check that the options go together, and answer a file."""
    urls, engine_model = files["urls"], files["engine_model"]
    if records:
        raise UsageError(
            "--split and --prepared select records of a data set, and --input names a file",
            hint="leave them out",
        )
    if bool(urls) != bool(engine_model):
        hint = "--engine-url https://host/v1 --engine-model NAME"
        raise UsageError("--engine-url and --engine-model come together", hint=hint)
    if files["ray"] and urls:
        raise UsageError(
            "--ray answers on nodes, and --engine-url asks endpoints", hint="leave one of them out"
        )
    if files["first_look"] and (urls or files["ray"] or model == "encoder"):
        raise UsageError(
            "--first-look goes before a model on this machine",
            hint="slmctl predict gguf --first-look",
        )
    file_answers.require_one_file(files["source"], files["target"])
    endpoints = None
    if urls:
        endpoints = file_answers.EndpointOptions(
            urls, engine_model, files["engine_key_env"], files["concurrency"]
        )
    work = {key: files[key] for key in ("source", "target", "column", "sheet", "encoding", "plain")}
    file_answers.answer(
        options,
        model,
        type_name,
        {**work, "format": files["format_name"]},
        shard=files["shard"] or "1/1",
        endpoints=endpoints,
        ray=files["ray"],
        first_look=files["first_look"],
        strict=files["strict"],
    )


COMMANDS = (predict,)
