from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from flower_psl import ProtocolError
from flower_psl.wire import (
    Phase,
    StepId,
    StepReply,
    StepRequest,
    check_batch,
    check_belongs,
    check_gradients,
)

ID = StepId(seed=7, server_round=2, plan=0, step=40, client_key=3, start=16, batch_size=8)
WHERE = "client 3, round 2, step 40: "


def forward_reply(activations: Tensor | None, labels: Tensor | None) -> StepReply:
    return StepReply(phase=Phase.FORWARD, id=ID, activations=activations, labels=labels)


def backward_reply(gradients: Mapping[str, Tensor], unused: tuple[str, ...] = ()) -> StepReply:
    return StepReply(phase=Phase.BACKWARD, id=ID, gradients=gradients, unused=unused)


def test_a_step_is_named_as_people_name_it() -> None:
    assert f"{ID}: " == WHERE


@pytest.mark.parametrize("field", [name for name in StepId._fields if name != "batch_size"])
def test_a_negative_number_in_an_id_is_refused(field: str) -> None:
    with pytest.raises(ProtocolError, match="no number may be negative"):
        StepRequest(phase=Phase.FORWARD, id=ID._replace(**{field: -1}))


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_client_with_nothing_to_give_is_left_alone(batch_size: int) -> None:
    with pytest.raises(ProtocolError, match=f"{WHERE}.*{batch_size} examples from 16.*left alone"):
        StepRequest(phase=Phase.FORWARD, id=ID._replace(batch_size=batch_size))


@pytest.mark.parametrize("phase", [Phase.FORWARD, Phase.EVALUATE])
def test_only_a_backward_request_has_a_gradient(phase: Phase) -> None:
    with pytest.raises(
        ProtocolError, match=f"{WHERE}a {phase} request with a gradient;.*backward"
    ):
        StepRequest(phase=phase, id=ID, gradient=torch.zeros(8, 2))


def test_a_backward_request_without_a_gradient_is_refused() -> None:
    with pytest.raises(ProtocolError, match=f"{WHERE}a backward request without a gradient"):
        StepRequest(phase=Phase.BACKWARD, id=ID)


@pytest.mark.parametrize("shape", [(), (7, 2), (9,), (0,)])
def test_a_gradient_of_another_count_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ProtocolError, match=f"{WHERE}a cut gradient of shape .* for 8 examples"):
        StepRequest(phase=Phase.BACKWARD, id=ID, gradient=torch.zeros(shape))


PREVIOUS = ID._replace(step=38, batch_size=3)


def test_a_gradient_belongs_to_the_step_that_waits_for_it() -> None:
    train = StepRequest(phase=Phase.TRAIN, id=ID, previous=PREVIOUS, gradient=torch.zeros(3, 2))
    assert train.settles == PREVIOUS
    assert StepRequest(phase=Phase.TRAIN, id=ID).settles is None
    for phase in (Phase.BACKWARD, Phase.SETTLE, Phase.COLLECT):
        assert StepRequest(phase=phase, id=ID, gradient=torch.zeros(8, 2)).settles == ID


def test_a_gradient_goes_with_the_step_before() -> None:
    with pytest.raises(ProtocolError, match=f"{WHERE}a train request without a gradient"):
        StepRequest(phase=Phase.TRAIN, id=ID, previous=PREVIOUS)
    with pytest.raises(ProtocolError, match=f"{WHERE}a train request with a gradient"):
        StepRequest(phase=Phase.TRAIN, id=ID, gradient=torch.zeros(8, 2))
    with pytest.raises(ProtocolError, match=r"step 38: a cut gradient of .* for 3 examples"):
        StepRequest(phase=Phase.TRAIN, id=ID, previous=PREVIOUS, gradient=torch.zeros(8, 2))


OF_STATE = (Phase.SAVE, Phase.RESTORE)


@pytest.mark.parametrize("phase", sorted(set(Phase) - {Phase.TRAIN, Phase.SAVE}))
def test_only_training_goes_on_from_a_step_before(phase: Phase) -> None:
    run = "r1" if phase in OF_STATE else ""
    with pytest.raises(ProtocolError, match=f"{WHERE}a {phase} request names a step before; only"):
        StepRequest(phase=phase, id=ID, run=run, previous=PREVIOUS, gradient=torch.zeros(8, 2))


@pytest.mark.parametrize("phase", OF_STATE)
def test_a_state_is_that_of_a_run_and_has_no_gradient_and_no_examples(phase: Phase) -> None:
    request = StepRequest(phase=phase, id=ID._replace(batch_size=0), run="3f9")
    assert request.settles is None
    for run in ("", "../up", "A", "x" * 41, "a b"):
        with pytest.raises(
            ProtocolError, match=f"{WHERE}a {phase} request of the run {run!r}; to"
        ):
            StepRequest(phase=phase, id=ID, run=run)
    with pytest.raises(ProtocolError, match=f"{WHERE}a {phase} request with a gradient"):
        StepRequest(phase=phase, id=ID, run="3f9", gradient=torch.zeros(8, 2))


def test_only_a_state_is_that_of_a_run() -> None:
    with pytest.raises(
        ProtocolError, match=f"{WHERE}a forward request of the run '3f9'; .* no ot"
    ):
        StepRequest(phase=Phase.FORWARD, id=ID, run="3f9")


def test_there_must_be_a_gradient_to_settle() -> None:
    with pytest.raises(ProtocolError, match=f"{WHERE}a settle request without a gradient"):
        StepRequest(phase=Phase.SETTLE, id=ID)


def test_what_was_trained_is_collected_with_or_without_a_gradient() -> None:
    assert StepRequest(phase=Phase.COLLECT, id=ID).settles is None
    assert StepRequest(phase=Phase.COLLECT, id=ID, gradient=torch.zeros(8, 2)).settles == ID


