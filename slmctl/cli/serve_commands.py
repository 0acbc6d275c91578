"""The commands that answer with a model: serve, keys, chat."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slmctl.errors import UsageError
from slmctl.network import guard

if TYPE_CHECKING:
    from slmctl.config import ServeConfig
    from slmctl.server.api_keys import Key
from slmctl.cli.group import (
    PATH,
    Options,
    config_options,
    key_option,
    make_workspace,
    offline_option,
    option,
    print_result,
    read_settings,
    terminal,
    value_option,
)


@click.command()
@click.argument("model", required=False)
@value_option("--type", "type_name", metavar="TYPE", key="predict.type")
@key_option("--host", key="serve.host")
@key_option("--port", type=int, key="serve.port")
@value_option("--policy", type=PATH, metavar="PATH", key="serve.policy")
@key_option("--first-look", is_flag=True, key="serve.first_look")
@key_option("--generalist", metavar="URL", key="serve.generalist.url")
@key_option("--generalist-model", metavar="NAME", key="serve.generalist.model")
@key_option("--generalist-key-env", metavar="NAME", key="serve.generalist.key_env")
@value_option("--keys", type=PATH, metavar="FILE", key="serve.keys")
@click.option(
    "--adapter",
    "adapters",
    multiple=True,
    metavar="NAME=PATH",
    help="A LoRA adapter over MODEL, served under NAME: a .gguf or a gguf artifact; repeatable.",
)
@key_option("--engine-url", metavar="URL", key="serve.engine.url")
@key_option("--engine-model", metavar="NAME", key="serve.engine.model")
@key_option("--engine-key-env", metavar="NAME", key="serve.engine.key_env")
@offline_option
@config_options
@click.pass_obj
def serve(
    options: Options,
    model: str | None,
    type_name: str | None,
    policy: Path | None,
    keys: Path | None,
    adapters: tuple[str, ...],
) -> None:
    """Serve a model over HTTP with OpenAI's API, until SIGTERM.

    MODEL is gguf (the model before its release), encoder, an artifact of them, a release, a .gguf
    file, or dir:REGISTRY#TAG, whose release is read again on SIGHUP. dir:REGISTRY stands for every
    release there that is tagged production, each by its name. Without MODEL it is serve.fleet of
    the config, or else its release. Prints the address on stdout when it is ready. With
    --engine-url that endpoint answers, and MODEL, any artifact of it, gives the task contract
    alone.
    """
    options.set("serve.keys", str(keys.absolute()) if keys else None)
    options.set("serve.policy", str(_artifact_path(options, policy).resolve()) if policy else None)
    options.set("serve.adapters", _named_paths(options, adapters) if adapters else None)
    settings = read_settings(options).serve
    _require_reachable(settings)
    try:
        from slmctl.server import process, served_fleet
    except ModuleNotFoundError as error:
        from slmctl.pipeline.system_errors import missing

        raise missing(error, "serve") from error
    keyed = keys is not None or settings.keys.exists()
    sock = process.listen(settings.host, settings.port, keys=bool(_keys_in(settings.keys)))
    with (
        sock,
        served_fleet.opened(
            make_workspace(options), settings, model, type_name, keys=keyed
        ) as fleet,
    ):
        host_name, number = sock.getsockname()[:2]
        address = f"http://{f'[{host_name}]' if ':' in host_name else host_name}:{number}"
        names = ", ".join(
            model.title for name in fleet.releases for model in fleet.models_of(name).values()
        )
        terminal().say(f"serving {names} at {address}/v1")
        terminal().say(f"  a page to try it: {address}/   stop with Ctrl-C or SIGTERM")
        for line in served_fleet.facts(fleet):
            terminal().say(line)
        terminal().write(address + "\n")
        process.run(fleet, sock)


@click.group(name="keys")
def keys_group() -> None:
    """Create, list and revoke the API keys of slmctl serve."""


def _keys_file(command: Callable[..., Any]) -> Callable[..., Any]:
    """--keys and the config options."""
    decorate = value_option("--keys", "path", type=PATH, metavar="FILE", key="serve.keys")
    return config_options(decorate(command))


@keys_group.command(name="add")
@click.argument("name")
@click.option(
    "--rate",
    type=click.FloatRange(min=0, min_open=True),
    help="Requests a minute; no limit by default.",
)
@click.option(
    "--concurrency",
    type=click.IntRange(min=1),
    help="Requests at the same time; no limit by default.",
)
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="NAME",
    help="A model that the key may ask, by the name that the server has for it; repeatable. All by "
    "default.",
)
@_keys_file
@click.pass_obj
def keys_add(
    options: Options,
    name: str,
    rate: float | None,
    concurrency: int | None,
    models: tuple[str, ...],
    path: Path | None,
) -> None:
    """Create a key for a client; prints it, once.

    The file keeps its hash alone. A running server accepts the key at once, unless it was started
    without the file.
    """
    from slmctl import config
    from slmctl.server import api_keys

    settings = read_settings(options)
    path = path or settings.serve.keys
    is_first = not path.exists()
    secret = api_keys.add(path, name, rate=rate, concurrency=concurrency, models=models)
    served = [*(settings.serve.fleet or [settings.project]), *settings.serve.adapters]
    strange = [model for model in models if model not in served]
    if strange and (options.directory / config.FILENAME).exists():
        terminal().say(
            f"note: {config.FILENAME} has no model {' and no model '.join(strange)}, but "
            f"{', '.join(served)}; a server "
            "without that name refuses what the key asks (404), and this undoes it: slmctl keys "
            f"revoke {name}"
        )
    if is_first:
        terminal().say(
            f"note: {path} is new: a server that was started without it asks for no key until a "
            "restart"
        )
    terminal().say(f"its hash is in {path}; the key is shown once:")
    terminal().write(secret + "\n")


@keys_group.command(name="list")
@option("--json", store="json", is_flag=True, help="Print the keys as JSON, without their hashes.")
@_keys_file
@click.pass_obj
def keys_list(options: Options, path: Path | None) -> None:
    """List the keys with their creation times, limits and models."""
    keys = _keys_in(path or read_settings(options).serve.keys)
    fields = [{k: v for k, v in dataclasses.asdict(key).items() if k != "sha256"} for key in keys]
    print_result(options, fields, map(_line, keys))


def _line(key: Key) -> str:
    """A key's name, time and limits as one line."""
    limits = [f"{key.rate:g} a minute"] if key.rate else []
    limits += [f"{key.concurrency} at the same time"] if key.concurrency else []
    limits += [f"for {' and '.join(key.models)}"] if key.models else []
    return "  ".join([f"{key.name:<24}", key.created, ", ".join(limits)]).rstrip()


