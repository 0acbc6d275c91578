"""The Hugging Face Hub: what is asked of it is pinned to a commit, and what goes wrong there becomes a sentence."""

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
NO_ACCESS = "check the name; a gated one wants its terms accepted on the hub, and your token in HF_TOKEN"


def hosts() -> set[str]:
    """The hosts that the hub is asked at, and those that it sends its client to for large files."""
    url = _endpoint()
    names = guard.on_the_way(url)
    return names | ({"*.huggingface.co", "*.hf.co"} if urlsplit(url).hostname == "huggingface.co" else set())


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT") or "https://huggingface.co"


def require_reachable(*, otherwise: str) -> None:
    """Connect to the hub, or to the proxy on the way, once; its client would try for half a minute, and log each try.

    Args:
        otherwise: What can be done without a hub, for the hint.

    Raises:
        NetworkError: It cannot be reached.
    """
    way = guard.proxy_of(_endpoint()) or _endpoint()
    parts = urlsplit(way if "://" in way else f"http://{way}")
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((parts.hostname or "", port), timeout=CONNECT_S).close()
    except (OSError, ValueError) as error:  # a port that is no number
        why = getattr(error, "strerror", None) or error
        raise NetworkError(
            f"the hub cannot be reached: {parts.netloc.rpartition('@')[2]}: {why}", hint=f"{ON_THE_WAY}; {otherwise}"
        ) from None


def client() -> Any:
    """The hub's client (`HfApi`) with the user's token, which logs none of its tries."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils.logging import set_verbosity

    set_verbosity(logging.ERROR)
    # the libraries' switch keeps tokens from being sent unasked; a gated repository needs the user's
    return HfApi(token=secret("HF_TOKEN") or False)


@contextlib.contextmanager
def asked(purpose: str, repo: str, *, otherwise: str) -> Iterator[Any]:
    """The hub's client (`HfApi`), with the network open for what the block does with it.

    Raises:
        NetworkError: The hub refused, has no such thing, or cannot be reached; `otherwise` is what to do without it.
    """
    with guard.network(purpose, hosts=hosts(), hub=True):
        console.say(f"  contacting {', '.join(sorted(hosts()))}")
        require_reachable(otherwise=otherwise)
        with spoken(f"the hub gave no {repo}"):
            yield client()


@contextlib.contextmanager
def spoken(what: str) -> Iterator[None]:
    """Turn what the hub's client raises into a sentence.

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
        hint = "" if isinstance(error, HfHubHTTPError | OSError) else ON_THE_WAY
        hint = NO_ACCESS if isinstance(error, RepositoryNotFoundError) else hint  # a gated one is of this type, too
        raise NetworkError(f"{what}: {str(error).splitlines()[0]}", hint=hint) from None
    except RuntimeError as error:  # how the client wraps what went wrong in one of its uploading threads
        if not isinstance(error.__cause__, failures):
            raise
        raise NetworkError(f"{what}: {str(error.__cause__).splitlines()[0]}") from None


def split(name: str, *, example: str) -> tuple[str, str]:
    """`ORG/NAME@COMMIT` in its two parts; the commit may be missing or no commit.

    Raises:
        UsageError: It is not written like that.
    """
    repo, _, commit = name.partition("@")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise UsageError(f"{example}{name} is malformed", hint=f"{example}ORG/NAME@COMMIT")
    return repo, commit


def is_pinned(commit: str) -> bool:
    """True if a revision is a commit, and not a branch or tag, which can move."""
    return re.fullmatch(r"[0-9a-f]{40}", commit) is not None


def _transport_errors() -> tuple[type[Exception], ...]:
    """The exceptions of the hub's client for a failed connection: httpx's up to 1.x, httpx2's from 2.0 on."""
    return tuple(sys.modules[name].HTTPError for name in ("httpx", "httpx2") if name in sys.modules)
