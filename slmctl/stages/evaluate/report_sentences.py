"""A report -> sentences: the remarks that a reader should see first."""

from __future__ import annotations

from collections.abc import Iterator

from slmctl.console import percent
from slmctl.inference import FILE, TAGGER
from slmctl.metrics.baseline import BASELINES, RELEASED, EncoderTagger
from slmctl.metrics.judged_rate import FEWEST
from slmctl.metrics.label_sum import ENCODER, WORDS
from slmctl.reports.evaluation_report import (
    EvaluationReport,
    JudgedEntry,
    JudgeEntry,
    ParticipantEntry,
    file_of,
)
from slmctl.reports.html_page import Tone, count
from slmctl.stages.evaluate.report_data import Difference, ReportView, p_equation

# of a sum
MEMBERS = {
    FILE: "the file",
    ENCODER: "the encoder",
    WORDS: "words",
    TAGGER: EncoderTagger.in_words,
}
FEW_ROWS = 200  # below this, the interval of a share is wider than ten points


def headline(view: ReportView) -> tuple[str, Tone]:
    """The focus against the best baseline, and the verdict; a baseline that wins is named first."""
    focus, baseline = view.focus, view.baseline
    done = f"{focus} {_did(view, focus)}"
    if baseline is None:
        return done, ""
    name, difference = BASELINES[baseline].in_words, view.difference(baseline, focus)
    if view.score(baseline) >= view.score(focus):
        more = f"{focus} {percent(view.score(focus))}"
        wins = "better" if view.score(baseline) > view.score(focus) else "as good"
        return (
            f"{name[0].upper()}{name[1:]} {_did(view, baseline)}, {more}: the baseline is {wins}, "
            "and cheaper",
            "bad",
        )
    if difference is not None and not difference.real:
        theirs = percent(view.score(baseline))
        return f"{done}, {name} {theirs}. The difference may be chance.", "warn"
    gain = 100 * (view.score(focus) - view.score(baseline))
    return f"{done}, {gain:.1f} points more than {name}", "good"


def _did(view: ReportView, name: str) -> str:
    score, rows = percent(view.score(name)), count(view.entries[name]["n"], "held-out row")
    match view.metric:
        case "accuracy":
            return f"answers {score} of {rows} right"
        case "exact_match":
            return f"gets {score} of {rows} exactly right"
    return f"scores {score} {view.metric} on {rows}"


def lead(view: ReportView) -> str:
    if len(view.models) == 1:
        return f"{view.focus} is the model to release."
    if view.best == view.focus:
        return (
            f"{view.focus} is the model to release, and the best of "
            f"{count(len(view.models), 'model')} measured."
        )
    difference = view.difference(view.focus, view.best)
    text = (
        f"The best model is {view.best} with {percent(view.score(view.best))}; {view.focus} is "
        "the one to release."
    )
    if difference is None:
        return text
    chance = f" ({p_equation(difference.p)})" if difference.p is not None else ""
    return (
        f"{text} The difference {'is more than' if difference.real else 'may be'} chance{chance}."
    )


def remarks(report: EvaluationReport) -> list[str]:
    """Sentences, the most important first: a baseline that wins always comes before all others."""
    view = ReportView(report)
    return [
        *_baselines(view),
        *_release(view),
        *_judged(view),
        *_choice(view),
        *_sum(view),
        *_decides(view),
        *_focus(view),
        *_slices(view),
        *_rows(view),
    ]


def _baselines(view: ReportView) -> Iterator[str]:
    tuned = [name for name in view.models if view.kind(name).is_trained_here()]
    if not tuned:
        return
    best = max(tuned, key=view.score)
    uncertain = []
    for name in view.report["baselines"]:
        scores = f"The baseline {name} scores {percent(view.score(name))}"
        if view.score(name) >= view.score(best):
            wins = (
                "the cheaper and better choice"
                if view.score(name) > view.score(best)
                else "as good, and cheaper"
            )
            yield (
                f"{scores}, the best model ({best}) {percent(view.score(best))}: on these rows the "
                f"baseline is {wins}."
            )
            continue
        difference = view.difference(name, best)
        if difference is not None and difference.low <= 0:
            uncertain.append(
                f"{scores}, {best} {percent(view.score(best))}: the difference of "
                f"{_points(difference.value)} "
                f"({difference.span}) may be chance; {_detectable(view, difference)}."
            )
    yield from uncertain


