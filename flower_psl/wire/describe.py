"""What a device says of itself before the first step."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from flower_psl.errors import ProtocolError

# Raised whenever a request or a reply changes its meaning.
PROTOCOL_VERSION = 6

# A schedule takes a byte an example or more, so without a bound a single number would take all
# of the server's memory.
_MOST_EXAMPLES = 100_000_000


@dataclass(frozen=True)
class TensorSpec:
    """A parameter or buffer of the client segment, without its values."""

    shape: tuple[int, ...]
    dtype: str
    trainable: bool

    def __str__(self) -> str:
        """Return, for example, ``float32 (16, 3, 3, 3)``."""
        return f"{self.dtype} {self.shape}{'' if self.trainable else ', not trained'}"


def segment_spec(named: Iterable[tuple[str, Tensor]]) -> dict[str, TensorSpec]:
    """Describe a segment's parameters and buffers."""
    return {
        name: TensorSpec(
            shape=tuple(tensor.shape),
            dtype=str(tensor.dtype).removeprefix("torch."),
            trainable=tensor.requires_grad,
        )
        for name, tensor in named
    }


@dataclass(frozen=True, kw_only=True)
class DescribeReply:
    """A device's identity, data and segment.

    Attributes
    ----------
    client_key : int or None
        The stable client key, or None if the device was given none.
    num_examples, num_test_examples : int
        Examples in its training and test data.
    segment : mapping of str to TensorSpec
        Parameters and buffers of its client segment.
    has_optimizer : bool
        Whether it can update its segment by itself.
    has_segment : bool
        Whether it has a segment that it trained by itself.
    keeps_state : bool
        Whether it has a folder to save in what it trains by itself.
    version : int
        The protocol it speaks.
    """

    client_key: int | None
    num_examples: int
    num_test_examples: int
    segment: Mapping[str, TensorSpec]
    has_optimizer: bool = False
    has_segment: bool = False
    keeps_state: bool = False
    version: int = PROTOCOL_VERSION

    def __post_init__(self) -> None:
        """Refuse another protocol, and counts and keys out of range."""
        if self.version != PROTOCOL_VERSION:
            raise ProtocolError(
                f"the device speaks protocol {self.version}, this server {PROTOCOL_VERSION}; "
                "install the same flower-psl on both"
            )
        for name in ("num_examples", "num_test_examples"):
            if not 0 <= getattr(self, name) <= _MOST_EXAMPLES:
                raise ProtocolError(
                    f"{name} is {getattr(self, name)}; a data set has 0 to {_MOST_EXAMPLES} "
                    "examples. Share a larger one out among several clients."
                )
        if self.client_key is not None and not 0 <= self.client_key < 2**63:
            raise ProtocolError(
                f"client key {self.client_key}; it is from 0 to 2**63 - 1. Give the node such a "
                "partition-id."
            )


def differences(server: Mapping[str, TensorSpec], device: Mapping[str, TensorSpec]) -> list[str]:
    """Return, line by line, how a device's segment differs from the server's copy."""
    lines = [f"{name} is missing on the device" for name in server if name not in device]
    lines += [f"{name} exists on the device only" for name in device if name not in server]
    lines += [
        f"{name} is {device[name]} on the device and {spec} on the server"
        for name, spec in server.items()
        if name in device and device[name] != spec
    ]
    return lines
