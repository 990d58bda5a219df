"""What stands between `client_sync="round"` and Flower's secure aggregation."""

from typing import TYPE_CHECKING

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.client.mod import secaggplus_mod
from flwr.server.workflow import SecAggPlusWorkflow

if TYPE_CHECKING:
    from tests.conftest import FakeGrid


def _context() -> Context:
    return Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})


def test_the_workflow_wants_a_context_that_server_apps_do_not_have(
    fake_grid: "type[FakeGrid]",
) -> None:
    workflow = SecAggPlusWorkflow(num_shares=1.0, reconstruction_threshold=0.5)
    with pytest.raises(TypeError, match="Expect a LegacyContext, but get Context"):
        workflow(fake_grid({}), _context())


def test_the_mod_masks_ordinary_training_and_never_a_step(flower_run: None) -> None:
    content = RecordDict({"psl": ConfigRecord({"answer": 42})})

    def handler(message: Message, context: Context) -> Message:
        return Message(content, reply_to=message)

    step = Message(RecordDict(), 1, "train.psl_step")
    assert secaggplus_mod(step, _context(), handler).content == content
    with pytest.raises(KeyError, match="secaggplus"):
        secaggplus_mod(Message(RecordDict(), 1, "train"), _context(), handler)
