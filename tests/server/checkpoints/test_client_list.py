from dataclasses import replace
from typing import Any

import pytest

from flower_psl.errors import CheckpointError, ConfigError
from flower_psl.server.checkpoints.checkpoint_store import Saved
from flower_psl.server.checkpoints.client_list import absent, client_list, rejoined
from flower_psl.server.participants import Participants
from flower_psl.storage import Version

HERE = Participants(
    nodes={0: 100, 3: 101}, num_examples={0: 5, 3: 7}, num_test_examples={0: 0, 3: 2}
)


def saved(clients: Any) -> Saved:
    return Saved(Version(1, 0), "file", {"clients": clients})


def test_the_clients_of_a_run_come_back_wherever_they_are() -> None:
    again = replace(HERE, nodes={0: 205, 3: 204})
    clients = rejoined(again, saved(client_list(HERE)))
    assert clients == again
    assert absent(clients) == {}


def test_one_that_is_missing_is_known_to_be() -> None:
    three = replace(
        HERE,
        nodes={0: 1, 2: 2, 3: 3},
        num_examples={0: 5, 2: 4, 3: 7},
        num_test_examples={0: 0, 2: 1, 3: 2},
    )
    clients = rejoined(HERE, saved(client_list(three)))
    assert clients.num_examples == three.num_examples
    assert clients.num_test_examples == three.num_test_examples
    assert {key: str(error) for key, error in absent(clients).items()} == {
        2: "client 2: it is not there when the run is resumed"
    }


@pytest.mark.parametrize(
    ("clients", "said"),
    [
        (
            {"train": {0: 5, 3: 8}, "test": {0: 0, 3: 2}},
            "client 3 has 7 train .* and had 8; .*Give",
        ),
        ({"train": {0: 5, 3: 7}, "test": {0: 0, 3: 1}}, "client 3 has 2 test examples, and had 1"),
        (
            {"train": {0: 5}, "test": {0: 0}},
            "client 3 has 7 train examples, and is new to the run",
        ),
    ],
)
def test_other_data_are_refused_by_client(clients: object, said: str) -> None:
    with pytest.raises(CheckpointError, match=f"^file: {said}"):
        rejoined(HERE, saved(clients))


@pytest.mark.parametrize(
    "clients",
    [
        None,
        [],
        {"train": {}},
        {"train": {0: 5, 3: 7}, "test": {0: 0}},
        {"train": {0: 5, "3": 7}, "test": {0: 0, "3": 2}},
        {"train": {0: 5, 3: -7}, "test": {0: 0, 3: 2}},
        {"train": {0: 5, 3: True}, "test": {0: 0, 3: 2}},
    ],
)
def test_what_is_no_list_of_clients_is_refused(clients: object) -> None:
    with pytest.raises(CheckpointError, match=r"file: its 'clients' are .*; they must be numbers"):
        rejoined(HERE, saved(clients))


def test_clients_that_cannot_be_known_again_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"no client key, .* known again\. Give each node"):
        client_list(replace(HERE, have_keys=False))
