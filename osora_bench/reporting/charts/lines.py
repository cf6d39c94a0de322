"""Lines: a value against a setting, a line a series, labelled where it ends."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from osora_bench.reporting.charts import style
from osora_bench.reporting.charts.style import Spec

BESIDE = 0.07
"""Octaves between the points of two series at one value, so that no interval hides another."""
MOST_BESIDE = 0.5
"""Octaves that all of them may take together."""
BANDS = 3
"""Series up to which bands can be told apart."""
PADDING = {"right": 8, "left": 5, "top": 5, "bottom": 5}


SAMPLE = (6, 28)
"""Pixels right of the chart from where to where the sample of a label's line goes."""


@dataclass(frozen=True)
class Point:
    """One value of a series, its interval if there is one, what is told of it, and the method that
    the series is of (by default one of the series' name)."""

    series: str
    x: float
    y: float
    low: float | None = None
    high: float | None = None
    told: dict[str, Any] = field(default_factory=dict)
    method: str = ""


@dataclass(frozen=True)
class Axes:
    """What stands at the axes; `ticks`: at these values only, each beside its neighbours' points;
    `log_x` and `log_y`: to the base 2 and 10, the latter where all values are above 0. `top`: no
    value above it counts for the axis; lines leave it there, and what lies beyond is named."""

    x: str
    y: str
    log_x: bool = False
    log_y: bool = False
    ticks: Sequence[float] = ()
    top: float = math.inf


def lines(
    title: str, axes: Axes, points: Sequence[Point], *, subtitle: str = "", marks: bool = True
) -> Spec:
    """A line a series through its points, with an interval at each that has one. Points that are no
    finite number are left out, and their series named.

    Args:
        marks: show the points; without, they are only found by a pointer.
    """
    drawn = [point for point in points if math.isfinite(point.y)]
    axes = replace(axes, log_y=axes.log_y and all(point.y > 0 for point in drawn))
    series = {point.series: point.method or point.series for point in drawn}
    names = list(series)
    values = [_value(point, _beside(names.index(point.series), len(names), axes))
              for point in drawn]  # fmt: skip
    x, y = _x(axes, values), _y(axes, values)
    colour, dash, shape = (style.by_series(channel) for channel in style.CHANNELS)
    clipped = {"clip": True} if _beyond(axes, drawn) else {}
    line: Spec = {
        "mark": {"type": "line", "strokeWidth": 1.6, **clipped},
        "encoding": {"x": x, "y": y, "color": colour, "strokeDash": dash},
    }
    found: Spec = {"color": colour, "shape": shape, "tooltip": _tooltip(values)}
    point: Spec = {
        "mark": {"type": "point", "filled": True, "size": 55, "opacity": int(marks), **clipped},
        "encoding": {"x": x, "y": y, **found},
    }
    layers = [*_intervals(x, colour, len(names), values), line, point, *_ends(values, x, y)]
    told = "; ".join(filter(None, [subtitle, _beyond(axes, drawn), _without(points)]))
    spec = style.chart(
        title, layers, subtitle=told, said=_said(axes, drawn), empty=not points
    )  # fmt: skip
    return style.dressed({**spec, "data": {"values": values}, "padding": PADDING}, series)


def _beyond(axes: Axes, points: Sequence[Point]) -> str:
    """Which points lie above the axis."""
    told = [f"{p.series}: {p.y:.4g} at {p.x:.4g}" for p in points if p.y > axes.top]
    return f"above the axis: {', '.join(told)}" if told else ""


def _without(points: Sequence[Point]) -> str:
    """Which series lack a point that cannot be drawn."""
    lacking = dict.fromkeys(point.series for point in points if not math.isfinite(point.y))
    return f"without values that are no finite number: {', '.join(lacking)}" if lacking else ""


def _said(axes: Axes, points: Sequence[Point]) -> list[str]:
    """Of each series where it begins and ends, and its highest and lowest value."""
    by_series: dict[str, list[Point]] = {}
    for point in points:
        by_series.setdefault(point.series, []).append(point)
    lines_ = [f"{axes.y} by {axes.x}"]
    for name, own in by_series.items():
        own.sort(key=lambda point: point.x)
        low, high = (least(own, key=lambda point: point.y) for least in (min, max))
        places = {"first": own[0], "last": own[-1], "lowest": low, "highest": high}
        told = [f"{what} {one.y:.4g} at {one.x:.4g}" for what, one in places.items()]
        lines_.append(f"{name}: {', '.join(told) if len(own) > 1 else told[0][len('first ') :]}")
    return lines_


def _beside(index: int, count: int, axes: Axes) -> float:
    """The factor that moves a series aside, on an axis that names its values."""
    if not (axes.ticks and axes.log_x):
        return 1.0
    step = min(BESIDE, MOST_BESIDE / max(count, 1))
    return float(2 ** (step * (index - (count - 1) / 2)))


def _value(point: Point, factor: float) -> dict[str, Any]:
    value: dict[str, Any] = {"series": point.series, "x": style.short(point.x * factor),
                             "y": style.short(point.y), **point.told}  # fmt: skip
    if point.low is not None and point.high is not None:
        value |= {"low": style.short(point.low), "high": style.short(point.high)}
    return value


