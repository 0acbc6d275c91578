"""The command line: parse, call, print.

The only importer of click. Everything else is imported inside the callbacks, since `slmctl --help`
must come at once: pydantic alone costs as much as click.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slmctl import __version__
from slmctl.errors import GateError, IntegrityError, SlmctlError, UsageError
from slmctl.network import guard

if TYPE_CHECKING:
    from slmctl.artifacts.artifact import Artifact
    from slmctl.pipeline.model_lookup import Asked, Desk
    from slmctl.pipeline.runner import Outcome, Project

CHAIN = ("pull", "prepare", "finetune", "merge", "quantize", "evaluate", "calibrate", "publish")
TEMPLATES = ("support-triage", "field-extraction", "reply-drafting")
HANDOVERS = ("compose", "kubernetes", "vllm")


class Options:
    """What every command can be told."""

    def __init__(self) -> None:
        self.directory = Path()
        self.level = 0
        self.json = False
        self.no_wait = False
        self.offline = False
        self.sets: list[str] = []


def _store(name: str) -> Callable[[click.Context, click.Parameter, Any], Any]:
    def callback(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
        options = context.ensure_object(Options)
        if name == "sets":
            options.sets += value
        elif value is not None and value is not False:
            setattr(options, name, {"quiet": -1, "verbose": 1}.get(parameter.name or "", value))
            if name == "offline":
                guard.forbid()
            if name == "level":
                _console()  # from now on: a stage speaks before any callback asks for the console
        return value

    return callback


def _option(*names: str, store: str, **settings: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """An option that goes into Options and not to the callback."""
    return click.option(*names, expose_value=False, callback=_store(store), **settings)


def _everywhere(command: Callable[..., Any]) -> Callable[..., Any]:
    """-C, -q and -v: before or after the command's name."""
    for decorate in (
        _option("-v", "--verbose", store="level", is_flag=True, help="Say more, on stderr."),
        _option("-q", "--quiet", store="level", is_flag=True, help="Say nothing but errors."),
        _option(
            "-C",
            "--directory",
            store="directory",
            type=click.Path(path_type=Path, file_okay=False, exists=True),
            metavar="DIR",
            help="Work in DIR, the folder of slmctl.yaml.",
        ),
    ):
        command = decorate(command)
    return command


def _offline(command: Callable[..., Any]) -> Callable[..., Any]:
    return _option("--offline", store="offline", is_flag=True, help="Refuse at once what would use the network.")(
        command
    )


def _configured(command: Callable[..., Any]) -> Callable[..., Any]:
    """What commands that read slmctl.yaml take too."""
    decorate = _option(
        "--set",
        store="sets",
        multiple=True,
        metavar="KEY=VALUE",
        help="Set a key of the config, such as finetune.epochs=3; again for more.",
    )
    return _everywhere(decorate(command))


def _stage(command: Callable[..., Any]) -> Callable[..., Any]:
    """What every stage takes too."""
    for decorate in (
        _offline,
        _option("--no-wait", store="no_wait", is_flag=True, help="Exit with 8 if another process makes the artifact."),
        _option("--json", store="json", is_flag=True, help="Print the manifest in place of the path."),
    ):
        command = decorate(command)
    return _configured(command)


