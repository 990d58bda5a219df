import pytest

from flower_psl import ClientCost, ConfigError, CostModel
from simulations.samplers import build_sampler, check_methods, every_fifth, slow_clients

NUM_EXAMPLES = dict.fromkeys(range(10), 20)


@pytest.mark.parametrize(
    "method",
    [
        "gpsl",
        "fpls",
        "fls",
        "sl",
        "balanced",
        "straggler:0.5",
        "latent-dirichlet:3",
        "quota:0.5",
    ],
)
def test_every_method_plans(method: str) -> None:
    sampler = build_sampler(method, batch_size=16, seed=3, slow=every_fifth(10))
    totals = sampler.schedule(NUM_EXAMPLES, 1).totals
    slow = 10 if method.startswith("quota") else 20
    assert totals == {key: slow if key in (4, 9) else 20 for key in range(10)}


def test_the_number_and_the_seed_arrive() -> None:
    def plan(method: str, seed: int) -> object:
        sampler = build_sampler(method, batch_size=16, seed=seed, slow=every_fifth(10))
        return sampler.schedule(NUM_EXAMPLES, 1)

    assert plan("straggler:1", 3) == plan("gpsl", 3) == plan("latent-dirichlet:inf", 3)
    assert plan("straggler:0.5", 3) != plan("straggler:1", 3)
    assert plan("gpsl", 4) != plan("gpsl", 3)


@pytest.mark.parametrize(
    ("method", "parts"),
    [
        ("nope", ["'nope'", "does not exist", "gpsl"]),
        ("straggler", ["takes a number", "share of the steps"]),
        ("gpsl:3", ["takes no number", "'gpsl:3'"]),
        ("quota:half", ["'half' is no number", "share of their data"]),
        ("straggler:2", ["participation is 2.0"]),
    ],
)
def test_a_wrong_method_is_refused(method: str, parts: list[str]) -> None:
    with pytest.raises(ConfigError) as raised:
        check_methods(["fls", method], 16)
    assert all(part in str(raised.value) for part in parts)


@pytest.mark.parametrize("methods", [[], ["gpsl", "gpsl"]])
def test_methods_are_named_once(methods: list[str]) -> None:
    with pytest.raises(ConfigError, match="name one or more, each once"):
        check_methods(methods, 16)


def test_slow_is_above_twice_the_median() -> None:
    cost = CostModel({key: ClientCost(0.1 * key, 1.0) for key in range(5)})
    # Seconds of one example: 1.0, 1.1, 1.2, 1.3, 1.4.
    assert slow_clients(cost, dict.fromkeys(range(5), 9)) == frozenset()
    cost = CostModel({key: ClientCost(0.1, 5.0 if key == 2 else 1.0) for key in range(5)})
    assert slow_clients(cost, dict.fromkeys(range(5), 9)) == {2}
    with pytest.raises(ConfigError, match="the clients 5"):
        slow_clients(cost, dict.fromkeys(range(6), 9))
