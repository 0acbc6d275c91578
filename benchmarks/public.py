"""What `prepare` finds in three public data sets, and whether rows that are added move old ones.

    python -m benchmarks.public [--folder FOLDER]

The configs stand in benchmarks/configs and read the data where it lies, beside the project.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from benchmarks import program, result
from slmctl.console import percent

CONFIGS = Path(__file__).parent / "configs"
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
NAMES = ("banking77", "clinc150", "snips")
ADDED = 1000  # rows


def main() -> None:
    parser = program.parser(__doc__)
    parser.add_argument("--folder", type=Path, default=Path("public"))
    folder: Path = parser.parse_args().folder
    if not DATA.is_dir():
        sys.exit(f"{DATA} is not there: these data sets are read in place, see benchmarks/README.md")
    found = {name: prepared(name, folder / name) for name in NAMES}
    path = result.FOLDER / "public.json"
    path.write_text(
        json.dumps({"command": "python -m benchmarks.public", "data_sets": found}, indent=1) + "\n", encoding="utf-8"
    )
    sys.stdout.write(f"{table()}\n\n{path}\n")


def prepared(name: str, folder: Path) -> dict[str, Any]:
    """Prepare one data set three times: as it is, again, and with rows added to its first source."""
    folder.mkdir(parents=True, exist_ok=True)
    for config in CONFIGS.glob(f"{name}*"):
        text = config.read_text(encoding="utf-8").replace("../../../shared/data", str(DATA))
        (folder / config.name.replace(f"{name}.yaml", "slmctl.yaml")).write_text(text, encoding="utf-8")
    program.slmctl(folder, "pull")
    first = prepare(folder)
    manifest = json.loads((first / "manifest.json").read_text(encoding="utf-8"))
    assert prepare(folder) == first, "the same content is not current"
    facts = manifest["metrics"]
    kept = ("rows_in", "train", "validation", "calibration", "test", "rejected", "rejected_by_reason", "duplicates")
    return {
        **{key: facts[key] for key in kept},
        "conflicts": {key: facts["conflicts"][key] for key in ("pairs", "rows", "cap")},
        "overlap": facts["overlap"]["sides"],
        "sensitive_rows": facts["sensitive_rows"],
        "tokens": facts["tokens"]["total"],
        "moved_by_added_rows": moved(folder, first),
    }


def moved(folder: Path, first: Path) -> int:
    """Records that change sides when ADDED rows are added; rows are made of the data set's own words."""
    before = sides(first)
    text = (folder / "slmctl.yaml").read_text(encoding="utf-8")
    turns = [record["messages"] for record in program.read_jsonl(first / "train.jsonl")]
    pairs = [(turns[k * 7 % len(turns)], turns[k * 13 % len(turns)]) for k in range(ADDED)]
    extra = folder / "added.jsonl"
    rows = [
        {"input": f"{one[-2]['content']} and then {two[-2]['content']}", "output": one[-1]["content"]}
        for one, two in pairs
    ]
    program.write_jsonl(extra, rows)
    more = folder / "more"
    more.mkdir(exist_ok=True)
    for path in folder.glob("*.json"):
        shutil.copy(path, more)
    (more / "slmctl.yaml").write_text(
        text.replace("  sources:\n", f"  sources:\n    - {{path: {extra.resolve()}}}\n"), encoding="utf-8"
    )
    shutil.copytree(folder / "runs" / "base", more / "runs" / "base", dirs_exist_ok=True)
    after = sides(prepare(more))
    return sum(after.get(record, side) != side for record, side in before.items())


def sides(prepared: Path) -> dict[str, str]:
    """The side of each record that has one."""
    return {
        record["id"]: side
        for side in ("train", "validation", "calibration", "test")
        for record in program.read_jsonl(prepared / f"{side}.jsonl")
    }


def prepare(folder: Path) -> Path:
    """Run the stage; returns the folder of its artifact."""
    return Path(program.slmctl(folder, "prepare").strip())


def table() -> str:
    """What was found, as a Markdown table."""
    found = json.loads((result.FOLDER / "public.json").read_text(encoding="utf-8"))["data_sets"]
    lines = ["| found by `slmctl prepare` | " + " | ".join(found) + " |", "|---|" + "---:|" * len(found)]

    def line(what: str, *figures: object) -> None:
        lines.append(f"| {what} | " + " | ".join(str(figure) for figure in figures) + " |")

    sets = list(found.values())
    line("rows", *(f"{one['rows_in']:,}" for one in sets))
    for side in ("train", "validation", "calibration", "test"):
        line(f"kept for {side}", *(f"{one[side]:,}" for one in sets))
    line("equal to an earlier row", *(f"{one['duplicates']['exact']:,}" for one in sets))
    line("nearly equal to an earlier row", *(f"{one['duplicates']['near']:,}" for one in sets))
    near = "near a held-out row"
    line(
        "training rows left out as too near a held-out one",
        *(f"{one['rejected_by_reason'].get(near, 0):,}" for one in sets),
    )
    line("pairs of like questions with different answers", *(f"{one['conflicts']['pairs']:,}" for one in sets))
    line("no model can score over", *(percent(one["conflicts"]["cap"], 2) for one in sets))
    line(
        "test rows that share a run of 13 (8) words with training",
        *(f"{one['overlap']['test']['overlapping']:,} of {one['overlap']['test']['measured']:,}" for one in sets),
    )
    line("rows with personal data or secrets", *(f"{one['sensitive_rows']:,}" for one in sets))
    line(f"rows that change sides when {ADDED:,} are added", *(one["moved_by_added_rows"] for one in sets))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
