from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from flower_psl import ProtocolError
from flower_psl.transport.corruptions import Corruption, corrupted
from flower_psl.wire import Phase, StepId, StepReply, parts

ID = StepId(seed=0, server_round=1, plan=0, step=5, client_key=2, start=0, batch_size=3)
FORWARD = StepReply(
    phase=Phase.FORWARD,
    id=ID,
    activations=torch.arange(1.0, 7.0).reshape(3, 2),
    activation_dtype=torch.float32,
    labels=torch.tensor([0, 1, 0]),
    exchange_s=0.5,
)
BACKWARD = StepReply(phase=Phase.BACKWARD, id=ID, gradients={"w": torch.ones(2, 2)})


def differing(reply: StepReply, corruption: Corruption) -> tuple[str, Tensor, Tensor | None]:
    """Return the one tensor that is changed: its name, and what it was and is."""
    wrong = corrupted(reply, corruption, np.random.default_rng(0))
    assert (wrong.id, wrong.phase, wrong.exchange_s) == (reply.id, reply.phase, reply.exchange_s)
    before, after = parts.reply_tensors(reply), parts.reply_tensors(wrong)
    assert after.keys() <= before.keys()
    ((name, tensor),) = (
        (name, tensor)
        for name, tensor in before.items()
        if name not in after
        or after[name].dtype != tensor.dtype
        or not torch.equal(after[name], tensor)
    )
    return name, tensor, after.get(name)


@pytest.mark.parametrize(
    ("corruption", "is_wrong"),
    [
        (Corruption.NAN, lambda _, now: int(now.isnan().sum()) == 1),
        (Corruption.INFINITE, lambda _, now: int(now.isinf().sum()) == 1),
        (Corruption.HUGE, lambda was, now: torch.equal(now, was * 1e12)),
        (Corruption.SIGN, lambda was, now: torch.equal(now, -was)),
        (Corruption.SHAPE, lambda was, now: len(now) == len(was) - 1),
        (Corruption.DTYPE, lambda _, now: now.dtype == torch.uint8),
        (Corruption.MISSING, lambda _, now: now is None),
    ],
)
@pytest.mark.parametrize("reply", [FORWARD, BACKWARD])
def test_one_tensor_becomes_wrong(
    reply: StepReply, corruption: Corruption, is_wrong: Callable[[Tensor, Tensor], bool]
) -> None:
    _, was, now = differing(reply, corruption)
    assert is_wrong(was, now)  # type: ignore[arg-type]


def test_labels_become_those_of_no_class() -> None:
    name, _, now = differing(FORWARD, Corruption.LABELS)
    assert name == "labels"
    assert now is not None
    assert now.tolist() == [1_000_000] * 3


@pytest.mark.parametrize(
    ("reply", "corruption"),
    [
        (FORWARD, Corruption.STEP),
        (BACKWARD, Corruption.LABELS),
        (StepReply(phase=Phase.SETTLE, id=ID), Corruption.NAN),
    ],
)
def test_what_has_no_tensor_for_it_answers_another_step(
    reply: StepReply, corruption: Corruption
) -> None:
    wrong = corrupted(reply, corruption, np.random.default_rng(0))
    assert wrong.id == ID._replace(step=4)
    assert parts.reply_tensors(wrong).keys() == parts.reply_tensors(reply).keys()


def test_a_scalar_gets_another_shape_and_the_original_stays_as_it_is() -> None:
    reply = StepReply(phase=Phase.BACKWARD, id=ID, gradients={"w": torch.tensor(2.0)})
    wrong = corrupted(reply, Corruption.SHAPE, np.random.default_rng(0))
    assert wrong.gradients["w"].shape == (1,)
    corrupted(reply, Corruption.NAN, np.random.default_rng(0))
    assert reply.gradients["w"].item() == 2.0


def test_what_is_no_reply_any_more_is_refused() -> None:
    reply = StepReply(
        phase=Phase.FORWARD,
        id=ID,
        activations=torch.ones(1),
        extras={"activations|scale": torch.zeros(0)},  # it is empty, so it is not drawn
    )
    with pytest.raises(ProtocolError, match=r"a reply holds the tensor 'activations\|scale'"):
        corrupted(reply, Corruption.MISSING, np.random.default_rng(0))
