"""What a method asks of a device and of the server, measured before anything is trained."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from flower_psl import SplitModel, SplitReport, check_split

from .image_spec import ImageSpec
from .methods import Method
from .models import cut_of, initial_model
from .optimizers import OPTIMIZERS
from .whole_model import local_batch_size

if TYPE_CHECKING:
    from .config import AppConfig

_EXAMPLES = 8


@dataclass(frozen=True, kw_only=True)
class DeviceNeeds:
    """What each device holds, computes and says; all zero if there are none.

    Attributes
    ----------
    parameters : int
        Scalars of the model that a device holds.
    fixed_bytes : int
        Its memory for them: parameters, gradients, buffers, the optimizer's state.
    bytes_per_example : int
        Its memory for each example of a batch, between forward and backward.
    local_batch_size : int
        Examples of a batch of its own; 0 where the server says in each step.
    flops_per_example, server_flops_per_example : int
        Forward and backward, on a device and on the server, as `SplitReport` counts them.
    traffic_bytes_per_example : int
        Activations and their gradient.
    exchanges_per_step : int
        How often a device and the server wait for each other in a step; where whole models
        are trained on devices, in a round.
    """

    parameters: int = 0
    fixed_bytes: int = 0
    bytes_per_example: int = 0
    local_batch_size: int = 0
    flops_per_example: int = 0
    server_flops_per_example: int = 0
    traffic_bytes_per_example: int = 0
    exchanges_per_step: int = 0


def device_needs(
    config: "AppConfig", method: Method, spec: ImageSpec, num_devices: int
) -> DeviceNeeds:
    """Measure what a method needs, on random images.

    Parameters
    ----------
    config : AppConfig
        Its model, cut and optimizer.
    method : Method
    spec : ImageSpec
        What the images are like.
    num_devices : int

    Raises
    ------
    CutError
        If the model cannot be cut where the configuration says.
    """
    model = initial_model(config.model, spec, config.seed)
    if method.split is None:
        report = _checked(model, spec, lambda whole: SplitModel(whole, nn.Identity()))
    else:
        report = _checked(model, spec, cut_of(model, config.model, config.cut))
    if method.trained == "centralized":
        return DeviceNeeds(server_flops_per_example=report.client_flops_per_example)
    stateless = method.split is not None and method.split.client_sync == "step"
    state_bytes = 0 if stateless else _state_bytes(config, report.client_parameters)
    batch_size = 0 if method.split else local_batch_size(config, num_devices)
    traffic = 2 * report.activation_bytes_per_example if method.split else 0
    return DeviceNeeds(
        parameters=report.client_parameters,
        fixed_bytes=report.memory.segment_bytes + state_bytes,
        bytes_per_example=report.memory.bytes_per_example,
        local_batch_size=batch_size,
        flops_per_example=report.client_flops_per_example,
        server_flops_per_example=report.server_flops_per_example,
        traffic_bytes_per_example=traffic,
        exchanges_per_step=2 if stateless else int(method.trained != "local-only"),
    )


def _checked(
    model: nn.Module, spec: ImageSpec, at: str | Callable[[nn.Module], SplitModel]
) -> SplitReport:
    with torch.random.fork_rng(devices=[]):
        images = torch.randn(_EXAMPLES, spec.num_channels, spec.height, spec.width)
    labels = torch.arange(_EXAMPLES) % spec.num_classes
    return check_split(model, images, labels, at=at, loss_fn=nn.CrossEntropyLoss())


def _state_bytes(config: "AppConfig", num_parameters: int) -> int:
    """Return what an optimizer keeps of so many parameters from step to step."""
    parameter = nn.Parameter(torch.zeros(num_parameters))
    optimizer = OPTIMIZERS[config.optimizer](config, [parameter])
    parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    state = optimizer.state[parameter].values()
    return sum(value.nbytes for value in state if isinstance(value, Tensor))
