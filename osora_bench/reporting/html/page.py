"""A page: a template with styles, scripts and data inside; it fetches nothing, runs nothing else.

Texts from records, models and data are escaped where they are put in: Jinja's autoescape in HTML,
`as_data` in JSON. Scripts and styles are files of static/; the page's Content-Security-Policy names
the hash of each, so that a browser refuses any other, wherever it came from.
"""

import base64
import hashlib
import json
import math
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

PACKAGE = str(__package__)
LIBRARY = "window.vegaEmbed = vegaEmbed;"
"""What the page takes of the chart library."""


def render(template: str, scripts: Sequence[str], data: Any, **values: Any) -> str:
    """A page of a template of templates/.

    Args:
        scripts: files of static/, run in this order; `charts.js` brings the chart library with it.
        data: what they read, as JSON can hold it.
        values: what the template shows.
    """
    sources = [library()] if "charts.js" in scripts else []
    sources.append("\n".join(static(name) for name in scripts))
    style = static("page.css")
    environment = Environment(
        loader=PackageLoader(PACKAGE), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template(template).render(
        policy=policy(sources, [style]),
        style=Markup(style),
        scripts=[Markup(source) for source in sources],
        data=Markup(as_data(data)),
        **values,
    )


def as_data(data: Any) -> str:
    """JSON that can stand inside a script element: nothing in it ends the element or opens another.
    The same data give the same text; NaN and infinity, which JSON has not, go as texts."""
    try:
        text = _json(data)
    except ValueError:
        text = _json(_without_nan(data))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _json(data: Any) -> str:
    return json.dumps(
        data, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False
    )


def _without_nan(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _without_nan(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_without_nan(value) for value in data]
    return str(data) if isinstance(data, float) and not math.isfinite(data) else data


def policy(scripts: Sequence[str], styles: Sequence[str]) -> str:
    """A Content-Security-Policy that allows these scripts and styles and nothing else."""
    allowed = {
        "default-src": ["'none'"],
        "script-src": [_source(text) for text in scripts],
        "style-src": [_source(text) for text in styles],
        "img-src": ["data:"],
        "base-uri": ["'none'"],
        "form-action": ["'none'"],
    }
    return "; ".join(" ".join([kind, *sources]) for kind, sources in allowed.items())


def _source(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


@cache
def static(name: str) -> str:
    """A file of static/."""
    text = (files(PACKAGE) / "static" / name).read_text(encoding="utf-8")
    return _for_script(text, name)


@cache
def library() -> str:
    """The chart library (Vega, Vega-Lite, Vega-Embed, with the interpreter that needs no eval) as
    one script: the one that draws the figures."""
    import vl_convert

    return _for_script(vl_convert.javascript_bundle(LIBRARY), "the chart library")


def _for_script(text: str, name: str) -> str:
    """A text that can stand inside a script or style element."""
    if "</script" in text.lower() or "</style" in text.lower() or "<!--" in text:
        raise AssertionError(f"{name} would end the element that it stands in")
    return text
