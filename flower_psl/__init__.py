"""Parallel split learning with server-driven global sampling, for Flower.

The public names load on first use (PEP 562), so that planning batch sizes needs NumPy
only, and a device never loads the server.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flower_psl.client import SplitClient
    from flower_psl.client.split_client_app import SplitClientApp, register
    from flower_psl.errors import (
        CheckpointError,
        ClientError,
        ConfigError,
        CutError,
        ProtocolError,
        PslError,
        WaitError,
    )
    from flower_psl.sampling import (
        BalancedSampler,
        BatchLaw,
        BatchSchedule,
        ClientCost,
        CostModel,
        DeviationEvent,
        FixedLocalSampler,
        GlobalSampler,
        HoeffdingBound,
        LatentDirichletSampler,
        ProportionalLocalSampler,
        QuotaSampler,
        Sampler,
        SequentialSampler,
        SerflingBound,
        StragglerSampler,
        label_deviations,
        largest_class_deviation,
        round_seconds,
        total_variation,
    )
    from flower_psl.server import (
        Checkpoints,
        FailurePolicy,
        ParallelSplitLearning,
        run_in_process,
    )
    from flower_psl.split import SplitModel, SplitReport, check_split, cut, to_group_norm
    from flower_psl.telemetry import RoundRecord, RunInfo, RunRecorder, StepRecord
    from flower_psl.transport import StreamSettings
    from flower_psl.wire import Encodings

_MODULES = {
    "BalancedSampler": "sampling",
    "BatchLaw": "sampling",
    "BatchSchedule": "sampling",
    "CheckpointError": "errors",
    "Checkpoints": "server",
    "ClientCost": "sampling",
    "ClientError": "errors",
    "ConfigError": "errors",
    "CostModel": "sampling",
    "CutError": "errors",
    "DeviationEvent": "sampling",
    "Encodings": "wire",
    "FailurePolicy": "server",
    "FixedLocalSampler": "sampling",
    "GlobalSampler": "sampling",
    "HoeffdingBound": "sampling",
    "LatentDirichletSampler": "sampling",
    "ParallelSplitLearning": "server",
    "ProportionalLocalSampler": "sampling",
    "ProtocolError": "errors",
    "PslError": "errors",
    "QuotaSampler": "sampling",
    "RoundRecord": "telemetry",
    "RunInfo": "telemetry",
    "RunRecorder": "telemetry",
    "Sampler": "sampling",
    "SequentialSampler": "sampling",
    "SerflingBound": "sampling",
    "SplitClient": "client",
    "SplitClientApp": "client.split_client_app",
    "SplitModel": "split",
    "SplitReport": "split",
    "StepRecord": "telemetry",
    "StragglerSampler": "sampling",
    "StreamSettings": "transport",
    "WaitError": "errors",
    "check_split": "split",
    "cut": "split",
    "label_deviations": "sampling",
    "largest_class_deviation": "sampling",
    "register": "client.split_client_app",
    "round_seconds": "sampling",
    "run_in_process": "server",
    "to_group_norm": "split",
    "total_variation": "sampling",
}

__all__ = [
    "BalancedSampler",
    "BatchLaw",
    "BatchSchedule",
    "CheckpointError",
    "Checkpoints",
    "ClientCost",
    "ClientError",
    "ConfigError",
    "CostModel",
    "CutError",
    "DeviationEvent",
    "Encodings",
    "FailurePolicy",
    "FixedLocalSampler",
    "GlobalSampler",
    "HoeffdingBound",
    "LatentDirichletSampler",
    "ParallelSplitLearning",
    "ProportionalLocalSampler",
    "ProtocolError",
    "PslError",
    "QuotaSampler",
    "RoundRecord",
    "RunInfo",
    "RunRecorder",
    "Sampler",
    "SequentialSampler",
    "SerflingBound",
    "SplitClient",
    "SplitClientApp",
    "SplitModel",
    "SplitReport",
    "StepRecord",
    "StragglerSampler",
    "StreamSettings",
    "WaitError",
    "check_split",
    "cut",
    "label_deviations",
    "largest_class_deviation",
    "register",
    "round_seconds",
    "run_in_process",
    "to_group_norm",
    "total_variation",
]


def __getattr__(name: str) -> Any:
    """Load a public name."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    """List the public names."""
    return __all__
