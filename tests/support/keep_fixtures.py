"""Makes what is kept of a release for ever: one small artifact of every kind, in
tests/fixtures/VERSION/.

    python tests/support/keep_fixtures.py

Run once for each release of slmctl, and commit what it leaves. Artifacts that are there are never
made anew: they are what that release wrote, and every later one must verify them.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from slmctl import __version__
from support import endpoint, teacher, tiny

LAYER = {
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
}
# files of a few kB
SMALL: dict[str, Any] = {"vocabulary": 400, "hidden_size": 16, "intermediate_size": 16, **LAYER}
PLACE = Path(__file__).parents[1] / "fixtures"
CONFIG = """\
project: kept
version: "1.0"
base: ./base
pull: {rehearse: false}
task: {kind: classify, labels: from-data, system: Name the category.}
prepare:
  sources: [{path: tickets.csv, input: text, output: category}]
finetune: {max_steps: 300, learning_rate: 0.01, batch_size: 16, lora: {rank: 4, alpha: 8}}
quantize: {types: [F16]}
encode: {encoder: ./words}
sum: {floor: 0}
evaluate: {models: [gguf]}
publish: {license: apache-2.0, memorisation: {probes: 0}}
"""


def main() -> None:
    target = PLACE / __version__
    if target.exists():
        sys.exit(f"{target} is there, and never changes")
    with tempfile.TemporaryDirectory() as place:
        desk = Path(place) / "desk"
        desk.mkdir()
        tiny.build_base(desk / "base", **SMALL)
        tiny.build_encoder(desk / "words", size=16)
        (desk / "slmctl.yaml").write_text(CONFIG, encoding="utf-8")
        tiny.write_csv(desk / "tickets.csv", tiny.rows(150))
        done = subprocess.run(
            tiny.command(desk, "run", "--yes"), env=tiny.environment(), check=False
        )
        if done.returncode:
            sys.exit(done.returncode)
        for folder in sorted((desk / "runs").glob("[!.]*/[!.]*")):
            if not (target / folder.parent.name).exists():  # of several predictions one
                shutil.copytree(folder, target / folder.parent.name)
        (policy,) = tiny.calibrated(
            Path(place) / "calibrated", tiny.build_base(Path(place) / "base")
        ).glob("runs/policy/[!.]*")
        shutil.copytree(policy, target / "policy")
        shutil.copytree(labelled(Path(place) / "labels"), target / "labelled")


def labelled(folder: Path) -> Path:
    """The labels of a teacher for few rows: all for review,
    since so few gold rows bound nothing.
    """
    with endpoint.serving(teacher.manners()) as fake:
        teacher.project(folder, fake.url, rows=12, gold=20, more="  votes: 1\n")
        subprocess.run(tiny.command(folder, "label"), env=tiny.environment(), check=True)
    return teacher.labelled(folder)


if __name__ == "__main__":
    main()
