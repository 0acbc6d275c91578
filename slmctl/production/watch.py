"""Decisions of a server, collected rows and reviews -> the
accuracy of a served model, week by week.
"""

from __future__ import annotations

import datetime
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from slmctl import console
from slmctl.artifacts import json_lines
from slmctl.artifacts.bounded_json import JsonObject
from slmctl.config import MachinePrices
from slmctl.console import percent
from slmctl.errors import DataError, UsageError
from slmctl.metrics.statistics import error_bound, exact_interval, thousand
from slmctl.metrics.verified_accuracy import WeightedShare, weighted_share
from slmctl.production import records
from slmctl.production.measured import MeasuredFigures
from slmctl.production.records import CollectedRow, DecisionLine
from slmctl.sources.reviewed import Review, decided
from slmctl.task.kinds.kind import TaskKind

# `reason` of an answer that a policy kept; the others in older lines
KEPT = ("kept", "confident", "first-look")
USAGE = "slmctl watch decisions.jsonl collected/ reviewed.jsonl"
COLUMNS = ("week of", "requests", "estimated", "verified", "interval", "rows", "kept", "escalated")


@dataclass(frozen=True)
class VerifiedRow:
    """A reviewed row that was drawn at random.

    Attributes:
        right: True if the local answer is right, by the reviewer.
        probability: Probability with which it was drawn from all traffic, above 0 and up to 1.
        kept: True if the policy kept the answer.
        label: The reviewer's answer.
    """

    right: bool
    probability: float
    kept: bool
    label: str = ""


@dataclass
class Week:
    """Sums over the requests of one week, and the reviewed rows among them.

    Attributes:
        begin: The week's Monday, in UTC.
        rated: Number of requests with a p_correct.
        p_correct: Sum of their p_correct.
        kept, escalated: Numbers of requests.
        paid, avoided: Price of the generalist's answers, and its price for the requests that were
            not escalated.
        verified: The reviewed rows that were drawn at random.
        drafts: Number of collected rows of the uniform share whose answers were checked.
        faults: Number of these that fail a check, by check.
    """

    begin: datetime.date
    requests: int = 0
    rated: int = 0
    p_correct: float = 0.0
    kept: int = 0
    escalated: int = 0
    paid: float = 0.0
    avoided: float = 0.0
    verified: list[VerifiedRow] = field(default_factory=list)
    drafts: int = 0
    faults: Counter[str] = field(default_factory=Counter)

    def count(self, decision: DecisionLine, prices: MachinePrices | None) -> None:
        escalated = decision.route == "generalist"
        self.requests += 1
        self.kept += decision.reason in KEPT
        self.escalated += escalated
        if decision.p_correct is not None:
            self.rated += 1
            self.p_correct += decision.p_correct
        if prices is not None:
            price = prices.of_tokens(decision.prompt_tokens, decision.completion_tokens)
            self.paid += price if escalated else 0.0
            self.avoided += 0.0 if escalated else price

    @property
    def estimated(self) -> float | None:
        """Mean p_correct, the accuracy that the policy expects."""
        return self.p_correct / self.rated if self.rated else None

    @property
    def kept_share(self) -> float | None:
        """Share of kept answers; None without a policy."""
        return self.kept / self.requests if self.rated else None

    @property
    def escalated_share(self) -> float | None:
        return self.escalated / self.requests if self.requests else None

    @property
    def accuracy(self) -> WeightedShare:
        return weighted_share(
            [row.right for row in self.verified], [row.probability for row in self.verified]
        )


@dataclass(frozen=True)
class Watched:
    """The result of `slmctl watch`.

    Attributes:
        weeks: The weeks, the oldest first.
        sampled: True if the requests are the uniform share of the collected rows, for lack of a
            decision log.
        prices: Prices for the costs; None if these are unknown.
    """

    weeks: Sequence[Week]
    measured: MeasuredFigures
    sampled: bool
    prices: MachinePrices | None = None

    def to_json(self) -> JsonObject:
        return {
            "weeks": [_week_json(week, self.prices) for week in self.weeks],
            "measured": asdict(self.measured),
            "sampled": self.sampled,
            "cost": self.cost,
        }

    @property
    def kept_rows(self) -> list[VerifiedRow]:
        """The reviewed rows of all weeks with an answer that the policy kept."""
        return [row for week in self.weeks for row in week.verified if row.kept]

    @property
    def cost(self) -> tuple[float, float, float] | None:
        """Of a thousand questions, with its 95 % interval; None
        without costs, decisions or reviewed rows.
        """
        costs, rows = self.measured.costs, [row for week in self.weeks for row in week.verified]
        requests, kept = (
            sum(getattr(week, name) for week in self.weeks) for name in ("requests", "kept")
        )
        if costs is None or not (rows and requests):
            return None
        parts = [(costs.escalated, 1 - kept / requests, *exact_interval(requests - kept, requests))]
        labels = [row.label if row.label in costs.label else "" for row in rows]
        for label in {*labels}:
            wrong = [
                row.kept and not row.right and own == label
                for row, own in zip(rows, labels, strict=True)
            ]
            share = weighted_share(wrong, [row.probability for row in rows])
            parts.append((costs.label.get(label, costs.wrong), share.share, share.low, share.high))
        return thousand(parts)


