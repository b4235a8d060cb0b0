"""Plots as SVG that stands inside a page: no file beside it, nothing fetched, and colours that follow the page's, dark or light.

In: series of numbers. Out: SVG text. Drawn by matplotlib, which is imported only here.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

INK = "#010203"
"""Stands for the page's own text colour: becomes currentColor."""
COLOURS = ("#3b82c4", "#d97706", "#2f9e6e", "#c0504d", "#8b6fc0", "#8a8f2a", "#c06fa8", "#5f8f9e")
"""Told apart on a white and on a dark ground."""


MOST_MARKS = 10
"""Of an axis; more values have marks at round numbers."""
MOST_DOTS = 40
"""Of a line; more points are the line alone."""
MARGINS = {"left": 0.11, "right": 0.98, "top": 0.91, "bottom": 0.14}
"""Around the axes of a plot, as shares of it: enough for numbers."""


@dataclass(frozen=True)
class Series:
    """The points of one line, or alone."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    line: bool = True


def line_plot(
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    title: str,
    log_x: bool = False,
    x_ticks: Sequence[str] | None = None,
    best: tuple[float, float] | None = None,
    legend_title: str = "",
    log_y: bool = False,
) -> str:
    """Return a plot of one line a series as SVG; `x_ticks` names x = 0, 1, ...; `best` is a point to ring."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "asr", "font.size": 11, "font.family": "sans-serif"}):
        figure = Figure(figsize=(7.2, 4.2), layout="constrained" if x_ticks or log_x else None)  # as long again, for names of any length
        axes = figure.subplots(gridspec_kw=None if x_ticks or log_x else MARGINS)
        for number, one in enumerate(series):
            axes.plot(
                one.x,
                one.y,
                marker="o" if len(one.x) <= MOST_DOTS or not one.line else "",
                markersize=5,
                linestyle="-" if one.line else "",
                color=COLOURS[number % len(COLOURS)],
                label=one.name,
            )
        if best is not None:
            axes.plot(
                [best[0]], [best[1]], marker="o", markersize=13, markerfacecolor="none", markeredgecolor=INK, linestyle="", label="best"
            )
        if log_x:
            axes.set_xscale("log")
        marks = sorted({x for one in series for x in one.x})
        if x_ticks is not None:
            axes.set_xticks(range(len(x_ticks)), x_ticks)
        elif len(marks) <= MOST_MARKS:
            axes.set_xticks(marks, [f"{mark:g}" for mark in marks])
            axes.minorticks_off()
        if log_y:
            axes.set_yscale("log")
            axes.yaxis.minorticks_off()  # a label is looked for at each
        else:
            axes.set_ylim(bottom=0)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.set_title(title, loc="left", fontsize=12, color=INK)
        axes.grid(visible=True, alpha=0.25, color=INK)
        for spine in axes.spines.values():
            spine.set_color(INK)
        axes.tick_params(colors=INK)
        for text in (axes.xaxis.label, axes.yaxis.label):
            text.set_color(INK)
        if len(series) > 1 or legend_title or best is not None:
            axes.legend(title=legend_title or None, labelcolor=INK, frameon=False).get_title().set_color(INK)
        figure.patch.set_alpha(0)
        axes.patch.set_alpha(0)
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None})
    return _embedded(drawn.getvalue(), title)


@dataclass(frozen=True)
class Span:
    """A value, and where chance could have put it."""

    name: str
    value: float
    low: float
    high: float


def span_plot(spans: Sequence[Span], *, x_label: str, title: str) -> str:
    """Return values side by side with their intervals as SVG, the first on top."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "asr", "font.size": 11, "font.family": "sans-serif"}):
        figure = Figure(figsize=(7.2, 1.1 + 0.4 * len(spans)), layout="constrained")
        axes = figure.subplots()
        for number, span in enumerate(spans):
            colour = COLOURS[number % len(COLOURS)]
            axes.plot([span.low, span.high], [number, number], color=colour, linewidth=2, solid_capstyle="butt")
            axes.plot([span.value], [number], marker="o", markersize=6, color=colour)
        axes.set_yticks(range(len(spans)), [span.name for span in spans])
        axes.set_ylim(len(spans) - 0.5, -0.5)
        axes.set_xlabel(x_label, color=INK)
        axes.set_title(title, loc="left", fontsize=12, color=INK)
        axes.grid(visible=True, axis="x", alpha=0.25, color=INK)
        for spine in axes.spines.values():
            spine.set_color(INK)
        axes.tick_params(colors=INK)
        figure.patch.set_alpha(0)
        axes.patch.set_alpha(0)
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None})
    return _embedded(drawn.getvalue(), title)


def _embedded(svg: str, title: str) -> str:
    """Return an SVG file as an element of a page: without its header, scaled to the page's width, in the page's colours."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'(<svg\b[^>]*?) width="[^"]*"', r"\1", body, count=1)
    body = re.sub(r'(<svg\b[^>]*?) height="[^"]*"', r"\1", body, count=1)
    body = body.replace("<svg", f'<svg role="img" aria-label="{escape(title, quote=True)}"', 1)
    return body.replace(INK, "currentColor")
