"""What a strategy's settings may be, looked at before anything starts."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, get_args

import torch

from flower_psl.errors import ConfigError
from flower_psl.server.failure_policy import FailurePolicy
from flower_psl.server.loss_normalizer import is_sum
from flower_psl.server.updates import SERVER_UPDATES
from flower_psl.split import SplitModel, check_loss_fn
from flower_psl.transport.open_transport import TransportName
from flower_psl.transport.stream_settings import StreamSettings
from flower_psl.wire import Encodings

_CLIENT_SYNCS = ("step", "round", "none")

if TYPE_CHECKING:
    from flower_psl.server.strategy import ParallelSplitLearning


def check_strategy(strategy: "ParallelSplitLearning") -> None:
    """Refuse settings that cannot be used.

    Raises
    ------
    ConfigError
        Naming the value, the rule and what to give instead.
    """
    if not isinstance(strategy.model, SplitModel):
        raise ConfigError(
            f"model is a {type(strategy.model).__name__}; it must be cut first: "
            "cut(model, at=...) or SplitModel(client, server)"
        )
    if not hasattr(strategy.sampler, "schedule"):
        raise ConfigError(
            f"sampler is {strategy.sampler!r}; it needs a method schedule(num_examples, "
            "server_round), such as GlobalSampler has"
        )
    check_loss_fn(strategy.loss_fn)
    _check_failures(strategy)
    _check_functions(strategy)
    _check_client_sync(strategy)
    _check_choices(strategy)
    _check_numbers(strategy)


def check_evaluate_fn(strategy: "ParallelSplitLearning", evaluate_fn: object) -> None:
    """Refuse central evaluation where there is no whole model.

    Raises
    ------
    ConfigError
        If there is an `evaluate_fn` and clients do not share their segments.
    """
    if evaluate_fn is not None and strategy.client_sync == "none":
        raise ConfigError(
            "evaluate_fn is given with client_sync='none'; each client keeps a segment of its "
            "own, so no model is there to evaluate centrally. Leave it out: clients with a "
            "test_set evaluate over the cut."
        )


def check_no_configuration(**configs: Mapping[str, object] | None) -> None:
    """Refuse configuration for clients, by the name of its argument.

    Raises
    ------
    ConfigError
        If there is any.
    """
    for name, config in configs.items():
        if config:
            raise ConfigError(
                f"{name} is {dict(config)}; parallel split learning sends no configuration to "
                "clients. Use the run config, which client_fn gets in its Context."
            )


def _check_functions(strategy: "ParallelSplitLearning") -> None:
    if not callable(strategy.optimizer_fn):
        raise ConfigError(
            f"optimizer_fn is a {type(strategy.optimizer_fn).__name__}; it must be a function of "
            "the parameters, such as lambda params: torch.optim.SGD(params, lr=0.1)"
        )
    if strategy.lr_scheduler_fn is not None and not callable(strategy.lr_scheduler_fn):
        raise ConfigError(
            f"lr_scheduler_fn is a {type(strategy.lr_scheduler_fn).__name__}; it must be a "
            "function of the optimizer and the run's number of steps"
        )


def _check_failures(strategy: "ParallelSplitLearning") -> None:
    policy = strategy.failures
    if not isinstance(policy, FailurePolicy):
        raise ConfigError(
            f"failures is {policy!r}; it must be a FailurePolicy, such as "
            "FailurePolicy(step_timeout_s=60)"
        )
    if policy.quorum < 1 and is_sum(strategy.loss_fn):
        raise ConfigError(
            f"quorum is {policy.quorum} with a loss of reduction='sum', whose size hangs on how "
            "many examples are there. Give the loss reduction='mean', or leave quorum at 1."
        )


def _check_client_sync(strategy: "ParallelSplitLearning") -> None:
    sync, update = strategy.client_sync, strategy.server_update
    if sync not in _CLIENT_SYNCS:
        raise ConfigError(f"client_sync is {sync!r}; it is one of {', '.join(_CLIENT_SYNCS)}")
    if update not in SERVER_UPDATES:
        raise ConfigError(f"server_update is {update!r}; it is one of {', '.join(SERVER_UPDATES)}")
    if sync == "step" and update != "global-batch":
        raise ConfigError(
            f"server_update is {update!r} with client_sync='step', where one optimizer updates "
            "the whole model from the global batch; choose client_sync='round' or 'none'"
        )
    if strategy.overlap and sync != "step":
        raise ConfigError(
            f"overlap is given with client_sync={sync!r}, where a step is one exchange and the "
            "server computes after it; leave it out, or choose client_sync='step'"
        )
    if sync != "round" and strategy.client_strategy is not None:
        raise ConfigError(
            f"client_strategy is given with client_sync={sync!r}; it aggregates client segments "
            "at the end of a round. Choose client_sync='round', or leave it out."
        )
    if update == "per-client-average" and strategy.lr_scheduler_fn is not None:
        raise ConfigError(
            "lr_scheduler_fn is given with server_update='per-client-average', whose optimizers "
            "are new in every round and know no schedule of the run; leave it out, or choose "
            "another server_update"
        )


def _check_choices(strategy: "ParallelSplitLearning") -> None:
    transports = get_args(TransportName)
    if strategy.transport not in transports:
        raise ConfigError(
            f"transport is {strategy.transport!r}; it is one of {', '.join(transports)}"
        )
    if not isinstance(strategy.stream, StreamSettings):
        raise ConfigError(
            f"stream is {strategy.stream!r}; it must be a StreamSettings, such as "
            'StreamSettings(address="0.0.0.0:9200")'
        )
    if not isinstance(strategy.encodings, Encodings):
        raise ConfigError(
            f"encodings is {strategy.encodings!r}; it must be an Encodings, such as "
            'Encodings(activations="bf16")'
        )
    try:
        torch.device(strategy.device)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(
            f"device is {strategy.device!r}; it is a device of torch, such as 'cpu' or 'cuda:0'"
        ) from error


def _check_numbers(strategy: "ParallelSplitLearning") -> None:
    share = strategy.fraction_evaluate
    if not _is_number(share) or not 0 <= share <= 1:
        raise ConfigError(f"fraction_evaluate is {share!r}; it is a share from 0 to 1")
    for name in ("steps_per_round", "evaluate_batch_size", "min_available_nodes"):
        value = getattr(strategy, name)
        if value is not None and (not _is_number(value, int) or value < 1):
            raise ConfigError(f"{name} is {value!r}; it is an integer of 1 or more")
    for name in ("node_timeout_s", "max_grad_norm"):
        value = getattr(strategy, name)
        if value is not None and not (_is_number(value) and 0 < value < math.inf):
            raise ConfigError(f"{name} is {value!r}; it is a finite number above 0")
    if not _is_number(strategy.seed, int) or not 0 <= strategy.seed < 2**63:
        raise ConfigError(f"seed is {strategy.seed!r}; it is an integer from 0 to 2**63 - 1")


def _is_number(value: object, *kinds: type) -> bool:
    return isinstance(value, kinds or (int, float)) and not isinstance(value, bool)
