"""Access to the Hugging Face Hub: client, hosts, pinned names, and its errors as NetworkError."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import socket
import sys
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from slmctl import console
from slmctl.errors import NetworkError, UsageError
from slmctl.network import guard
from slmctl.network.credentials import secret

CONNECT_S = 10
ON_THE_WAY = "HTTPS_PROXY names a proxy of this network, HF_ENDPOINT a mirror of the hub"
NO_ACCESS = (
    "check the name; a gated one wants its terms accepted on the hub, and your token in HF_TOKEN"
)


def hosts() -> set[str]:
    """The hosts of the hub, of the proxy to it, and of the storage
    that it redirects to for large files.
    """
    url = _endpoint()
    names = guard.on_the_way(url)
    return names | (
        {"*.huggingface.co", "*.hf.co"} if urlsplit(url).hostname == "huggingface.co" else set()
    )


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT") or "https://huggingface.co"


def require_reachable(*, otherwise: str) -> None:
    """Connect once to the hub, or to the proxy; its client would retry for half a minute, and log
    each attempt.

    Args:
        otherwise: An alternative without the hub, for the hint.

    Raises:
        NetworkError: The hub cannot be reached.
    """
    parts = urlsplit(guard.proxy_of(_endpoint()) or _endpoint())
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((parts.hostname or "", port), timeout=CONNECT_S).close()
    except (OSError, ValueError) as error:  # ValueError: an invalid port
        why = getattr(error, "strerror", None) or error
        raise NetworkError(
            f"the hub cannot be reached: {parts.netloc.rpartition('@')[2]}: {why}",
            hint=f"{ON_THE_WAY}; {otherwise}",
        ) from None


def client() -> Any:
    """The hub's client (`HfApi`) with the user's token; it logs only errors."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils.logging import set_verbosity

    set_verbosity(logging.ERROR)
    # HF_HUB_DISABLE_IMPLICIT_TOKEN is set, so the token for gated repositories is passed explicitly
    return HfApi(token=secret("HF_TOKEN") or False)


@contextlib.contextmanager
def asked(purpose: str, repo: str, *, otherwise: str) -> Iterator[Any]:
    """Yield the hub's client (`HfApi`) with the network open for the hub; `otherwise` as in
    `require_reachable`.

    Raises:
        NetworkError: The hub refused, does not have the repository or file, or cannot be reached.
    """
    with guard.network(purpose, hosts=hosts(), hub=True):
        console.say(f"  contacting {', '.join(sorted(hosts()))}")
        require_reachable(otherwise=otherwise)
        with spoken(f"the hub gave no {repo}", otherwise=otherwise):
            yield client()


@contextlib.contextmanager
def spoken(what: str, *, otherwise: str = "") -> Iterator[None]:
    """Convert exceptions of the hub's client; `what` begins the message, `otherwise` as in
    `require_reachable`.

    Raises:
        NetworkError: The hub refused, or cannot be reached.
    """
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    failures: tuple[type[Exception], ...] = (HfHubHTTPError, OSError, *_transport_errors())
    try:
        yield
    except failures as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        on_the_way = "; ".join(filter(None, (ON_THE_WAY, otherwise)))
        hint = "" if isinstance(error, HfHubHTTPError | OSError) else on_the_way
        # includes GatedRepoError
        hint = NO_ACCESS if isinstance(error, RepositoryNotFoundError) else hint
        raise NetworkError(f"{what}: {str(error).splitlines()[0]}", hint=hint) from None
    except RuntimeError as error:  # the client wraps errors of its upload threads
        if not isinstance(error.__cause__, failures):
            raise
        raise NetworkError(f"{what}: {str(error.__cause__).splitlines()[0]}") from None


def split(name: str, *, example: str) -> tuple[str, str]:
    """Split `ORG/NAME@COMMIT` into (ORG/NAME, revision); the revision may be '' or a branch.

    Raises:
        UsageError: `name` has another form.
    """
    repo, _, commit = name.partition("@")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise UsageError(f"{example}{name} is malformed", hint=f"{example}ORG/NAME@COMMIT")
    return repo, commit


def is_pinned(commit: str) -> bool:
    """True if a revision is a full commit hash, not a branch or tag, which can move."""
    return re.fullmatch(r"[0-9a-f]{40}", commit) is not None


def _transport_errors() -> tuple[type[Exception], ...]:
    """The exceptions of the hub's client for a failed connection: of
    httpx up to 1.x, of httpx2 from 2.0 on.
    """
    return tuple(sys.modules[name].HTTPError for name in ("httpx", "httpx2") if name in sys.modules)
