import math

import torch
from torch import nn

from simulations.image_data import load_images
from simulations.samplers import build_sampler
from simulations.training import Training, cosine, evaluated

TRAINING = Training(
    data=load_images("digits", "", 100, 40),
    model="cnn",
    batch_size=30,
    rounds=2,
    learning_rate=0.1,
    seed=1,
)


def test_the_learning_rate_falls_to_zero_along_a_cosine() -> None:
    optimizer = TRAINING.optimizer([nn.Parameter(torch.zeros(1))])
    scheduler = cosine(optimizer, 4)
    rates = []
    for _ in range(6):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert all(
        math.isclose(rate, 0.05 * (1 + math.cos(math.pi * min(step, 4) / 4)), abs_tol=1e-12)
        for step, rate in enumerate(rates)
    )


def test_evaluation_counts_what_is_right() -> None:
    images = torch.randn(1203, 4)
    labels = images.argmax(1)
    labels[:300] = (labels[:300] + 1) % 4
    model = nn.Sequential(nn.Identity(), nn.Dropout(0.5)).train()
    accuracy, loss = evaluated(model, images, labels)
    assert accuracy == 903 / 1203
    assert math.isclose(loss, float(nn.functional.cross_entropy(images, labels)), rel_tol=1e-5)
    assert model.training


def test_centralized_batches_use_every_example_once_a_round() -> None:
    first, second = ([b.tolist() for b in TRAINING.shuffled_batches(n)] for n in (1, 2))
    assert [len(batch) for batch in first] == [30, 30, 30, 10]
    assert sorted(place for batch in first for place in batch) == list(range(100))
    assert first != second


def test_split_and_centralized_start_from_the_same_weights() -> None:
    centralized = TRAINING.centralized()
    parts = [torch.arange(60).numpy(), torch.arange(60, 100).numpy()]
    split = TRAINING.split(build_sampler("gpsl", batch_size=30, seed=1), parts)
    assert [row["round"] for row in split] == [row["round"] for row in centralized] == [0, 1, 2]
    assert split[0]["loss"] == centralized[0]["loss"]
    assert split[2]["loss"] != centralized[2]["loss"]
    for row in split:
        assert (row["steps"], row["mean_batch"], row["max_batch"]) == (4, 25, 30)
