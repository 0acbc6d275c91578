"""`slmctl predict --input`: a file answered by a model on this machine, on a Ray cluster, or behind endpoints."""

from __future__ import annotations

import contextlib
import glob
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from slmctl.cli.group import Options, make_workspace, read_settings, terminal
from slmctl.errors import UsageError
from slmctl.network import guard

if TYPE_CHECKING:
    from slmctl.pipeline.model_lookup import FileModel
    from slmctl.stages.predict.file_prediction import Job


class EndpointOptions(NamedTuple):
    """Addresses of endpoints, the model's name there, the variable with the key, requests in flight at each."""

    urls: tuple[str, ...]
    model: str
    key_env: str | None
    concurrency: int


def require_one_file(source: str, target: str) -> None:
    """Refuse a folder, a pattern or the address of a bucket.

    Raises:
        UsageError: There is one.
    """
    is_pattern = glob.has_magic(source) and not Path(source).exists()
    if is_pattern or Path(source).is_dir() or "://" in source or "://" in target:
        raise UsageError(
            f"predict answers one file, not {source} to {target}",
            hint="examples/bucket.py answers the files of a folder or bucket by Ray Data",
        )


def answer(
    options: Options,
    model: str | None,
    type_name: str | None,
    work: dict[str, Any],
    *,
    shard: str,
    endpoints: EndpointOptions | None,
    ray: str | None = None,
) -> None:
    """Answer a file.

    Args:
        options: Those of every command.
        model: The model that is named, or that has the task's contract.
        type_name: Its type, of a GGUF with several files.
        work: Fields of a `file_prediction.Job`: source, target, column, format and the like.
        shard: K/N.
        endpoints: The endpoints that answer; None for an engine.
        ray: The address of a Ray cluster that answers; None for this machine.
    """
    from slmctl.pipeline import model_lookup, system_errors

    source, target = Path(work["source"]), Path(work["target"])
    if endpoints:
        guard.require(f"--engine-url {endpoints.urls[0]}", hint="leave --engine-url out to answer on this machine")
    with system_errors.spoken("predict", target.parent):
        from slmctl.stages.predict import file_prediction, row_snapshot

        part, most = file_prediction.shard(shard), read_settings(options).predict.max_tokens
        request = model_lookup.FileModel(make_workspace(options), model, type_name, max_tokens=most)
        with row_snapshot.opened(source, target, work["format"]) as (path, format_name):
            job = file_prediction.Job(**work | {
                "source": path, "target": target, "format": format_name, "shard": part,
                "column": work["column"] or request.column, "list_labels": request.model.kind == "base",
                "withhold": endpoints is not None, "identity": _identity(request, endpoints),
            })  # fmt: skip
            with _opened(request, job, endpoints, ray) as answer_job:
                written, wrong = answer_job(job)
            terminal().say(f"{written} rows written to {target}, {wrong} with an error")


def _identity(request: FileModel, endpoints: EndpointOptions | None) -> dict[str, Any]:
    """All that decides the answers beside the rows and the task."""
    if endpoints:
        return {"max_tokens": request.max_tokens, "served": endpoints.model}
    base = request.base.digest if request.base else None
    return {"max_tokens": request.max_tokens, "model": request.model.digest, "base": base, "type": request.type}


@contextlib.contextmanager
def _opened(
    request: FileModel, job: Job, endpoints: EndpointOptions | None, ray: str | None
) -> Iterator[Callable[[Job], tuple[int, int]]]:
    """A function that answers a file, while the model, the cluster or the endpoints are open."""
    from slmctl.stages.predict import file_prediction, local_models

    task = request.task
    if endpoints:
        from slmctl.network.endpoint_pool import EndpointPool
        from slmctl.stages.predict.endpoint_answerer import EndpointAnswerer

        pool = EndpointPool(endpoints.urls, endpoints.model, endpoints.key_env, endpoints.concurrency)
        answerer = EndpointAnswerer(pool, task, request.max_tokens)
        yield lambda job: file_prediction.answer_file(answerer, task, job)
    elif ray:
        from slmctl.stages.predict import ray_answers

        opening = ray_answers.opening_of(
            request.model, request.base, task, job.reading, type=request.type, max_tokens=request.max_tokens
        )
        with ray_answers.connected(ray) as cluster:
            yield lambda job: file_prediction.write_answers(lambda rows: cluster.answered(opening, rows), task, job)
    else:
        with local_models.opened(
            request.model, task, base=request.base, type=request.type, max_tokens=request.max_tokens
        ) as (engine, _):
            yield lambda job: file_prediction.answer_file(engine, task, job)