def _x(axes: Axes, values: Sequence[dict[str, Any]]) -> Spec:
    scale: Spec = {"type": "log", "base": 2} if axes.log_x else {"zero": False}
    axis: Spec = {"grid": False, "title": axes.x}
    if axes.ticks:
        axis |= {"values": list(axes.ticks), "format": "d" if _whole(axes.ticks) else "~e"}
    if values:
        numbers = [value["x"] for value in values]
        domain = [min(numbers), max(numbers)]
        if axes.log_x:
            step = 2 ** (MOST_BESIDE / 2)
            domain = [style.short(domain[0] / step), style.short(domain[1] * step)]
        scale |= {"domain": domain, "nice": False}
    return {"field": "x", "type": "quantitative", "scale": scale, "axis": axis}


def _whole(values: Sequence[float]) -> bool:
    return all(float(value).is_integer() for value in values)


def _y(axes: Axes, values: Sequence[dict[str, Any]]) -> Spec:
    scale: Spec = {"type": "log"} if axes.log_y else {"zero": False}
    if values:
        scale |= {"domain": list(_reach(axes, values)), "nice": False}
    axis = {"title": axes.y, "tickCount": 6}
    if axes.log_y:
        axis["format"] = "~s" if values and min(v["y"] for v in values) >= 1 else "~g"
    return {"field": "y", "type": "quantitative", "scale": scale, "axis": axis}


def _reach(axes: Axes, values: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """From where to where the axis goes: all that is drawn, and a little."""
    low = min(value.get("low", value["y"]) for value in values)
    highest = [value.get("high", value["y"]) for value in values if value["y"] <= axes.top]
    high = max(highest, default=low)
    if axes.log_y:
        room = (high / low) ** 0.06 if high > low else 2
        return style.short(low / room), style.short(high * room)
    room = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return style.short(low - room), style.short(high + room)


def _intervals(x: Spec, colour: Spec, series: int, values: Sequence[dict[str, Any]]) -> list[Spec]:
    """A rule at each point that has an interval, and of few series a band through them."""
    if not any("low" in value for value in values):
        return []
    low = {"field": "low", "type": "quantitative", "title": ""}
    encoding = {"x": x, "y": low, "y2": {"field": "high"}, "color": colour}
    known = [{"filter": "isValid(datum.low)"}]
    rule = {"transform": known, "mark": {"type": "rule", "strokeWidth": 1.2}, "encoding": encoding}
    band = {"transform": known, "mark": {"type": "area", "opacity": 0.08}, "encoding": encoding}
    return [band, rule] if series <= BANDS else [rule]


def _tooltip(values: Sequence[dict[str, Any]]) -> list[Spec]:
    told = dict.fromkeys(key for value in values for key in value)
    hidden = ("series", "x", "y", "low", "high", "runs")
    return [{"field": key, "type": "nominal"} for key in told if key not in hidden]


def _ends(values: Sequence[dict[str, Any]], x: Spec, y: Spec) -> list[Spec]:
    """The name of each series right of the chart, near the height at which it ends, with a sample
    of its line and its point; all are kept apart, and on no line."""
    if not values:
        return []
    log, (low, high) = y["scale"].get("type") == "log", y["scale"]["domain"]
    last: dict[str, dict[str, Any]] = {}
    for value in values:
        if value["series"] not in last or value["x"] >= last[value["series"]]["x"]:
            last[value["series"]] = value
    bottom, top = (math.log10(end) if log else end for end in (low, high))
    places = [min(top, math.log10(v["y"]) if log else v["y"]) for v in last.values()]
    moved = style.apart(places, (top - bottom) * style.LINE / style.HEIGHT)
    moved = [place + max(0.0, bottom - min(moved)) for place in moved]  # none below the axis
    right = x["scale"]["domain"][1]
    labels = [
        {"series": name, "x": right, "y": style.short(10**place if log else place)}
        for name, place in zip(last, moved, strict=True)
    ]
    return _labels(labels, x, y)


def _labels(labels: list[dict[str, Any]], x: Spec, y: Spec) -> list[Spec]:
    colour, dash, shape = (style.by_series(channel) for channel in style.CHANNELS)
    begin, end = SAMPLE
    place: Spec = {"x": x, "y": y, "color": colour}
    rule = {"type": "rule", "strokeWidth": 1.6, "xOffset": begin, "x2Offset": end, "clip": False}
    mark = {"type": "point", "filled": True, "size": 40, "opacity": 1,
            "xOffset": (begin + end) / 2}  # fmt: skip
    text = {"type": "text", "align": "left", "dx": end + 4, "baseline": "middle", "clip": False}
    kinds: list[tuple[Spec, Spec]] = [
        (rule, {"x2": {"field": "x"}, "strokeDash": dash}),
        (mark, {"shape": shape}),
        (text, {"text": {"field": "series"}}),
    ]
    return [
        {"data": {"values": labels}, "mark": drawn, "encoding": {**place, **more}}
        for drawn, more in kinds
    ]
