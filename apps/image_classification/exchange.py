"""One exchange of Flower messages with some devices."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self, cast

from flwr.app import Message, RecordDict


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """What was sent to some devices, and what came back.

    Attributes
    ----------
    contents : dict of int to RecordDict
        By client key, in its order; of the devices that did not fail.
    bytes_up, bytes_down : int
        Size of what came from and went to the devices, without Flower's own framing.
    seconds : float
        Until the last reply.
    """

    contents: dict[int, RecordDict]
    bytes_up: int
    bytes_down: int
    seconds: float

    @classmethod
    def of(
        cls,
        sent: Sequence[Message],
        received: Sequence[Message],
        keys: Mapping[int, int],
        seconds: float,
    ) -> Self:
        """Measure an exchange; `keys` are the client keys by node."""
        usable = [message for message in received if not message.has_error()]
        return cls(
            contents={keys[message.metadata.src_node_id]: message.content for message in usable},
            bytes_up=sum(_num_bytes(message) for message in usable),
            bytes_down=sum(_num_bytes(message) for message in sent),
            seconds=seconds,
        )

    @property
    def num_examples(self) -> dict[int, int]:
        """Examples that each device has trained on, by client key."""
        return {
            key: cast(int, content.metric_records["metrics"]["num-examples"])
            for key, content in self.contents.items()
        }

    def mean(self, metric: str) -> float:
        """Return the mean of a training metric over all examples."""
        weights = self.num_examples
        total = sum(
            cast(float, content.metric_records["metrics"][metric]) * weights[key]
            for key, content in self.contents.items()
        )
        return total / sum(weights.values())


def _num_bytes(message: Message) -> int:
    return sum(record.count_bytes() for record in message.content.values())
