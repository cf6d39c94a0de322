"""Accuracy against a cost, and the forest of differences to one method."""

import itertools
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
MOST_ROWS = 40
"""Lines of a forest; of more the best of each method is shown, of still more the best."""
MOST_NAMED = 25
"""Points that are all named, with intervals; of more those of the front and the baseline are."""


@dataclass(frozen=True)
class Named:
    """An estimate, its cost where that is drawn, what is told of it, its model and method; whether
    a test tells it from the baseline, and whether it is the baseline."""

    name: str
    estimate: Estimate
    cost: float = 0.0
    told: dict[str, Any] = field(default_factory=dict)
    model: str = ""
    method: str = ""
    differs: bool = False
    baseline: bool = False


def against_cost(title: str, axis: str, drawn: Sequence[Named], *, less: bool) -> Spec:
    """Avg. with its 95 % interval against a cost; what no other of its model matches at no more
    cost is filled and joined by a line. Of more than `MOST_NAMED` only those are named, with the
    baseline.

    Args:
        less: whether less of the cost is better.
    """
    front = _front(drawn, less=less)
    values = [
        {**_value(one, *one.estimate.possible), "cost": style.short(one.cost), "front": i in front,
         "model": one.model,
         "named": len(drawn) <= MOST_NAMED or i in front or one.baseline}
        for i, one in enumerate(drawn)
    ]  # fmt: skip
    x, y = _cost_axes(axis if less else f"{axis} (more is better)", values)
    front_line = {
        "transform": [{"filter": "datum.front"}],
        "mark": {"type": "line", "strokeWidth": 1, "strokeDash": [3, 3]},
        "encoding": {
            "x": x,
            "y": y,
            "order": {"field": "cost", "type": "quantitative"},
            "detail": {"field": "model", "type": "nominal"},
        },
    }
    rule, *marked = _marked(x, y, "y", values, "front")
    layers = [front_line, rule, *_names(values, x, y), *marked]
    whose = " of its model" if len({one.model for one in drawn}) > 1 else ""
    subtitle = f"filled: no other{whose} has a higher accuracy at no more cost"
    if len(drawn) > MOST_NAMED:
        besides = " and the baseline" * any(one.baseline for one in drawn)
        subtitle += f"; named, of {len(drawn)}: these{besides}"
    said = [_told(one, ", on the front" * (i in front)) for i, one in enumerate(drawn)
            if values[i]["named"]]  # fmt: skip
    return {
        **style.chart(title, layers, subtitle=subtitle, said=said, empty=not drawn),
        "data": {"values": values},
        "usermeta": {"least_width": style.WIDTH},  # names are placed for it
    }


def _cost_axes(title: str, values: Sequence[dict[str, Any]]) -> tuple[Spec, Spec]:
    """The axis of a cost, logarithmic where costs differ much, and that of the accuracies, as far
    as the intervals that are shown."""
    costs = [value["cost"] for value in values] or [0.0, 1.0]
    log = min(costs) > 0 and max(costs) > 20 * min(costs)
    scale: Spec = {"type": "log"} if log else {"zero": False}
    scale |= {"domain": _around(min(costs), max(costs), log=log), "nice": False}
    x = {"field": "cost", "type": "quantitative", "scale": scale,
         "axis": {"title": title, "grid": False, "tickCount": 5, "format": "~s"}}  # fmt: skip
    bare = [{"low": v["points"], "high": v["points"]} for v in values if not v["named"]]
    low, high = _reach([*(v for v in values if v["named"]), *bare])
    y = {"field": "points", "type": "quantitative",
         "scale": {"domain": [low, high], "zero": False, "nice": False},
         "axis": {"title": "accuracy, %, and 95 % interval", "tickCount": 6}}  # fmt: skip
    return x, y


def _front(drawn: Sequence[Named], *, less: bool) -> set[int]:
    """Positions of each model's Pareto front."""
    front: set[int] = set()
    for model in {one.model for one in drawn}:
        own = [i for i, one in enumerate(drawn) if one.model == model]
        found = pareto([(drawn[i].cost, drawn[i].estimate.points) for i in own], less=less)
        front |= {own[i] for i in found}
    return front


