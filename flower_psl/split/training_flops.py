"""What a segment has to compute for an example, counted on a batch."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from flower_psl.split.randomness import seeded


def count_training_flops(
    segment: nn.Module, run: Callable[[nn.Module], Tensor], num_examples: int
) -> int:
    """Run a segment forward and backward in training mode, on a copy, and count.

    Parameters
    ----------
    segment : nn.Module
        It stays as it is.
    run : callable
        Calls a segment with a batch, and returns what the backward pass starts from.
    num_examples : int
        Examples in that batch.

    Returns
    -------
    int
        Floating-point operations an example, rounded up, as torch's ``FlopCounterMode``
        counts them: those of matrix products, convolutions and attention, a multiplication
        and an addition being two. Norms, pooling and activation functions are not counted.
    """
    segment = copy.deepcopy(segment)
    segment.train()
    with seeded(0), FlopCounterMode(display=False) as counter:
        output = run(segment)
        if output.requires_grad:
            torch.autograd.backward(output, torch.ones_like(output))
    return -(-int(counter.get_total_flops()) // num_examples)
