import math
from collections.abc import Callable
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flower_psl.errors import ConfigError
from flower_psl.sampling import (
    BatchLaw,
    DeviationEvent,
    HoeffdingBound,
    SerflingBound,
    largest_class_deviation,
    total_variation,
)

BOUND = SerflingBound(num_examples=1000, num_classes=10)
KINDS = st.sampled_from([SerflingBound, HoeffdingBound])
DELTAS = st.floats(1e-9, 0.999)


def bounds(num_examples: int = 10**7) -> st.SearchStrategy[SerflingBound]:
    return st.builds(
        lambda kind, **arguments: kind(**arguments),
        kind=KINDS,
        num_examples=st.integers(1, num_examples),
        num_classes=st.integers(2, 3000),
        event=st.sampled_from(DeviationEvent),
    )


@pytest.mark.parametrize(
    ("event", "union"),
    [("class-above", 1), ("class", 2), ("largest-class", 20), ("total-variation", 2**10 - 2)],
)
def test_the_bound_is_serflings_formula(event: DeviationEvent, union: int) -> None:
    bound = SerflingBound(num_examples=1000, num_classes=10, event=event)
    rho = 1 - (128 - 1) / 1000
    expected = union * math.exp(-2 * 128 * 0.3**2 / rho)
    assert bound.probability(128, 0.3) == pytest.approx(expected, rel=1e-12)
    assert bound.deviation(128, expected) == pytest.approx(0.3, rel=1e-12)
    hoeffding = HoeffdingBound(num_examples=1000, num_classes=10, event=event)
    expected = union * math.exp(-2 * 128 * 0.3**2)
    assert hoeffding.probability(128, 0.3) == pytest.approx(expected, rel=1e-12)


def test_bounds_that_say_nothing_are_one() -> None:
    assert BOUND.probability(2, 0.01) == 1
    assert BOUND.deviation(2, 0.01) == 1


def test_many_classes_do_not_overflow() -> None:
    bound = SerflingBound(num_examples=10**7, num_classes=3000)
    deviation = bound.deviation(10**5, 0.01)
    expected = math.log(2**3000 - 2) + math.log(100)  # math.log takes integers of any size
    assert deviation**2 == pytest.approx(expected * (1 - (10**5 - 1) / 10**7) / (2 * 10**5))


@settings(deadline=None)
@given(bounds(), DELTAS, st.data())
def test_deviation_inverts_probability(
    bound: SerflingBound, delta: float, data: st.DataObject
) -> None:
    size = data.draw(st.integers(1, bound.num_examples))
    deviation = bound.deviation(size, delta)
    if deviation < 1:
        assert bound.probability(size, deviation) == pytest.approx(delta, rel=1e-9)
    else:
        assert bound.probability(size, 1.0) >= delta * (1 - 1e-9)


@settings(deadline=None)
@given(bounds(), DELTAS, st.floats(1e-4, 1.5))
def test_batch_size_is_the_smallest_that_will_do(
    bound: SerflingBound, delta: float, deviation: float
) -> None:
    size = bound.batch_size(deviation, delta)
    assert 1 <= size <= bound.num_examples
    if size < bound.num_examples:
        assert bound.probability(size, deviation) <= delta * (1 + 1e-9)
    if size > 1:
        assert bound.probability(size - 1, deviation) > delta * (1 - 1e-9)


def test_batch_size_of_every_small_pool_by_trial() -> None:
    for num_examples, deviation, delta in product(range(1, 40), (0.05, 0.2, 0.7), (0.01, 0.4)):
        bound = SerflingBound(num_examples=num_examples, num_classes=3)
        fitting = [
            size
            for size in range(1, num_examples + 1)
            if bound.probability(size, deviation) <= delta
        ]
        assert bound.batch_size(deviation, delta) == min(fitting, default=num_examples)


