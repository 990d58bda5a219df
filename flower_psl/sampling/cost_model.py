"""What a step takes each client: so many seconds an example, so many a participation."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

from flower_psl.errors import ConfigError
from flower_psl.sampling.cost_file import read_costs
from flower_psl.sampling.cost_fit import fit_costs
from flower_psl.sampling.real_number import real_number
from flower_psl.sampling.whole_number import whole_number

_SHOWN_CLIENTS = 6


class ClientCost(NamedTuple):
    """The seconds that a client's part in a step takes.

    Attributes
    ----------
    seconds_per_example : float
        tau_k: computing and sending one example, in seconds.
    seconds_per_participation : float
        l_k: what every step costs that the client takes part in, however few examples it
        gives, in seconds.
    """

    seconds_per_example: float
    seconds_per_participation: float = 0.0

    def seconds(self, batch_size: int) -> float:
        """Return the seconds of a step with `batch_size` examples of this client."""
        return self.seconds_per_participation + batch_size * self.seconds_per_example


@dataclass(frozen=True)
class CostModel:
    """The cost of every client of a run.

    A step lasts as long as its slowest client needs: the maximum of b_k tau_k + l_k over the
    clients with b_k > 0. So while every example is used once a round, no sampler's rounds are
    shorter than max_k D_k tau_k; what a sampler can save is fixed seconds and uneven batches.

    Parameters
    ----------
    clients : Mapping[int, ClientCost]
        Client key to its cost.

    Raises
    ------
    ConfigError
        If there are no clients, or a key or a number of seconds is invalid: seconds are
        finite and not negative.
    """

    clients: Mapping[int, ClientCost]

    def __post_init__(self) -> None:
        """Check the costs and keep a copy, in order of the keys."""
        if not self.clients:
            raise ConfigError(
                "the cost model has 0 clients; it needs every client of the run: add them"
            )
        keys = sorted(whole_number("client key", k, at_least=0, below=2**64) for k in self.clients)
        object.__setattr__(
            self, "clients", {key: _checked(key, self.clients[key]) for key in keys}
        )

    def __repr__(self) -> str:
        """Return the number of clients: a sampler's own is logged, and they may be many."""
        return f"CostModel({len(self.clients)} clients)"

    def __hash__(self) -> int:
        """Return a hash of the costs."""
        return hash(tuple(self.clients.items()))

    @classmethod
    def from_file(cls, path: str | Path) -> Self:
        """Read the costs from a CSV or a JSON file.

        Parameters
        ----------
        path : str or Path
            A ``.csv`` file with the columns ``client``, ``seconds_per_example`` and
            ``seconds_per_participation``, or a ``.json`` file as `to_json` describes it.

        Raises
        ------
        ConfigError
            If the file cannot be read or says something else, or a cost is invalid.
        """
        return cls({key: ClientCost(*cost) for key, cost in read_costs(Path(path)).items()})

    @classmethod
    def from_steps(cls, path: str | Path) -> Self:
        """Estimate the costs from the ``steps.jsonl`` of an earlier run, by least squares.

        For each client, tau and l are the non-negative numbers that minimize the squared
        error of ``l + b tau`` over the steps it was timed in. A client whose batches all had
        the same size shows the sum only, which is then counted by the example (l = 0).

        Parameters
        ----------
        path : str or Path
            Step records with the fields ``clients`` (client key to batch size b) and
            ``client_seconds`` (client key to the seconds of the client's part in the step).

        Raises
        ------
        ConfigError
            If the file cannot be read or is no such file, or a client of the run was never
            timed.
        """
        return cls({key: ClientCost(*cost) for key, cost in fit_costs(Path(path)).items()})

    def to_json(self) -> dict[str, dict[str, float]]:
        """Return the costs ready for ``json.dumps``: client key (as text) to its two numbers."""
        return {str(key): cost._asdict() for key, cost in self.clients.items()}

    def check_clients(self, num_examples: Mapping[int, int]) -> None:
        """Refuse a run whose clients are not those of this model.

        Parameters
        ----------
        num_examples : Mapping[int, int]
            Client key to number of examples. A client with 0 examples needs no cost.

        Raises
        ------
        ConfigError
            If a client with data has no cost, or a cost belongs to no client.
        """
        missing = [key for key, count in num_examples.items() if count and key not in self.clients]
        unknown = [key for key in self.clients if key not in num_examples]
        if missing:
            raise ConfigError(
                f"the cost model has no cost for {_named(missing)}; it must have one for every "
                "client with data: add them"
            )
        if unknown:
            raise ConfigError(
                f"the cost model has costs for {_named(unknown)}, which the run does not have; "
                "it must be a model of these clients: remove them, or check the keys"
            )


def _checked(key: int, cost: object) -> ClientCost:
    if not isinstance(cost, ClientCost):
        raise ConfigError(
            f"client {key}: the cost is {cost!r}; it must be a ClientCost: pass "
            "ClientCost(seconds_per_example, seconds_per_participation)"
        )
    return ClientCost(
        *(
            real_number(f"client {key}: {name}", seconds, at_least=0.0)
            for name, seconds in cost._asdict().items()
        )
    )


def _named(keys: Iterable[int]) -> str:
    ordered = sorted(keys)
    shown = ", ".join(map(str, ordered[:_SHOWN_CLIENTS]))
    rest = len(ordered) - _SHOWN_CLIENTS
    return f"the clients {shown}" + (f" and {rest} more" if rest > 0 else "")
