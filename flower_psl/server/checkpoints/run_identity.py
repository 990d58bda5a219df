"""What a run must have in common with the checkpoint that it goes on from."""

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import is_dataclass
from itertools import islice
from typing import TYPE_CHECKING

import torch

from flower_psl.errors import CheckpointError
from flower_psl.sampling import BatchSchedule
from flower_psl.server.checkpoints.kind_of import kind_of
from flower_psl.server.flower_strategy_state import strategy_kind
from flower_psl.split import SplitModel
from flower_psl.telemetry import versions
from flower_psl.wire import segment_spec

if TYPE_CHECKING:
    from flower_psl.server.strategy import ParallelSplitLearning

_LOG = logging.getLogger("flwr.psl")

Identity = dict[str, str | int | float | None]

_SETTINGS = (
    "client_sync",
    "server_update",
    "overlap",
    "seed",
    "max_grad_norm",
    "steps_per_round",
)
_OWN_VERSION = "flower-psl"
_MOST_DIFFERENCES = 5
# A schedule that is another one differs in its first steps.
_FIRST_STEPS = 100


def identity_of(
    strategy: "ParallelSplitLearning",
    model: SplitModel,
    recipe: Mapping[str, str],
    num_examples: Mapping[int, int],
    total_steps: int,
) -> Identity:
    """Return what a run is: all that its weights after so many steps hang on.

    Parameters
    ----------
    strategy : ParallelSplitLearning
        The run's settings.
    model : SplitModel
        Its model.
    recipe : mapping of str to str
        What its optimizer and learning-rate schedule are.
    num_examples : mapping of int to int
        Examples by client key.
    total_steps : int
        The steps that a learning-rate schedule was made for.
    """
    return {
        # What a saved value means is the code's to say, and another version may differ.
        _OWN_VERSION: versions()[_OWN_VERSION],
        **model_identity(model),
        **sampler_identity(strategy.sampler, strategy.sampler.schedule(num_examples, 1)),
        **recipe,
        **({} if strategy.lr_scheduler_fn is None else {"steps of the schedule": total_steps}),
        "loss": kind_of(strategy.loss_fn),
        "client_strategy": strategy_kind(strategy.client_strategy),
        "encodings": repr(strategy.encodings),
        **{name: getattr(strategy, name) for name in _SETTINGS},
    }


def model_identity(model: SplitModel) -> Identity:
    """Return what a model is, by its tensors and its cut."""
    parts = (model.client, model.server)
    named = [each for part in parts for each in (*part.named_parameters(), *part.named_buffers())]
    tensors = {f"tensor {name}": str(spec) for name, spec in segment_spec(named).items()}
    return {"cut": model.at, **tensors}


def sampler_identity(sampler: object, first_round: BatchSchedule) -> Identity:
    """Return what a sampler is, by its arguments and what it plans."""
    digest = hashlib.sha256()
    for step in islice(first_round, _FIRST_STEPS):
        digest.update(repr(dict(step)).encode())
    return {
        "sampler": repr(sampler) if is_dataclass(sampler) else type(sampler).__name__,
        "schedule of round 1": f"{len(first_round)} steps, {digest.hexdigest()[:12]}",
    }


def check_identity(saved: Mapping[str, object], own: Identity) -> None:
    """Refuse the checkpoint of another run, and say what differs.

    Parameters
    ----------
    saved, own : mapping of str to value
        What the run of the checkpoint was, and what this one is.

    Raises
    ------
    CheckpointError
        If anything differs.
    """
    different = [
        f"{name} is {_shown(saved, name)} there and {_shown(own, name)} here"
        for name in {**saved, **own}
        if name not in saved or name not in own or saved[name] != own[name]
    ]
    if different:
        more = len(different) - _MOST_DIFFERENCES
        shown = "; ".join(different[:_MOST_DIFFERENCES]) + (f"; and {more} more" * (more > 0))
        raise CheckpointError(
            f"the checkpoint is that of another run: {shown}. A run goes on as it began: give it "
            "the same, or begin anew in another folder."
        )


def environment(device: torch.device) -> Identity:
    """Return what can change the last bits of a run beside itself."""
    packages = {name: version for name, version in versions().items() if name != _OWN_VERSION}
    return {**packages, "torch threads": torch.get_num_threads(), "device": str(device)}


def warn_of_changes(saved: Mapping[str, object], own: Identity) -> None:
    """Log what is not as it was when a run was saved, but does not keep it from going on."""
    for name in own:
        if saved.get(name) != own[name]:
            _LOG.warning(
                "%s was %s when the run was saved and is %s now: it goes on, but may not end with "
                "the bits that it would have had",
                name,
                saved.get(name),
                own[name],
            )


def _shown(values: Mapping[str, object], name: str) -> str:
    return repr(values[name]) if name in values else "missing"
