"""The batch-size schedule of a round: who contributes how much to which step."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from flower_psl.telemetry.figure_style import BLUE, DPI, add_title, lighten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Two pixels a row and one a column: finer cells could not be seen, and show as their mean.
_MAX_ROWS, _MAX_COLUMNS = 250, 1000
# Up to so many rows and columns, thin white lines between the cells help the eye.
_MAX_OUTLINED = 60
# Longer keys are node ids, which nobody reads off an axis.
_MAX_SHOWN_KEY = 99_999


def schedule_figure(steps: Sequence[Mapping[int, int]]) -> "Figure | None":
    """Return a figure of a round's schedule, or None where there is nothing to draw.

    Parameters
    ----------
    steps : Sequence of Mapping of int to int
        Per step, batch sizes by client key; a client that is missing contributes nothing.

    Returns
    -------
    Figure or None
        Two axes with common steps, numbered from 1: the effective batch size, and below it
        the heat map of clients and steps. A third one is the heat map's colour bar.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    clients = sorted({client for step in steps for client in step})
    if not clients:
        return None
    sizes = _size_table(steps, clients)  # (K, T)
    totals = sizes.sum(axis=0)  # (T,)
    figure = Figure(figsize=(9, 6), dpi=DPI, layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[1, 3])
    upper.stairs(totals, np.arange(len(steps) + 1) + 0.5, fill=True, color=BLUE)
    upper.set_ylim(0, max(1, 1.08 * totals.max()))
    upper.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=4))
    upper.set_ylabel("effective\nbatch size\n(examples)")
    _draw_heat_map(lower, sizes)
    _tick_axes(lower, clients)
    lighten(upper)
    lighten(lower)
    add_title(
        upper,
        "Batch-size schedule of the first round",
        f"{_count(len(clients), 'client')}, {_count(len(steps), 'step')}; effective batch size: "
        f"mean {totals.mean():.1f}, least {totals.min()}, most {totals.max()}",
    )
    return figure


def _size_table(steps: Sequence[Mapping[int, int]], clients: Sequence[int]) -> NDArray[np.int64]:
    rows = {client: row for row, client in enumerate(clients)}
    sizes = np.zeros((len(clients), len(steps)), dtype=np.int64)
    for column, step in enumerate(steps):
        for client, size in step.items():
            sizes[rows[client], column] = size
    return sizes


def _draw_heat_map(axes: "Axes", sizes: NDArray[np.int64]) -> None:
    from matplotlib.ticker import MaxNLocator

    row_edges = _block_edges(sizes.shape[0], _MAX_ROWS)
    column_edges = _block_edges(sizes.shape[1], _MAX_COLUMNS)
    means = _block_means(sizes, row_edges, column_edges)
    exact = means.shape == sizes.shape
    outlined = means.shape[0] <= _MAX_OUTLINED and means.shape[1] <= _MAX_OUTLINED
    peak = means.max()
    mesh = axes.pcolormesh(
        column_edges + 0.5,
        row_edges - 0.5,
        np.ma.masked_equal(means, 0),
        cmap="viridis_r",
        vmin=1 if exact and peak > 1 else 0,
        vmax=max(1.0, peak),
        edgecolors="white" if outlined else "none",
        linewidth=0.4,
    )
    axes.invert_yaxis()
    axes.figure.colorbar(
        mesh,
        ax=axes,
        label=f"{'batch' if exact else 'mean batch'} size (examples; white: none)",
        ticks=MaxNLocator(integer=exact, nbins=8, min_n_ticks=1),
        pad=0.015,
    ).outline.set_visible(False)
    cell = f"{_count(row_edges[1], 'client')} by {_count(column_edges[1], 'step')}"
    axes.set_xlabel("step of the round" + ("" if exact else f" (a cell: mean of {cell})"))


def _block_edges(length: int, most: int) -> NDArray[np.int64]:
    block = -(-length // most)
    return np.append(np.arange(0, length, block), length)


def _block_means(
    sizes: NDArray[np.int64], row_edges: NDArray[np.int64], column_edges: NDArray[np.int64]
) -> NDArray[np.float64]:
    sums = np.add.reduceat(sizes, row_edges[:-1], axis=0)
    sums = np.add.reduceat(sums, column_edges[:-1], axis=1)
    means: NDArray[np.float64] = sums / np.outer(np.diff(row_edges), np.diff(column_edges))
    return means


def _tick_axes(axes: "Axes", clients: Sequence[int]) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    def key_at(row: float, _: int | None) -> str:
        inside = row == int(row) and 0 <= row < len(clients)
        return str(clients[int(row)]) if inside else ""

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12, min_n_ticks=1))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=12, min_n_ticks=1))
    if max(clients) <= _MAX_SHOWN_KEY:
        axes.yaxis.set_major_formatter(FuncFormatter(key_at))
        axes.set_ylabel("client (key)")
    else:
        axes.set_ylabel("client (position in the order of keys)")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
