from collections.abc import Callable

from flwr.app import Context, RecordDict

from apps.image_classification.client_app import client_fn

NODE: dict[str, bool | float | int | str] = {"partition-id": 1, "num-partitions": 3}


def context(
    node_config: dict[str, bool | float | int | str],
    run_config: dict[str, bool | float | int | str],
) -> Context:
    return Context(
        run_id=1, node_id=2, node_config=node_config, state=RecordDict(), run_config=run_config
    )


def test_a_client_has_its_partition_and_the_segment_in_front_of_the_cut() -> None:
    config: dict[str, bool | float | int | str] = {
        "max-train-examples": 60,
        "partitioner": "iid",
    }
    description = client_fn(context(NODE, config)).describe()
    assert (description.num_examples, description.num_test_examples) == (20, 0)
    assert description.has_optimizer
    names = set(description.segment)
    assert names == {f"block1.{layer}.{kind}" for layer in "01" for kind in ("weight", "bias")}


def test_a_fifth_is_held_out_if_clients_evaluate() -> None:
    config: dict[str, bool | float | int | str] = {
        "max-train-examples": 60,
        "partitioner": "iid",
        "fraction-evaluate": 0.5,
    }
    description = client_fn(context(NODE, config)).describe()
    assert (description.num_examples, description.num_test_examples) == (16, 4)


def test_configuration_errors_come_first(refusal: Callable[..., str]) -> None:
    assert "sampler = 'x'" in refusal(client_fn, context({}, {"sampler": "x"}))
