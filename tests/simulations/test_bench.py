"""The plan of the benchmark, a run of each workload in process, and what is made of them."""

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from simulations.bench import MEMORY_THROUGHPUT, THROUGHPUT, VENUES, rows_of
from simulations.bench_app.workloads import WIDE_BATCHES, WORKLOADS
from simulations.bench_run import BenchRun, Measurement, measure
from simulations.bench_table import report

ROOT = Path(__file__).parents[2]
RUNS = [run for venue in VENUES for run in venue.runs]
STEPS_OF_DESIGN = [
    "in-process-step",
    "simulation-messages-step",
    "simulation-stream-step",
    "deployment-messages-step",
    "deployment-stream-step",
]


@pytest.fixture(scope="module")
def measured() -> Measurement:
    return measure(BenchRun("light", "light", "in-process", 2, 3), num_clients=2)


@pytest.fixture(scope="module")
def wide() -> Measurement:
    return measure(BenchRun("wide", "throughput", "in-process", 1, len(WIDE_BATCHES)), 2)


def slower(measured: Measurement, factor: float) -> Measurement:
    steps = [
        {**step, "seconds": step["seconds"] | {"total": factor * step["seconds"]["total"]}}
        for step in measured.steps
    ]
    return replace(measured, steps=steps)


def test_the_plan_has_the_five_steps_of_the_design() -> None:
    names = [run.name for run in RUNS]
    assert len(set(names)) == len(names)
    assert set(STEPS_OF_DESIGN) <= set(names)
    assert {run.workload for run in RUNS} <= set(WORKLOADS)


def test_what_goes_through_memory_is_measured_over_tls_too() -> None:
    runs = {run.name: run for run in RUNS}
    over_tls = {run.name for run in RUNS if not run.shared_memory}
    assert over_tls == {
        "deployment-stream-light-tls-step",
        "deployment-stream-2-peers-tls-step",
        "deployment-stream-8-peers-tls-step",
        THROUGHPUT,
    }
    for name in over_tls - {THROUGHPUT}:
        memory = runs[name.replace("-tls", "")]
        assert replace(runs[name], name=memory.name, shared_memory=True) == memory
    wide = replace(runs[THROUGHPUT], name=MEMORY_THROUGHPUT, shared_memory=True)
    assert wide == runs[MEMORY_THROUGHPUT]


def test_bytes_travel_at_the_best_throughput_of_their_way(
    measured: Measurement, wide: Measurement
) -> None:
    """Ten times as fast through memory here."""
    quick = [
        {**step, "seconds": step["seconds"] | {"transfer": step["seconds"]["transfer"] / 10}}
        for step in wide.steps
    ]
    slow = [{**step, "seconds": step["seconds"] | {"transfer": 3600.0}} for step in measured.steps]
    names = ("messages", "stream", "stream-light-tls", "stream-light")
    rows = {
        row.name: row
        for row in rows_of(
            {f"deployment-{name}-step": replace(measured, steps=slow) for name in names}
            | {THROUGHPUT: wide, MEMORY_THROUGHPUT: replace(wide, steps=quick)}
        )
    }
    messages, memory, tls, other = (
        rows[f"deployment-{name}-step"].parts_s["transfer"] for name in names
    )
    assert messages == tls == pytest.approx(10 * memory)
    assert other == memory


def test_the_quick_form_leaves_deployment_over_messages_out() -> None:
    quick = {run.name for run in RUNS if run.quick}
    assert {"in-process-step", "deployment-stream-step", THROUGHPUT} <= quick
    assert not any("messages" in name for name in quick)


def test_a_run_measures_both_sides_in_turns(measured: Measurement) -> None:
    assert [(step["round"], step["step"]) for step in measured.steps] == [
        (server_round, step) for server_round in (2, 3) for step in (1, 2, 3)
    ]
    assert {step["effective_batch_size"] for step in measured.steps} == {128}
    assert len(measured.rounds_s) == 2
    # At least five steps of the loop a round, however few the round has.
    assert len(measured.reference_s) == 10
    assert min(measured.reference_s) > 0
    total_s = sum(step["seconds"]["total"] for step in measured.steps)
    assert sum(measured.rounds_s) >= total_s


def test_light_clients_send_a_quarter_of_a_megabyte(measured: Measurement) -> None:
    weights = 4 * (8 * 1024 + 1024)
    labels, activations = 8 * 64, 4 * 64 * 1024
    assert {step["bytes_up"] for step in measured.steps} == {2 * (activations + labels + weights)}
    assert {step["bytes_down"] for step in measured.steps} == {2 * (activations + weights)}


