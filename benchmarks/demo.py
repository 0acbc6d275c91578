"""Figures of a finished `make demo`, and of another template's run: what README and the tutorial
say of them.

python -m benchmarks.demo FOLDER [policy | extract [FEW]]

With `policy`, the shares that the policies of the demo keep, for each `max_error` that `slmctl
calibrate` was run with. With `extract`, FOLDER is a finished run of `slmctl init field-extraction`,
and FEW another with a `finetune.train_share`, by which the same test rows are answered from fewer
rows.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks import result
from slmctl import config
from slmctl.stages.calibrate.stage import Calibrate
from slmctl.stages.finetune.encoding import share_of
from slmctl.task.records import read_records

SHIPPED = "Q8_0+sum"
SHOWN = {  # of the report, by what README calls them
    "majority": "always the commonest label",
    "tfidf_logistic": "a linear model of the same rows",
    "encoder_logistic": "a sentence encoder that learned the rows, in minutes, and words",
    "base (11-shot)": "the untuned base, 11 examples in its prompt",
    "Q8_0": "the tuned file alone",
    SHIPPED: "**what ships: the file with encoder and words**",
}
# of each; other work slows answers down, so no latency is kept
KEPT = ("n", "size", "metrics", "interval")
PEERS = ("tfidf_logistic", "base (11-shot)")


def last(folder: Path) -> Path:
    """The artifact of a kind that was made last."""
    return max(folder.glob("[!.]*"), key=lambda path: path.stat().st_mtime)


def _report(folder: Path) -> Any:
    return json.loads(
        (last(folder / "runs" / "report") / "report.json").read_text(encoding="utf-8")
    )


def training_rows(folder: Path) -> int:
    """The rows that a project's last adapter learned."""
    records = read_records(last(folder / "runs" / "prepared") / "train.jsonl")
    return len(share_of(records, config.load(folder / "slmctl.yaml").finetune.train_share))


def measure(folder: Path) -> None:
    """Write `results/demo.json` from the last report and adapter
    of a demo, made on an idle machine.
    """
    report = _report(folder)
    entries = {**report["baselines"], **report["models"]}
    ours, alone = (entries[name]["metrics"]["accuracy"] for name in (SHIPPED, "Q8_0"))
    rows = [
        result.compared(
            "Q8_0: accuracy", [alone], [entries[peer]["metrics"]["accuracy"]], peer=peer, digits=5
        )
        for peer in PEERS
    ]
    rows.append(result.single("what ships: accuracy", ours, "Q8_0 alone", alone, goal=">= 0.94"))
    encoder = entries["encoder_logistic"]["metrics"]["accuracy"]
    rows.append(result.single("encoder and words: accuracy", encoder, "Q8_0 alone", alone))
    sizes = [entries[name]["size"] / 1e6 for name in ("Q8_0", "base (11-shot)")]
    rows.append(
        result.compared("Q8_0: size, MB", sizes[:1], sizes[1:], peer="base (11-shot)", digits=1)
    )
    training = json.loads(
        (last(folder / "runs" / "adapter") / "manifest.json").read_text(encoding="utf-8")
    )
    minutes, peak = training["seconds"] / 60, training["metrics"]["memory_peak"] / 1e9
    rows.append(
        result.single("training on this machine, minutes", minutes, "its peak of memory, GB", peak)
    )
    models = {
        name: {key: entries[name][key] for key in KEPT if key in entries[name]} for name in SHOWN
    }
    result.write(
        "demo",
        "python -m benchmarks.demo FOLDER",
        rows,
        ("torch", "transformers", "llama-cpp-python"),
        n=report["n"],
        models=models,
    )


def measure_policy(folder: Path) -> None:
    """Write `results/demo-policy.json` from the policies that were fitted
    on what the demo's release answers by.
    """
    released = _report(folder)["focus"]
    paths = sorted((folder / "runs" / "policy").glob("[!.]*/manifest.json"))
    manifests = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    newest = f"calibrate/{Calibrate.version}"  # a folder keeps the policies of older versions
    policies = [manifest["metrics"] for manifest in manifests if manifest["stage"] == newest]
    fitted = sorted(
        (each for each in policies if each["model"] == released),
        key=lambda each: -each["max_error"],
    )
    rows = []
    for policy in fitted:
        promise = f"at most {100 * policy['max_error']:g} % wrong"
        rows.append(
            result.single(
                f"{promise}: answers kept", policy["kept"], "of them wrong", policy["error"]
            )
        )
        rows.append(
            result.single(
                f"{promise}: chance to pass", policy["chance_to_pass"], "rows", policy["tested_on"]
            )
        )
    result.write(
        "demo-policy",
        "python -m benchmarks.demo FOLDER policy",
        rows,
        ("llama-cpp-python",),
        model=released,
    )


def measure_extract(folder: Path, few: Path | None = None) -> None:
    """Write `results/demo-extract.json` from the last report of a
    run of the template field-extraction.
    """
    report = _report(folder)
    ours, base = (report["models"][name] for name in ("Q8_0", "base (3-shot)"))
    low, high = ours["interval"]
    rows = [
        result.compared(
            f"Q8_0: {name}",
            [ours["metrics"][name]],
            [base["metrics"][name]],
            peer="base (3-shot)",
            digits=4,
        )
        for name in ("exact_match", "field_f1", "valid_schema")
    ]
    rows.append(
        result.compared(
            "Q8_0: interval of exact_match", [low], [high], peer="its upper end", digits=4
        )
    )
    if few is not None:
        less = _report(few)["models"]["Q8_0"]
        learned, peer = training_rows(few), f"of {training_rows(folder)} rows"
        for name in ("exact_match", "field_f1", "valid_schema"):
            what = f"{learned} training rows: {name}"
            rows.append(result.single(what, less["metrics"][name], peer, ours["metrics"][name]))
        what = f"{learned} training rows: interval of exact_match"
        rows.append(result.single(what, less["interval"][0], "its upper end", less["interval"][1]))
    result.write(
        "demo-extract",
        "python -m benchmarks.demo FOLDER extract",
        rows,
        ("torch", "transformers", "llama-cpp-python"),
        n=report["n"],
    )


def table() -> str:
    """The models of the demo as a Markdown table."""
    kept: dict[str, Any] = json.loads((result.FOLDER / "demo.json").read_text(encoding="utf-8"))
    models: dict[str, Any] = kept["models"]
    lines = ["| model | size | answered right | likely range (95 %) |", "|---|---:|---:|---:|"]
    for name, entry in models.items():
        metrics, (low, high) = entry["metrics"], entry["interval"]
        size = f"{entry['size'] / 1e6:.1f} MB" if "size" in entry else "-"
        figures = f"{metrics['accuracy']:.1%} | {low:.1%} - {high:.1%}"
        asked = "" if entry["n"] == kept["n"] else f" (asked {entry['n']} of the rows)"
        lines.append(f"| {SHOWN[name]}{asked} | {size} | {figures.replace('%', ' %')} |")
    return "\n".join(lines)


if __name__ == "__main__":
    measures = {"": measure, "policy": measure_policy, "extract": measure_extract}
    measures["".join(sys.argv[2:3])](Path(sys.argv[1]), *map(Path, sys.argv[3:]))
