from collections.abc import Callable

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL.Image import fromarray

from apps.image_classification.columns import Columns, find_columns

PIXELS = fromarray(np.zeros((2, 2), dtype=np.uint8))


def table(features: dict[str, object], **columns: list[object]) -> Dataset:
    length = max(map(len, columns.values()))
    images = {name: [PIXELS] * length for name, kind in features.items() if name not in columns}
    return Dataset.from_dict(images | columns, features=Features(features))


def test_the_only_image_and_class_columns_are_found() -> None:
    data = table(
        {"id": Value("int64"), "img": Image(), "kind": ClassLabel(num_classes=3)},
        id=[7, 8],
        kind=[2, 0],
    )
    columns = find_columns(data, image_column="", label_column="")
    assert columns == Columns(image="img", label="kind", classes=(0, 1, 2))
    assert columns.labels(data).tolist() == [2, 0]


@pytest.mark.parametrize(
    ("dtype", "values", "classes", "labels"),
    [
        ("int64", [30, 10, 30], (10, 30), [1, 0, 1]),
        ("string", ["dog", "cat", "dog"], ("cat", "dog"), [1, 0, 1]),
    ],
)
def test_values_become_classes_in_their_order(
    dtype: str, values: list[object], classes: tuple[object, ...], labels: list[int]
) -> None:
    data = table({"img": Image(), "y": Value(dtype)}, y=values)
    columns = find_columns(data, image_column="", label_column="y")
    assert columns.classes == classes
    assert columns.labels(data).tolist() == labels


def test_columns_that_are_not_there_are_refused(refusal: Callable[..., str]) -> None:
    data = table({"img": Image(), "y": ClassLabel(num_classes=2)}, y=[0, 1])
    for key in ("image_column", "label_column"):
        names = {"image_column": "", "label_column": "", key: "nothing"}
        text = refusal(find_columns, data, **names)
        assert f"{key.replace('_', '-')} = 'nothing' is no column" in text
        assert "The columns are: img (Image), y (ClassLabel)." in text


def test_columns_that_cannot_be_told_apart_are_refused(refusal: Callable[..., str]) -> None:
    kinds = {"fine": ClassLabel(num_classes=2), "coarse": ClassLabel(num_classes=2)}
    data = table({"img": Image(), **kinds}, fine=[0, 1], coarse=[0, 1])
    text = refusal(find_columns, data, image_column="", label_column="")
    assert "label-column is empty, and 2 columns have the feature ClassLabel" in text
    assert "Set label-column to one of these." in text
    assert "fine (ClassLabel), coarse (ClassLabel)" in text


def test_a_data_set_without_images_is_refused(refusal: Callable[..., str]) -> None:
    data = table({"x": Value("int64"), "y": ClassLabel(num_classes=2)}, x=[1, 2], y=[0, 1])
    text = refusal(find_columns, data, image_column="", label_column="")
    assert "image-column is empty, and 0 columns have the feature Image" in text
    text = refusal(find_columns, data, image_column="x", label_column="")
    assert "image-column = 'x' holds" in text
    assert "Cast the column to datasets.Image(), or name another." in text


def test_labels_that_are_no_classes_are_refused(refusal: Callable[..., str]) -> None:
    data = table({"img": Image(), "y": Value("float64")}, y=[0.5, 1.5])
    text = refusal(find_columns, data, image_column="", label_column="y")
    assert "label-column = 'y' holds" in text
    assert "class labels, whole numbers, or text" in text
    assert "Set label-column to another." in text


def test_labels_unknown_to_the_training_split_are_refused(refusal: Callable[..., str]) -> None:
    data = table({"img": Image(), "y": Value("int64")}, y=[4, -1, 9])
    columns = Columns(image="img", label="y", classes=(4, 9))
    text = refusal(columns.labels, data)
    assert "label -1 in column 'y' is none of the 2 classes" in text
    assert "1 of 3 examples" in text
    assert "name a split that has labels" in text
