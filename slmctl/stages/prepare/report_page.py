"""The report of `prepare` as a page: notices first, then the fate of every row.

It reads the dictionary that becomes the manifest's metrics, and leaves out what that does not hold.
Rows are named by file and number; of their texts only labels and short answers are shown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from slmctl import console
from slmctl.console import percent
from slmctl.reports import html_page, svg_chart
from slmctl.reports.html_page import (
    Block,
    Cell,
    Chart,
    Figure,
    Notice,
    PageSection,
    Table,
    count,
    either,
    place,
)
from slmctl.reports.svg_chart import Bar
from slmctl.stages.prepare import report_findings
from slmctl.stages.prepare.facts import OverlapFacts, PrepareFacts, SplitFacts
from slmctl.stages.prepare.fates import RowPlace
from slmctl.stages.prepare.suspects import CREDIBLE
from slmctl.task.records import SPLITS

Cells = list[list[str | Cell]]

FILENAME = "report.html"
SHOWN = 24  # labels or reasons that a chart shows
COLOURS = {"train": "c1", "validation": "c3", "calibration": "c4", "test": "c2", "left out": "c5"}
PURPOSE = {
    "train": "the model learns from these",
    "validation": "stop the training, choose settings",
    "calibration": "set the thresholds of confidence",
    "test": "only report",
}
DONE = {"drop": "only the first was kept", "list": "kept, and listed", "keep": "kept"}
UNSEEN = (
    "Rules find what has a form of its own: addresses, numbers that pass their check, keys. They do not find names, "
    "or a person described in words. Where rows may hold those, read a sample before the data leaves its owner."
)
SEQUENCE = (
    "A row shares a sequence when 13 of its words in a row stand in a training row too; "
    "8 where it has fewer than 13 words."
)


def write(out: Path, facts: PrepareFacts) -> None:
    """Write `report.html` into `out`.

    Args:
        facts: The metrics of the manifest; sections on missing ones are left out.
    """
    html_page.write(out / FILENAME, _page(facts))


def _page(facts: PrepareFacts) -> html_page.Page:
    notices = list(report_findings.notices(facts))
    tones = {notice.tone for notice in notices}
    if len(notices) > 1:
        lead = f"{len(notices)} things to look at before training."
    else:
        lead = notices[0].text if notices else "Nothing in them asks for a decision before training."
    sections = (_rows, _sources, _cleaning, _labels, _suspects, _answers, _sensitive, _same, _held_out, _lengths)
    return html_page.Page(
        kicker=" · ".join(["Data set", *([facts["task"]] if "task" in facts else [])]),
        headline=f"{_kept(facts):,} of {count(facts['rows_in'], 'row')} can be used: "
        f"{facts.get('train', 0):,} to train on, {facts.get('test', 0):,} to measure with",
        lead=lead,
        tone="bad" if "bad" in tones else "warn" if tones else "good",
        figures=list(_figures(facts)),
        notices=notices if len(notices) > 1 else (),
        sections=[section for section in (make(facts) for make in sections) if section.blocks],
        foot="Made by slmctl prepare; manifest.json holds the same figures, and the sha256 of every source.",
    )


def _figures(facts: PrepareFacts) -> Iterator[Figure]:
    left_out, sources = facts.get("rejected", 0), len(facts.get("sources", [])) or 1
    yield Figure("Rows that came in", count(facts["rows_in"]), f"from {count(sources, 'source')}")
    share = percent(left_out / max(facts["rows_in"], 1))
    yield Figure("Left out", share, f"{count(left_out, 'row')}, each with its reason")
    if test := facts.get("test", 0):
        yield Figure("Margin of a score", _margin(test), f"points, {test:,} test rows, 90 % right")
    if linear := facts.get("linear"):
        low, high = (percent(bound) for bound in linear["interval"])
        yield Figure("A linear model gets", percent(linear["accuracy"]), f"of the validation rows, {low} to {high}")
    if labels := facts.get("labels"):
        sizes = [sum(splits.values()) for splits in labels.values()]
        yield Figure("Labels", count(len(labels)), f"{min(sizes):,} to {max(sizes):,} rows each")
    conflicts = facts.get("conflicts", {})
    if conflicts.get("pairs") and "cap" in conflicts:
        pairs = f"{count(conflicts['pairs'], 'pair')} of like inputs with different answers"
        yield Figure(
            "No model scores over", percent(conflicts["cap"]), pairs, "warn" if conflicts["cap"] < 0.99 else ""
        )
    if "sensitive" in facts:
        rows = facts.get("sensitive_rows")
        where = "found by rules" if rows is None else f"in {count(rows, 'row')}, found by rules"
        yield Figure("Personal data", count(sum(entry["count"] for entry in facts["sensitive"])), where)
    if tokens := facts.get("tokens"):
        total = tokens["total"]
        large = f"{total / 1e6:.1f} M" if total >= 1e6 else f"{total:,}"
        yield Figure("Tokens to train on", large, f"median {tokens['median']:,}, longest {tokens['max']:,} a row")


def _rows(facts: PrepareFacts) -> PageSection:
    bars = [Bar(split, rows, colour=COLOURS[split]) for split, rows in rows_by_split(facts).items()]
    bars.append(Bar("left out", facts.get("rejected", 0), colour=COLOURS["left out"]))
    blocks: list[Block] = [
        Chart("Every row is in one split, or left out", svg_chart.stack(bars, title="Rows by split"), _sum(facts))
    ]
    rules = sorted(facts.get("rejected_by_reason", {}).items(), key=lambda item: (-item[1], item[0]))
    if rules:
        bars = [Bar(rule, many, f"{many:,}", "c5") for rule, many in rules[:SHOWN]]
        blocks.append(Chart("Why rows were left out", svg_chart.bars(bars, title="Rows left out by reason")))
        places, total = facts.get("examples", {}), max(facts["rows_in"], 1)
        rows = [[rule, _places(places.get(rule, [])[:3]), f"{many:,}", percent(many / total)] for rule, many in rules]
        note = "rejected.jsonl names every row that was left out, with the reason."
        blocks.append(
            Table("Reasons, with places to look at", ["reason", "for example", "rows", "of all"], rows, 2, note=note)
        )
    return PageSection("Kept and rejected rows", blocks, _split_sentence(facts.get("splits", {})))


def _places(entries: Sequence[RowPlace]) -> str:
    """`tickets.csv lines 17, 90; more.xlsx row 3`."""
    rows: dict[str, list[int]] = {}
    for entry in entries:
        rows.setdefault(entry["file"], []).append(entry["row"])
    return "; ".join(console.place(file, *some) for file, some in rows.items())


def _sum(facts: PrepareFacts) -> str:
    kept, left_out, total = _kept(facts), facts.get("rejected", 0), facts["rows_in"]
    terms = f"{kept:,} kept + {left_out:,} left out = {kept + left_out:,}"
    return f"{terms} rows, all that came in." if kept + left_out == total else f"{terms} rows, but {total:,} came in."


def _split_sentence(splits: SplitFacts) -> str:
    """The rule by which the rows were split, as a sentence."""
    column, later = splits.get("column"), "follow from a hash, so rows added later move none of these."
    match splits.get("by"):
        case "time":
            since = "; ".join(f"{split} from {moment}" for split, moment in splits.get("boundaries", {}).items())
            return f"Splits follow the time{f' in “{column}”' if column else ' of the rows'}: {since}."
        case "group":
            sizes = ""
            if "groups" in splits:
                sizes = f" ({count(splits['groups'], 'group')}, the largest of {count(splits['largest_group'], 'row')})"
            return f"Rows of one “{column or 'group'}” stay in one split{sizes}. Splits {later}"
        case "content":
            return f"Splits {later}"
    return ""


def _sources(facts: PrepareFacts) -> PageSection:
    rows: Cells = []
    for source in facts.get("sources", []):
        many, left_out = source.get("rows_in", 0), source.get("rejected", 0)
        figures = [f"{many:,}", f"{left_out:,}", percent(left_out / many)] if many else ["", "", ""]
        digest = Cell(source["sha256"][:12], title=source["sha256"])
        form, shape = source.get("form") or "", source.get("shape") or ""
        rows.append([source["file"], form, shape, source.get("split") or "by rule", digest, *figures])
    head = ["file", "read as", "format", "split", "sha256", "rows", "left out", "share"]
    return PageSection("Sources", [Table("Sources", head, rows[:SHOWN], 5, total=len(rows))] if rows else [])


def _cleaning(facts: PrepareFacts) -> PageSection:
    total = max(facts["rows_in"], 1)
    steps = [
        [entry["step"], f"{entry['rows']:,}", percent(entry["rows"] / total)] for entry in facts.get("cleaning", [])
    ]
    renamed = [[entry["label"], entry["to"], f"{entry['rows']:,}"] for entry in facts.get("renamed_labels", [])]
    blocks: list[Block] = []
    if steps:
        note = "The same is done to a text when the model is used: predict, chat and the server clean it."
        blocks.append(Table("Rows that a step changed", ["step", "rows", "of all"], steps, note=note))
    if renamed:
        blocks.append(Table("Labels that were renamed", ["label", "to", "rows"], renamed, 2))
    return PageSection("Cleaning", blocks)


def _labels(facts: PrepareFacts) -> PageSection:
    labels = facts.get("labels") or {}
    sizes = {name: sum(splits.values()) for name, splits in labels.items()}
    order = sorted(sizes, key=lambda name: (-sizes[name], name))
    if not order:
        return PageSection("Labels", [])
    bars = [Bar(name, sizes[name], f"{sizes[name]:,}") for name in order]
    blocks: list[Block] = []
    if len(bars) <= SHOWN:
        blocks.append(Chart("Rows by label", svg_chart.bars(bars, title="Rows by label", width=2 * svg_chart.WIDTH)))
    else:
        some = SHOWN // 2
        for title, part in (
            (f"The {some} most frequent labels", bars[:some]),
            (f"The {some} rarest labels", bars[-some:]),
        ):
            blocks.append(Chart(title, svg_chart.bars(part, title=title, most=bars[0].value)))
    if slips := facts.get("label_typos"):
        rows = [[t["label"], t["likely"], f"{t['count']:,}", f"{t['likely_count']:,}"] for t in slips]
        blocks.append(
            Table("Labels that may be misspelled", ["label", "perhaps meant", "rows", "rows of that"], rows, 2)
        )
    total = sum(sizes.values()) or 1
    table: Cells = [
        [name, *(_rows_in(labels[name], split) for split in SPLITS), percent(sizes[name] / total)] for name in order
    ]
    caption = f"{count(len(order), 'label')} by split"
    blocks.append(Table(caption, ["label", *SPLITS, "of all"], table, folded=len(order) > SHOWN // 2))
    share = percent(sizes[order[0]] / total)
    return PageSection("Labels", blocks, f"Always answering “{order[0]}” would be right for {share} of the rows.")


def _rows_in(rows: dict[str, int], split: str) -> Cell:
    """The rows of a label in a split, marked where a test of it would say little."""
    few = split == "test" and rows.get(split, 0) < report_findings.FEW
    return Cell(
        f"{rows.get(split, 0):,}", "warn" if few else "", f"fewer than {report_findings.FEW} rows" if few else ""
    )


def _suspects(facts: PrepareFacts) -> PageSection:
    suspects = facts.get("suspects")
    if not suspects:
        return PageSection("Suspected labels", [])
    of = "" if suspects["measured"] == suspects["train"] else f" of {suspects['train']:,}"
    weak = "Words decide too little here for it to know, so most of these labels will be right"
    lead = (
        f"A linear model that was trained on the other rows agrees with {percent(suspects['agreement'])} of the labels "
        f"of {count(suspects['measured'], 'training row')}{of}, and is surer of another label than of the given one "
        f"for {suspects['rows']:,} (confident learning). "
        f"{weak if suspects['agreement'] < report_findings.SURE else 'It may be wrong'}: nothing was changed."
    )
    if not suspects["rows"]:
        knows = suspects["agreement"] >= CREDIBLE
        sentence = "No label looks wrong." if knows else "The linear model knows too little here to doubt a label."
        return PageSection("Suspected labels", [Notice(sentence, "good" if knows else "")], lead)
    rows = [[pair["label"], pair["proposed"], f"{pair['rows']:,}"] for pair in suspects["pairs"]]
    blocks: list[Block] = [Table("Labels in doubt", ["label", "perhaps", "rows"], rows[: SHOWN // 3], 2)]
    rows = [[place(e["row"]), e["label"], e["proposed"], f"{e['score']:.2f}"] for e in suspects["examples"]]
    note = "suspects.jsonl names every row with its text; slmctl review shows them, the worst first."
    head, total, folded = ["row", "label", "perhaps", "score"], suspects["rows"], len(rows) > SHOWN // 2
    blocks.append(Table("Rows to look at, the worst first", head, rows, 3, total=total, note=note, folded=folded))
    return PageSection("Suspected labels", blocks, lead)


def _answers(facts: PrepareFacts) -> PageSection:
    rows = [[name, f"{many:,}"] for name, many in facts.get("odd_answers", {}).items() if many]
    return PageSection(
        "Odd answers", [Table("Rows kept although their answer is", ["answer", "rows"], rows)] if rows else []
    )


def _sensitive(facts: PrepareFacts) -> PageSection:
    title = "Personal data and secrets"
    if "sensitive" not in facts:
        return PageSection(title, [])
    entries = sorted(facts["sensitive"], key=lambda e: (-e["count"], e["kind"], e["rule"], e["column"]))
    rows: Cells = [
        [
            e["kind"],
            e["rule"],
            e["column"],
            Cell(e["action"], "bad" if e["action"] == "keep" else ""),
            f"{e['count']:,}",
        ]
        for e in entries
    ]
    head = ["kind", "rule", "column", "action", "findings"]
    blocks: list[Block] = [Table("Findings, counted: no value is shown", head, rows, 4)] if rows else []
    searched = ", ".join(facts.get("sensitive_searched", []))
    lead = (f"Searched for: {searched}." if searched else "") + ("" if rows else " Nothing was found.")
    return PageSection(title, [*blocks, Notice(UNSEEN, "warn")], lead.strip())


def _same(facts: PrepareFacts) -> PageSection:
    return PageSection("Duplicates and conflicts", [*_duplicates(facts), *_conflicts(facts)])


def _duplicates(facts: PrepareFacts) -> Iterator[Block]:
    repeats = facts.get("duplicates")
    if repeats:
        rows = (("the same", repeats.get("exact", 0)), ("nearly the same", repeats.get("near", 0)))
        bars = [Bar(name, many, f"{many:,}") for name, many in rows]
        caption = f"The same: {DONE.get(repeats.get('policy', ''), 'counted')}."
        if "threshold" in repeats:
            done = DONE.get(repeats.get("near_policy", ""), "counted")
            caption += f" Nearly the same, from a similarity of {repeats['threshold']:g}: {done}."
        yield Chart("Rows whose input came before", svg_chart.bars(bars, title="Duplicates"), caption)


def _conflicts(facts: PrepareFacts) -> Iterator[Block]:
    conflicts = facts.get("conflicts", {})
    examples = conflicts.get("examples", [])
    labels = Counter(tuple(sorted(e["answers"])) for e in examples if all(e["answers"]))
    if labels:
        order = sorted(labels, key=lambda pair: (-labels[pair], pair))
        rows = [[*pair, f"{labels[pair]:,}"] for pair in order]
        title, head = "Labels that like inputs disagree on", ["label", "or", "pairs of rows"]
        yield Table(title, head, rows[: SHOWN // 3], 2, total=len(rows))
    if not examples:
        return
    if "cap" in conflicts:
        yield Notice(f"Whatever a model answers, {percent(1 - conflicts['cap'], 2)} of the rows stay wrong.", "warn")
    head, rows = ["row", "nearly the same row", "similarity"], []
    for e in examples:
        places, alike = [place(e["first"]), place(e["second"])], f"{e['similarity']:.2f}"
        rows.append([places[0], e["answers"][0], places[1], e["answers"][1], alike] if labels else [*places, alike])
    if labels:  # answers that are no labels are texts of rows, and not shown
        head = ["row", "its answer", "nearly the same row", "its answer", "similarity"]
    total, folded = conflicts.get("pairs"), len(rows) > SHOWN
    yield Table("Conflicts to settle", head, rows, len(head) - 1, total=total, folded=folded)


def _held_out(facts: PrepareFacts) -> PageSection:
    near = facts.get("near_held_out", {})
    blocks: list[Block] = []
    rows = [
        [split, PURPOSE[split], f"{many:,}", "" if split == "train" else _margin(many)]
        for split, many in rows_by_split(facts).items()
        if split in facts
    ]
    if rows:
        head = ["split", "purpose", "rows", "margin of a score, points"]
        blocks.append(Table("Purpose of the splits", head, rows, 2, note="Margins: 95 %, where 90 % are right."))
    blocks += _overlap(facts.get("overlap", {}))
    if near.get("examples"):
        rows = [
            [place(e["row"]), place(e["near"]), e.get("side", ""), f"{e['similarity']:.2f}"] for e in near["examples"]
        ]
        head, total = ["training row", "held-out row it is near", "split", "similarity"], near.get("left_out")
        blocks.append(Table("Left out of the training", head, rows, 3, total=total, folded=len(rows) > SHOWN // 2))
    lead = " ".join([*report_findings.linear_score(facts), *report_findings.score_interval(facts)])
    if many := near.get("left_out"):
        from_ = f" (from a similarity of {near['threshold']:g})" if "threshold" in near else ""
        lead += (
            f" {count(many, 'training row')} {either(many, 'was', 'were')} left out as nearly the same as a held-out "
            f"row{from_}: with them, a test would measure memory."
        )
    return PageSection("Held-out rows", blocks, lead.strip())


def _overlap(overlap: OverlapFacts) -> Iterator[Block]:
    gate = overlap.get("gate")
    rows: Cells = []
    for split, measure in overlap.get("sides", {}).items():
        share = report_findings.overlap_share(measure)
        tone: html_page.Tone = "" if gate is None else "bad" if share > gate else "good"
        figures = [f"{many:,}" for many in (measure["measured"], measure["too_short"], measure["overlapping"])]
        rows.append([split, *figures, Cell(percent(share, 2), tone), "" if gate is None else percent(gate, 2)])
    if rows:
        head = ["split", "rows measured", "too short to measure", "share a sequence", "share", "gate"]
        yield Table("Overlap with the training rows", head, rows, note=SEQUENCE)
    examples = [[e.get("side", ""), place(e["row"]), place(e["near"])] for e in overlap.get("examples", [])]
    if examples:
        head = ["split", "row", "training row"]
        yield Table("Rows that share a sequence", head, examples, 3, folded=True)


def _margin(rows: int) -> str:
    return f"±{report_findings.margin(rows):.1f}"


def _lengths(facts: PrepareFacts) -> PageSection:
    tokens = facts.get("tokens")
    if not tokens:
        return PageSection("Lengths", [])
    quantiles = {float(share): value for share, value in tokens.get("quantiles", {}).items()}
    blocks: list[Block] = []
    if histogram := tokens.get("histogram"):
        strip = [quantiles[share] for share in (0.05, 0.25, 0.5, 0.75, 0.95) if share in quantiles]
        drawn = svg_chart.histogram(
            histogram["edges"], histogram["counts"], title="Lengths of the training rows", unit="tokens", strip=strip
        )  # fmt: skip
        caption = "The strip: median, the middle half, and 5 % to 95 %." if len(strip) == 5 else ""
        blocks.append(Chart("Training rows by length", drawn, caption))
    marks = sorted(quantiles.items()) or [(0.5, tokens["median"]), (0.95, tokens["p95"]), (1.0, tokens["max"])]
    rows = [["all" if share == 1 else f"{percent(share, 0)}", f"{value:,}"] for share, value in marks]
    blocks.append(Table("So many rows are no longer than", ["share of rows", "tokens"], rows, half=True))
    whose = f"of {facts['base']}" if facts.get("base") else "of the base model"
    lead = f"Prompt and answer together, {tokens['total']:,} tokens in all, counted with the tokenizer {whose}."
    if longer := tokens.get("longer_than"):
        over_limits = ", ".join(f"{over:,} over {int(limit):,}" for limit, over in longer.items() if over)
        lead += f" Long rows: {over_limits}." if over_limits else ""
    return PageSection("Lengths", blocks, lead)


def _kept(facts: PrepareFacts) -> int:
    return sum(rows_by_split(facts).values())


def rows_by_split(facts: PrepareFacts) -> dict[str, int]:
    """The number of records of each split, 0 where the facts lack it."""
    return {
        "train": facts.get("train", 0),
        "validation": facts.get("validation", 0),
        "calibration": facts.get("calibration", 0),
        "test": facts.get("test", 0),
    }
