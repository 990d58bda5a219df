import copy
from typing import Any

import pytest

from flower_psl.server.checkpoints.ledger_state import LedgerState
from flower_psl.server.ledger import Ledger


def ledger() -> Ledger:
    ledger = Ledger()
    ledger.start_round(2, {0: 5, 3: 7}, {0: 5, 3: 7})
    ledger.accept({0: 2, 3: 3}, 0.5)
    ledger.out[3] = "late"
    ledger.start_plan()
    ledger.redraws, ledger.failed = 2, {3: "late"}
    return ledger


def test_a_ledger_comes_back_in_place() -> None:
    before, after = ledger(), Ledger()
    state = LedgerState(before, [0, 3]).state()
    expected = copy.deepcopy(before)
    before.accept({0: 1}, 0.25)
    LedgerState(after, [0, 3]).load_state(state)
    assert after == expected


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"step": -1}, "step is -1"),
        ({"step": 1.0}, "step is 1.0"),
        ({"plan": True}, "plan is True"),
        ({"loss_sum": "x"}, "loss_sum is 'x'"),
        ({"used": {0: 2}}, "used is"),
        ({"used": {0: 2, 3: 3, 4: 1}}, "used is"),
        ({"used": {0: 2, 3: "x"}}, "used is"),
        ({"used": {0: 2, 3: 8}}, "client 3 has used 8 of 7"),
        ({"out": {7: "late"}}, "out is"),
        ({"failed": {3: 1}}, "failed is"),
        ({"redraws": -1}, "redraws is -1"),
        ({"pool": None}, "pool is None"),
    ],
)
def test_entries_of_another_ledger_are_refused(changes: dict[str, Any], said: str) -> None:
    after = ledger()
    state = LedgerState(ledger(), [0, 3]).state()
    with pytest.raises(ValueError, match=said):
        LedgerState(after, [0, 3]).load_state(state | changes)
    assert after == ledger()


def test_a_plan_that_asks_who_is_out_is_stale() -> None:
    own = ledger()
    assert not own.plan_is_stale
    own.out[0] = "lost"
    assert own.plan_is_stale
