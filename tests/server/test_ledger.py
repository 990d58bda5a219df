import json
from dataclasses import asdict, fields

from flower_psl.server.ledger import Ledger


def busy() -> Ledger:
    ledger = Ledger()
    ledger.start_round(3, {1: 20, 4: 10}, {1: 10, 4: 5})
    ledger.accept({1: 2, 4: 1}, loss=0.5)
    ledger.discard(3, bytes_up=70, bytes_down=30)
    ledger.redraws = 1
    ledger.failed[4] = "gone"
    ledger.out[4] = "gone"
    ledger.rests_until[4] = 2
    ledger.in_a_row[4] = 1
    ledger.offences[4] = 1
    ledger.failures[4] = {"unusable": 1}
    ledger.start_plan()
    return ledger


def test_it_is_plain_numbers() -> None:
    ledger = busy()
    assert all(getattr(ledger, part.name) for part in fields(ledger))
    assert json.loads(json.dumps(asdict(ledger)))["pool"] == {"1": 8, "4": 0}
    assert Ledger(**asdict(ledger)) == ledger


def test_a_plan_is_stale_once_it_asks_somebody_who_is_out() -> None:
    ledger = busy()
    assert not ledger.plan_is_stale
    ledger.out[1] = "gone"
    assert ledger.plan_is_stale


def test_a_plan_is_drawn_over_what_those_who_are_there_have_left() -> None:
    ledger = busy()
    assert (ledger.plan, ledger.plan_step) == (1, 1)
    assert ledger.pool == {1: 8, 4: 0}
    del ledger.out[4]
    ledger.start_plan()
    assert ledger.pool == {1: 8, 4: 4}


def test_a_step_moves_positions_and_a_discarded_one_does_not() -> None:
    ledger = busy()
    assert [ledger.position(key) for key in (1, 4)] == [22, 11]
    ledger.discard(8, bytes_up=1, bytes_down=2)
    assert [ledger.position(key) for key in (1, 4)] == [22, 11]
    assert ledger.redrawn == 11
    assert (ledger.discarded_bytes_up, ledger.discarded_bytes_down) == (71, 32)
    ledger.accept({4: 3}, loss=1.0)
    assert ledger.position(4) == 14
    assert ledger.loss_sum == 0.5 * 3 + 1.0 * 3
    assert ledger.in_a_row == {}


def test_a_round_begins_with_what_stays_of_the_one_before() -> None:
    ledger = busy()
    ledger.start_round(4, {1: 30, 4: 15}, {1: 10, 4: 5})
    assert (ledger.step, ledger.plan, ledger.redrawn, ledger.loss_sum) == (0, 0, 0, 0.0)
    assert ledger.used == {1: 0, 4: 0}
    assert (ledger.accepted_steps, ledger.out) == (1, {4: "gone"})
    assert ledger.failures == {4: {"unusable": 1}}
