"""Estimating the costs of clients from the step records of an earlier run."""

import json
from collections import defaultdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flower_psl.errors import ConfigError


def fit_costs(path: Path) -> dict[int, tuple[float, float]]:
    """Return client key to (seconds per example, seconds per participation).

    Parameters
    ----------
    path : Path
        A ``steps.jsonl``; see `CostModel.from_steps`.

    Raises
    ------
    ConfigError
        If the file cannot be read, is no such file, or never times a client.
    """
    timed: dict[int, list[tuple[int, float]]] = defaultdict(list)
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                _add_step(f"{path}, line {number}", line, timed)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"the steps in {path} cannot be read ({error}); name the steps.jsonl of a run"
        ) from error
    never = sorted(key for key, samples in timed.items() if not samples)
    if never or not timed:
        who = f"the clients {', '.join(map(str, never))}" if never else "any client"
        raise ConfigError(
            f"{path} has no client_seconds for {who}; an estimate needs each client in at least "
            "one step: use the records of a longer run, or give the costs yourself"
        )
    return {key: _fit(np.array(samples)) for key, samples in timed.items()}


def _add_step(where: str, line: str, timed: dict[int, list[tuple[int, float]]]) -> None:
    try:
        record = json.loads(line)
        seconds = {int(key): float(value) for key, value in record["client_seconds"].items()}
        sizes = {int(key): int(size) for key, size in record["clients"].items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(
            f"{where}: {line[:80].strip()!r} is no step record with clients and client_seconds "
            f"({error!r}); name the steps.jsonl of a run that timed its clients"
        ) from error
    for key, size in sizes.items():
        samples = timed[key]  # known from here on, timed or not
        if key in seconds:
            samples.append((size, seconds[key]))


def _fit(samples: NDArray[np.float64]) -> tuple[float, float]:
    """Minimize the squared error of l + b tau over tau, l >= 0; samples: (N, 2) of b, seconds."""
    sizes, seconds = samples.T
    mean_size, mean_seconds = samples.mean(axis=0)
    spread = ((sizes - mean_size) ** 2).sum()
    slope_only = (float(sizes @ seconds / (sizes @ sizes)), 0.0)
    if spread == 0:
        return slope_only
    tau = float((sizes - mean_size) @ (seconds - mean_seconds) / spread)
    fixed = float(mean_seconds - tau * mean_size)
    if fixed < 0:
        return slope_only
    # The error is convex, so with tau < 0 the best point of the allowed has tau = 0.
    return (tau, fixed) if tau >= 0 else (0.0, float(mean_seconds))
