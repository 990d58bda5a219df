import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flower_psl.errors import ConfigError
from flower_psl.sampling import (
    ClientCost,
    CostModel,
    FixedLocalSampler,
    GlobalSampler,
    QuotaSampler,
    round_seconds,
)

QUOTAS = st.floats(0.05, 1.0) | st.sampled_from([1.0, 0.5, 1 / 3, 0.2, 1 / 49])


@settings(deadline=None)
@given(
    st.dictionaries(st.integers(0, 2**63), st.integers(0, 60), min_size=1, max_size=5),
    QUOTAS | st.lists(QUOTAS, min_size=5, max_size=5),
)
def test_each_example_is_used_once_in_each_pass_and_none_twice_in_a_round(
    num_examples: dict[int, int], quotas: float | list[float]
) -> None:
    of_client: float | dict[int, float]
    of_client = (
        dict(zip(num_examples, quotas, strict=False)) if isinstance(quotas, list) else quotas
    )
    sampler = QuotaSampler(FixedLocalSampler(local_batch_size=7), of_client)
    used: Counter[tuple[int, int]] = Counter()
    rounds = 8
    for server_round in range(1, rounds + 1):
        try:
            schedule = sampler.schedule(num_examples, server_round)
        except ConfigError as error:
            assert "none of the" in str(error)  # a round in which everybody's part is empty
            continue
        assert schedule.starts is not None
        for key, size in schedule.totals.items():
            start, count = schedule.starts[key], num_examples[key]
            assert start // count == (start + size - 1) // count  # all of it in one pass
            used.update((key, position) for position in range(start, start + size))
            quota = of_client[key] if isinstance(of_client, dict) else of_client
            assert size <= math.ceil(quota * count)
    assert set(used.values()) <= {1}
    for key, count in num_examples.items():
        quota = of_client[key] if isinstance(of_client, dict) else of_client
        passed = rounds // math.ceil(1 / quota - 1e-9)
        assert {place for owner, place in used if owner == key} >= set(range(passed * count))


def test_the_parts_of_a_pass_are_nearly_equal() -> None:
    sampler = QuotaSampler(GlobalSampler(2), {4: 0.3})
    rounds = [sampler.schedule({4: 10, 9: 3}, server_round) for server_round in range(1, 6)]
    assert [schedule.totals for schedule in rounds] == [
        {4: part, 9: 3} for part in (2, 3, 2, 3, 2)
    ]
    assert [schedule.starts for schedule in rounds] == [
        {4: start, 9: 3 * number} for number, start in enumerate([0, 2, 5, 7, 10])
    ]


def test_quotas_of_one_leave_the_inner_sampler_as_it_is() -> None:
    num_examples = {2: 30, 5: 11, 7: 0}
    inner = GlobalSampler(8, seed=3)
    schedule = QuotaSampler(inner, 1).schedule(num_examples, 4)
    assert list(schedule) == list(inner.schedule(num_examples, 4))
    assert schedule.starts == {2: 90, 5: 33}


@pytest.mark.parametrize("parts", range(1, 200))
def test_the_reciprocal_of_a_whole_number_makes_as_many_parts(parts: int) -> None:
    schedule = QuotaSampler(GlobalSampler(1), 1 / parts).schedule({0: 3 * parts}, 1)
    assert schedule.totals == {0: 3}


def test_rounds_become_shorter_than_the_slowest_client_needs_for_all_its_data() -> None:
    num_examples = dict.fromkeys(range(10), 100)
    cost = CostModel({key: ClientCost(1.0 if key == 0 else 0.01) for key in num_examples})
    inner = GlobalSampler(50)
    without = round_seconds(inner.schedule(num_examples, 1), cost)
    limited = round_seconds(QuotaSampler(inner, {0: 0.1}).schedule(num_examples, 1), cost)
    assert without >= 100
    assert limited < 0.2 * without


@pytest.mark.parametrize("quota", [0.3, {0: 0.5, 2: 0.2}])
def test_client_weights_are_the_shares_of_the_examples_used(
    quota: float | Mapping[int, float],
) -> None:
    num_examples = {0: 40, 1: 25, 2: 15, 3: 0}
    sampler = QuotaSampler(GlobalSampler(5), quota)
    used: Counter[int] = Counter()
    for server_round in range(1, 61):  # whole passes of 1, 2, 4 and 5 rounds
        used.update(sampler.schedule(num_examples, server_round).totals)
    shares = {key: used[key] / used.total() for key in sorted(used)}
    assert sampler.client_weights(num_examples) == pytest.approx(shares)
    if quota == 0.3:
        assert shares == pytest.approx({0: 0.5, 1: 25 / 80, 2: 15 / 80})
    else:
        assert shares == pytest.approx({0: 20 / 48, 1: 25 / 48, 2: 3 / 48})


def test_it_is_a_value_that_names_its_sampler() -> None:
    sampler = QuotaSampler(GlobalSampler(8), {3: 0.5, 1: 1})
    assert sampler.name == "GPSL, quota"
    assert sampler == QuotaSampler(GlobalSampler(8), {1: 1.0, 3: 0.5})
    assert len({sampler, QuotaSampler(GlobalSampler(8), {1: 1.0, 3: 0.5})}) == 1
    assert len({QuotaSampler(GlobalSampler(8), 0.5), QuotaSampler(GlobalSampler(8), 0.25)}) == 2
    assert "quota={1: 1.0, 3: 0.5}" in repr(sampler)


def test_numpy_integers_do_not_overflow() -> None:
    small: Any = {0: np.uint8(250), 1: np.uint8(200)}
    sampler = QuotaSampler(GlobalSampler(8), 0.5)
    assert sampler.schedule(small, 9) == sampler.schedule({0: 250, 1: 200}, 9)


@pytest.mark.parametrize(
    ("quota", "said"),
    [
        (0, "quota is 0.0; it must be above 0.0: pass a larger one"),
        (1.5, "quota is 1.5; it must be at most 1.0: pass a smaller one"),
        ("half", "quota is 'half' (str); it must be a number: pass a float"),
        ({3: 0.0}, "quota of client 3 is 0.0; it must be above 0.0: pass a larger one"),
        ({-3: 0.5}, "client key is -3; it must be at least 0: pass a larger int"),
    ],
)
def test_invalid_quotas_are_refused(quota: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        QuotaSampler(GlobalSampler(8), quota)


def test_what_is_no_sampler_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"sampler is 'gpsl'; a quota needs a sampler .*: pass"):
        QuotaSampler("gpsl", 0.5)  # type: ignore[arg-type]


def test_rounds_that_cannot_be_planned_are_refused() -> None:
    sampler = QuotaSampler(GlobalSampler(8), {0: 0.5, 6: 0.5})
    with pytest.raises(ConfigError, match=r"quota names the clients \[6\], which .* \[0, 1\]: "):
        sampler.schedule({0: 20, 1: 3}, 1)
    with pytest.raises(ConfigError, match=r"quota names the clients \[6\]"):
        sampler.client_weights({0: 20, 1: 3})
    with pytest.raises(ConfigError, match="server_round is 0; it must be at least 1"):
        sampler.schedule({0: 20, 6: 3}, 0)
    with pytest.raises(ConfigError) as caught:
        sampler.schedule({0: 10, 6: 4}, 1)
    assert str(caught.value).startswith(
        "round 1, with the 7 of 14 examples that the quotas leave: batch_size is 8, but all "
    )
    assert str(caught.value).endswith("Or raise the quotas")
