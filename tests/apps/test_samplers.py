from pathlib import Path

import pytest

from apps.image_classification.config import AppConfig
from apps.image_classification.samplers import SAMPLERS
from flower_psl import (
    BalancedSampler,
    ClientCost,
    CostModel,
    FixedLocalSampler,
    GlobalSampler,
    LatentDirichletSampler,
    ProportionalLocalSampler,
    Sampler,
    SequentialSampler,
    StragglerSampler,
)


@pytest.mark.parametrize(
    ("config", "sampler"),
    [
        (
            {"sampler": "gpsl", "batch-size": 8, "seed": 5, "drop-last": True}
            | {"min-client-batch": 2},
            GlobalSampler(batch_size=8, seed=5, drop_last=True, min_client_batch=2),
        ),
        ({"sampler": "fls", "batch-size": 8}, FixedLocalSampler(batch_size=8)),
        ({"sampler": "fls", "local-batch-size": 3}, FixedLocalSampler(local_batch_size=3)),
        ({"sampler": "fpls", "batch-size": 8}, ProportionalLocalSampler(batch_size=8)),
        ({"sampler": "sl", "batch-size": 8}, SequentialSampler(batch_size=8)),
        ({"sampler": "balanced", "batch-size": 8, "seed": 5}, BalancedSampler(8, seed=5)),
        (
            {"sampler": "latent-dirichlet", "batch-size": 8, "seed": 5, "concentration": 2},
            LatentDirichletSampler(batch_size=8, concentration=2.0, seed=5),
        ),
    ],
)
def test_every_name_gives_its_sampler(
    config: dict[str, bool | float | int | str], sampler: Sampler
) -> None:
    parsed = AppConfig.from_run_config(config)
    assert SAMPLERS[parsed.sampler](parsed) == sampler


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("costs.csv", "client,seconds_per_example,seconds_per_participation\n4,0.5,0\n"),
        ("steps.jsonl", '{"clients": {"4": 2}, "client_seconds": {"4": 1.0}}\n'),
    ],
)
def test_costs_are_read_from_a_table_or_from_an_earlier_run(
    tmp_path: Path, name: str, text: str
) -> None:
    path = tmp_path / name
    path.write_text(text)
    parsed = AppConfig.from_run_config(
        {"sampler": "straggler", "client-costs": str(path), "participation": 0.3, "seed": 5}
    )
    assert SAMPLERS[parsed.sampler](parsed) == StragglerSampler(
        batch_size=64, participation=0.3, cost=CostModel({4: ClientCost(0.5)}), seed=5
    )


def test_the_first_samplers_are_those_of_the_paper() -> None:
    assert list(SAMPLERS)[:4] == ["gpsl", "fls", "fpls", "sl"]
