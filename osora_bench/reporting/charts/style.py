"""The one style of all charts: told apart without colour, read without a legend.

Series differ in colour (safe for the colour-blind), in dash and in shape, so that a chart is read
in grey too, and a line is labelled where it ends. A method looks alike in all charts that are
dressed for the same methods. Colours are in the theme, not in the charts: a page in dark mode shows
the same chart in the other one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

Spec = dict[str, Any]
"""A Vega-Lite specification, as plain data."""

SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
FONT = "Liberation Sans, Arial, Helvetica, sans-serif"
"""The first comes with the renderer: the same widths on every machine."""
WIDTH, HEIGHT = 420, 280
LINE = 12
"""Pixels that a label needs above and below its neighbours."""
MOST_SERIES = 12
"""Lines that a reader can tell apart."""
LOOKS = 12
"""Methods up to which the next dash and the next shape make another pair."""
DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3])
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down")
EMPTY = "no run has finished yet"

LIGHT = {
    "paper": "#ffffff", "ink": "#1b1f24", "muted": "#57606a", "grid": "#e4e7eb",
    "series": ["#0b62a8", "#c44e00", "#00775a", "#8f3f86", "#6b6b6b", "#8a6a00"],
}  # fmt: skip
DARK = {
    "paper": "#15181c", "ink": "#e6e9ed", "muted": "#a3acb8", "grid": "#343a42",
    "series": ["#6cb8f2", "#ff9d5c", "#4fd0a5", "#e39bdb", "#bdbdbd", "#e3c04f"],
}  # fmt: skip


def theme(colours: dict[str, Any]) -> Spec:
    """Vega-Lite's `config`, of LIGHT or DARK."""
    text = {"font": FONT, "fontWeight": "normal"}
    axis = {"labelFont": FONT, "titleFont": FONT, "titleFontWeight": "normal", "labelFontSize": 11,
            "titleFontSize": 11, "labelColor": colours["ink"], "titleColor": colours["ink"],
            "gridColor": colours["grid"], "domainColor": colours["muted"],
            "tickColor": colours["muted"]}  # fmt: skip
    return {
        "background": colours["paper"],
        "font": FONT,
        "axis": axis,
        "title": {**text, "fontSize": 12, "color": colours["ink"], "anchor": "start",
                  "subtitleFont": FONT, "subtitleFontSize": 11, "subtitleColor": colours["muted"],
                  "subtitleFontWeight": "normal"},
        "text": {**text, "fontSize": 11, "color": colours["ink"]},
        "rule": {"color": colours["muted"]},
        "bar": {"stroke": colours["ink"], "strokeWidth": 0.6},
        "view": {"stroke": None},
        "mark": {"color": colours["ink"]},  # no method's
        "params": [{"name": tone(i), "value": c} for i, c in enumerate(colours["series"])],
    }  # fmt: skip


def tone(index: int) -> str:
    """What a chart calls a colour of `series` of the theme."""
    return f"tone{index}"


def chart(
    title: str,
    layers: Sequence[Spec],
    *,
    subtitle: str = "",
    said: Sequence[str] = (),
    empty: bool = False,
) -> Spec:
    """A specification of layers over one another.

    Args:
        subtitle: what a reader must know to read it.
        said: what it shows, in words: a line for each thing that is drawn.
        empty: that there is nothing to show yet is said in the subtitle's place.
    """
    heading: Spec = {"text": title}
    if subtitle or empty:
        heading["subtitle"] = EMPTY if empty else subtitle
    return {
        "$schema": SCHEMA,
        "title": heading,
        "description": "; ".join(said),
        "width": WIDTH,
        "height": HEIGHT,
        "layer": list(layers),
    }


def short(value: float) -> float:
    """Six digits: what a chart can show, and the same text on every machine."""
    return float(f"{value:.6g}")


