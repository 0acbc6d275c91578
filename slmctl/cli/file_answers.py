"""`slmctl predict --input`: files answered by a model on this machine, on a Ray cluster, or behind endpoints."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from slmctl.cli.group import Options, make_workspace, read_settings, terminal
from slmctl.errors import UsageError
from slmctl.network import guard

if TYPE_CHECKING:
    from slmctl.pipeline.model_lookup import FileModel
    from slmctl.stages.predict.file_prediction import Job
    from slmctl.stages.predict.folder_prediction import FolderWork


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
    ray: str | None = None,
    plan_only: bool = False,
) -> None:
    """Answer a file, or those of a folder, a pattern or a bucket.

    Args:
        options: Those of every command.
        model: The model that is named, or that has the task's contract.
        type_name: Its type, of a GGUF with several files.
        work: Fields of a `file_prediction.Job`: source, target, column, format and the like.
        shard: K/N.
        endpoints: The endpoints that answer; None for an engine.
        ray: The address of a Ray cluster that answers; None for this machine.
        plan_only: Say how much there is to do, and do nothing.
    """
    from slmctl.pipeline import model_lookup, system_errors
    from slmctl.sources import stores

    source, target = work["source"], work["target"]
    many = stores.is_store(source) or "://" in target or target.endswith("/")
    if plan_only and not many:
        raise UsageError("--plan is for a folder, a pattern or a bucket", hint="--input FOLDER/ --output FOLDER/")
    with system_errors.spoken("predict", Path() if many else Path(target).parent):
        from slmctl.stages.predict import file_prediction, row_snapshot

        part, most = file_prediction.shard(shard), read_settings(options).predict.max_tokens
        request = model_lookup.FileModel(make_workspace(options), model, type_name, max_tokens=most)
        fields = _deciding(request, work, endpoints)
        if many:
            job = file_prediction.Job(**fields | {"source": Path(), "target": Path()})
            with _folder_work(source, target, job, part) as folder_work:
                _answer_folder(request, folder_work, job, endpoints, ray, plan_only=plan_only)
            return
        with row_snapshot.opened(Path(source), Path(target), work["format"]) as (path, format_name):
            paths = {"source": path, "target": Path(target), "format": format_name, "shard": part}
            job = file_prediction.Job(**fields | paths)
            with _opened(request, job, endpoints, ray) as answer_job:
                _say_written(target, *answer_job(job))


def _deciding(request: FileModel, work: dict[str, Any], endpoints: EndpointOptions | None) -> dict[str, Any]:
    """The fields of a job, with all that decides its answers."""
    identity: dict[str, Any] = {"max_tokens": request.max_tokens}
    if endpoints:
        identity["served"] = endpoints.model
    else:
        base = request.base.digest if request.base else None
        identity |= {"model": request.model.digest, "base": base, "type": request.type}
    return work | {
        "column": work["column"] or request.column,
        "list_labels": request.model.kind == "base",
        "withhold": endpoints is not None,
        "identity": identity,
    }


@contextlib.contextmanager
def _opened(
    request: FileModel, job: Job, endpoints: EndpointOptions | None, ray: str | None
) -> Iterator[Callable[[Job], tuple[int, int]]]:
    """A function that answers a file, while the model, the cluster or the endpoints are open."""
    from slmctl.stages.predict import file_prediction, predict

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
        with ray_answers.RayCluster(ray) as cluster:
            yield lambda job: file_prediction.write_answers(lambda rows: cluster.answered(opening, rows), task, job)
    else:
        with predict.opened(
            request.model, task, base=request.base, type=request.type, max_tokens=request.max_tokens
        ) as (engine, _):
            yield lambda job: file_prediction.answer_file(engine, task, job)


# Folders and buckets


@contextlib.contextmanager
def _folder_work(source: str, target: str, job: Job, shard: tuple[int, int]) -> Iterator[FolderWork]:
    """The files to answer and the store for the answers, while both are open."""
    from slmctl.sources import stores
    from slmctl.stages.predict import folder_prediction

    if "-" in (source, target):
        raise UsageError("several files go to a folder, and - is a stream", hint="--output FOLDER/")
    with stores.listed(source, job.format) as (store, files), stores.writable(target) as out:
        yield folder_prediction.FolderWork(store, folder_prediction.shared(files, shard), out)


def _answer_folder(
    request: FileModel,
    work: FolderWork,
    job: Job,
    endpoints: EndpointOptions | None,
    ray: str | None,
    *,
    plan_only: bool,
) -> None:
    from slmctl.stages.predict import folder_prediction

    folder_prediction.require_fitting(work)
    plan = folder_prediction.plan(work, request.task, job, count_rows=plan_only)
    terminal().say(f"  {plan.words}")
    if plan_only:
        return
    if plan.finished == plan.files:
        totals = folder_prediction.answer_files(lambda job: (0, 0), request.task, work, job)
    else:
        with _opened(request, job, endpoints, ray) as answer_job:
            totals = folder_prediction.answer_files(answer_job, request.task, work, job)
    _say_written(work.target.title, *totals)


def _say_written(target: str, written: int, wrong: int) -> None:
    terminal().say(f"{written} rows written to {target}, {wrong} with an error")
