"""A training run, as a job, and the settings that experiments with training share."""

from dataclasses import dataclass, field

import numpy as np

from flower_psl import ConfigError
from simulations.dirichlet import Parts, deal_out
from simulations.image_data import ImageData, load_images
from simulations.models import MODELS
from simulations.options import RunSettings, check_at_least, check_one_of, option
from simulations.planned_job import PlannedJob
from simulations.samplers import METHODS, check_methods
from simulations.training import Training


@dataclass(frozen=True, kw_only=True)
class TrainingJob(PlannedJob):
    """One training run of one method, paired with those of the same seed.

    Attributes
    ----------
    method : str
        The sampler.
    clients, alpha : int, float
        Number of clients K, and Dirichlet concentration.
    seed : int
        Of the weights, the partition and all draws.
    data, data_path, examples, test_examples : str, str, int, int
        As for `load_images`.
    model, batch_size, rounds, learning_rate : str, int, int, float
        As for `Training`.
    """

    method: str
    clients: int
    alpha: float
    seed: int
    data: str
    data_path: str = field(compare=False)  # the same images, wherever they lie
    examples: int
    test_examples: int
    model: str
    batch_size: int
    rounds: int
    learning_rate: float

    def images(self) -> ImageData:
        """Return the pooled data."""
        return load_images(self.data, self.data_path, self.examples, self.test_examples)

    def parts(self) -> Parts:
        """Deal out the pooled data, for all methods alike."""
        labels = self.images().train_labels.numpy()
        draws = np.random.default_rng([self.seed, self.clients])
        return deal_out(labels, self.clients, self.alpha, draws)

    def num_examples(self) -> dict[int, int]:
        """Return the number of examples of each client."""
        return {key: len(part) for key, part in enumerate(self.parts())}

    def training(self) -> Training:
        """Return what does not depend on the method."""
        return Training(
            data=self.images(),
            model=self.model,
            batch_size=self.batch_size,
            rounds=self.rounds,
            learning_rate=self.learning_rate,
            seed=self.seed,
        )


@dataclass(frozen=True, kw_only=True)
class TrainingSettings(RunSettings):
    """What is trained, and on what."""

    methods: tuple[str, ...] = option(("gpsl", "fpls", "fls"), f"samplers, any of {METHODS}")
    data: str = option("digits", "digits (embedded) or cifar10")
    data_path: str = option("uoft-cs/cifar10", "of cifar10: a name on the Hub or a local folder")
    examples: int = option(10_000, "training examples at most; 0 = all", quick=1_000)
    test_examples: int = option(0, "test examples at most; 0 = all")
    model: str = option("cnn", f"any of {', '.join(MODELS)}")
    batch_size: int = option(128, "global batch size B", quick=64)
    rounds: int = option(5, "passes over the data", quick=4)
    learning_rate: float = option(0.05, "of the first step; it falls to zero along a cosine")
    seeds: int = option(5, "seeds, of weights, partition and draws, paired", quick=3)

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        super().__post_init__()
        check_one_of("data", self.data, ("digits", "cifar10"))
        check_one_of("model", self.model, tuple(MODELS))
        for name, least in (
            ("examples", 0),
            ("test_examples", 0),
            ("batch_size", 1),
            ("rounds", 1),
            ("seeds", 2),
        ):
            check_at_least(name, getattr(self, name), least)
        check_methods(self.methods, self.batch_size)
        if not 0 < self.learning_rate < np.inf:
            raise ConfigError(
                f"learning_rate is {self.learning_rate}; it must be above 0 and finite: "
                "give for instance 0.05"
            )
