"""oci://HOST/REPOSITORY: an OCI registry, in the form of CNCF's ModelPack; a version is a tag.

Every file is a layer by itself, uncompressed, so that registries and runtimes keep and share each once. The OCI
manifest comes last: until it is there nobody sees a tag.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import oras.auth
import oras.provider
import requests
import requests.adapters

from slmctl.artifacts import bounded_json
from slmctl.artifacts.artifact import MANIFEST, SIGNATURE, FileEntry, canonical, sha256_bytes
from slmctl.errors import IntegrityError, NetworkError, UsageError
from slmctl.network import guard
from slmctl.network.credentials import secret
from slmctl.releases.targets import Settings, Shipment, ShipmentFile, gather, receive

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
TAGS = 100  # of a repository that are looked at
CONNECT_S, READ_S = 30, 600  # seconds without a byte after which a registry is given up
WHOLE = 64 << 20  # bytes that go in one request; a larger file goes in pieces of this size


class _SignIn(oras.auth.TokenAuth):
    """The sign-in that a registry's challenge asks for: by password, or by a token.

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
            try:
                answer: tuple[dict[str, str], bool] = super().authenticate_request(original, headers, refresh=True)
            except (AttributeError, KeyError, TypeError):  # of a token that is not in the form of a token
                raise ValueError("the answer to signing in cannot be read") from None
            return answer
        self._scheme, self.token = "Basic", getattr(self, "_basic_auth", None)
        return {**(headers or {}), **self.get_auth_header()}, self.token is not None


class _Bounded(requests.adapters.HTTPAdapter):
    """Reads no answer but a file's content beyond a bound, and no compressed one: 5 kB can stand for 3 GB."""

    def send(self, request: Any, stream: bool = False, timeout: Any = None, **more: Any) -> requests.Response:
        request.headers["Accept-Encoding"] = "identity"
        answer = super().send(request, stream=True, timeout=timeout or (CONNECT_S, READ_S), **more)
        if answer.headers.get("Content-Encoding", "identity") != "identity":
            answer.close()
            raise requests.exceptions.ContentDecodingError("compressed, though that was not accepted")
        if not stream or answer.is_redirect:
            answer._content = gather(answer.iter_content(1 << 16), "an answer of the registry")
        return answer


class _Client(oras.provider.Registry):
    """oras without its repeating, which would take a refusal of the network's for a hiccup and wait for minutes."""

    do_request = oras.provider.Registry.do_request.__wrapped__

    def __init__(self, host: str, *, insecure: bool) -> None:
        super().__init__(hostname=host, insecure=insecure)
        self.auth = _SignIn()
        self.auth.session, self.auth.prefix, self.auth._tls_verify = self.session, self.prefix, self._tls_verify
        for scheme in ("http://", "https://"):
            self.session.mount(scheme, _Bounded())


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
        with self._blob(layers[MANIFEST]) as pieces:
            raw = gather(pieces, f"the manifest of oci://{self.name}:{version}")
        if sha256_bytes(raw) != layers[MANIFEST]:
            raise IntegrityError(f"the manifest of oci://{self.name}:{version} came otherwise than its digest says")
        return raw

    def holds(self, shipment: Shipment) -> set[str]:
        layers = self._layers(shipment.version)
        if layers is not None:
            return {item.name for item in shipment.items if layers.get(item.name) == f"sha256:{item.sha256}"}
        with _spoken(self.name):
            container = self._container(shipment.version)
            return {item.name for item in shipment.items if self._client.blob_exists(_layer(item), container)}

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
            url = f"{self._client.prefix}://{self._container('latest').tags_url(N=TAGS)}"
            with self._client.do_request(url) as answer:
                self._require(answer)
                listed = bounded_json.parse(answer.content, where=f"the tags of oci://{self.name}").get("tags") or []
        if not isinstance(listed, list) or not all(isinstance(tag, str) for tag in listed):
            raise IntegrityError(f"oci://{self.name} does not list its tags as texts")
        tags = listed[:TAGS]
        if len(tags) != 1:
            raise UsageError(f"oci://{self.name} has {len(tags)} tags", hint=f"#TAG: {', '.join(tags) or 'none'}")
        return project, tags[0]

    def get(self, project: str, version: str, entry: FileEntry, path: Path) -> None:
        layers = self._layers(version) or {}
        if entry.path in layers:
            with self._blob(layers[entry.path]) as pieces:
                receive(pieces, path, entry.size)
        elif entry.path != SIGNATURE:
            raise IntegrityError(f"oci://{self.name}:{version} has no {entry.path}", hint="publish again")

    def _container(self, version: str) -> Any:
        return self._client.get_container(f"{self.name}:{version}")

    def _layers(self, version: str) -> dict[str, str] | None:
        """The digests of the layers of a tag by the files that they hold; None where there is no such tag."""
        with _spoken(self.name):
            url = f"{self._client.prefix}://{self._container(version).manifest_url()}"
            with self._client.do_request(url, headers={"Accept": OCI_MANIFEST}, stream=True) as answer:
                if answer.status_code == 404:
                    return None
                self._require(answer)
                raw = gather(answer.iter_content(1 << 16), f"the OCI manifest of oci://{self.name}:{version}")
        manifest = bounded_json.parse(raw, where=f"the OCI manifest of oci://{self.name}:{version}")
        try:
            layers = {str(layer["annotations"][FILEPATH]): str(layer["digest"]) for layer in manifest["layers"]}
        except (KeyError, TypeError):
            raise IntegrityError(f"oci://{self.name}:{version} is not a model of ModelPack") from None
        if not all(re.fullmatch(r"sha256:[0-9a-f]{64}", digest) for digest in layers.values()):
            raise IntegrityError(f"oci://{self.name}:{version} has a layer without a sha256 digest")
        return layers

    def _send(self, path: Path, layer: dict[str, Any]) -> None:
        arguments = (str(path), self._container("latest"), layer)
        whole = layer["size"] <= WHOLE
        self._require(
            self._client.put_upload(*arguments) if whole else self._client.chunked_upload(*arguments, chunk_size=WHOLE)
        )

    @contextlib.contextmanager
    def _blob(self, digest: str) -> Iterator[Iterator[bytes]]:
        """The content of a layer, piece by piece."""
        with _spoken(self.name), self._client.get_blob(self._container("latest"), digest, stream=True) as answer:
            self._require(answer)
            yield answer.iter_content(1 << 20)

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
    """The description of a model that ModelPack defines."""
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
        raise NetworkError(
            f"oci://{name} cannot be reached ({type(error).__name__})",
            hint="check the host, its certificate and the proxy",
        ) from None
    except ValueError as error:  # oras: a refusal, or an answer that it cannot read
        raise NetworkError(
            f"oci://{name}: {str(error).splitlines()[0]}", hint="OCI_USERNAME and OCI_PASSWORD sign in"
        ) from None
