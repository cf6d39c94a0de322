"""Lines: a value against a setting, a line a series, labelled where it ends."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from osora_bench.reporting.charts import style
from osora_bench.reporting.charts.style import Spec

BESIDE = 0.07
"""Octaves between the points of two series at one value, so that no interval hides another."""
MOST_BESIDE = 0.5
"""Octaves that all of them may take together."""
BANDS = 3
"""Series up to which bands can be told apart."""


@dataclass(frozen=True)
class Point:
    """One value of a series, its interval if there is one, and what is told of it."""

    series: str
    x: float
    y: float
    low: float | None = None
    high: float | None = None
    told: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Axes:
    """What stands at the axes; `ticks`: at these values only, each beside its neighbours' points;
    `log_x` and `log_y`: to the base 2 and 10."""

    x: str
    y: str
    log_x: bool = False
    log_y: bool = False
    ticks: Sequence[float] = ()


def lines(
    title: str, axes: Axes, points: Sequence[Point], *, subtitle: str = "", marks: bool = True
) -> Spec:
    """A line a series through its points, with an interval at each that has one.

    Args:
        marks: show the points; without, the line alone.
    """
    names = list(dict.fromkeys(point.series for point in points))
    values = [_value(point, _beside(names.index(point.series), len(names), axes))
              for point in points]  # fmt: skip
    x, y = _x(axes, values), _y(axes, values)
    colour = style.colour_of(names)
    line: Spec = {
        "mark": {"type": "line", "strokeWidth": 1.6},
        "encoding": {"x": x, "y": y, "color": colour, "strokeDash": style.dash_of(names)},
    }
    layers = [*_intervals(x, colour, len(names), values), line]
    if marks:
        layers.append(
            {
                "mark": {"type": "point", "filled": True, "size": 55, "opacity": 1},
                "encoding": {"x": x, "y": y, "color": colour, "shape": style.shape_of(names),
                             "tooltip": _tooltip(values)},
            }
        )  # fmt: skip
    layers.append(_ends(_last(points, values), x, y, colour))
    spec = style.chart(title, layers, subtitle=subtitle, empty=not points)
    return {**spec, "data": {"values": values}, "padding": {"right": 8, "left": 5, "top": 5,
                                                            "bottom": 5}}  # fmt: skip


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
    if axes.log_x and values:
        step = 2 ** (MOST_BESIDE / 2)
        numbers = [value["x"] for value in values]
        scale |= {"domain": [min(numbers) / step, max(numbers) * step], "nice": False}
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
    high = max(value.get("high", value["y"]) for value in values)
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


def _last(
    points: Sequence[Point], values: Sequence[dict[str, Any]]
) -> dict[float, list[dict[str, Any]]]:
    """The last value of each series, by where on the axis it is; its `x` is that of the value
    furthest right of those that stand there side by side."""
    right: dict[float, float] = {}
    for point, value in zip(points, values, strict=True):
        right[point.x] = max(right.get(point.x, value["x"]), value["x"])
    last: dict[str, tuple[float, dict[str, Any]]] = {}
    for point, value in zip(points, values, strict=True):
        if point.series not in last or point.x >= last[point.series][0]:
            last[point.series] = point.x, value
    together: dict[float, list[dict[str, Any]]] = {}
    for place, value in last.values():
        together.setdefault(place, []).append({**value, "x": right[place]})
    return together


def _ends(last: dict[float, list[dict[str, Any]]], x: Spec, y: Spec, colour: Spec) -> Spec:
    """The name of each series at its last point; those that end together are kept apart."""
    log, domain = y["scale"].get("type") == "log", y["scale"].get("domain", (0, 1))
    low, high = (math.log10(end) if log else end for end in domain)
    labels = []
    for values in last.values():
        places = [math.log10(value["y"]) if log else value["y"] for value in values]
        moved = style.apart(places, (high - low) * style.LINE / style.HEIGHT)
        moved = [place + max(0.0, low - min(moved)) for place in moved]  # none below the axis
        labels += [
            {
                "series": value["series"],
                "x": value["x"],
                "y": style.short(10**place if log else place),
            }
            for value, place in zip(values, moved, strict=True)
        ]
    return {
        "data": {"values": labels},
        "mark": {"type": "text", "align": "left", "dx": 9, "baseline": "middle", "clip": False},
        "encoding": {"x": x, "y": y, "color": colour, "text": {"field": "series"}},
    }
