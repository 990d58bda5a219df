"""What is known of a run, of a round and of a step, as values that become JSON."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from flower_psl.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """What is known when a run starts.

    Attributes
    ----------
    method : str
        How the model is trained, e.g. ``"psl"``.
    sampler : str
        The sampler that makes the batch-size schedules.
    sampler_details : Mapping of str to object
        What must be known of it beside its name to repeat the run, as JSON has it.
    model : str
        The model's name.
    cut : str
        The cut layer's name.
    num_clients : int
        Number of clients, K.
    num_examples : int
        Training examples of all clients, D.
    rounds : int
        Rounds the run is to have.
    transport : str
        How requests and replies travel.
    seed : int
        The seed of every random draw.
    """

    method: str
    sampler: str
    model: str
    cut: str
    num_clients: int
    num_examples: int
    rounds: int
    transport: str
    seed: int
    sampler_details: Mapping[str, object] = field(default_factory=dict)

    def to_json(self) -> dict[str, object]:
        """Return the attributes under their own names, ready for ``json.dumps``.

        Returns
        -------
        dict of str to object
        """
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class RoundRecord:
    """What one round came to.

    Attributes
    ----------
    server_round : int
        The round, from 1; round 0 is the model before training.
    steps : int
        Steps taken in the round.
    train_loss : float or None
        Mean training loss of the round's steps; None where there was none.
    accuracy : float or None
        Accuracy on test data after the round, in [0, 1]; None where it was not evaluated.
    loss : float or None
        Loss on test data after the round; None where it was not evaluated.
    seconds : float
        Wall time of the round, in seconds.
    not_seen, redrawn : int
        Training examples that no step of the round used, and those of steps that were
        discarded, each as often as it was.
    inclusion : Mapping of int to float
        The share of each client's training examples that the round's steps used, by client key.
    bytes_up, bytes_down : int
        What travelled for discarded steps, from the clients and to them.

    Raises
    ------
    ConfigError
        If a loss, the accuracy or the time is not finite.
    """

    server_round: int
    steps: int
    train_loss: float | None
    accuracy: float | None
    loss: float | None
    seconds: float
    not_seen: int = 0
    redrawn: int = 0
    inclusion: Mapping[int, float] = field(default_factory=dict)
    bytes_up: int = 0
    bytes_down: int = 0

    def __post_init__(self) -> None:
        """Refuse numbers that JSON cannot hold."""
        for name in ("train_loss", "accuracy", "loss", "seconds"):
            _check_finite(f"round {self.server_round}", name, getattr(self, name))

    def to_json(self) -> dict[str, object]:
        """Return the record, ready for ``json.dumps``; ``server_round`` is called ``round``.

        Returns
        -------
        dict of str to object
        """
        return {
            "round": int(self.server_round),
            "steps": int(self.steps),
            "train_loss": _float_or_none(self.train_loss),
            "accuracy": _float_or_none(self.accuracy),
            "loss": _float_or_none(self.loss),
            "seconds": float(self.seconds),
            "not_seen": int(self.not_seen),
            "redrawn": int(self.redrawn),
            "inclusion": {str(client): float(share) for client, share in self.inclusion.items()},
            "bytes_up": int(self.bytes_up),
            "bytes_down": int(self.bytes_down),
        }


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """What one step came to: a line of ``steps.jsonl``.

    Attributes
    ----------
    server_round : int
        The round, from 1.
    step : int
        The step in its round, from 1.
    loss : float
        Training loss over the global batch.
    effective_batch_size : int
        Examples that really took part.
    clients : Mapping of int to int
        Examples each client contributed, by client key.
    bytes_up, bytes_down : int
        Bytes sent from the clients to the server, and from the server to the clients.
    seconds : Mapping of str to float
        Wall time of each phase, in seconds, and of the whole step as ``"total"``.
    client_seconds : Mapping of int to float
        Seconds that each client was waited for, in all exchanges, by client key. Clients that
        share a process, as in a simulation, also wait for each other.
    plan : int
        The round's plan that the step belongs to: 0, and one more each time that clients left
        or came back.
    redraws : int
        How often the step was discarded and drawn anew before.
    failed : Mapping of int to str
        What the clients did that failed in the step, or before in its place, by client key.

    Raises
    ------
    ConfigError
        If the loss or a time is not finite, or ``seconds`` has no ``"total"``.
    """

    server_round: int
    step: int
    loss: float
    effective_batch_size: int
    clients: Mapping[int, int]
    bytes_up: int
    bytes_down: int
    seconds: Mapping[str, float]
    client_seconds: Mapping[int, float] = field(default_factory=dict)
    plan: int = 0
    redraws: int = 0
    failed: Mapping[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse numbers that JSON cannot hold, and a step without its wall time."""
        where = f"round {self.server_round}, step {self.step}"
        _check_finite(where, "loss", self.loss)
        for phase, seconds in self.seconds.items():
            _check_finite(where, f"seconds[{phase!r}]", seconds)
        for client, seconds in self.client_seconds.items():
            _check_finite(where, f"client_seconds[{client}]", seconds)
        if "total" not in self.seconds:
            raise ConfigError(
                f"{where}: seconds has the phases {sorted(self.seconds)}; a step record needs "
                f"the wall time of the whole step. Add it as seconds['total']."
            )

    def to_json(self) -> dict[str, object]:
        """Return the record, ready for ``json.dumps``; ``server_round`` is called ``round``.

        Returns
        -------
        dict of str to object
            Client keys become strings, as JSON wants them.
        """
        return {
            "round": int(self.server_round),
            "step": int(self.step),
            "loss": float(self.loss),
            "effective_batch_size": int(self.effective_batch_size),
            "clients": {str(client): int(size) for client, size in self.clients.items()},
            "bytes_up": int(self.bytes_up),
            "bytes_down": int(self.bytes_down),
            "seconds": {phase: float(seconds) for phase, seconds in self.seconds.items()},
            "client_seconds": {
                str(client): float(seconds) for client, seconds in self.client_seconds.items()
            },
            "plan": int(self.plan),
            "redraws": int(self.redraws),
            "failed": {str(client): str(reason) for client, reason in self.failed.items()},
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Return the record of what `to_json` gave.

        Parameters
        ----------
        values : Mapping of str to object
            A line of ``steps.jsonl``.

        Raises
        ------
        ConfigError, LookupError, TypeError, ValueError
            If it is none.
        """
        by_name = {"server_round" if name == "round" else name: values[name] for name in values}
        return cls(**{name: _with_keys(value) for name, value in by_name.items()})


def _with_keys(value: Any) -> Any:
    """Return a mapping with the client keys that JSON made strings of."""
    if isinstance(value, Mapping) and all(key.isdecimal() for key in value):
        return {int(key): part for key, part in value.items()}
    return value


def _check_finite(where: str, name: str, value: float | None) -> None:
    if value is not None and not math.isfinite(value):
        raise ConfigError(
            f"{where}: {name} is {value}; a record holds finite numbers, since JSON has no "
            f"others. Stop the run where the number first appears, or lower the learning rate."
        )


def _float_or_none(value: float | None) -> float | None:
    return None if value is None else float(value)
