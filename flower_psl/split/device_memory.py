"""What a client segment asks of a device's memory, measured on a batch."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from flower_psl.split.randomness import seeded


@dataclass(frozen=True, kw_only=True)
class DeviceMemory:
    """Bytes that a device holds between the forward and the backward pass of a step.

    Not in it: what a layer needs only while it computes, the messages on their way, and
    the process itself with Python and torch.

    Attributes
    ----------
    parameter_bytes, buffer_bytes : int
        Of the client segment.
    gradient_bytes : int
        Of the parameters that are trained: the gradients that the device sends back.
    bytes_per_example : int
        What autograd keeps of one example for the backward pass, activations included,
        rounded up. Measured on a batch: what it keeps once a batch is shared out.
    """

    parameter_bytes: int
    buffer_bytes: int
    gradient_bytes: int
    bytes_per_example: int

    @property
    def segment_bytes(self) -> int:
        """What the segment takes whatever the batch: parameters, gradients, buffers."""
        return self.parameter_bytes + self.gradient_bytes + self.buffer_bytes

    def for_batch(self, num_examples: int) -> int:
        """Return the bytes that a device holds for a batch of `num_examples`."""
        return self.segment_bytes + num_examples * self.bytes_per_example


def measure_device_memory(
    client: nn.Module, run: Callable[[nn.Module], Tensor], num_examples: int
) -> DeviceMemory:
    """Run a client segment once in training mode, on a copy, and weigh what stays.

    Parameters
    ----------
    client : nn.Module
        The client segment, on the CPU. It stays as it is.
    run : callable
        Calls a client segment with a batch of inputs and returns the activations.
    num_examples : int
        Examples in that batch.

    Returns
    -------
    DeviceMemory
        In the precision of the segment and the inputs.
    """
    client = copy.deepcopy(client).train()
    parameters, buffers = list(client.parameters()), list(client.buffers())
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        # Detached, because an operation that saves its own output would be kept by itself.
        kept.append(tensor.detach())
        return kept[-1]

    with seeded(0), saved_tensors_hooks(keep, lambda tensor: tensor):
        activations = run(client)
    of_segment = _storages([*parameters, *buffers])
    of_batch = _storages([*kept, activations])
    held = sum(size for address, size in of_batch.items() if address not in of_segment)
    return DeviceMemory(
        parameter_bytes=_bytes(parameters),
        buffer_bytes=_bytes(buffers),
        gradient_bytes=_bytes(trained),
        bytes_per_example=-(-held // num_examples),
    )


def _storages(tensors: Sequence[Tensor]) -> dict[int, int]:
    """Return the bytes of each storage by its address: views of one are counted once."""
    storages = [tensor.untyped_storage() for tensor in tensors]
    return {storage.data_ptr(): storage.nbytes() for storage in storages}


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
