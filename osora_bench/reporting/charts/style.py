"""The one style of all charts: told apart without colour, read without a legend.

Series differ in colour (safe for the colour-blind), in dash and in shape, so that a chart is read
in grey too, and a line is labelled where it ends. Colours are in the theme, not in the charts: a
page in dark mode shows the same chart in the other one.
"""

from collections.abc import Sequence
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
        "mark": {"color": colours["series"][0]},
        "range": {"category": colours["series"]},
    }  # fmt: skip


def chart(title: str, layers: Sequence[Spec], *, subtitle: str = "", empty: bool = False) -> Spec:
    """A specification of layers over one another.

    Args:
        subtitle: what a reader must know to read it.
        empty: that there is nothing to show yet is said in its place.
    """
    heading: Spec = {"text": title}
    if subtitle or empty:
        heading["subtitle"] = EMPTY if empty else subtitle
    return {
        "$schema": SCHEMA,
        "title": heading,
        "width": WIDTH,
        "height": HEIGHT,
        "layer": list(layers),
    }


def short(value: float) -> float:
    """Six digits: what a chart can show, and the same text on every machine."""
    return float(f"{value:.6g}")


def colour_of(names: Sequence[str]) -> Spec:
    """The encoding of a series' colour; of more than there are they come again."""
    return {"field": "series", "type": "nominal", "legend": None, "scale": {"domain": list(names)}}


def dash_of(names: Sequence[str]) -> Spec:
    """The encoding of a line's dash."""
    dashes = [DASHES[i % len(DASHES)] for i in range(len(names))]
    scale = {"domain": list(names), "range": dashes}
    return {"field": "series", "type": "nominal", "legend": None, "scale": scale}


def shape_of(names: Sequence[str]) -> Spec:
    """The encoding of a point's shape."""
    shapes = [SHAPES[i % len(SHAPES)] for i in range(len(names))]
    scale = {"domain": list(names), "range": shapes}
    return {"field": "series", "type": "nominal", "legend": None, "scale": scale}


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
