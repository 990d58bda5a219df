"""What becomes of the client segments at the end of a round."""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from flower_psl.server.weighted_mean import weighted_mean
from flower_psl.storage import State


class ClientAggregation(Protocol):
    """Makes one set of parameters of those that the clients have trained."""

    def aggregate(
        self,
        server_round: int,
        current: Mapping[str, Tensor],
        trained: Mapping[int, Mapping[str, Tensor]],
        weights: Mapping[int, float],
    ) -> Mapping[str, Tensor]:
        """Return the parameters of the next round.

        Parameters
        ----------
        server_round : int
            The round that ends, from 1.
        current : mapping of str to Tensor
            The parameters that the clients started from.
        trained : mapping of int to mapping of str to Tensor
            Those of each client that trained, by node, in client order, alike in names,
            shapes and dtypes.
        weights : mapping of int to float
            What the losses of each were divided by in the round, in sum, by node: the examples
            that it used, for a plain mean. Above 0.

        Raises
        ------
        PslError
            If there is no result.
        """

    def state(self) -> State:
        """Return what is kept from round to round."""

    def load_state(self, state: State) -> None:
        """Go on with what `state` returned."""


class ClientMean:
    """The mean, weighted: federated averaging, without a Flower run."""

    def aggregate(
        self,
        server_round: int,
        current: Mapping[str, Tensor],
        trained: Mapping[int, Mapping[str, Tensor]],
        weights: Mapping[int, float],
    ) -> Mapping[str, Tensor]:
        """Return the mean of the clients' parameters."""
        return weighted_mean(trained, weights)

    def state(self) -> State:
        """Return nothing: a mean remembers nothing."""
        return {}

    def load_state(self, state: State) -> None:
        """Do nothing."""