def forest(title: str, baseline: str, gaps: Sequence[Named], without: Sequence[str] = ()) -> Spec:
    """How far the baseline is above each, a model after the other, the highest method first.

    Args:
        without: models that have no baseline to be measured from.
    """
    models = list(dict.fromkeys(one.model for one in gaps))
    shown = _fewer(gaps)
    order = sorted(shown, key=lambda one: (models.index(one.model), one.estimate.points))
    values = [
        {**_value(one, one.estimate.low, one.estimate.high), "differs": one.differs, "named": True}
        for one in order
    ]
    reach = list(_reach([*values, {"low": 0, "high": 0}]))
    x: Spec = {"field": "points", "type": "quantitative",
               "scale": {"domain": reach, "nice": False},
               "axis": {"title": f"{baseline} less it, points, 95 % interval",
                        "tickCount": 8}}  # fmt: skip
    y: Spec = {"field": "name", "type": "nominal", "sort": [value["name"] for value in values],
               "axis": {"title": None, "labelLimit": 220, "grid": True, "domain": False,
                        "ticks": False}}  # fmt: skip
    zero = {"data": {"values": [{"points": 0}]}, "mark": {"type": "rule", "strokeDash": [4, 3]},
            "encoding": {"x": x}}  # fmt: skip
    layers = [zero, *_marked(x, y, "x", values, "differs")]
    subtitle = [f"filled: told from {baseline} by the paired test (5 %, Holm)"]
    if len(shown) < len(gaps):
        subtitle.append(f"the best {len(shown)} of {len(gaps)}, one of each method")
    if without:
        subtitle.append(f"left out, without {baseline}: {', '.join(without)}")
    said = [_told(one) for one in order]
    spec = style.chart(title, layers, subtitle="; ".join(subtitle), said=said, empty=not gaps)
    return {**spec, "height": {"step": ROW} if gaps else 60, "data": {"values": values}}


def _fewer(gaps: Sequence[Named]) -> Sequence[Named]:
    """Those that a forest shows: where there are too many, the best of each model and method, and
    of these the best."""
    if len(gaps) <= MOST_ROWS:
        return gaps
    best: dict[tuple[str, str], Named] = {}
    for one in sorted(gaps, key=lambda one: one.estimate.points):
        best.setdefault((one.model, one.method), one)
    return list(best.values())[:MOST_ROWS]


UNSAID = ("Method", "Runs", "runs")
"""What is told of a point, but not in a chart's description."""


def _told(one: Named, more: str = "") -> str:
    """`LoRA r=16: Average 50.00, 95 % 48.00 to 52.00`."""
    told = ", ".join(f"{key} {value}" for key, value in one.told.items() if key not in UNSAID)
    return f"{one.name}: {told}{more}"


def _value(one: Named, low: float, high: float) -> dict[str, Any]:
    return {
        "name": one.name,
        "points": style.short(one.estimate.points),
        "low": style.short(low),
        "high": style.short(high),
        **one.told,
    }


def _marked(
    x: Spec, y: Spec, along: str, values: Sequence[dict[str, Any]], full: str
) -> list[Spec]:
    """A point with its interval; filled where the field `full` is true."""
    encoding: Spec = {"x": x, "y": y}
    ends: Spec = {
        along: {**encoding[along], "field": "low"},
        f"{along}2": {"field": "high"},
    }
    hidden = ("name", "points", "low", "high", "cost", "runs", "model", "named", full)
    told = dict.fromkeys(key for value in values for key in value if key not in hidden)
    tooltip = [{"field": key, "type": "nominal"} for key in told]
    rule = {"transform": [{"filter": "datum.named"}],
            "mark": {"type": "rule", "strokeWidth": 1.2},
            "encoding": {**encoding, **ends}}  # fmt: skip
    kinds: tuple[tuple[str, Spec], ...] = (
        ("", {"filled": True}),
        ("!", {"filled": False, "fill": {"expr": "background"}}),
    )
    marked: list[Spec] = [
        {
            "transform": [{"filter": f"{sign}datum.{full}"}],
            "mark": {"type": "point", "size": 60, "opacity": 1, "strokeWidth": 1.5, **kind},
            "encoding": {**encoding, "tooltip": tooltip},
        }
        for sign, kind in kinds
    ]
    return [rule, *marked]


def _around(low: float, high: float, *, log: bool) -> list[float]:
    """From where to where an axis goes, with a little room at both ends."""
    if log:
        room = (high / low) ** 0.05
        return [style.short(low / room), style.short(high * room)]
    room = (high - low) * 0.05 or abs(high) * 0.1 or 1.0
    return [style.short(low - room), style.short(high + room)]


def _reach(values: Sequence[dict[str, Any]]) -> tuple[float, float]:
    if not values:
        return 0.0, 1.0
    low = min(value["low"] for value in values)
    high = max(value["high"] for value in values)
    room = (high - low) * 0.05 or 1.0
    return style.short(low - room), style.short(high + room)


CHARACTER = 5.5
"""Pixels of a letter of a label, on the average."""
MARK = 5
"""Pixels from a point's middle to its edge."""
STEPS = 12
"""Half lines that a name may go up or down."""
COVERED, CROSSED, OUTSIDE = 1000, 6, 9
"""What a name costs over a point or another name, over an interval, and beyond the right edge, in
half lines that it goes up or down to avoid it."""
Box = tuple[float, float, float, float]
"""Left, right, top, bottom."""


