"""A small Flower app in which devices train their segments by themselves."""

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAdam, FedAvg, Strategy
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import nn
from torch.optim import SGD
from torch.utils.data import TensorDataset

from flower_psl import (
    GlobalSampler,
    ParallelSplitLearning,
    SplitClient,
    SplitClientApp,
    SplitModel,
    StreamSettings,
    cut,
)

NUM_CLIENTS = 3
NUM_ROUNDS = 2
# Each run makes its own: FedAdam keeps its moments.
STRATEGIES: dict[str, Callable[[], Strategy | None]] = {
    "": lambda: None,
    "FedAvg": FedAvg,
    "FedAdam": FedAdam,
}


def build_model() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            *(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.2)),
            nn.Linear(32, 10),
        )


def split_model() -> SplitModel:
    return cut(build_model(), at="3")


def momentum(parameters: Iterable[nn.Parameter]) -> SGD:
    return SGD(parameters, lr=0.1, momentum=0.9)


def make_client(key: int) -> SplitClient:
    digits = load_digits()
    data = TensorDataset(
        torch.tensor(digits.data[key :: 2 * NUM_CLIENTS] / 16, dtype=torch.float32),
        torch.tensor(digits.target[key :: 2 * NUM_CLIENTS]),
    )
    return SplitClient(split_model().client, data, data, optimizer_fn=momentum)


def make_strategy(sync: str, client_strategy: str, transport: str) -> ParallelSplitLearning:
    return ParallelSplitLearning(
        model=split_model(),
        sampler=GlobalSampler(batch_size=64, seed=1),
        loss_fn=nn.CrossEntropyLoss(),
        optimizer_fn=momentum,
        client_sync=sync,  # type: ignore[arg-type]
        client_strategy=STRATEGIES[client_strategy](),
        steps_per_round=3,
        min_available_nodes=NUM_CLIENTS,
        transport=transport,  # type: ignore[arg-type]
        # Actors start while other tests take the processors.
        stream=StreamSettings(connect_timeout_s=180.0),
    )


def client_fn(context: Context) -> SplitClient:
    torch.set_num_threads(1)
    return make_client(int(context.node_config["partition-id"]))


client = SplitClientApp(client_fn)
server = ServerApp()


@server.main()
def main(grid: Grid, context: Context) -> None:
    torch.set_num_threads(1)
    sync, client_strategy, transport, out = (
        str(context.run_config[name]) for name in ("sync", "client-strategy", "transport", "out")
    )
    result = make_strategy(sync, client_strategy, transport).start(
        grid, ArrayRecord(build_model().state_dict()), num_rounds=NUM_ROUNDS
    )
    save_file(result.arrays.to_torch_state_dict(), Path(out))
