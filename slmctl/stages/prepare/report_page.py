"""The facts of a prepared data set -> `report.html`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from slmctl.metrics.confident_joint import SURE
from slmctl.pipeline.row_estimate import FEW
from slmctl.reports import html_page
from slmctl.stages.prepare import report_findings
from slmctl.stages.prepare.facts import PrepareFacts, SensitiveFact
from slmctl.stages.prepare.suspects import CREDIBLE

STRIP = ("0.05", "0.25", "0.5", "0.75", "0.95")  # quantiles of the lengths below their histogram


def write(out: Path, facts: PrepareFacts, *, base: str) -> None:
    """Write `report.html` into `out`; `base` is the name of the
    base whose tokenizer counted, or ''.
    """
    totals = {name: sum(splits.values()) for name, splits in facts["labels"].items()}
    examples = facts["conflicts"]["examples"]
    answers = [tuple(sorted(pair["answers"])) for pair in examples if all(pair["answers"])]
    conflicting = sorted(Counter(answers).items(), key=lambda item: (-item[1], item[0]))
    sides = facts["overlap"]["sides"]
    shares = {split: report_findings.overlap_share(side) for split, side in sides.items()}
    quantiles = facts["tokens"]["quantiles"]
    strip = [quantiles[share] for share in STRIP] if quantiles else []
    scores = [*report_findings.linear_score(facts), *report_findings.score_interval(facts)]
    findings = list(report_findings.notices(facts))
    of_rules = sorted(facts["sensitive"], key=_most_first)
    labels = html_page.most_first(totals)
    html_page.write(
        out / "report.html",
        "prepare.html",
        facts=facts,
        base=base,
        findings=findings,
        measurable=scores,
        labels=labels,
        conflicting_labels=conflicting,
        findings_of_rules=of_rules,
        shares=shares,
        margin=_margin,
        strip=strip,
        few=FEW,
        sure=SURE,
        credible=CREDIBLE,
    )


def _most_first(entry: SensitiveFact) -> tuple[int, str, str, str]:
    return -entry["count"], entry["kind"], entry["rule"], entry["column"]


def _margin(rows: int) -> str:
    return f"±{report_findings.margin(rows):.1f}"
