"""The app's configuration: every key of the run configuration, checked before any work."""

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, Self

import torch
from flwr.app import UserConfigValue

from flower_psl import ConfigError

from .flower_strategies import FLOWER_STRATEGIES
from .methods import CUSTOM, METHODS
from .models import check_model_name
from .normalization import parse_statistics
from .optimizers import OPTIMIZERS, SCHEDULES
from .partitioners import PARTITIONERS
from .phase_checks import check_phases
from .phases import Phase, phases_of
from .samplers import SAMPLERS
from .settings import check_settings, parse_settings, setting, settings_of

_PATHS = (
    "out",
    "checkpoint-folder",
    "state-dir",
    "client-costs",
    "stream-certificate-file",
    "stream-key-file",
    "stream-root-certificates-file",
)
_ENCODINGS = ("raw", "bf16", "fp16", "int8")
_SERVER_UPDATES = ("global-batch", "per-client-average", "per-client-sequential")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What the data are and how they are dealt out.

    Everything that the decoded images of a client depend on, so that it can serve as the
    key of a cache. The `seed` is that of the run; only partitioners draw from it here.

    Raises
    ------
    ConfigError
        If a value breaks its rule.
    """

    dataset: str = setting("digits")
    subset: str = setting("")
    train_split: str = setting("train")
    test_split: str = setting("test")
    image_column: str = setting("")
    label_column: str = setting("")
    image_mode: str = setting("", one_of=("", "L", "RGB"))
    image_size: int = setting(0, at_least=0)
    normalize_mean: str = setting("")
    normalize_std: str = setting("")
    max_train_examples: int = setting(0, at_least=0)

    partitioner: str = setting("dirichlet", one_of=PARTITIONERS)
    partition_by: str = setting("")
    dirichlet_alpha: float = setting(0.1, above=0.0)
    min_partition_size: int = setting(1, at_least=0)
    num_classes_per_partition: int = setting(2, at_least=1)
    num_shards_per_partition: int = setting(2, at_least=0)
    shard_size: int = setting(0, at_least=0)

    seed: int = setting(0, at_least=0, below=2**63)

    def __post_init__(self) -> None:
        """Check the values."""
        check_settings(self)
        _check_dataset_name(self.dataset)
        parse_statistics(self.normalize_mean, self.normalize_std)
        if self.train_split == self.test_split:
            raise ConfigError(
                f"train-split and test-split are both {self.train_split!r}: the model would be "
                "tested on its training data; name two different splits."
            )
        if self.partitioner == "natural-id" and not self.partition_by:
            raise ConfigError(
                "partition-by is empty, but partitioner 'natural-id' needs the column whose "
                "values are the clients; set partition-by to the name of a column."
            )
        if self.partitioner == "shard" and not (self.num_shards_per_partition or self.shard_size):
            raise ConfigError(
                "num-shards-per-partition and shard-size are both 0, but partitioner 'shard' "
                "needs one of them; set num-shards-per-partition = 2, for example."
            )


@dataclass(frozen=True, kw_only=True)
class AppConfig:
    """The whole configuration of a run.

    The fields are the keys of ``[tool.flwr.app.config]`` with underscores for hyphens, and
    have the same defaults; what each of them means is told there. Those that concern the
    data are in `data`.

    Raises
    ------
    ConfigError
        If a value breaks its rule.
    """

    data: DataConfig = field(default_factory=DataConfig)

    model: str = setting("small-cnn")
    cut: str = setting("")

    method: str = setting(CUSTOM, one_of=(*METHODS, CUSTOM))
    phases: str = setting("")
    compare: bool = setting(False)
    sampler: str = setting("", one_of=("", *SAMPLERS))
    client_sync: str = setting("", one_of=("", "step", "round", "none"))
    server_update: str = setting("", one_of=("", *_SERVER_UPDATES))
    overlap: bool = setting(False)
    client_strategy: str = setting("", one_of=("", *FLOWER_STRATEGIES))
    batch_size: int = setting(64, at_least=1)
    local_batch_size: int = setting(0, at_least=0)
    min_client_batch: int = setting(1, at_least=1)
    drop_last: bool = setting(False)
    client_costs: str = setting("")
    participation: float = setting(0.5, above=0.0, at_most=1.0)
    concentration: float = setting(10.0, above=0.0)

    num_server_rounds: int = setting(10, at_least=1)
    steps_per_round: int = setting(0, at_least=0)
    local_epochs: int = setting(1, at_least=1)
    server_learning_rate: float = setting(0.0, at_least=0.0)
    server_momentum: float = setting(0.9, at_least=0.0, below=1.0)
    proximal_mu: float = setting(0.1, at_least=0.0)
    num_malicious_nodes: int = setting(0, at_least=0)
    trim_share: float = setting(0.2, at_least=0.0, below=0.5)

    optimizer: str = setting("sgd", one_of=OPTIMIZERS)
    learning_rate: float = setting(0.05, above=0.0)
    momentum: float = setting(0.9, at_least=0.0, below=1.0)
    weight_decay: float = setting(0.0, at_least=0.0)
    learning_rate_schedule: str = setting("constant", one_of=SCHEDULES)
    max_grad_norm: float = setting(0.0, at_least=0.0)
    label_smoothing: float = setting(0.0, at_least=0.0, below=1.0)

    fraction_evaluate: float = setting(0.0, at_least=0.0, at_most=1.0)
    evaluate_batch_size: int = setting(256, at_least=1)

    min_available_nodes: int = setting(2, at_least=1)
    node_timeout_s: float = setting(120.0, above=0.0)
    step_timeout_s: float = setting(300.0, above=0.0)
    quorum: float = setting(1.0, above=0.0, at_most=1.0)
    min_clients: int = setting(1, at_least=1)
    max_redraws: int = setting(10, at_least=1)
    max_offences: int = setting(3, at_least=1)
    max_activation_norm: float = setting(0.0, at_least=0.0)
    max_update_norm: float = setting(0.0, at_least=0.0)
    transport: Literal["auto", "stream", "messages"] = setting(
        "auto", one_of=("auto", "stream", "messages")
    )
    stream_address: str = setting("127.0.0.1:0")
    stream_advertise: str = setting("")
    stream_certificate_file: str = setting("")
    stream_key_file: str = setting("")
    stream_root_certificates_file: str = setting("")
    stream_plain_text: bool = setting(False)
    stream_shared_memory: bool = setting(True)
    stream_connect_timeout_s: float = setting(60.0, above=0.0)
    stream_reconnect_timeout_s: float = setting(30.0, above=0.0)
    stream_max_frame_bytes: int = setting(1_000_000_000, at_least=1, below=2**31)
    activation_encoding: str = setting("raw", one_of=_ENCODINGS)
    gradient_encoding: str = setting("raw", one_of=_ENCODINGS)
    weight_encoding: str = setting("raw", one_of=_ENCODINGS)

    checkpoint_folder: str = setting("")
    checkpoint_every_steps: int = setting(0, at_least=0)
    checkpoint_every_rounds: int = setting(1, at_least=0)
    resume: Literal["auto", "never"] = setting("auto", one_of=("auto", "never"))
    state_dir: str = setting("")

    out: str = setting("")
    torch_num_threads: int = setting(1, at_least=0)
    device: str = setting("cpu")

    def __post_init__(self) -> None:
        """Check the values."""
        check_settings(self)
        check_model_name(self.model)
        check_phases(self)
        _check_device(self.device)
        for key in _PATHS:
            _check_path(key, getattr(self, settings_of(AppConfig)[key].name))

    @property
    def seed(self) -> int:
        """The seed of the run."""
        return self.data.seed

    def with_seed(self, seed: int) -> Self:
        """Return the same with another seed, which the partition of the data hangs on, too."""
        return replace(self, data=replace(self.data, seed=seed))

    @property
    def parsed_phases(self) -> tuple[Phase, ...]:
        """What the run consists of."""
        return phases_of(self)

    @classmethod
    def from_run_config(cls, run_config: Mapping[str, UserConfigValue]) -> Self:
        """Parse and check a Flower run configuration.

        Parameters
        ----------
        run_config : Mapping[str, bool | float | int | str]
            ``Context.run_config``; keys that are absent have their defaults.

        Raises
        ------
        ConfigError
            If a key is unknown, or if a value has the wrong type or breaks its rule.
        """
        known = [*settings_of(DataConfig), *settings_of(cls)]
        for key in run_config:
            if key not in known:
                near = difflib.get_close_matches(key, known)
                hint = f"did you mean {' or '.join(near)}?" if near else "remove it."
                raise ConfigError(
                    f"{key} = {run_config[key]!r} is no key of this app; {hint} "
                    f"The keys are: {', '.join(known)}."
                )
        return parse_settings(cls, run_config, data=parse_settings(DataConfig, run_config))


def _check_dataset_name(name: str) -> None:
    # A name on the Hugging Face Hub is `name` or `owner/name`: all else is a path.
    is_path = name.startswith((".", "~", os.sep)) or name.count("/") > 1
    if not name or (is_path and not os.path.isabs(name)):
        raise ConfigError(
            f"dataset = {name!r} is neither 'digits', nor a name on the Hugging Face Hub "
            "('owner/name'), nor an absolute path; Flower runs an app in a folder of its own, so "
            "the path of a local folder has to be absolute."
        )


def _check_path(key: str, path: str) -> None:
    if path and not os.path.isabs(path):
        raise ConfigError(
            f"{key} = {path!r} is a relative path, but Flower runs an app in a folder of its own, "
            "so paths have to be absolute; write '/home/me/runs/first', for example."
        )


def _check_device(name: str) -> None:
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"device = {name!r} cannot be used on this machine: {str(error).splitlines()[0]} "
            "Set device = 'cpu', or another that torch has here."
        ) from error
