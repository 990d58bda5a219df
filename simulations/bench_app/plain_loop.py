"""The reference: centralized training in plain PyTorch, in one process and one thread."""

import time
from itertools import islice

import torch
from torch import Tensor
from torch.nn import functional

from .workload import Workload


class PlainLoop:
    """Centralized training on the global batches that a workload's schedules make.

    Which examples of a client come first makes no difference to the time, so each gives
    them in their own order.

    Parameters
    ----------
    workload : Workload
        The model, its data and its schedules.
    num_clients : int
        Clients whose data are pooled.

    Attributes
    ----------
    model : nn.Module
        The model that it trains.
    """

    def __init__(self, workload: Workload, num_clients: int) -> None:
        self._workload = workload
        self._num_examples = dict.fromkeys(range(num_clients), workload.examples_per_client)
        data = [workload.client_data(key) for key in range(num_clients)]
        self._inputs = torch.cat([inputs for inputs, _ in data])
        self._labels = torch.cat([labels for _, labels in data])
        self.model = workload.build_model()
        self._optimizer = workload.build_optimizer(self.model.parameters())

    def run(self, server_round: int, max_steps: int) -> list[float]:
        """Take the steps of a round, at most `max_steps`; return the seconds of each."""
        return [self._step(rows) for rows in self.batches(server_round, max_steps)]

    def batches(self, server_round: int, max_steps: int) -> list[Tensor]:
        """Return the rows of the pooled data that make each global batch."""
        schedule = self._workload.sampler.schedule(self._num_examples, server_round)
        used = dict.fromkeys(self._num_examples, 0)
        batches = []
        for step in islice(schedule, max_steps):
            rows: list[int] = []
            for key, size in step.items():
                start = key * self._workload.examples_per_client + used[key]
                rows += range(start, start + size)
                used[key] += size
            batches.append(torch.tensor(rows))
        return batches

    def _step(self, rows: Tensor) -> float:
        started = time.perf_counter()
        self._optimizer.zero_grad()
        loss = functional.cross_entropy(self.model(self._inputs[rows]), self._labels[rows])
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        loss.item()
        return time.perf_counter() - started
