"""The clients of a run, as a part of it that is saved."""

from dataclasses import replace
from typing import Any

from flower_psl.errors import CheckpointError, ClientError, ConfigError
from flower_psl.server.checkpoints.checkpoint_store import Saved
from flower_psl.server.participants import Participants
from flower_psl.storage import State

# No node has this address.
_NOWHERE = -1


def client_list(participants: Participants) -> State:
    """Return the clients of a run, with what they have.

    Raises
    ------
    ConfigError
        If they have no client keys by which they could be known again.
    """
    if not participants.have_keys:
        raise ConfigError(
            "a node has no client key, and node ids are others in every run; a run can be resumed "
            "only with clients that can be known again. Give each node a partition-id or a "
            "client-key in its node config, or run without checkpoints."
        )
    return {"train": dict(participants.num_examples), "test": dict(participants.num_test_examples)}


def rejoined(participants: Participants, saved: Saved) -> Participants:
    """Return the clients of a run that is resumed: those that it had, wherever they are.

    Parameters
    ----------
    participants : Participants
        Who is there.
    saved : Saved
        The checkpoint, whose ``clients`` are what `client_list` returned.

    Raises
    ------
    CheckpointError
        If one is there that the run did not have, or with other numbers of examples.
    """
    clients: Any = saved.state.get("clients")
    match clients:
        case {"train": dict(train), "test": dict(test)} if _are_counts(train, test):
            pass
        case _:
            raise CheckpointError(
                f"{saved.where}: its 'clients' are {clients!r}; they must be numbers of examples "
                "by client key. Use a checkpoint that nobody has changed."
            )
    for name, own in client_list(participants).items():
        for key, count in own.items():
            if (before := clients[name].get(key)) != count:
                had = "is new to the run" if before is None else f"had {before}"
                raise CheckpointError(
                    f"{saved.where}: client {key} has {count} {name} examples, and {had}; a run "
                    "goes on with the data that it had. Give the client its data again, or begin "
                    "anew in another folder."
                )
    return replace(
        participants,
        nodes={key: participants.nodes.get(key, _NOWHERE) for key in train},
        num_examples=train,
        num_test_examples=test,
    )


def absent(participants: Participants) -> dict[int, ClientError]:
    """Return the clients that a resumed run waits for in vain, with what is to be said of it."""
    return {
        key: ClientError(f"client {key}: it is not there when the run is resumed")
        for key, node in participants.nodes.items()
        if node == _NOWHERE
    }


def _are_counts(train: dict[object, object], test: dict[object, object]) -> bool:
    numbers = [*train, *train.values(), *test.values()]
    return train.keys() == test.keys() and all(
        type(number) is int and number >= 0 for number in numbers
    )
