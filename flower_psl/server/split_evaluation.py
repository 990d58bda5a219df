"""Evaluation on the clients' own test data, where devices run only their segment."""

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from flower_psl.errors import PslError
from flower_psl.sampling import Purpose, generator
from flower_psl.server.class_labels import ClassLabels, ignored_label
from flower_psl.server.loss_normalizer import is_sum
from flower_psl.server.run_history import Metrics
from flower_psl.split import LossFn, SplitModel
from flower_psl.transport import Transport
from flower_psl.wire import (
    Encodings,
    Phase,
    StepId,
    StepReply,
    StepRequest,
    check_batch,
    decode_reply,
)


@dataclass
class _Totals:
    """Sums over the labels that count: all but those that the loss ignores."""

    num_examples: int = 0
    counted: int = 0
    loss: float = 0.0
    classified: int = 0
    correct: int = 0

    def add(self, outputs: Tensor, labels: Tensor, loss_fn: LossFn) -> None:
        self.num_examples += len(labels)
        ignored = ignored_label(loss_fn)
        counts = None if ignored is None else labels != ignored
        counted = len(labels) if counts is None else int(counts.sum())
        if not counted:
            return
        self.counted += counted
        self.loss += float(loss_fn(outputs, labels)) * (1 if is_sum(loss_fn) else counted)
        if outputs.dim() == 2 and labels.dim() == 1 and not labels.is_floating_point():
            hits = outputs.argmax(1) == labels
            self.classified += counted
            self.correct += int((hits if counts is None else hits & counts).sum())

    def metrics(self) -> Metrics:
        metrics: Metrics = {"num-examples": self.num_examples}
        if self.counted:
            metrics["loss"] = self.loss / self.counted
        if self.counted and self.classified == self.counted:
            metrics["accuracy"] = self.correct / self.classified
        return metrics


def sample_clients(
    num_test_examples: Mapping[int, int], fraction: float, seed: int, server_round: int
) -> list[int]:
    """Return the clients that evaluate in a round, in ascending order.

    A share `fraction`, rounded up, of those that have test data.
    """
    able = [key for key, count in num_test_examples.items() if count > 0]
    # Rounded first, because 0.07 * 100 is 7.000000000000001.
    wanted = math.ceil(round(fraction * len(able), 9))
    draws = generator(seed, Purpose.EVALUATION, server_round)
    return sorted(int(key) for key in draws.choice(able, wanted, replace=False)) if wanted else []


@dataclass(frozen=True, kw_only=True)
class SplitEvaluation:
    """Evaluates the model over the cut.

    Attributes
    ----------
    transport : Transport
        What reaches the clients.
    nodes : mapping of int to int
        Where each client key is reached.
    num_examples : mapping of int to int
        Test examples of each client.
    loss_fn : callable
        ``loss_fn(outputs, labels)``. Its mean over the labels that it does not ignore is
        reported; class weights are those of each batch.
    batch_size : int
        Examples that a client evaluates in one exchange.
    seed : int
        The run's seed.
    device : torch.device
        Where the server segment computes.
    encodings : Encodings
        How tensors travel.
    apart : collection of int
        Clients that evaluate a segment of their own.
    """

    transport: Transport
    nodes: Mapping[int, int]
    num_examples: Mapping[int, int]
    loss_fn: LossFn
    batch_size: int
    seed: int
    device: torch.device
    encodings: Encodings = field(default_factory=Encodings)
    apart: Collection[int] = ()

    @torch.no_grad()
    def run(
        self,
        model: SplitModel,
        weights: Mapping[str, Tensor],
        keys: list[int],
        server_round: int,
        timeout_s: float,
    ) -> tuple[Metrics, dict[int, PslError]]:
        """Evaluate on the test data of the given clients.

        A client that fails is left out from there on.

        Parameters
        ----------
        model : SplitModel
            The model; its server segment is left in evaluation mode.
        weights : mapping of str to Tensor
            The client segment's parameters and buffers, as they travel.
        keys : list of int
            The clients.
        server_round : int
            The round.
        timeout_s : float
            Bound on each exchange, in seconds.

        Returns
        -------
        metrics : dict
            ``num-examples``, those that were evaluated; ``loss`` if any label counts;
            ``accuracy`` if outputs are ``(n, C)`` and labels are class indices ``(n,)``.
        failures : dict of int to PslError
            What the clients that failed did, by client key.
        """
        model.server.eval()
        totals = _Totals()
        failures: dict[int, PslError] = {}
        for requests in self._requests(keys, weights, server_round):
            asked = {
                node: request
                for node, request in requests.items()
                if request.id.client_key not in failures
            }
            if not asked:
                continue
            answers = self.transport.exchange(asked, timeout_s)
            for node, failure in answers.failures.items():
                failures[asked[node].id.client_key] = failure
            for reply in answers.replies.values():
                try:
                    self._add(totals, model, reply)
                except PslError as error:
                    failures[reply.id.client_key] = error
        return totals.metrics(), failures

    def _requests(
        self, keys: list[int], weights: Mapping[str, Tensor], server_round: int
    ) -> Iterator[dict[int, StepRequest]]:
        """Yield exchanges until every client has been through its test data."""
        counts = {key: self.num_examples[key] for key in keys}
        starts = range(0, max(counts.values(), default=0), self.batch_size)
        for step, start in enumerate(starts, 1):
            yield {
                self.nodes[key]: StepRequest(
                    phase=Phase.EVALUATE,
                    id=StepId(
                        seed=self.seed,
                        server_round=server_round,
                        plan=0,
                        step=step,
                        client_key=key,
                        start=start,
                        batch_size=min(self.batch_size, count - start),
                    ),
                    weights={} if key in self.apart else weights,
                    encodings=self.encodings,
                )
                for key, count in counts.items()
                if start < count
            }

    def _add(self, totals: _Totals, model: SplitModel, reply: StepReply) -> None:
        activations, labels = check_batch(decode_reply(reply, self.encodings, {}))
        labels = labels.to(self.device)
        where = f"evaluation after round {reply.id.server_round}"
        try:
            outputs = model.server(activations.to(self.device))
            classes = ClassLabels(self.loss_fn)
            classes.look_at(outputs)
            for wrong in classes.wrong({reply.id.client_key: labels}, where).values():
                raise wrong
            totals.add(outputs, labels, self.loss_fn)
        except PslError:
            raise
        except Exception as error:
            raise PslError(
                f"client {reply.id.client_key}, {where}: the server segment or the loss raised "
                f"{type(error).__name__}: {error}. It got activations {tuple(activations.shape)} "
                f"and labels {tuple(labels.shape)}; check this client's model and test data."
            ) from error
