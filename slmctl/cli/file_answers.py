"""`slmctl predict --input`: a file answered by a model on this machine, or by one behind endpoints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from slmctl.cli.group import Options, make_workspace, read_settings, terminal
from slmctl.errors import UsageError
from slmctl.network import guard

if TYPE_CHECKING:
    from slmctl.pipeline.model_lookup import FileModel


class EndpointOptions(NamedTuple):
    """Addresses of endpoints, the model's name there, the variable with the key, requests in flight at each."""

    urls: tuple[str, ...]
    model: str
    key_env: str | None
    concurrency: int


def require_fitting(urls: tuple[str, ...], engine_model: str | None, *, records: bool) -> None:
    """Refuse options that do not go with `--input`, or with each other.

    Raises:
        UsageError: Some do not.
    """
    if records:
        raise UsageError(
            "--split and --prepared select records of a data set, and --input names a file", hint="leave them out"
        )
    if bool(urls) != bool(engine_model):
        hint = "--engine-url https://host/v1 --engine-model NAME"
        raise UsageError("--engine-url and --engine-model come together", hint=hint)
    if urls:
        guard.require(f"--engine-url {urls[0]}", hint="leave --engine-url out to answer on this machine")


def answer(
    options: Options,
    model: str | None,
    type_name: str | None,
    work: dict[str, Any],
    *,
    shard: str,
    endpoints: EndpointOptions | None,
) -> None:
    """Answer a file.

    Args:
        options: Those of every command.
        model: The model that is named, or that has the task's contract.
        type_name: Its type, of a GGUF with several files.
        work: Fields of a `file_prediction.Job`: source, target, column, format and the like.
        shard: K/N.
        endpoints: The endpoints that answer; None for this machine.
    """
    from slmctl.pipeline import model_lookup, system_errors

    with system_errors.spoken("predict", work["target"].parent):
        from slmctl.stages.predict import file_prediction, row_snapshot

        part, most = file_prediction.shard(shard), read_settings(options).predict.max_tokens
        request = model_lookup.FileModel(make_workspace(options), model, type_name, max_tokens=most)
        with row_snapshot.opened(work["source"], work["target"], work["format"]) as (path, format_name):
            work = work | {"source": path, "format": format_name, "shard": part}
            if endpoints:
                _at_endpoints(request, work, endpoints)
            else:
                _here(request, work)


def _here(request: FileModel, work: dict[str, Any]) -> None:
    from slmctl.artifacts import artifact
    from slmctl.pipeline import resolve
    from slmctl.stages.predict import file_prediction, predict

    base = resolve.base_of(request.project, request.model) if request.model.kind == "adapter" else None
    if base is not None:
        artifact.require_whole(base)
    work["column"] = work["column"] or request.column
    identity: dict[str, Any] = {
        "model": request.model.digest,
        "base": base.digest if base else None,
        "type": request.type,
    }
    identity["max_tokens"] = request.max_tokens
    job = file_prediction.Job(**work, list_labels=request.model.kind == "base", identity=identity)
    with predict.opened(
        request.model, request.task, base=base, type=request.type, max_tokens=request.max_tokens
    ) as opened:
        _say_written(job.target, *file_prediction.answer_file(opened[0], request.task, job))


def _at_endpoints(request: FileModel, work: dict[str, Any], endpoints: EndpointOptions) -> None:
    from slmctl.network.endpoint_pool import EndpointPool
    from slmctl.stages.predict import endpoint_answerer, file_prediction

    work["column"] = work["column"] or request.column
    untuned = request.model.kind == "base"
    identity = {"served": endpoints.model, "max_tokens": request.max_tokens}
    job = file_prediction.Job(**work, list_labels=untuned, withhold=True, identity=identity)
    pool = EndpointPool(endpoints.urls, endpoints.model, endpoints.key_env, endpoints.concurrency)
    answerer = endpoint_answerer.EndpointAnswerer(pool, request.task, request.max_tokens)
    _say_written(job.target, *file_prediction.answer_file(answerer, request.task, job))


def _say_written(target: Path, written: int, wrong: int) -> None:
    terminal().say(f"{written} rows written to {target}, {wrong} with an error")
