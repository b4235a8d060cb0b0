"""Pages to open in a browser: one file each, with its style inside and nothing fetched.

In: a template of asr/templates and what it shows. Out: HTML, in which every value is text and never markup, unless this package drew it.
"""

from __future__ import annotations

from functools import lru_cache
from importlib import resources
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment


def render(template: str, *, plots: list[str], **values: Any) -> str:
    """Return a template with values put in, escaped; `plots` are this package's own SVG."""
    from markupsafe import Markup

    drawn = [Markup(plot) for plot in plots]  # noqa: S704  # ours, with matplotlib's escapes
    return str(_environment().get_template(template).render(plots=drawn, **values))


@lru_cache
def _environment() -> Environment:
    """Return where templates come from: compiled once a process."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    folder = resources.files("asr") / "templates"
    return Environment(
        loader=FunctionLoader(lambda name: (folder / name).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
