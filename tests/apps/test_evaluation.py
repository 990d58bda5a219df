import math

import pytest
import torch
from flwr.app import ArrayRecord
from torch import nn
from torch.utils.data import TensorDataset

from apps.image_classification.evaluation import central_evaluation, evaluate


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(4, 3))


def examples(size: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    return TensorDataset(
        torch.randn(size, 1, 2, 2, generator=generator),
        torch.randint(0, 3, (size,), generator=generator),
    )


@pytest.mark.parametrize("batch_size", [1, 4, 10, 64])
def test_figures_are_those_counted_one_by_one(batch_size: int) -> None:
    model, data = linear().train(), examples(10)
    result = evaluate(model, data, batch_size=batch_size, device="cpu")
    correct, loss = 0, 0.0
    for image, label in zip(*data.tensors, strict=True):
        scores = model(image[None])[0].tolist()
        correct += scores.index(max(scores)) == int(label)
        loss -= scores[label] - math.log(sum(map(math.exp, scores)))
    assert result.num_examples == 10
    assert result.accuracy == correct / 10
    assert result.loss == pytest.approx(loss / 10, rel=1e-5)


def test_the_arrays_of_the_round_are_evaluated() -> None:
    data, trained = examples(20), linear()
    with torch.no_grad():
        trained[2].weight.zero_()  # type: ignore[index]
        trained[2].bias.copy_(torch.tensor([0.0, 9.0, 0.0]))  # type: ignore[index]
    evaluate_fn = central_evaluation(linear(), data, batch_size=8, device="cpu")
    metrics = evaluate_fn(3, ArrayRecord(trained.state_dict()))
    assert metrics["accuracy"] == pytest.approx(float((data.tensors[1] == 1).float().mean()))
    assert metrics["num-examples"] == 20
    assert set(metrics) == {"accuracy", "loss", "num-examples"}
