"""Label counts of the clients of a schedule, as one table."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flower_psl.errors import ConfigError
from flower_psl.sampling.label_counts import label_counts
from flower_psl.sampling.schedule import BatchSchedule


def label_table(
    schedule: BatchSchedule, counts_by_client: Mapping[int, ArrayLike]
) -> NDArray[np.int64]:
    """Check that label counts belong to a schedule, and put them into its order.

    Parameters
    ----------
    schedule : BatchSchedule
        How many examples each of K clients contributes to each step.
    counts_by_client : Mapping[int, array_like of int, shape (C,)]
        Client key to the client's examples of each class. Clients without any are left out,
        as they are in a schedule.

    Returns
    -------
    NDArray[int64], shape (K, C)
        A row for each of `schedule.client_keys`.

    Raises
    ------
    ConfigError
        If the counts are of other clients or other numbers of classes, are no label counts,
        or are fewer than a client contributes in the round.
    """
    rows = {
        key: label_counts(f"client {key}", counts)
        for key, counts in counts_by_client.items()
        if np.any(np.asarray(counts))
    }
    for key in sorted(rows.keys() ^ set(schedule.client_keys)):
        where = "label counts only" if key in rows else "schedule only"
        raise ConfigError(
            f"client {key} is in the {where}; both must be of the same clients: count the labels "
            f"of the {len(schedule.client_keys)} clients that the schedule was made for"
        )
    num_classes = rows[schedule.client_keys[0]].size
    for key, given in schedule.totals.items():
        if rows[key].size != num_classes:
            raise ConfigError(
                f"client {key} has counts of {rows[key].size} classes, client "
                f"{schedule.client_keys[0]} of {num_classes}; all need the same classes: give 0 "
                "where a client has no example of a class"
            )
        if given > rows[key].sum():
            raise ConfigError(
                f"client {key} gives {given} examples in the round, but its label counts add up "
                f"to {rows[key].sum()}; no example is used twice: count all its examples"
            )
    table = np.stack([rows[key] for key in schedule.client_keys])
    label_counts("pooled data", table.sum(axis=0))
    return table
