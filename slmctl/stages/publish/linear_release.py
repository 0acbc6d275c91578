"""sum + report + … -> published: a release of linear members alone,
without a GGUF file of a language model.
"""

from __future__ import annotations

import inspect
import re
from importlib import resources
from pathlib import Path
from typing import Any

from slmctl.artifacts.artifact import Artifact
from slmctl.config import PublishConfig
from slmctl.errors import GateError
from slmctl.inference import LINEAR
from slmctl.model_files.gguf_choice import answering_sha256, is_tagging
from slmctl.reports.evaluation_report import report_of
from slmctl.sources.documents import html_text
from slmctl.stages.publish import license, publish, slsa_provenance
from slmctl.task import cleaning, mail_text
from slmctl.task.contract import Task

OWN = "own weights"  # the license of a model that is nobody else's: that of the rows' owner
PYTHON, NODE = "answer.py", "answer.mjs"  # programs that answer by a release without slmctl
CLEANERS = (cleaning, html_text, mail_text)  # of the standard library and each other alone
_IMPORT = re.compile(r"^from slmctl[\w.]* import (\w+)$", re.MULTILINE)


def run(
    config: PublishConfig,
    *,
    prepared: Artifact,
    encoder: Artifact,
    sum: Artifact,
    report: Artifact,
    out: Path,
    labelled: Artifact | None = None,
    policy: Artifact | None = None,
    page: publish.Page | None = None,
) -> dict[str, Any]:
    """Lay out the release; `policy` and `page` as in `publish.run`.

    Memorised rows are not probed: the model gives labels alone, and holds no text of a row.

    Raises:
        GateError: The report did not measure the members, or a text holds a secret or personal
            data.
        IntegrityError: The inputs were not made from each other.
    """
    steps = {"prepared": prepared, "encoder": encoder, "sum": sum, "report": report}
    steps |= {"policy": policy} if policy is not None else {}
    publish.require_chain(steps, labelled)
    figures, sha256 = report_of(report), answering_sha256(sum)
    if sha256 not in {model.get("sha256") for model in figures["models"].values()}:
        text = "no report measured these linear members: they are not published"
        raise GateError(text, reason="not_measured", hint="slmctl evaluate")
    members, task = publish.copy_members(sum, out), Task.read(sum.path)
    label = members["license"] if members["source"] else config.license or OWN
    if members["source"]:
        license.carry_encoder(members["source"], members["encoder_weights"], label, out)
    publish.copy(report, publish.REPORT, out)
    if not is_tagging(sum):
        carry_answerers(task, out)
    kept = publish.carry_policy(policy, figures, report, page, out)
    slsa_provenance.write(out, steps)
    teaching = publish.teaching_of(labelled)
    memorisation = {
        "asked": 0,
        "regurgitated": 0,
        "share": 0.0,
        "max_share": config.memorisation.max_share,
    }
    publish.write_card(
        out,
        task,
        {LINEAR: members["files"]},
        figures,
        config=config,
        base=None,
        license=label,
        members=members,
        data=publish.summary(prepared),
        memorisation=memorisation,
        teaching=teaching,
        lora={},
        policy=kept,
    )
    return publish.finished(
        out,
        task,
        config,
        base=None,
        license=label,
        files={LINEAR: sha256},
        memorisation=memorisation,
        sum=members,
        teachers=teaching.get("teachers"),
        policy=kept,
    )


def carry_answerers(task: Task, out: Path) -> None:
    """Copy the programs that answer by the files of a release alone, with the modules that clean
    the task's texts.

    Texts are cleaned in Python alone.
    """
    programs, templates = (
        (PYTHON,) if task.cleans else (PYTHON, NODE),
        resources.files("slmctl.templates"),
    )
    sources = {name: templates.joinpath(name).read_text(encoding="utf-8") for name in programs}
    if task.cleans:
        sources |= {
            f"{each.__name__.rpartition('.')[2]}.py": inspect.getsource(each) for each in CLEANERS
        }
    for name, text in sources.items():
        # they are beside each other
        (out / name).write_text(_IMPORT.sub(r"import \1", text), encoding="utf-8")