def _role(name: str, help: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return click.option(f"--{name}", type=click.Path(path_type=Path), metavar="PATH", help=help)


class _InOrder(click.Group):
    """Lists the commands in the order of the data, not of the alphabet, each with its whole first sentence."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Wrap the sentences: click itself cuts them at the terminal's width."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, one.get_short_help_str(1000)) for name, one in self.commands.items()])


@click.group(
    cls=_InOrder,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Start with: slmctl init support-triage demo && slmctl -C demo run",
)
@_everywhere
@click.version_option(__version__, package_name="slmctl", message="%(prog)s %(version)s")
def cli() -> None:
    """Company data set in, small language model out: measured, quantized, published and served.

    Each stage leaves a folder below runs/ and prints its path. A stage whose config and inputs have
    not changed does no work. Nothing leaves this machine unless a command is asked to.
    """


# Stages


@cli.command()
@_stage
@click.pass_obj
def pull(options: Options) -> None:
    """Fetch and check the base model (from the network, unless it is a path)."""
    _run_stage(options, "pull")


@cli.command()
@click.option("--explain", is_flag=True, help="Print how the sources are read, with three records of each, and stop.")
@_role("base", "A base to use in place of the config's.")
@_stage
@click.pass_obj
def prepare(options: Options, explain: bool, base: Path | None) -> None:
    """Turn raw rows into training, validation, calibration and test records."""
    if explain:
        from slmctl.pipeline import runner

        project = _project(options, base=base)
        runner.gather_sources(project)
        _print_of(project, "prepare", "explain")
        return
    _run_stage(options, "prepare", base=base)


@cli.command()
@click.option("--epochs", type=float, help="passes over the training records")
@click.option("--learning-rate", type=float, help="peak learning rate")
@click.option("--seed", type=int, help="seed of initial weights, order and dropout")
@click.option(
    "--preview", type=click.IntRange(min=1), metavar="N", help="Print N training records token by token, and stop."
)
@_role("base", "A base to use in place of the config's.")
@_role("prepared", "A prepared data set to use in place of the config's.")
@_stage
@click.pass_obj
def finetune(
    options: Options,
    epochs: float | None,
    learning_rate: float | None,
    seed: int | None,
    preview: int | None,
    base: Path | None,
    prepared: Path | None,
) -> None:
    """Train a LoRA adapter on the training records."""
    from slmctl.stages.finetune import distributed

    _set(options, "finetune", epochs=epochs, learning_rate=learning_rate, seed=seed)
    project = _project(options, base=base, prepared=prepared)
    distributed.join_slurm(project.config.finetune)
    _import_first(project)
    if preview is not None:
        _print_of(project, "finetune", "preview", count=preview)
        return
    _run_stage(options, "finetune", base=base, prepared=prepared)


@cli.command()
@_role("base", "A base to use in place of the config's.")
@_role("adapter", "An adapter to use in place of the config's.")
@_stage
@click.pass_obj
def merge(options: Options, base: Path | None, adapter: Path | None) -> None:
    """Fold the adapter into the base's weights."""
    _run_stage(options, "merge", base=base, adapter=adapter)


@cli.command()
@click.option("--type", "types", multiple=True, metavar="TYPE", help="llama.cpp quantization types, one file each")
@_role("merged", "A merged model to use in place of the config's.")
@_role("prepared", "A prepared data set to use in place of the config's.")
@_role("adapter", "An adapter to use in place of the config's, with quantize.lora.")
@_stage
@click.pass_obj
def quantize(
    options: Options, types: tuple[str, ...], merged: Path | None, prepared: Path | None, adapter: Path | None
) -> None:
    """Write GGUF files that llama.cpp runs."""
    if types:
        options.sets.append(f"quantize.types=[{', '.join(types)}]")
    _run_stage(options, "quantize", merged=merged, prepared=prepared, adapter=adapter)


@cli.command()
@click.argument("model", required=False)
@click.option("--type", "type_name", metavar="TYPE", help="which GGUF file, when the model has several")
@click.option("--split", type=click.Choice(["validation", "calibration", "test"]), help="which records to answer")
@click.option(
    "--input",
    "source",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Answer the rows of a file of yours: CSV, JSONL, Parquet, Excel and more.",
)
@click.option(
    "--output",
    "target",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Where their answers go (.csv, .tsv, .jsonl, these also as .gz, .parquet, or - for stdout).",
)
@click.option(
    "--column", metavar="NAME", help="Column of the file that is asked; the config's input column by default."
)
@click.option(
    "--format", "format_name", metavar="FORMAT", help="What the file is, such as csv; for - jsonl by default."
)
@click.option(
    "--shard", metavar="K/N", help="Answer the K-th of N runs of its rows; their outputs in order are the whole."
)
@click.option(
    "--engine-url", "urls", multiple=True, metavar="URL", help="Ask an OpenAI-compatible server; again for more."
)
@click.option("--engine-model", metavar="NAME", help="What the server calls the model.")
@click.option("--engine-key-env", metavar="NAME", help="Environment variable that holds the server's key.")
@click.option(
    "--concurrency", type=click.IntRange(1, 256), default=8, show_default=True, help="Requests in flight a server."
)
@_role("prepared", "A prepared data set to use in place of the config's.")
@_stage
@click.pass_obj
def predict(
    options: Options,
    model: str | None,
    type_name: str | None,
    split: str | None,
    source: Path | None,
    target: Path | None,
    column: str | None,
    format_name: str | None,
    shard: str | None,
    urls: tuple[str, ...],
    engine_model: str | None,
    engine_key_env: str | None,
    concurrency: int,
    prepared: Path | None,
) -> None:
    """Answer every row of one split, or of a file of yours, with one model.

    MODEL is base, adapter, merged or gguf (the default), or the path of an artifact, a release, a
    .gguf file or an HF folder. With --engine-url it is served elsewhere, and MODEL only says what it is
    asked; a row whose column "sensitive" says so is then left out. A run that was killed goes on where it was.
    """
    if source is not None or target is not None:
        if source is None or target is None:
            raise UsageError("--input and --output come together", hint="--input in.csv --output out.csv")
        if split or prepared:
            raise UsageError("--split and --prepared are of a data set, and not of a file", hint="leave them out")
        if bool(urls) != bool(engine_model):
            hint = "--engine-url https://host/v1 --engine-model NAME"
            raise UsageError("--engine-url and --engine-model come together", hint=hint)
        if urls:
            guard.require(f"--engine-url {urls[0]}", hint="leave --engine-url out to answer on this machine")
        from slmctl.pipeline import model_lookup, runner

        with runner.spoken("predict", target.parent):
            from slmctl.stages.predict import file_prediction

            part, most = file_prediction.shard(shard or "1/1"), _settings(options).predict.max_tokens
            found = model_lookup.Asked(_desk(options), model, type_name, max_tokens=most)
            with file_prediction.spooled(source, format_name) as (path, format_name):
                work = {"source": path, "target": target, "column": column, "format": format_name, "shard": part}
                if urls:
                    _predict_elsewhere(found, work, urls, engine_model or "", engine_key_env, concurrency)
                else:
                    _predict_here(found, work)
        return
    if shard or urls or format_name or column:
        raise UsageError(
            "--shard, --format, --column and --engine-url are for a file", hint="--input FILE --output FILE"
        )
    from slmctl.pipeline import runner

    project = _project(options, prepared=prepared)
    for asked in runner.predictions_of(project, model or "gguf", split, type_name):
        _print(options, _timed(asked.stage.name, runner.run(project, asked)).artifact)


@cli.command()
@click.option("--model", "models", multiple=True, metavar="MODEL", help="which models of this pipeline to measure")
@click.option("--split", type=click.Choice(["validation", "calibration", "test"]), help="which records to answer")
@click.option("--against", metavar="URL", help="Send the rows to an OpenAI-compatible endpoint too, to compare.")
@click.option("--against-model", metavar="NAME", help="The general model to ask there.")
@click.option("--against-key-env", metavar="NAME", help="Environment variable that holds the endpoint's key.")
@click.option(
    "--against-shots",
    type=click.IntRange(min=1),
    metavar="N",
    help="Training rows in its few-shot prompt; by default one a label, else 8.",
)
@_role("prepared", "A prepared data set to use in place of the config's.")
@_stage
@click.pass_obj
def evaluate(
    options: Options,
    models: tuple[str, ...],
    split: str | None,
    against: str | None,
    against_model: str | None,
    against_key_env: str | None,
    against_shots: int | None,
    prepared: Path | None,
) -> None:
    """Measure models on held-out rows, beside the baselines, and check the gates.

    --model takes base, adapter, merged, gguf, or the path of a model; again for more. --against uses the
    network, for that host alone; records marked sensitive are never sent.
    """
    from slmctl.pipeline import runner

    if (against is None) != (against_model is None):
        raise UsageError(
            "--against and --against-model come together", hint="--against https://host/v1 --against-model NAME"
        )
    if against:
        guard.require(f"--against {against}", hint="leave --against out to measure the models here alone")
    _set(options, "predict", key_env=against_key_env)
    project = _project(options, prepared=prepared)
    general = runner.Endpoint(against, against_model, against_shots) if against and against_model else None
    outcome = _timed("evaluate", runner.evaluate(project, models or project.config.evaluate.models, split, general))
    _print(options, outcome.artifact)
    _show_report(outcome.artifact)
    for verdict in runner.enforce_gates(project, outcome.artifact, only_measured=bool(models)):
        _console().say(f"  gate passed: {verdict.text}")


@cli.command()
@click.option(
    "--max-error", metavar="SHARE", help="largest share of wrong answers among those that are kept, such as 5%"
)
@click.option(
    "--out-of-scope",
    metavar="LABEL",
    help="classify: the label of questions that belong elsewhere; they are never right to keep",
)
@_role("predictions", "Predictions on calibration rows to use in place of the config's.")
@_role("outside", "Predictions with out-of-scope rows, of validation, beside --predictions.")
@_stage
@click.pass_obj
def calibrate(
    options: Options, max_error: str | None, out_of_scope: str | None, predictions: Path | None, outside: Path | None
) -> None:
    """Fit the policy that says which answers to keep and which to escalate, on calibration rows."""
    from slmctl.pipeline import runner

    _set(options, "calibrate", max_error=max_error, out_of_scope=out_of_scope)
    project = _project(options, predictions=predictions, outside=outside)
    if outside is not None and predictions is None:
        raise UsageError("--outside goes with --predictions", hint="--predictions PATH --outside PATH")
    outcome = _timed("calibrate", runner.calibrate(project))
    _print(options, outcome.artifact)
    _show_policy(outcome.artifact)


@cli.command()
@click.option(
    "--to",
    metavar="TARGET",
    help="where releases go: dir:FOLDER (relative to slmctl.yaml), hf:ORG/NAME, s3://BUCKET/PREFIX, "
    "oci://HOST/REPOSITORY or ollama:NAME",
)
@click.option("--plan", "plan_only", is_flag=True, help="Print what would be sent where, and send nothing.")
@_role("gguf", "A gguf artifact to use in place of the config's.")
@_role("report", "A report to use in place of the config's.")
@_stage
@click.pass_obj
def publish(options: Options, to: str | None, plan_only: bool, gguf: Path | None, report: Path | None) -> None:
    """Lay out a release and send it to where releases go; refuses what must not leave.

    Refused are files that no passing report measured, secrets and personal data in any text of the
    release, and a model that gives rare strings of its training rows away. TARGET is dir:FOLDER,
    hf:ORG/NAME (private, unless publish.public), s3://BUCKET/PREFIX, oci://HOST/REPOSITORY or
    ollama:NAME.
    """
    from slmctl.pipeline import runner
    from slmctl.reports import scoreboard

    _set(options, "publish", to=to)
    project = _project(options, gguf=gguf, report=report)
    runner.require_no_network(project, ["publish"])
    if not plan_only:
        _print(options, _publish(project).artifact)
        return
    outcome, plan = runner.plan_of_publish(project)
    _timed("publish", outcome)
    _tell(options, plan, scoreboard.plan(plan))


@cli.command()
@click.argument("release")
@click.option("--tag", required=True, metavar="TAG", help="The tag, such as production.")
@click.option("--registry", metavar="DIR", help="The folder of releases; the config's by default.")
@_configured
@click.pass_obj
def promote(options: Options, release: str, tag: str, registry: str | None) -> None:
    """Let a tag of a registry stand for a release, at once; an older release rolls back.

    RELEASE is VERSION, PROJECT@VERSION or another tag. Refuses what fails its gates: those of its
    publication, and those that slmctl.yaml holds today.
    """
    from slmctl import config
    from slmctl.pipeline import runner
    from slmctl.releases import registry as module

    root = options.directory.resolve()
    known = (root / config.FILENAME).exists()
    project = _project(options) if known else None
    if registry is None and (project is None or not project.config.publish.to.startswith("dir:")):
        raise UsageError("which registry? tags live in a folder of releases", hint="--registry DIR")
    folder, _ = module.parse(registry or project.config.publish.to, root)  # type: ignore[union-attr]
    found = module.find(folder, release)
    same = project is not None and project.config.project == found.metrics["project"]
    with runner.spoken("promote", folder):
        made = module.promote(folder, found, tag, beside=project.config.gates if project and same else ())
    before = f", before that {made.previous}" if made.previous else ""
    _console().say(f"{made.project}: {tag} is {made.version}{before}")
    _console().write(f"{found.path}\n")


@cli.command()
@click.argument("source")
@click.argument("folder", required=False, type=click.Path(path_type=Path))
@click.option("--key", type=click.Path(path_type=Path, exists=True, dir_okay=False), metavar="PUB",
              help="Public key that must have signed it.")  # fmt: skip
@_offline
@_configured
@click.pass_obj
def fetch(options: Options, source: str, folder: Path | None, key: Path | None) -> None:
    """Bring a release back from where it was published, verified byte by byte.

    SOURCE is a target as for publish, and after # a version or tag, such as dir:./registry#production,
    hf:ORG/NAME#1.0 or s3://BUCKET/PREFIX#PROJECT@1.0. FOLDER is PROJECT-VERSION by default.
    """
    from slmctl import config
    from slmctl.pipeline import runner
    from slmctl.releases import signing, targets

    root = options.directory.resolve()
    path = root / config.FILENAME
    # outside a project there is no config, and one that nothing is taken from but these three will do
    section = (config.load(path, options.sets) if path.exists() else config.parse(
        "{project: fetched, base: none}", options.sets)).publish  # fmt: skip
    to, _, name = source.partition("#")
    settings = targets.Settings(root, endpoint=section.endpoint, hosts=tuple(section.hosts))
    check = (lambda place: signing.verify(place, key, name=source)) if key else (lambda place: None)
    with (
        runner.spoken("fetch", folder.absolute() if folder else root),
        guard.written_down(root if path.exists() else None, "fetch"),
        targets.opened(to, settings, purpose="fetch") as target,
    ):
        found = targets.fetch(target, name, folder.absolute() if folder else None, into=root, check=check)
    if key is not None:
        _console().say(f"  signed by the holder of {key.name}")
    _console().write(f"{found.path}\n")


@cli.command()
@click.option("--until", type=click.Choice(CHAIN), default="publish", show_default=True, help="The last stage to run.")
@_stage
@click.pass_obj
def run(options: Options, until: str) -> None:
    """Run every stage that is not current, from pull to publish."""
    from slmctl.pipeline import runner

    project = _project(options)
    runner.require_no_network(project, CHAIN[: CHAIN.index(until) + 1])
    if CHAIN.index(until) >= CHAIN.index("finetune"):
        _import_first(project)
    for name in CHAIN[: CHAIN.index(until) + 1]:
        if name == "evaluate":
            outcome = _timed(name, runner.evaluate(project, project.config.evaluate.models))
            _show_report(outcome.artifact)
            try:
                for verdict in runner.enforce_gates(project, outcome.artifact):
                    _console().say(f"  gate passed: {verdict.text}")
            except GateError:
                _print(options, outcome.artifact)  # the report exists, whatever it says
                raise
        elif name == "publish":
            outcome = _publish(project)
        elif name == "calibrate":
            if project.config.calibrate is not None or until == name:
                outcome = _timed(name, runner.calibrate(project))
                _show_policy(outcome.artifact)
        else:
            if name == "prepare":
                runner.gather_sources(project)
            outcome = _timed(name, runner.run(project, runner.ask(project, name)))
    _print(options, outcome.artifact)


# Using a model


@cli.command()
@click.argument("model", required=False)
@click.option("--type", "type_name", metavar="TYPE", help="which GGUF file, when the model has several")
@click.option("--host", help="IP address to bind; beyond the loopback, only with a key (slmctl keys add)")
@click.option("--port", type=int, help="TCP port; 0 takes a free one")
@_role("policy", "policy that says which answers to keep; see slmctl calibrate")
@click.option("--generalist", metavar="URL", help="OpenAI-compatible endpoint that gets what the policy does not keep")
@click.option("--generalist-model", metavar="NAME", help="the name of the general model there")
@click.option("--generalist-key-env", metavar="NAME", help="environment variable that holds its key")
@click.option(
    "--emit",
    type=click.Choice(HANDOVERS),
    help="Serve nothing: write a folder that runs the model in vLLM behind slmctl's gateway.",
)
@click.option(
    "--output", "target", type=click.Path(path_type=Path), metavar="DIR", help="The folder that --emit writes, anew."
)
@click.option(
    "--weights",
    type=click.Choice(["merged", "adapter"]),
    help="What --emit hands over: merged weights (the default), or the base and the adapter on it.",
)
@click.option("--keys", type=click.Path(path_type=Path), metavar="FILE", help="file of the API keys")
@click.option(
    "--adapter",
    "adapters",
    multiple=True,
    metavar="NAME=PATH",
    help="A LoRA adapter over MODEL, a .gguf or the gguf artifact that holds it, asked by NAME; again for more.",
)
@click.option("--engine-url", metavar="URL", help="Answer through an OpenAI-compatible server that has the model.")
@click.option("--engine-model", metavar="NAME", help="what that server calls the model")
@click.option("--engine-key-env", metavar="NAME", help="environment variable that holds that server's key")
@_offline
@_configured
@click.pass_obj
def serve(
    options: Options,
    model: str | None,
    type_name: str | None,
    host: str | None,
    port: int | None,
    policy: Path | None,
    generalist: str | None,
    generalist_model: str | None,
    generalist_key_env: str | None,
    emit: str | None,
    target: Path | None,
    weights: str | None,
    keys: Path | None,
    adapters: tuple[str, ...],
    engine_url: str | None,
    engine_model: str | None,
    engine_key_env: str | None,
) -> None:
    """Serve a model over HTTP, in OpenAI's form, until SIGTERM.

    MODEL is a gguf artifact, a release, a .gguf file, or dir:REGISTRY#TAG, whose new release SIGHUP takes
    up; the config's release by default. Prints the address on stdout when it is ready. With --engine-url
    another server has the model, and MODEL, any artifact of it, only says what it is asked.

    With --emit, MODEL may also be a merged model or an adapter. vLLM serves no GGUF, so for a release
    the weights that it was made of are looked for below runs/. Prints the folder.
    """
    _set(options, "serve", host=host, port=port, keys=str(keys.absolute()) if keys else None)
    _set(options, "serve", engine_url=engine_url, engine_model=engine_model, engine_key_env=engine_key_env)
    _set(options, "serve", policy=None if policy is None else str(policy.resolve()))
    _set(options, "serve.generalist", url=generalist, model=generalist_model, key_env=generalist_key_env)
    if adapters:
        _set(options, "serve", adapters=_named_paths(adapters))
    if emit or target or weights:
        _emit(options, emit, target, model, type_name, weights)
        return
    settings = _serve_settings(options)
    _require_reachable(settings)
    try:
        from slmctl.server import api_keys as known
        from slmctl.server import process
    except ModuleNotFoundError as error:
        from slmctl.pipeline.runner import missing

        raise missing(error, "serve") from error
    keyed = keys is not None or settings.keys.exists()
    somebody = settings.keys.exists() and bool(known.read(settings.keys))  # a file whose last key was revoked has none
    sock = process.listen(settings.host, settings.port, keys=somebody)
    with sock, _Opening(options, settings, model, type_name, keys=keyed) as opening:
        host_name, number = sock.getsockname()[:2]
        address = f"http://{f'[{host_name}]' if ':' in host_name else host_name}:{number}"
        _console().say(f"serving {', '.join(opening.served.models)} at {address}/v1; stop with Ctrl-C or SIGTERM")
        _console().write(address + "\n")
        process.run(opening.served, sock, opening.follow)


@cli.group(name="keys")
def keys_group() -> None:
    """Make, list and revoke the API keys of slmctl serve."""


def _keys_file(command: Callable[..., Any]) -> Callable[..., Any]:
    """Which file of keys: the config's, or the one named."""
    decorate = click.option(
        "--keys", "path", type=click.Path(path_type=Path), metavar="FILE", help="file of the API keys"
    )
    return _configured(decorate(command))


@keys_group.command(name="add")
@click.argument("name")
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), help="Requests a minute, in place of serve.rate.")
@click.option(
    "--concurrency", type=click.IntRange(min=1), help="Requests at the same time, in place of serve.concurrency."
)
@_keys_file
@click.pass_obj
def keys_add(options: Options, name: str, rate: float | None, concurrency: int | None, path: Path | None) -> None:
    """Make a key for a client; prints it, once.

    Only its hash is kept. A server that runs with the file lets it in at once.
    """
    from slmctl.server import api_keys

    path = path or _serve_settings(options).keys
    secret = api_keys.add(path, name, rate=rate, concurrency=concurrency)
    _console().say(f"kept as a hash in {path}; this is shown once:")
    _console().write(secret + "\n")


