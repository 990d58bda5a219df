"""What a strategy's settings may be, looked at before anything starts."""

import math
from typing import TYPE_CHECKING, get_args

import torch

from flower_psl.errors import ConfigError
from flower_psl.split import SplitModel, check_loss_fn
from flower_psl.transport.open_transport import TransportName
from flower_psl.transport.stream_settings import StreamSettings
from flower_psl.wire import Encodings

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
    _check_functions(strategy)
    _check_choices(strategy)
    _check_numbers(strategy)


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


def _check_choices(strategy: "ParallelSplitLearning") -> None:
    if strategy.client_sync != "step":
        raise ConfigError(f"client_sync is {strategy.client_sync!r}; it can be 'step'")
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
    for name in ("node_timeout_s", "step_timeout_s", "max_grad_norm"):
        value = getattr(strategy, name)
        if value is not None and not (_is_number(value) and 0 < value < math.inf):
            raise ConfigError(f"{name} is {value!r}; it is a finite number above 0")
    if not _is_number(strategy.seed, int) or not 0 <= strategy.seed < 2**63:
        raise ConfigError(f"seed is {strategy.seed!r}; it is an integer from 0 to 2**63 - 1")


def _is_number(value: object, *kinds: type) -> bool:
    return isinstance(value, kinds or (int, float)) and not isinstance(value, bool)
