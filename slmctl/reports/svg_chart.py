"""Charts as SVG: pure functions from figures to markup for light and dark pages.

The markup names its colours by class (`fill-c1`, `stroke-rule`); `style()` defines the classes,
once in a page with many charts, or inside the image by `standalone()`. Every text is cleaned, cut
and escaped here, so that labels from data cannot become markup.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from slmctl.console import percent, shown

# Series can be distinguished without colour vision, and texts reach a contrast of 4.5 on page and
# panel.
LIGHT = {
    "page": "#ffffff",
    "panel": "#f4f6f8",
    "ink": "#1b1f24",
    "muted": "#57606a",
    "rule": "#d0d7de",
    "c1": "#0b62c4",
    "c2": "#ad5500",
    "c3": "#0f766e",
    "c4": "#7a3fc4",
    "c5": "#646d77",
    "good": "#176f31",
    "warn": "#855600",
    "bad": "#c02626",
}
DARK = {
    "page": "#0f1419",
    "panel": "#181f27",
    "ink": "#e6e9ee",
    "muted": "#9ba6b2",
    "rule": "#35404b",
    "c1": "#6cb0ff",
    "c2": "#f0a35e",
    "c3": "#4fd1c0",
    "c4": "#c3a0ff",
    "c5": "#8f9aa6",
    "good": "#5fd075",
    "warn": "#e3b341",
    "bad": "#ff8078",
}

SLIM = 372  # pixels: what a screen of 400 has for a chart
WIDTH = 508  # pixels: two charts stand side by side in a page
FONT = 13  # pixels
ROW = 24  # pixels between the middles of two rows
LABEL = 26  # characters of a label that a chart shows; the whole label is in its tooltip


@dataclass(frozen=True)
class Bar:
    label: str
    value: float
    text: str = ""  # written next to the bar
    colour: str = "c1"


def counted(counts: Iterable[tuple[str, int]], colour: str = "c1") -> list[Bar]:
    return [Bar(name, number, f"{number:,}", colour) for name, number in counts]


@dataclass(frozen=True)
class Dot:
    """A value with its interval; with `aside` it is not counted for the range of the axis."""

    label: str
    value: float
    low: float
    high: float
    text: str = ""
    colour: str = "c1"
    aside: bool = False


@dataclass(frozen=True)
class Point:
    """A point of a line; `note` is its tooltip, `mark` a text next to it."""

    x: float
    y: float
    note: str = ""
    mark: str = ""
    anchor: str = "middle"  # of the mark


@dataclass(frozen=True)
class LineSeries:
    """Points joined by a line; points with a note or mark are drawn as
    dots. A line without a name has no legend.
    """

    name: str
    points: Sequence[Point]
    colour: str = "c1"
    dashed: bool = False


def style() -> Markup:
    """The colours as CSS: variables for light and dark, and the classes that use them."""
    light, dark = (
        ";".join(f"--{name}:{value}" for name, value in colours.items()) + f";color-scheme:{scheme}"
        for scheme, colours in (("light", LIGHT), ("dark", DARK))
    )
    rules = [
        f":root{{{light}}}",
        f"@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}",
    ]
    # the plain value first, for image viewers without CSS variables
    for name, value in LIGHT.items():
        rules.append(f".fill-{name}{{fill:{value};fill:var(--{name})}}")
        rules.append(f".stroke-{name}{{fill:none;stroke:{value};stroke:var(--{name})}}")
    rules.append(
        f"svg{{font:{FONT}px "
        f"system-ui,sans-serif}}.small{{font-size:11px}}.strong{{font-weight:600}}"
    )
    return Markup("\n".join(rules))  # noqa: S704 - constants of this module


def standalone(svg: str) -> str:
    """A chart as a separate SVG file, with its colours and a background."""
    # str, since Markup's methods would escape the inserted text
    opening, rest = str(svg).split(">", 1)
    opening = opening.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)
    ground = '<rect class="fill-page" width="100%" height="100%"/>'
    title, rest = rest.split("</desc>", 1)
    return f"{opening}>{title}</desc>\n<style>{style()}</style>\n{ground}{rest}\n"


def bars(rows: Sequence[Bar], *, title: str, most: float = 0, width: int = WIDTH) -> Markup:
    """Horizontal bars from zero, with label and text; `most` is
    the value of a bar with full length.
    """
    left = _column([_cut(row.label) for row in rows]) + 10
    right = _column([row.text for row in rows]) + 8
    most = max([most, *(row.value for row in rows)]) or 1
    parts = []
    for index, row in enumerate(rows):
        y = ROW * index + 6
        long = max(1.0, (width - left - right) * max(row.value, 0) / most) if row.value else 0.0
        bar = _bar(row.colour, left, y, long, ROW - 6)
        label = _text(left - 10, y + 9, _cut(row.label), anchor="end")
        figure = _text(left + long + 6, y + 9, row.text)
        parts.append(_group(f"{row.label}: {row.text or _number(row.value)}", label, bar, figure))
    return _frame(title, _told(rows), width, ROW * len(rows) + 8, parts)


def stack(rows: Sequence[Bar], *, title: str) -> Markup:
    """One bar that is divided into the parts of a whole, and its legend below."""
    total = sum(row.value for row in rows) or 1
    parts, x = [], 0.0
    for index, row in enumerate(rows):
        long = WIDTH * row.value / total
        y = 46 + ROW * index
        figure = row.text or _number(row.value)
        marks = [
            _bar(row.colour, x, 4, max(long - 1.5, 0.5), 26),
            _bar(row.colour, 0, y, 12, 12),
            _text(20, y + 6.5, _cut(row.label)),
            _text(250, y + 6.5, figure, anchor="end"),
            _text(320, y + 6.5, percent(row.value / total), "muted", anchor="end"),
        ]
        parts.append(_group(f"{row.label}: {figure}", *marks))
        x += long
    return _frame(title, _told(rows), WIDTH, 46 + ROW * len(rows), parts)


def histogram(
    edges: Sequence[float], counts: Sequence[int], *, title: str, unit: str, strip: Sequence[float]
) -> Markup:
    """A histogram.

    Args:
        edges: Edges of the bins, rising; one more than `counts`.
        strip: The 5 %, 25 %, 50 %, 75 % and 95 % quantiles, drawn as a box plot below.
    """
    scale = _Scale(edges[0], max(edges[-1], edges[0] + 1), 46, WIDTH - 12)
    most = max([*counts, 1])
    floor, top = 168, 26
    parts = _grid(_Scale(0, most, floor, top), scale.start, scale.end, whole=True)
    for index, many in enumerate(counts):
        x0, x1 = scale(edges[index]), scale(edges[index + 1])
        tall = (floor - top) * many / most
        if many:
            parts.append(
                _group(
                    f"{_number(edges[index])} to {_number(edges[index + 1])} {unit}: {many:,}",
                    _tag(
                        "rect",
                        class_="fill-c1",
                        x=x0 + 0.5,
                        y=floor - max(tall, 1),
                        width=max(x1 - x0 - 1, 0.8),
                        height=max(tall, 1),
                    ),
                )
            )
    below = floor + 8
    parts.append(_box_plot(scale, below, strip))
    below += 20
    parts += _x_axis(scale, below, whole=True)
    parts.append(_text((scale.start + scale.end) / 2, below + 34, unit, "muted", anchor="middle"))
    description = f"{sum(counts):,} values from {_number(edges[0])} to {_number(edges[-1])} {unit}"
    return _frame(title, description, WIDTH, below + 44, parts)


def _box_plot(scale: _Scale, top: float, strip: Sequence[float]) -> Markup:
    """The quantiles of a strip: whiskers from 5 % to 95 %, a box from 25 % to 75 %, the median."""
    places = [scale(value) for value in strip]
    first, third = places[1], places[3]
    names = ("5 %", "25 %", "median", "75 %", "95 %")
    note = ", ".join(f"{name} {_number(value)}" for name, value in zip(names, strip, strict=True))
    whisker = {"x1": places[0], "x2": places[4], "y1": top + 8, "y2": top + 8}
    median = {"x1": places[2], "x2": places[2], "y1": top + 2, "y2": top + 14}
    return _group(
        note,
        _tag("line", class_="stroke-c2", **whisker, stroke_width=2),
        _bar("c2", first, top + 2, max(third - first, 1.5), 12),
        _tag("line", class_="stroke-page", **median, stroke_width=2),
    )


def dots(
    rows: Sequence[Dot],
    *,
    title: str,
    reference: tuple[float, str] | None = None,
    points: bool = False,
) -> tuple[Markup, Markup]:
    """Shares with their intervals, one a row, on an axis that covers the intervals.

    Args:
        reference: (value to compare with, its name), drawn as a dashed line.
        points: True for differences of shares, shown in percentage points with a sign.

    Returns:
        (chart for the whole width of a page, chart for a small screen with label and text above
        each interval).
    """
    wide, slim = (
        _dots(rows, title, reference, points=points, is_slim=is_slim) for is_slim in (False, True)
    )
    return wide, slim


def _dots(
    rows: Sequence[Dot],
    title: str,
    reference: tuple[float, str] | None,
    *,
    points: bool,
    is_slim: bool,
) -> Markup:
    width, high = (SLIM, 64) if is_slim else (2 * WIDTH, 28)
    left = 10 if is_slim else _column([_cut(row.label) for row in rows]) + 12
    right = 10 if is_slim else _column([row.text for row in rows]) + 14
    scale = _Scale(*_span(rows, reference, least=-1.0 if points else 0.0), left, width - right)
    top = 24 if reference else 8
    floor = top + high * len(rows)
    parts: list[Markup] = []
    for value in _ticks(scale.low, scale.high, 6):
        x = scale(value)
        parts.append(_tag("line", class_="stroke-rule", x1=x, x2=x, y1=top, y2=floor))
        name = (f"{100 * value:+g}" if value else "0") if points else f"{100 * value:g} %"
        parts.append(_text(x, floor + 14, name, "muted small", anchor="middle"))
    if reference:
        x = scale(reference[0])
        parts.append(
            _tag(
                "line", class_="stroke-c2", x1=x, x2=x, y1=top - 4, y2=floor, stroke_dasharray="4 3"
            )
        )
        anchor = "end" if x > (left + width - right) / 2 else "start"
        parts.append(_text(x, 10, reference[1], "c2 small", anchor=anchor))
    for index, row in enumerate(rows):
        y = top + high * (index + 1) - 14
        label = _text(left - 12, y, _cut(row.label), anchor="end")
        text = _text(width - right + 14, y, row.text)
        if is_slim:
            label, text = (
                _text(0, y - 34, _cut(row.label), "ink strong"),
                _text(0, y - 17, row.text),
            )
        parts.append(_group(f"{row.label}: {row.text}", label, *_interval(row, scale, y), text))
    description = "; ".join(f"{row.label} {row.text}" for row in rows[:20])
    return _frame(title, description, width, floor + 24, parts)


def _interval(row: Dot, scale: _Scale, y: float) -> list[Markup]:
    """A dot on its interval; an arrow if the interval is outside of the axis."""
    if row.high < scale.low or row.low > scale.high:
        end, arrow = (scale.start, "◂") if row.high < scale.low else (scale.end, "▸")
        return [
            _text(end, y, arrow, f"{row.colour} strong", anchor="start" if arrow == "◂" else "end")
        ]
    x0, x1 = scale(max(row.low, scale.low)), scale(min(row.high, scale.high))
    colour = f"stroke-{row.colour}"
    return [
        _tag("line", class_=colour, x1=x0, x2=x1, y1=y, y2=y, stroke_width=3, opacity="0.55"),
        *(
            _tag("line", class_=colour, x1=x, x2=x, y1=y - 5, y2=y + 5, stroke_width=2)
            for x in (x0, x1)
        ),
        _tag(
            "circle",
            class_=f"fill-{row.colour}",
            cx=min(max(scale(row.value), x0), x1),
            cy=y,
            r=5.5,
        ),
    ]


def _span(
    rows: Sequence[Dot], reference: tuple[float, str] | None, *, least: float
) -> tuple[float, float]:
    """(low, high) of an axis that covers all intervals and the reference, with a margin."""
    counted = [row for row in rows if not row.aside] or rows
    bounds = [bound for row in counted for bound in (row.low, row.high)] + (
        [reference[0]] if reference else []
    )
    low, high = min(bounds, default=0.0), max(bounds, default=1.0)
    air = max(0.02, 0.06 * (high - low))
    return max(least, low - air), min(1.0, high + air)


def heat(
    rows: Sequence[str], columns: Sequence[str], cells: Sequence[Sequence[int]], *, title: str
) -> Markup:
    """A confusion matrix: larger counts have a stronger colour,
    cells off the diagonal another one.
    """
    left = _column([_cut(name) for name in rows]) + 10
    top = int(0.75 * _column([_cut(name) for name in columns])) + 16
    side = 26
    most = [
        max([*(n for r, line in enumerate(cells) for c, n in enumerate(line) if (r == c) == on), 1])
        for on in (False, True)
    ]
    parts: list[Markup] = []
    for c, name in enumerate(columns):
        x, y = left + side * c + side / 2 + 4, top - 6
        parts.append(_text(x, y, _cut(name), "ink small", transform=f"rotate(-45 {x:.1f} {y:.1f})"))
    for r, name in enumerate(rows):
        parts.append(
            _text(left - 10, top + side * r + side / 2, _cut(name), "ink small", anchor="end")
        )
        for c, many in enumerate(cells[r]):
            x, y = left + side * c, top + side * r
            on = r == c
            square = {"x": x + 1, "y": y + 1, "width": side - 2, "height": side - 2, "rx": 2}
            if not many:
                parts.append(_tag("rect", class_="fill-panel", **square))
                continue
            # opacity up to 0.5, so that the number stays readable
            full = 0.1 + 0.4 * many / most[on]
            colour = {"class_": "fill-c1" if on else "fill-c2", "fill_opacity": f"{full:.2f}"}
            cell = [
                _tag("rect", class_="fill-panel", **square),
                _tag("rect", **colour, **square),
                _text(x + side / 2, y + side / 2, _short(many), "ink small", anchor="middle"),
            ]
            parts.append(_group(f"{name} answered as {columns[c]}: {many:,}", *cell))
    width = (
        left + side * len(columns) + max(40, int(0.75 * _column([_cut(columns[-1])])) - side + 12)
    )
    description = f"{len(rows)} rows, {len(columns)} columns, {sum(map(sum, cells)):,} in total"
    return _frame(title, description, width, top + side * len(rows) + 6, parts)


def lines(
    series: Sequence[LineSeries],
    *,
    title: str,
    x_label: str,
    y_label: str = "",
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
    log: bool = False,
    percent: bool = False,
    width: int = WIDTH,
    height: int = 300,
) -> Markup:
    """Lines over common axes.

    Args:
        log: The vertical axis is logarithmic; values below 1e-6 are drawn as 1e-6.
        percent: Both axes hold shares.
    """
    points = [point for line in series for point in line.points]
    xs = x_range or (0.0, max((point.x for point in points), default=1.0) or 1.0)
    x = _Scale(*xs, 56, width - 20)
    y = _Scale(
        *(y_range or _around([point.y for point in points], log=log)), height - 46, 34, log=log
    )
    parts = _grid(y, x.start, x.end, percent=percent) + _x_axis(
        x, y.start, percent=percent, whole=not percent
    )
    parts.append(_text((x.start + x.end) / 2, height - 8, x_label, "muted", anchor="middle"))
    across = 0
    for line in series:
        if not line.name:  # named by a mark instead
            continue
        parts.append(_text(56 + across, 16, _cut(line.name), f"{line.colour} strong"))
        across += _column([_cut(line.name)]) + 22
    if y_label:
        parts.append(_text(width - 20, 16, y_label, "muted small", anchor="end"))
    for line in series:
        path = " ".join(f"{x(point.x):.1f},{y(point.y):.1f}" for point in line.points)
        dash = {"stroke_dasharray": "5 4"} if line.dashed else {}
        parts.append(
            _tag("polyline", class_=f"stroke-{line.colour}", points=path, stroke_width=2, **dash)
        )
        parts += [
            _spot(point, line.colour, x, y) for point in line.points if point.note or point.mark
        ]
    description = "; ".join(f"{line.name}: {len(line.points)} points" for line in series)
    return _frame(title, description, width, height, parts)


def _spot(point: Point, colour: str, x: _Scale, y: _Scale) -> Markup:
    circle = _tag(
        "circle", class_=f"fill-{colour}", cx=x(point.x), cy=y(point.y), r=5 if point.mark else 3.5
    )
    if not point.mark:
        return _group(point.note, circle)
    anchor = "end" if x(point.x) > x.start + 0.85 * (x.end - x.start) else point.anchor
    return _group(
        point.note,
        circle,
        _text(x(point.x), y(point.y) - 12, point.mark, f"{colour} strong", anchor=anchor),
    )


# Axes


@dataclass(frozen=True)
class _Scale:
    """Values from `low` to `high` as pixels from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        if self.log:
            share = math.log10(max(value, 1e-6) / self.low) / math.log10(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + (self.end - self.start) * share


def _around(values: Sequence[float], *, log: bool) -> tuple[float, float]:
    """(low, high) of an axis that covers all values, with a margin."""
    if log:
        low, high = math.log10(max(min(values), 1e-6)), math.log10(max(*values, 1e-6))
        air = 0.05 * (high - low) + 0.01
        return float(10 ** (low - air)), float(10 ** (high + air))
    low, high = min(values), max(values)
    air = 0.05 * (high - low) or 0.5
    return low - air, high + air


def _ticks(low: float, high: float, about: int, *, whole: bool = False) -> list[float]:
    """Round values between `low` and `high`, approximately `about` of them."""
    rough = (high - low) / about
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(m * size for m in (1, 2, 5, 10) if m * size >= rough * 0.999)
    if whole:
        step = max(step, 1.0)
    return [
        round(step * k, 12)
        for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    ]


def _log_ticks(low: float, high: float) -> list[float]:
    steps = (1, 2, 5) if high / low < 100 else (1,)
    ticks = [
        m * 10.0**e
        for e in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for m in steps
    ]
    return [value for value in ticks if low <= value <= high]


def _grid(
    y: _Scale, start: float, end: float, *, percent: bool = False, whole: bool = False
) -> list[Markup]:
    """Horizontal grid lines at round values, with labels at the left."""
    parts = []
    for value in _log_ticks(y.low, y.high) if y.log else _ticks(y.low, y.high, 4, whole=whole):
        parts.append(_tag("line", class_="stroke-rule", x1=start, x2=end, y1=y(value), y2=y(value)))
        name = f"{100 * value:g} %" if percent else _short(value)
        parts.append(_text(start - 8, y(value), name, "muted small", anchor="end"))
    return parts


def _x_axis(x: _Scale, floor: float, *, percent: bool = False, whole: bool = False) -> list[Markup]:
    parts = [_tag("line", class_="stroke-muted", x1=x.start, x2=x.end, y1=floor, y2=floor)]
    for value in _ticks(x.low, x.high, 5, whole=whole):
        name = f"{100 * value:g} %" if percent else _short(value)
        parts.append(_text(x(value), floor + 14, name, "muted small", anchor="middle"))
    return parts


# Markup


def _frame(title: str, desc: str, width: float, height: float, parts: Sequence[Markup]) -> Markup:
    description = Markup("<title>{}</title><desc>{}</desc>").format(shown(title), shown(desc, 400))
    body = Markup("\n").join([description, *parts])
    return _tag(
        "svg",
        body,
        class_="chart",
        viewBox=f"0 0 {width:g} {height:g}",
        width=f"{width:g}",
        height=f"{height:g}",
        role="img",
        aria_label=shown(title),
    )


def _told(rows: Sequence[Bar]) -> str:
    return "; ".join(f"{_cut(row.label)} {row.text or _number(row.value)}" for row in rows[:20])


def _group(note: str, *parts: Markup) -> Markup:
    """Marks that share one tooltip."""
    return _tag("g", Markup("<title>{}</title>").format(shown(note, 300)) + Markup("").join(parts))


def _text(
    x: float,
    y: float,
    content: str,
    kind: str = "ink",
    *,
    anchor: str = "start",
    transform: str = "",
) -> Markup:
    """One line of text; `kind` is a colour, optionally with `small` or `strong`."""
    turned = {"transform": transform} if transform else {}
    line = escape(shown(content))
    return _tag(
        "text",
        line,
        class_=f"fill-{kind}",
        x=x,
        y=y,
        text_anchor=anchor,
        dominant_baseline="central",
        **turned,
    )


def _bar(colour: str, x: float, y: float, width: float, height: float) -> Markup:
    return _tag("rect", class_=f"fill-{colour}", x=x, y=y, width=width, height=height, rx=2)


def _tag(name: str, content: Markup | None = None, /, **attributes: float | str) -> Markup:
    """An element; `class_` and `text_anchor` name `class` and `text-anchor`."""
    pairs = Markup("").join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), _pixels(value))
        for key, value in attributes.items()
    )
    if content is None:
        return Markup("<{}{}/>").format(Markup(name), pairs)  # noqa: S704 - names are written in this module
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(name), pairs, content)  # noqa: S704


def _pixels(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.1f}".removesuffix(".0")


def _cut(label: str) -> str:
    return shown(label, LABEL)


def _column(texts: Sequence[str]) -> int:
    """Estimated width of the longest text in pixels, without font metrics."""
    wide = (
        sum(2.0 if unicodedata.east_asian_width(c) in "WF" else 1.0 for c in text) for text in texts
    )
    return math.ceil(max(wide, default=0) * FONT * 0.63)


def _number(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:g}"


def _short(value: float) -> str:
    """A number in short form: `950`, `1.2k`, `3M`."""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= 10 * size or (abs(value) >= size and (value / size * 10).is_integer()):
            return f"{value / size:.1f}".removesuffix(".0") + unit
    return f"{value:g}"