@dataclass(frozen=True)
class Look:
    """How a series is drawn: the number of its colour, its dash, its shape."""

    tone: int
    dash: tuple[int, ...]
    shape: str

    @classmethod
    def of(cls, place: int) -> "Look":
        """Of the method at a place among all: twice `LOOKS` differ without their colours."""
        dash = tuple(DASHES[place % len(DASHES)])
        shape = SHAPES[(place + place // LOOKS) % len(SHAPES)]
        return cls(place % len(LIGHT["series"]), dash, shape)


def looks(series: dict[str, str], methods: Sequence[str]) -> dict[str, Look]:
    """The look of each series of a chart.

    The first of a method has the method's; others of the same method have its colour, with a dash
    and a shape that nothing else in the chart has, as long as there are some.

    Args:
        series: their methods.
        methods: all that have a look: in the same order the same.
    """
    every = [*dict.fromkeys([*methods, *series.values()])]
    own = {method: Look.of(every.index(method)) for method in dict.fromkeys(series.values())}
    taken = {(look.dash, look.shape) for look in own.values()}
    found: dict[str, Look] = {}
    for name, method in series.items():
        first = own[method]
        if all(method != series[other] for other in found):
            found[name] = first
            continue
        look = next(_others(first, every.index(method), taken), first)
        taken.add((look.dash, look.shape))
        found[name] = look
    return found


def _others(first: Look, place: int, taken: set[tuple[tuple[int, ...], str]]) -> Iterator[Look]:
    """Looks of a method's colour that are not taken, the nearest by place first."""
    for step in range(1, 2 * LOOKS + 1):
        other = Look.of((place + step) % (2 * LOOKS))
        if (other.dash, other.shape) not in taken:
            yield Look(first.tone, other.dash, other.shape)


CHANNELS = ("color", "strokeDash", "shape")
"""Of an encoding, those by which series are told apart."""


def by_series(channel: str) -> Spec:
    """The encoding of a series' colour, dash or shape; `dressed` says which is whose."""
    assert channel in CHANNELS
    return {"field": "series", "type": "nominal", "legend": None}


def dressed(spec: Spec, series: dict[str, str], methods: Sequence[str] = ()) -> Spec:
    """A chart in the looks that its series have beside these methods.

    Args:
        series: the method of each, in the order in which they are drawn.
    """
    worn = looks(series, methods)
    ranges: dict[str, list[Any]] = {
        "color": [{"expr": tone(look.tone)} for look in worn.values()],
        "strokeDash": [list(look.dash) for look in worn.values()],
        "shape": [look.shape for look in worn.values()],
    }

    def layer(drawn: Spec) -> Spec:
        encoding = {
            channel: {**how, "scale": {"domain": list(worn), "range": ranges[channel]}}
            if channel in ranges and how.get("field") == "series" else how
            for channel, how in drawn.get("encoding", {}).items()
        }  # fmt: skip
        return {**drawn, "encoding": encoding}

    usermeta = {**spec.get("usermeta", {}), "series": series}
    return {**spec, "layer": [layer(drawn) for drawn in spec["layer"]], "usermeta": usermeta}


def dressed_for(spec: Spec, methods: Sequence[str]) -> Spec:
    """A dressed chart in the looks that all charts for these methods have."""
    series = spec.get("usermeta", {}).get("series")
    return spec if series is None else dressed(spec, series, methods)


def apart(places: Sequence[float], gap: float) -> list[float]:
    """Places moved by as little as keeps each `gap` from the next, in the order given.

    Neighbours that are too near become a block around their mean, and blocks that meet join.
    """
    order = sorted(range(len(places)), key=lambda i: places[i])
    blocks: list[list[float]] = []  # of each: sum of the middles it wants, count
    for i in order:
        blocks.append([places[i], 1])
        while len(blocks) > 1 and _bottom(blocks[-1], gap) < _top(blocks[-2], gap):
            total, count = blocks.pop()
            blocks[-1][0] += total
            blocks[-1][1] += count
    moved = [0.0] * len(places)
    left = iter(order)
    for block in blocks:
        first = block[0] / block[1] - (block[1] - 1) * gap / 2
        for step in range(int(block[1])):
            moved[next(left)] = first + step * gap
    return moved


def _bottom(block: list[float], gap: float) -> float:
    return block[0] / block[1] - block[1] * gap / 2


def _top(block: list[float], gap: float) -> float:
    return block[0] / block[1] + block[1] * gap / 2
