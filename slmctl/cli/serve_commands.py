"""The commands that use a model: serve, keys, chat."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slmctl.errors import UsageError
from slmctl.network import guard

if TYPE_CHECKING:
    from slmctl.artifacts.artifact import Artifact
from slmctl.cli.group import (
    Options,
    artifact_option,
    config_options,
    make_desk,
    offline_option,
    override,
    read_settings,
    terminal,
)
from slmctl.cli.served_models import ServedModels

HANDOVERS = ("compose", "kubernetes", "vllm")


@click.command()
@click.argument("model", required=False)
@click.option("--type", "type_name", metavar="TYPE", help="which GGUF file, when the model has several")
@click.option("--host", help="IP address to bind; beyond the loopback, only with a key (slmctl keys add)")
@click.option("--port", type=int, help="TCP port; 0 takes a free one")
@artifact_option("policy", "policy that says which answers to keep; see slmctl calibrate")
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
@offline_option
@config_options
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
    override(options, "serve", host=host, port=port, keys=str(keys.absolute()) if keys else None)
    override(options, "serve", engine_url=engine_url, engine_model=engine_model, engine_key_env=engine_key_env)
    override(options, "serve", policy=None if policy is None else str(policy.resolve()))
    override(options, "serve.generalist", url=generalist, model=generalist_model, key_env=generalist_key_env)
    if adapters:
        override(options, "serve", adapters=_named_paths(adapters))
    if emit or target or weights:
        _emit(options, emit, target, model, type_name, weights)
        return
    settings = _serve_settings(options)
    _require_reachable(settings)
    try:
        from slmctl.server import api_keys as known
        from slmctl.server import process
    except ModuleNotFoundError as error:
        from slmctl.pipeline.system_errors import missing

        raise missing(error, "serve") from error
    keyed = keys is not None or settings.keys.exists()
    somebody = settings.keys.exists() and bool(known.read(settings.keys))  # a file whose last key was revoked has none
    sock = process.listen(settings.host, settings.port, keys=somebody)
    with sock, ServedModels(options, settings, model, type_name, keys=keyed) as opening:
        host_name, number = sock.getsockname()[:2]
        address = f"http://{f'[{host_name}]' if ':' in host_name else host_name}:{number}"
        terminal().say(f"serving {', '.join(opening.served.models)} at {address}/v1; stop with Ctrl-C or SIGTERM")
        terminal().write(address + "\n")
        process.run(opening.served, sock, opening.follow)


@click.group(name="keys")
def keys_group() -> None:
    """Make, list and revoke the API keys of slmctl serve."""


def _keys_file(command: Callable[..., Any]) -> Callable[..., Any]:
    """Which file of keys: the config's, or the one named."""
    decorate = click.option(
        "--keys", "path", type=click.Path(path_type=Path), metavar="FILE", help="file of the API keys"
    )
    return config_options(decorate(command))


@keys_group.command(name="add")
@click.argument("name")
@click.option(
    "--rate",
    type=click.FloatRange(min=0, min_open=True),
    help="Requests a minute, in place of serve.requests_per_minute.",
)
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
    terminal().say(f"kept as a hash in {path}; this is shown once:")
    terminal().write(secret + "\n")


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
        terminal().write("  ".join([f"{key.name:<24}", key.created, ", ".join(limits)]).rstrip() + "\n")


@keys_group.command(name="revoke")
@click.argument("name")
@_keys_file
@click.pass_obj
def keys_revoke(options: Options, name: str, path: Path | None) -> None:
    """Remove a key; a running server lets it in no longer."""
    from slmctl.server import api_keys

    path = path or _serve_settings(options).keys
    api_keys.revoke(path, name)
    terminal().say(f"revoked {name}")


@click.command()
@click.argument("model", required=False)
@click.option("--type", "type_name", metavar="TYPE", help="which GGUF file, when the model has several")
@click.option(
    "--max-tokens", type=click.IntRange(min=1), default=256, show_default=True, help="Longest answer, in tokens."
)
@config_options
@click.pass_obj
def chat(options: Options, model: str | None, type_name: str | None, max_tokens: int) -> None:
    """Talk to a model; each line of stdin is a message.

    MODEL is a gguf artifact, a release or a .gguf file; the config's release by default.
    """
    from slmctl.cli.terminal_chat import chat as talk
    from slmctl.inference.engine import Engine
    from slmctl.pipeline.model_lookup import spoken_to

    path, task, name = spoken_to(make_desk(options), model, type_name)
    interactive = sys.stdin.isatty()
    with Engine(path, sequences=1) as engine:
        if interactive:
            terminal().say(f"{name} ({task.kind}); Ctrl-D ends")
        talk(engine, task, sys.stdin, max_tokens=max_tokens, interactive=interactive)


def _serve_settings(options: Options) -> Any:
    return read_settings(options).serve


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


def _named_paths(given: tuple[str, ...]) -> dict[str, str]:
    """`NAME=PATH` of each."""
    found = {}
    for one in given:
        name, mark, path = one.partition("=")
        if not (name and mark and path):
            raise UsageError(f"--adapter {one}: wants NAME=PATH", hint="--adapter billing=runs/gguf/0123456789ab")
        found[name] = str(Path(path).absolute())
    return found


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

    asked, whole, adapter = model_lookup.handed_over(make_desk(options), model, weights)
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
    terminal().say(f"next: {target}/README.md says how to start it")
    terminal().write(f"{target}\n")


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


COMMANDS = (serve, keys_group, chat)
