"""What is particular to a step that overlaps; all else `test_global_step` asks of both kinds."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial

import pytest
import torch
from flwr.app import ArrayRecord
from torch import Tensor, nn

from flower_psl import (
    ConfigError,
    ParallelSplitLearning,
    PslError,
    SplitClient,
    SplitModel,
    cut,
    run_in_process,
)
from flower_psl.transport import Answers, InProcessTransport
from flower_psl.wire import Phase, StepReply, StepRequest

Make = Callable[..., ParallelSplitLearning]


class Overlapping(InProcessTransport):
    """Hands on each portion before it asks for the next; replies come in reverse order.

    Attributes
    ----------
    events : list
        What happened: "sent" and a node, "told" and a client key.
    """

    def __init__(self, clients: Mapping[int, SplitClient]) -> None:
        super().__init__(clients)
        self.events: list[tuple[str, int]] = []

    def exchange_in_portions(
        self,
        portions: Iterable[Mapping[int, StepRequest]],
        timeout_s: float,
        on_reply: Callable[[StepReply], None],
    ) -> Answers[StepReply]:
        replies: dict[int, StepReply] = {}
        for portion in portions:
            self.events += [("sent", node) for node in portion]
            replies |= self.exchange(portion, timeout_s).all()
        for node, reply in reversed(replies.items()):
            on_reply(reply)
            self.events.append(("told", node))
        return Answers(replies, {})


def weights_after(
    strategy: ParallelSplitLearning, transport: InProcessTransport, arrays: ArrayRecord
) -> dict[str, Tensor]:
    result = strategy.run_over(
        transport, arrays, num_rounds=2, timeout=60, evaluate_fn=None, min_nodes=3
    )
    return dict(result.arrays.to_torch_state_dict())


def test_it_is_the_step_over_the_whole_batch_up_to_rounding(
    make_strategy: Make, clients: dict[int, SplitClient], arrays: ArrayRecord
) -> None:
    whole, parts = (
        run_in_process(make_strategy(overlap=flag), clients, arrays, num_rounds=2)
        for flag in (False, True)
    )
    expected = whole.arrays.to_torch_state_dict()
    for name, tensor in parts.arrays.to_torch_state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-12, atol=1e-14)
    assert not torch.equal(expected["0.weight"], arrays.to_torch_state_dict()["0.weight"])


def test_neither_the_transport_nor_who_answers_first_changes_a_bit(
    make_strategy: Make, clients: dict[int, SplitClient], arrays: ArrayRecord
) -> None:
    strategy = make_strategy(overlap=True)
    one_after_the_other = weights_after(strategy, InProcessTransport(clients), arrays)
    in_reverse = weights_after(strategy, Overlapping(clients), arrays)
    for name, tensor in one_after_the_other.items():
        assert torch.equal(tensor, in_reverse[name]), name


def test_a_gradient_leaves_before_the_next_is_computed(
    split: SplitModel, make_strategy: Make, clients: dict[int, SplitClient], arrays: ArrayRecord
) -> None:
    transport = Overlapping(clients)

    def note(module: nn.Module, args: object, outputs: Tensor) -> None:
        if outputs.requires_grad:
            note_it = partial(transport.events.append, ("computed", len(outputs)))
            outputs.register_hook(lambda _: note_it())  # type: ignore[no-untyped-call]

    split.server.register_forward_hook(note)
    strategy = make_strategy(overlap=True, steps_per_round=1, fraction_evaluate=0.0)
    weights_after(strategy, transport, arrays)
    kinds = [kind for kind, _ in transport.events if kind != "told"]
    first = kinds.index("computed")  # behind the forward requests of the first step
    assert kinds[:first] == ["sent"] * first
    assert kinds[first : 3 * first] == ["computed", "sent"] * first


@pytest.mark.parametrize(
    ("layer", "what"),
    [
        (nn.BatchNorm1d(8), r"\(BatchNorm1d\) of the server segment mixes the examples"),
        (nn.Dropout(0.5), r"\(Dropout\) of the server segment draws random numbers"),
    ],
)
def test_a_server_segment_that_parts_do_not_come_to_is_refused(
    layer: nn.Module,
    what: str,
    model: nn.Sequential,
    make_strategy: Make,
    clients: dict[int, SplitClient],
) -> None:
    model.insert(2, layer.double())
    asked: list[Phase] = []

    class Watched(InProcessTransport):
        def exchange(
            self, requests: Mapping[int, StepRequest], timeout_s: float
        ) -> Answers[StepReply]:
            asked.extend(request.phase for request in requests.values())
            return super().exchange(requests, timeout_s)

    strategy = make_strategy(model=cut(model, at="1"), overlap=True)
    with pytest.raises(ConfigError, match=rf"{what}.*Leave out overlap, or replace the layer"):
        weights_after(strategy, Watched(clients), ArrayRecord(model.state_dict()))
    assert set(asked) == {Phase.FORWARD}


def test_a_segment_that_raises_for_everybody_ends_the_first_step(
    make_strategy: Make, clients: dict[int, SplitClient], model: nn.Sequential
) -> None:
    model[2] = nn.Linear(9, 3).double()
    strategy = make_strategy(model=cut(model, at="1"), overlap=True)
    with pytest.raises(
        PslError, match="the server segment or the loss raised RuntimeError"
    ) as info:
        weights_after(strategy, InProcessTransport(clients), ArrayRecord(model.state_dict()))
    assert "FailurePolicy" not in str(info.value)  # nobody is left out for it
