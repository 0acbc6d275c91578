"""The commands of the stages, and run, promote and fetch."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slmctl.errors import GateError, IntegrityError, SlmctlError, UsageError
from slmctl.network import guard

if TYPE_CHECKING:
    from slmctl.artifacts.artifact import Artifact
    from slmctl.pipeline.resolve import Project
    from slmctl.pipeline.runner import Outcome
from slmctl.cli.group import (
    CHAIN,
    PATH,
    Options,
    artifact_option,
    config_options,
    import_trainer_first,
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


@click.command()
@stage_options
@click.pass_obj
def pull(options: Options) -> None:
    """Fetch and check the base model (from the network, unless it is a path)."""
    _run_stage(options, "pull")


@click.command()
@click.option("--plan", "plan_only", is_flag=True,
              help="Ask for 20 rows, print what all of them will cost and take, and stop.")  # fmt: skip
@key_option("--max-cost", type=float, key="label.max_cost")
@key_option("--max-rows", type=int, key="label.max_rows")
@key_option("--max-error", metavar="SHARE", key="label.max_error")
@stage_options
@click.pass_obj
def label(options: Options, plan_only: bool) -> None:
    """Label rows that have no answer, by a larger model, with a price before and a bound after.

    Rows go to the endpoints that label.teachers names, none that is sensitive. What was answered is never asked
    again: a run that was killed, or that stopped at a ceiling, goes on with the same command.
    """
    from slmctl.pipeline import chains, preflight

    if plan_only:
        project = open_project(options)
        preflight.require(project, ["label"])
        print_result(options, *chains.plan_of_label(project))
    else:
        _run_stage(options, "label")


@click.command()
@click.option("--explain", is_flag=True, help="Print the format of each source and three of its records, and stop.")
@artifact_option("base", "A base to use in place of the config's.")
@artifact_option("labelled", "Labels of a teacher to use in place of the config's.")
@stage_options
@click.pass_obj
def prepare(options: Options, explain: bool) -> None:
    """Turn raw rows into training, validation, calibration and test records."""
    if explain:
        from slmctl.pipeline import chains, resolve

        project = open_project(options)
        chains.gather_sources(project)
        section, model = resolve.reading(project)
        _inspect("prepare", "prepare", "explain", section, {"base": model})
        return
    _run_stage(options, "prepare")


@click.command()
@artifact_option("prepared", "A prepared data set to use in place of the config's.")
@stage_options
@click.pass_obj
def encode(options: Options) -> None:
    """Fit a linear model on a frozen sentence encoder.

    The encoder is fetched, unless it is a path or was before. The fit takes seconds. The answers stand beside the
    trained model's in the report: where subjects decide, they are hard to beat.
    """
    _run_stage(options, "encode")


@click.command()
@key_option("--epochs", type=float, key="finetune.epochs")
@key_option("--learning-rate", type=float, key="finetune.learning_rate")
@key_option("--seed", type=int, key="finetune.seed")
@click.option(
    "--preview", type=click.IntRange(min=1), metavar="N", help="Print N training records token by token, and stop."
)
@artifact_option("base", "A base to use in place of the config's.")
@artifact_option("prepared", "A prepared data set to use in place of the config's.")
@stage_options
@click.pass_obj
def finetune(options: Options, preview: int | None) -> None:
    """Train a LoRA adapter on the training records."""
    from slmctl.pipeline import resolve
    from slmctl.stages.finetune import distributed

    project = open_project(options)
    distributed.join_slurm()
    import_trainer_first(project)
    if preview is not None:
        request = resolve.resolve_stage(project, "finetune")
        _inspect("finetune", "encoding", "preview", request.section, request.inputs, count=preview)
        return
    _run_stage(options, "finetune", project)


@click.command()
@artifact_option("base", "A base to use in place of the config's.")
@artifact_option("adapter", "An adapter to use in place of the config's.")
@stage_options
@click.pass_obj
def merge(options: Options) -> None:
    """Fold the adapter into the base's weights."""
    _run_stage(options, "merge")


