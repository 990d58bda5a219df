"""One row of the benchmark's results, from a run's records."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from simulations.bench_run import Measurement

Step = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class BenchRow:
    """A step of split training beside a step of the plain loop; times are in seconds.

    Attributes
    ----------
    name : str
        What was measured.
    ours_s, reference_s : float
        Median seconds of a step of split training, and of the plain loop on the same
        global batches. Rounds of both alternate.
    ratio : float
        ``ours_s / reference_s``.
    runs : int
        How many steps ``ours_s`` is the median of.
    p95_s : float
        95th percentile of the seconds of a step.
    beyond_compute_s : float
        ``ours_s - reference_s``: what a step costs beyond the compute that one thread
        would need for it. Below zero where several processes compute at once.
    parts_s : mapping of str to float
        Medians of what a step's seconds went into, see `parts_of`.
    bytes_up, bytes_down : int
        Mean bytes of tensors that travel in a step.
    examples_per_s, reference_examples_per_s : float
        Examples a second over whole rounds, what happens between steps included, and of
        the plain loop.
    throughput_bytes_per_s : float or None
        Bytes up and down over the seconds of the two exchanges in which the client did
        not compute, for what measures the transport; its packing and unpacking count.
    speedup_over_messages : float or None
        The same step over Flower messages, as a multiple of ``ours_s``.
    """

    name: str
    ours_s: float
    reference_s: float
    ratio: float
    runs: int
    p95_s: float
    beyond_compute_s: float
    parts_s: Mapping[str, float]
    bytes_up: int
    bytes_down: int
    examples_per_s: float
    reference_examples_per_s: float
    throughput_bytes_per_s: float | None = None
    speedup_over_messages: float | None = None


def row_of(name: str, measured: Measurement, best_bytes_per_s: float) -> BenchRow:
    """Return the row of a run.

    Parameters
    ----------
    name : str
        The row's name.
    measured : Measurement
        The run.
    best_bytes_per_s : float
        The best throughput of a transport on this machine; infinite if no byte travels.
    """
    steps = measured.steps
    total_s = [step["seconds"]["total"] for step in steps]
    ours_s, reference_s = statistics.median(total_s), statistics.median(measured.reference_s)
    parts = [parts_of(step, best_bytes_per_s) for step in steps]
    examples = [step["effective_batch_size"] for step in steps]
    return BenchRow(
        name=name,
        ours_s=ours_s,
        reference_s=reference_s,
        ratio=ours_s / reference_s,
        runs=len(steps),
        p95_s=float(np.percentile(total_s, 95)),
        beyond_compute_s=ours_s - reference_s,
        parts_s={part: statistics.median(each[part] for each in parts) for part in parts[0]},
        bytes_up=round(statistics.mean(step["bytes_up"] for step in steps)),
        bytes_down=round(statistics.mean(step["bytes_down"] for step in steps)),
        examples_per_s=sum(examples) / sum(measured.rounds_s),
        reference_examples_per_s=statistics.mean(examples) / statistics.mean(measured.reference_s),
    )


def parts_of(step: Step, best_bytes_per_s: float) -> dict[str, float]:
    """Return what a step's seconds went into; the parts add up to its phases.

    ``compute``
        Both passes of the server, the update, and the compute of the slowest client.
    ``encoding``
        Encoding and decoding of tensors, on the server and on the slowest client.
    ``transfer``
        The bytes at the best throughput that was measured over the stream on this machine:
        no step could move them faster. Over Flower messages the same throughput is taken,
        since nothing else of an exchange of theirs can be told from waiting.
    ``waiting``
        The rest of the exchanges: for clients that share a process or a core, for a poll,
        for the latency of small messages.

    Parameters
    ----------
    step : mapping
        A line of ``steps.jsonl``.
    best_bytes_per_s : float
        As for `row_of`.
    """
    seconds = step["seconds"]
    travels_s = min(
        (step["bytes_up"] + step["bytes_down"]) / best_bytes_per_s, seconds["transfer"]
    )
    return {
        "waiting": seconds["transfer"] - travels_s,
        "encoding": seconds["encode"] + seconds["decode"] + seconds["client_encode"],
        "transfer": travels_s,
        "compute": seconds["client_compute"]
        + seconds["server_forward"]
        + seconds["server_backward"]
        + seconds["update"],
    }


def throughput(steps: Sequence[Step]) -> float:
    """Return bytes up and down a second of the exchanges of one client's steps, a median."""
    rates: list[float] = [
        (step["bytes_up"] + step["bytes_down"]) / step["seconds"]["transfer"] for step in steps
    ]
    return statistics.median(rates)
