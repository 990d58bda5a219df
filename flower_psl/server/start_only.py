"""A strategy that does all its work in `start`."""

from collections.abc import Iterable
from typing import NoReturn

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from flower_psl.errors import PslError


class StartOnlyStrategy(Strategy):
    """Refuses the methods with which a strategy takes part in Flower's own loop of rounds."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Refuse: a round is not one exchange of messages."""
        _refuse("configure_train")

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Refuse: a round is not one exchange of messages."""
        _refuse("aggregate_train")

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Refuse: a round is not one exchange of messages."""
        _refuse("configure_evaluate")

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Refuse: a round is not one exchange of messages."""
        _refuse("aggregate_evaluate")


def _refuse(method: str) -> NoReturn:
    raise PslError(
        f"{method}() is one exchange of messages a round; a round of parallel split learning has "
        "one or two for every step. Call start() instead."
    )
