"""Every device trains a model of its own, which never leaves it: what sharing is worth."""

import time
from statistics import fmean
from typing import cast

from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import Result

from .exchange import Exchange
from .federated import ROUND_TIMEOUT_S, gather, step_record
from .phase_run import PhaseRun


def train_alone(run: PhaseRun) -> Result:
    """Let devices train; accuracy and loss on the test data are means over the devices.

    Raises
    ------
    PslError
        If too few devices come, or one of them fails.
    """
    federation = gather(run)
    result = Result(evaluate_metrics_serverapp={0: run.evaluate_fn(0, run.arrays)})
    run.record_round(0, result.evaluate_metrics_serverapp[0])
    for server_round in range(1, run.phase.num_rounds + 1):
        started = time.monotonic()
        told = ConfigRecord({"server-round": server_round, "seed": run.config.seed})
        content = RecordDict({"config": told})
        if server_round == 1:
            content["arrays"] = run.arrays
        exchange = federation.converse(
            [Message(content, node, "train.alone") for node in federation.get_node_ids()],
            ROUND_TIMEOUT_S,
        )
        metrics = _mean_over_devices(exchange)
        run.record_step(step_record(server_round, exchange))
        run.record_round(
            server_round,
            metrics,
            steps=1,
            train_loss=exchange.mean("loss"),
            seconds=time.monotonic() - started,
        )
        result.train_metrics_clientapp[server_round] = MetricRecord(
            {"loss": exchange.mean("loss"), "num-examples": sum(exchange.num_examples.values())}
        )
        result.evaluate_metrics_clientapp[server_round] = metrics
    return result


def _mean_over_devices(exchange: Exchange) -> MetricRecord:
    tests = [content.metric_records["test"] for content in exchange.contents.values()]
    return MetricRecord(
        {
            "accuracy": fmean(cast(float, test["accuracy"]) for test in tests),
            "loss": fmean(cast(float, test["loss"]) for test in tests),
            "num-examples": tests[0]["num-examples"],
        }
    )
