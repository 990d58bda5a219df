"""How long a round would take, by a cost model."""

from flower_psl.errors import ConfigError
from flower_psl.sampling.cost_model import CostModel
from flower_psl.sampling.schedule import BatchSchedule


def round_seconds(schedule: BatchSchedule, cost: CostModel) -> float:
    """Return the simulated seconds of a round: the sum of its steps' slowest clients.

    Parameters
    ----------
    schedule : BatchSchedule
        The round.
    cost : CostModel
        What a step takes its clients.

    Returns
    -------
    float
        Seconds, at least 0: the sum over steps of max_k (b_k tau_k + l_k). What the server
        does in the meantime is not counted.

    Raises
    ------
    ConfigError
        If a client of the schedule has no cost.
    """
    for key in schedule.client_keys:
        if key not in cost.clients:
            raise ConfigError(
                f"client {key} takes part in the schedule but has no cost; the cost model needs "
                "every client with data: add it"
            )
    clients = cost.clients
    return sum(max(clients[key].seconds(size) for key, size in step.items()) for step in schedule)
