"""Parallel split learning with server-driven global sampling, for Flower.

The public names load on first use (PEP 562), so that planning batch sizes needs NumPy
only, and a device never loads the server.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flower_psl.client import SplitClient
    from flower_psl.client.split_client_app import SplitClientApp
    from flower_psl.errors import (
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
    from flower_psl.server import ParallelSplitLearning, run_in_process
    from flower_psl.split import SplitModel, SplitReport, check_split, cut, to_group_norm
    from flower_psl.telemetry import RunRecorder
    from flower_psl.transport import StreamSettings
    from flower_psl.wire import Encodings

_MODULES = {
    "BalancedSampler": "sampling",
    "BatchLaw": "sampling",
    "BatchSchedule": "sampling",
    "ClientCost": "sampling",
    "ClientError": "errors",
    "ConfigError": "errors",
    "CostModel": "sampling",
    "CutError": "errors",
    "DeviationEvent": "sampling",
    "Encodings": "wire",
    "FixedLocalSampler": "sampling",
    "GlobalSampler": "sampling",
    "HoeffdingBound": "sampling",
    "LatentDirichletSampler": "sampling",
    "ParallelSplitLearning": "server",
    "ProportionalLocalSampler": "sampling",
    "ProtocolError": "errors",
    "PslError": "errors",
    "QuotaSampler": "sampling",
    "RunRecorder": "telemetry",
    "Sampler": "sampling",
    "SequentialSampler": "sampling",
    "SerflingBound": "sampling",
    "SplitClient": "client",
    "SplitClientApp": "client.split_client_app",
    "SplitModel": "split",
    "SplitReport": "split",
    "StragglerSampler": "sampling",
    "StreamSettings": "transport",
    "WaitError": "errors",
    "check_split": "split",
    "cut": "split",
    "label_deviations": "sampling",
    "largest_class_deviation": "sampling",
    "round_seconds": "sampling",
    "run_in_process": "server",
    "to_group_norm": "split",
    "total_variation": "sampling",
}

__all__ = [
    "BalancedSampler",
    "BatchLaw",
    "BatchSchedule",
    "ClientCost",
    "ClientError",
    "ConfigError",
    "CostModel",
    "CutError",
    "DeviationEvent",
    "Encodings",
    "FixedLocalSampler",
    "GlobalSampler",
    "HoeffdingBound",
    "LatentDirichletSampler",
    "ParallelSplitLearning",
    "ProportionalLocalSampler",
    "ProtocolError",
    "PslError",
    "QuotaSampler",
    "RunRecorder",
    "Sampler",
    "SequentialSampler",
    "SerflingBound",
    "SplitClient",
    "SplitClientApp",
    "SplitModel",
    "SplitReport",
    "StragglerSampler",
    "StreamSettings",
    "WaitError",
    "check_split",
    "cut",
    "label_deviations",
    "largest_class_deviation",
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
