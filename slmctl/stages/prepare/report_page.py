"""The facts of a prepared data set -> `report.html`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from slmctl.metrics.confident_joint import SURE
from slmctl.pipeline.row_estimate import FEW
from slmctl.reports import html_page
from slmctl.stages.prepare import report_findings
from slmctl.stages.prepare.facts import PrepareFacts
from slmctl.stages.prepare.suspects import CREDIBLE

STRIP = ("0.05", "0.25", "0.5", "0.75", "0.95")  # quantiles of the lengths below their histogram


def write(out: Path, facts: PrepareFacts, *, base: str) -> None:
    """Write `report.html` into `out`; `base` is the name of the
    base whose tokenizer counted, or ''.
    """
    labels = html_page.most_first(
        {name: sum(splits.values()) for name, splits in facts["labels"].items()}
    )
    answers = [
        tuple(sorted(pair["answers"]))
        for pair in facts["conflicts"]["examples"]
        if all(pair["answers"])
    ]
    quantiles = facts["tokens"]["quantiles"]
    html_page.write(
        out / "report.html",
        "prepare.html",
        facts=facts,
        base=base,
        findings=list(report_findings.notices(facts)),
        measurable=[*report_findings.linear_score(facts), *report_findings.score_interval(facts)],
        labels=labels,
        conflicting_labels=sorted(Counter(answers).items(), key=lambda item: (-item[1], item[0])),
        findings_of_rules=sorted(
            facts["sensitive"],
            key=lambda entry: (-entry["count"], entry["kind"], entry["rule"], entry["column"]),
        ),
        shares={
            split: report_findings.overlap_share(side)
            for split, side in facts["overlap"]["sides"].items()
        },
        margin=lambda rows: f"±{report_findings.margin(rows):.1f}",
        strip=[quantiles[share] for share in STRIP if quantiles],
        few=FEW,
        sure=SURE,
        credible=CREDIBLE,
    )
