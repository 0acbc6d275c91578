"""Rows and a Ray cluster -> their answers in order, by Ray Data's `map_batches`: one engine a node.

The rows of a chunk travel through Ray's object store with nothing but the column that is asked. A
node that dies takes no row with it: Ray asks the chunks that it held again, on a node that lives.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import json
import logging
import os
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slmctl import __version__, child_environment, console, models
from slmctl.artifacts import artifact
from slmctl.errors import IntegrityError, NetworkError, SlmctlError, StageError, UsageError
from slmctl.network import guard
from slmctl.pipeline import named
from slmctl.pipeline.model_lookup import FileModel
from slmctl.sources.rows.cells import Row
from slmctl.stages.predict import row_answers
from slmctl.stages.predict.row_answers import AddedColumns, RowInput
from slmctl.task.contract import Task

LISTEN_S = 10.0  # for an address to accept a connection
# in place of an address: a cluster of this machine alone, for as long as the command runs
LOCAL = "local"
ACTOR_CPUS = 0.1  # a share, so that the engine of a node that died always fits on one that lives
# of Ray's object store in a local cluster; what does not fit goes to the disk
STORE_BYTES = 512 << 20
SWITCHES = {  # read by Ray when it is imported, and by the processes that it starts
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DISABLE_DOCKER_CPU_WARNING": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
# on every system: a local cluster listens on the loopback alone
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


@dataclass(frozen=True)
class EngineOpening:
    """A model as every node opens it: under the same path, with the same
    digest, by the same version of slmctl.
    """

    model: str
    digest: str
    base: str | None
    task: Task
    type: str | None
    max_tokens: int
    reading: RowInput
    version: str = __version__


class ChunkAnswerer:
    """An actor of Ray: opens the model once, and answers chunks."""

    def __init__(self, opening: EngineOpening) -> None:
        os.environ.update(guard.SWITCHES)
        if opening.version != __version__:
            raise StageError(
                f"this node has slmctl {__version__}, and the command slmctl {opening.version}"
            )
        model = _opened(opening.model, opening.digest)
        base = named.open_model(Path(opening.base), ("base",)) if opening.base else None
        self._stack = contextlib.ExitStack()  # ends with the actor's process
        whole = models.of(model, type=opening.type, base=base)
        answerer = self._stack.enter_context(
            whole.open(opening.task, max_tokens=opening.max_tokens)
        )
        self._answer = row_answers.answerer_of_rows(answerer, opening.task, opening.reading)

    def __call__(self, batch: Any) -> Any:
        """The answers to a table of rows, in their order: `place` and,
        as JSON, the columns that a row gets.
        """
        import pyarrow as pa

        rows = [Row(*json.loads(line)) for line in batch["row"].to_pylist()]
        answers = [json.dumps(added) for chunk in self._answer(iter(rows)) for added in chunk]
        return pa.table({"place": batch["place"], "answer": pa.array(answers, pa.string())})


@contextlib.contextmanager
def connected(address: str) -> Iterator[RayCluster]:
    """A cluster, for the length of a block; `local` starts one on this machine and ends it.

    Raises:
        ModuleNotFoundError: Ray is not installed.
        NetworkError: There is no cluster at the address.
        UsageError: The address is malformed.
    """
    if address != LOCAL and not re.fullmatch(
        r"[A-Za-z0-9.-]+:[0-9]{1,5}|\[[0-9A-Fa-f:]+\]:[0-9]{1,5}", address
    ):
        raise UsageError(
            f"--ray wants HOST:PORT or local, got '{address}'", hint="--ray 10.0.0.1:6379"
        )
    host = "127.0.0.1" if address == LOCAL else address.rpartition(":")[0].strip("[]")
    far = not guard.is_local(host)
    with guard.network(f"--ray {address}", {host, *([socket.gethostname()] * far)}):
        if far:
            guard.contacted.add(host)
            guard.uncounted.add(host)  # Ray's sockets are those of native code
        os.environ.update(SWITCHES | (LOOPBACK if address == LOCAL else {}))
        ray = importlib.import_module("ray")
        importlib.import_module("ray.data")
        if address != LOCAL:
            _require_listening(address, host)
        _join(ray, address)
        try:
            able = [
                node
                for node in ray.nodes()
                if node["Alive"] and node["Resources"].get("CPU", 0) > 0
            ]
            if not able:
                raise StageError(
                    f"no node of the Ray cluster {address} offers a CPU", hint="ray status"
                )
            console.say(f"  {len(able)} Ray nodes, an engine each")
            yield RayCluster(ray, len(able))
        finally:
            ray.shutdown()


def _require_listening(address: str, host: str) -> None:
    """Raise NetworkError where nobody listens: Ray itself asks such an address for minutes."""
    try:
        socket.create_connection((host, int(address.rpartition(":")[2])), timeout=LISTEN_S).close()
    except OSError as error:
        raise NetworkError(
            f"there is no Ray cluster at {address}: {error.strerror or error}",
            hint="ray start --head starts one, and ray status prints its address",
        ) from None


def _join(ray: Any, address: str) -> None:
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == LOCAL:
        quiet |= {"include_dashboard": False, "object_store_memory": STORE_BYTES}
    try:
        # a cluster that is started here inherits this environment; one that is there may ask for a
        # token in it
        with child_environment.hidden() if address == LOCAL else contextlib.nullcontext():
            ray.init(address=address, **quiet)
    except (ConnectionError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise NetworkError(
            f"the Ray cluster {address} cannot be joined: {reason}", hint="ray status"
        ) from None
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.max_consecutive_actor_init_deaths = 3  # a busy node may lose an engine at its start
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)


@dataclass(frozen=True)
class RayCluster:
    """Ray's module, connected to a cluster, and the number of nodes that offer a CPU."""

    ray: Any
    nodes: int

    def answered(self, opening: EngineOpening, rows: Iterator[Row]) -> Iterator[list[AddedColumns]]:
        """The columns that rows get, in their order, chunk by chunk.

        Raises:
            StageError: A node cannot open the model, or answers do not come back as they were sent.
        """
        chunks, count = self._stored(opening.reading, rows)
        if not chunks:
            return
        answers = self.ray.data.from_arrow_refs(chunks).map_batches(
            ChunkAnswerer,
            fn_constructor_args=(opening,),
            # a chunk as it is, so that what is answered together is what one process answers
            # together
            batch_size=None,
            batch_format="pyarrow",
            compute=self.ray.data.ActorPoolStrategy(size=min(self.nodes, len(chunks))),
            num_cpus=ACTOR_CPUS,
            scheduling_strategy="SPREAD",
        )
        place = 0
        with _spoken(self.ray):
            for batch in answers.iter_batches(batch_size=None, batch_format="pyarrow"):
                if batch["place"].to_pylist() != list(range(place, place + len(batch))):
                    raise StageError(
                        f"Ray brought other rows back than those from {place} on",
                        hint="run it again",
                    )
                place += len(batch)
                answered: list[AddedColumns] = [
                    json.loads(line) for line in batch["answer"].to_pylist()
                ]
                yield answered
        if place != count:
            raise StageError(f"Ray brought {place} of {count} answers back", hint="run it again")

    def _stored(self, reading: RowInput, rows: Iterator[Row]) -> tuple[list[Any], int]:
        """References to chunks of rows in Ray's object store, and the number of rows."""
        import pyarrow as pa

        chunks, count = [], 0
        while block := list(itertools.islice(rows, row_answers.CHUNK)):
            lines = []
            for row in block:  # without the columns that are not asked
                cells = {name: cell for name, cell in row.columns.items() if name == reading.column}
                lines.append(json.dumps([row.number, cells, row.fault]))
            places = pa.array(range(count, count + len(block)), pa.int64())
            chunks.append(
                self.ray.put(pa.table({"place": places, "row": pa.array(lines, pa.string())}))
            )
            count += len(block)
        return chunks, count


