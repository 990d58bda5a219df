"""Parallel split learning as a Flower Strategy."""

import copy
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Literal

import torch
from flwr.app import ArrayRecord, ConfigRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from flower_psl.sampling import Sampler
from flower_psl.server.checkpoints import Checkpoints
from flower_psl.server.client_aggregation import ClientMean
from flower_psl.server.client_strategy_checks import check_client_strategy
from flower_psl.server.failure_policy import FailurePolicy
from flower_psl.server.flower_aggregation import FlowerAggregation
from flower_psl.server.flower_records import CentralEvaluateFn, on_state_dict, to_result
from flower_psl.server.learner import LRSchedulerFn, OptimizerFn
from flower_psl.server.settings_log import log_settings
from flower_psl.server.start_only import StartOnlyStrategy
from flower_psl.server.strategy_checks import (
    check_evaluate_fn,
    check_no_configuration,
    check_strategy,
)
from flower_psl.server.training_run import TrainingRun
from flower_psl.split import LossFn, SplitModel
from flower_psl.telemetry import RunRecorder
from flower_psl.transport import Transport
from flower_psl.transport.open_transport import TransportName, open_transport
from flower_psl.transport.stream_settings import StreamSettings
from flower_psl.wire import Encodings

ClientSync = Literal["step", "round", "none"]
ServerUpdateName = Literal["global-batch", "per-client-average", "per-client-sequential"]


