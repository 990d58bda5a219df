from simulations.result_store import Row
from simulations.straggler_report import straggler_table


def _run(seed: int, accuracies: list[float]) -> list[Row]:
    return [
        {
            "regime": "latency",
            "method": "gpsl",
            "seed": seed,
            "round": number,
            "accuracy": accuracy,
            "time_s": 10.0 * number,
            "least_time_s": 4.0 * number,
            "deviation": 0.1,
        }
        for number, accuracy in enumerate(accuracies)
    ]


def test_the_target_is_reached_on_a_line_between_rounds() -> None:
    [row] = straggler_table([*_run(0, [0.0, 0.5, 0.9]), *_run(1, [0.0, 0.2, 0.6])], 0.7)
    assert row["round_s"] == 10
    assert row["least_s"] == 4
    assert row["target_s"] == 15
    assert row["reached"] == 1
    assert row["accuracy"] == 75


def test_a_target_that_nobody_reached() -> None:
    [row] = straggler_table(_run(0, [0.0, 0.5]), 0.7)
    assert row["target_s"] == "never"
    assert row["reached"] == 0