@keys_group.command(name="list")
@_keys_file
@click.pass_obj
def keys_list(options: Options, path: Path | None) -> None:
    """List the keys: name, when it was made, its limits."""
    from slmctl.server import api_keys

    path = path or _serve_settings(options).keys
    for key in api_keys.read(path) if path.exists() else ():
        limits = [f"{key.rate:g} a minute"] if key.rate else []
        limits += [f"{key.concurrency} at the same time"] if key.concurrency else []
        _console().write("  ".join([f"{key.name:<24}", key.created, ", ".join(limits)]).rstrip() + "\n")


@keys_group.command(name="revoke")
@click.argument("name")
@_keys_file
@click.pass_obj
def keys_revoke(options: Options, name: str, path: Path | None) -> None:
    """Remove a key; a running server lets it in no longer."""
    from slmctl.server import api_keys

    path = path or _serve_settings(options).keys
    api_keys.revoke(path, name)
    _console().say(f"revoked {name}")


@cli.command()
@click.argument("model", required=False)
@click.option("--type", "type_name", metavar="TYPE", help="which GGUF file, when the model has several")
@click.option(
    "--max-tokens", type=click.IntRange(min=1), default=256, show_default=True, help="Longest answer, in tokens."
)
@_configured
@click.pass_obj
def chat(options: Options, model: str | None, type_name: str | None, max_tokens: int) -> None:
    """Talk to a model; each line of stdin is a message.

    MODEL is a gguf artifact, a release or a .gguf file; the config's release by default.
    """
    from slmctl.cli.terminal_chat import chat as talk
    from slmctl.inference.engine import Engine
    from slmctl.pipeline.model_lookup import spoken_to

    path, task, name = spoken_to(_desk(options), model, type_name)
    interactive = sys.stdin.isatty()
    with Engine(path, sequences=1) as engine:
        if interactive:
            _console().say(f"{name} ({task.kind}); Ctrl-D ends")
        talk(engine, task, sys.stdin, max_tokens=max_tokens, interactive=interactive)


