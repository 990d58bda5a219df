"""What holds for every sampler."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flower_psl.errors import ConfigError
from flower_psl.sampling import (
    BalancedSampler,
    BatchSchedule,
    ClientCost,
    CostModel,
    FixedLocalSampler,
    GlobalSampler,
    LatentDirichletSampler,
    ProportionalLocalSampler,
    QuotaSampler,
    Sampler,
    SequentialSampler,
    StragglerSampler,
)

BY_BATCH_SIZE: dict[str, Callable[[int], Sampler]] = {
    "global": GlobalSampler,
    "global by chunks": lambda size: GlobalSampler(
        size, min_client_batch=max(1, (int(size) + 1) // 2)
    ),
    "fixed": lambda size: FixedLocalSampler(batch_size=size),
    "proportional": ProportionalLocalSampler,
    "sequential": SequentialSampler,
    "balanced": BalancedSampler,
    "straggler": lambda size: StragglerSampler(batch_size=size, participation=0.5, slow=()),
    "latent dirichlet": lambda size: LatentDirichletSampler(batch_size=size, concentration=2.0),
}
SAMPLERS: dict[str, Callable[[int], Sampler]] = {
    **BY_BATCH_SIZE,
    "local": lambda size: FixedLocalSampler(local_batch_size=size),
}
every_sampler = pytest.mark.parametrize("sampler_of", SAMPLERS.values(), ids=SAMPLERS)
every_global_size = pytest.mark.parametrize(
    "sampler_of", BY_BATCH_SIZE.values(), ids=BY_BATCH_SIZE
)

NUM_EXAMPLES = st.dictionaries(st.integers(0, 2**63), st.integers(0, 60), max_size=8).filter(
    lambda num_examples: any(num_examples.values())
)


@every_sampler
@settings(deadline=None, max_examples=60)
@given(NUM_EXAMPLES, st.data())
def test_every_example_is_used_once_a_round(
    sampler_of: Callable[[int], Sampler], num_examples: dict[int, int], data: st.DataObject
) -> None:
    size = data.draw(st.integers(1, sum(num_examples.values())))
    before = dict(num_examples)
    schedule = sampler_of(size).schedule(num_examples, data.draw(st.integers(0, 9)))
    assert num_examples == before
    with_data = {key: count for key, count in num_examples.items() if count}
    given_in_all = dict.fromkeys(with_data, 0)
    for step in schedule:
        assert list(step) == sorted(step)
        for key, batch in step.items():
            assert batch > 0
            given_in_all[key] += batch
    assert given_in_all == schedule.totals == with_data


@every_sampler
def test_the_order_of_the_mapping_does_not_matter(sampler_of: Callable[[int], Sampler]) -> None:
    num_examples = {4: 20, 1: 7, 2**63: 13, 2: 0}
    turned = dict(reversed(num_examples.items()))
    without_empty = {key: count for key, count in num_examples.items() if count}
    sampler = sampler_of(9)
    schedule = sampler.schedule(num_examples, 3)
    assert schedule == sampler.schedule(turned, 3) == sampler.schedule(without_empty, 3)


@every_sampler
def test_schedules_repeat(sampler_of: Callable[[int], Sampler]) -> None:
    num_examples = {0: 20, 1: 7}
    sampler = sampler_of(5)
    first = sampler.schedule(num_examples, 2)
    sampler.schedule(num_examples, 3)
    assert first == sampler.schedule(num_examples, 2) == sampler_of(5).schedule(num_examples, 2)


@every_sampler
def test_samplers_are_values(sampler_of: Callable[[int], Sampler]) -> None:
    assert sampler_of(5) == sampler_of(5)
    assert len({sampler_of(5), sampler_of(5), sampler_of(6)}) == 2
    with pytest.raises(FrozenInstanceError):
        sampler_of(5).batch_size = 6  # type: ignore[attr-defined]


@every_sampler
@pytest.mark.parametrize(
    ("size", "said"),
    [
        (0, "0; it must be at least 1: pass a larger int"),
        (-3, "-3; it must be at least 1"),
        (2.0, "2.0 (float); it must be a whole number: pass an int"),
        (True, "True (bool); it must be a whole number"),
    ],
)
def test_invalid_sizes_are_refused(
    sampler_of: Callable[[int], Sampler], size: int, said: str
) -> None:
    with pytest.raises(ConfigError, match=rf"^(local_)?batch_size is {re.escape(said)}"):
        sampler_of(size)


@every_global_size
def test_a_batch_beyond_the_data_is_refused(sampler_of: Callable[[int], Sampler]) -> None:
    sampler = sampler_of(8)
    assert sampler.schedule({0: 4, 1: 4}, 0).num_examples == 8
    with pytest.raises(ConfigError, match=r"batch_size is 8, .* 7 examples; .* batch_size <= 7"):
        sampler.schedule({0: 4, 1: 3}, 0)


@every_sampler
@pytest.mark.parametrize(
    ("num_examples", "server_round", "said"),
    [
        ({}, 0, "none of the 0 clients has an example"),
        ({0: 0}, 0, "none of the 1 clients has an example"),
        ({0: 9, 1: -1}, 0, "client 1: the number of examples is -1; it must be at least 0"),
        ({0: 9, 1: 2.0}, 0, "client 1: the number of examples is 2.0 (float)"),
        ({0: 9}, -1, "server_round is -1; it must be at least 0: pass a larger int"),
        ({0: 9}, 1.0, "server_round is 1.0 (float); it must be a whole number"),
        ({0: 9}, True, "server_round is True (bool)"),
    ],
)
def test_invalid_arguments_of_schedule_are_refused(
    sampler_of: Callable[[int], Sampler],
    num_examples: dict[int, int],
    server_round: int,
    said: str,
) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        sampler_of(3).schedule(num_examples, server_round)


@every_sampler
def test_numpy_integers_are_welcome_and_do_not_overflow(
    sampler_of: Callable[[int], Sampler],
) -> None:
    small: Any = {np.uint8(0): np.uint8(250), np.uint8(1): np.uint8(250)}
    size: Any = np.uint8(200)
    server_round: Any = np.uint8(1)
    schedule = sampler_of(size).schedule(small, server_round)
    assert schedule == sampler_of(200).schedule({0: 250, 1: 250}, 1)


def test_names_are_those_of_the_paper_where_it_has_one() -> None:
    assert [sampler_of(3).name for sampler_of in SAMPLERS.values()] == [
        "GPSL", "GPSL", "FLS", "FPLS", "SL", "balanced", "straggler", "LDS", "FLS",
    ]  # fmt: skip


def test_users_write_their_own() -> None:
    class OnceEach(Sampler):
        def schedule(self, num_examples: Mapping[int, int], server_round: int) -> BatchSchedule:
            return BatchSchedule.from_steps([dict.fromkeys(num_examples, 1)], num_examples)

    assert list(OnceEach().schedule({3: 5, 1: 2}, 0)) == [{1: 1, 3: 1}]
    assert OnceEach.name == "custom"
    with pytest.raises(TypeError, match="abstract"):
        Sampler()  # type: ignore[abstract]


def test_records_say_what_a_sampler_needs_beside_its_name() -> None:
    costs = CostModel({0: ClientCost(0.1), 1: ClientCost(0.1), 2: ClientCost(0.1, 3.0)})
    straggler = StragglerSampler(batch_size=2, participation=0.5, cost=costs)
    num_examples = {0: 4, 1: 4, 2: 2}
    assert GlobalSampler(batch_size=2).details(num_examples) == {}
    expected = {"participation": 0.5, "slow_clients": [2], "costs": costs.to_json()}
    assert straggler.details(num_examples) == expected
    weights = {"0": 0.25, "1": 0.5, "2": 0.25}
    assert QuotaSampler(straggler, {0: 0.5}).details(num_examples) == {
        **expected,
        "client_weights": weights,
    }
    assert json.loads(json.dumps(expected)) == expected
