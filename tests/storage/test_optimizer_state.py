import copy
from collections.abc import Callable, Iterable

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adagrad, Adam, AdamW, NAdam, Optimizer, RMSprop

from flower_psl.storage import load_optimizer_state, pack_state, unpack_state

Make = Callable[[Iterable[nn.Parameter]], Optimizer]

MAKERS: dict[str, Make] = {
    "sgd": lambda params: SGD(params, lr=0.1),
    "momentum": lambda params: SGD(params, lr=0.1, momentum=0.9, nesterov=True),
    "adam with a tensor as rate": lambda params: Adam(params, lr=torch.tensor(0.1)),
    "amsgrad": lambda params: AdamW(params, lr=0.1, amsgrad=True),
    "rmsprop": lambda params: RMSprop(params, lr=0.1, momentum=0.5, centered=True),
    "adagrad": lambda params: Adagrad(params, lr=0.1, lr_decay=0.1),
    "nadam": lambda params: NAdam(params, lr=0.1),
    "groups": lambda params: Adam(
        [{"params": [p], "lr": 0.1 / 2**n} for n, p in enumerate(params)]
    ),
}


class Wide(Optimizer):
    """Momentum in float64, whatever the parameters are."""

    def __init__(self, params: Iterable[nn.Parameter]) -> None:
        super().__init__(params, {"lr": 0.1})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for parameter in self.param_groups[0]["params"]:
            state = self.state[parameter]
            state["sum"] = state.get("sum", torch.zeros(3, dtype=torch.float64)) / 3
            state["sum"] = state["sum"] + parameter.grad
            parameter -= state["sum"].to(parameter.dtype)


def train(parameters: list[nn.Parameter], optimizer: Optimizer, steps: range) -> None:
    for step in steps:
        for parameter in parameters:
            parameter.grad = torch.sin(parameter.detach() * (step + 1))
        optimizer.step()


@pytest.mark.parametrize("make", [*MAKERS.values(), Wide], ids=[*MAKERS, "wide"])
def test_an_optimizer_goes_on_with_the_same_bits(make: Make) -> None:
    dtype = torch.bfloat16 if make is Wide else torch.float32
    parameters = [nn.Parameter(torch.randn(3).to(dtype)) for _ in range(3)]
    optimizer = make(iter(parameters))
    train(parameters, optimizer, range(3))
    saved = b"".join(pack_state({"optimizer": optimizer.state_dict()}))
    others = copy.deepcopy(parameters)
    resumed = make(iter(others))
    load_optimizer_state(resumed, unpack_state(saved, "here")["optimizer"])
    train(parameters, optimizer, range(3, 6))
    train(others, resumed, range(3, 6))
    assert all(map(torch.equal, parameters, others))
