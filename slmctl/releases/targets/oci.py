"""oci://HOST/REPOSITORY: an OCI registry, in the form of CNCF's ModelPack; a version is a tag.

Every file is a layer by itself, uncompressed, so that registries and runtimes keep and share each once. The OCI
manifest comes last: until it is there nobody sees a tag.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import oras.auth
import oras.provider
import requests

from slmctl.artifacts.artifact import MANIFEST, SIGNATURE, FileEntry, canonical
from slmctl.errors import IntegrityError, NetworkError, UsageError
from slmctl.network import guard
from slmctl.network.credentials import secret
from slmctl.releases.targets import LARGEST_MANIFEST, Settings, Shipment, ShipmentFile

# ModelPack's model-spec; where a layer belongs, by its name.
ARTIFACT = "application/vnd.cncf.model.manifest.v1+json"
CONFIG = "application/vnd.cncf.model.config.v1+json"
WEIGHT = "application/vnd.cncf.model.weight.v1.raw"
WEIGHT_CONFIG = "application/vnd.cncf.model.weight.config.v1.raw"
DOC = "application/vnd.cncf.model.doc.v1.raw"
FILEPATH = "org.cncf.model.filepath"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_WEIGHTS = (".gguf", ".safetensors")
_DOCS = (".md", ".html", "LICENSE", "NOTICE", "USE_POLICY", "rows.jsonl", "report.json", ".intoto.json")
WHOLE = 64 << 20  # bytes that go in one request; a larger file goes in pieces of this size


class _SignIn(oras.auth.TokenAuth):
    """How a registry wants its clients to sign in, by its own challenge: by password, or by a token.

    oras alone knows one way for a whole registry, and sends a token again that was refused: one that was made for
    reading does not write, and one that has expired does nothing.
    """

    _scheme = "Bearer"

    def get_auth_header(self) -> dict[str, str]:
        return {"Authorization": f"{self._scheme} {self.token}"} if self.token else {}

    def authenticate_request(self, original: Any, headers: Any, refresh: bool = False) -> tuple[dict[str, str], bool]:
        original.close()  # a refusal that was streamed would keep its connection
        scheme = original.headers.get("Www-Authenticate", "").partition(" ")[0].lower()
        if scheme != "basic":
            self._scheme = "Bearer"
            answer: tuple[dict[str, str], bool] = super().authenticate_request(original, headers, refresh=True)
            return answer
        self._scheme, self.token = "Basic", getattr(self, "_basic_auth", None)
        return {**(headers or {}), **self.get_auth_header()}, self.token is not None


class _Client(oras.provider.Registry):
    """oras without its repeating, which would take a refusal of the network's for a hiccup and wait for minutes."""

    do_request = oras.provider.Registry.do_request.__wrapped__

    def __init__(self, host: str, *, insecure: bool) -> None:
        super().__init__(hostname=host, insecure=insecure)
        self.auth = _SignIn()
        self.auth.session, self.auth.prefix, self.auth._tls_verify = self.session, self.prefix, self._tls_verify


def open(to: str, settings: Settings) -> OciRepository:
    """The repository of an address."""
    host, _, name = to.removeprefix("oci://").partition("/")
    if not name or ":" in name or "@" in name:
        raise UsageError(f"'{to}' names no repository", hint="oci://HOST/REPOSITORY; the version becomes its tag")
    return OciRepository(host, name.strip("/"), settings)


