"""Files that change while they are read for the copies and artifacts that their hash names.

The hash comes first and the reading later. What was read of other files than the hashed ones is
refused (exit 3), and nothing is left under the hash: with the files as they were, the next command
reads them.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import production, teacher, tiny

from slmctl.config import EncodeConfig, Source, SourceLimits
from slmctl.errors import DataError
from slmctl.model_files import encoder_source
from slmctl.models.onnx_encoder import Encoder
from slmctl.sources import reviewed, snapshot
from slmctl.sources.documents import folder as folder_of_documents
from slmctl.stages.predict import row_snapshot
from slmctl.stages.prepare import prepare


def rewrite(path: Path, old: str, new: str) -> None:
    path.write_text(path.read_text().replace(old, new))


def rewrite_in_its_time(path: Path, old: str, new: str) -> None:
    """The same size and the same time of change, as `touch -r` fakes it."""
    was = path.stat()
    rewrite(path, old, new)
    os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))


def during(
    monkeypatch: pytest.MonkeyPatch,
    module: Any,
    name: str,
    before: Callable[[], object],
    after: Callable[[], object] = lambda: None,
) -> None:
    """Have something done right before and right after a function reads, and only once."""
    read = getattr(module, name)

    def disturbed(*args: Any, **options: Any) -> Any:
        monkeypatch.setattr(module, name, read)
        before()
        made = read(*args, **options)
        made = iter(list(made)) if name == "_replies" else made
        after()
        return made

    monkeypatch.setattr(module, name, disturbed)


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    (tmp_path / "docs").mkdir()
    for number in range(3):
        (tmp_path / "docs" / f"{number}.txt").write_text(f"old {number}")
    (tmp_path / "answers.csv").write_text("file,topic\n0.txt,a\n1.txt,b\n2.txt,c\n")
    return tmp_path / "docs"


def gathered(documents: Path) -> list[dict[str, Any]]:
    """The rows of the copy of documents with their answers."""
    answers = {"path": documents.parent / "answers.csv", "file": "file"}
    source = Source.model_validate({"path": documents, "answers": answers})
    (copy,) = snapshot.gather([source], documents.parent / "copies", SourceLimits())
    return [json.loads(line) for line in copy.local.read_text().splitlines()]


@pytest.mark.usefixtures("forked_readers")
@pytest.mark.parametrize("change", [rewrite, rewrite_in_its_time])
@pytest.mark.parametrize("restored", ["later", "while it is read"])
@pytest.mark.parametrize(
    ("name", "old", "new"), [("docs/1.txt", "old", "NEW"), ("answers.csv", "1.txt,b", "1.txt,x")]
)
def test_who_changes_a_document_while_it_is_read_plants_no_copy(
    documents: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Path, str, str], None],
    restored: str,
    name: str,
    old: str,
    new: str,
) -> None:
    """A copy with the new text was kept under the hash of the old
    one, and taken later without a word.
    """
    changed, at_once = documents.parent / name, restored != "later"
    back = (lambda: change(changed, new, old)) if at_once else (lambda: None)
    during(monkeypatch, folder_of_documents, "_replies", lambda: change(changed, old, new), back)
    with pytest.raises(
        DataError, match="the documents of docs changed while they were read"
    ) as caught:
        gathered(documents)
    assert caught.value.hint
    assert list((documents.parent / "copies").iterdir()) == []
    if not at_once:
        change(changed, new, old)
    assert [(row["text"], row["topic"]) for row in gathered(documents)] == [
        ("old 0", "a"),
        ("old 1", "b"),
        ("old 2", "c"),
    ]


@pytest.mark.usefixtures("forked_readers")
def test_who_changes_a_document_while_predict_reads_it_gets_no_answers(
    documents: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    during(
        monkeypatch,
        folder_of_documents,
        "_replies",
        lambda: rewrite(documents / "1.txt", "old", "NEW"),
    )
    with (
        pytest.raises(DataError, match="changed while they were read"),
        row_snapshot.opened(documents, documents.parent / "out.csv", None),
    ):
        pytest.fail("documents in two states were opened")
    assert not (documents.parent / "out.csv").exists()


def test_who_reviews_while_the_decisions_are_read_plants_no_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "reviewed.jsonl"
    lines = [json.dumps(vars(production.reviewed(id=f"r{k}", after="billing"))) for k in range(3)]
    path.write_text("\n".join(lines) + "\n")
    source = Source.model_validate({"path": path})
    during(monkeypatch, reviewed, "_rows", lambda: rewrite(path, "billing", "refunds"))
    with pytest.raises(DataError, match=r"reviewed\.jsonl changed while it was read"):
        snapshot.gathered([source], tmp_path / "copies")
    assert not list(tmp_path.glob("copies/*/*"))
    rewrite(path, "refunds", "billing")
    (part,) = snapshot.gathered([source], tmp_path / "copies")
    assert "refunds" not in part.local.read_text() and "billing" in part.local.read_text()


def test_who_changes_an_encoder_while_it_is_copied_plants_no_encoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, other = (
        tiny.build_encoder(tmp_path / "words"),
        tiny.build_encoder(tmp_path / "other", size=32),
    )
    section = EncodeConfig(project="desk", encoder=str(path))
    before, after = path / "model.onnx", other / "model.onnx"
    right = before.read_bytes()
    during(monkeypatch, encoder_source, "_fetched", lambda: shutil.copyfile(after, before))
    with pytest.raises(DataError, match="the encoder changed while it was read"):
        encoder_source.kept(section, tmp_path / "encoders")
    before.write_bytes(right)
    assert not encoder_source.is_kept(section, tmp_path / "encoders")
    assert Encoder(encoder_source.kept(section, tmp_path / "encoders").folder).size == 64


@pytest.mark.parametrize(
    "restored", ["later", pytest.param("while it is read", marks=pytest.mark.slow)]
)
def test_who_changes_a_table_after_its_hash_gets_no_data_set(
    tiny_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, restored: str
) -> None:
    """A data set of the new rows had the recipe of the old ones,
    and was current when they were back.
    """
    desk = Path(shutil.copytree(tiny_project, tmp_path / "desk"))
    table, at_once = desk / "tickets.csv", restored != "later"
    teacher.slmctl(desk, "pull")
    right = table.read_bytes()
    back = (lambda: table.write_bytes(right)) if at_once else (lambda: None)
    during(monkeypatch, prepare, "run", lambda: rewrite(table, "billing", "account"), back)
    with pytest.raises(DataError, match=r"tickets\.csv changed while prepare read it"):
        teacher.slmctl(desk, "prepare")
    assert not list(desk.glob("runs/prepared/[!.]*"))
    table.write_bytes(right)
    teacher.slmctl(desk, "prepare")
    (made,) = desk.glob("runs/prepared/[!.]*")
    assert '"billing"' in (made / "train.jsonl").read_text()
