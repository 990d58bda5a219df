import pytest
import torch
from torch import Tensor

from flower_psl import ProtocolError
from flower_psl.wire import Phase, StepId, StepReply, check_weights

ID = StepId(seed=7, server_round=2, plan=0, step=40, client_key=3, start=16, batch_size=8)
OWN = {"w": torch.zeros(2, 3), "n": torch.tensor(4)}
NORM = {"1.running_var": torch.zeros(3), "1.num_batches_tracked": torch.tensor(0)}


def reply(**changes: Tensor) -> StepReply:
    return StepReply(phase=Phase.COLLECT, id=ID, weights=OWN | changes)


def test_weights_that_fit_are_returned() -> None:
    sent = reply(w=torch.ones(2, 3))
    assert check_weights(sent, OWN) is sent.weights
    assert sent.payload_bytes == 6 * 4 + 8


@pytest.mark.parametrize("name", NORM)
def test_a_variance_or_a_count_below_zero_names_its_client(name: str) -> None:
    def check(change: float) -> None:
        weights = {**NORM, name: (NORM[name] + change).to(NORM[name].dtype)}
        check_weights(StepReply(phase=Phase.COLLECT, id=ID, weights=weights), NORM)

    check(0)
    check(7)
    with pytest.raises(
        ProtocolError, match=f"client 3, round 2, step 40: its '{name}' has .* -2;"
    ):
        check(-2)


@pytest.mark.parametrize(
    ("weights", "reason"),
    [
        ({"w": OWN["w"]}, r"lack or add \['n'\]; a client returns the 2 tensors .* Build the"),
        ({**OWN, "x": OWN["w"]}, r"lack or add \['x'\]"),
        ({**OWN, "w": torch.zeros(3)}, r"its 'w' is torch.float32 \(3,\), the server's .*\(2, 3"),
        ({**OWN, "w": OWN["w"].double()}, r"its 'w' is torch.float64 \(2, 3\), the server's"),
        ({**OWN, "w": OWN["w"] / 0}, r"its 'w' has NaN or infinite values; .* Lower the learni"),
    ],
)
def test_weights_that_do_not_fit_name_their_client(
    weights: dict[str, Tensor], reason: str
) -> None:
    with pytest.raises(ProtocolError, match=f"client 3, round 2, step 40: .*{reason}"):
        check_weights(StepReply(phase=Phase.COLLECT, id=ID, weights=weights), OWN)
