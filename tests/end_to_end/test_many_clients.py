import threading
from collections.abc import Callable, Iterator

import pytest
import torch
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import Result
from torch import nn
from torch.utils.data import TensorDataset

from flower_psl import (
    FixedLocalSampler,
    ParallelSplitLearning,
    SplitClient,
    StreamSettings,
    cut,
    run_in_process,
)
from flower_psl.client.client_cache import ClientCache
from flower_psl.client.stream_session import KeyedClient
from flower_psl.transport.stream import StreamTransport
from flower_psl.transport.stream_client import StreamClient
from flower_psl.transport.stream_server import StreamServer
from flower_psl.transport.stream_ticket import Ticket
from flower_psl.transport.stream_tls import make_certificate

NUM_CLIENTS = 200
PATIENCE_S = 60.0


def build_model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def build_client(key: int) -> SplitClient:
    draws = torch.Generator().manual_seed(key)
    inputs = torch.randn(6, 3, generator=draws, dtype=torch.float64)
    labels = torch.randint(0, 2, (6,), generator=draws)
    return SplitClient(build_model()[:2], TensorDataset(inputs, labels))


def build_strategy() -> ParallelSplitLearning:
    return ParallelSplitLearning(
        model=cut(build_model(), at="1"),
        sampler=FixedLocalSampler(local_batch_size=2),
        loss_fn=nn.CrossEntropyLoss(),
        optimizer_fn=lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
        fraction_evaluate=0.0,
        seed=0,
    )


class Crowd:
    """A server, and clients that share some number of connections to it."""

    def __init__(self, num_connections: int) -> None:
        settings, certificate = StreamSettings(), make_certificate()
        self.server = StreamServer(settings, certificate)
        tokens = self.server.admit(range(NUM_CLIENTS))
        port = self.server.start()
        self.transport = StreamTransport(self.server, settings.reconnect_timeout_s)
        self._threads = []
        for first in range(num_connections):
            ticket = Ticket(
                address=f"127.0.0.1:{port}",
                session="crowd",
                certificate=certificate.roots.decode(),
                server_name=certificate.server_name,
                token=tokens[first],
                reconnect_timeout_s=settings.reconnect_timeout_s,
                max_frame_bytes=settings.max_frame_bytes,
            )
            stream = StreamClient(ticket)
            for key in range(first, NUM_CLIENTS, num_connections):
                stream.add(key, tokens[key], KeyedClient(build_client(key), key, ClientCache()))
            self._threads.append(threading.Thread(target=stream.serve, daemon=True))
            self._threads[-1].start()
        while len(self.transport.nodes()) < NUM_CLIENTS:
            assert self.transport.await_node(PATIENCE_S), "no client came"

    def train(self, arrays: ArrayRecord) -> Result:
        return build_strategy().run_over(
            self.transport,
            arrays,
            num_rounds=1,
            timeout=PATIENCE_S,
            evaluate_fn=None,
            min_nodes=NUM_CLIENTS,
        )

    def close(self) -> None:
        self.server.goodbye()
        for thread in self._threads:
            thread.join(PATIENCE_S)
        self.server.stop()


@pytest.fixture
def gather_crowd() -> Iterator[Callable[[int], Crowd]]:
    crowds: list[Crowd] = []

    def gather(num_connections: int) -> Crowd:
        crowds.append(Crowd(num_connections))
        return crowds[-1]

    yield gather
    for crowd in crowds:
        crowd.close()


@pytest.mark.parametrize("num_connections", [2, NUM_CLIENTS])
def test_many_clients_train_over_one_server_as_they_do_in_process(
    gather_crowd: Callable[[int], Crowd], num_connections: int
) -> None:
    arrays = ArrayRecord(build_model().state_dict())
    clients = {key: build_client(key) for key in range(NUM_CLIENTS)}
    expected = run_in_process(build_strategy(), clients, arrays, num_rounds=1)
    found = gather_crowd(num_connections).train(arrays)
    for name, tensor in expected.arrays.to_torch_state_dict().items():
        assert torch.equal(found.arrays.to_torch_state_dict()[name], tensor), name
        assert not torch.equal(arrays.to_torch_state_dict()[name], tensor), name
    assert found.train_metrics_clientapp == expected.train_metrics_clientapp
