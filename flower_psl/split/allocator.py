"""What the C library does with the memory that a step has freed."""

from functools import cache

import torch

# The longest block that glibc learns from.
_BLOCK_BYTES = 2**25 - 2**16


@cache
def keep_freed_memory() -> None:
    """Let glibc keep up to 64 MB of freed memory for the next step, once a process.

    Its rule: what was freed at the end of the heap goes back to the kernel if it is more than
    twice the longest block that was ever mapped by itself and freed, and comes back page by
    page, zeroed. Every step frees its activations, so that every step would pay for that
    thousands of times; twice this block is more than most steps free. The peak does not
    grow. Tensors that are longer than this block are still mapped and unmapped each time.

    With another C library, or where ``MALLOC_TRIM_THRESHOLD_`` or ``MALLOC_MMAP_THRESHOLD_``
    is set, it does nothing.

    Source: mallopt(3), on the dynamic mmap threshold.
    """
    torch.empty(_BLOCK_BYTES, dtype=torch.uint8)
