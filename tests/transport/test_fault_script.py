from collections import Counter
from typing import Any

import pytest

from flower_psl import ConfigError
from flower_psl.transport.corruptions import Corruption
from flower_psl.transport.fault_script import Fault, FaultScript


def faults(script: FaultScript, calls: int = 400) -> list[Fault | None]:
    return [script.fault(call, script.draws(call, 7)) for call in range(1, calls + 1)]


def test_the_same_seed_draws_the_same_and_another_seed_does_not() -> None:
    one = faults(FaultScript(seed=3, rate=0.5))
    assert one == faults(FaultScript(seed=3, rate=0.5))
    assert one != faults(FaultScript(seed=4, rate=0.5))


def test_all_faults_happen_at_the_rate() -> None:
    script = FaultScript(seed=0, rate=0.5)
    counts = Counter(faults(script, calls=2000))
    assert 900 <= counts.pop(None) <= 1100
    assert counts.keys() == set(Fault)
    assert min(counts.values()) >= 80
    draws = [script.corruption(script.draws(call, 7)) for call in range(200)]
    assert set(draws) == set(Corruption)
    absences = {script.absence(script.draws(call, 7)) for call in range(200)}
    assert absences == {1, 2, 3, 4}


def test_only_what_is_named_happens_and_not_in_the_quiet_calls() -> None:
    script = FaultScript(
        seed=0,
        rate=1.0,
        faults=(Fault.KILL,),
        corruptions=(Corruption.NAN,),
        longest_absence=1,
        quiet_calls=2,
    )
    assert faults(script, 5) == [None, None, Fault.KILL, Fault.KILL, Fault.KILL]
    assert script.corruption(script.draws(1, 7)) is Corruption.NAN
    assert script.absence(script.draws(1, 7)) == 1


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"rate": 1.5}, r"rate is 1\.5; a probability is from 0 to 1"),
        ({"rate": float("nan")}, "rate is nan; a probability"),
        ({"seed": -1}, "seed is -1; it is 0 or more"),
        ({"longest_absence": 0}, "longest_absence is 0; it is 1 or more"),
        ({"quiet_calls": -2}, "quiet_calls is -2; it is 0 or more"),
        ({"faults": ()}, "faults is empty; name one or more, or leave it out"),
        ({"corruptions": ()}, "corruptions is empty; name one or more"),
    ],
)
def test_values_that_break_a_rule_are_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        FaultScript(**{"seed": 0, "rate": 0.1, **values})
