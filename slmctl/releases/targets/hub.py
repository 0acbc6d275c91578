"""hf:ORG/NAME: a repository of the Hugging Face Hub, private unless asked otherwise; a version is
the tag vVERSION.

Large files are uploaded to the Hub's storage first, invisibly. Then one commit makes the release,
and a tag its version. So an interrupted upload shows nothing, and continues with the missing files.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from slmctl.artifacts.artifact import MANIFEST
from slmctl.errors import GateError, IntegrityError, UsageError
from slmctl.network import hub
from slmctl.releases.targets import Settings, Shipment, ShipmentFile

# Hosts to which huggingface.co redirects uploads of large files.
STORES = (
    "hf-hub-lfs-us-east-1.s3.us-east-1.amazonaws.com",
    "hf-hub-lfs-us-east-1.s3-accelerate.amazonaws.com",
    "hf-hub-lfs-us-east-1.s3.amazonaws.com",
)
LARGEST_LISTING = 10_000  # largest number of entries that are listed
READ_S = 120  # read timeout in seconds
_KEPT = (".gitattributes",)  # written by the Hub; never deleted by a release
# keys: true for a public repository
_WORD = {True: "public", False: "private"}
_SEEN_BY = {True: "everybody", False: "private: the organisation's members"}


def open(to: str, settings: Settings) -> HubRepository:
    """The repository of an address."""
    repo, revision = hub.split(to.removeprefix("hf:"), example="publish.to: hf:")
    if revision:
        raise UsageError(
            f"'{to}' names a revision", hint=f"hf:{repo}; a release is tagged with its version"
        )
    return HubRepository(repo, settings)


class HubRepository:
    """One repository as a target."""

    def __init__(self, repo: str, settings: Settings) -> None:
        self.repo, self.public = repo, settings.public
        contacted = hub.hosts()
        self.hosts = (
            *sorted(contacted),
            *(STORES if "huggingface.co" in contacted else ()),
            *settings.hosts,
        )

    @property
    def visibility(self) -> str:
        """The people who may see the repository now, or will once it exists."""
        private = self._is_private()
        if private is None or private != self.public:
            return _SEEN_BY[self.public]
        return (
            f"{_SEEN_BY[not private]}, and publish asks for {_WORD[self.public]}: it would be "
            "refused"
        )

    @functools.cached_property
    def _api(self) -> Any:
        """The client; created when the network is open, since it
        reads environment variables on import.
        """
        hub.require_reachable(otherwise="without a hub: publish: {to: dir:FOLDER}")
        os.environ["HF_HUB_DISABLE_XET"] = "1"  # Xet uses other hosts and another client
        client = hub.client()
        constants: Any = sys.modules["huggingface_hub.constants"]
        constants.HF_HUB_DISABLE_XET = True
        return client

    def where(self, shipment: Shipment, item: ShipmentFile) -> str:
        return f"hf:{self.repo}@v{shipment.version}/{item.name}"

    def holds(self, shipment: Shipment) -> set[str]:
        there = self._files(f"v{shipment.version}") or self._files("main") or {}
        return {item.name for item in shipment.items if _same(item, there.get(item.name))}

    def put(self, shipment: Shipment, missing: Sequence[ShipmentFile]) -> None:
        """Check that the repository is public or private as asked (else
        GateError), then upload large files.
        """
        with hub.spoken(f"the hub did not take {self.repo}"):
            self._api.create_repo(self.repo, private=not self.public, exist_ok=True)
        # read back, since `create_repo` keeps an existing visibility
        if self._is_private() != (not self.public):
            raise GateError(
                f"hf:{self.repo} is {_WORD[not self.public]}, and publish asks for "
                f"{_WORD[self.public]}: "
                "nothing was uploaded",
                reason="visibility",
                hint=f"change it on the hub, or publish: {{public: "
                f"{str(not self.public).lower()}}}",
            )
        with hub.spoken(f"the hub did not take {self.repo}"):
            self._api.preupload_lfs_files(
                self.repo, additions=self._additions(missing), free_memory=False
            )

    def finish(self, shipment: Shipment) -> None:
        """Make one commit, after which the repository holds exactly this release, and tag it."""
        from huggingface_hub import CommitOperationDelete

        with hub.spoken(f"the hub did not take {self.repo}"):
            head = self._api.model_info(self.repo).sha
            there = self._files("main") or {}
            names = {item.name for item in shipment.items}
            changes: list[Any] = [
                CommitOperationDelete(name) for name in there if name not in {*names, *_KEPT}
            ]
            changes += self._additions(
                [item for item in shipment.items if not _same(item, there.get(item.name))]
            )
            if changes:
                message = f"{shipment.project} {shipment.version}"
                head = self._api.create_commit(
                    self.repo, changes, commit_message=message, parent_commit=head
                ).oid  # fails if another commit was made meanwhile
            tag = f"v{shipment.version}"
            if self._files(tag) is not None:  # the same release, to which a signature is added
                self._api.delete_tag(self.repo, tag=tag)
            self._api.create_tag(self.repo, tag=tag, revision=head)

    def find(self, name: str) -> tuple[str, str]:
        project, _, version = name.rpartition("@")
        if version:
            return project, version.removeprefix("v")
        with hub.spoken(f"the hub gave no {self.repo}"):
            tags = [
                item.name[1:]
                for item in self._api.list_repo_refs(self.repo).tags
                if item.name.startswith("v")
            ]
        if len(tags) != 1:
            raise UsageError(
                f"hf:{self.repo} has {len(tags)} releases",
                hint=f"#VERSION: {', '.join(tags) or 'none'}",
            )
        return project, tags[0]

    def _is_private(self) -> bool | None:
        """True for a private repository, by the Hub's answer; None if it does not exist."""
        api = self._api
        from huggingface_hub.errors import RepositoryNotFoundError

        with hub.spoken(f"the hub gave no {self.repo}"):
            try:
                return bool(api.model_info(self.repo).private)
            except RepositoryNotFoundError:
                return None

    def _additions(self, items: Sequence[ShipmentFile]) -> list[Any]:
        from huggingface_hub import CommitOperationAdd

        return [CommitOperationAdd(item.name, item.path) for item in items]

    def _files(self, revision: str) -> dict[str, Any] | None:
        """The files of a revision, by path; None if the revision or repository does not exist."""
        api = self._api
        from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

        with hub.spoken(f"the hub gave no {self.repo}"):
            try:
                listed = api.list_repo_tree(self.repo, recursive=True, revision=revision)
                tree = list(itertools.islice(listed, LARGEST_LISTING))
            except (RepositoryNotFoundError, RevisionNotFoundError):
                return None
        return {item.path: item for item in tree if hasattr(item, "blob_id")}

    @contextlib.contextmanager
    def read(
        self, project: str, version: str, name: str, sha256: str
    ) -> Iterator[Iterator[bytes] | None]:
        """Yield the pieces of a file. Not by the client's own
        download, which has no limit of size.
        """
        revision = f"v{version}"
        files = self._files(revision) if not sha256 else {name}
        if files is not None and MANIFEST not in files and not sha256:
            raise IntegrityError(
                f"hf:{self.repo} has a tag {revision} that is no release of slmctl"
            )
        if files is None or name not in files:
            yield None
            return
        token = self._api.token
        from huggingface_hub import get_session, hf_hub_url

        utils: Any = sys.modules["huggingface_hub.utils"]
        headers = {**utils.build_hf_headers(token=token), "Accept-Encoding": "identity"}
        url = hf_hub_url(self.repo, name, revision=revision)
        with (
            hub.spoken(f"the hub gave no {name} of {self.repo}"),
            get_session().stream(
                "GET", url, headers=headers, follow_redirects=True, timeout=READ_S
            ) as answer,
        ):
            utils.hf_raise_for_status(answer)
            yield answer.iter_raw(1 << 20)


def _same(item: ShipmentFile, there: Any) -> bool:
    """True if a file on the Hub has this content: by sha256 for a
    file in LFS, else by git's blob hash.
    """
    if there is None or there.size != item.size:
        return False
    if there.lfs is not None:
        return bool(there.lfs.sha256 == item.sha256)
    content = item.path.read_bytes()
    return bool(
        there.blob_id
        == hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    )