def _names(values: Sequence[dict[str, Any]], x: Spec, y: Spec) -> list[Spec]:
    """A name beside each point that has one, as near as it can be without covering a name, a point,
    an interval or the line of the front."""
    places = [
        (_pixel(v["cost"], x, style.WIDTH), _pixel(v["points"], y, style.HEIGHT)) for v in values
    ]
    taken: list[Box] = [(a - MARK, a + MARK, b - MARK, b + MARK) for a, b in places]
    rules: list[Box] = [
        (a - 1, a + 1, _pixel(v["low"], y, style.HEIGHT), _pixel(v["high"], y, style.HEIGHT))
        for v, (a, _) in zip(values, places, strict=True) if v["named"]
    ]  # fmt: skip
    for model in {v["model"] for v in values}:
        rules += _along(
            sorted(place for v, place in zip(values, places, strict=True)
                   if v["front"] and v["model"] == model)
        )  # fmt: skip
    labels = []
    named = [entry for entry in zip(values, places, strict=True) if entry[0]["named"]]
    for value, (across, along) in sorted(named, key=lambda e: e[1]):
        side, shift, box = _free(across, along, CHARACTER * len(value["name"]), taken, rules)
        taken.append(box)
        low, high = y["scale"]["domain"]
        moved = style.short(value["points"] + shift * (high - low) / style.HEIGHT)
        labels.append(
            {"name": value["name"], "cost": value["cost"], "points": moved, "side": side,
             "from": value["points"]}
        )  # fmt: skip
    return [
        layer
        for side, sign in (("left", 1), ("right", -1))
        if (shown := [label for label in labels if label["side"] == side])
        for layer in _labels(shown, x, y, side, sign)
    ]


def _along(corners: Sequence[tuple[float, float]]) -> list[Box]:
    """A line through some corners as small boxes."""
    boxes: list[Box] = []
    for (a, b), (c, d) in itertools.pairwise(corners):
        steps = max(1, round(max(abs(c - a), abs(d - b)) / (2 * MARK)))
        middles = [(a + (c - a) * i / steps, b + (d - b) * i / steps) for i in range(steps + 1)]
        boxes += [(p - 1, p + 1, q - 1, q + 1) for p, q in middles]
    return boxes


def _labels(labels: Sequence[dict[str, Any]], x: Spec, y: Spec, side: str, sign: int) -> list[Spec]:
    """Names on one side of their points, on a ground that no line strikes through, and a thin line
    to each from its own."""
    text = {"type": "text", "align": side, "dx": 8 * sign, "baseline": "middle", "fontSize": 10}
    ground = {"stroke": {"expr": "background"}, "strokeWidth": 4, "strokeJoin": "round"}
    line = {"type": "rule", "strokeWidth": 0.6, "x2Offset": 7 * sign}
    ends = {"x": x, "x2": {"field": "cost"}, "y": {**y, "field": "from"}, "y2": {"field": "points"}}
    place = {"x": x, "y": y, "text": {"field": "name"}}
    data = {"values": labels}
    return [
        {"data": data, "mark": line, "encoding": ends},
        {"data": data, "mark": {**text, **ground}, "encoding": place},
        {"data": data, "mark": text, "encoding": place},
    ]


def _pixel(value: float, axis: Spec, size: float) -> float:
    low, high = axis["scale"]["domain"]
    if axis["scale"].get("type") == "log":
        low, high, value = math.log10(low), math.log10(high), math.log10(value)
    return float(size * (value - low) / (high - low))


def _free(
    across: float, along: float, width: float, taken: Sequence[Box], rules: Sequence[Box]
) -> tuple[str, float, Box]:
    """The side of a point, how far up its name goes, and the box that it then takes: the nearest
    place within the chart, at best one that no name, point or interval has.

    Args:
        taken: by points and names.
        rules: of the intervals.
    """
    half = style.LINE / 2
    best: tuple[float, str, float, Box] | None = None
    for step in sorted(range(-STEPS, STEPS + 1), key=abs):
        for side in ("left", "right"):
            start = across + 8 if side == "left" else across - 8 - width
            shift = step * half
            box = (start, start + width, along + shift - half, along + shift + half)
            if box[2] < 0 or box[3] > style.HEIGHT or start <= 0:
                continue
            price = (
                abs(step)
                + COVERED * sum(_overlap(box, other) for other in taken)
                + CROSSED * sum(_overlap(box, other) for other in rules)
                + OUTSIDE * (box[1] > style.WIDTH)
            )
            if best is None or price < best[0]:
                best = price, side, shift, box
    assert best is not None, "a chart has room for a line"
    return best[1:]


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[1] and b[0] < a[1] and a[2] < b[3] and b[2] < a[3]
