"""The child process of `grammar_pool`: compiles JSON Schemas and follows their answers, each schema
in its own fork.

    python -m slmctl.inference.grammar_child [MODEL.gguf]
        sockets come in over stdin; a fork serves each

The vocabulary is read once, before the forks. A fork has a limit of memory, and ends itself when
one message takes longer than its time, also inside native code. Without a model the tokens are
bytes, which is enough to check a schema.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import llguidance

from slmctl.child import bound
from slmctl.errors import DataError
from slmctl.inference.json_grammar import Rules, Walk

GROWTH = 128 << 20  # bytes of address space that a fork may add
LARGE = 16 << 20  # of these, above which it is not kept for later answers


class _Bytes:
    """A tokenizer with a token a byte and an end."""

    eos_token_id, bos_token_id = 256, None
    special_token_ids = (256,)
    tokens = (*(bytes([k]) for k in range(256)), b"</s>")

    def __call__(self, text: bytes | str) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


def main(model: str | None) -> None:
    """Fork a process for every socket that comes over stdin, until stdin ends."""
    if model is None:
        tokenizer = llguidance.LLTokenizer(llguidance.TokenizerWrapper(_Bytes()))
    else:
        # llama.cpp, which a check does not need
        from slmctl.inference.llama_child import grammar_tokenizer

        tokenizer = grammar_tokenizer(model)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel buries the forks
    # they reach a whole group, of which the parent decides
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    control = socket.socket(fileno=os.dup(0))
    control.sendall(b"r")
    while True:
        letter, sockets, _, _ = socket.recv_fds(control, 1, 1)
        if not letter:
            return
        if os.fork() == 0:
            control.close()
            os.dup2(os.open(os.devnull, os.O_RDWR), 0)
            os.dup2(0, 2)  # a panic's message is for nobody
            _serve(tokenizer, Connection(sockets[0]))
            os._exit(0)
        os.close(sockets[0])


def _serve(tokenizer: llguidance.LLTokenizer, pipe: Connection) -> None:
    """Answer about one schema until the other end closes."""
    used = _size()
    bound(memory=used + GROWTH, file_bytes=0)
    rules: Rules | None = None
    walks: dict[str, Walk] = {}
    while True:
        try:
            message = json.loads(pipe.recv_bytes())
        except EOFError:
            return
        if "end" in message:
            walks.pop(message["end"], None)
            continue
        signal.setitimer(signal.ITIMER_REAL, message["budget_s"])
        mask, state = b"", dict[str, Any]()
        try:
            if rules is None:
                rules = Rules(tokenizer, message["schema"])
            walk = walks.get(message["walk"])
            if walk is None:
                walk = walks[message["walk"]] = rules.begin()
                forced = walk.forced()
            else:
                forced = walk.accept(message["token"])
            state = {"forced": forced, "finished": walk.finished}
            mask = b"" if walk.finished else walk.mask()
        except DataError as error:
            state = {"fault": error.message}
        signal.setitimer(signal.ITIMER_REAL, 0)
        state["large"] = _size() - used > LARGE
        pipe.send_bytes(json.dumps(state).encode() + b"\n" + mask)


def _size() -> int:
    """Bytes of address space of this process."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