def test_payload_is_that_of_all_tensors() -> None:
    forward = StepRequest(phase=Phase.FORWARD, id=ID, weights={"w": torch.zeros(3, 2)})
    backward = StepRequest(phase=Phase.BACKWARD, id=ID, gradient=torch.zeros(8, 5))
    assert (forward.payload_bytes, backward.payload_bytes) == (24, 160)
    reply = StepReply(
        phase=Phase.FORWARD,
        id=ID,
        activations=torch.zeros(8, 5),
        labels=torch.zeros(8, dtype=torch.int64),
        moments={"bn.mean": torch.zeros(1, 4, dtype=torch.float64)},
    )
    assert reply.payload_bytes == 160 + 64 + 32
    assert backward_reply({"w": torch.zeros(3, 2)}).payload_bytes == 24


@pytest.mark.parametrize(
    ("phase", "step_id"),
    [
        (Phase.EVALUATE, ID),
        (Phase.FORWARD, ID._replace(step=39)),
        (Phase.FORWARD, ID._replace(client_key=4)),
        (Phase.FORWARD, ID._replace(seed=8)),
    ],
)
def test_an_answer_to_something_else_is_refused(phase: Phase, step_id: StepId) -> None:
    request = StepRequest(phase=Phase.FORWARD, id=ID)
    with pytest.raises(
        ProtocolError, match=f"{WHERE}asked for forward .* got an answer to {phase}"
    ):
        check_belongs(StepReply(phase=phase, id=step_id), request)


def test_a_batch_is_given_back_as_it_came() -> None:
    activations, labels = torch.rand(8, 2), torch.arange(8)
    checked = check_batch(forward_reply(activations, labels))
    assert checked[0] is activations
    assert checked[1] is labels


@pytest.mark.parametrize(
    ("activations", "labels", "text"),
    [
        (None, torch.zeros(8), "a forward reply without activations or labels; both are needed"),
        (torch.zeros(8, 2), None, "a forward reply without activations or labels; .*Install"),
        (torch.zeros(9, 2), torch.zeros(8), "9 activations for a batch of 8; the first size"),
        (torch.zeros(8, 2), torch.zeros(7), "7 labels for a batch of 8; the first size"),
        (torch.tensor(0.0), torch.zeros(8), "0 activations for a batch of 8"),
        (torch.zeros(8, 2), torch.tensor(1), "0 labels for a batch of 8"),
        (
            torch.zeros(8, 2).int(),
            torch.zeros(8),
            "the activations are torch.int32; .* Cut behind",
        ),
        (torch.zeros(8).bool(), torch.zeros(8), "the activations are torch.bool; .* floating-p"),
        (torch.full((8, 1), torch.nan), torch.zeros(8), "the activations have NaN.*Look at"),
        (torch.zeros(8, 1), torch.full((8,), torch.inf), "the labels have NaN or infinite"),
    ],
)
def test_a_batch_that_cannot_be_used_is_refused(
    activations: Tensor | None, labels: Tensor | None, text: str
) -> None:
    with pytest.raises(ProtocolError, match=WHERE + text):
        check_batch(forward_reply(activations, labels))


def test_gradients_may_leave_out_parameters_that_are_said_to_be_unused() -> None:
    parameters = {"a": torch.zeros(2, 3), "b": torch.zeros(2)}
    gradients = {"a": torch.ones(2, 3)}
    assert check_gradients(backward_reply(gradients, unused=("b",)), parameters) == gradients
    assert check_gradients(backward_reply({}, unused=("b", "a")), parameters) == {}


@pytest.mark.parametrize("unused", [(), ("c",), ("a",)])
def test_a_parameter_without_a_word_about_it_is_refused(unused: tuple[str, ...]) -> None:
    parameters = {"b": torch.zeros(2), "a": torch.zeros(2, 3)}
    reply = backward_reply({"a": torch.ones(2, 3)}, unused)
    with pytest.raises(
        ProtocolError, match=rf"{WHERE}no gradient for \['b'\]; .* the 2 trainable .* Build the"
    ):
        check_gradients(reply, parameters)


def test_a_reply_with_nothing_in_it_is_refused() -> None:
    with pytest.raises(ProtocolError, match=rf"{WHERE}no gradient for \['a', 'b'\]; .* unused"):
        check_gradients(backward_reply({}), {"b": torch.zeros(2), "a": torch.zeros(2)})


@pytest.mark.parametrize(
    ("gradients", "text"),
    [
        (
            {"a": torch.zeros(2, 3), "b": torch.zeros(2)},
            r"a gradient for 'b'; the trainable .* are \['a'\]. Build",
        ),
        ({"a": torch.zeros(3, 2)}, r"'a' is torch.float32 \(3, 2\), the parameter .*\(2, 3\)"),
        ({"a": torch.zeros(2, 3).double()}, "'a' is torch.float64 .* both must agree. Build"),
        ({"a": torch.full((2, 3), torch.nan)}, "'a' has NaN or infinite values;.*Lower"),
    ],
)
def test_gradients_that_are_not_the_parameters_are_refused(
    gradients: dict[str, Tensor], text: str
) -> None:
    with pytest.raises(ProtocolError, match=WHERE + ".*" + text):
        check_gradients(backward_reply(gradients), {"a": torch.zeros(2, 3)})


def test_a_client_was_waited_for_as_long_as_the_exchange_took_or_else_as_it_worked() -> None:
    reply = StepReply(phase=Phase.BACKWARD, id=ID, compute_s=2.0, encode_s=0.5)
    assert (reply.busy_s, reply.elapsed_s) == (2.5, 2.5)
    assert replace(reply, exchange_s=4.0).elapsed_s == 4.0