# Looking


@cli.command()
@click.argument("path", required=False, type=click.Path(path_type=Path))
@_option("--json", store="json", is_flag=True, help="Print it as JSON.")
@_configured
@click.pass_obj
def show(options: Options, path: Path | None) -> None:
    """Show what an artifact was made of, from a release back to the data.

    PATH is an artifact or a release; the config's release by default.
    """
    from slmctl.artifacts import artifact, lineage
    from slmctl.pipeline.model_lookup import root_of
    from slmctl.pipeline.runner import Role, find

    release = Role("published", ("published",))
    found = artifact.load(path) if path is not None else find(_project(options), release)
    node = lineage.show(root_of(options.directory, path), found)
    _tell(options, lineage.to_json(node), lineage.lines(node))


@cli.command()
@click.option("--text", metavar="TEXT", help="The row's text; - reads it from stdin, which no shell's history keeps.")
@click.option("--id", "record", metavar="ID", help="A record's id; rows that are like it are found too.")
@click.option(
    "--similarity",
    type=click.FloatRange(0.2, 1),
    default=0.6,
    show_default=True,
    help="Share of 5-grams in common from which another row counts as nearly the same; an estimate, within 0.09.",
)
@click.option(
    "--registry",
    "registries",
    multiple=True,
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    metavar="DIR",
    help="A folder of releases to ask about too; again for more.",
)
@_option("--json", store="json", is_flag=True, help="Print it as JSON.")
@_everywhere
@click.pass_obj
def trace(
    options: Options, text: str | None, record: str | None, similarity: float, registries: tuple[Path, ...]
) -> None:
    """Say which data sets, models and releases saw a row.

    A near-duplicate of the row counts. Asks the data sets below runs/ by hashes; prints no text.
    Exits with 0 when nothing here held the row, with 105 when something did, and with 106 when
    nothing is known to, but something is missing that could have.
    """
    from slmctl.provenance import trace as module

    if (text is None) == (record is None):
        raise UsageError("trace wants one of --text and --id", hint="slmctl trace --text - < row.txt")
    if text == "-":
        text = sys.stdin.read()
    if text is not None and not text.strip():
        raise UsageError("the text to trace is empty")
    root = options.directory.resolve()
    found = module.trace(root, text=text, id=record, similarity=similarity, registries=[*_registry(root), *registries])
    _tell(options, found.to_json(), module.lines(found))
    sys.exit(105 if found.found else 0 if found.sure else 106)


