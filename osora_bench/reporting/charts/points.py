"""Accuracy against a cost, and the forest of differences to one method."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from osora_bench.reporting.charts import style
from osora_bench.reporting.charts.style import Spec
from osora_bench.reporting.costs import pareto
from osora_bench.reporting.statistics import Estimate

ROW = 17
"""Pixels of a line of a forest."""


@dataclass(frozen=True)
class Named:
    """A method's estimate, its cost where that is drawn, and what is told of it."""

    name: str
    estimate: Estimate
    cost: float = 0.0
    told: dict[str, Any] = field(default_factory=dict)


def against_cost(title: str, axis: str, drawn: Sequence[Named], *, less: bool) -> Spec:
    """Avg. with its 95 % interval against a cost; what no other matches at no more cost is filled
    and joined by a line.

    Args:
        less: whether less of the cost is better.
    """
    front = pareto([(one.cost, one.estimate.points) for one in drawn], less=less)
    values = [
        {**_value(one, one.estimate), "cost": _short(one.cost), "front": i in front}
        for i, one in enumerate(drawn)
    ]
    costs = [one.cost for one in drawn]
    log = bool(costs) and min(costs) > 0 and max(costs) > 20 * min(costs)
    scale: Spec = {"type": "log"} if log else {"zero": False}
    x: Spec = {"field": "cost", "type": "quantitative", "scale": scale,
               "axis": {"title": axis if less else f"{axis} (more is better)", "grid": False,
                        "tickCount": 5, "format": "~s"}}  # fmt: skip
    low, high = _reach(values)
    y = {"field": "points", "type": "quantitative",
         "scale": {"domain": [low, high], "zero": False, "nice": False},
         "axis": {"title": "accuracy, %, and 95 % interval", "tickCount": 6}}  # fmt: skip
    front_line = {
        "transform": [{"filter": "datum.front"}],
        "mark": {"type": "line", "strokeWidth": 1, "strokeDash": [3, 3]},
        "encoding": {"x": x, "y": y, "order": {"field": "cost", "type": "quantitative"}},
    }
    layers = [
        front_line,
        *_marked(x, y, "y", values, "front"),
        *_names(values, x, y, log, high - low),
    ]
    subtitle = "filled: no other has a higher accuracy at no more cost"
    return {
        **style.chart(title, layers, subtitle=subtitle, empty=not drawn),
        "data": {"values": values},
    }


def forest(title: str, baseline: str, gaps: Sequence[Named]) -> Spec:
    """How far each is from the baseline, the highest first."""
    order = sorted(gaps, key=lambda one: -one.estimate.points)
    values = [
        {**_value(one, one.estimate),
         "beyond": one.estimate.low > 0 or one.estimate.high < 0} for one in order
    ]  # fmt: skip
    x: Spec = {"field": "points", "type": "quantitative", "scale": {"nice": True},
               "axis": {"title": f"points above {baseline}, 95 % interval"}}  # fmt: skip
    y: Spec = {"field": "name", "type": "nominal", "sort": [value["name"] for value in values],
               "axis": {"title": None, "labelLimit": 220, "grid": True, "domain": False,
                        "ticks": False}}  # fmt: skip
    zero = {"data": {"values": [{}]}, "mark": {"type": "rule", "strokeDash": [4, 3]},
            "encoding": {"x": {"datum": 0}}}  # fmt: skip
    layers = [zero, *_marked(x, y, "x", values, "beyond")]
    subtitle = "filled: the interval leaves out zero"
    spec = style.chart(title, layers, subtitle=subtitle, empty=not gaps)
    return {**spec, "height": {"step": ROW} if gaps else 60, "data": {"values": values}}


def _value(one: Named, estimate: Estimate) -> dict[str, Any]:
    return {
        "name": one.name,
        "points": _short(estimate.points),
        "low": _short(estimate.low),
        "high": _short(estimate.high),
        **one.told,
    }


def _short(value: float) -> float:
    return float(f"{value:.6g}")


def _marked(
    x: Spec, y: Spec, along: str, values: Sequence[dict[str, Any]], full: str
) -> list[Spec]:
    """A point with its interval; filled where the field `full` is true."""
    encoding: Spec = {"x": x, "y": y}
    ends: Spec = {
        along: {**encoding[along], "field": "low"},
        f"{along}2": {"field": "high"},
    }
    hidden = ("name", "points", "low", "high", "cost", "runs", full)
    told = dict.fromkeys(key for value in values for key in value if key not in hidden)
    tooltip = [{"field": key, "type": "nominal"} for key in told]
    rule = {"mark": {"type": "rule", "strokeWidth": 1.2}, "encoding": {**encoding, **ends}}
    marked: list[Spec] = [
        {
            "transform": [{"filter": f"{sign}datum.{full}"}],
            "mark": {"type": "point", "style": kind, "size": 60, "opacity": 1},
            "encoding": {**encoding, "tooltip": tooltip},
        }
        for kind, sign in (("full", ""), ("hollow", "!"))
    ]
    return [rule, *marked]


def _reach(values: Sequence[dict[str, Any]]) -> tuple[float, float]:
    if not values:
        return 0.0, 1.0
    low = min(value["low"] for value in values)
    high = max(value["high"] for value in values)
    room = (high - low) * 0.05 or 1.0
    return _short(low - room), _short(high + room)


NEAR = 90
"""Pixels to the right that a label takes: those of points as near are kept apart."""


def _names(
    values: Sequence[dict[str, Any]], x: Spec, y: Spec, log: bool, height: float
) -> list[Spec]:
    """A name beside each point, moved up or down where it would lie on a neighbour's."""
    if not values:
        return []
    costs = [math.log10(value["cost"]) if log else value["cost"] for value in values]
    pixel = (max(costs) - min(costs)) / style.WIDTH or 1.0
    groups: list[list[int]] = []
    for i in sorted(range(len(values)), key=lambda i: costs[i]):
        if groups and costs[i] - costs[groups[-1][0]] < NEAR * pixel:
            groups[-1].append(i)
        else:
            groups.append([i])
    labels = []
    for group in groups:
        moved = style.apart(
            [values[i]["points"] for i in group], height * style.LINE / style.HEIGHT
        )
        labels += [
            {"name": values[i]["name"], "cost": values[i]["cost"], "points": _short(place)}
            for i, place in zip(group, moved, strict=True)
        ]
    mark = {"type": "text", "align": "left", "dx": 8, "baseline": "middle", "fontSize": 10}
    return [
        {
            "data": {"values": labels},
            "mark": mark,
            "encoding": {"x": x, "y": y, "text": {"field": "name"}},
        }
    ]