@dataclass(frozen=True, eq=False)
class ParallelSplitLearning(StartOnlyStrategy):
    """Parallel split learning with server-driven sampling (arXiv:2407.15738).

    In each step the sampler decides how many examples every client contributes. Clients
    return the cut layer's activations, the server computes the loss over the whole global
    batch, and with ``client_sync="step"`` one optimizer updates the whole model with the
    gradient that centralized training on the same examples has. With ``"round"`` and
    ``"none"`` clients update their segments by themselves, and a step is one exchange.

    Arrays in and out are those of the whole model under its original ``state_dict`` keys.

    Parameters
    ----------
    model : SplitModel
        The model, as `cut` makes it. It describes the run; training works on a copy.
    sampler : Sampler
        Makes each round's batch-size schedule.
    loss_fn : callable
        ``loss_fn(outputs, labels)``, a scalar over the global batch. It can have neither
        parameters nor state from call to call, and sees no client parameter. Unless
        ``client_sync="step"`` it is a mean (or sum) over examples.
    optimizer_fn : callable
        Makes one optimizer of all the model's parameters, in their original order; of the
        server segment's where clients update theirs.
    lr_scheduler_fn : callable, optional
        Makes a learning-rate scheduler of the optimizer and the run's number of steps
        (taken as those of the first round times the rounds, if no client fails). It
        advances once a step, and no more often than that number.
    max_grad_norm : float, optional
        Clips the gradient of the whole model to this norm; of the server segment where
        clients update theirs.
    client_sync : {"step", "round", "none"}
        What becomes of the client segments. Their gradients are summed in every step; or
        clients update them with an optimizer of their own, and they are aggregated at the
        end of each round; or they are never shared. Without a common segment there is no
        whole model: the result has the server segment's arrays only, and evaluation is
        that of the clients.
    client_strategy : Strategy, optional
        With ``client_sync="round"``: a strategy of ``flwr.serverapp.strategy`` that aggregates
        the client segments' parameters, weighted by the examples that each client used in
        the round, or the sum of their class weights; federated averaging unless given.
        BatchNorm's running statistics are always averaged. A wrapper for differential privacy
        protects the client segment's parameters and nothing else: activations and labels
        still reach the server.
    server_update : {"global-batch", "per-client-average", "per-client-sequential"}
        How the server segment learns where clients update theirs: from the global batch as
        one; with a copy and an optimizer for each client, averaged at the end of each round
        (SplitFed version 1); or from one client after the other, in random order (version 2).
    overlap : bool
        With ``client_sync="step"``: whether the server runs its segment over each client's
        part as soon as that has come, and returns each cut gradient as soon as it is there,
        while other parts are still computed or on their way. The result is that of one pass
        over the global batch up to rounding, not bit for bit. It pays over live connections,
        for parts of ten examples or more, and needs a server segment that treats every
        example alone: without BatchNorm, dropout and the like, which the first step refuses.
    steps_per_round : int, optional
        Ends a round before it has gone through all examples.
    fraction_evaluate : float
        Share, in [0, 1], of the clients with test data that evaluate after each round,
        running their segment only.
    evaluate_batch_size : int
        Examples that a client evaluates in one exchange.
    min_available_nodes : int
        Nodes to wait for before the run begins. So many must then describe themselves, and
        connect with ``transport="stream"``; the run goes on without the others.
    node_timeout_s : float
        Bound on that wait, in seconds.
    failures : FailurePolicy
        What becomes of a step, and of a client, when the client fails.
    transport : {"auto", "stream", "messages"}
        How `start` reaches the devices: over live connections, over Flower messages, or
        over the first where every node can connect and the second where not.
    stream : StreamSettings
        Where the server listens for live connections, and how long it waits for them.
    encodings : Encodings
        How tensors are made smaller on their way, whatever carries them.
    seed : int
        Seed of the clients' permutations and of random layers, in [0, 2**63).
    device : torch.device or str
        Where the server segment computes.
    recorder : RunRecorder, optional
        Writes the run's files.
    checkpoints : Checkpoints, optional
        Saves the run as it goes on, and resumes one that was saved.
    model_name : str
        The model's name in these files.
    method : str
        The method's name in these files.

    Raises
    ------
    ConfigError
        If a value is out of its range.
    """

    model: SplitModel
    sampler: Sampler
    loss_fn: LossFn
    optimizer_fn: OptimizerFn
    _: KW_ONLY
    lr_scheduler_fn: LRSchedulerFn | None = None
    max_grad_norm: float | None = None
    client_sync: ClientSync = "step"
    client_strategy: Strategy | None = None
    server_update: ServerUpdateName = "global-batch"
    overlap: bool = False
    steps_per_round: int | None = None
    fraction_evaluate: float = 1.0
    evaluate_batch_size: int = 256
    min_available_nodes: int = 2
    node_timeout_s: float = 120.0
    failures: FailurePolicy = field(default_factory=FailurePolicy)
    transport: TransportName = "auto"
    stream: StreamSettings = field(default_factory=StreamSettings)
    encodings: Encodings = field(default_factory=Encodings)
    seed: int = 0
    device: torch.device | str = "cpu"
    recorder: RunRecorder | None = None
    checkpoints: Checkpoints | None = None
    model_name: str = ""
    method: str = "psl"

    def __post_init__(self) -> None:
        """Refuse values out of range, before anything starts."""
        check_strategy(self)
        if self.client_strategy is not None:
            check_client_strategy(self.client_strategy, self.min_available_nodes)

    @property
    def sampler_name(self) -> str:
        """The sampler's name in records."""
        return str(getattr(self.sampler, "name", type(self.sampler).__name__))

    def sampler_details(self, num_examples: Mapping[int, int]) -> dict[str, object]:
        """Return what records say of the sampler beside its name; its costs, for example."""
        details = getattr(self.sampler, "details", None)
        return {} if details is None else details(num_examples)

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: CentralEvaluateFn | None = None,
    ) -> Result:
        """Run parallel split learning.

        Parameters
        ----------
        grid : Grid
            The grid that reaches the nodes.
        initial_arrays : ArrayRecord
            The whole model's arrays, by its original ``state_dict`` keys.
        num_rounds : int
            Rounds; each goes once through the pooled data, unless `steps_per_round`
            bounds it.
        timeout : float
            Bound on the training of one round, in seconds.
        train_config, evaluate_config : ConfigRecord, optional
            Must be empty: devices are told all they need by the protocol.
        evaluate_fn : callable, optional
            Central evaluation ``(server_round, arrays)``, before the first round (as
            round 0) and after each. None with ``client_sync="none"``.

        Returns
        -------
        Result
            The final arrays and the metrics of each round.

        Raises
        ------
        PslError
            If the run cannot go on; the message says where and why.
        """
        self._prepare()
        check_evaluate_fn(self, evaluate_fn)
        check_no_configuration(train_config=train_config, evaluate_config=evaluate_config)
        with open_transport(
            grid,
            self.transport,
            self.stream,
            min_nodes=self.min_available_nodes,
            node_timeout_s=self.node_timeout_s,
        ) as transport:
            return self.run_over(
                transport,
                initial_arrays,
                num_rounds=num_rounds,
                timeout=timeout,
                evaluate_fn=evaluate_fn,
                min_nodes=self.min_available_nodes,
            )

    def run_over(
        self,
        transport: Transport,
        initial_arrays: ArrayRecord,
        *,
        num_rounds: int,
        timeout: float,
        evaluate_fn: CentralEvaluateFn | None,
        min_nodes: int,
    ) -> Result:
        """Run as `start` does, over any transport.

        Parameters
        ----------
        transport : Transport
            What reaches the clients.
        initial_arrays, num_rounds, timeout, evaluate_fn
            As for `start`.
        min_nodes : int
            Nodes to wait for.

        Returns
        -------
        Result
            As `start` returns it.

        Raises
        ------
        PslError
            If the run cannot go on.
        """
        self._prepare()
        check_evaluate_fn(self, evaluate_fn)
        self.summary()
        model = copy.deepcopy(self.model)
        model.load_state_dict(initial_arrays.to_torch_state_dict())
        model.client.to(self.device)
        model.server.to(self.device)
        run = TrainingRun(
            self,
            model,
            transport,
            num_rounds=num_rounds,
            round_timeout_s=timeout,
            evaluate_fn=None if evaluate_fn is None else on_state_dict(evaluate_fn),
            aggregation=(
                ClientMean()
                if self.client_strategy is None
                else FlowerAggregation(self.client_strategy)
            ),
        )
        try:
            return to_result(run.run(min_nodes))
        finally:
            if self.recorder is not None:
                self.recorder.close()

    def _prepare(self) -> None:
        """Let a run that fails, however early, leave no results of another."""
        if self.checkpoints is not None:
            self.checkpoints.check_folder()
        if self.recorder is not None:
            resumes = self.checkpoints is not None and self.checkpoints.will_resume
            self.recorder.prepare(keep_steps=resumes)

    def summary(self) -> None:
        """Log the strategy's settings."""
        log_settings(self)
