import torch

from flower_psl.server.weighted_mean import weighted_mean


def test_a_mean_keeps_dtypes_and_rounds_integers() -> None:
    parts = {
        1: {"w": torch.tensor([0.0, 4.0]), "n": torch.tensor(1)},
        8: {"w": torch.tensor([4.0, 0.0]), "n": torch.tensor(4)},
    }
    mean = weighted_mean(parts, {1: 3, 8: 1, 9: 100})
    torch.testing.assert_close(mean["w"], torch.tensor([1.0, 3.0]))
    # (3 x 1 + 4) / 4 = 1.75
    assert mean["n"].dtype is torch.int64
    assert int(mean["n"]) == 2


def test_a_mean_is_no_view_of_its_parts() -> None:
    part = {"w": torch.ones(2)}
    mean = weighted_mean({1: part}, {1: 5})
    mean["w"].zero_()
    assert part["w"].tolist() == [1.0, 1.0]


def test_a_mean_of_nothing_is_empty() -> None:
    assert weighted_mean({1: {}, 2: {}}, {1: 1, 2: 1}) == {}