def _opened(path: str, digest: str) -> artifact.Artifact:
    """The model at a path, whole.

    Raises:
        IntegrityError: It is not there, damaged, or another one.
    """
    model = named.open_model(Path(path), ("published", "gguf", "merged", "adapter", "base"))
    if model.digest != digest:
        raise IntegrityError(
            f"{path} on {socket.gethostname()} is another model than the command's"
        )
    artifact.require_whole(model)
    return model


@contextlib.contextmanager
def _spoken(ray: Any) -> Iterator[None]:
    """Turn an error of Ray into a sentence: slmctl's own error on a
    node, else the last line of Ray's text.
    """
    try:
        yield
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, SlmctlError):
            raise StageError(f"a Ray node: {cause.message}", hint=cause.hint) from error
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        own = [line for line in lines if line.startswith("slmctl.errors.")]
        raise StageError(
            f"Ray could not answer the rows: {(own or lines or [type(error).__name__])[-1]}",
            hint="the answers so far are kept: the same command goes on from there",
        ) from error


def opening_of(request: FileModel, reading: RowInput) -> EngineOpening:
    """The opening of a model that a command has found."""
    model, base = request.source, request.base
    return EngineOpening(
        model=str(model.path.resolve()),
        digest=model.digest,
        base=str(base.path.resolve()) if base else None,
        task=request.task,
        type=request.type,
        max_tokens=request.max_tokens,
        reading=reading,
    )
