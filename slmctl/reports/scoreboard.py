"""A report as tables: what the terminal, the Markdown report and the model card show."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from slmctl import console

ORDER = ("base", "adapter", "merged", "gguf", "published", "endpoint")  # kinds, in the order of the pipeline
BESIDE = {  # which metrics stand beside the primary one; the report has them all
    "classify": ("macro_f1", "ece"),
    "extract": ("valid_json", "valid_schema", "field_f1"),
    "generate": ("exact_match", "rouge_l", "chrf"),
}
WORST = 5  # slices listed in the Markdown


def markdown(report: dict[str, Any]) -> str:
    """The report as Markdown, for a pull request."""
    parts = [f"# Report: {report['n']} held-out rows ({report['split']}), {report['task']}", ""]
    parts += [f"> {remark}" for remark in report["remarks"]] + ([""] if report["remarks"] else [])
    parts += [*_table(*table(report)), ""]
    kind = "Wilson" if report["primary_metric"] != "token_f1" else "percentile bootstrap"
    parts += [f"Intervals: {kind}, {report['confidence']:.0%}. Latency: median over rows asked one at a time."]
    for title, section in (
        (f"{report['focus']} beside the others", _beside),
        (f"Where {report['focus']} is weakest", _weakest),
        ("Choice", _choice),
        ("Break-even", _break_even),
    ):
        lines = list(section(report))
        parts += ["", f"## {title}", "", *lines] if lines else []
    return "\n".join(parts) + "\n"


def table(report: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The scoreboard: head and rows, as text; baselines first."""
    metric = report["primary_metric"]
    entries = {name: {**report["baselines"], **report["models"]}[name] for name in report["participants"]}
    others = [name for name in BESIDE[report["task"]] if any(name in entry["metrics"] for entry in entries.values())]
    head = ["model", "size", metric, f"{report['confidence']:.0%} interval", *others, "latency"]
    return head, [_line(name, entry, metric, others) for name, entry in entries.items()]


def plan(found: dict[str, Any]) -> Iterator[str]:
    """What publishing would do, a line each: the files, where they go, and under what conditions."""
    width = max(len(one["file"]) for one in found["files"])
    for one in found["files"]:
        mark = "send" if one["send"] else "there"
        yield f"{mark:<5}  {console.size(one['size']):>9}  {one['file']:<{width}}  -> {one['to']}"
    there = ", which is there already" if found["there"] else ""
    yield f"to          {found['to']}{there}"
    yield f"hosts       {', '.join(found['hosts']) or 'none'}"
    yield f"visibility  {found['visibility']}"
    yield f"license     {found['license'] or 'none stated'}"
    yield f"signed      {'yes' if found['signed'] else 'no'}"
    yield from (f"gate passed {text}" for text in found["gates"] or ["(none is set)"])
    yield f"bytes       {found['bytes_to_send']} to send"


def _line(name: str, entry: dict[str, Any], metric: str, others: Sequence[str]) -> list[str]:
    low, high = entry["interval"]
    latency = entry.get("latency_ms")
    return [
        name,
        console.size(entry["size"]) if entry.get("size") else "-",
        f"{entry['metrics'][metric]:.1%}",
        f"{low:.1%} - {high:.1%}",
        *(f"{entry['metrics'][other]:.3f}" if other in entry["metrics"] else "-" for other in others),
        f"{latency['median']:.0f} ms" if latency else "-",
    ]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in (head, *rows)]
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    return [lines[0], "|---" + "|---:" * (len(head) - 1) + "|", *lines[1:]]


def _beside(report: dict[str, Any]) -> Iterator[str]:
    """The focus against everyone else, in the primary metric."""
    focus, metric = report["focus"], report["primary_metric"]
    rows, tests = [], set()
    for key, pair in report["pairs"].items():
        first, second = key.split("|")
        if focus not in (first, second) or metric not in pair["metrics"]:
            continue
        found, sign = pair["metrics"][metric], 1 if second == focus else -1
        low, high = sorted(sign * bound for bound in found["interval"])
        tests.add(found["test"])
        rows.append(
            [
                first if second == focus else second,
                f"{100 * sign * found['difference']:+.1f}",
                f"{100 * low:+.1f} to {100 * high:+.1f}",
                f"{found['p']:.2g}",
                f"{100 * found['detectable']:.1f}",
            ]
        )
    if rows:
        interval = f"{report['confidence']:.0%} interval"
        order = {name: k for k, name in enumerate(report["participants"])}
        rows.sort(key=lambda row: order[row[0]])
        yield from _table([f"{focus} less", f"{metric}, points", interval, "p", "would have been seen"], rows)
        names = {"mcnemar": "exact McNemar test and Tango's interval", "bootstrap": "paired percentile bootstrap"}
        yield ""
        yield (
            f"Paired, by the {' or the '.join(names[test] for test in sorted(tests))}. Would have been seen: the "
            f"smallest true difference, in points, that so many rows show with a chance of {report['power']:.0%}."
        )


def _weakest(report: dict[str, Any]) -> Iterator[str]:
    focus = report["focus"]
    known = [one for one in report["slices"] if focus in one["values"]]
    worst = sorted(known, key=lambda one: (one["values"][focus], -one["n"]))[:WORST]
    if worst:
        rows = [[one["name"], one["by"], str(one["n"]), f"{one['values'][focus]:.1%}"] for one in worst]
        yield from _table(["slice", "by", "rows", report["primary_metric"]], rows)


def _choice(report: dict[str, Any]) -> Iterator[str]:
    choice = report["choice"]
    if choice is None:
        return
    rows = [
        [
            one["model"] + (" (chosen)" if one["model"] == choice["model"] else ""),
            console.size(one["size"]),
            f"{one['value']:.1%}",
            f"{100 * one['loss']:+.1f}",
            f"{100 * one['loss_at_most']:.1f}",
            "-" if one["tokens_per_s"] is None else f"{one['tokens_per_s']:.0f}",
        ]
        for one in choice["candidates"]
    ]
    head = ["file", "size", choice["metric"], f"loss to {choice['of']}, points", "at most (95%)", "tokens/s"]
    yield from _table(head, rows)
    yield ""
    yield f"On {choice['n']} {choice['split']} rows; the rows of this report had no say."


def _break_even(report: dict[str, Any]) -> Iterator[str]:
    prices = report["break_even"]
    if prices is None:
        return
    rows = [
        [
            name,
            f"{entry['machine_per_1000_rows']:.4f}" if "machine_per_1000_rows" in entry else "-",
            f"{entry['api_per_1000_rows']:.4f}",
            f"{entry['break_even_rows_per_hour']:.0f}" if "break_even_rows_per_hour" in entry else "-",
            f"{entry['share_of_capacity']:.1%}" if "share_of_capacity" in entry else "-",
        ]
        for name, entry in sorted(prices["models"].items(), key=lambda item: report["participants"].index(item[0]))
    ]
    currency = prices["currency"]
    head = [
        "model",
        f"{currency} per 1000 rows, own machine",
        f"{currency}, API",
        "break-even, rows/h",
        "of its capacity",
    ]
    yield from _table(head, rows)
    yield ""
    yield (
        f"At {prices['machine_per_hour']:g} {currency} an hour for the machine that measured, and "
        f"{prices['api_per_million_input_tokens']:g} / {prices['api_per_million_output_tokens']:g} {currency} "
        "per million input / output tokens for the same tokens; above the break-even the machine is the cheaper one."
    )
