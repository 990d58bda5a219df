"""A Flower strategy that aggregates the client segments.

Flower's strategies keep what they need in `configure_train` and aggregate replies to the
messages that it makes. So both are called at the end of a round, for the nodes that trained
in it, with messages that are never sent.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from flower_psl.errors import ConfigError, PslError
from flower_psl.server.client_strategy_checks import check_round
from flower_psl.server.flower_records import to_arrays
from flower_psl.server.flower_strategy_state import StrategyState
from flower_psl.storage import State
from flower_psl.wire import is_finite

# A strategy asks a few times who is there. One that goes on asking waits for more.
_MOST_LOOKS = 10


class FlowerAggregation:
    """Lets a strategy aggregate what clients have trained.

    Parameters
    ----------
    strategy : Strategy
        A strategy that aggregates arrays.
    """

    def __init__(self, strategy: Strategy) -> None:
        self._strategy = strategy
        self._name = type(strategy).__name__
        self._kept = StrategyState(strategy)

    def aggregate(
        self,
        server_round: int,
        current: Mapping[str, Tensor],
        trained: Mapping[int, Mapping[str, Tensor]],
        weights: Mapping[int, float],
    ) -> Mapping[str, Tensor]:
        """Return the strategy's result, in the dtypes of `current`.

        Raises
        ------
        ConfigError
            If the strategy wants more nodes than trained in the round, or chooses among
            them, or wants devices to act on a configuration.
        PslError
            If it raises, or its result cannot be used.
        """
        where = f"round {server_round}, client_strategy {self._name}"
        check_round(self._strategy, len(trained), where)
        try:
            requests = {
                message.metadata.dst_node_id: message
                for message in self._strategy.configure_train(
                    server_round, to_arrays(current), ConfigRecord(), _NodesOnly(trained, where)
                )
            }
            self._check_requests(requests, trained, where)
            # In client order, whatever that of the messages: it is that of the sums.
            replies = [
                _reply(requests[node], part, weights[node]) for node, part in trained.items()
            ]
            arrays, _ = self._strategy.aggregate_train(server_round, replies)
        except PslError:
            raise
        except Exception as error:
            raise PslError(f"{where} raised {type(error).__name__}: {error}") from error
        if not arrays:
            raise PslError(
                f"{where}: it aggregated nothing from {len(trained)} clients; its log says why. "
                "Use a strategy that returns arrays in every round."
            )
        return _checked(arrays, current, where)

    def state(self) -> State:
        """Return what the strategy keeps from round to round."""
        return self._kept.state()

    def load_state(self, state: State) -> None:
        """Go on with what `state` returned."""
        self._kept.load_state(state)

    def _check_requests(
        self, requests: Mapping[int, Message], trained: Mapping[int, object], where: str
    ) -> None:
        if set(requests) != set(trained):
            raise ConfigError(
                f"{where}: it names {len(requests)} of the {len(trained)} nodes that trained in "
                "this round; all of them are aggregated. Let it take part with every node, and "
                "the sampler say who trains."
            )
        for message in requests.values():
            for config in message.content.config_records.values():
                if orders := sorted(set(config) - {"server-round"}):
                    raise ConfigError(
                        f"{where}: it sends devices the configuration {orders}, on which they "
                        "cannot act. Use a strategy that does all its work on the server."
                    )


class _NodesOnly(Grid):
    """A grid on which a round's nodes are all there is to see."""

    def __init__(self, nodes: Iterable[int], where: str) -> None:
        self._nodes = list(nodes)
        self._where = where
        self._looks = 0

    def get_node_ids(self) -> Iterable[int]:
        self._looks += 1
        if self._looks > _MOST_LOOKS:
            raise ConfigError(
                f"{self._where}: it waits for more nodes than the {len(self._nodes)} that trained "
                "in this round. Lower its minimum of nodes."
            )
        return list(self._nodes)

    def set_run(self, run: Any) -> None:
        self._refuse("set_run")

    @property
    def run(self) -> NoReturn:
        self._refuse("run")

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        self._refuse("create_message")

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        self._refuse("push_messages")

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        self._refuse("pull_messages")

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        self._refuse("send_and_receive")

    def _refuse(self, name: str) -> NoReturn:
        raise ConfigError(
            f"{self._where}: it calls grid.{name}; a client_strategy aggregates, and parallel "
            "split learning talks to the nodes. Use a strategy that leaves messages to its "
            "start()."
        )


def _reply(request: Message, tensors: Mapping[str, Tensor], weight: float) -> Message:
    # Copies: strategies change the arrays of replies in place.
    arrays = to_arrays({name: tensor.clone() for name, tensor in tensors.items()})
    # A count is a whole number, as devices send it; a sum of class weights need not be one.
    metrics = MetricRecord({"num-examples": int(weight) if weight == int(weight) else weight})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=request)


def _checked(arrays: ArrayRecord, current: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Return a strategy's result as tensors, if they are parameters of the segment."""
    result = arrays.to_torch_state_dict()
    for name, own in current.items():
        found = result.get(name)
        if found is None or found.shape != own.shape or not is_finite(found):
            shown = "missing" if found is None else f"of shape {tuple(found.shape)}"
            raise PslError(
                f"{where}: {name!r} is {shown}, or not finite; the result must have the "
                f"parameter in its shape {tuple(own.shape)}, with finite values. Lower the "
                "strategy's learning rate, or use another strategy."
            )
    return {name: result[name].to(own.dtype) for name, own in current.items()}
