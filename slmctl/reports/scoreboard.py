"""A report -> the tables of the terminal, of `report.md` and of the model card."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypedDict

from slmctl import console
from slmctl.console import percent
from slmctl.reports.evaluation_report import EvaluationReport, ParticipantEntry, entries_of

RELEASE = "release"  # kind of the release that gates compare with
ORDER = (
    "base",
    "adapter",
    "merged",
    "gguf",
    "lora",
    "published",
    RELEASE,
    "endpoint",
)  # kinds, as the pipeline makes them
UNTUNED = ("base", RELEASE, "endpoint")  # kinds that the training of this report did not make
BESIDE = {  # metrics beside the primary one; the report holds all of them
    "classify": ("macro_f1", "ece"),
    "extract": ("valid_json", "valid_schema", "field_f1"),
    "generate": ("exact_match", "rouge_l", "chrf"),
    "call": ("tool_accuracy", "field_f1", "no_call_recall", "valid_call"),
}
SQUARES = ("brier",)  # metrics that are no shares of a whole, and so have no percent
WORST = 5  # slices listed in the Markdown


class PlannedFile(TypedDict):
    """A file of a release: its name, its size in bytes, its address at the target, and True where it has to be sent."""

    file: str
    size: int
    sha256: str
    to: str
    send: bool


class PublishPlan(TypedDict):
    """The plan of `publish --dry-run` as JSON.

    Attributes:
        to: The target.
        visibility: The readers that it admits, in words.
        license: The release's; None where none is stated.
        hosts: Hosts that will be contacted.
        there: True where the release is visible at the target already.
        bytes_to_send: Size of the missing files.
        signed: True where a signature goes along.
        gates: The results of the gates, a sentence each.
    """

    to: str
    visibility: str
    license: str | None
    hosts: list[str]
    there: bool
    bytes_to_send: int
    signed: bool
    gates: list[str]
    files: list[PlannedFile]


def markdown(report: EvaluationReport) -> str:
    """The report as Markdown, for a pull request."""
    parts = [f"# Report: {report['n']} held-out rows ({report['split']}), {report['task']}", ""]
    parts += [f"> {remark}" for remark in report["remarks"]] + ([""] if report["remarks"] else [])
    parts += [*_table(*table(report)), ""]
    kind = "Wilson" if report["primary_metric"] != "token_f1" else "percentile bootstrap"
    parts += [f"Intervals: {kind}, {percent(report['confidence'], 0)}. Latency: median over rows asked one at a time."]
    for title, section in (
        (f"{report['focus']} less each other model", _beside),
        (f"Weakest slices of {report['focus']}", _weakest),
        ("Old and new rows", _release),
        ("Choice", _choice),
        ("Break-even", _break_even),
    ):
        lines = list(section(report))
        parts += ["", f"## {title}", "", *lines] if lines else []
    return "\n".join(parts) + "\n"


def table(report: EvaluationReport) -> tuple[list[str], list[list[str]]]:
    """The scoreboard: head and rows, as text; baselines first."""
    metric, others = report["primary_metric"], _others(report)
    head = ["model", "size", metric, f"{percent(report['confidence'], 0)} interval", *others, "latency"]
    return head, [_line(name, entry, metric, others) for name, entry in entries_of(report).items()]


def optional(report: EvaluationReport) -> list[str]:
    """The columns of `table` that a narrow terminal does without, the first one first."""
    return [*reversed(_others(report)), "size", "latency"]


def _others(report: EvaluationReport) -> list[str]:
    """The metrics beside the primary one that some participant has."""
    entries = entries_of(report).values()
    return [name for name in BESIDE[report["task"]] if any(name in entry["metrics"] for entry in entries)]


def figure(metric: str, value: float, digits: int = 1) -> str:
    """A metric as every table, page and message shows it: in percent, but for the Brier score, which is a square."""
    return f"{value:.{digits + 2}f}" if metric in SQUARES else percent(value, digits)


def difference(metric: str, value: float, digits: int = 1) -> str:
    """`+1.6 points`: a difference of two values of a metric, in percentage points; a plain number for a square."""
    return f"{value:+.{digits + 2}f}" if metric in SQUARES else f"{100 * value:+.{digits}f} points"


def plan(release_plan: PublishPlan) -> Iterator[str]:
    """The plan of `publish --dry-run`, a line each: files, destination and conditions."""
    width = max(len(entry["file"]) for entry in release_plan["files"])
    for entry in release_plan["files"]:
        mark = "send" if entry["send"] else "there"
        yield f"{mark:<5}  {console.size(entry['size']):>9}  {entry['file']:<{width}}  -> {entry['to']}"
    there = ", which is there already" if release_plan["there"] else ""
    yield f"to          {release_plan['to']}{there}"
    yield f"hosts       {', '.join(release_plan['hosts']) or 'none'}"
    yield f"visibility  {release_plan['visibility']}"
    yield f"license     {release_plan['license'] or 'none stated'}"
    yield f"signed      {'yes' if release_plan['signed'] else 'no'}"
    yield from (f"gate passed {text}" for text in release_plan["gates"] or ["(none is set)"])
    yield f"bytes       {release_plan['bytes_to_send']} to send"


def _line(name: str, entry: ParticipantEntry, metric: str, others: Sequence[str]) -> list[str]:
    low, high = entry["interval"]
    latency, size = entry.get("latency_ms"), entry.get("size")
    return [
        name,
        console.size(size) if size else "-",
        percent(entry["metrics"][metric]),
        f"{percent(low)} - {percent(high)}",
        *(figure(other, entry["metrics"][other]) if other in entry["metrics"] else "-" for other in others),
        f"{latency['median']:.0f} ms" if latency else "-",
    ]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in (head, *rows)]
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    return [lines[0], "|---" + "|---:" * (len(head) - 1) + "|", *lines[1:]]


def _beside(report: EvaluationReport) -> Iterator[str]:
    """The focus less every other participant, in the primary metric."""
    focus, metric = report["focus"], report["primary_metric"]
    rows, tests = [], set()
    for key, pair in report["pairs"].items():
        first, second = key.split("|")
        if focus not in (first, second) or metric not in pair["metrics"]:
            continue
        entry, sign = pair["metrics"][metric], 1 if second == focus else -1
        low, high = sorted(sign * bound for bound in entry["interval"])
        tests.add(entry["test"])
        rows.append(
            [
                first if second == focus else second,
                f"{100 * sign * entry['difference']:+.1f}",
                f"{100 * low:+.1f} to {100 * high:+.1f}",
                f"{entry['p']:.2g}" if "p" in entry else "-",
                f"{100 * entry['detectable']:.1f}" if "detectable" in entry else "-",
            ]
        )
    if rows:
        interval = f"{percent(report['confidence'], 0)} interval"
        order = {name: k for k, name in enumerate(report["participants"])}
        rows.sort(key=lambda row: order[row[0]])
        yield from _table([f"{focus} less", f"{metric}, points", interval, "p", "detectable"], rows)
        names = {"mcnemar": "exact McNemar test and Tango's interval", "bootstrap": "paired percentile bootstrap"}
        yield ""
        yield (
            f"Paired, by the {' or the '.join(names[test] for test in sorted(tests))}. Detectable: the smallest true "
            f"difference, in points, that so many rows show with a power of {percent(report['power'], 0)}."
        )


def _weakest(report: EvaluationReport) -> Iterator[str]:
    focus = report["focus"]
    slices = [entry for entry in report["slices"] if focus in entry["values"]]
    worst = sorted(slices, key=lambda entry: (entry["values"][focus], -entry["n"]))[:WORST]
    if worst:
        rows = [[entry["name"], entry["by"], str(entry["n"]), percent(entry["values"][focus])] for entry in worst]
        yield from _table(["slice", "by", "rows", report["primary_metric"]], rows)


def _release(report: EvaluationReport) -> Iterator[str]:
    """The focus and the release on the release's old rows and on new ones."""
    release, focus, metric = report.get("release"), report["focus"], report["primary_metric"]
    rows: list[list[str]] = []
    if release is None:
        return
    for title, part in release["rows"].items():
        if focus in part["differences"]:
            entry, values = part["differences"][focus][metric], part["values"]
            low, high = entry["interval"]
            rows.append(
                [
                    title,
                    str(part["n"]),
                    percent(values[focus][metric]),
                    percent(values[release["name"]][metric]),
                    f"{100 * entry['difference']:+.1f}",
                    f"{100 * low:+.1f} to {100 * high:+.1f}",
                ]
            )
    if rows:
        yield from _table(["rows", "n", focus, release["name"], "points", "interval"], rows)
        yield ""
        yield f"{release['name']} is {release['title']}; old rows were in its data set, new ones were not."


