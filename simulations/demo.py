"""The main job, end to end: ten simulated devices train a model that is cut in two."""

import json
import time
from pathlib import Path

from simulations.flower_simulation import FlowerSimulation

ROOT = Path(__file__).parent.parent

# Digits, Dirichlet(0.1), GPSL and B = 64 are the app's own defaults.
_NUM_CLIENTS = 10
_TIMEOUT_S = 600.0


def demo(out: Path) -> str:
    """Train on digits through `flwr run`, and return one line of results.

    Parameters
    ----------
    out : Path
        Folder of the results.

    Raises
    ------
    RuntimeError
        If the run failed.
    """
    started = time.monotonic()
    with FlowerSimulation(ROOT) as simulation:
        status, _ = simulation.run(
            {"out": str(out.resolve()), "min-available-nodes": _NUM_CLIENTS},
            num_supernodes=_NUM_CLIENTS,
            num_actors=2,
            timeout_s=_TIMEOUT_S,
        )
    if status != "finished:completed":
        raise RuntimeError(f"the demo's run ended as {status}; its log is above")
    summary = json.loads((out / "summary.json").read_text())
    return (
        f"demo: test accuracy {summary['final_accuracy']:.4f} after {summary['rounds']} rounds "
        f"({summary['steps']} steps, {summary['steps_per_second']:.1f} a second) in "
        f"{time.monotonic() - started:.0f} s; everything is in {out}"
    )
