"""One look for all figures: colour-blind-safe colours, quiet axes, bands of confidence."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

DPI = 200
_PANEL_INCHES = (3.6, 3.0)
_LEGEND_ENTRY_INCHES = 1.2
_TEXT, _MUTED, _GRID = "#222222", "#666666", "#E3E3E3"

# Okabe and Ito's palette, told apart by colour-blind readers; a method keeps its colour and
# its line in every figure, so that the pictures can be told apart in grey as well.
_LOOKS = {
    "cl": ("#222222", "-"),
    "gpsl": ("#0072B2", "-"),
    "fpls": ("#E69F00", "--"),
    "fls": ("#D55E00", "-."),
    "sl": ("#999999", ":"),
    "balanced": ("#009E73", "-"),
    "straggler": ("#CC79A7", "--"),
    "quota": ("#56B4E9", "-."),
    "latent-dirichlet": ("#B8A800", ":"),
    "psl": ("#E69F00", "--"),
    "splitfed-v1": ("#D55E00", "-."),
    "splitfed-v2": ("#CC79A7", "--"),
    "centralized": ("#222222", "-"),
    "local-only": ("#999999", ":"),
    "fedavg": ("#D55E00", "-"),
    "fedprox": ("#D55E00", "--"),
    "fedavgm": ("#E69F00", "-"),
    "fedadam": ("#009E73", "-"),
    "fedyogi": ("#009E73", "--"),
    "fedadagrad": ("#009E73", ":"),
    "fedmedian": ("#CC79A7", "-"),
    "fedtrimmedavg": ("#CC79A7", "--"),
    "krum": ("#56B4E9", "-."),
    "clients": ("#0072B2", "-"),
    "exchange": ("#D55E00", "-"),
    "server": ("#009E73", "-"),
    "update": ("#E69F00", "-"),
    "rest": ("#999999", "-"),
    "promised": ("#888888", "-"),
    "promised_exact": ("#888888", ":"),
}
_PAPER_NAMES = ("cl", "gpsl", "fpls", "fls", "sl")
_FALLBACK = ("#666666", ":")


def look(method: str) -> dict[str, Any]:
    """Return a method's colour and line style, as arguments of ``Axes.plot``."""
    colour, line = _LOOKS.get(method.partition(":")[0], _FALLBACK)
    return {"color": colour, "linestyle": line}


def label(method: str) -> str:
    """Return what legends call a method: the paper's names are in capitals."""
    return method.upper() if method in _PAPER_NAMES else method


def panels(
    rows: int, columns: int, *, x: str, y: str, share_y: bool = True
) -> tuple[Figure, list[list[Axes]]]:
    """Make a figure of a grid of panels that share their axes.

    Parameters
    ----------
    rows, columns : int
        How many.
    x, y : str
        Labels of the axes, with units.
    share_y : bool
        Whether the vertical axes are the same.

    Returns
    -------
    figure : Figure
    axes : list of list of Axes
        By row and column.
    """
    width, height = _PANEL_INCHES
    figure = Figure(figsize=(width * columns, height * rows), dpi=DPI, layout="constrained")
    grid: list[list[Axes]] = figure.subplots(
        rows, columns, squeeze=False, sharex=True, sharey=share_y
    ).tolist()
    for axes in (axes for line in grid for axes in line):
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(_MUTED)
        axes.tick_params(colors=_MUTED, labelcolor=_TEXT, labelsize=8)
        axes.grid(color=_GRID, linewidth=0.6)
        axes.set_axisbelow(True)
    for axes in grid[-1]:
        axes.set_xlabel(x, fontsize=9, color=_TEXT)
    for axes, *_ in grid:
        axes.set_ylabel(y, fontsize=9, color=_TEXT)
    return figure, grid


def title(axes: Axes, text: str) -> None:
    """Name a panel."""
    axes.set_title(text, loc="left", fontsize=9, fontweight="bold", color=_TEXT)


def band(axes: Axes, method: str, x: ArrayLike, middle: ArrayLike, half: ArrayLike) -> None:
    """Draw a line with a band around it.

    Parameters
    ----------
    axes : Axes
        Where.
    method : str
        Whose line it is; it gives the colour and the label.
    x, middle, half : array_like, shape (N,)
        The line, and half the height of the band; no band where that is not finite.
    """
    middle, half = np.asarray(middle, dtype=float), np.asarray(half, dtype=float)
    axes.plot(x, middle, label=label(method), linewidth=1.5, **look(method))
    low, high = middle - half, middle + half
    axes.fill_between(x, low, high, color=look(method)["color"], alpha=0.18, linewidth=0)


def legend(figure: Figure, axes: Sequence[Axes]) -> None:
    """Put one legend of all the panels' lines above the figure."""
    lines: dict[str, Artist] = {}
    for each in axes:
        for handle, name in zip(*each.get_legend_handles_labels(), strict=True):
            lines.setdefault(name, handle)
    figure.legend(
        lines.values(),
        lines.keys(),
        loc="outside upper left",
        ncols=round(figure.get_figwidth() / _LEGEND_ENTRY_INCHES),
        fontsize=8,
        frameon=False,
    )


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG."""
    figure.savefig(path, format="png")
