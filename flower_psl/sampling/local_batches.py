"""Each client's data in batches of its own size: what the local baselines share."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from flower_psl.sampling.pool import Pool
from flower_psl.sampling.schedule import BatchSchedule


def local_batches(
    pool: Pool, batch_sizes: NDArray[np.int64]
) -> tuple[NDArray[np.unsignedinteger[Any]], NDArray[np.int64]]:
    """Cut the data of every client into batches, client after client.

    Parameters
    ----------
    pool : Pool
        The K clients and the examples each has.
    batch_sizes : NDArray[int64], shape (K,)
        Each client's batch size, at least 1. A client's last batch has the rest.

    Returns
    -------
    letters : NDArray[unsignedinteger], shape (N,)
        The client of each batch.
    sizes : NDArray[int64], shape (N,)
        The examples in each batch.
    """
    num_batches = -(-pool.counts // batch_sizes)
    sizes = np.repeat(batch_sizes, num_batches)
    sizes[np.cumsum(num_batches) - 1] = pool.counts - (num_batches - 1) * batch_sizes
    return np.repeat(pool.letters, num_batches), sizes


def parallel_schedule(pool: Pool, batch_sizes: NDArray[np.int64]) -> BatchSchedule:
    """Let every client that has data left give one of its batches to every step.

    Parameters
    ----------
    pool : Pool
        The K clients and the examples each has.
    batch_sizes : NDArray[int64], shape (K,)
        Each client's batch size, at least 1.

    Returns
    -------
    BatchSchedule
        As many steps as the client with the most batches has batches.
    """
    letters, sizes = local_batches(pool, batch_sizes)
    num_batches = -(-pool.counts // batch_sizes)
    step = np.arange(len(letters)) - np.repeat(np.cumsum(num_batches) - num_batches, num_batches)
    order = np.argsort(step)
    bounds = np.concatenate([[0], np.cumsum(np.bincount(step))])
    return BatchSchedule(pool, letters[order], bounds.tolist(), sizes[order])
