"""The server: the layers behind the cut, and how the whole model is trained."""

import torch
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from torch import nn

from flower_psl import GlobalSampler, ParallelSplitLearning, cut

from .task import CUT, Net, test_set

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train with global sampling; test the whole model after every round."""
    config = context.run_config
    model = Net()
    strategy = ParallelSplitLearning(
        model=cut(model, at=CUT),
        sampler=GlobalSampler(batch_size=int(config["batch-size"])),
        loss_fn=nn.CrossEntropyLoss(),
        optimizer_fn=lambda params: torch.optim.Adam(params, lr=float(config["learning-rate"])),
    )
    strategy.start(
        grid,
        initial_arrays=ArrayRecord(model.state_dict()),
        num_rounds=int(config["num-server-rounds"]),
        evaluate_fn=evaluate,
    )


@torch.no_grad()
def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
    """Return the accuracy of the whole model on the images that no device has."""
    model = Net().eval()
    model.load_state_dict(arrays.to_torch_state_dict())
    images, labels = test_set().tensors
    hits = model(images).argmax(1) == labels
    return MetricRecord({"accuracy": float(hits.float().mean())})
