import copy

import pytest
import torch
from torch import Tensor, nn

from flower_psl.split.device_memory import DeviceMemory, measure_device_memory


def measure(*layers: nn.Module, num_examples: int = 5) -> DeviceMemory:
    inputs = torch.randn(num_examples, 4)
    segment = nn.Sequential(*layers)
    # The dtype is that of the segment, as the inputs of a model are.
    inputs = inputs.to(next(iter([p.dtype for p in segment.parameters()]), torch.float32))
    return measure_device_memory(segment, lambda client: run(client, inputs), num_examples)


def run(client: nn.Module, inputs: Tensor) -> Tensor:
    activations: Tensor = client(inputs)
    return activations


def test_the_segment_is_weighed() -> None:
    memory = measure(nn.Linear(4, 8), nn.BatchNorm1d(8))
    assert memory.parameter_bytes == 4 * (4 * 8 + 8 + 8 + 8)
    assert memory.buffer_bytes == 4 * (8 + 8) + 8
    assert memory.gradient_bytes == memory.parameter_bytes
    assert memory.segment_bytes == 2 * memory.parameter_bytes + memory.buffer_bytes


@pytest.mark.parametrize("num_examples", [1, 5])
@pytest.mark.parametrize(
    ("layers", "scalars"),
    [
        ([nn.Linear(4, 8), nn.Tanh()], 4 + 8),  # the input, and what Tanh returns
        ([nn.Linear(4, 8), nn.ReLU(inplace=True)], 4 + 8),
        ([nn.Linear(4, 8), nn.SiLU()], 4 + 8 + 8),  # SiLU keeps its input
        ([nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)], 4 + 8 + 2),
        ([nn.Linear(4, 8), nn.Tanh(), nn.Unflatten(1, (2, 4)), nn.Flatten()], 4 + 8),  # views
        ([nn.Linear(4, 8).requires_grad_(False)], 8),  # the activations only
    ],
)
def test_an_example_is_what_backward_needs_and_the_activations(
    layers: list[nn.Module], scalars: int, num_examples: int
) -> None:
    assert measure(*layers, num_examples=num_examples).bytes_per_example == 4 * scalars


def test_the_precision_is_the_segments() -> None:
    memory = measure(nn.Linear(4, 8).double(), nn.Tanh())
    assert (memory.parameter_bytes, memory.bytes_per_example) == (8 * 40, 8 * 12)


def test_frozen_parameters_have_no_gradients() -> None:
    memory = measure(nn.Linear(4, 8).requires_grad_(False), nn.Linear(8, 8))
    assert memory.gradient_bytes == 4 * (8 * 8 + 8)


def test_what_a_batch_shares_is_shared_out_and_rounded_up() -> None:
    # BatchNorm keeps the batch's mean and deviation of each of the 8 channels.
    memory = measure(nn.Linear(4, 8), nn.BatchNorm1d(8), num_examples=5)
    assert memory.bytes_per_example == 4 * (4 + 8 + 8) + -(-4 * 16 // 5)


def test_a_batch_adds_its_examples() -> None:
    memory = DeviceMemory(
        parameter_bytes=100, buffer_bytes=10, gradient_bytes=80, bytes_per_example=7
    )
    assert memory.for_batch(0) == 190
    assert memory.for_batch(16) == 190 + 112


def test_the_segment_and_the_generator_stay_as_they_are() -> None:
    segment = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout()).eval()
    state, generator = copy.deepcopy(segment.state_dict()), torch.get_rng_state()
    inputs = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    measure_device_memory(segment, lambda client: run(client, inputs), 5)
    assert not segment.training
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(segment.state_dict()[name], state[name]) for name in state)
