"""Results as a Markdown table."""

from collections.abc import Mapping, Sequence

from simulations.result_store import Value


def table(rows: Sequence[Mapping[str, Value]]) -> str:
    """Return rows as a Markdown table, its columns aligned for reading as plain text.

    Parameters
    ----------
    rows : sequence of mappings
        One or more, all with the same columns; floats are shown with four digits.
    """
    header = list(rows[0])
    cells = [header, *[[_shown(row[name]) for name in header] for row in rows]]
    widths = [max(len(line[column]) for line in cells) for column in range(len(header))]
    lines = [
        "| "
        + " | ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        + " |"
        for line in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 1) + ":" for width in widths) + "|")
    return "\n".join(lines)


def _shown(value: Value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
