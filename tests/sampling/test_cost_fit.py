import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls

from flower_psl.errors import ConfigError
from flower_psl.sampling.cost_fit import fit_costs

SAMPLES = st.lists(st.tuples(st.integers(1, 50), st.floats(0.0, 10.0)), min_size=1, max_size=12)


def write(path: Path, samples: list[tuple[int, float]]) -> Path:
    lines = (
        json.dumps({"clients": {"5": size}, "client_seconds": {"5": seconds}})
        for size, seconds in samples
    )
    path.write_text("\n".join(lines))
    return path


@settings(deadline=None)
@given(SAMPLES)
def test_the_fit_is_that_of_non_negative_least_squares(
    tmp_path_factory: pytest.TempPathFactory, samples: list[tuple[int, float]]
) -> None:
    path = write(tmp_path_factory.mktemp("fit") / "steps.jsonl", samples)
    found = np.array(fit_costs(path)[5])
    sizes, seconds = np.array(samples).T
    system = np.column_stack([sizes, np.ones(len(sizes))])
    assert (found >= 0).all()
    error = np.linalg.norm(system @ found - seconds)
    assert error == pytest.approx(nnls(system, seconds)[1], abs=1e-6)


def test_batches_of_one_size_are_counted_by_the_example(tmp_path: Path) -> None:
    path = write(tmp_path / "steps.jsonl", [(4, 1.0), (4, 3.0)])
    assert fit_costs(path) == {5: (0.5, 0.0)}


def test_untimed_parts_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    path.write_text(
        '{"clients": {"1": 2, "2": 9}, "client_seconds": {"1": 4.0}}\n'
        '{"clients": {"1": 3, "2": 3}, "client_seconds": {"2": 1.5}}\n'
    )
    assert fit_costs(path) == {1: (2.0, 0.0), 2: (0.5, 0.0)}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has no client_seconds for any client; an estimate needs each client in at least"),
        (
            '{"clients": {"1": 2, "3": 9, "2": 1}, "client_seconds": {"1": 4.0}}',
            "has no client_seconds for the clients 2, 3; an estimate needs each client in at leas",
        ),
        ("{", "line 1: '{' is no step record with clients and client_seconds (JSONDecodeError("),
        ('{"clients": {"1": 2}}', "is no step record with clients and client_seconds (KeyError("),
        ('{"clients": {"1": 2}, "client_seconds": 4}', "(AttributeError("),
        ('{"clients": {"1": 2}, "client_seconds": {"1": null}}', "(TypeError("),
    ],
)
def test_records_that_tell_no_costs_are_refused(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    path.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(said)):
        fit_costs(path)


def test_an_absent_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent.jsonl cannot be read .*; name the steps.jsonl"):
        fit_costs(tmp_path / "absent.jsonl")
