"""Training over the cut."""

from dataclasses import replace
from functools import partial

from flwr.serverapp.strategy import Result
from torch import nn

from flower_psl import (
    Checkpoints,
    Encodings,
    FailurePolicy,
    ParallelSplitLearning,
    RunRecorder,
    StreamSettings,
    cut,
)

from .config import AppConfig
from .flower_strategies import FLOWER_STRATEGIES
from .methods import Split
from .models import cut_of
from .optimizers import OPTIMIZERS, SCHEDULES
from .phase_run import PhaseRun
from .phases import run_name
from .samplers import SAMPLERS


def train_split(run: PhaseRun) -> Result:
    """Train over the cut; without a whole model, devices evaluate and the server does not.

    Raises
    ------
    PslError
        If the run cannot go on.
    """
    split = run.phase.method.split or Split()
    strategy = replace(build_strategy(run.config, run.model, split), recorder=run.recorder)
    return strategy.start(
        grid=run.grid,
        initial_arrays=run.arrays,
        num_rounds=run.phase.num_rounds,
        evaluate_fn=run.evaluate_fn if run.phase.leaves_a_whole_model else None,
    )


def build_strategy(
    config: AppConfig, model: nn.Module, split: Split | None = None
) -> ParallelSplitLearning:
    """Build the strategy that a configuration describes.

    Parameters
    ----------
    config : AppConfig
    model : nn.Module
        The whole model, with its initial weights.
    split : Split, optional
        What the method says of it; that of the run's first phase unless given.

    Raises
    ------
    CutError
        If the model cannot be cut where the configuration says.
    """
    split = split or config.parsed_phases[0].method.split or Split()
    make_strategy = FLOWER_STRATEGIES.get(split.client_strategy)
    return ParallelSplitLearning(
        model=cut(model, at=cut_of(model, config.model, config.cut)),
        model_name=config.model,
        method=run_name(config),
        sampler=SAMPLERS[split.sampler](config),
        client_sync=split.client_sync,
        client_strategy=make_strategy and make_strategy(config),
        server_update=split.server_update,
        overlap=config.overlap and split.client_sync == "step",
        loss_fn=nn.CrossEntropyLoss(label_smoothing=config.label_smoothing),
        optimizer_fn=partial(OPTIMIZERS[config.optimizer], config),
        lr_scheduler_fn=SCHEDULES[config.learning_rate_schedule],
        max_grad_norm=config.max_grad_norm or None,
        steps_per_round=config.steps_per_round or None,
        fraction_evaluate=config.fraction_evaluate,
        evaluate_batch_size=config.evaluate_batch_size,
        min_available_nodes=config.min_available_nodes,
        node_timeout_s=config.node_timeout_s,
        failures=FailurePolicy(
            step_timeout_s=config.step_timeout_s,
            quorum=config.quorum,
            min_clients=config.min_clients,
            max_redraws=config.max_redraws,
            max_offences=config.max_offences,
            max_activation_norm=config.max_activation_norm or None,
            max_update_norm=config.max_update_norm or None,
        ),
        transport=config.transport,
        stream=StreamSettings(
            address=config.stream_address,
            advertise=config.stream_advertise,
            certificate_file=config.stream_certificate_file,
            key_file=config.stream_key_file,
            root_certificates_file=config.stream_root_certificates_file,
            plain_text=config.stream_plain_text,
            shared_memory=config.stream_shared_memory,
            connect_timeout_s=config.stream_connect_timeout_s,
            reconnect_timeout_s=config.stream_reconnect_timeout_s,
            max_frame_bytes=config.stream_max_frame_bytes,
        ),
        encodings=Encodings(
            activations=config.activation_encoding,
            gradients=config.gradient_encoding,
            weights=config.weight_encoding,
        ),
        seed=config.seed,
        device=config.device,
        recorder=RunRecorder(config.out) if config.out else None,
        checkpoints=checkpoints_of(config),
    )


def checkpoints_of(config: AppConfig) -> Checkpoints | None:
    """Return when and where a run is saved, if it is."""
    if not config.checkpoint_folder:
        return None
    return Checkpoints(
        folder=config.checkpoint_folder,
        every_steps=config.checkpoint_every_steps or None,
        every_rounds=config.checkpoint_every_rounds or None,
        resume=config.resume,
    )
