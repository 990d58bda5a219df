"""Random draws that depend on a seed alone, and leave no trace in the process."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
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
    generator = torch.default_generator
    with _GENERATOR_LOCK:
        before = generator.get_state()
        try:
            # Not `torch.manual_seed`, which would seed every device of the machine.
            generator.manual_seed(seed)
            with nullcontext() if device.type == "cpu" else _seeded_accelerator(seed, device):
                yield
        finally:
            generator.set_state(before)


@contextmanager
def _seeded_accelerator(seed: int, device: torch.device) -> Iterator[None]:
    with torch.random.fork_rng(devices=[device], device_type=device.type):
        accelerator = torch.get_device_module(device)
        with accelerator.device(device):
            accelerator.manual_seed(seed)
        yield
