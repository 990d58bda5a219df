import pytest

from flower_psl import ClientError, ProtocolError, PslError, WaitError
from flower_psl.transport import Answers
from flower_psl.transport.answers import belonging
from flower_psl.wire import Phase, StepId, StepReply, StepRequest


def step_id(client_key: int) -> StepId:
    return StepId(
        seed=0, server_round=2, plan=0, step=40, client_key=client_key, start=0, batch_size=1
    )


def test_replies_and_failures_are_in_the_order_of_the_requests() -> None:
    lost, late = ClientError("lost"), WaitError("late")
    outcomes: dict[int, str | PslError] = {1: "one", 2: lost, 3: "three", 4: late}
    answers = Answers.of([4, 3, 2, 1], outcomes)
    assert list(answers.replies.items()) == [(3, "three"), (1, "one")]
    assert list(answers.failures.items()) == [(4, late), (2, lost)]


def test_all_replies_or_the_first_failure() -> None:
    assert Answers({2: "two", 1: "one"}, {}).all() == {2: "two", 1: "one"}
    with pytest.raises(WaitError, match="late"):
        Answers({2: "two"}, {4: WaitError("late"), 1: ClientError("lost")}).all()


def test_a_reply_to_another_request_is_a_failure_of_its_node() -> None:
    requests = {
        node: StepRequest(phase=Phase.FORWARD, id=step_id(key))
        for node, key in {30: 1, 20: 2, 10: 3}.items()
    }
    right = StepReply(phase=Phase.FORWARD, id=step_id(3))
    wrong = StepReply(phase=Phase.FORWARD, id=step_id(3))
    answers = belonging(Answers({20: wrong, 10: right}, {30: ClientError("lost")}), requests)
    assert answers.replies == {10: right}
    assert list(answers.failures) == [30, 20]
    error = answers.failures[20]
    assert isinstance(error, ProtocolError)
    assert str(error).startswith("client 2, round 2, step 40: asked for forward")
