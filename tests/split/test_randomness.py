import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from flower_psl.split import seeded


def draws(seed: int) -> list[float]:
    with seeded(seed):
        values: list[float] = torch.rand(4).tolist()
    return values


@pytest.mark.parametrize("seed", [0, 7, 2**63 - 1])
def test_the_block_draws_what_the_seed_gives(seed: int) -> None:
    assert draws(seed) == torch.rand(4, generator=torch.Generator().manual_seed(seed)).tolist()


def test_seeds_differ() -> None:
    assert draws(0) != draws(1)


def test_the_process_draws_as_if_there_had_been_no_block() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2, 3)
    torch.manual_seed(3)
    first = torch.rand(3)
    draws(11)
    assert torch.equal(torch.stack([first, torch.rand(3)]), expected)


def test_the_generator_is_put_back_after_an_error() -> None:
    state = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError), seeded(5):
        torch.rand(1)
        _ = 1 / 0
    assert torch.equal(torch.get_rng_state(), state)


def test_blocks_may_nest() -> None:
    with seeded(1):
        outer = torch.rand(1)
        inner = draws(2)
        after = torch.rand(1)
    assert inner == draws(2)
    with seeded(1):
        assert torch.equal(torch.rand(2), torch.cat([outer, after]))


def test_threads_do_not_mix_their_streams() -> None:
    def long_draws(seed: int) -> list[float]:
        with seeded(seed):
            return [float(torch.rand(())) for _ in range(200)]

    expected = [long_draws(seed) for seed in range(8)]
    # Threads take turns all the time, so that without a lock they do mix.
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(long_draws, range(8))) == expected
    finally:
        sys.setswitchinterval(interval_s)