def watch(
    paths: Sequence[Path],
    measured: MeasuredFigures,
    *,
    rules: TaskKind,
    since: str = "",
    prices: MachinePrices | None = None,
) -> Watched:
    """Read the files of a served model, recognised by their lines, and sum them up by week.

    Args:
        paths: Decision logs, files or folders of collected rows, reviewed files.
        measured: The figures to compare with.
        rules: Those of the task, which compare answers and check drafts.
        since: A day, `2026-11-25`; older lines are skipped.

    Raises:
        DataError: A file is none of the three kinds, or no file holds a request.
        UsageError: A file does not exist, or is a device or a pipe.
    """
    files: dict[str, list[Path]] = {"decisions": [], "collected": [], "reviews": []}
    _require(paths)
    for path in records.collected_files(paths):
        if kind := _kind(path):
            files[kind].append(path)
    reviews = decided(line for path in files["reviews"] for line in Review.read(path))
    reviewed = {review.id for review in reviews}
    collected = (row for path in files["collected"] for row in CollectedRow.read(path))
    rows = {row.id: row for row in collected if row.uniform or row.id in reviewed}
    decisions: Iterable[DecisionLine] = (
        line for path in files["decisions"] for line in DecisionLine.read(path)
    )
    sampled = not files["decisions"]
    if sampled:
        prices = None  # a collected row does not say how many tokens it had
        uniform = (row for row in rows.values() if row.uniform)
        decisions = (
            DecisionLine(row.time, row.route, row.reason, row.p_correct) for row in uniform
        )
    weeks: dict[datetime.date, Week] = {}
    for decision in decisions:
        if (begin := _monday(decision.time, since)) is not None:
            weeks.setdefault(begin, Week(begin)).count(decision, prices)
    for draft in [row for row in rows.values() if row.uniform and rules.checks]:
        if (begin := _monday(draft.time, since)) is not None:
            week = weeks.setdefault(begin, Week(begin))
            week.drafts += 1
            week.faults.update(rules.faults(draft.local, draft.turns).keys())
    if not weeks:
        raise _no_request(since)
    for review in reviews:
        row = rows.get(review.id)
        begin = _monday(review.seen if row is None else row.time, since)
        if begin is not None and review.uniform and 0 < review.probability <= 1:
            right = is_right(review, row, measured, rules)
            is_kept = row is not None and row.reason in KEPT
            verified = VerifiedRow(right, review.probability, is_kept, review.after.strip())
            weeks.setdefault(begin, Week(begin)).verified.append(verified)
    return Watched([weeks[begin] for begin in sorted(weeks)], measured, sampled, prices)


def _require(paths: Sequence[Path]) -> None:
    for path in paths:
        if not path.exists():
            raise UsageError(f"{path} does not exist", hint=USAGE)
        if not (path.is_file() or path.is_dir()):
            raise UsageError(f"{path} is neither a file nor a folder", hint=USAGE)


def _no_request(since: str) -> DataError:
    if since:
        return DataError(
            f"there is no request since {since} in these files", hint="--since with an earlier day"
        )
    return DataError(
        "there is no request to look at: the files hold no decision and no row of the uniform "
        "share",
        hint="serve.decision_log writes decisions, serve.collect collects rows",
    )


def is_right(
    review: Review, row: CollectedRow | None, measured: MeasuredFigures, rules: TaskKind
) -> bool:
    """True if the local answer is right by the reviewer's answer, compared as `calibrate` compares.

    A local answer to an out-of-scope question is never right.
    """
    answer, after = (row.local if row is not None else review.before).strip(), review.after.strip()
    if measured.out_of_scope and after == measured.out_of_scope:
        return False
    return rules.is_right(answer, after, measured.min_token_f1)


