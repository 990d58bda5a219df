import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flower_psl import ConfigError
from simulations.dirichlet import deal_out


@settings(deadline=None)
@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=60),
    share=st.floats(0, 1),
    alpha=st.floats(1e-2, 1e2),
    seed=st.integers(0, 99),
)
def test_every_example_is_dealt_to_one_client_and_nobody_has_none(
    labels: list[int], share: float, alpha: float, seed: int
) -> None:
    num_clients = max(1, round(share * len(labels)))
    parts = deal_out(np.array(labels), num_clients, alpha, np.random.default_rng(seed))
    assert len(parts) == num_clients
    assert min(len(part) for part in parts) >= 1
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))


def test_shares_are_dirichlet() -> None:
    labels = np.zeros(10_000, dtype=np.int64)
    draws = np.random.default_rng(0)
    shares = np.array(
        [[len(part) for part in deal_out(labels, 5, 2.0, draws)] for _ in range(2000)]
    )
    # The variance of a share is (1/K) (1 - 1/K) / (K alpha + 1).
    assert shares.mean(axis=0) / 10_000 == pytest.approx([0.2] * 5, abs=0.01)
    assert (shares / 10_000).var(axis=0) == pytest.approx([0.16 / 11] * 5, rel=0.15)


def test_a_small_alpha_is_skewed() -> None:
    labels = np.arange(1000) % 10
    sizes = [
        max(len(part) for part in deal_out(labels, 10, alpha, np.random.default_rng(0)))
        for alpha in (100.0, 0.05)
    ]
    assert sizes[0] < 150 < sizes[1]


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan")])
def test_alpha_is_above_zero(alpha: float) -> None:
    with pytest.raises(ConfigError, match=rf"alpha is {alpha}; .* above 0"):
        deal_out(np.zeros(3, dtype=np.int64), 2, alpha, np.random.default_rng(0))


@pytest.mark.parametrize("num_clients", [0, 4])
def test_every_client_needs_an_example(num_clients: int) -> None:
    with pytest.raises(ConfigError, match=rf"{num_clients} clients cannot share 3 .*1 to 3"):
        deal_out(np.zeros(3, dtype=np.int64), num_clients, 1.0, np.random.default_rng(0))
