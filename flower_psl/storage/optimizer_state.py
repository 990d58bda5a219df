"""An optimizer's state, brought back to the last bit."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from flower_psl.storage.check_alike import check_alike


def load_optimizer_state(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Load what ``optimizer.state_dict()`` returned.

    `Optimizer.load_state_dict` turns state tensors into the dtype of their parameters. An
    optimizer that keeps float32 beside a bfloat16 parameter would come back rounded; here
    every tensor keeps its dtype.

    Raises
    ------
    CheckpointError
        If its groups of parameters are not those of this optimizer.
    """
    groups = optimizer.state_dict()["param_groups"]
    check_alike(state["param_groups"], groups, "optimizer/param_groups")
    optimizer.load_state_dict(dict(state))
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for position, saved in state["state"].items():
        own = optimizer.state[parameters[position]]
        for name, value in saved.items():
            if isinstance(value, Tensor) and own[name].dtype is not value.dtype:
                own[name] = value.to(own[name].device)
