"""Labels dealt out to clients by Dirichlet-distributed shares of each class."""

import numpy as np
from numpy.typing import NDArray

from flower_psl import ConfigError

Parts = list[NDArray[np.int64]]


def deal_out(
    labels: NDArray[np.int64], num_clients: int, alpha: float, rng: np.random.Generator
) -> Parts:
    """Deal out examples so that both labels and amounts of data differ between clients.

    For each class the clients' shares are one draw of a symmetric Dirichlet distribution.
    A client that is left without any example gets one of the client that has most.

    Parameters
    ----------
    labels : NDArray[int64], shape (D,)
        The class of each example.
    num_clients : int
        K.
    alpha : float
        The concentration: the smaller, the more the clients differ.
    rng : numpy.random.Generator
        Where the draws come from.

    Returns
    -------
    list of NDArray[int64]
        For each client, the places of its examples in `labels`, ascending.

    Raises
    ------
    ConfigError
        If there are more clients than examples, or none, or alpha is not above zero.
    """
    if not alpha > 0:
        raise ConfigError(f"alpha is {alpha}; the concentration must be above 0: give 0.1, say")
    if not 1 <= num_clients <= len(labels):
        raise ConfigError(
            f"{num_clients} clients cannot share {len(labels)} examples; there must be 1 to "
            f"{len(labels)} clients: take fewer, or more examples"
        )
    owner = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        places = rng.permutation(np.flatnonzero(labels == label))
        shares = rng.dirichlet(np.full(num_clients, alpha))
        ends = np.rint(np.cumsum(shares) * len(places)).astype(np.int64)
        owner[places] = np.searchsorted(ends, np.arange(len(places)), side="right").clip(
            max=num_clients - 1
        )
    counts = np.bincount(owner, minlength=num_clients)
    for client in np.flatnonzero(counts == 0):
        richest = counts.argmax()
        owner[np.flatnonzero(owner == richest)[0]] = client
        counts[richest] -= 1
        counts[client] += 1
    return [np.flatnonzero(owner == client) for client in range(num_clients)]