@click.command()
@key_option("--type", multiple=True, metavar="TYPE", key="quantize.types")
@artifact_option("merged", "A merged model to use in place of the config's.")
@artifact_option("prepared", "A prepared data set to use in place of the config's.")
@artifact_option("adapter", "An adapter to use in place of the config's, with quantize.lora_gguf.")
@stage_options
@click.pass_obj
def quantize(options: Options) -> None:
    """Write GGUF files that llama.cpp runs."""
    _run_stage(options, "quantize")


@click.command()
@click.argument("compared", nargs=-1, metavar="[MODEL]...")
@value_option("--model", "models", multiple=True, metavar="MODEL", key="evaluate.models")
@click.option(
    "--compare", is_flag=True, help="Set the MODELs side by side, in pairs on the same rows: models, or reports."
)
@value_option("--split", type=click.Choice(["validation", "calibration", "test"]), key="predict.split")
@click.option(
    "--against", metavar="URL", help="Compare with a generalist: send the rows to this OpenAI-compatible endpoint too; "
    "or the model's name of an endpoint of slmctl.yaml."
)  # fmt: skip
@click.option("--against-model", metavar="NAME", help="Name of the generalist at the endpoint.")
@value_option(
    "--against-api", type=click.Choice(["chat", "decisions", "systemone"]), metavar="API", key="predict.endpoint.api"
)
@click.option("--against-key-env", metavar="NAME", help="Environment variable that holds the endpoint's key.")
@click.option(
    "--against-shots",
    type=click.IntRange(min=1),
    metavar="N",
    help="Training records in its few-shot prompt; by default one a label, or 8 without labels.",
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
) -> None:
    """Measure models on held-out rows, beside the baselines, and check the gates.

    --model takes base, adapter, merged, gguf, lora (the adapter's own GGUF on the base's), or the path or id of
    a model; repeatable. --compare A B C is the same for several, and also takes reports, which stand for the
    models that they measured. --against uses the network, for that host alone; records marked sensitive are
    never sent.
    """
    from slmctl.pipeline import chains, preflight

    models = (*models, *compared)
    if compared and not compare:
        raise UsageError("models stand after --compare", hint=f"slmctl evaluate --compare {' '.join(compared)}")
    if compare and not models:
        raise UsageError("--compare needs models or reports", hint="slmctl evaluate --compare adapter gguf")
    by_url = against is not None and "://" in against
    if by_url != (against_model is not None):
        raise UsageError(
            "--against and --against-model come together", hint="--against https://host/v1 --against-model NAME"
        )
    if against:
        guard.require(f"--against {against}", hint="leave --against out to measure the models here alone")
    project = open_project(options)
    if not against and not models:
        preflight.require(project, ["evaluate"])
    general = None
    if against and against_model:
        own = project.config.predict.endpoint
        if own.url not in (None, against):  # its key, API and prices are for its own host
            own = own.model_copy(update={"key_env": None, "api": "chat", "prices": None})
        flags = {"api": against_api, "key_env": against_key_env}
        asking = own.model_copy(update={name: value for name, value in flags.items() if value is not None})
        general = chains.EndpointModel(against, against_model, against_shots, asking)
    if against and general is None:
        general = chains.endpoint_named(project, against, against_shots)
    outcome = say_outcome("evaluate", chains.evaluate(project, models or project.config.measured, split, general))
    print_artifact(options, outcome.artifact)
    _show_report(project, outcome.artifact, only_measured=bool(models))
    _enforce_gates(project, outcome.artifact, only_measured=bool(models))


