"""A Flower app that loads what it must and no more: in a deployment each message starts it."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from flwr.app import ArrayRecord, Context, UserConfigValue
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAdam, FedAvg, Strategy
from safetensors.torch import save_file
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

NUM_CLIENTS = 2
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
    draws = torch.Generator().manual_seed(key)
    images = torch.rand(300, 64, generator=draws)
    data = TensorDataset(images, images[:, :10].argmax(1))
    return SplitClient(split_model().client, data, data, optimizer_fn=momentum)


def make_strategy(run_config: Mapping[str, UserConfigValue]) -> ParallelSplitLearning:
    return ParallelSplitLearning(
        model=split_model(),
        sampler=GlobalSampler(batch_size=64, seed=1),
        loss_fn=nn.CrossEntropyLoss(),
        optimizer_fn=momentum,
        client_sync=run_config["sync"],  # type: ignore[arg-type]
        client_strategy=STRATEGIES[str(run_config["client-strategy"])](),
        steps_per_round=int(run_config["steps-per-round"]),
        min_available_nodes=NUM_CLIENTS,
        transport=run_config["transport"],  # type: ignore[arg-type]
        stream=StreamSettings(
            # Actors start while other tests take the processors.
            connect_timeout_s=180.0,
            shared_memory=bool(run_config["shared-memory"]),
        ),
    )


def client_fn(context: Context) -> SplitClient:
    torch.set_num_threads(1)
    return make_client(int(context.node_config["partition-id"]))


client = SplitClientApp(client_fn)
server = ServerApp()


@server.main()
def main(grid: Grid, context: Context) -> None:
    torch.set_num_threads(1)
    result = make_strategy(context.run_config).start(
        grid,
        ArrayRecord(build_model().state_dict()),
        num_rounds=int(context.run_config["num-rounds"]),
    )
    save_file(result.arrays.to_torch_state_dict(), Path(str(context.run_config["out"])))