def _release(view: ReportView) -> Iterator[str]:
    """Remarks on the release in production: a loss of the focus on old
    rows, and the limits of the comparison.
    """
    release = view.report.get("release")
    if release is None:
        return
    name, old = release["name"], release["rows"].get("old")
    difference = old["differences"].get(view.focus, {}).get(view.metric) if old else None
    if old and difference is not None and difference["interval"][1] < 0:
        overall = view.difference(name, view.focus)
        is_better = overall is not None and overall.value > 0
        average = " although it is better on average" if is_better else ""
        low, high = difference["interval"]
        loss = _points(abs(difference["difference"]))
        interval = f"{100 * low:+.1f} to {100 * high:+.1f}"
        yield (
            f"On the {old['n']} rows that {name} already had {view.focus} scores {loss} below it "
            f"({interval}){average}."
        )
    if release["trained_on"]:
        yield f"{name} was trained on {release['trained_on']} of these rows, which favours it."
    if not release["rows"]:
        yield (
            f"The data set of {name} ({release['title']}) is not here: its old rows are not "
            "told from new ones."
        )


def _judged(view: ReportView) -> Iterator[str]:
    """Remarks on pairs that people judged: the win rates, and decisions that do not count."""
    judged = view.report.get("judged")
    if judged is None:
        return
    for entry in judged["entries"]:
        decided, ties = entry["won"] + entry["lost"], entry["same"] + entry["neither"]
        groups = f" (rows of {count(entry['groups'], 'group')})" if "groups" in entry else ""
        low, high = (percent(bound) for bound in entry["interval"])
        pair = f"{entry['model']} to {entry['against']}"
        won = f"{entry['won']:,} of {decided:,} decided pairs{groups}"
        rate = f"{percent(entry['win_rate'])} ({low} to {high})"
        yield (
            f"People preferred {pair} in {won}, and found {ties:,} alike: it wins {rate}, "
            f"{_decided(entry, 1 - view.confidence)}."
        )
        if "judge" in entry:
            yield from _judge(entry, entry["judge"])
    if others := judged["of_others"]:
        yield (
            f"{count(others, 'decision')} on pairs {'is' if others == 1 else 'are'} about other "
            "answers than those "
            f"measured here, and do{'es' * (others == 1)} not count."
        )


