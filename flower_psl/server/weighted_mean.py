"""The mean of what several clients have, weighted."""

from collections.abc import Mapping

from torch import Tensor


def weighted_mean(
    parts: Mapping[int, Mapping[str, Tensor]], weights: Mapping[int, float]
) -> dict[str, Tensor]:
    """Return the mean of each tensor, in its dtype; integers are rounded.

    The arithmetic is that of Flower's FedAvg, whose bits it has.

    Parameters
    ----------
    parts : mapping of int to mapping of str to Tensor
        Tensors by client, alike in names, shapes and dtypes. The order of the clients is
        that of the floating-point sum.
    weights : mapping of int to float
        Weight of each client; their sum is above 0.
    """
    total = sum(weights[key] for key in parts)
    mean: dict[str, Tensor] = {}
    first = next(iter(parts.values()))
    for name, like in first.items():
        exact = like.is_floating_point()
        terms = [
            (part[name] if exact else part[name].double()) * (weights[key] / total)
            for key, part in parts.items()
        ]
        value = sum(terms[1:], start=terms[0])
        mean[name] = value if exact else value.round().to(like.dtype)
    return mean
