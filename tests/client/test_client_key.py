import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flower_psl import ConfigError
from flower_psl.client.client_key import client_key

Value = bool | float | int | str


@pytest.mark.parametrize("key", [0, 7, 2**63 - 1])
@pytest.mark.parametrize("name", ["partition-id", "client-key"])
def test_an_integer_is_the_key(name: str, key: int) -> None:
    assert client_key({name: key}) == key
    assert client_key({name: str(key)}) == key


def test_the_partition_comes_before_the_name() -> None:
    assert client_key({"client-key": "camera", "partition-id": 3}) == 3


def test_a_node_without_either_has_no_key() -> None:
    assert client_key({"num-partitions": 4}) is None


def test_a_name_is_hashed_by_a_fixed_function() -> None:
    expected = int(hashlib.sha256(b"camera-7").hexdigest()[:16], 16) // 2
    assert client_key({"client-key": "camera-7"}) == expected == 1214382428346370710


@given(st.text(min_size=1))
def test_every_name_is_a_key_that_fits(name: str) -> None:
    key = client_key({"client-key": name}) if not name.isdecimal() or int(name) < 2**63 else 0
    assert key is not None
    assert 0 <= key < 2**63


@pytest.mark.parametrize("value", [-1, 2**63, str(2**63), True, 1.0, ""])
@pytest.mark.parametrize("name", ["partition-id", "client-key"])
def test_anything_else_is_refused(name: str, value: Value) -> None:
    with pytest.raises(ConfigError, match=f"node config {name} = .*; a client key is an integer"):
        client_key({name: value})