def test_serfling_never_asks_for_more_than_hoeffding() -> None:
    pools = {n: SerflingBound(num_examples=n, num_classes=10) for n in (100, 1000, 10**6)}
    serfling = {n: bound.batch_size(0.1, 0.05) for n, bound in pools.items()}
    hoeffding = HoeffdingBound(num_examples=10**6, num_classes=10).batch_size(0.1, 0.05)
    assert hoeffding == math.ceil(math.log((2**10 - 2) / 0.05) / (2 * 0.1**2)) == 497
    assert serfling[100] < serfling[1000] < serfling[10**6] == hoeffding
    for size in (1, 50, 100):
        small = HoeffdingBound(num_examples=100, num_classes=10)
        assert pools[100].deviation(size, 0.05) <= small.deviation(size, 0.05)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_the_exact_tail_of_a_class_is_never_above_the_bound(data: st.DataObject) -> None:
    marked, others = data.draw(st.integers(1, 60)), data.draw(st.integers(1, 60))
    total = marked + others
    size = data.draw(st.integers(1, total))
    counts, law = BatchLaw.of_uniform_draw([marked, others], size).class_law(0)
    deviations = counts / size - marked / total
    above = SerflingBound(num_examples=total, num_classes=2, event=DeviationEvent.CLASS_ABOVE)
    either = SerflingBound(num_examples=total, num_classes=2, event=DeviationEvent.CLASS)
    for deviation in np.abs(deviations)[np.abs(deviations) > 1e-9]:
        least = deviation - 1e-12
        for one_sided in (deviations >= least, deviations <= -least):
            assert law[one_sided].sum() <= above.probability(size, deviation) + 1e-12
        both = law[np.abs(deviations) >= least].sum()
        assert both <= either.probability(size, deviation) + 1e-12


@settings(deadline=None)
@given(st.lists(st.integers(1, 300), min_size=2, max_size=4), DELTAS, st.data())
def test_the_exact_quantile_of_a_class_is_never_above_the_bound(
    pooled: list[int], delta: float, data: st.DataObject
) -> None:
    size = data.draw(st.integers(1, sum(pooled)))
    bound = SerflingBound(
        num_examples=sum(pooled), num_classes=len(pooled), event=DeviationEvent.CLASS
    )
    law = BatchLaw.of_uniform_draw(pooled, size)
    for label in range(len(pooled)):
        assert law.class_quantile(label, delta) <= bound.deviation(size, delta) + 1e-12


@pytest.mark.parametrize("event", ["largest-class", "total-variation"])
@pytest.mark.parametrize("size", [2, 5, 9, 14])
def test_exact_tails_over_all_classes_are_never_above_the_bound(
    event: DeviationEvent, size: int
) -> None:
    pooled, total = (7, 5, 3), 15
    measure = largest_class_deviation if event == "largest-class" else total_variation
    bound = SerflingBound(num_examples=total, num_classes=3, event=event)
    law: list[tuple[float, Fraction]] = []
    for batch in product(*(range(count + 1) for count in pooled)):
        if sum(batch) == size:
            ways = math.prod(math.comb(m, x) for m, x in zip(pooled, batch, strict=True))
            deviations = np.array(batch) / size - np.array(pooled) / total
            law.append((float(measure(deviations)), Fraction(ways, math.comb(total, size))))
    assert sum(weight for _, weight in law) == 1
    for deviation, _ in law:
        if deviation > 0:
            tail = sum(weight for other, weight in law if other >= deviation - 1e-12)
            assert tail <= bound.probability(size, deviation) + 1e-12


@pytest.mark.parametrize(
    ("call", "found", "remedy"),
    [
        (lambda: BOUND.probability(1001, 0.1), "batch_size is 1001, but", "batch_size <= 1000"),
        (lambda: BOUND.deviation(1001, 0.1), "batch_size is 1001, but", "batch_size <= 1000"),
        (lambda: BOUND.probability(0, 0.1), "batch_size is 0; it must be at least 1", "larger"),
        (lambda: BOUND.probability(8, 0.0), "deviation is 0.0; ", "must be above 0: pass for"),
        (lambda: BOUND.probability(8, math.nan), "deviation is nan; ", "must be above 0: pass"),
        (lambda: BOUND.batch_size(-1, 0.1), "deviation is -1; ", "must be above 0: pass for"),
        (
            lambda: BOUND.deviation(8, 0.0),
            "delta is 0.0; ",
            "between 0 and 1, both excluded: pass",
        ),
        (lambda: BOUND.batch_size(0.1, 1), "delta is 1; ", "between 0 and 1, both excluded: pass"),
        (
            lambda: SerflingBound(num_examples=0, num_classes=2),
            "num_examples is 0; it must be at least 1",
            "pass a larger int",
        ),
        (
            lambda: SerflingBound(num_examples=9, num_classes=1),
            "num_classes is 1; it must be at least 2",
            "pass a larger int",
        ),
        (
            lambda: HoeffdingBound(num_examples=9, num_classes=2, event="tv"),  # type: ignore[arg-type]
            "event is 'tv'; there is no such event",
            "choose from class-above, class, largest-class, total-variation",
        ),
    ],
)
def test_bad_arguments_are_refused(call: Callable[[], object], found: str, remedy: str) -> None:
    with pytest.raises(ConfigError) as caught:
        call()
    assert str(caught.value).startswith(found)
    assert remedy in str(caught.value)