@cli.command()
@click.argument("first", type=click.Path(path_type=Path, exists=True))
@click.argument("second", type=click.Path(path_type=Path, exists=True))
@_option("--json", store="json", is_flag=True, help="Print it as JSON.")
@_everywhere
@click.pass_obj
def diff(options: Options, first: Path, second: Path) -> None:
    """Say what differs between two artifacts of a kind, two releases, or two projects: config, data, metrics.

    Models that two reports measured on the same rows are compared row by row, so that chance is told from change.
    """
    from slmctl.provenance import diff as module

    found = module.diff(first, second)
    _tell(options, found, module.lines(found))


@cli.command()
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path))
@click.option("--key", type=click.Path(path_type=Path), metavar="PUB", help="Public key that must have signed them.")
@_everywhere
@click.pass_obj
def verify(options: Options, paths: tuple[Path, ...], key: Path | None) -> None:
    """Check every byte of artifacts; name every file that is extra, missing or changed.

    PATHS are artifacts or releases; everything below runs/ by default. With --key, releases must be
    signed too.
    """
    from slmctl.artifacts import lineage

    folders = list(paths) or lineage.folders(options.directory)
    if not folders:
        raise IntegrityError(f"there are no artifacts below {options.directory / 'runs'}", hint="slmctl run")
    found = lineage.verify(folders)
    for folder, faults in found.items():
        _console().write("".join(f"{folder}: {_console().clean(fault)}\n" for fault in faults or ["whole"]))
    damaged = [folder for folder, faults in found.items() if faults]
    if damaged:
        raise IntegrityError(
            f"{len(damaged)} of {len(found)} artifacts are damaged",
            hint=f"remove it and run its stage again: rm -r {damaged[0]}",
        )
    if key is not None:
        _require_signed(folders, key)


