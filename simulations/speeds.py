"""Costs of devices of different speed, for simulated time."""

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

from flower_psl import ClientCost, CostModel
from simulations.samplers import every_fifth


def regimes(path: str, num_examples: Mapping[int, int]) -> dict[str, CostModel]:
    """Return cost models by name.

    Parameters
    ----------
    path : str
        A file as `CostModel.from_file` reads it. Without one there are two models, in which
        every fifth client is ten times slower: in seconds an example ("compute"), or in
        seconds a participation ("latency").
    num_examples : Mapping[int, int]
        Client key to its number of examples.

    Raises
    ------
    ConfigError
        If the file cannot be read, or is of other clients.
    """
    if path:
        models = {Path(path).stem: CostModel.from_file(path)}
    else:
        slow = every_fifth(len(num_examples))
        slow_cost = {"compute": ClientCost(0.1, 0.0), "latency": ClientCost(0.0, 1.0)}
        fast_cost = {"compute": ClientCost(0.01, 0.0), "latency": ClientCost(0.0, 0.1)}
        models = {
            name: CostModel(
                {key: (slow_cost if key in slow else fast_cost)[name] for key in num_examples}
            )
            for name in slow_cost
        }
    for cost in models.values():
        cost.check_clients(num_examples)
    return models


def fingerprint(path: str) -> str:
    """Return what stands for the cost models in the key of results.

    Parameters
    ----------
    path : str
        As for `regimes`.

    Raises
    ------
    ConfigError
        If the file cannot be read.
    """
    if not path:
        return "two-speeds"
    costs = json.dumps(CostModel.from_file(path).to_json(), sort_keys=True)
    return sha256(costs.encode()).hexdigest()[:12]


def least_seconds(cost: CostModel, num_examples: Mapping[int, int]) -> float:
    """Return max_k D_k tau_k: no round that uses every example is shorter."""
    return max(cost.clients[key].seconds_per_example * n for key, n in num_examples.items())