class OciRepository:
    """One repository as a target."""

    visibility = "who may read the repository"

    def __init__(self, host: str, name: str, settings: Settings) -> None:
        self.name = f"{host}/{name}"
        bare = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        bare = bare.strip("[]")
        self._client = _Client(host, insecure=guard.is_local(bare))
        self.hosts = (*sorted(guard.on_the_way(f"{self._client.prefix}://{host}")), *settings.hosts)
        self._client.session.auth = lambda request: request  # no password from a .netrc
        user, password = secret("OCI_USERNAME"), secret("OCI_PASSWORD")
        if user and password:
            self._client.auth.set_basic_auth(user, password)

    def where(self, shipment: Shipment, item: ShipmentFile) -> str:
        return f"oci://{self.name}:{shipment.version}/{item.name}"

    def published(self, project: str, version: str, *, like: Shipment | None = None) -> bytes | None:
        layers = self._layers(version)
        if layers is None:
            return None
        if MANIFEST not in layers:
            raise IntegrityError(f"oci://{self.name}:{version} is no release of slmctl")
        with tempfile.TemporaryDirectory() as place:
            self._download(layers[MANIFEST], Path(place) / MANIFEST)
            return (Path(place) / MANIFEST).read_bytes()

    def holds(self, shipment: Shipment) -> set[str]:
        layers = self._layers(shipment.version)
        if layers is not None:
            named = {name: one["digest"] for name, one in layers.items()}
            return {item.name for item in shipment.items if named.get(item.name) == f"sha256:{item.sha256}"}
        with _spoken(self.name):
            container = self._container(shipment.version)
            return {one.name for one in shipment.items if self._client.blob_exists(_layer(one), container)}

    def put(self, shipment: Shipment, missing: Sequence[ShipmentFile]) -> None:
        with _spoken(self.name):
            for item in missing:
                self._send(item.path, _layer(item))

    def finish(self, shipment: Shipment) -> None:
        config = canonical(_config(shipment))
        about = {"mediaType": CONFIG, "digest": _digest(config), "size": len(config)}
        manifest = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "artifactType": ARTIFACT,
            "config": about,
            "layers": [_layer(item) for item in shipment.items],
            "annotations": {
                "org.opencontainers.image.title": shipment.project,
                "org.opencontainers.image.version": shipment.version,
                "org.opencontainers.image.licenses": shipment.release.metrics["license"] or "other",
            },
        }
        with _spoken(self.name), tempfile.TemporaryDirectory() as place:
            (Path(place) / "config").write_bytes(config)
            container = self._container(shipment.version)
            if not self._client.blob_exists(about, container):
                self._send(Path(place) / "config", about)
            url = f"{self._client.prefix}://{container.manifest_url()}"
            headers = {"Content-Type": OCI_MANIFEST}
            self._require(self._client.do_request(url, "PUT", headers=headers, data=canonical(manifest)))

    def find(self, name: str) -> tuple[str, str]:
        project, _, version = name.rpartition("@")
        if version:
            return project, version
        with _spoken(self.name):
            tags = self._client.get_tags(self._container("latest"))
        if len(tags) != 1:
            raise UsageError(f"oci://{self.name} has {len(tags)} tags", hint=f"#TAG: {', '.join(tags) or 'none'}")
        return project, tags[0]

    def get(self, project: str, version: str, entry: FileEntry, path: Path) -> None:
        layers = self._layers(version) or {}
        if entry.path in layers:
            self._download(layers[entry.path], path)
        elif entry.path != SIGNATURE:
            raise IntegrityError(f"oci://{self.name}:{version} has no {entry.path}", hint="publish again")

    def _container(self, version: str) -> Any:
        return self._client.get_container(f"{self.name}:{version}")

    def _layers(self, version: str) -> dict[str, dict[str, Any]] | None:
        """The layers of a tag by the files that they hold; None where there is no such tag."""
        with _spoken(self.name):
            url = f"{self._client.prefix}://{self._container(version).manifest_url()}"
            with self._client.do_request(url, headers={"Accept": OCI_MANIFEST}, stream=True) as answer:
                if answer.status_code == 404:
                    return None
                self._require(answer)
                try:
                    manifest = json.loads(answer.raw.read(LARGEST_MANIFEST, decode_content=True))
                    found = {one["annotations"][FILEPATH]: one for one in manifest["layers"]}
                    return {name: {"digest": str(one["digest"])} for name, one in found.items()}
                except (ValueError, KeyError, TypeError):
                    raise IntegrityError(f"oci://{self.name}:{version} is no model") from None

    def _send(self, path: Path, layer: dict[str, Any]) -> None:
        given = (str(path), self._container("latest"), layer)
        whole = layer["size"] <= WHOLE
        self._require(
            self._client.put_upload(*given) if whole else self._client.chunked_upload(*given, chunk_size=WHOLE)
        )

    def _download(self, layer: dict[str, Any], path: Path) -> None:
        with _spoken(self.name):
            answer = self._client.get_blob(self._container("latest"), layer["digest"], stream=True)
            with answer:
                self._require(answer)
                with path.open("wb") as out:
                    for piece in answer.iter_content(1 << 20):
                        out.write(piece)

    def _require(self, answer: requests.Response) -> None:
        if not answer.ok:
            raise NetworkError(
                f"oci://{self.name} answered {answer.status_code} to {answer.request.method}",
                hint="OCI_USERNAME and OCI_PASSWORD sign in",
            )


def _layer(item: ShipmentFile) -> dict[str, Any]:
    """An item as a layer of the OCI manifest."""
    kind = WEIGHT if item.name.endswith(_WEIGHTS) else DOC if _is_doc(item.name) else WEIGHT_CONFIG
    named = {FILEPATH: item.name, "org.opencontainers.image.title": item.name}
    return {"mediaType": kind, "digest": f"sha256:{item.sha256}", "size": item.size, "annotations": named}


def _is_doc(name: str) -> bool:
    return name.endswith(_DOCS) or name.startswith(_DOCS)


def _config(shipment: Shipment) -> dict[str, Any]:
    """What ModelPack wants to know of a model."""
    return {
        "descriptor": {
            "name": shipment.project,
            "version": shipment.version,
            "licenses": [shipment.release.metrics["license"] or "other"],
        },
        "config": {"format": "gguf", "quantization": ", ".join(shipment.release.metrics["files"])},
        "modelfs": {"type": "layers", "diffIds": [f"sha256:{item.sha256}" for item in shipment.items]},
    }


def _digest(raw: bytes) -> str:
    return "sha256:" + hashlib.sha256(raw).hexdigest()


@contextlib.contextmanager
def _spoken(name: str) -> Iterator[None]:
    """Turn what oras and requests raise into a sentence."""
    try:
        yield
    except requests.RequestException as error:
        raise NetworkError(f"oci://{name} cannot be reached: {type(error).__name__}") from None
    except ValueError as error:  # oras: a refusal, or an answer that it cannot read
        raise NetworkError(
            f"oci://{name}: {str(error).splitlines()[0]}", hint="OCI_USERNAME and OCI_PASSWORD sign in"
        ) from None
