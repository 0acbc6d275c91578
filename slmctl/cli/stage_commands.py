"""The commands of the stages, and run, promote and fetch."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slmctl.errors import GateError, SlmctlError, UsageError
from slmctl.network import guard

if TYPE_CHECKING:
    from slmctl.pipeline.graph import Project, StageRequest
    from slmctl.pipeline.runner import Outcome
from slmctl.cli.group import (
    CHAIN,
    PATH,
    Options,
    artifact_option,
    config_options,
    is_terminal,
    key_option,
    offline_option,
    open_project,
    print_artifact,
    print_result,
    read_settings,
    say_outcome,
    stage_options,
    terminal,
    value_option,
)

LONG_S = 86_400  # of a run, before which people are asked
# by what a stage leaves
ANSWERS = {"encode": "slmctl serve encoder", "quantize": "slmctl serve gguf"}
Decorate = Callable[[Callable[..., Any]], Callable[..., Any]]


def plain_stage(name: str, help: str, *flags: Decorate) -> click.Command:
    """Returns the command of a stage that only has `flags` for config keys
    and artifacts, and the shared options.
    """

    @stage_options
    @click.pass_obj
    def command(options: Options) -> None:
        _run_stage(options, open_project(options), name)

    for flag in reversed(flags):
        command = flag(command)
    command.__doc__ = help
    return click.command(name)(command)


def _to_use(role: str, what: str, more: str = "") -> Decorate:
    return artifact_option(role, f"{what} to use in place of the config's{more}.")


pull = plain_stage(
    "pull", "Fetch and check the base model (from the network, unless it is a path)."
)
encode = plain_stage(
    "encode",
    """Fit linear models on a sentence encoder and on words; for JSON, a tagger on it.

    The encoder is fetched, unless it is a path or was before. The fit takes seconds. Then the
    encoder learns the rows too, for minutes (not with encode.tune=false), and stays so where
    held-out rows are likelier by it. Of a task of kind extract it learns to tag the words of
    each field. The answers stand beside the trained model's in the report, and are hard to
    beat.
    """,
    _to_use("prepared", "A prepared data set"),
)
sum_ = plain_stage(
    "sum",
    """Weigh GGUF file, encoder and words by validation rows, and leave out what does not help.

    The validation rows are answered by the GGUF files first. `evaluate` does all this itself.
    """,
    _to_use("encoder", "An encoder"),
    _to_use("prepared", "A prepared data set"),
)
merge = plain_stage(
    "merge",
    "Fold the adapter into the base's weights.",
    _to_use("base", "A base"),
    _to_use("adapter", "An adapter"),
)
quantize = plain_stage(
    "quantize",
    "Write GGUF files that llama.cpp runs.",
    key_option("--type", multiple=True, metavar="TYPE", key="quantize.types"),
    _to_use("merged", "A merged model"),
    _to_use("prepared", "A prepared data set"),
    _to_use("adapter", "An adapter", ", with quantize.lora_gguf"),
)


@click.command()
@click.option(
    "--plan",
    "plan_only",
    is_flag=True,
    help="Ask for 20 rows, print what all of them will cost and take, and stop.",
)
@key_option("--max-cost", type=float, key="label.max_cost")
@key_option("--max-rows", type=int, key="label.max_rows")
@key_option("--max-error", metavar="SHARE", key="label.max_error")
@stage_options
@click.pass_obj
def label(options: Options, plan_only: bool) -> None:
    """Label rows that have no answer, by a larger model, with a price before and a bound after.

    Rows go to the endpoints that label.teachers names, none that is sensitive. What was answered is
    never asked again: a run that was killed, or that stopped at a ceiling, goes on with the same
    command.
    """
    if plan_only:
        from slmctl.pipeline import plan
        from slmctl.stages.label import stage

        project = open_project(options)
        plan.require(project, ["label"])
        print_result(options, *stage.plan(project))
    else:
        _run_stage(options, open_project(options), "label")


@click.command()
@click.option(
    "--explain",
    is_flag=True,
    help="Print the format of each source and three of its records, and stop.",
)
@artifact_option("base", "A base to use in place of the config's.")
@artifact_option("labelled", "Labels of a teacher to use in place of the config's.")
@stage_options
@click.pass_obj
def prepare(options: Options, explain: bool) -> None:
    """Turn raw rows into training, validation, calibration and test records."""
    if explain:
        from slmctl.stages.prepare import stage

        section, model = stage.reading(open_project(options))
        _inspect("prepare", "prepare", "explain", section, {"base": model})
        return
    _run_stage(options, open_project(options), "prepare")


@click.command()
@key_option("--epochs", metavar="N|auto", key="finetune.epochs")
@key_option("--learning-rate", metavar="N|auto", key="finetune.learning_rate")
@key_option("--seed", type=int, key="finetune.seed")
@click.option(
    "--preview",
    type=click.IntRange(min=1),
    metavar="N",
    help="Print N training records token by token, and stop.",
)
@artifact_option("base", "A base to use in place of the config's.")
@artifact_option("prepared", "A prepared data set to use in place of the config's.")
@stage_options
@click.pass_obj
def finetune(options: Options, preview: int | None) -> None:
    """Train a LoRA adapter on the training records."""
    from slmctl.stages.finetune import distributed

    project = open_project(options)
    distributed.join_slurm()
    if preview is not None:
        project.stage("finetune").import_first()
        request = project.stage("finetune").request()
        _inspect("finetune", "encoding", "preview", request.section, request.inputs, count=preview)
        return
    _run_stage(options, project, "finetune")


@click.command()
@click.argument("compared", nargs=-1, metavar="[MODEL]...")
@value_option("--model", "models", multiple=True, metavar="MODEL", key="evaluate.models")
@click.option(
    "--compare",
    is_flag=True,
    help="Set the MODELs side by side, in pairs on the same rows: models, or reports.",
)
@value_option(
    "--split", type=click.Choice(["validation", "calibration", "test"]), key="predict.split"
)
@click.option(
    "--against",
    metavar="URL",
    help="Compare with a generalist: send the rows to this OpenAI-compatible endpoint too; "
    "or the model's name of an endpoint of slmctl.yaml.",
)
@click.option("--against-model", metavar="NAME", help="Name of the generalist at the endpoint.")
@value_option(
    "--against-api",
    type=click.Choice(["chat", "decisions", "systemone"]),
    metavar="API",
    key="predict.endpoint.api",
)
@click.option(
    "--against-key-env", metavar="NAME", help="Environment variable that holds the endpoint's key."
)
@click.option(
    "--against-shots",
    type=click.IntRange(min=1),
    metavar="N",
    help="Training records in its few-shot prompt; by default one a label, or 8 without labels.",
)
@click.option(
    "--judge",
    metavar="NAME",
    help="Ask a judge about pairs of answers, those that people judged first: the "
    "model's name of an endpoint of slmctl.yaml, or a GGUF file of your own, which may read what "
    "is sensitive.",
)
@click.option(
    "--plan",
    "plan_only",
    is_flag=True,
    help="With --judge: ask about 10 pairs, print what all of them will cost, and stop.",
)
@artifact_option("prepared", "A prepared data set to use in place of the config's.")
@stage_options
@click.pass_obj
def evaluate(
    options: Options,
    compared: tuple[str, ...],
    models: tuple[str, ...],
    compare: bool,
    split: str | None,
    against: str | None,
    against_model: str | None,
    against_api: str | None,
    against_key_env: str | None,
    against_shots: int | None,
    judge: str | None,
    plan_only: bool,
) -> None:
    """Measure models on held-out rows, beside the baselines, and check the gates.

    --model takes base, adapter, merged, gguf, lora (the adapter's own GGUF on the base's), or the
    path or id of a model; repeatable. --compare A B C is the same for several, and also takes
    reports, which stand for the models that they measured. --against uses the network, for that
    host alone; records marked sensitive are never sent.
    """
    from slmctl.pipeline import plan, predictions
    from slmctl.stages.evaluate import stage

    models = (*models, *compared)
    if compared and not compare:
        raise UsageError(
            "models stand after --compare", hint=f"slmctl evaluate --compare {' '.join(compared)}"
        )
    if compare and not models:
        raise UsageError(
            "--compare needs models or reports", hint="slmctl evaluate --compare adapter gguf"
        )
    by_url = against is not None and "://" in against
    if plan_only and judge is None:
        raise UsageError(
            "--plan says the cost of a judge", hint="slmctl evaluate --judge NAME --plan"
        )
    if by_url != (against_model is not None):
        raise UsageError(
            "--against and --against-model come together",
            hint="--against https://host/v1 --against-model NAME",
        )
    if against:
        guard.require(
            f"--against {against}", hint="leave --against out to measure the models here alone"
        )
    project = open_project(options)
    if not against and not models:
        plan.require(project, ["evaluate"])
    general = None
    if against and against_model:
        general = predictions.endpoint_at(
            project, against, against_model, against_shots, api=against_api, key_env=against_key_env
        )
    elif against:
        general = predictions.endpoint_named(project, against, against_shots)
    named = project, models or project.config.measured, split, general
    if plan_only and judge is not None:
        _say_cost(options, project, judge, stage.request_of(*named, get=project.found))
        return
    outcome = say_outcome("evaluate", stage.evaluate(*named))
    if judge is not None:
        from slmctl.stages.label import judge as judging

        judging.ask(project, judge, outcome.artifact)
        outcome = say_outcome("evaluate", stage.evaluate(*named))
    print_artifact(options, outcome.artifact)
    stage.show(project, outcome.artifact, only_measured=bool(models))


def _say_cost(options: Options, project: Project, judge: str, request: StageRequest) -> None:
    """Print what a judge of a report costs, which must be there: making it may cost more."""
    from slmctl.stages.label import judge as judging

    lines = judging.plan(project, judge, project.found(request, asker="evaluate --judge --plan"))
    print_result(options, lines, lines)


@click.command()
@key_option("--max-error", metavar="SHARE", key="calibrate.max_error")
@key_option("--out-of-scope", metavar="LABEL", key="calibrate.out_of_scope")
@artifact_option("predictions", "Predictions on calibration rows to use in place of the config's.")
@artifact_option(
    "outside",
    "Predictions with out-of-scope rows, of validation, beside --predictions.",
    "predictions",
)
@click.option(
    "--endpoint",
    metavar="NAME",
    help="Measure an endpoint of slmctl.yaml, by its model's name: from which "
    "probability on may its answers be acted on? Rows marked sensitive are never sent.",
)
@stage_options
@click.pass_obj
def calibrate(options: Options, endpoint: str | None) -> None:
    """Fit the policy that keeps or escalates answers, on calibration rows."""
    project = open_project(options)
    if endpoint is not None:
        from slmctl.pipeline import predictions
        from slmctl.stages.calibrate import stage

        if options.named:
            raise UsageError(
                f"--endpoint asks {endpoint} for the answers, and --{next(iter(options.named))} "
                "names others",
                hint="leave one of them out",
            )
        guard.require(
            f"--endpoint {endpoint}",
            hint="leave --endpoint out to fit the policy of the model here",
        )
        against = predictions.endpoint_named(project, endpoint)
        outcome = say_outcome("calibrate", stage.calibrate(project, against=against))
        stage.show(outcome.artifact)
        print_artifact(options, outcome.artifact)
        return
    if "outside" in options.named and "predictions" not in options.named:
        raise UsageError(
            "--outside goes with --predictions", hint="--predictions PATH --outside PATH"
        )
    print_artifact(options, _made(options, project, "calibrate").artifact)


@click.command()
@key_option("--to", metavar="TARGET", key="publish.to")
@click.option(
    "--plan", "plan_only", is_flag=True, help="Print the files and their target, and send nothing."
)
@artifact_option("gguf", "A gguf artifact to use in place of the config's.")
@artifact_option("report", "A report to use in place of the config's.")
@artifact_option("labelled", "Labels of a teacher to use in place of the config's.")
@artifact_option("policy", "A policy for the release to carry in place of the config's.")
@stage_options
@click.pass_obj
def publish(options: Options, plan_only: bool) -> None:
    """Build a release and send it to its target, after the checks for leaks and gates.

    Refused are files that no passing report measured, secrets and personal data in any text of the
    release, and a model that completes rare strings of its training rows. TARGET is dir:FOLDER,
    hf:ORG/NAME (private, unless publish.public) or s3://BUCKET/PREFIX.
    """
    from slmctl.pipeline import plan, runner

    project = open_project(options)
    plan.require(project, ["publish"])
    if not plan_only:
        print_artifact(options, _made(options, project, "publish").artifact)
        return
    from slmctl.stages.publish import stage

    outcome = runner.make(project, "publish")
    say_outcome("publish", outcome)
    print_result(options, *stage.plan(project, outcome.artifact))


@click.command()
@click.argument("release")
@click.option("--tag", required=True, metavar="TAG", help="The tag, such as production.")
@click.option("--registry", metavar="DIR", help="The folder of releases; the config's by default.")
@config_options
@click.pass_obj
def promote(options: Options, release: str, tag: str, registry: str | None) -> None:
    """Point a tag, such as production, at a release, atomically.

    RELEASE is VERSION, PROJECT@VERSION or another tag, or dir:REGISTRY#VERSION. Promote an older
    release to roll back. Refuses a release that fails its gates: those of its publication, or those
    of slmctl.yaml today.
    """
    from slmctl import config
    from slmctl.pipeline import system_errors
    from slmctl.releases import registry as module

    root = options.directory.resolve()
    project = open_project(options) if (root / config.FILENAME).exists() else None
    if release.startswith("dir:") and registry is None:
        registry, _, release = release.partition("#")
    if registry is None and (project is None or not project.config.publish.to.startswith("dir:")):
        raise UsageError(
            "promote needs a registry in a folder: publish.to names none", hint="--registry DIR"
        )
    folder, _ = module.parse(registry or project.config.publish.to, root)  # type: ignore[union-attr]
    chosen = module.find(folder, release)
    same = project is not None and project.config.project == chosen.metrics["project"]
    with system_errors.spoken("promote", folder):
        made = module.promote(
            folder, chosen, tag, beside=project.config.gates if project and same else ()
        )
    before = f", before that {made.previous}" if made.previous else ""
    terminal().say(f"{made.project}: {tag} is {made.version}{before}")
    terminal().write(f"{chosen.path}\n")


@click.command()
@click.argument("source")
@click.argument("folder", required=False, type=PATH)
@click.option(
    "--key",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="PUB",
    help="Public key that must have signed it.",
)
@offline_option
@config_options
@click.pass_obj
def fetch(options: Options, source: str, folder: Path | None, key: Path | None) -> None:
    """Download a release from its target and verify every byte.

    SOURCE is a target as for publish, and after # a version or tag, such as
    dir:./registry#production, hf:ORG/NAME#1.0 or s3://BUCKET/PREFIX#PROJECT@1.0. FOLDER is
    PROJECT-VERSION by default.
    """
    from slmctl import config
    from slmctl.pipeline import system_errors
    from slmctl.releases import signing, targets

    root = options.directory.resolve()
    path = root / config.FILENAME
    section = read_settings(options).publish
    to, _, name = source.partition("#")
    settings = targets.Settings(root, hosts=tuple(section.allowed_hosts))
    check = (lambda place: signing.verify(place, key, name=source)) if key else (lambda place: None)
    with (
        system_errors.spoken("fetch", folder.absolute() if folder else root),
        guard.written_down(root if path.exists() else None, "fetch"),
        targets.opened(to, settings, purpose="fetch") as target,
    ):
        release = targets.fetch(
            target, name, folder.absolute() if folder else None, into=root, check=check
        )
    if key is not None:
        terminal().say(f"  signed by the holder of {key.name}")
    terminal().write(f"{release.path}\n")


@click.command()
@click.option(
    "--until",
    type=click.Choice(CHAIN),
    default="publish",
    show_default=True,
    help="The last stage to run.",
)
@click.option(
    "--plan",
    "plan_only",
    is_flag=True,
    help="Print the stages that would run and what they take, and stop.",
)
@click.option(
    "--yes",
    is_flag=True,
    help="Train also for more than a day, or where a linear model leaves next to nothing to win, "
    "and release also what "
    "a cheap model beats.",
)
@stage_options
@click.pass_obj
def run(options: Options, until: str, plan_only: bool, yes: bool) -> None:
    """Run every stage that is not current, from pull to publish.

    What can be known is checked first: paths, packages, the GGUF converter, the disk, and gates
    that cannot pass. --plan prints the checks, and for each stage whether it will run, its disk,
    memory and time. Before a run of more than a day it asks, or without a terminal says so. Before
    a training that has next to nothing to win over a linear model, and before the release of a
    model that a cheap one surely beats and no gate compares with it, it asks, and without a
    terminal it ends with 5.
    """
    from slmctl.cli import base_table, matmul_rates, run_plan
    from slmctl.pipeline import plan

    project = open_project(options)
    names = CHAIN[: CHAIN.index(until) + 1]
    if plan_only:
        planned = plan.plan(project, names, base_table.measured_rates())
        print_result(options, planned.to_json(), run_plan.lines(planned))
        terminal().say(run_plan.LEGEND)
        planned.require()
        return
    planned = plan.plan(project, names, matmul_rates.stored())
    for line in run_plan.summary(planned):
        terminal().say(line)
    planned.require()
    if planned.seconds > LONG_S and not yes:
        _ask_about_time(planned.seconds)
    for stage in planned.stages:
        project.stage(stage.name).import_first()
    begun, current = time.monotonic(), {stage.name for stage in planned.stages if stage.current}
    for stage in planned.stages:
        if not yes and stage.name not in current:
            _ask_before(project, stage.name)
        outcome = _made(options, project, stage.name)
    if len(current) < len(planned.stages):
        terminal().say(f"{'in all':<9} {terminal().duration(time.monotonic() - begun):>12}")
    if planned.stages[-1].name != until:
        terminal().say(f"  nothing is trained: publish.model is linear, so there is no {until}")
    if until in ANSWERS:
        terminal().say(
            f"next: {ANSWERS[until]}    # answers with it; slmctl run goes on to {CHAIN[-1]}"
        )
    elif until != CHAIN[-1]:
        terminal().say(f"next: slmctl run    # goes on to {CHAIN[-1]}")
    print_artifact(options, outcome.artifact)


def _ask_about_time(seconds: float) -> None:
    """Ask whether to begin a run of more than a day; without a terminal, say that it is begun.

    Raises:
        GateError: The answer is no.
    """
    text = f"this run takes about {terminal().duration(seconds)}"
    if not is_terminal():
        terminal().say(
            f"  note: {text}: a smaller base, fewer epochs or shorter texts make it shorter"
        )
    elif not click.confirm(f"  {text}: begin?", default=False, err=True):
        hint = "a smaller base, fewer epochs, shorter texts; or --yes"
        raise GateError(f"{text}, and was not begun", reason="declined", hint=hint)


def _ask_before(project: Project, name: str) -> None:
    """Ask whether to run a stage that says a reason against it.

    Raises:
        GateError: The answer is no, or nobody can be asked.
    """
    if (doubt := project.stage(name).doubt()) is None:
        return
    for line in (doubt.text, *doubt.lines):
        terminal().say(f"  {line}")
    if is_terminal() and click.confirm(f"  {doubt.question}", default=False, err=True):
        return
    raise GateError(doubt.text, reason=doubt.reason, hint=doubt.hint)


def _run_stage(options: Options, project: Project, name: str) -> None:
    from slmctl.pipeline import plan

    project.stage(name).import_first()
    plan.require(project, [name])
    print_artifact(options, _made(options, project, name).artifact)


def _made(options: Options, project: Project, name: str) -> Outcome:
    """Run a stage, print its line and its results, and rewrite the
    report's page if that shows the stage.
    """
    from slmctl.pipeline import runner
    from slmctl.stages.evaluate import report_view

    stage, outcome = project.stage(name), say_outcome(name, runner.make(project, name))
    try:
        stage.after(outcome.artifact, current=outcome.current)
    except GateError:
        if stage.stands:
            print_artifact(options, outcome.artifact)
        raise
    if stage.on_page:
        with contextlib.suppress(SlmctlError):  # no report has been made with this config and data
            report_view.write(project, project.artifact("report"))
    return outcome


def _inspect(
    stage: str, module: str, function: str, section: Any, inputs: Mapping[str, Any], **settings: Any
) -> None:
    """Verify the inputs that exist, and print the text that a function
    of a stage's module returns for them.
    """
    import importlib

    from slmctl.artifacts import artifact
    from slmctl.pipeline import system_errors

    for artifact_in in filter(None, inputs.values()):
        artifact.require_whole(artifact_in)
    try:
        inspect = getattr(importlib.import_module(f"slmctl.stages.{stage}.{module}"), function)
        text = inspect(section, **inputs, **settings)
    except ModuleNotFoundError as error:
        raise system_errors.missing(error, stage) from error
    terminal().write(terminal().clean(text) + "\n")


COMMANDS = (
    pull,
    label,
    prepare,
    encode,
    finetune,
    merge,
    quantize,
    sum_,
    evaluate,
    calibrate,
    publish,
    promote,
    fetch,
    run,
)
