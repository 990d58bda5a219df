"""Buffers that change with a step, or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager

from flower_psl.split import ModuleIndex, load_tensors


@contextmanager
def kept_buffers(segment: ModuleIndex) -> Iterator[None]:
    """Put a segment's buffers back to what they were if the block raises.

    A forward pass moves BatchNorm's running statistics before it is known whether the step
    will be taken.

    Parameters
    ----------
    segment : ModuleIndex
        The segment.
    """
    before = {name: buffer.clone() for name, buffer in segment.buffers.items()}
    try:
        yield
    except BaseException:
        load_tensors(segment.module, before)
        raise
