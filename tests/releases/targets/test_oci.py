"""An OCI registry beyond what all targets do: signing in by password and by token, and large files in pieces."""

from __future__ import annotations

import base64
import http.client
import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

import pytest
from support.released import contents, release

from slmctl.errors import NetworkError
from slmctl.releases import targets
from slmctl.releases.targets import Settings

pytest.importorskip("oras")

from slmctl.releases.targets import oci as module

USER, PASSWORD = "jo", "open sesame"  # as conftest has it in the registry's file


@pytest.fixture
def signed_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCI_USERNAME", USER)
    monkeypatch.setenv("OCI_PASSWORD", PASSWORD)


def round_trip(host: str, folder: Path) -> None:
    """Publish, see that the second time sends nothing, fetch."""
    made, to = release(folder, weights=os.urandom(20_000)), f"oci://{host}/acme/desk"
    with targets.opened(to, Settings(), purpose="test") as target:
        targets.deliver(target, targets.plan(target, to, targets.shipment(made)))
    with targets.opened(to, Settings(), purpose="test") as target:
        again = targets.plan(target, to, targets.shipment(made))
        assert (again.there, again.missing) == (True, ())
        assert contents(targets.fetch(target, "", None, into=folder / "here").path) == contents(made.path)


# By password


def test_a_registry_that_wants_a_password_gets_it(locked_oci: str, signed_in: None, tmp_path: Path) -> None:
    round_trip(locked_oci, tmp_path)


@pytest.mark.parametrize("password", ["", "wrong"])
def test_without_the_password_it_is_said(
    locked_oci: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, password: str
) -> None:
    monkeypatch.setenv("OCI_USERNAME", USER)
    monkeypatch.setenv("OCI_PASSWORD", password)
    to = f"oci://{locked_oci}/acme/other"
    with (
        pytest.raises(NetworkError) as caught,
        targets.opened(to, Settings(), purpose="test") as target,
    ):
        targets.plan(target, to, targets.shipment(release(tmp_path)))
    assert caught.value.hint == "OCI_USERNAME and OCI_PASSWORD sign in"


# By token


LASTS = 6  # requests that a token is good for


class Guarded(BaseHTTPRequestHandler):
    """In front of a registry: who reads needs a token for reading, who writes one for both, and each one ends."""

    registry: ClassVar = ""
    given: ClassVar[dict[str, list[Any]]] = {}
    asked: ClassVar[list[str]] = []
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        here = f"http://{self.headers['Host']}"
        if url.path == "/token":
            scope = parse_qs(url.query)["scope"][0]
            who = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
            token = f"token-{len(self.given)}" if self.headers.get("Authorization") == f"Basic {who}" else ""
            self.given[token] = [scope, LASTS]
            self.asked.append(scope)
            return self._answer(200 if token else 401, {}, json.dumps({"token": token}).encode())
        known = self.given.get(self.headers.get("Authorization", "").removeprefix("Bearer "), ["", 0])
        wanted = "pull" if self.command in ("GET", "HEAD") else "pull,push"
        if not known[0].endswith((":pull,push", f":{wanted}")) or not known[1]:
            name = "/".join(url.path.split("/")[2:4])
            challenge = f'Bearer realm="{here}/token",service="test",scope="repository:{name}:{wanted}"'
            return self._answer(401, {"Www-Authenticate": challenge}, b"{}")
        known[1] -= 1
        passed = {name: value for name, value in self.headers.items() if name != "Authorization"}
        connection = http.client.HTTPConnection(self.registry)
        connection.request(self.command, self.path, body, passed)
        answer = connection.getresponse()
        headers = {name: value for name, value in answer.getheaders() if name.lower() != "transfer-encoding"}
        self._answer(answer.status, headers, answer.read())
        connection.close()
        return None

    do_HEAD = do_POST = do_PUT = do_PATCH = do_GET  # noqa: N815

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response_only(status)
        length = headers.get("Content-Length") if self.command == "HEAD" else None
        for name, value in {**headers, "Content-Length": length or str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def guarded(oci: str) -> Iterator[str]:
    Guarded.registry, Guarded.given, Guarded.asked = oci, {}, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Guarded)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_token_is_asked_for_anew_where_one_is_refused(guarded: str, signed_in: None, tmp_path: Path) -> None:
    round_trip(guarded, tmp_path)
    assert {scope.rpartition(":")[2] for scope in Guarded.asked} == {"pull", "pull,push"}
    assert len(Guarded.asked) > 3, "no token has ended"


# Large files


def test_a_large_file_goes_in_pieces(oci: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WHOLE", 7_000)
    to = f"oci://{oci}/acme/pieces"
    sent: list[str] = []
    with targets.opened(to, Settings(), purpose="test") as target:
        assert isinstance(target, module.OciRepository)
        request = target._client.session.request

        def counted(method: str, *args: object, **more: object) -> object:
            sent.append(method)
            return request(method, *args, **more)

        monkeypatch.setattr(target._client.session, "request", counted)
        made = release(tmp_path, weights=os.urandom(30_000))
        targets.deliver(target, targets.plan(target, to, targets.shipment(made)))
        assert sent.count("PATCH") == 5
        assert contents(targets.fetch(target, "", None, into=tmp_path / "here").path) == contents(made.path)
