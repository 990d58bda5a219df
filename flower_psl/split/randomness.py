"""Random draws that depend on a seed alone, and leave no trace in the process."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock

import torch

# torch's layers draw from the process's one generator per device. Whoever borrows it
# holds this lock, so that two clients in two threads cannot mix their streams.
_GENERATOR_LOCK = RLock()


@contextmanager
def seeded(seed: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Run a block with torch's generators seeded, then put them back as they were.

    Parameters
    ----------
    seed : int
        The seed, in ``[0, 2**63)``.
    device : torch.device or str
        Where the block computes. Its generator is seeded as well as the CPU's.
    """
    device = torch.device(device)
    on_cpu = device.type == "cpu"
    # The generators are named one by one because `torch.manual_seed` would seed every
    # device of the machine, and only those that are forked are put back.
    with (
        _GENERATOR_LOCK,
        torch.random.fork_rng(
            devices=[] if on_cpu else [device],
            device_type="cuda" if on_cpu else device.type,
        ),
    ):
        torch.default_generator.manual_seed(seed)
        if not on_cpu:
            accelerator = torch.get_device_module(device)
            with accelerator.device(device):
                accelerator.manual_seed(seed)
        yield