@click.command()
@key_option("--max-error", metavar="SHARE", key="calibrate.max_error")
@key_option("--out-of-scope", metavar="LABEL", key="calibrate.out_of_scope")
@artifact_option("predictions", "Predictions on calibration rows to use in place of the config's.")
@artifact_option("outside", "Predictions with out-of-scope rows, of validation, beside --predictions.")
@click.option("--endpoint", metavar="NAME", help="Measure an endpoint of slmctl.yaml, by its model's name: from which "
              "probability on may its answers be acted on? Rows marked sensitive are never sent.")  # fmt: skip
@stage_options
@click.pass_obj
def calibrate(options: Options, endpoint: str | None) -> None:
    """Fit the policy that keeps or escalates answers, on calibration rows."""
    from slmctl.pipeline import chains

    project = open_project(options)
    if endpoint is not None:
        guard.require(f"--endpoint {endpoint}", hint="leave --endpoint out to fit the policy of the model here")
        outcome = say_outcome("calibrate", chains.calibrate(project, against=chains.endpoint_named(project, endpoint)))
        _show_policy(outcome.artifact)
        print_artifact(options, outcome.artifact)
        return
    if "outside" in options.named and "predictions" not in options.named:
        raise UsageError("--outside goes with --predictions", hint="--predictions PATH --outside PATH")
    print_artifact(options, _calibrate(project).artifact)


@click.command()
@key_option("--to", metavar="TARGET", key="publish.to")
@click.option("--plan", "plan_only", is_flag=True, help="Print the files and their target, and send nothing.")
@artifact_option("gguf", "A gguf artifact to use in place of the config's.")
@artifact_option("report", "A report to use in place of the config's.")
@artifact_option("labelled", "Labels of a teacher to use in place of the config's.")
@stage_options
@click.pass_obj
def publish(options: Options, plan_only: bool) -> None:
    """Build a release and send it to its target, after the checks for leaks and gates.

    Refused are files that no passing report measured, secrets and personal data in any text of the
    release, and a model that completes rare strings of its training rows. TARGET is dir:FOLDER,
    hf:ORG/NAME (private, unless publish.public) or s3://BUCKET/PREFIX.
    """
    from slmctl.pipeline import chains, preflight
    from slmctl.reports import scoreboard

    project = open_project(options)
    preflight.require(project, ["publish"])
    if not plan_only:
        print_artifact(options, _publish(project).artifact)
        return
    outcome, plan = chains.plan_of_publish(project)
    say_outcome("publish", outcome)
    print_result(options, plan, scoreboard.plan(plan))


@click.command()
@click.argument("release")
@click.option("--tag", required=True, metavar="TAG", help="The tag, such as production.")
@click.option("--registry", metavar="DIR", help="The folder of releases; the config's by default.")
@config_options
@click.pass_obj
def promote(options: Options, release: str, tag: str, registry: str | None) -> None:
    """Point a tag, such as production, at a release, atomically.

    RELEASE is VERSION, PROJECT@VERSION or another tag. Promote an older release to roll back. Refuses a
    release that fails its gates: those of its publication, or those of slmctl.yaml today.
    """
    from slmctl import config
    from slmctl.pipeline import system_errors
    from slmctl.releases import registry as module

    root = options.directory.resolve()
    project = open_project(options) if (root / config.FILENAME).exists() else None
    if registry is None and (project is None or not project.config.publish.to.startswith("dir:")):
        raise UsageError("promote needs a registry in a folder: publish.to names none", hint="--registry DIR")
    folder, _ = module.parse(registry or project.config.publish.to, root)  # type: ignore[union-attr]
    chosen = module.find(folder, release)
    same = project is not None and project.config.project == chosen.metrics["project"]
    with system_errors.spoken("promote", folder):
        made = module.promote(folder, chosen, tag, beside=project.config.gates if project and same else ())
    before = f", before that {made.previous}" if made.previous else ""
    terminal().say(f"{made.project}: {tag} is {made.version}{before}")
    terminal().write(f"{chosen.path}\n")


