"""Figure 3: a group of bars a set, ours filled, the paper's outlined beside them."""

from collections.abc import Sequence
from dataclasses import dataclass

from osora_bench.reporting.charts import style
from osora_bench.reporting.charts.style import Spec

PAPER = ", the paper"


@dataclass(frozen=True)
class Bar:
    """The accuracy of one method on one set, as it is shown; `runs`: whose it is."""

    group: str
    series: str
    value: float
    text: str
    paper: bool = False
    runs: str = ""

    @property
    def name(self) -> str:
        """What the bar is called."""
        return self.series + PAPER * self.paper


def bars(title: str, drawn: Sequence[Bar], groups: Sequence[str], *, empty: bool) -> Spec:
    """Bars by group, in the order given."""
    series = list(dict.fromkeys(bar.series for bar in drawn))
    names = list(dict.fromkeys(bar.name for bar in drawn))
    values = [
        {"group": b.group, "name": b.name, "series": b.series, "value": b.value, "text": b.text,
         "paper": b.paper, "Set": b.group, "Method": b.name, "Accuracy": b.text,
         **({"runs": b.runs} if b.runs else {})}
        for b in drawn
    ]  # fmt: skip
    x: Spec = {"field": "group", "type": "nominal", "sort": None,
               "scale": {"domain": list(groups)},
               "axis": {"title": None, "labelAngle": 0}}  # fmt: skip
    beside = {"field": "name", "type": "nominal", "sort": names, "scale": {"domain": names}}
    y: Spec = {"field": "value", "type": "quantitative", "axis": {"title": "accuracy, %"},
               "scale": {"zero": True}}  # fmt: skip
    legend = {**style.by_series("color"), "legend": {"title": None, "orient": "top"}}
    encoding: Spec = {
        "x": x, "y": y, "xOffset": beside, "color": legend,
        "fillOpacity": {"condition": {"test": "datum.paper", "value": 0.0}, "value": 1.0},
        "tooltip": [{"field": key, "type": "nominal"} for key in ("Set", "Method", "Accuracy")],
    }  # fmt: skip
    text = {
        "mark": {"type": "text", "dy": -6, "fontSize": 9},
        "encoding": {"x": x, "y": y, "xOffset": beside, "text": {"field": "text"}},
    }
    subtitle = "outlined: the paper's" if any(bar.paper for bar in drawn) else ""
    spec = style.chart(
        title,
        [{"mark": {"type": "bar", "strokeWidth": 1}, "encoding": encoding}, text],
        subtitle=f"{subtitle}{' (' if subtitle else ''}{style.EMPTY}{')' if subtitle else ''}"
        if empty else subtitle,
        said=[f"{bar.name} on {bar.group}: {bar.text}" for bar in drawn],
    )  # fmt: skip
    return style.dressed(
        {**spec, "data": {"values": values}}, dict(zip(series, series, strict=True))
    )
