"""What becomes of a step, and of a client, when the client fails."""

import math
from dataclasses import dataclass

from flower_psl.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class FailurePolicy:
    """What becomes of a step, and of a client, when the client fails.

    A client fails if it raises, is lost, does not answer in time, or answers with values that
    cannot be used. It is left out until it reports again. A step that misses too much is drawn
    anew from the examples of those that are there.

    Parameters
    ----------
    step_timeout_s : float
        Bound on the wait for the replies of one exchange, in seconds.
    quorum : float
        The share of a step's examples, in (0, 1], that must be there to take it, as the mean
        over those that are. With less the step is discarded, and drawn anew. Below 1, clients
        are weighted by how often they are there, and the loss must be a mean.
    max_redraws : int
        How often in a row a step is drawn anew before the run stops.
    min_clients : int
        With fewer clients with training data than these, the run stops.
    max_offences : int
        A client that has sent values that cannot be used this often is left out for good.
    max_activation_norm : float, optional
        Bound on the Euclidean norm of one example's activations.
    max_update_norm : float, optional
        Bound on the Euclidean norm of what a client adds to an update: of its parameter
        gradient in a step, or, with ``client_sync="round"``, of what it has changed its
        parameters and running statistics by in the round.

    Raises
    ------
    ConfigError
        If a value is out of its range.
    """

    step_timeout_s: float = 300.0
    quorum: float = 1.0
    max_redraws: int = 10
    min_clients: int = 1
    max_offences: int = 3
    max_activation_norm: float | None = None
    max_update_norm: float | None = None

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        for name in ("step_timeout_s", "max_activation_norm", "max_update_norm"):
            value = getattr(self, name)
            optional = value is None and name != "step_timeout_s"
            if not optional and not (_is_number(value) and 0 < value < math.inf):
                raise ConfigError(f"{name} is {value!r}; it is a finite number above 0")
        if not (_is_number(self.quorum) and 0 < self.quorum <= 1):
            raise ConfigError(
                f"quorum is {self.quorum!r}; it is the share of a step's examples that must be "
                "there, above 0 and at most 1"
            )
        for name in ("max_redraws", "min_clients", "max_offences"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"{name} is {value!r}; it is an integer of 1 or more")

    def suffices(self, present: int, planned: int) -> bool:
        """Tell whether a step may be taken with the examples that are there."""
        # Rounded first, because 0.07 * 100 is 7.000000000000001.
        return 0 < present and present >= round(self.quorum * planned, 9)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
