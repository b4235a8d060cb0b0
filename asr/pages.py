"""Pages to open in a browser: one file each, with its style inside and nothing fetched.

In: a template of asr/templates and what it shows. Out: HTML, in which every value is text and never markup, unless this package drew it.
"""

from __future__ import annotations

from importlib import resources
from typing import Any


def render(template: str, *, plots: list[str], **values: Any) -> str:
    """Return a template with values put in, escaped; `plots` are this package's own SVG."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from markupsafe import Markup

    folder = resources.files("asr") / "templates"
    environment = Environment(
        loader=FunctionLoader(lambda name: (folder / name).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    drawn = [Markup(plot) for plot in plots]  # noqa: S704  # ours, with matplotlib's escapes
    return environment.get_template(template).render(plots=drawn, **values)
