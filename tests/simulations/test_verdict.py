import math
import re
from dataclasses import replace

import pytest

from flower_psl import PslError
from simulations.chaos import ChaosResult, chaos_problems
from simulations.killer import Aftermath, Kill
from simulations.load_log import Growth
from simulations.processes import ProcessLoad
from simulations.soak import SoakResult, soak_problems
from simulations.verdict import verdict

LOAD = ProcessLoad(resident_mb=100.0, threads=5, pool_threads=4, open_files=9)
SOAK = SoakResult(growths=[Growth("ServerApp", LOAD, LOAD)], steps=9, step_s=(0.2, 0.2))
AFTERMATH = Aftermath(kill=Kill(client_key=2, at=10.0, into_step=0.5), gap_s=25.0, away_s=70.0)
CHAOS = ChaosResult(aftermaths=[AFTERMATH], accuracy=0.97, undisturbed_accuracy=0.98)


def test_a_report_with_problems_is_an_error() -> None:
    assert verdict("all of it", []) == "all of it"
    with pytest.raises(PslError, match=r"(?s)^all of it\n.*\n\s*one\n\s*another$"):
        verdict("all of it", ["one", "another"])


@pytest.mark.parametrize(
    ("late", "text"),
    [
        ({"resident_mb": 105.1}, "ServerApp: 105 MB at the end and 100 at minute two; .* by 5%"),
        ({"resident_mb": 94.9}, "95 MB at the end"),
        ({"threads": 6}, "6 threads at the end and 5 at minute two; there may be 5"),
        ({"pool_threads": 9}, "9 threads of gRPC's pool at the end and 4 .*; there may be 8"),
        ({"open_files": 10}, "10 open files at the end and 9 at minute two"),
    ],
)
def test_what_grows_is_named(late: dict[str, float], text: str) -> None:
    grown = Growth("ServerApp", LOAD, replace(LOAD, **late))  # type: ignore[arg-type]
    [problem] = soak_problems(replace(SOAK, growths=[grown]))
    assert re.search(text, problem)


def test_what_comes_and_goes_is_no_growth() -> None:
    late = ProcessLoad(resident_mb=104.9, threads=4, pool_threads=8, open_files=9)
    result = replace(SOAK, growths=[Growth("ServerApp", LOAD, late)], step_s=(0.2, 0.29))
    assert soak_problems(result) == []


def test_steps_that_get_slower_are_named() -> None:
    [problem] = soak_problems(replace(SOAK, step_s=(0.2, 0.31)))
    assert "takes 0.310 s at the end and took 0.200 s" in problem


def test_failures_may_cost_a_bounded_time_and_a_point() -> None:
    assert chaos_problems(CHAOS, 20.0) == []
    slow = replace(AFTERMATH, gap_s=25.1)
    away = replace(AFTERMATH, away_s=math.inf)
    problems = chaos_problems(
        ChaosResult(aftermaths=[slow, away], accuracy=0.90, undisturbed_accuracy=0.98), 20.0
    )
    assert [re.split("[:;]", problem)[0] for problem in problems] == [
        "kill 1, of client 2",
        "kill 2, of client 2",
        "the accuracy is 0.9000 and without failures 0.9800",
    ]
    nothing = replace(CHAOS, accuracy=math.nan)
    assert len(chaos_problems(nothing, 20.0)) == 1
