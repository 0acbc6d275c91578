"""The programs in a release of linear members that answer without
slmctl: they say what the product says.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from support import here, tiny
from support.forks import Forks

from slmctl.artifacts import artifact
from slmctl.inference.escalation_policy import Policy
from slmctl.metrics import linear_baseline
from slmctl.metrics.encoder_head import EncoderHead
from slmctl.metrics.label_sum import LabelSum
from slmctl.metrics.linear_baseline import LinearModel
from slmctl.models.linear_members import Scores
from slmctl.stages.publish import linear_release
from slmctl.task.cleaning import Replacement
from slmctl.task.contract import Task

CONFIG = tiny.CALIBRATED.replace("evaluate: {models: [base, adapter, gguf]}\n", "").replace(
    "prepare:\n",
    "prepare:\n  clean: [html, quoted_mail, signatures, whitespace]\n"
    "  replace: [{pattern: 'no[.] ?[0-9]+', with: parcel}]\n",
) + (
    "encode: {encoder: none}\nsum: {floor: 0}\npublish: {model: linear}\n"
    "gates: [{metric: accuracy, model: linear, min: 0.8}]\n"
)
LINES = (  # texts of one line, without what JSON spells and no file holds
    "invoice refund please",
    "parcel courier today",
    "x" * 30_000,
    "refund " * 3_000,
    "🙂🙂 refund 👩‍👩‍👧 🚚",
    "[CLS] refund [SEP] parcel [PAD] [MASK] [UNK]",
    "Größe der Rechnung, ÄÖÜ straße",
    "привет refund 你好 मदद مرحبا 한국어",
    "  \t two  spaces ",
    "a\0b\x01 invoice\x7f\x1fpayment",
    "İstanbul ſ ﬁ Ⅷ ² ½ ΣΑΣ",
    "e\u0301\u0301 cafe\u0301",
    "\u00a0\u3000tracking\u200b\u200d",
    "<p>invoice &amp; <b>refund</b></p>",
    "no. 17 no 18",
    "_ __ a_b 1 22 333",
)
TEXTS = (
    *LINES,
    "",
    " ",
    "\n",
    "\r\n \x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029 parcel\rlate",
    "\ud800",
    "half \udfff of a pair \ud83d",
    "refund please\n\nOn 3 May 2026 at 10:15, Ann wrote:\n> parcel courier",
    "login locked\n-- \nAnn, billing",
)
LABELS = tuple(tiny.LABELS)
Encode = Callable[[Sequence[str]], npt.NDArray[np.float32]]
Answers = list[dict[str, Any]]


@pytest.fixture(scope="module")
def desk(stages: Forks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project after `run`, which released a linear model on words, with a policy."""
    folder = tmp_path_factory.mktemp("answers")
    (folder / "slmctl.yaml").write_text(CONFIG)
    tiny.write_csv(folder / "tickets.csv", tiny.rows(800))
    tiny.ok(stages.run(folder, "run"))
    return folder