@cli.command()
@click.argument("path", metavar="ARTIFACT", type=click.Path(path_type=Path, exists=True))
@click.option(
    "--source",
    "sources",
    multiple=True,
    type=click.Path(path_type=Path, exists=True),
    metavar="PATH",
    help="A file or folder that it was made of, where it is not found by its hash; again for more.",
)
@_stage
@click.pass_obj
def reproduce(options: Options, path: Path, sources: tuple[Path, ...]) -> None:
    """Build an artifact again from what its manifest records, and compare every byte.

    Its inputs are looked for below runs/, its sources among --source, the copies in runs/.sources/ and the files
    of slmctl.yaml, all by their hashes. Exits with 0 when the same came out, else with 104, and says what differs.
    """
    from slmctl.artifacts import artifact
    from slmctl.errors import DifferentError
    from slmctl.pipeline import runner
    from slmctl.pipeline.model_lookup import root_of
    from slmctl.provenance import reproduce as module

    options.directory = root_of(options.directory, path)
    project = _project_or_none(options) or _bare_project(options)
    made = artifact.load(path)
    name = made.manifest.stage.partition("/")[0]
    if name == "finetune":
        _import_first(project)
    try:
        found = module.reproduce(project, made, sources)
    except ModuleNotFoundError as error:
        raise runner.missing(error, name) from error
    _tell(options, found.to_json(), module.lines(found))
    if not found.same:
        raise DifferentError(f"{path} is not what comes out today", hint="slmctl doctor shows this machine's versions")


@cli.command()
@click.option(
    "--registry",
    "registries",
    multiple=True,
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    metavar="DIR",
    help="A folder of releases to ask too; again for more.",
)
@click.option("--yes", is_flag=True, help="Remove without asking.")
@_option("--json", store="json", is_flag=True, help="Print the list as JSON.")
@_configured
@click.pass_obj
def gc(options: Options, registries: tuple[Path, ...], yes: bool) -> None:
    """List what nothing needs, with sizes, and remove it when you agree.

    Kept is what slmctl.yaml asks for today, what its server is given, what releases in the registry and their tags
    were made of, and what a running process uses. Listed are other artifacts, what interrupted runs left, and
    copies of sources that nothing was made of.
    """
    from slmctl.provenance import gc as module

    project = _project(options)
    found = module.find(project, [*_registry(project.root, options.sets), *registries])
    console = _console()
    for note in found.notes:
        console.say(f"note: {note}")
    _tell(options, found.to_json(), module.lines(found, project.root))
    if not found.items:
        return
    if not yes and not sys.stdin.isatty():
        console.say("nothing is removed: nobody is there to ask; --yes removes it")
        return
    if yes or click.confirm(f"remove {console.size(found.size)}?", default=False, err=True):
        freed, left = module.remove(project, found)
        for path in left:
            console.say(f"  left, since a process has begun to use it: {path}")
        console.say(f"  {console.size(freed)} freed")


@cli.command()
@click.option("--fix", is_flag=True, help="Fetch the GGUF converter, once (uses the package index).")
@_offline
@_everywhere
@click.pass_obj
def doctor(options: Options, fix: bool) -> None:
    """Say what this machine has, what is missing, and the command that installs it."""
    from slmctl.cli import doctor_checks as doctor_module

    console = _console()
    if fix:
        for done in doctor_module.fix():
            console.say(done)
    findings = doctor_module.examine()
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        mark = "ok  " if finding.ok else "MISS"
        console.write(f"{mark} {finding.name:<{width}}  {finding.found}\n")
        if finding.remedy:
            console.write(f"     {'':<{width}}  -> {finding.remedy}\n")
    missing = [finding for finding in findings if not finding.ok]
    if missing:
        from slmctl.errors import MissingError

        raise MissingError(f"missing: {', '.join(finding.name for finding in missing)}", hint=missing[0].remedy)


@cli.command()
@click.argument("template", type=click.Choice(TEMPLATES))
@click.argument("folder", required=False, type=click.Path(path_type=Path))
@_everywhere
@click.pass_obj
def init(options: Options, template: str, folder: Path | None) -> None:
    """Start a project from a template: a ready slmctl.yaml, and example data to replace by yours."""
    from slmctl.cli.project_template import init as copy

    target = options.directory / (folder or template)
    for path in copy(template, target):
        _console().say(f"wrote {path}")
    _console().say(f"next: slmctl -C {target} run")
    _console().write(f"{target}\n")


@cli.group(name="config")
def config_group() -> None:
    """Look at the config."""


@config_group.command()
def schema() -> None:
    """Print the JSON Schema of slmctl.yaml, for editors."""
    import json

    from slmctl import config

    _console().write(json.dumps(config.schema(), indent=2) + "\n")


@config_group.command(name="show")
@_configured
@click.pass_obj
def config_show(options: Options) -> None:
    """Print the config with every default filled in, after checking it."""
    import yaml

    from slmctl import config

    values = config.load(options.directory / config.FILENAME, options.sets).as_written()
    _console().write(yaml.safe_dump(values, sort_keys=False, allow_unicode=True))


# What the callbacks share


def _console() -> Any:
    from slmctl import console

    context = click.get_current_context(silent=True)
    if context is not None:
        console.set_level(context.ensure_object(Options).level)
    return console


def _set(options: Options, section: str, **values: Any) -> None:
    """Named flags are overrides like `--set`; one that was left out is None, whatever the default is."""
    import json

    # JSON is YAML without surprises: `--host ::` stays a text
    options.sets += [f"{section}.{key}={json.dumps(value)}" for key, value in values.items() if value is not None]


def _project(options: Options, **given: Path | None) -> Project:
    from slmctl import config
    from slmctl.pipeline import runner

    root = options.directory.resolve()
    return runner.Project(
        root=root,
        config=config.load(root / config.FILENAME, options.sets),
        wait=not options.no_wait,
        on_wait=lambda holder: _console().say(f"waiting for {holder}"),
        given={role: path for role, path in given.items() if path is not None},
    )


def _desk(options: Options) -> Desk:
    """Where a command works, for what finds its model."""
    from slmctl.pipeline.model_lookup import Desk

    return Desk(options.directory, lambda: _project(options))


def _project_or_none(options: Options) -> Project | None:
    """The project of the folder that is worked in, where there is one."""
    from slmctl import config

    return _project(options) if (options.directory / config.FILENAME).exists() else None


def _bare_project(options: Options) -> Project:
    """A folder with artifacts and no config."""
    from slmctl import config
    from slmctl.pipeline import runner

    settings = config.parse("{project: none, base: none}")
    return runner.Project(options.directory.resolve(), settings, wait=not options.no_wait)


def _registry(root: Path, sets: Sequence[str] = ()) -> list[Path]:
    """The folder that the config publishes to, where there is one."""
    from slmctl import config

    if not (root / config.FILENAME).exists():
        return []
    kind, _, place = config.load(root / config.FILENAME, sets).publish.to.partition(":")
    if kind != "dir":
        _console().say(f"note: the releases in {kind}:{place} are not asked; name a copy of them by --registry")
        return []
    folder = root / Path(place).expanduser()
    return [folder] if folder.is_dir() else []


