import torch

from apps.image_classification.config import AppConfig
from apps.image_classification.device_needs import DeviceNeeds, device_needs
from apps.image_classification.image_spec import ImageSpec
from apps.image_classification.methods import METHODS

DIGITS = ImageSpec(num_channels=1, height=8, width=8, num_classes=10)
# small-cnn's first block: a convolution of 9 weights for each of 32 channels and 64 places, and
# its weights' gradient.
BLOCK1_FLOPS = 2 * 2 * 9 * 32 * 64


def needs(method: str, **changes: object) -> DeviceNeeds:
    config = AppConfig(**changes)  # type: ignore[arg-type]
    return device_needs(config, METHODS[method], DIGITS, num_devices=10)


def test_a_step_over_the_cut() -> None:
    found = needs("gpsl")
    parameters = 32 * 9 + 32 + 2 * 32
    assert found.parameters == parameters
    assert found.fixed_bytes == 2 * 4 * parameters  # and their gradients; no optimizer
    assert found.flops_per_example == BLOCK1_FLOPS
    assert found.traffic_bytes_per_example == 2 * 4 * 32 * 4 * 4
    assert (found.exchanges_per_step, found.local_batch_size) == (2, 0)


def test_devices_that_step_by_themselves_keep_an_optimizer() -> None:
    step, round_, adam = (
        needs("psl"),
        needs("splitfed-v1"),
        needs("splitfed-v1", optimizer="adamw"),
    )
    assert round_.fixed_bytes == step.fixed_bytes + 4 * step.parameters
    assert adam.fixed_bytes == step.fixed_bytes + 2 * 4 * step.parameters + 4  # and the step
    assert (round_.exchanges_per_step, round_.flops_per_example) == (1, BLOCK1_FLOPS)


def test_the_whole_model_on_devices() -> None:
    split, whole = needs("gpsl"), needs("fedavg", batch_size=60)
    assert whole.parameters > 90_000
    assert whole.fixed_bytes == 3 * 4 * whole.parameters
    assert whole.flops_per_example == split.flops_per_example + split.server_flops_per_example
    assert (whole.server_flops_per_example, whole.traffic_bytes_per_example) == (0, 0)
    assert (whole.exchanges_per_step, whole.local_batch_size) == (1, 6)
    assert needs("local-only").exchanges_per_step == 0


def test_no_devices() -> None:
    whole = needs("fedavg")
    assert needs("centralized") == DeviceNeeds(server_flops_per_example=whole.flops_per_example)


def test_no_generator_is_touched() -> None:
    before = torch.get_rng_state()
    needs("gpsl")
    assert torch.equal(torch.get_rng_state(), before)
