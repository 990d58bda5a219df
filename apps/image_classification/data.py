"""The images of a run: loaded once a process, decoded once a client."""

from functools import lru_cache
from threading import RLock

from datasets import Dataset, disable_progress_bars
from flwr_datasets.partitioner import Partitioner
from torch.utils.data import TensorDataset

from flower_psl import ConfigError

from .columns import find_columns
from .config import DataConfig
from .image_format import ImageFormat
from .image_spec import ImageSpec
from .normalization import normalized, statistics_for
from .partitioners import partitioned
from .splits import load_splits

HELD_OUT_PART = 5

# Clients that share a process may ask from threads of their own.
_LOCK = RLock()


class ImageData:
    """A data set whose images become tensors where they are needed.

    Parameters
    ----------
    config : DataConfig

    Raises
    ------
    ConfigError
        If the data set cannot be loaded, or is not one of images and their classes.
    """

    def __init__(self, config: DataConfig) -> None:
        self._config = config
        self._train, self._test = load_splits(config)
        self._columns = find_columns(
            self._train, image_column=config.image_column, label_column=config.label_column
        )
        self._format = ImageFormat.like(
            self._train[0][self._columns.image], mode=config.image_mode, size=config.image_size
        )
        self._statistics = statistics_for(
            config.dataset, config.normalize_mean, config.normalize_std
        )
        self._partitioners: dict[int, Partitioner] = {}
        self._partitions: dict[tuple[int, int], TensorDataset] = {}

    @property
    def spec(self) -> ImageSpec:
        """What a model has to know of the images."""
        return ImageSpec(
            num_channels=self._format.num_channels,
            height=self._format.height,
            width=self._format.width,
            num_classes=len(self._columns.classes),
        )

    def test_set(self) -> TensorDataset:
        """Decode the test split.

        Returns
        -------
        TensorDataset
            Images of shape (N, C, H, W), float32, and labels of shape (N,), int64.

        Raises
        ------
        ConfigError
            If an image or a label does not fit the training split.
        """
        return self._tensors(self._test)

    def train_set(self) -> TensorDataset:
        """Decode the whole training split; see `test_set`."""
        return self._tensors(self._train)

    def partition(self, partition_id: int, num_partitions: int) -> TensorDataset:
        """Return the training examples of one client, which may be none; decode them once.

        Parameters
        ----------
        partition_id : int
            The client, from 0.
        num_partitions : int
            How many clients there are.

        Returns
        -------
        TensorDataset
            As for `test_set`.

        Raises
        ------
        ConfigError
            If there is no such client, or the split cannot be dealt out to so many.
        """
        if not 0 <= partition_id < num_partitions:
            raise ConfigError(
                f"partition-id = {partition_id} is out of range: with num-partitions = "
                f"{num_partitions} it has to be one of 0 ... {num_partitions - 1}."
            )
        with _LOCK:
            key = (partition_id, num_partitions)
            if key not in self._partitions:
                partition = self._partitioner(num_partitions).load_partition(partition_id)
                self._partitions[key] = self._tensors(partition)
            return self._partitions[key]

    def _partitioner(self, num_partitions: int) -> Partitioner:
        if num_partitions not in self._partitioners:
            self._partitioners[num_partitions] = partitioned(
                self._train,
                self._config,
                num_partitions=num_partitions,
                label_column=self._columns.label,
            )
        return self._partitioners[num_partitions]

    def _tensors(self, dataset: Dataset) -> TensorDataset:
        pixels = self._format.decode(dataset, self._columns.image)
        return TensorDataset(normalized(pixels, self._statistics), self._columns.labels(dataset))


def load_images(config: DataConfig) -> ImageData:
    """Load a data set; a process keeps the last one that it loaded.

    Raises
    ------
    ConfigError
        As `ImageData`.
    """
    # A log shared by ten devices is no place for their progress bars.
    disable_progress_bars()
    with _LOCK:
        return _load_images(config)


@lru_cache(maxsize=1)
def _load_images(config: DataConfig) -> ImageData:
    return ImageData(config)


def held_out(examples: TensorDataset) -> tuple[TensorDataset, TensorDataset]:
    """Divide a client's examples: the last fifth, rounded down, is for tests.

    Returns
    -------
    tuple of TensorDataset
        Training examples and test examples; the latter are none if there are fewer than 5.
    """
    return divided(examples, len(examples) - len(examples) // HELD_OUT_PART)


def divided(examples: TensorDataset, first: int) -> tuple[TensorDataset, TensorDataset]:
    """Divide examples into the first so many and the rest."""
    return (
        TensorDataset(*(tensor[:first] for tensor in examples.tensors)),
        TensorDataset(*(tensor[first:] for tensor in examples.tensors)),
    )
