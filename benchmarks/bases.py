"""Bases that companies pick, each as a small random model, through the whole chain: passed or
refused, fast or slow.

    python -m benchmarks.bases [NAME...] [--quick] [--together N]

Every base of `benchmarks.architectures` gets the tokenizer and chat template of its family, real
ones where they can be had, and otherwise the family's form on a real vocabulary. Then the stages
run as `slmctl run --until evaluate` runs them: pull with its rehearsal, prepare, finetune, merge,
quantize, and the base, the adapter and the GGUF measured. Only that a file must end its answers is
not asked of random weights.
"""

from __future__ import annotations

import concurrent.futures
import csv
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import architectures, program, real_tokenizers
from benchmarks.base_outcomes import Outcome, record, table

QUICK = ("smollm3", "lfm2", "phi3", "granite4-h", "qwen3.5", "gemma4", "qwen3-moe", "falcon-h1")
STAGES = ("pull", "prepare", "finetune", "merge", "quantize", "evaluate")
LIMIT_S = 1500
ROWS = 120
LABELS = {
    "billing": "invoice refund charged card payment euro bank price",
    "delivery": "parcel courier late truck doorstep carrier tracking shipped",
}
FILLER = (
    "please hello today again why how when my your the a this since monday week month twice "
    "never always nobody"
)
SETTINGS = """\
project: bases
version: "1.0"
base: ./base
task: {kind: classify, labels: from-data, system: Name the category.}
prepare:
  sources: [{path: rows.csv, input: text, output: label}]
  splits: {validation: 0.1, test: 0.1}
finetune: {max_steps: 4, batch_size: 8}
quantize: {types: [Q8_0]}
evaluate: {models: [base, adapter, gguf]}
"""


@dataclass(frozen=True)
class Family:
    """A family of models by what its prompts look like.

    Attributes:
        vocabulary: The real tokenizer that it has, or borrows.
        turn: A turn of its chat template with `{role}` and `{text}`, empty where the tokenizer
            brings the template.
        end: The token that ends a turn.
        head: What a conversation begins with.
        kind: The class that its tokenizer names, by which the converter tells how to read it.
    """

    vocabulary: str
    turn: str = ""
    end: str = ""
    head: str = ""
    kind: str = ""


FAMILIES = {
    "llama3": Family("llama3_1"),
    "qwen3": Family("qwen3"),
    "gemma3": Family("gemma3"),
    "llama2": Family("llama2"),
    "deepseek_v3": Family("deepseek_v3"),
    "gptoss": Family("gptoss"),
    "chatml": Family("llama3_1", "<|im_start|>{role}\n{text}<|im_end|>\n", "<|im_end|>"),
    "lfm2": Family(
        "llama3_1", "<|im_start|>{role}\n{text}<|im_end|>\n", "<|im_end|>", "<|startoftext|>"
    ),
    "granite": Family(
        "llama3_1",
        "<|start_of_role|>{role}<|end_of_role|>{text}<|end_of_text|>\n",
        "<|end_of_text|>",
    ),
    "phi": Family("llama3_1", "<|{role}|>{text}<|end|>", "<|end|>", kind="GPT2Tokenizer"),
    "olmo": Family(
        "llama3_1", "<|{role}|>\n{text}<|endoftext|>\n", "<|endoftext|>", "<|endoftext|>"
    ),
    "exaone": Family("llama3_1", "[|{role}|]{text}[|endofturn|]\n", "[|endofturn|]"),
    "glm": Family("llama3_1", "<|{role}|>\n{text}<|endoftext|>", "<|endoftext|>", "[gMASK]<sop>"),
    "command": Family(
        "llama3_1",
        "<|START_OF_TURN_TOKEN|><|{role}|>{text}<|END_OF_TURN_TOKEN|>",
        "<|END_OF_TURN_TOKEN|>",
        "<BOS_TOKEN>",
    ),
    "ernie": Family(
        "llama2",
        "{role}: {text}<|end_of_sentence|>\n",
        "<|end_of_sentence|>",
        "<|begin_of_sentence|>",
    ),
    "smollm3": Family(
        "llama3_1",
        "<|im_start|>{role}\n{text}<|im_end|>\n",
        "<|im_end|>",
        "{{{{ 'Today is ' + strftime_now('%d %B %Y') }}}}\n",
    ),
    "none": Family("llama3_1", "", "<|endoftext|>"),
}


def tokenizer(family: str, out: Path) -> Path:
    """The folder of a family's tokenizer with its chat template; raises
    UnavailableError of `real_tokenizers`.
    """
    from transformers import AutoTokenizer

    form = FAMILIES[family]
    real = real_tokenizers.fetch(form.vocabulary)
    if not form.end:
        return real
    words: Any = AutoTokenizer.from_pretrained(real)
    texts = re.findall(r"<[^<>\s{}]+>|\[[^\[\]\s{}]+\]", form.head + form.turn)
    roles = [
        t.format(role=role)
        for t in re.findall(r"<\|\{role\}\|>|\[\|\{role\}\|\]", form.turn)
        for role in ("system", "user", "assistant")
    ]
    words.add_special_tokens(
        {"additional_special_tokens": sorted({*texts, *roles, form.end} - {"<sop>"})}
    )
    words.eos_token = form.end
    words.chat_template = _template(form) if form.turn else None
    words.save_pretrained(out)
    if form.kind:
        path = out / "tokenizer_config.json"
        path.write_text(
            json.dumps(json.loads(path.read_bytes()) | {"tokenizer_class": form.kind}),
            encoding="utf-8",
        )
    return out


