"""What outlives a process: nested state as safetensors and JSON, and folders of its versions."""

from flower_psl.storage.check_alike import check_alike
from flower_psl.storage.check_tensors import check_tensors
from flower_psl.storage.optimizer_state import load_optimizer_state
from flower_psl.storage.state_file import DamagedStateError, State, pack_state, unpack_state
from flower_psl.storage.version_folder import Version, VersionFolder

__all__ = [
    "DamagedStateError",
    "State",
    "Version",
    "VersionFolder",
    "check_alike",
    "check_tensors",
    "load_optimizer_state",
    "pack_state",
    "unpack_state",
]
