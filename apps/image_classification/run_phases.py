"""A run: its phases one after the other, and what is kept of them as one."""

import copy
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from flwr.app import ArrayRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result
from torch import nn

from flower_psl import RunRecorder

from .centralized import train_centralized
from .config import AppConfig
from .data import ImageData
from .evaluation import central_evaluation
from .federated import train_federated
from .local_only import train_alone
from .methods import Trained
from .models import cut_of, initial_model
from .phase_recorder import PhaseRecorder
from .phase_run import PhaseRun
from .phases import Phase, run_name
from .split_learning import train_split

TRAININGS: dict[Trained, Callable[[PhaseRun], Result]] = {
    "split": train_split,
    "federated": train_federated,
    "local-only": train_alone,
    "centralized": train_centralized,
}


def run_phases(grid: Grid, config: AppConfig, images: ImageData) -> Result:
    """Run one phase after the other, each from the model that the one before it left.

    Returns
    -------
    Result
        The last arrays, and the metrics of all rounds, numbered through.

    Raises
    ------
    PslError
        If a phase cannot go on.
    """
    phases = config.parsed_phases
    model = initial_model(config.model, images.spec, config.seed)
    first = PhaseRun(
        grid=grid,
        config=config,
        phase=phases[0],
        images=images,
        model=model,
        evaluate_fn=central_evaluation(
            copy.deepcopy(model),
            images.test_set(),
            batch_size=config.evaluate_batch_size,
            device=config.device,
        ),
        recorder=RunRecorder(config.out) if config.out else None,
    )
    if len(phases) == 1 and phases[0].method.split is not None:
        return train_split(first)  # which keeps the records of a run by itself
    return _train_all(first, phases)


def _train_all(first: PhaseRun, phases: tuple[Phase, ...]) -> Result:
    """Train in phases; the model of `first` goes from one to the next."""
    config, model = first.config, first.model
    recorder = PhaseRecorder(config.out, _known(config, model, phases)) if config.out else None
    whole, rounds_before = Result(), 0
    try:
        for number, phase in enumerate(phases):
            if recorder is not None:
                recorder.rounds_before = rounds_before
            seeded = config.with_seed(_seed(config, number))
            run = replace(first, config=seeded, phase=phase, recorder=recorder)
            result = TRAININGS[phase.method.trained](run)
            if phase.leaves_a_whole_model:
                # Flower's strategies return whole numbers, as BatchNorm has, as floats.
                model.load_state_dict(result.arrays.to_torch_state_dict())
                result.arrays = ArrayRecord(model.state_dict())
            _append(whole, result, rounds_before)
            rounds_before += phase.num_rounds
        if recorder is not None:
            recorder.finish_run(whole.arrays.to_torch_state_dict())
    finally:
        if recorder is not None:
            recorder.close_run()
    return whole


def _known(config: AppConfig, model: nn.Module, phases: tuple[Phase, ...]) -> dict[str, object]:
    """Return what records say of the run as a whole."""
    samplers = [phase.method.split.sampler for phase in phases if phase.method.split]
    return {
        "method": run_name(config),
        "sampler": ", ".join(dict.fromkeys(samplers)) or "none",
        "cut": cut_of(model, config.model, config.cut) if samplers else "none",
        "rounds": sum(phase.num_rounds for phase in phases),
    }


def _seed(config: AppConfig, number: int) -> int:
    """Return the seed of a phase: no two of a run draw the same, and the first is the run's."""
    if not number:
        return config.seed
    return int(np.random.SeedSequence([config.seed, number]).generate_state(1, np.uint64)[0] >> 1)


def _append(whole: Result, part: Result, rounds_before: int) -> None:
    """Append the metrics of a phase; it begins with the model of a round that is there."""
    whole.arrays = part.arrays
    for known, added in (
        (whole.train_metrics_clientapp, part.train_metrics_clientapp),
        (whole.evaluate_metrics_clientapp, part.evaluate_metrics_clientapp),
        (whole.evaluate_metrics_serverapp, part.evaluate_metrics_serverapp),
    ):
        for server_round, metrics in added.items():
            if server_round or not rounds_before:
                known[rounds_before + server_round] = metrics
