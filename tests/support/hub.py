"""A Hugging Face Hub on the loopback: enough of its HTTP API to read models and data sets, and to
publish.

Its client reads the address when it is imported: a child process asks with `environment`, this one
with `ask_here`.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import yaml

from support import tiny
from support.servers import QuietHandler, Server, answering

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = (".gguf", ".safetensors", ".model")  # what goes through LFS


@dataclass
class Repo:
    """A repository: the files of every commit, and what branch and tags point to."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    head: str = COMMIT
    tags: dict[str, str] = field(default_factory=dict)

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        sha = self.head if revision == "main" else self.tags.get(revision, revision)
        return (sha, self.commits[sha]) if sha in self.commits else None


class Hub(Server):
    """The server. `received` counts the bytes of files that were
    uploaded, `asked` lists the paths.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, Repo] = {}  # "models/acme/tiny"
        # large files by sha256, whether or not a commit names them
        self.stored: dict[str, bytes] = {}
        self.damaged: set[str] = set()
        self.asked: list[str] = []
        self.did: list[str] = []  # what changed something, in order
        self.received = 0
        self.token = ""  # when set, whoever has not this one sees nothing
        self.always_public = False
        # what somebody else commits right before the next commit
        self.meanwhile: dict[str, bytes] = {}
        self.stop_after: int | None = None  # large files; the next one ends the connection

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def add(self, name: str, files: dict[str, bytes]) -> None:
        """A repository with one commit; `models/ORG/NAME` or `datasets/ORG/NAME`."""
        self.repos[name] = Repo(commits={COMMIT: files})


def environment(url: str, folder: Path, **more: str) -> dict[str, str]:
    """The environment of a program that asks this hub."""
    return tiny.environment(
        HF_ENDPOINT=url, HF_HOME=str(folder / "hf-home"), HF_HUB_DISABLE_XET="1", **more
    )


def ask_here(url: str, patch: pytest.MonkeyPatch, token: str = "") -> None:
    """Have the client of this process, which has long been imported, ask a hub."""
    from huggingface_hub import constants

    patch.setenv("HF_ENDPOINT", url)
    patch.setenv("HF_TOKEN", token)
    patch.setattr(constants, "ENDPOINT", url)
    patch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}"
    )


@contextlib.contextmanager
def running() -> Iterator[Hub]:
    """A hub while the block runs."""
    server = Hub()
    with answering(server):
        yield server


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Handler(QuietHandler):
    server: Hub
    protocol_version = "HTTP/1.0"

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append(path)
        if not self._knows():
            return self._refuse("RepoNotFound", 401)
        api = re.fullmatch(
            r"/api/(models|datasets)/([\w.-]+/[\w.-]+?)(?:/(revision|tree|refs)(?:/(.+))?)?", path
        )
        file = re.fullmatch(r"/(datasets/)?([\w.-]+/[\w.-]+)/resolve/([^/]+)/(.+)", path)
        if api:
            return self._about(*api.groups())
        if file:
            return self._file(f"{'datasets' if file[1] else 'models'}/{file[2]}", file[3], file[4])
        return self._refuse("EntryNotFound")

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)) or self._chunks()
        self.server.asked.append(path)
        if not self._knows():
            return self._refuse("RepoNotFound", 401)
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            return self._validate(json.loads(body)["content"])
        if batch := re.fullmatch(r"/(.+)\.git/info/lfs/objects/batch", path):
            return self._batch(batch[1], json.loads(body))
        found = re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)/(preupload|commit|tag)/(.+)", path)
        repo = self.server.repos.get(f"models/{found[1]}") if found else None
        if found is None or repo is None:
            return self._refuse("RepoNotFound")
        if found[2] == "preupload":
            return self._preupload(repo, json.loads(body))
        if found[2] == "commit":
            return self._commit(found[1], repo, body)
        return self._tag(repo, found[3], json.loads(body)["tag"])

    def do_PUT(self) -> None:
        oid = self.path.removeprefix("/lfs/")
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.received += len(body)
        if self.server.stop_after is not None:
            if self.server.stop_after == 0:
                self.close_connection = True
                return None  # as if the line were cut
            self.server.stop_after -= 1
        if hashlib.sha256(body).hexdigest() != oid:
            return self._refuse("BadContent", 400)
        self.server.stored[oid] = body
        self.server.did.append("store")
        return self._answer({})

    def do_DELETE(self) -> None:
        path = unquote(urlsplit(self.path).path)
        found = re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)/tag/(.+)", path)
        if (
            found is None
            or self.server.repos[f"models/{found[1]}"].tags.pop(found[2], None) is None
        ):
            return self._refuse("RevisionNotFound")
        return self._answer({})

    # What is asked

    def _knows(self) -> bool:
        wanted = self.server.token
        return not wanted or self.headers.get("Authorization") == f"Bearer {wanted}"

    def _about(self, kind: str, name: str, what: str | None, revision: str | None) -> None:
        repo = self.server.repos.get(f"{kind}/{name}")
        if repo is None:
            return self._refuse("RepoNotFound")
        if what == "refs":
            tags = [
                {"name": tag, "ref": f"refs/tags/{tag}", "targetCommit": sha}
                for tag, sha in repo.tags.items()
            ]
            return self._answer({"branches": [], "tags": tags, "converts": []})
        found = repo.at(revision or "main")
        if found is None:
            return self._refuse("RevisionNotFound")
        sha, files = found
        if what == "tree":
            return self._answer([_entry(path, files[path]) for path in sorted(files)])
        listed = [
            {"rfilename": one, "size": len(raw), "blobId": git_hash(raw)}
            for one, raw in files.items()
        ]
        return self._answer(
            {"id": name, "sha": sha, "private": repo.private, "siblings": listed, "tags": []}
        )

    def _file(self, name: str, revision: str, path: str) -> None:
        repo = self.server.repos.get(name)
        found = repo.at(revision) if repo else None
        if found is None or path not in found[1]:
            return self._refuse("EntryNotFound" if found else "RevisionNotFound")
        content = found[1][path]
        self._send(
            content[::-1] if path in self.server.damaged else content, git_hash(content), found[0]
        )
        return None

    # What changes something

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"models/{asked['organization']}/{asked['name']}"
        url = f"{self.server.url}/{name.removeprefix('models/')}"
        if name in self.server.repos:
            return self._answer({"error": "exists", "url": url}, 409)
        # the client's form up to 1.x, and from 2
        wanted = asked.get("private") or asked.get("visibility") == "private"
        private = bool(wanted) and not self.server.always_public
        self.server.repos[name] = Repo(
            private, {COMMIT: {".gitattributes": b"*.gguf filter=lfs\n"}}
        )
        self.server.did.append("create private" if private else "create public")
        return self._answer({"url": url, "id": name})

    def _validate(self, card: str) -> None:
        """As the Hub does with a model card before it takes a commit."""
        head = yaml.safe_load(card.split("---\n")[1])
        wrong = [key for key in ("license", "base_model", "model-index") if key not in head]
        self._answer(
            {"errors": [{"message": f"{key} is missing"} for key in wrong], "warnings": []}
        )

    def _preupload(self, repo: Repo, asked: dict[str, Any]) -> None:
        files = repo.commits[repo.head]
        modes = [
            {
                "path": one["path"],
                "uploadMode": "lfs" if one["path"].endswith(LARGE) else "regular",
                "shouldIgnore": False,
                "oid": git_hash(files[one["path"]]) if one["path"] in files else None,
            }
            for one in asked["files"]
        ]
        self._answer({"files": modes})

    def _batch(self, name: str, asked: dict[str, Any]) -> None:
        objects = []
        for one in asked["objects"]:
            upload = {"upload": {"href": f"{self.server.url}/lfs/{one['oid']}"}}
            objects.append(
                {**one} if one["oid"] in self.server.stored else {**one, "actions": upload}
            )
        self._answer({"transfer": "basic", "objects": objects})

    def _commit(self, name: str, repo: Repo, body: bytes) -> None:
        lines = [json.loads(line) for line in body.splitlines() if line]
        if self.server.meanwhile:
            repo.commits["f" * 40] = repo.commits[repo.head] | self.server.meanwhile
            repo.head, self.server.meanwhile = "f" * 40, {}
        if lines[0]["value"].get("parentCommit") not in (None, repo.head):
            return self._refuse("Conflict", 412)
        files = dict(repo.commits[repo.head])
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "deletedFile":
                del files[value["path"]]
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.stored[value["oid"]]
            else:
                files[value["path"]] = base64.b64decode(value["content"])
                self.server.received += len(files[value["path"]])
        sha = hashlib.sha1(body + repo.head.encode()).hexdigest()
        repo.commits[sha], repo.head = files, sha
        self.server.did.append("commit")
        return self._answer(
            {
                "success": True,
                "commitOid": sha,
                "commitUrl": f"{self.server.url}/{name}/commit/{sha}",
            }
        )

    def _tag(self, repo: Repo, revision: str, tag: str) -> None:
        found = repo.at(revision)
        if found is None or tag in repo.tags:
            return self._refuse("Conflict", 409)
        repo.tags[tag] = found[0]
        self.server.did.append("tag")
        return self._answer({})

    # Answering

    def _chunks(self) -> bytes:
        body = b""
        while "chunked" in self.headers.get("Transfer-Encoding", ""):
            size = int(self.rfile.readline(), 16)
            body += self.rfile.read(size)
            self.rfile.readline()
            if size == 0:
                break
        return body

    def _answer(self, value: Any, status: int = 200) -> None:
        self._send(json.dumps(value).encode(), None, None, status)

    def _refuse(self, code: str, status: int = 404) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(self, body: bytes, etag: str | None, commit: str | None, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/octet-stream" if etag else "application/json")
        self.send_header("Content-Length", str(len(body)))
        if etag and commit:
            self.send_header("ETag", f'"{etag}"')
            self.send_header("X-Repo-Commit", commit)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _entry(path: str, content: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "type": "file",
        "path": path,
        "size": len(content),
        "oid": git_hash(content),
    }
    if path.endswith(LARGE):
        entry["lfs"] = {
            "oid": hashlib.sha256(content).hexdigest(),
            "size": len(content),
            "pointerSize": 130,
        }
    return entry
