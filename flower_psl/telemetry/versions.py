"""The versions of what a run was made with."""

import platform
from importlib import metadata

_PACKAGES = ("flower-psl", "flwr", "torch", "numpy")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide what a run computes."""
    return {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"
