from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.patches import StepPatch
from numpy.typing import NDArray

from flower_psl.telemetry.schedule_figure import _block_edges, _block_means, schedule_figure


def panels(figure: Figure | None) -> tuple[Axes, Axes, Axes]:
    assert figure is not None
    upper, lower, bar = figure.axes
    return upper, lower, bar


def cells(axes: Axes) -> NDArray[np.float64]:
    (mesh,) = (child for child in axes.get_children() if isinstance(child, QuadMesh))
    values = mesh.get_array()
    assert values is not None
    return np.ma.filled(np.ma.asarray(values), 0).astype(np.float64)


def totals(axes: Axes) -> NDArray[np.float64]:
    (stairs,) = (child for child in axes.get_children() if isinstance(child, StepPatch))
    return np.asarray(stairs.get_data()[0], dtype=np.float64)


def tick_labels(axes: Axes) -> list[str]:
    assert axes.figure is not None
    axes.figure.draw_without_rendering()  # type: ignore[union-attr]
    return [text.get_text() for text in axes.get_yticklabels() if text.get_text()]


@settings(deadline=None, max_examples=15)
@given(
    steps=st.lists(
        st.dictionaries(st.integers(0, 9), st.integers(0, 50), min_size=1), min_size=1, max_size=8
    )
)
def test_cells_and_totals_are_those_of_the_schedule(steps: list[dict[int, int]]) -> None:
    upper, lower, _ = panels(schedule_figure(steps))
    clients = sorted(set().union(*steps))
    expected = [[step.get(client, 0) for step in steps] for client in clients]
    np.testing.assert_array_equal(cells(lower), expected)
    np.testing.assert_array_equal(totals(upper), [sum(step.values()) for step in steps])


def test_title_axes_and_units() -> None:
    figure = schedule_figure([{0: 5, 1: 3}, {0: 8}, {1: 4}])
    upper, lower, bar = panels(figure)
    assert upper.get_title(loc="left") == "Batch-size schedule of the first round"
    facts = "2 clients, 3 steps; effective batch size: mean 6.7, least 4, most 8"
    assert [text.get_text() for text in upper.texts] == [facts]
    assert upper.get_ylabel() == "effective\nbatch size\n(examples)"
    assert (lower.get_xlabel(), lower.get_ylabel()) == ("step of the round", "client (key)")
    assert bar.get_ylabel() == "batch size (examples; white: none)"
    assert lower.yaxis_inverted()
    assert tuple(lower.get_xlim()) == (0.5, 3.5)


@pytest.mark.parametrize("steps", [[], [{}, {}]])
def test_nothing_to_draw(steps: Sequence[dict[int, int]]) -> None:
    assert schedule_figure(steps) is None


def test_clients_are_labelled_by_their_keys() -> None:
    _, lower, _ = panels(schedule_figure([{30: 1, 4: 2, 17: 3}]))
    assert tick_labels(lower) == ["4", "17", "30"]


def test_node_ids_give_way_to_positions() -> None:
    _, lower, _ = panels(schedule_figure([{10**18 + 5: 1, 10**18: 2}]))
    assert lower.get_ylabel() == "client (position in the order of keys)"
    assert max(map(len, tick_labels(lower))) < 5


def test_large_schedules_are_thinned() -> None:
    steps = [dict.fromkeys(range(1000), 2) for _ in range(2001)]
    upper, lower, bar = panels(schedule_figure(steps))
    assert cells(lower).shape == (250, 667)
    assert (cells(lower) == 2).all()
    assert totals(upper).shape == (2001,)
    assert lower.get_xlabel() == "step of the round (a cell: mean of 4 clients by 3 steps)"
    assert bar.get_ylabel() == "mean batch size (examples; white: none)"
    assert len(tick_labels(lower)) <= 13


@pytest.mark.parametrize("steps", [[{0: 0, 1: 0}], [{0: 1}], [{0: 8, 1: 0}, {0: 0, 1: 8}]])
def test_colours_run_from_least_to_most(steps: list[dict[int, int]]) -> None:
    _, lower, _ = panels(schedule_figure(steps))
    (mesh,) = (child for child in lower.get_children() if isinstance(child, QuadMesh))
    low, high = mesh.get_clim()
    assert low is not None and high is not None
    assert 0 <= low < high
    assert high == max(1, *(size for step in steps for size in step.values()), 0)


@settings(deadline=None)
@given(length=st.integers(1, 6000), most=st.integers(1, 1000))
def test_blocks_cover_a_length(length: int, most: int) -> None:
    widths = np.diff(_block_edges(length, most))
    assert len(widths) <= most
    assert widths.sum() == length
    assert (widths[:-1] == widths[0]).all() and 0 < widths[-1] <= widths[0]


@settings(deadline=None)
@given(rows=st.integers(1, 9), columns=st.integers(1, 9), most=st.integers(1, 9), data=st.data())
def test_block_means_are_means(rows: int, columns: int, most: int, data: st.DataObject) -> None:
    sizes = np.array(
        data.draw(
            st.lists(
                st.lists(st.integers(0, 9), min_size=columns, max_size=columns),
                min_size=rows,
                max_size=rows,
            )
        )
    )
    row_edges, column_edges = _block_edges(rows, most), _block_edges(columns, most)
    expected = [
        [sizes[top:bottom, left:right].mean() for left, right in pairwise(column_edges)]
        for top, bottom in pairwise(row_edges)
    ]
    np.testing.assert_allclose(_block_means(sizes, row_edges, column_edges), expected)
