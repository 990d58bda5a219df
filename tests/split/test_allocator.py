"""Freed memory is kept for the next step."""

import os
import platform
import subprocess
import sys

import pytest

# What a step does: some tensors that live together, freed together.
_STEPS = """
import resource
import torch
from flower_psl.split import keep_freed_memory
keep_freed_memory()
def step():
    tensors = []
    for _ in range(12):
        tensors.append(torch.empty(2**21, dtype=torch.uint8).fill_(1))
for _ in range(5):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

only_glibc = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="the C library is not glibc"
)


def _page_faults(**variables: str) -> int:
    """Return how many pages twenty steps had to get from the kernel anew."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", _STEPS],
        check=True,
        capture_output=True,
        env=environment | variables,
        text=True,
    )
    return int(done.stdout)


@only_glibc
def test_a_step_finds_the_pages_that_the_one_before_it_freed() -> None:
    assert _page_faults() < 1000


@only_glibc
def test_what_a_user_has_set_stays() -> None:
    """And the count sees it where pages go back: 24 MiB are 6144 of them."""
    set_to = {"MALLOC_TRIM_THRESHOLD_": "131072", "MALLOC_MMAP_THRESHOLD_": "131072"}
    assert _page_faults(**set_to) > 20 * 6000
