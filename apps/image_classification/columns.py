"""Which columns of a data set hold the images and their labels, and what the classes are."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Image, Value
from torch import Tensor

from flower_psl import ConfigError


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The two columns that matter.

    Attributes
    ----------
    image, label : str
        Names of the columns.
    classes : tuple
        The value in the label column of class 0, 1, ....
    """

    image: str
    label: str
    classes: tuple[Any, ...]

    def labels(self, dataset: Dataset) -> Tensor:
        """Return the classes of a data set's examples.

        Returns
        -------
        Tensor, shape (N,), int64

        Raises
        ------
        ConfigError
            If an example has a label that is none of the classes.
        """
        number_of = {value: number for number, value in enumerate(self.classes)}
        values = dataset[self.label][:]
        unknown = [value for value in values if value not in number_of]
        if unknown:
            raise ConfigError(
                f"label {unknown[0]!r} in column {self.label!r} is none of the "
                f"{len(self.classes)} classes of the training split ({len(unknown)} of "
                f"{len(values)} examples have such a label); name a split that has labels, or "
                "another label-column."
            )
        return torch.from_numpy(np.array([number_of[v] for v in values], dtype=np.int64))


def find_columns(train: Dataset, *, image_column: str, label_column: str) -> Columns:
    """Find the columns of a training split; a name that is given is taken, and checked.

    Parameters
    ----------
    train : Dataset
        The training split. Classes that are not declared as a ``ClassLabel`` are the sorted
        values of its label column.
    image_column, label_column : str
        Names, or "" for the only column that has the feature ``Image``, or ``ClassLabel``.

    Raises
    ------
    ConfigError
        If a column is not there, has the wrong type, or cannot be told from others.
    """
    image = _column("image-column", image_column, train, Image)
    label = _column("label-column", label_column, train, ClassLabel)
    if not isinstance(train.features[image], Image):
        raise ConfigError(
            f"image-column = {image!r} holds {train.features[image]}, not images. "
            f"{_listing(train)} Cast the column to datasets.Image(), or name another."
        )
    return Columns(image=image, label=label, classes=_classes(train, label))


def _column(key: str, name: str, dataset: Dataset, feature: type) -> str:
    if name:
        if name not in dataset.column_names:
            raise ConfigError(
                f"{key} = {name!r} is no column of the data set. {_listing(dataset)} "
                f"Set {key} to one of these."
            )
        return name
    found: list[str] = [
        column for column, kind in dataset.features.items() if isinstance(kind, feature)
    ]
    if len(found) != 1:
        raise ConfigError(
            f"{key} is empty, and {len(found)} columns have the feature {feature.__name__}, so "
            f"that it cannot be found. {_listing(dataset)} Set {key} to one of these."
        )
    return found[0]


def _classes(train: Dataset, label: str) -> tuple[Any, ...]:
    kind = train.features[label]
    if isinstance(kind, ClassLabel):
        return tuple(range(kind.num_classes))
    whole_or_text = ("int", "uint", "string", "large_string", "bool")
    if not isinstance(kind, Value) or not kind.dtype.startswith(whole_or_text):
        raise ConfigError(
            f"label-column = {label!r} holds {kind}; labels have to be class labels, whole "
            f"numbers, or text. {_listing(train)} Set label-column to another."
        )
    return tuple(sorted(value for value in train.unique(label) if value is not None))


def _listing(dataset: Dataset) -> str:
    columns = (f"{name} ({type(kind).__name__})" for name, kind in dataset.features.items())
    return f"The columns are: {', '.join(columns)}."
