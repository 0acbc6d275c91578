"""The encoder's second opinion on the test rows of finished projects: the file alone, the encoder alone, and the sum.

    python -m benchmarks.second_opinion PROJECT...

Each PROJECT has a section `encode` and has run until `evaluate`, by which its test rows were scored once; its newest
report is read. Whether a release carries the opinion was decided on validation rows.
"""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks import program, result

END = "+encoder"


def main() -> None:
    parser = program.parser(__doc__)
    parser.add_argument("projects", type=Path, nargs="+", metavar="PROJECT")
    rows: list[result.Row] = []
    about: dict[str, object] = {}
    for project in parser.parse_args().projects:
        path = max(project.glob("runs/report/[!.]*/report.json"), key=lambda path: path.stat().st_mtime)
        report = json.loads(path.read_bytes())
        both = next(name for name in report["models"] if name.endswith(END))
        alone = both.removesuffix(END)
        entries = {**report["models"], **report["baselines"]}
        accuracy = {name: entry["metrics"]["accuracy"] for name, entry in entries.items()}
        title = f"{project.absolute().name}, {report['n']} test rows: accuracy of {both}"
        rows.append(result.single(title, accuracy[both], alone, accuracy[alone]))
        rows.append(result.single(title, accuracy[both], "encoder and TF-IDF", accuracy["encoder_logistic"]))
        (pair,) = [entry for key, entry in report["pairs"].items() if set(key.split("|")) == {both, alone}]
        about[project.absolute().name] = {
            "verdict": report["second_opinion"], "intervals": {name: entries[name]["interval"] for name in entries},
            "pair": pair["metrics"]["accuracy"],
            "latency_ms": {name: report["models"][name]["latency_ms"] for name in (alone, both)},
        }  # fmt: skip
    result.write(
        "second-opinion", "python -m benchmarks.second_opinion PROJECT...", rows, ("llama-cpp-python",), **about
    )


if __name__ == "__main__":
    main()
