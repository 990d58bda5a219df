import copy

import pytest
import torch
from torch import Tensor, nn

from flower_psl.split.training_flops import count_training_flops


def count(*layers: nn.Module, num_examples: int = 5, as_input: bool = False) -> int:
    inputs = torch.randn(num_examples, 4, requires_grad=as_input)
    segment = nn.Sequential(*layers)

    def run(segment: nn.Module) -> Tensor:
        outputs: Tensor = segment(inputs)
        return outputs

    return count_training_flops(segment, run, num_examples)


@pytest.mark.parametrize("num_examples", [1, 5])
@pytest.mark.parametrize(
    ("layers", "products"),
    [
        ([nn.Linear(4, 8)], 2 * 32),  # forward, and the gradient of the weights
        ([nn.Linear(4, 8), nn.Linear(8, 3)], 2 * 32 + 3 * 24),  # and that of the inputs
        ([nn.Linear(4, 8).requires_grad_(False)], 32),  # nothing is trained
        ([nn.Linear(4, 8), nn.ReLU(), nn.LayerNorm(8)], 2 * 32),  # these are not counted
    ],
)
def test_a_multiplication_and_an_addition_are_two(
    layers: list[nn.Module], products: int, num_examples: int
) -> None:
    assert count(*layers, num_examples=num_examples) == 2 * products


def test_inputs_that_need_a_gradient_cost_more() -> None:
    assert count(nn.Linear(4, 8), as_input=True) == 2 * 3 * 32


def test_the_segment_and_the_generator_stay_as_they_are() -> None:
    segment = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout()).eval()
    state, generator = copy.deepcopy(segment.state_dict()), torch.get_rng_state()
    inputs = torch.zeros(5, 4)
    count_training_flops(segment, lambda each: each(inputs), 5)
    assert not segment.training
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(segment.state_dict()[name], state[name]) for name in state)
    assert all(parameter.grad is None for parameter in segment.parameters())
