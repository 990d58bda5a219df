"""What a check of a split found."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from flower_psl.split.device_memory import DeviceMemory

Side = Literal["client", "server"]


class FindingKind(StrEnum):
    """Why training a split model may differ from centralized training."""

    BATCH_NORM = "batch_norm"
    RANDOM = "random"
    BUFFER = "buffer"
    FROZEN = "frozen"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that a user should know before training.

    Attributes
    ----------
    kind : FindingKind
        What it is.
    segment : "client" or "server"
        Where it is.
    module : str
        Name of the module, within the segment; ``""`` is the segment itself.
    message : str
        What will differ, and what can be done.
    """

    kind: FindingKind
    segment: Side
    module: str
    message: str


@dataclass(frozen=True, kw_only=True)
class SplitReport:
    """The result of `check_split`.

    Differences are relative to the uncut model: the largest absolute difference over all
    tensors, divided by the largest absolute value over all tensors of the uncut model.

    Attributes
    ----------
    loss_difference, gradient_difference : float
        Of the loss and of its gradients by all parameters.
    weight_difference : float
        Of all parameters after one step of the optimizer.
    activation_shape : tuple of int
        Of one example's activations.
    activation_bytes_per_example : int
        What they weigh in the model's own precision; their gradient weighs the same.
    memory : DeviceMemory
        What a device holds, in the model's own precision.
    client_parameters, server_parameters : int
        Numbers of scalars in the segments.
    client_flops_per_example, server_flops_per_example : int
        Floating-point operations of an example's forward and backward pass: those of matrix
        products and convolutions, a multiplication and an addition being two.
    held_in_evaluation : tuple of str
        Modules that were in evaluation mode for the comparison, because in training mode
        what they do depends on which examples they see together, or on chance. ``""`` is
        the whole model.
    findings : tuple of Finding
        What will differ in training. They do not make the check fail.
    """

    loss_difference: float
    gradient_difference: float
    weight_difference: float
    activation_shape: tuple[int, ...]
    activation_bytes_per_example: int
    memory: DeviceMemory
    client_parameters: int
    server_parameters: int
    client_flops_per_example: int
    server_flops_per_example: int
    held_in_evaluation: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether the cut model computes what the uncut one does.

        True if loss and gradients differ by at most 1e-12, weights by at most 1e-9.
        """
        return (
            self.loss_difference <= 1e-12
            and self.gradient_difference <= 1e-12
            and self.weight_difference <= 1e-9
        )

    def __str__(self) -> str:
        """Write the report as a few lines of text."""
        lines = [
            f"{'passed' if self.passed else 'FAILED'}: relative difference from the uncut model "
            f"(float64): loss {self.loss_difference:.1e}, gradients "
            f"{self.gradient_difference:.1e}, weights after one step {self.weight_difference:.1e}",
            f"client {self.client_parameters:,} parameters, server "
            f"{self.server_parameters:,} parameters",
            f"activations {self.activation_shape}: {_size(self.activation_bytes_per_example)} an "
            "example travel each way",
            f"a device holds {_size(self.memory.segment_bytes)} (parameters, gradients, buffers) "
            f"+ {_size(self.memory.bytes_per_example)} an example",
            f"a device computes {_quantity(self.client_flops_per_example, 'FLOP')} an example, "
            f"the server {_quantity(self.server_flops_per_example, 'FLOP')}",
        ]
        if self.held_in_evaluation:
            held = [name or "the whole model" for name in self.held_in_evaluation]
            lines.append(f"compared in evaluation mode: {_listed(held)}")
        modules: dict[tuple[str, str], list[str]] = {}
        for finding in self.findings:
            where = finding.module or f"the {finding.segment} segment"
            modules.setdefault((finding.kind, finding.message), []).append(where)
        for (kind, message), names in modules.items():
            lines.append(f"{kind}: {_listed(names)}: {message}")
        return "\n".join(lines)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def _size(num_bytes: int) -> str:
    return f"{num_bytes} bytes" if num_bytes < 1000 else _quantity(num_bytes, "B")


def _quantity(number: int, unit: str) -> str:
    """Write a number with three digits and an SI prefix."""
    for factor, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= factor:
            return f"{number / factor:.3g} {prefix}{unit}"
    return f"{number} {unit}"