def lines(watched: Watched) -> Iterator[str]:
    """The result as text: a table of the weeks, with the measured figures as its last row."""
    measured, prices = watched.measured, watched.prices
    if measured.costs is not None and measured.cost is not None:
        now = (
            f"{_money(watched.cost)}, measured "
            if watched.cost
            else "no reviewed row says the cost; measured "
        )
        yield f"{measured.costs.currency} a thousand questions: {now}{_money(measured.cost)}"
    costs = ("paid", "avoided") if prices is not None else ()
    rows = [
        [
            *_cells(week),
            *([f"{week.paid:,.2f}", f"{week.avoided:,.2f} {prices.currency}"] if prices else []),
        ]
        for week in watched.weeks
    ]
    verified = measured.report if measured.right is None else measured.right
    rows.append(
        [
            "measured",
            "",
            _percent(measured.p_correct),
            _percent(verified),
            "",
            "",
            _percent(measured.kept),
        ]
        + [""] * (1 + len(costs))
    )
    yield from console.table_lines((*COLUMNS, *costs), rows, optional=("escalated", "requests"))
    if watched.sampled:
        yield "no log of decisions: the requests are the uniform share of the collected rows"
    allowed = (
        f", and the policy allows {percent(measured.max_error)}"
        if measured.max_error is not None
        else ""
    )
    last = [row for row in watched.weeks[-1].verified if row.kept]
    several = len(last) < len(watched.kept_rows)  # weeks with such rows
    for kept, where in ((watched.kept_rows, "all"), (last if several else [], "the last week's")):
        if kept:
            wrong = sum(not row.right for row in kept)
            yield (
                f"{wrong:,} of {len(kept):,} reviewed answers that were kept are wrong, so at most "
                f"{percent(_wrong_at_most(kept))} of {where} kept ones{allowed}"
            )
    yield from filter(None, map(_faults, watched.weeks))
    if measured.faults and any(week.drafts for week in watched.weeks):
        yield f"drafts at fault, as measured: {_by_check(measured.faults)}"
    if not watched.weeks[-1].verified:
        yield "no row of the last week that was drawn by chance is reviewed: slmctl review"


def _faults(week: Week) -> str:
    """The checked drafts of a week, and the shares of them that are at fault; '' without any."""
    if not week.drafts:
        return ""
    shares = {check: number / week.drafts for check, number in week.faults.most_common()}
    return f"drafts at fault, week of {week.begin}: {_by_check(shares)} of {week.drafts:,}"


def _by_check(shares: Mapping[str, float]) -> str:
    return (
        ", ".join(f"{check} {percent(share)}" for check, share in shares.items() if share) or "none"
    )


def _wrong_at_most(rows: Sequence[VerifiedRow]) -> float:
    """Upper bound of the share of wrong answers in the traffic that
    these rows were drawn from, with 95 %.
    """
    right = weighted_share([row.right for row in rows], [row.probability for row in rows])
    as_many = right.effective_rows
    return error_bound(min(as_many, math.ceil((1 - right.share) * as_many - 1e-9)), as_many)


def _cells(week: Week) -> list[str]:
    accuracy, verified = ["", "", ""], week.accuracy
    if verified.rows:
        interval = f"{percent(verified.low)} to {percent(verified.high)}"
        accuracy = [percent(verified.share), interval, f"{verified.rows:,}"]
    shares = _percent(week.kept_share), _percent(week.escalated_share)
    return [str(week.begin), f"{week.requests:,}", _percent(week.estimated), *accuracy, *shares]


def _week_json(week: Week, prices: MachinePrices | None) -> JsonObject:
    kept = [row.right for row in week.verified if row.kept]
    return {
        "begin": str(week.begin),
        "requests": week.requests,
        "estimated": week.estimated,
        "verified": asdict(week.accuracy) if week.verified else None,
        "kept": week.kept_share,
        "escalated": week.escalated_share,
        "kept_rows": len(kept),
        "kept_wrong": kept.count(False),
        "drafts": week.drafts,
        "faults": dict(week.faults),
        "cost": {"paid": week.paid, "avoided": week.avoided, "currency": prices.currency}
        if prices
        else None,
    }


def _money(cost: tuple[float, float, float]) -> str:
    return "{:,.2f} ({:,.2f} to {:,.2f})".format(*cost)


def _percent(share: float | None) -> str:
    return "" if share is None else percent(share)


def _monday(time: str, since: str) -> datetime.date | None:
    """The Monday of a time's week; None for a time before `since`, and
    for a text that is not a server's time.
    """
    try:
        day = datetime.date.fromisoformat(time[:10])
    except ValueError:
        return None
    if not 2000 <= day.year < 2200 or time[:10] < since:
        return None
    return day - datetime.timedelta(days=day.weekday())


def _kind(path: Path) -> Literal["decisions", "collected", "reviews", ""]:
    """The kind of a file, by its first line of a known kind; '' for a file without lines.

    Raises:
        DataError: No line has a known kind.
    """
    fields: JsonObject | None = None
    for fields in json_lines.read(path):
        if "reviewer" in fields:
            return "reviews"
        if "messages" in fields and "answer" in fields:
            return "collected"
        if "route" in fields and "reason" in fields:
            return "decisions"
    if fields is None:
        return ""
    raise DataError(f"{path} holds neither decisions nor collected rows nor reviews", hint=USAGE)
