from typing import Any

import pytest

from flower_psl import ConfigError, FailurePolicy


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"step_timeout_s": "3"}, "step_timeout_s is '3'; it is a finite number above 0"),
        ({"step_timeout_s": None}, "step_timeout_s is None; it is a finite number above 0"),
        ({"step_timeout_s": float("inf")}, "step_timeout_s is inf"),
        ({"step_timeout_s": float("nan")}, "step_timeout_s is nan"),
        ({"quorum": 0.0}, "quorum is 0.0; it is the share of a step's examples .* at most 1"),
        ({"quorum": 1.5}, "quorum is 1.5"),
        ({"quorum": True}, "quorum is True"),
        ({"max_redraws": 0}, "max_redraws is 0; it is an integer of 1 or more"),
        ({"min_clients": 1.0}, "min_clients is 1.0"),
        ({"max_offences": True}, "max_offences is True"),
        ({"max_activation_norm": 0}, "max_activation_norm is 0; it is a finite number above 0"),
        ({"max_update_norm": float("inf")}, "max_update_norm is inf"),
    ],
)
def test_a_value_out_of_range_is_refused(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        FailurePolicy(**changes)


@pytest.mark.parametrize(
    ("quorum", "present", "suffices"),
    [
        (1.0, 8, True),
        (1.0, 7, False),
        (0.75, 6, True),
        (0.75, 5, False),
        (0.01, 0, False),
        (0.01, 1, True),
    ],
)
def test_a_quorum_is_a_share_of_the_examples(quorum: float, present: int, suffices: bool) -> None:
    assert FailurePolicy(quorum=quorum).suffices(present, 8) is suffices


def test_rounding_errors_do_not_cost_a_step() -> None:
    assert FailurePolicy(quorum=0.07).suffices(7, 100)
