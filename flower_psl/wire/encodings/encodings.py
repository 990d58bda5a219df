"""Which encodings there are, and which of them a run uses."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache

import torch

from flower_psl.errors import ConfigError, ProtocolError
from flower_psl.wire.encodings.cast import Cast
from flower_psl.wire.encodings.encoding import Encoding
from flower_psl.wire.encodings.int8 import Int8
from flower_psl.wire.encodings.raw import Raw

ENCODINGS: dict[str, Encoding] = {
    "raw": Raw(),
    "bf16": Cast(torch.bfloat16),
    "fp16": Cast(torch.float16),
    "int8": Int8(),
}


@dataclass(frozen=True, kw_only=True)
class Encodings:
    """How tensors travel between the server and the clients, whatever carries them.

    Each is ``"raw"`` (as they are), ``"bf16"``, ``"fp16"`` (clamped to its finite range) or
    ``"int8"`` (per channel, with scale and zero point).

    Always raw are labels, BatchNorm moments, buffers, integers and booleans, and what has as
    few bytes an element already.

    Parameters
    ----------
    activations : str
        Of the cut layer's output, from the clients to the server.
    gradients : str
        Of the cut gradient, to the clients, and of the client segment's parameter gradients,
        from them. ``"int8"`` rounds them at random, so that they are right on average.
    weights : str
        Of the client segment's parameters, to the clients.

    Raises
    ------
    ConfigError
        If an encoding does not exist.
    """

    activations: str = "raw"
    gradients: str = "raw"
    weights: str = "raw"

    def __post_init__(self) -> None:
        """Refuse encodings that do not exist."""
        for field in fields(self):
            name = getattr(self, field.name)
            if not isinstance(name, str) or name not in ENCODINGS:
                raise ConfigError(
                    f"the encoding of {field.name} is {name!r}; it is one of {list(ENCODINGS)}"
                )

    def to_config(self) -> dict[str, str]:
        """Return the small values that a request carries."""
        return {key: getattr(self, name) for name, key in _KEYS.items()}

    @staticmethod
    def from_config(config: Mapping[str, object]) -> "Encodings":
        """Return the encodings of a request's small values.

        Raises
        ------
        ProtocolError
            If one is missing or unknown to this reader.
        """
        try:
            return _encodings(*(str(config.get(key)) for key in _KEYS.values()))
        except ConfigError as error:
            raise ProtocolError(
                f"{error}, as far as this reader knows. Install the same flower-psl on both sides."
            ) from error


_KEYS = {field.name: f"{field.name}-encoding" for field in fields(Encodings)}


@cache
def _encodings(*names: str) -> Encodings:
    """Return encodings that exist; there are few, and every request names its own."""
    return Encodings(**dict(zip(_KEYS, names, strict=True)))
