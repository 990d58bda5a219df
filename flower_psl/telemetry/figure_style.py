"""What all figures share: colours, a title over its facts, light axes."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DPI = 150
# Okabe and Ito's blue and vermilion: told apart by colour-blind readers, and in grey.
BLUE, VERMILION = "#0072B2", "#D55E00"
TEXT, MUTED, GRID = "#222222", "#666666", "#E3E3E3"


def lighten(axes: "Axes") -> None:
    """Take away what is not data, and leave ticks and labels in a quiet grey.

    Parameters
    ----------
    axes : Axes
        The axes to change.
    """
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)
    axes.tick_params(colors=MUTED, labelcolor=TEXT)
    axes.xaxis.label.set_color(TEXT)
    axes.yaxis.label.set_color(TEXT)


def add_title(axes: "Axes", title: str, facts: str) -> None:
    """Set a bold title, and below it a quiet line of facts, both at the left.

    Parameters
    ----------
    axes : Axes
        The axes to change.
    title : str
        What is shown.
    facts : str
        The figures a reader would look for first.
    """
    axes.set_title(title, loc="left", fontsize=13, fontweight="bold", color=TEXT, pad=24)
    axes.annotate(
        facts,
        xy=(0, 1),
        xycoords="axes fraction",
        xytext=(0, 8),
        textcoords="offset points",
        fontsize=9.5,
        color=MUTED,
    ).set_in_layout(False)  # a long line must not squeeze the axes
