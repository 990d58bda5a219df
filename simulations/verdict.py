"""Whether what a long run came to is what it must come to."""

from collections.abc import Sequence

from flower_psl import PslError


def verdict(report: str, problems: Sequence[str]) -> str:
    """Return a report, if there is nothing wrong with what it is of.

    Parameters
    ----------
    report : str
        What a run came to.
    problems : sequence of str
        What is not as it must be.

    Raises
    ------
    PslError
        If anything is: with the report, and the problems below it.
    """
    if problems:
        raise PslError("\n".join([report, "", *problems]))
    return report
