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
        BatchSchedule,
        FixedLocalSampler,
        GlobalSampler,
        ProportionalLocalSampler,
        Sampler,
        SequentialSampler,
    )
    from flower_psl.server import ParallelSplitLearning, run_in_process
    from flower_psl.split import SplitModel, SplitReport, check_split, cut, to_group_norm
    from flower_psl.telemetry import RunRecorder
    from flower_psl.transport import StreamSettings
    from flower_psl.wire import Encodings

_MODULES = {
    "BatchSchedule": "sampling",
    "ClientError": "errors",
    "ConfigError": "errors",
    "CutError": "errors",
    "Encodings": "wire",
    "FixedLocalSampler": "sampling",
    "GlobalSampler": "sampling",
    "ParallelSplitLearning": "server",
    "ProportionalLocalSampler": "sampling",
    "ProtocolError": "errors",
    "PslError": "errors",
    "RunRecorder": "telemetry",
    "Sampler": "sampling",
    "SequentialSampler": "sampling",
    "SplitClient": "client",
    "SplitClientApp": "client.split_client_app",
    "SplitModel": "split",
    "SplitReport": "split",
    "StreamSettings": "transport",
    "WaitError": "errors",
    "check_split": "split",
    "cut": "split",
    "run_in_process": "server",
    "to_group_norm": "split",
}

__all__ = [
    "BatchSchedule",
    "ClientError",
    "ConfigError",
    "CutError",
    "Encodings",
    "FixedLocalSampler",
    "GlobalSampler",
    "ParallelSplitLearning",
    "ProportionalLocalSampler",
    "ProtocolError",
    "PslError",
    "RunRecorder",
    "Sampler",
    "SequentialSampler",
    "SplitClient",
    "SplitClientApp",
    "SplitModel",
    "SplitReport",
    "StreamSettings",
    "WaitError",
    "check_split",
    "cut",
    "run_in_process",
    "to_group_norm",
]


def __getattr__(name: str) -> Any:
    """Load a public name."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    """List the public names."""
    return __all__