@click.command()
@click.argument("source")
@click.argument("folder", required=False, type=PATH)
@click.option("--key", type=click.Path(path_type=Path, exists=True, dir_okay=False), metavar="PUB",
              help="Public key that must have signed it.")  # fmt: skip
@offline_option
@config_options
@click.pass_obj
def fetch(options: Options, source: str, folder: Path | None, key: Path | None) -> None:
    """Download a release from its target and verify every byte.

    SOURCE is a target as for publish, and after # a version or tag, such as dir:./registry#production,
    hf:ORG/NAME#1.0 or s3://BUCKET/PREFIX#PROJECT@1.0. FOLDER is PROJECT-VERSION by default.
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
        release = targets.fetch(target, name, folder.absolute() if folder else None, into=root, check=check)
    if key is not None:
        terminal().say(f"  signed by the holder of {key.name}")
    terminal().write(f"{release.path}\n")


@click.command()
@click.option("--until", type=click.Choice(CHAIN), default="publish", show_default=True, help="The last stage to run.")
@click.option("--plan", "plan_only", is_flag=True, help="Print the stages that would run and what they take, and stop.")
@click.option("--yes", is_flag=True, help="Train also where a linear model leaves next to nothing to win.")
@stage_options
@click.pass_obj
def run(options: Options, until: str, plan_only: bool, yes: bool) -> None:
    """Run every stage that is not current, from pull to publish.

    What can be known is checked first: paths, packages, the GGUF converter, the disk, and gates that cannot
    pass. --plan prints the checks, and for each stage whether it will run, its disk, memory and time. Before a
    training that has next to nothing to win over a linear model it asks, and without a terminal it ends with 5.
    """
    from slmctl.cli import base_table, matmul_rates, run_plan
    from slmctl.pipeline import chains, preflight

    project = open_project(options)
    names = CHAIN[: CHAIN.index(until) + 1]
    if plan_only:
        plan = preflight.plan(project, names, base_table.measured_rates())
        print_result(options, plan.to_json(), run_plan.lines(plan))
        terminal().say(run_plan.LEGEND)
        plan.require()
        return
    plan = preflight.plan(project, names, matmul_rates.stored())
    for line in run_plan.summary(plan):
        terminal().say(line)
    plan.require()
    if CHAIN.index(until) >= CHAIN.index("finetune"):
        import_trainer_first(project)
    begun, current = time.monotonic(), {stage.name for stage in plan.stages if stage.current}
    for name in names:
        if getattr(project.config, name) is None and until != name:  # label, encode, calibrate
            continue
        match name:
            case "evaluate":
                outcome = say_outcome(name, chains.evaluate(project, project.config.measured))
                _show_report(project, outcome.artifact)
                try:
                    _enforce_gates(project, outcome.artifact)
                except GateError:
                    print_artifact(options, outcome.artifact)  # the report exists, whatever it says
                    raise
            case "calibrate":
                outcome = _calibrate(project)
            case "publish":
                outcome = _publish(project)
            case _:
                if name == "finetune" and not yes and name not in current:
                    _ask_before_training(project)
                outcome = say_outcome(name, chains.run_stage(project, name))
    if len(current) < len(plan.stages):
        terminal().say(f"{'in all':<9} {terminal().duration(time.monotonic() - begun):>12}")
    print_artifact(options, outcome.artifact)


def _ask_before_training(project: Project) -> None:
    """Leave the linear model where next to nothing is to be won over it, and ask whether to train all the same.

    Raises:
        GateError: The answer is no, or nobody can be asked.
    """
    from slmctl.pipeline import linear_file

    if (cheaper := linear_file.nothing_to_win(project)) is None:
        return
    reason, kind = cheaper
    terminal().say(f"  {reason}")
    if kind == linear_file.KIND:
        weights = linear_file.written(project)
        terminal().say(f"  its weights: {weights}; {weights.with_name(linear_file.PROGRAM)} loads them")
    if sys.stdin.isatty() and click.confirm("  train all the same?", default=False, err=True):
        return
    take = linear_file.answers(kind)
    raise GateError(reason, hint=f"{take} takes that one; to train all the same: slmctl run --yes")


def _run_stage(options: Options, name: str, project: Project | None = None) -> None:
    from slmctl.pipeline import chains, preflight

    project = project or open_project(options)
    preflight.require(project, [name])
    print_artifact(options, say_outcome(name, chains.run_stage(project, name)).artifact)


def _inspect(stage: str, module: str, function: str, section: Any, inputs: Mapping[str, Any], **settings: Any) -> None:
    """Print what a module of a stage says of a section and of inputs, each of which is whole or not there."""
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


def _calibrate(project: Project) -> Outcome:
    """Fit the policy, say what it keeps, and write that into the page of the report, where there is one."""
    from slmctl.cli import report_view
    from slmctl.pipeline import chains, resolve

    if project.config.encode is not None and "predictions" not in project.named:
        try:
            of_encoder = chains.calibrate(project, "encoder").artifact
        except (GateError, IntegrityError) as error:
            terminal().say(f"  no policy for the encoder: {error.message} ({error.hint})")
        else:
            terminal().say("  the encoder (slmctl serve encoder, or before the model: --first-look)")
            _show_policy(of_encoder)
    outcome = say_outcome("calibrate", chains.calibrate(project))
    _show_policy(outcome.artifact)
    with contextlib.suppress(SlmctlError):  # no report has been made with this config and data
        report_view.write(project, resolve.find(project, "report"))
    return outcome


def _enforce_gates(project: Project, report: Artifact, *, only_measured: bool = False) -> None:
    from slmctl.pipeline import chains

    for verdict in chains.enforce_gates(project, report, only_measured=only_measured):
        terminal().say(f"  gate passed: {verdict.text}")


def _publish(project: Project) -> Outcome:
    from slmctl.pipeline import chains

    outcome, target, there = chains.publish(project)
    say_outcome("publish", outcome)
    terminal().say(f"  {'already in' if there else 'sent to'} {target}")
    return outcome


def _show_report(project: Project, report: Artifact, *, only_measured: bool = False) -> None:
    """Print the scoreboard, and write the page that has it with gates and training."""
    from slmctl.cli import report_view
    from slmctl.reports import scoreboard
    from slmctl.reports.evaluation_report import parse_report

    figures = parse_report(report.metrics, where=f"the manifest of {report.path}")
    head, rows = scoreboard.table(figures)
    title = f"{terminal().count(figures['n'], 'held-out row')} ({figures['split']})"
    terminal().table(title, head, rows, optional=scoreboard.optional(figures))
    for remark in figures["remarks"]:
        terminal().say(f"  note: {remark}")
    terminal().say(f"  page: {report_view.write(project, report, only_measured=only_measured)}")
    if linear := report_view.linear(project, figures):
        terminal().say(f"  {linear}")


def _show_policy(policy: Artifact) -> None:
    fit, percent = policy.metrics, terminal().percent
    terminal().say(
        f"  keeps {percent(fit['kept'])} of {fit['tested_on']} answers, {percent(fit['error'])} of them wrong, at most "
        f"{percent(fit['error_bound'])} with {percent(fit['confidence'], 0)} confidence (right: {fit['correct']})"
    )
    if "least_confidence" in fit:
        terminal().say(
            f"  act on what {fit['model']} answers with a probability of {fit['least_confidence']:.4f} and more"
        )
    if "out_of_scope_kept" in fit:
        terminal().say(
            f"  sends {percent(1 - fit['out_of_scope_kept'])} of {fit['out_of_scope_rows']} out-of-scope questions away"
        )


COMMANDS = (
    pull, label, prepare, encode, finetune, merge, quantize, evaluate, calibrate, publish, promote, fetch, run,
)  # fmt: skip
