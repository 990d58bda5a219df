"""Saved tensors that are to take the place of others."""

from collections.abc import Mapping

from torch import Tensor

from flower_psl.errors import CheckpointError


def check_tensors(saved: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return saved tensors, if they are alike in all but their values.

    Parameters
    ----------
    saved, own : mapping of str to Tensor
        Those that were saved, and those whose place they take.

    Raises
    ------
    CheckpointError
        If a name, shape or dtype differs.
    """
    if unlike := sorted(set(saved) ^ set(own)):
        raise CheckpointError(
            f"the saved tensors {unlike} are missing or unknown; they must be the {len(own)} of "
            "the model that goes on. Build the same model and cut it at the same place."
        )
    for name, tensor in own.items():
        found = saved[name]
        if (found.shape, found.dtype) != (tensor.shape, tensor.dtype):
            raise CheckpointError(
                f"the saved tensor {name} is {found.dtype} {tuple(found.shape)}, the model's "
                f"{tensor.dtype} {tuple(tensor.shape)}; both must agree. Build the same model and "
                "cut it at the same place."
            )
    return saved
