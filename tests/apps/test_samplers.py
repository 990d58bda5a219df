import pytest

from apps.image_classification.config import AppConfig
from apps.image_classification.samplers import SAMPLERS
from flower_psl import (
    FixedLocalSampler,
    GlobalSampler,
    ProportionalLocalSampler,
    Sampler,
    SequentialSampler,
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
    ],
)
def test_every_name_gives_its_sampler(
    config: dict[str, bool | float | int | str], sampler: Sampler
) -> None:
    parsed = AppConfig.from_run_config(config)
    assert SAMPLERS[parsed.sampler](parsed) == sampler


def test_the_samplers_are_those_of_the_paper() -> None:
    assert list(SAMPLERS) == ["gpsl", "fls", "fpls", "sl"]