def _choice(report: EvaluationReport) -> Iterator[str]:
    choice = report["choice"]
    if choice is None:
        return
    rows = [
        [
            file["model"] + (" (chosen)" if file["model"] == choice["model"] else ""),
            console.size(file["size"]),
            percent(file["value"]),
            f"{100 * file['loss']:+.1f}",
            f"{100 * file['loss_at_most']:.1f}",
            "-" if file["tokens_per_s"] is None else f"{file['tokens_per_s']:.0f}",
        ]
        for file in choice["candidates"]
    ]
    head = ["file", "size", choice["metric"], f"loss to {choice['of']}, points", "at most (95 %)", "tokens/s"]
    yield from _table(head, rows)
    yield ""
    yield f"On {choice['n']} {choice['split']} rows; the rows of this report were not used for the choice."


def _break_even(report: EvaluationReport) -> Iterator[str]:
    prices = report["break_even"]
    if prices is None:
        return
    rows = [
        [
            name,
            f"{entry['machine_per_1000_rows']:.4f}" if "machine_per_1000_rows" in entry else "-",
            f"{entry['api_per_1000_rows']:.4f}",
            f"{entry['break_even_rows_per_hour']:.0f}" if "break_even_rows_per_hour" in entry else "-",
            percent(entry["share_of_capacity"]) if "share_of_capacity" in entry else "-",
        ]
        for name, entry in sorted(prices["models"].items(), key=lambda item: report["participants"].index(item[0]))
    ]
    currency = prices["currency"]
    head = [
        "model",
        f"{currency} per 1000 rows, own machine",
        f"{currency}, API",
        "break-even, rows/h",
        "of capacity",
    ]
    yield from _table(head, rows)
    yield ""
    yield (
        f"At {prices['machine_per_hour']:g} {currency} an hour for the machine that measured, and "
        f"{prices['api_per_million_input_tokens']:g} / {prices['api_per_million_output_tokens']:g} {currency} "
        "per million input / output tokens for the same tokens; above the break-even the machine is the cheaper one."
    )
