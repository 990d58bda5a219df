import re

import numpy as np
import pytest

from flower_psl.errors import ConfigError
from flower_psl.sampling import Pool


def test_clients_with_data_are_kept_in_order_of_their_keys() -> None:
    pool = Pool.of({2**63: 4, 7: 0, 5: 1})
    assert pool.keys == (5, 2**63)
    assert pool.counts.tolist() == [1, 4]
    assert pool.num_examples == 5


@pytest.mark.parametrize(
    ("num_clients", "dtype"), [(1, "u1"), (256, "u1"), (257, "u2"), (65_536, "u2"), (65_537, "u4")]
)
def test_letters_take_the_smallest_dtype(num_clients: int, dtype: str) -> None:
    letters = Pool.of(dict.fromkeys(range(num_clients), 1)).letters
    assert letters.dtype == np.dtype(dtype)
    assert letters.tolist() == list(range(num_clients))


@pytest.mark.parametrize(
    ("num_examples", "said"),
    [
        ({}, "none of the 0 clients has an example; a round needs at least one: give"),
        ({0: 0, 1: 0}, "none of the 2 clients has an example"),
        ({3: -2}, "client 3: the number of examples is -2; it must be at least 0: pass"),
        ({3: 2**32}, "client 3: the number of examples is 4294967296; it must be below"),
        ({3: 2.0}, "client 3: the number of examples is 2.0 (float); it must be a whole"),
        ({3: True}, "client 3: the number of examples is True (bool)"),
        ({-1: 2}, "client key is -1; it must be at least 0: pass a larger int"),
        ({2**64: 2}, "client key is 18446744073709551616; it must be below"),
        ({"a": 2}, "client key is 'a' (str); it must be a whole number: pass an int"),
    ],
)
def test_invalid_numbers_are_refused(num_examples: dict[int, int], said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        Pool.of(num_examples)


def test_a_batch_beyond_the_pool_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        Pool.of({0: 2, 1: 3}).check_batch_size(6)
    assert "batch_size is 6" in str(caught.value)
    assert "have 5 examples; a global batch cannot exceed them" in str(caught.value)
    assert "choose batch_size <= 5" in str(caught.value)