def _settings(options: Options) -> Any:
    """The config where there is one, else the defaults with the flags on top."""
    from slmctl import config

    path = options.directory / config.FILENAME
    if path.exists():
        return config.load(path, options.sets)
    return config.parse("{project: served, base: none}", options.sets)


def _serve_settings(options: Options) -> Any:
    return _settings(options).serve


def _require_reachable(settings: Any) -> None:
    """With `--offline`, refuse a server that would ask beyond this machine, before it loads a model."""
    from urllib.parse import urlsplit

    named = {"--engine-url": settings.engine_url}
    if settings.generalist is not None:
        named |= {"--generalist": settings.generalist.url, "serve.generalist.proxy": settings.generalist.proxy}
    for what, url in named.items():
        host = urlsplit(url or "").hostname or ""
        if not guard.is_local(host):
            guard.require(f"{what} at {host}", hint=f"leave {what} out to answer on this machine alone")


def _import_first(project: Project) -> None:
    from slmctl.stages.finetune import backend

    backend.import_first(project.config.finetune.backend)


def _run_stage(options: Options, name: str, **given: Path | None) -> None:
    from slmctl.pipeline import runner

    project = _project(options, **given)
    runner.require_no_network(project, [name])
    if name == "prepare":
        runner.gather_sources(project)
    _print(options, _timed(name, runner.run(project, runner.ask(project, name))).artifact)


def _print_of(project: Project, stage: str, function: str, **settings: Any) -> None:
    """Print what a stage's module says of its inputs, in place of running it."""
    import importlib

    from slmctl.pipeline import runner

    asked: Any = runner.ask(project, stage)
    for given in asked.inputs.values():
        runner.require_whole(given)
    try:
        module = importlib.import_module(asked.stage.module)
        text = getattr(module, function)(asked.section, **asked.inputs, **settings)
    except ModuleNotFoundError as error:
        raise runner.missing(error, stage) from error
    _console().write(_console().clean(text) + "\n")


def _publish(project: Project) -> Outcome:
    from slmctl.pipeline import runner

    outcome, target, there = runner.publish(project)
    _timed("publish", outcome)
    _console().say(f"  {'already in' if there else 'sent to'} {target}")
    return outcome


def _require_signed(folders: list[Path], key: Path) -> None:
    from slmctl.pipeline import runner
    from slmctl.releases import signing

    try:
        for folder in folders:
            signing.verify(folder, key)
            _console().write(f"{folder}: signed by the holder of {key.name}\n")
    except ModuleNotFoundError as error:
        raise runner.missing(error, "verify --key") from error


def _timed(name: str, outcome: Outcome) -> Outcome:
    console = _console()
    console.say(
        f"{name:<9} {'current' if outcome.current else console.duration(outcome.seconds):>12}  {outcome.artifact.path}"
    )
    return outcome


def _print(options: Options, artifact: Artifact) -> None:
    if os.environ.get("RANK", "0") != "0":
        return  # one of several processes that torchrun started: the first one speaks
    if options.json:
        _console().write_json(artifact.manifest.to_json())
    else:
        _console().write(f"{artifact.path}\n")


def _tell(options: Options, fields: Any, lines: Iterable[str]) -> None:
    """What a command found: its fields as JSON where --json asks for it, lines for people otherwise."""
    import json

    console = _console()
    if options.json:
        console.write_json(json.dumps(fields, indent=1) + "\n")
    else:
        console.write("".join(f"{console.clean(line)}\n" for line in lines))


def _show_report(report: Artifact) -> None:
    from slmctl.reports import scoreboard

    head, rows = scoreboard.table(report.metrics)
    _console().table(f"{report.metrics['n']} held-out rows ({report.metrics['split']})", head, rows)
    for remark in report.metrics["remarks"]:
        _console().say(f"  note: {remark}")


def _show_policy(policy: Artifact) -> None:
    found = policy.metrics
    _console().say(
        f"  keeps {found['kept']:.1%} of {found['tested_on']} answers, {found['error']:.1%} of them wrong, at most "
        f"{found['error_bound']:.1%} with {found['confidence']:.0%} confidence (right: {found['correct']})"
    )
    if "out_of_scope_kept" in found:
        _console().say(
            f"  sends {1 - found['out_of_scope_kept']:.1%} of {found['out_of_scope_rows']} out-of-scope questions away"
        )


def _named_paths(given: tuple[str, ...]) -> dict[str, str]:
    """`NAME=PATH` of each."""
    found = {}
    for one in given:
        name, mark, path = one.partition("=")
        if not (name and mark and path):
            raise UsageError(f"--adapter {one}: wants NAME=PATH", hint="--adapter billing=runs/gguf/0123456789ab")
        found[name] = str(Path(path).absolute())
    return found