def _judge(entry: JudgedEntry, judge: JudgeEntry) -> Iterator[str]:
    """Remarks on a judge: its agreement with people, the rate that both give, and how it errs."""
    name = judge["judge"]
    pairs = judge["pairs"]
    sure = "surely" if judge["admitted"] else "not surely"
    if missing := judge["missing"]:
        yield (
            f"The judge {name} was never asked about {count(missing, 'pair')} that its figures "
            "need, and does not "
            "count: ask again, slmctl evaluate --judge NAME."
        )
        return
    if pairs < FEWEST:
        yield (
            f"The judge {name} is not admitted: people judged {count(pairs, 'pair')}, and it "
            f"takes {FEWEST}."
        )
        return
    tried = (
        f" {judge['tried']} judges or rubrics were tried, which the level heeds."
        if judge["tried"] > 1
        else ""
    )
    admitted = "admitted" if judge["admitted"] else "not admitted"
    agrees = f"{judge['right']} of {count(pairs, 'pair')}"
    yield (
        f"The judge {name} is {admitted}: it agrees with people on {agrees}, {sure} more than "
        f"always the same ({judge['same']}) and always the longer answer ({judge['longer']})."
        f"{tried}"
    )
    if "win_rate" in judge:
        low, high = (percent(bound) for bound in judge["interval"])
        worth = round(judge["worth"])
        alone = (
            f"as good as {worth} pairs of people"
            if worth > pairs
            else f"{name} adds nothing to people's pairs"
        )
        yield (
            f"By people and {name}, {entry['model']} wins {percent(judge['win_rate'])} ({low} to "
            f"{high}) of "
            f"{judge['rows']:,} rows against {entry['against']}; {alone}."
        )
    if skipped := judge["skipped"]:
        yield (
            f"{count(skipped, 'pair')} that people skipped "
            f"{'counts' if skipped == 1 else 'count'} for neither."
        )
    own, decided = judge["prefers_longer"]
    theirs, of_people = judge["people_prefer_longer"]
    yield (
        f"{name} prefers the longer answer in {own} of {decided} decided pairs, people in {theirs} "
        f"of {of_people}. "
        f"{count(judge['turned'], 'verdict')} turned with the order, {judge['turned_to_first']} to "
        "the answer shown "
        f"first, and {judge['no_verdict']} stayed here or could not be read; all these count as "
        "the same."
    )


def _decided(entry: JudgedEntry, level: float) -> str:
    """The sign test of judged pairs in words, with the number of pairs that would decide."""
    chance = f"(sign test, {p_equation(entry['p'])})"
    if entry["p"] <= level:
        return f"more than chance {chance}"
    more = entry["more"]
    needed = (
        f"about {count(more, 'more pair')} like these would decide"
        if more
        else "more such pairs would not decide"
    )
    return f"which may be chance {chance}; {needed}"


def _choice(view: ReportView) -> Iterator[str]:
    choice = view.report["choice"]
    if choice is None:
        return
    rule = f"within {_points(choice['smallest_within'])} {choice['metric']} of {choice['of']}"
    if choice["min_tokens_per_s"] is not None:
        rule += f" and at {choice['min_tokens_per_s']:g} tokens/s or more"
    where = f"{choice['n']} {choice['split']} rows"
    if choice["model"] is None:
        yield f"No GGUF file is {rule} on {where}: none is chosen, and none will be published."
        return
    chosen = next(
        candidate for candidate in choice["candidates"] if candidate["model"] == choice["model"]
    )
    yield (
        f"Chosen: {choice['model']}, the smallest file {rule} on {where} "
        f"(loss {_points(chosen['loss'])}, at most {_points(chosen['loss_at_most'])})."
    )


def _sum(view: ReportView) -> Iterator[str]:
    """The members of the sum that is released, with the gain that it
    expects of each, and those that are left out.
    """
    entry = view.report.get("sum")
    if entry is None or len(entry["gains"]) < 2:
        return
    weights, gains = entry["weights"], entry["gains"]
    # 0.17 is under a floor of 0.2
    digits = {name: 1 if gains[name] >= entry["floor"] else 2 for name in gains}
    shares = {
        name: f"{title} ({_points(gains[name], digits[name])})"
        for name, title in MEMBERS.items()
        if name in gains
    }
    kept = " and ".join(shares[name] for name in shares if name in weights)
    left = " and ".join(shares[name] for name in shares if name not in weights)
    rows, floor = count(entry["rows"], "validation row"), _points(entry["floor"])
    yield (
        f"The release combines {kept}{f', without {left}' if left else ''}; in brackets, what the "
        "sum expects to lose "
        f"without each, on {rows}. The same rows chose the weights, so no loss is below 0, and "
        "most are too high. "
        f"A file or encoder below {floor} is left out."
    )