def test_wide_steps_send_up_to_64_megabytes(wide: Measurement) -> None:
    activations = [step["bytes_down"] // 256_000 for step in wide.steps]
    assert activations == list(WIDE_BATCHES)
    assert [step["clients"] for step in wide.steps] == [{"0": size} for size in WIDE_BATCHES]


def test_a_run_that_is_repeated_has_the_steps_of_every_time(measured: Measurement) -> None:
    both = measure(BenchRun("light", "light", "in-process", 2, 3, repeats=2), num_clients=2)
    assert len(both.steps) == 2 * len(measured.steps)
    assert len(both.reference_s) == 2 * len(measured.reference_s)
    assert len(both.rounds_s) == 2 * len(measured.rounds_s)


def test_a_run_that_fails_says_which_and_shows_its_log() -> None:
    with pytest.raises(RuntimeError, match=r"light ended as finished:failed:\nno room"):
        measure(
            BenchRun("light", "light", "stream", 1, 1), 2, lambda _: ("finished:failed", "no room")
        )


def test_the_app_is_told_what_to_run() -> None:
    told: dict[str, int | str] = {}

    def run_app(config: dict[str, int | str]) -> tuple[str, str]:
        told.update(config)
        for name in ("steps.jsonl", "rounds.jsonl"):
            Path(str(config["out"]), name).write_text("")
        return "finished:completed", ""

    measure(BenchRun("a", "peer", "stream", 4, 7, overlap=True), 8, run_app)
    del told["out"]
    assert told == {
        "workload": "peer",
        "transport": "stream",
        "num-clients": 8,
        "num-rounds": 5,
        "steps-per-round": 7,
        "overlap": True,
        "shared-memory": True,
    }


def test_rows_compare_the_stream_with_messages_and_give_throughput(
    measured: Measurement, wide: Measurement
) -> None:
    rows = rows_of(
        {
            "in-process-step": measured,
            "simulation-messages-step": slower(measured, 3.0),
            "simulation-stream-step": measured,
            THROUGHPUT: wide,
            MEMORY_THROUGHPUT: wide,
        }
    )
    by_name = {row.name: row for row in rows}
    assert list(by_name)[:3] == STEPS_OF_DESIGN[:3]
    assert by_name["simulation-stream-step"].speedup_over_messages == pytest.approx(3.0)
    assert by_name["simulation-messages-step"].speedup_over_messages is None
    assert by_name["in-process-step"].parts_s["transfer"] == 0.0
    sizes = [row for row in rows if row.throughput_bytes_per_s is not None]
    assert [row.name for row in sizes] == [
        f"{name}-{256 * size}KB-step"
        for name in (THROUGHPUT, MEMORY_THROUGHPUT)
        for size in WIDE_BATCHES
    ]
    assert all((row.throughput_bytes_per_s or 0) > 0 for row in sizes)


def test_the_report_shows_every_row_and_the_machine(
    measured: Measurement, wide: Measurement
) -> None:
    rows = rows_of(
        {
            "deployment-messages-step": slower(measured, 2000.0),
            "deployment-stream-step": measured,
            THROUGHPUT: wide,
            MEMORY_THROUGHPUT: wide,
        }
    )
    steps, parts, sizes, machine = report(rows).split("\n\n")
    header, _, _, line = ([cell.strip() for cell in row.split("|")] for row in steps.splitlines())
    cells = dict(zip(header, line, strict=True))
    assert cells["a step of"] == "deployment-stream"
    assert cells["over messages"] == "2,000 times as long"
    assert "0.60" in parts.splitlines()[-1]
    assert "0.256 MB" in sizes.splitlines()[2]
    assert len(sizes.splitlines()) == 2 + 2 * len(WIDE_BATCHES)
    through = [line.split("|")[1].strip() for line in sizes.splitlines()[2:]]
    assert through == len(WIDE_BATCHES) * ["TLS"] + len(WIDE_BATCHES) * ["memory"]
    assert "Python 3." in machine
    assert "torch" in machine


def test_the_app_has_a_key_for_all_that_it_is_told() -> None:
    app = tomllib.loads((ROOT / "simulations" / "pyproject.toml").read_text())["tool"]["flwr"][
        "app"
    ]
    of_a_run = {"out", "workload", "num-rounds", "steps-per-round", "num-clients"}
    assert set(app["config"]) == {*of_a_run, "transport", "overlap", "shared-memory"}
    assert app["config"]["workload"] in WORKLOADS
