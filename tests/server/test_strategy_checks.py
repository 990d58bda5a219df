"""Every setting of a strategy that cannot be used is refused by name."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from flwr.serverapp.strategy import FedAvg, QFedAvg
from torch import nn
from torch.nn import functional

from flower_psl import ConfigError, FailurePolicy, ParallelSplitLearning

Make = Callable[..., ParallelSplitLearning]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"model": nn.Linear(2, 2)}, "model is a Linear; it must be cut first: cut"),
        ({"sampler": 32}, "sampler is 32; it needs a method schedule"),
        ({"loss_fn": "mse"}, "loss_fn is 'mse'; it must be a function"),
        ({"loss_fn": nn.Linear(3, 1)}, r"loss_fn has parameters of its own, \['weight', 'bias'\]"),
        ({"client_sync": "rounds"}, "client_sync is 'rounds'; it is one of step, round, none"),
        (
            {"overlap": True, "client_sync": "round"},
            "overlap is given with client_sync='round', .*; leave it out, or choose client_sync",
        ),
        ({"client_sync": None}, "client_sync is None; it is one of step"),
        (
            {"server_update": "sum"},
            "server_update is 'sum'; it is one of global-batch, per-client",
        ),
        (
            {"server_update": "per-client-average"},
            "server_update is 'per-client-average' with client_sync='step', .* choose client_sync",
        ),
        (
            {"client_strategy": FedAvg()},
            "client_strategy is given with client_sync='step'; .* Choose client_sync='round'",
        ),
        (
            {"client_strategy": FedAvg(), "client_sync": "none"},
            "client_strategy is given with client_sync='none'",
        ),
        (
            {"client_strategy": FedAvg(min_train_nodes=5), "client_sync": "round"},
            "client_strategy wants 5 nodes and the run waits for 2",
        ),
        (
            {"client_strategy": QFedAvg(0.1), "client_sync": "round"},
            "client_strategy is a QFedAvg, which cannot aggregate",
        ),
        (
            {
                "client_sync": "round",
                "server_update": "per-client-average",
                "lr_scheduler_fn": lambda optimizer, steps: None,
            },
            "lr_scheduler_fn is given with server_update='per-client-average', .* leave it out",
        ),
        ({"transport": "http"}, "transport is 'http'; it is one of auto, stream, messages"),
        ({"transport": ""}, "transport is ''; it is one of auto"),
        ({"fraction_evaluate": "all"}, "fraction_evaluate is 'all'; it is a share from 0 to 1"),
        ({"min_available_nodes": True}, "min_available_nodes is True; it is an integer"),
        ({"device": "cudda"}, "device is 'cudda'; it is a device of torch, such as 'cpu'"),
        ({"stream": "0.0.0.0:9200"}, "stream is '0.0.0.0:9200'; it must be a StreamSettings"),
        ({"optimizer_fn": 0.1}, "optimizer_fn is a float; it must be a function of the param"),
        ({"lr_scheduler_fn": 0.1}, "lr_scheduler_fn is a float; it must be a function of"),
        ({"fraction_evaluate": -0.1}, "fraction_evaluate is -0.1; it is a share from 0 to 1"),
        ({"fraction_evaluate": 1.5}, "fraction_evaluate is 1.5"),
        ({"fraction_evaluate": float("nan")}, "fraction_evaluate is nan"),
        ({"steps_per_round": 0}, "steps_per_round is 0; it is an integer of 1 or more"),
        ({"steps_per_round": 2.0}, "steps_per_round is 2.0"),
        ({"evaluate_batch_size": 0}, "evaluate_batch_size is 0"),
        ({"min_available_nodes": -1}, "min_available_nodes is -1"),
        ({"node_timeout_s": 0.0}, "node_timeout_s is 0.0; it is a finite number above 0"),
        ({"max_grad_norm": -1.0}, "max_grad_norm is -1.0"),
        (
            {"failures": 5.0},
            r"failures is 5.0; it must be a FailurePolicy, such as FailurePolicy\(",
        ),
        (
            {
                "failures": FailurePolicy(quorum=0.9),
                "loss_fn": nn.CrossEntropyLoss(reduction="sum"),
            },
            "quorum is 0.9 with a loss of reduction='sum', .* Give the loss reduction='mean'",
        ),
        (
            {
                "failures": FailurePolicy(quorum=0.9),
                "loss_fn": partial(functional.cross_entropy, reduction="sum"),
            },
            "quorum is 0.9 with a loss of reduction='sum', .* Give the loss reduction='mean'",
        ),
        ({"seed": -1}, "seed is -1; it is an integer from 0 to"),
        ({"seed": 2**63}, f"seed is {2**63}"),
        ({"seed": 0.5}, "seed is 0.5"),
    ],
)
def test_a_value_out_of_range_is_refused(
    make_strategy: Make, changes: dict[str, Any], text: str
) -> None:
    with pytest.raises(ConfigError, match=text):
        make_strategy(**changes)