class _Opening:
    """What `serve` is given, opened: who answers, the models by name, and who decides where a policy says so.

    In a `with` block; at its end everything is closed again.
    """

    def __init__(
        self, options: Options, settings: Any, model: str | None, type_name: str | None, *, keys: bool
    ) -> None:
        from slmctl.server.api_keys import KeyRing

        self._options, self._settings, self._model, self._type = options, settings, model, type_name
        self._keys = KeyRing(settings.keys) if keys else None
        self._stack = contextlib.ExitStack()
        self._digest = ""

    def __enter__(self) -> _Opening:
        self.served = self._elsewhere() if self._settings.engine_url is not None else self._here()
        return self

    def __exit__(self, *_: object) -> None:
        self.served.close()
        self._stack.close()

    @property
    def follow(self) -> Callable[[], Any] | None:
        """What opens the release that a tag stands for by now, or None where it is the same; None without a tag."""
        return self._moved if (self._model or "").startswith("dir:") and self._settings.engine_url is None else None

    def _moved(self) -> Any:
        from slmctl.pipeline import model_lookup

        found = model_lookup.find(_desk(self._options), self._model, ("published",))
        if found.digest == self._digest:
            return None
        self.served = self._here()
        return self.served

    def _elsewhere(self) -> Any:
        from slmctl.pipeline import model_lookup
        from slmctl.server.app import Served
        from slmctl.server.backends import Elsewhere
        from slmctl.server.openai_requests import Model

        settings = self._settings
        task, name = model_lookup.contract(_desk(self._options), self._model, settings.engine_model)
        backend = Elsewhere(settings.engine_url, settings.engine_model, settings.engine_key_env, settings.sequences)
        self._stack.enter_context(guard.network(f"answering through {settings.engine_url}", hosts=backend.hosts))
        return Served(backend, {name: Model(name, task)}, settings, keys=self._keys)

    def _here(self) -> Any:
        from slmctl.artifacts.artifact import sha256_file
        from slmctl.inference.engine import Engine
        from slmctl.pipeline import model_lookup
        from slmctl.server.app import Served
        from slmctl.server.backends import Local
        from slmctl.server.openai_requests import Model
        from slmctl.server.router import Router

        settings = self._settings
        found, path = model_lookup.gguf(_desk(self._options), self._model, self._type)
        loras = {name: model_lookup.lora(place) for name, place in settings.adapters.items()}
        paths = {name: lora for name, (lora, _) in loras.items()}
        with contextlib.ExitStack() as stack:
            engine = stack.enter_context(
                Engine(path, sequences=settings.sequences, context=settings.context, adapters=paths)
            )
            own, bare, opening = model_lookup.task_in(found, path, engine)
            models = {path.stem: Model(path.stem, own, bare=bare, opening=opening)}
            for name, (_, task) in loras.items():
                models[name] = Model(name, task or own, adapter=name, bare=bare and task is None, opening=opening)
            router = None
            if settings.policy is not None:
                router = Router.of(settings.policy, settings, sha256_file(path), own, path.stem)
                stack.enter_context(router.open())
            notes = [note] if (note := model_lookup.other_build(found, path, engine.info["build"])) else []
            for note in notes:
                _console().say(f"warning: {note}")
            self._digest = found.digest
            end = stack.pop_all().close
        return Served(Local(engine), models, settings, keys=self._keys, router=router, notes=notes, close=end)


def _emit(
    options: Options,
    kind: str | None,
    target: Path | None,
    model: str | None,
    type_name: str | None,
    weights: str | None,
) -> None:
    """Write a hand-over, and print where it lies."""
    if kind is None or target is None:
        hint = f"slmctl serve --emit {kind or 'compose'} --output {target or 'handover'}"
        raise UsageError(
            "--emit and --output come together" + (", and --weights with them" if weights else ""), hint=hint
        )
    from slmctl.pipeline import model_lookup
    from slmctl.server import vllm_handover
    from slmctl.task.contract import Task

    asked, whole, adapter = model_lookup.handed_over(_desk(options), model, weights)
    vllm_handover.write(
        vllm_handover.Handover(
            name=_name_of(options, asked, type_name),
            model=whole,
            adapter=adapter,
            task=Task.read((adapter or whole).path),
            settings=_serve_settings(options),
            origin=asked.digest,
        ),
        kind,
        target,
    )
    _console().say(f"next: {target}/README.md says how to start it")
    _console().write(f"{target}\n")


def _predict_here(asked: Asked, work: dict[str, Any]) -> None:
    """Answer a file with a model on this machine."""
    from slmctl.pipeline import runner
    from slmctl.stages.predict import file_prediction, predict

    base = runner.base_of(asked.project, asked.model) if asked.model.kind == "adapter" else None
    if base is not None:
        runner.require_whole(base)
    work["column"] = work["column"] or asked.column
    identity: dict[str, Any] = {
        "model": asked.model.digest,
        "base": base.digest if base else None,
        "type": asked.type,
    }
    identity["max_tokens"] = asked.max_tokens
    job = file_prediction.Job(**work, list_labels=asked.model.kind == "base", identity=identity)
    with predict.opened(asked.model, asked.task, base=base, type=asked.type, max_tokens=asked.max_tokens) as opened:
        _said(job.target, *file_prediction.answer_file(opened[0], asked.task, job))


def _predict_elsewhere(
    asked: Asked, work: dict[str, Any], urls: tuple[str, ...], name: str, key_env: str | None, concurrency: int
) -> None:
    """Answer a file with a model that is served elsewhere."""
    from slmctl.stages.predict import file_prediction, server_pool

    work["column"] = work["column"] or asked.column
    untuned = asked.model.kind == "base"
    job = file_prediction.Job(
        **work, list_labels=untuned, withhold=True, identity={"served": name, "max_tokens": asked.max_tokens}
    )
    fleet = server_pool.Fleet(urls, name, key_env, concurrency)
    answerer = server_pool.FleetAnswerer(fleet, asked.task, asked.max_tokens)
    _said(job.target, *file_prediction.answer_file(answerer, asked.task, job))


def _said(target: Path, written: int, wrong: int) -> None:
    _console().say(f"{written} rows written to {target}, {wrong} with an error")


def _name_of(options: Options, asked: Artifact, type_name: str | None) -> str:
    """What clients call the model: the file that `slmctl serve` would answer with; of weights, project and version."""
    from slmctl import config
    from slmctl.pipeline import model_lookup

    if asked.kind in ("published", "gguf"):
        return Path(model_lookup.file_of(asked, type_name).path).stem
    path = options.directory / config.FILENAME
    if not path.exists():
        return asked.path.name
    project = config.load(path, options.sets)
    return f"{project.project}-v{project.version}"


def _say_what_left() -> None:
    """The receipt of a command that has used the network."""
    hosts, count = guard.summary()
    if hosts:
        _console().say(f"  contacted {', '.join(hosts)}: {_console().size(count)} sent")


def main() -> None:
    """The program: run a command, and turn what it raises into a sentence and an exit code."""
    guard.seal()
    # Threads that wait by spinning steal the cores of whoever else is there, and threads that sleep
    # wake up slowly between thousands of small operations. This is a short spin: on 2 idle cores
    # SmolLM2 trained at 850 tokens/s, as with an endless one, against 520 with a tenth of it; beside
    # two busy processes it was 250 against 340. libgomp reads this when it is loaded; whoever has set
    # a policy of their own keeps it.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    os.environ.setdefault("TQDM_DISABLE", "1")  # the libraries' bars; read when tqdm is imported
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    if os.environ.get("SLMCTL_OFFLINE", "") not in ("", "0"):
        guard.forbid()
    try:
        try:
            cli.main(standalone_mode=False)
        finally:
            _say_what_left()
    except SlmctlError as error:
        _console().complain(error.message, error.hint)
        sys.exit(error.code)
    except click.exceptions.Exit as done:
        sys.exit(done.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except BrokenPipeError:  # `slmctl show | head`: the reader has enough
        sys.stdout = None
        sys.exit(0)