def _decides(view: ReportView) -> Iterator[str]:
    """A remark on what a language model by itself gains on models that learn in minutes."""
    entry = view.report.get("sum")
    alone = file_of(view.report, entry["model"]) if entry is not None else ""
    on_encoder = [each.name for each in RELEASED if each.on_encoder]
    cheap = next((name for name in on_encoder if name in view.entries), "")
    difference = view.difference(cheap, alone) if cheap and alone in view.entries else None
    if difference is None or not difference.real:
        return
    gains, than = ("gains", "more") if difference.value > 0 else ("by itself gains nothing", "less")
    yield (
        f"A language model {gains} here: {alone} alone scores {_points(abs(difference.value))} "
        f"{than} than the cheap "
        "models, which learn in minutes."
    )


def _focus(view: ReportView) -> Iterator[str]:
    """The file compared with the models that it was made from, and
    the focus with each general model.
    """
    for name in view.models:
        kind = view.kind(name)
        # what quantization costs, without linear models
        model = view.file if kind.is_source else view.focus
        if name == model or not (kind.is_source or kind.is_reference or kind.is_remote):
            continue
        difference = view.difference(name, model)
        if difference is None:
            continue
        if difference.real:
            direction = "above" if difference.value > 0 else "below"
            yield (
                f"{model} scores {_points(abs(difference.value))} {direction} {name} "
                f"({difference.span}): more than chance."
            )
        else:
            yield (
                f"{model} and {name} cannot be told apart: {_points(difference.value)} "
                f"({difference.span}); {_detectable(view, difference)}."
            )


def _slices(view: ReportView) -> Iterator[str]:
    level = 1 - view.confidence
    for name in view.entries:
        if name == view.focus or view.kind(name).untuned:
            continue
        pair = view.pair(name, view.focus)
        if pair is None:
            continue
        worse = [
            entry for entry in pair["slices"] if entry["p_holm"] < level and entry["difference"] < 0
        ]
        for entry in worse[:3]:
            rows = f"{entry['by']} {entry['name']} (n={entry['n']})"
            loss = _points(abs(entry["difference"]))
            looks = f"{pair['slices_tested']} slices looked at"
            yield (
                f"On the rows with {rows} {view.focus} scores {loss} below {name}: more than "
                f"chance, of {looks} (Holm, {p_equation(entry['p_holm'])})."
            )


def _rows(view: ReportView) -> Iterator[str]:
    for name, model in view.report["models"].items():
        if model["not_sent"]:
            yield (
                f"{count(model['not_sent'], 'row')} marked sensitive, and not sent to {name}: "
                "it is compared on the others."
            )
        if "sample" in model:
            yield (
                f"{name} answered {model['sample']} of the {view.report['n']:,} rows, drawn by a "
                "hash, and is compared "
                "on those: a gate that names it has it answer all."
            )
        if model["failed"]:
            yield f"{name} gave no answer to {count(model['failed'], 'row')}: counted as wrong."
    if effect := (own := view.entries[view.focus]).get("design_effect"):
        rows = own["n"]
        yield (
            f"The {rows:,} rows are of {_groups(own)}, and rows of one group are alike: they tell "
            "as much as "
            f"{max(round(rows / effect), 1):,} independent rows (design effect {effect:.1f}), and "
            "the intervals are "
            "wider by that."
        )
    if view.report["n"] < FEW_ROWS:
        yield f"Only {view.report['n']} rows were measured: the intervals are wide."


def _groups(entry: ParticipantEntry) -> str:
    """The groups of a participant's rows in words, with their
    effective number where they differ in size.
    """
    groups, effective = entry.get("groups", 0), entry.get("effective_groups", 0.0)
    unlike = (
        f" (of unlike sizes, so no more than {effective:.0f})" if round(effective) < groups else ""
    )
    return f"{count(groups, 'group')}{unlike}" if groups else "groups"


def _detectable(view: ReportView, difference: Difference) -> str:
    own = view.entries[view.focus]
    of = f" of {_groups(own)}" if "groups" in own else ""
    return (
        f"{view.report['n']} rows{of} show a true difference from "
        f"{_points(difference.detectable or 0.0)} on "
        f"({percent(view.report['power'], 0)} of the time)"
    )


def _points(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f} points"