@keys_group.command(name="revoke")
@click.argument("name")
@_keys_file
@click.pass_obj
def keys_revoke(options: Options, name: str, path: Path | None) -> None:
    """Revoke a key; a running server refuses it at once."""
    from slmctl.server import api_keys

    path = path or read_settings(options).serve.keys
    api_keys.revoke(path, name)
    terminal().say(f"revoked {name}")
    _keys_in(path)


def _keys_in(path: Path) -> list[Key]:
    """The keys of a file; says where it holds none, since the server then
    asks every client for a key all the same.
    """
    from slmctl.server import api_keys

    keys = api_keys.read(path) if path.exists() else []
    if path.exists() and not keys:
        terminal().say(
            f"note: {path} holds no key, so slmctl serve refuses every request; slmctl keys add "
            "NAME, or to serve this "
            f"machine without keys: rm {path}"
        )
    return keys


@click.command()
@click.argument("model", required=False)
@value_option("--type", "type_name", metavar="TYPE", key="predict.type")
@click.option(
    "--max-tokens",
    type=click.IntRange(min=1),
    default=256,
    show_default=True,
    help="Longest answer, in tokens.",
)
@config_options
@click.pass_obj
def chat(options: Options, model: str | None, type_name: str | None, max_tokens: int) -> None:
    """Chat with a model in the terminal; each line of stdin is a message.

    MODEL is gguf (the model before its release), encoder, an artifact of them, a release or a .gguf
    file; the config's release by default. Where slmctl calibrate has fitted a policy on it, the
    answers that a person should see are named.
    """
    from slmctl.cli.terminal_chat import chat as talk
    from slmctl.pipeline.model_lookup import spoken_to

    spoken = spoken_to(make_workspace(options), model, type_name)
    interactive = sys.stdin.isatty()
    with spoken.load() as engine:
        if interactive:
            terminal().say(f"{spoken.model.path.stem} ({spoken.task.kind}); Ctrl-D ends")
        talk(
            engine,
            spoken.task,
            sys.stdin,
            max_tokens=max_tokens,
            interactive=interactive,
            policy=spoken.policy,
        )


def _require_reachable(settings: ServeConfig) -> None:
    """With `--offline`, refuse endpoints on other machines, before a model is loaded."""
    from urllib.parse import urlsplit

    endpoints = {"--engine-url": settings.engine.url if settings.engine is not None else None}
    if settings.generalist is not None:
        endpoints |= {
            "--generalist": settings.generalist.url,
            "serve.generalist.proxy": settings.generalist.proxy,
        }
    for what, url in endpoints.items():
        host = urlsplit(url or "").hostname or ""
        if not guard.is_local(host):
            guard.require(
                f"{what} at {host}", hint=f"leave {what} out to answer on this machine alone"
            )


def _artifact_path(options: Options, path: Path) -> Path:
    from slmctl.pipeline import named

    return named.artifact_path(make_workspace(options), path)


def _named_paths(options: Options, adapters: tuple[str, ...]) -> dict[str, str]:
    """Absolute paths by name, from `NAME=PATH` texts."""
    paths = {}
    for text in adapters:
        name, _, path = text.partition("=")
        if not (name and path):
            raise UsageError(
                f"--adapter wants NAME=PATH, got '{text}'",
                hint="--adapter billing=runs/gguf/0123456789ab",
            )
        paths[name] = str(_artifact_path(options, Path(path)).absolute())
    return paths


COMMANDS = (serve, keys_group, chat)