@pytest.fixture(scope="module")
def release(desk: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of its release."""
    return Path(
        shutil.copytree(
            desk / "registry" / "tiny-desk" / "1.0", tmp_path_factory.mktemp("release") / "desk"
        )
    )


def words_of(labels: Sequence[str]) -> LinearModel:
    """A linear model on words that has learned rows with these labels."""
    rows = [(text, label) for text, label in tiny.rows(300) if label in labels]
    texts, answers = zip(*rows, strict=True)
    fitted = linear_baseline.cross_fit(texts, answers, fold=np.arange(len(rows)) % 3)
    assert fitted is not None
    return fitted[0]


def head_of(labels: Sequence[str], size: int = 16) -> EncoderHead:
    draw = np.random.default_rng(1)
    weights = draw.normal(size=(len(labels), size)).astype(np.float32)
    return EncoderHead(tuple(labels), 3 * weights, draw.normal(size=len(labels)).astype(np.float32))


def laid_out(folder: Path, model: LabelSum, task: Task, policy: Policy | None = None) -> Path:
    """The files of a release by which the programs answer."""
    folder.mkdir()
    model.write(folder / "sum.npz")
    task.write(folder)
    if policy is not None:
        policy.write(folder)
    linear_release.carry_answerers(task, folder)
    if model.head is not None:
        write_encoder(folder, model.size)
    return folder


def write_encoder(folder: Path, size: int) -> None:
    """An encoder that gives the mean of its tokens' vectors, of length
    1, and a tokenizer of the tiny words.
    """
    import onnx
    import tokenizers
    from onnx import TensorProto, helper, numpy_helper

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [*tiny.FILLER.split(), *" ".join(tiny.LABELS.values()).split(), "große", "привет"]
    vocabulary = {
        token: k
        for k, token in enumerate(dict.fromkeys([*special, *map(chr, range(33, 127)), *words]))
    }
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    ends = [(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        "[CLS] $A [SEP]", None, ends
    )
    tokenizer.add_special_tokens(special)
    tokenizer.enable_truncation(32)
    tokenizer.save(str(folder / "tokenizer.json"))
    table = np.random.default_rng(0).normal(size=(len(vocabulary), size)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["token_embeddings"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["wide"]),
        helper.make_node("Mul", ["token_embeddings", "wide"], ["masked"]),
        helper.make_node("ReduceSum", ["masked", "tokens"], ["summed"], keepdims=0),
        helper.make_node("LpNormalization", ["summed"], ["sentence_embedding"], axis=-1, p=2),
    ]
    shapes = {name: ["texts", "tokens"] for name in ("input_ids", "attention_mask")}
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, shape)
        for name, shape in shapes.items()
    ]
    vectors: dict[str, list[str | int | None]] = {
        "token_embeddings": ["texts", "tokens", size],
        "sentence_embedding": ["texts", size],
    }
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in vectors.items()
    ]
    places = {"table": table, "last": np.array([2]), "tokens": np.array([1])}
    constants = [numpy_helper.from_array(array, name) for name, array in places.items()]
    graph = helper.make_graph(nodes, "encoder", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "encoder.onnx")


def encoder_in(folder: Path) -> Encode:
    """The encoder in a folder, which reads many texts together."""
    import onnxruntime
    import tokenizers

    session = onnxruntime.InferenceSession(
        folder / "encoder.onnx", providers=["CPUExecutionProvider"]
    )
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    tokenizer.enable_padding()

    def encode(texts: Sequence[str]) -> npt.NDArray[np.float32]:
        read = tokenizer.encode_batch(list(texts))
        inputs = {
            "input_ids": [each.ids for each in read],
            "attention_mask": [each.attention_mask for each in read],
        }
        (vectors,) = session.run(
            ["sentence_embedding"], {name: np.array(rows) for name, rows in inputs.items()}
        )
        return np.asarray(vectors, np.float32)

    return encode


def expected(folder: Path, texts: Sequence[str]) -> Answers:
    """What the product answers by the files of a folder."""
    task, policy = (
        Task.read(folder),
        Policy.read(folder) if (folder / "policy.json").exists() else None,
    )
    model = LabelSum.read(folder / "sum.npz", task.labels)
    model = model.only(model.weights)
    # the server refuses half a surrogate pair
    asked = [task.cleaned_text(text.encode(errors="replace").decode())[0] for text in texts]
    vectors = encoder_in(folder)(asked) if model.size else np.zeros((len(asked), 0), np.float32)
    answers: Answers = []
    for summed, evidence in zip(*model.scored(asked, vectors), strict=True):
        event = Scores(model.labels, summed, evidence).answer(task.labels)
        best = next(iter(event["labels"]))
        answers.append({"label": best, "labels": event["labels"]})
        if policy is not None:
            said = policy.judge(event, best)
            answers[-1] |= {"p_correct": said.p_correct, "kept": said.keep}
    return answers


def run(*command: str, folder: Path, stdin: str = "") -> Answers:
    """The answers that a program prints, a line each."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        command, input=stdin.encode(), capture_output=True, cwd=folder.parent, env=env, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    return [json.loads(line) for line in done.stdout.decode().split("\n") if line]


def in_python(folder: Path, texts: Sequence[str]) -> Answers:
    """The answers of a process that imports `answer`, and nothing of the product."""
    code = (
        "import json, sys; from answer import answer\n"
        "for text in json.loads(sys.stdin.read()): print(json.dumps(answer(text)))\n"
        "assert not [name for name in sys.modules if name.startswith(('slmctl', 'sklearn', "
        "'scipy'))]"
    )
    return run(
        sys.executable,
        "-Bc",
        f"import sys; sys.path.insert(0, {str(folder)!r}); {code}",
        folder=folder,
        stdin=json.dumps(texts),
    )


def require_same(found: Answers, wanted: Answers, texts: Sequence[str]) -> None:
    """Probabilities to 1e-6, in whose digits both are written,
    and the P(correct) of four digits.
    """
    assert len(found) == len(wanted) == len(texts)
    for one, other, text in zip(found, wanted, texts, strict=True):
        assert one["labels"] == pytest.approx(other["labels"], abs=1.01e-6, rel=0), text[:99]
        shares = sorted(other["labels"].values())
        if len(shares) < 2 or shares[-1] - shares[-2] > 1e-5:
            assert one["label"] == other["label"] == next(iter(one["labels"])), text[:99]
        assert one.keys() == other.keys()
        if "p_correct" in other:
            assert one["p_correct"] == pytest.approx(other["p_correct"], abs=1.01e-4), text[:99]
            assert one["kept"] == other["kept"], text[:99]


def folders(tmp_path: Path) -> list[Path]:
    """Folders of every kind of release, but those that clean texts."""
    task, most = (
        Task("classify", "", "", labels=(*LABELS, "never seen")),
        {"encoder": 0.9, "words": 0.6},
    )
    signals = {"odds": 0.7, "evidence": 0.11, "out_of_scope": -0.3}
    knots = ((-3.0, 0.1), (0.5, 0.4), (2.25, 0.85), (8.0, 0.999))
    policy = Policy(
        "", task.digest, "classify", "", "never seen", signals, -0.2, knots, 1.5, {"rows": 300}
    )
    scope = dataclasses.replace(policy, out_of_scope=LABELS[0])
    few = dataclasses.replace(task, labels=LABELS[:2])
    plain = dataclasses.replace(
        policy, out_of_scope="", weights={"odds": 0.7, "evidence": 0.11}, knots=knots[:1]
    )
    head, words = head_of(LABELS), words_of(LABELS)
    return [
        laid_out(tmp_path / "both", LabelSum(LABELS, most, head, words), task, policy),
        laid_out(tmp_path / "scope", LabelSum(LABELS, most, head, words), task, scope),
        laid_out(tmp_path / "words", LabelSum(LABELS, {"words": 1.3}, None, words), task, plain),
        laid_out(tmp_path / "head", LabelSum(LABELS, {"encoder": 1.0}, head, None), task),
        laid_out(tmp_path / "idle", LabelSum(LABELS, {"words": 1.0}, head, words), task, policy),
        laid_out(
            tmp_path / "two",
            LabelSum(LABELS[:2], most, head_of(LABELS[:2]), words_of(LABELS[:2])),
            few,
        ),
        laid_out(
            tmp_path / "one", LabelSum(LABELS[:1], {"encoder": 1.0}, head_of(LABELS[:1]), None), few
        ),
    ]


def test_a_release_answers_as_its_server(desk: Path, release: Path, stages: Forks) -> None:
    held = {entry.path for entry in artifact.load(release).manifest.files}
    assert {"answer.py", "cleaning.py", "html_text.py", "mail_text.py"} <= held
    assert "answer.mjs" not in held  # it cleans no text
    asked = [line for line in LINES if len(line) < 1000]
    with here.opened(desk, model="dir:./registry#1.0") as server:
        replies = [server.ask(text).json() for text in asked]
    # no argument holds NUL
    program, listed = str(release / "answer.py"), [text for text in asked if "\0" not in text]
    found = run(sys.executable, program, folder=release, stdin="\n".join(asked))
    by_text = dict(zip(asked, found, strict=True))
    assert [by_text[text] for text in listed] == run(
        sys.executable, program, *listed, folder=release
    )
    for one, reply, text in zip(found, replies, asked, strict=True):
        said = reply["slmctl"]
        assert one["label"] == reply["choices"][0]["message"]["content"], text
        assert max(one["labels"].values()) == pytest.approx(said["confidence"], abs=1e-4), text
        assert one["p_correct"] == pytest.approx(said["p_correct"], abs=1.01e-4)
        assert one["kept"] == (said["reason"] == "kept")
    tiny.ok(stages.run(release, "verify", str(release)))  # they left no file in it


def test_texts_are_cleaned_as_in_training(release: Path) -> None:
    require_same(in_python(release, TEXTS), expected(release, TEXTS), TEXTS)
    mail, own = (
        "refund please\n\nOn 3 May 2026 at 10:15, Ann wrote:\n> parcel courier",
        "refund please",
    )
    first, second = in_python(release, [f"<p>{mail}</p>".replace("\n", "<br>"), own])
    assert first == second


def test_every_kind_of_release_gives_the_numbers_of_the_product(tmp_path: Path) -> None:
    texts = [*TEXTS, *(text for text, _ in tiny.rows(60, seed=3))]
    for folder in folders(tmp_path):
        wanted = expected(folder, texts)
        require_same(in_python(folder, texts), wanted, texts)
        assert not (folder / "policy.json").exists() or {each["kept"] for each in wanted} == {
            True,
            False,
        }, folder


def test_a_replacement_that_grows_a_text_is_not_made(tmp_path: Path) -> None:
    replace = (Replacement("a", "refund " * 60), Replacement("z", r"\g<0>ab"))
    task = Task("classify", "", "", labels=LABELS, replace=replace)
    folder = laid_out(
        tmp_path / "grown", LabelSum(LABELS, {"words": 1.0}, None, words_of(LABELS)), task
    )
    texts = ["a", "a" * 99, "z invoice", "az" * 200]
    require_same(in_python(folder, texts), expected(folder, texts), texts)


@pytest.mark.skipif(
    shutil.which("node") is None and not tiny.REQUIRED, reason="node is not installed"
)
def test_node_gives_the_same_by_words_alone(tmp_path: Path) -> None:
    (folder,) = (each for each in folders(tmp_path) if each.name == "words")
    require_same(in_node(folder, TEXTS), expected(folder, TEXTS), TEXTS)
    line = run(
        "node",
        str(folder / "answer.mjs"),
        folder=folder,
        stdin="invoice refund\r\nparcel courier\n",
    )
    assert line == run(
        "node", str(folder / "answer.mjs"), "invoice refund", "parcel courier", folder=folder
    )


def in_node(folder: Path, texts: Sequence[str]) -> Answers:
    code = (
        "import fs from 'node:fs'; const { answer } = await "
        "import(`${process.argv[1]}/answer.mjs`);"
        "for (const text of JSON.parse(fs.readFileSync(0))) console.log(JSON.stringify(await "
        "answer(text)));"
    )
    return run(
        "node",
        "--input-type=module",
        "-e",
        code,
        str(folder),
        folder=folder,
        stdin=json.dumps(texts),
    )


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("npm") is None and not tiny.REQUIRED, reason="npm is not installed"
)
def test_node_gives_the_same_with_an_encoder(tmp_path: Path) -> None:
    packages = ("onnxruntime-node", "@huggingface/tokenizers")
    made = folders(tmp_path)
    subprocess.run(
        ("npm", "install", "--ignore-scripts", *packages),
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    for folder in made:
        require_same(in_node(folder, TEXTS), expected(folder, TEXTS), TEXTS)


@pytest.mark.slow
def test_three_packages_are_enough(release: Path, tmp_path: Path) -> None:
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=True)
    python = str(environment / "bin" / "python")
    install = (python, "-m", "pip", "install", "--quiet", "numpy")
    subprocess.run(install, check=True, capture_output=True)
    lines = [line for line in LINES if len(line) < 1000]
    require_same(
        run(python, str(release / "answer.py"), folder=release, stdin="\n".join(lines)),
        expected(release, lines),
        lines,
    )
    subprocess.run((*install, "onnxruntime", "tokenizers"), check=True, capture_output=True)
    for folder in folders(tmp_path):
        found = run(python, str(folder / "answer.py"), folder=folder, stdin="\n".join(lines))
        require_same(found, expected(folder, lines), lines)
