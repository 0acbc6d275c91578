"""`slmctl predict --input`: a file answered by a model on this machine,
on a Ray cluster, or behind endpoints.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from slmctl.cli.group import Options, make_workspace, read_settings, terminal
from slmctl.errors import DataError, UsageError
from slmctl.network import guard

if TYPE_CHECKING:
    from slmctl.pipeline.model_lookup import FileModel
    from slmctl.stages.predict.row_answers import AnswerRows, RowInput


class EndpointOptions(NamedTuple):
    """Addresses of endpoints, the model's name there, the variable with
    the key, requests in flight at each.
    """

    urls: tuple[str, ...]
    model: str
    key_env: str | None
    concurrency: int


def require_one_file(source: str, target: str) -> None:
    """Refuse a folder or pattern of tables, and the address of a bucket.

    Raises:
        UsageError: There is one.
    """
    from slmctl.sources.rows import is_several
    from slmctl.stages.predict import row_snapshot

    are_rows = is_several(Path(source)) and not row_snapshot.are_documents(Path(source), None)
    if are_rows or "://" in source or "://" in target:
        raise UsageError(
            "predict answers one file, or a folder of documents (PDF, DOCX, EML, MBOX, HTML, TXT, "
            f"MD), not {source} "
            f"to {target}",
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
    first_look: bool = False,
    strict: bool = False,
) -> None:
    """Answer a file.

    Args:
        options: Those of every command.
        model: The model that is named, or that has the task's contract.
        type_name: Its type, of a GGUF with several files.
        work: Fields of a `file_prediction.Job`, and `column`, the input column.
        shard: K/N.
        endpoints: The endpoints that answer; None for an engine.
        ray: The address of a Ray cluster that answers; None for this machine.
        first_look: The linear members of a sum answer alone what the policy lets them keep; the
            file answers the rest.
        strict: A row with an error ends the command with 3, after all answers are written.

    Raises:
        DataError: A row has an error, and `strict` is set.
    """
    from slmctl.pipeline import model_lookup, system_errors

    source, target = Path(work["source"]), Path(work["target"])
    if endpoints:
        guard.require(
            f"--engine-url {endpoints.urls[0]}",
            hint="leave --engine-url out to answer on this machine",
        )
    with system_errors.spoken("predict", target.parent):
        from slmctl.stages.predict import file_prediction, row_answers, row_snapshot

        part, most = file_prediction.shard(shard), read_settings(options).predict.max_tokens
        workspace = make_workspace(options)
        request = model_lookup.FileModel(
            workspace, model, type_name, max_tokens=most, first_look=first_look
        )
        documents = row_snapshot.are_documents(source, work["format"])
        with row_snapshot.opened(source, target, work["format"]) as (path, format_name):
            column = work.pop("column") or request.column
            reading = row_answers.RowInput(
                "text" if documents and column == "input" else column,
                request.model.untuned,
                withhold=endpoints is not None,
            )
            job = file_prediction.Job(
                **work
                | {
                    "source": path,
                    "target": target,
                    "format": format_name,
                    "shard": part,
                    "reading": reading,
                    "columns": ("file", "pages") if documents else None,
                    "identity": _identity(request, endpoints),
                }
            )
            with _answering(request, reading, endpoints, ray) as answered:
                written, wrong = file_prediction.answer_file(answered, request.task, job)
            terminal().say(
                f"{terminal().count(written, 'row')} written to {target}, {wrong} with an error"
            )
            if strict and wrong:
                raise DataError(
                    f"{wrong} of {written} rows have an error", hint="the column 'error' says which"
                )


def _identity(request: FileModel, endpoints: EndpointOptions | None) -> dict[str, Any]:
    """Returns the settings, besides rows and task, on which the answers depend."""
    if endpoints:
        return {"max_tokens": request.max_tokens, "served": endpoints.model}
    base = request.base.digest if request.base else None
    members: dict[str, Any] = {"sum": request.sum.digest} if request.sum else {}
    if request.first is not None:
        members["first_look"] = dataclasses.asdict(request.first)
    return {
        "max_tokens": request.max_tokens,
        "model": request.source.digest,
        "base": base,
        "type": request.type,
    } | members


@contextlib.contextmanager
def _answering(
    request: FileModel, reading: RowInput, endpoints: EndpointOptions | None, ray: str | None
) -> Iterator[AnswerRows]:
    """A function that answers rows, while the model, the cluster or the endpoints are open."""
    from slmctl.stages.predict import row_answers

    if endpoints:
        from slmctl.network.endpoint_pool import EndpointPool
        from slmctl.stages.predict.endpoint_answerer import EndpointAnswerer

        pool = EndpointPool(
            endpoints.urls, endpoints.model, endpoints.key_env, endpoints.concurrency
        )
        endpoint = EndpointAnswerer(pool, request.task, request.max_tokens)
        yield row_answers.answerer_of_rows(endpoint, request.task, reading)
    elif ray:
        from slmctl.stages.predict import ray_answers

        with ray_answers.connected(ray) as cluster:
            yield functools.partial(cluster.answered, ray_answers.opening_of(request, reading))
    else:
        with request.open() as answerer:
            yield row_answers.answerer_of_rows(answerer, request.task, reading)
        if request.first is not None:
            from slmctl.models.sum import SumEngine

            # a policy has a first step where file and members answer
            assert isinstance(answerer.model, SumEngine)
            terminal().say(
                f"  {terminal().count(answerer.model.kept, 'answer')} by the linear members alone"
            )