def _template(form: Family) -> str:
    before, _, after = form.turn.partition("{text}")
    role = json.dumps(before).replace("{role}", '" + m["role"] + "')
    head = form.head.replace("{{{{", "{{").replace("}}}}", "}}")
    opened = json.dumps(before.format(role="assistant"))
    turns = (
        f"{{% for m in messages %}}{{{{ {role} + m['content'] + {json.dumps(after)} }}}}{{% "
        f"endfor %}}"
    )
    return f"{head}{turns}{{% if add_generation_prompt %}}{{{{ {opened} }}}}{{% endif %}}"


def write_rows(path: Path) -> None:
    """Short messages whose words tell their label."""
    choose = random.Random(0)
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("text", "label"))
        for k in range(ROWS):
            label = list(LABELS)[k % len(LABELS)]
            words = [*choose.sample(LABELS[label].split(), 3), *choose.sample(FILLER.split(), 5)]
            choose.shuffle(words)
            writer.writerow((" ".join(words), label))


def run_apart(folder: Path, until: str) -> subprocess.CompletedProcess[str]:
    """Run the stages of a project up to one, in a process of its own."""
    kept = {
        key: value for key, value in os.environ.items() if not key.startswith(("SLMCTL", "PYTEST"))
    }
    command = [sys.executable, "-m", "benchmarks.bases", "--chain", str(folder), "--until", until]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=LIMIT_S, env=kept, check=False
    )


def try_base(
    name: str, folder: Path, until: str = STAGES[-1], *, run: Callable[[Path, str], Any] = run_apart
) -> Outcome:
    """Build a base in a folder, and send it through the chain up to a stage.

    Args:
        run: Runs the stages; gives the `returncode` and the `stderr`.
    """
    entry = architectures.ARCHITECTURES[name]
    architectures.build(name, folder / "base", tokenizer(entry.family, folder / "tokenizer"))
    write_rows(folder / "rows.csv")
    (folder / "slmctl.yaml").write_text(SETTINGS, encoding="utf-8")
    begun = time.monotonic()
    done = run(folder, until)
    verdict, sentence = "passed", ""
    if done.returncode != 0:
        last = ([line for line in done.stderr.splitlines() if line.strip()] or [""])[-1]
        refused, _, sentence = (
            last.partition(": ") if last.startswith("refused at ") else ("crashed", "", last)
        )
        verdict = refused
    base = next((folder / "runs").glob("base/*/base.json"), None)
    remarks = json.loads(base.read_bytes())["rehearsal"].get("remarks", []) if base else []
    seconds = round(time.monotonic() - begun, 1)
    return Outcome(entry.base, entry.kind, verdict, sentence, _training(base), remarks, seconds)


def run_chain(folder: Path, until: str) -> None:
    """Run the stages of a project up to one; ends the process
    with one line where a stage refuses.
    """
    from slmctl import config
    from slmctl.errors import SlmctlError
    from slmctl.pipeline import runner
    from slmctl.pipeline.graph import Project
    from slmctl.stages.evaluate.stage import evaluate

    project = Project(root=folder, config=config.load(folder / config.FILENAME))
    for stage in STAGES[: STAGES.index(until) + 1]:
        try:
            if stage == "quantize":
                runner.run(project, project.request(stage), must_end=False)
            elif stage == "evaluate":
                evaluate(project, project.config.evaluate.models)
            else:
                runner.make(project, stage)
        except SlmctlError as error:
            sys.exit(f"refused at {stage}: {error.message}")


def _training(base: Path | None) -> str:
    """The way in which a base trains, from its rehearsal."""
    seen = json.loads(base.read_bytes())["rehearsal"] if base else {}
    if not seen.get("packed"):
        return "padded" if seen else ""
    fast, layers = seen["fast_layers"], seen["layers"]
    return "fast" if fast == layers else f"packed, {fast} of {layers} layers fast"


def main() -> None:
    parser = program.parser(__doc__)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(architectures.ARCHITECTURES)}")
    parser.add_argument("--quick", action="store_true", help=f"only {', '.join(QUICK)}")
    parser.add_argument("--chain", type=Path, help="run the stages of this project")
    parser.add_argument(
        "--until", choices=STAGES, default=STAGES[-1], help="pull rehearses the whole chain already"
    )
    parser.add_argument("--together", type=int, default=2, help="bases at a time")
    options = parser.parse_args()
    if options.chain:
        run_chain(options.chain, options.until)
        return
    names = options.names or (QUICK if options.quick else list(architectures.ARCHITECTURES))

    def one(name: str) -> Outcome:
        with tempfile.TemporaryDirectory() as scratch:
            outcome = try_base(name, Path(scratch), options.until)
        sys.stderr.write(
            f"{name}: {outcome.verdict}, {outcome.training}, {outcome.seconds:.0f} s "
            f"{outcome.sentence}\n"
        )
        return outcome

    with concurrent.futures.ThreadPoolExecutor(options.together) as pool:
        outcomes = []
        for outcome in pool.map(one, names):
            outcomes.append(outcome)
            if options.until == STAGES[-1]:
                record(outcome, [entry.base for entry in architectures.ARCHITECTURES.values()])
    sys.stdout.write(table(outcomes) + "\n")
    sys.exit(any(o.verdict not in ("passed", "refused at pull") for o in outcomes))


if __name__ == "__main__":
    main()
