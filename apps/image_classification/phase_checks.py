"""Which settings go with which methods."""

from collections.abc import Iterable
from dataclasses import Field
from typing import TYPE_CHECKING, Any

from flower_psl import ConfigError

from .flower_strategies import least_devices
from .phases import KINDS, Phase, phases_of
from .settings import settings_of

if TYPE_CHECKING:
    from .config import AppConfig

_ON_DEVICES = (KINDS["federated"], KINDS["local-only"])
_OF_SPLIT_LEARNING = (
    "cut",
    "quorum",
    "min-clients",
    "max-redraws",
    "max-offences",
    "max-activation-norm",
    "max-update-norm",
    "transport",
    "stream-address",
    "stream-advertise",
    "stream-certificate-file",
    "stream-key-file",
    "stream-root-certificates-file",
    "stream-plain-text",
    "stream-shared-memory",
    "stream-connect-timeout-s",
    "stream-reconnect-timeout-s",
    "stream-max-frame-bytes",
    "activation-encoding",
    "gradient-encoding",
    "weight-encoding",
)
_BELONGS_TO: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(_OF_SPLIT_LEARNING, (KINDS["split"],)),
    "local-batch-size": ("sampler 'fls'", *_ON_DEVICES),
    "min-client-batch": ("sampler 'gpsl'",),
    "drop-last": ("sampler 'gpsl'",),
    "client-costs": ("sampler 'straggler'",),
    "participation": ("sampler 'straggler'",),
    "concentration": ("sampler 'latent-dirichlet'",),
    "overlap": ("client-sync 'step'",),
    "state-dir": ("client-sync 'round'", "client-sync 'none'"),
    "local-epochs": _ON_DEVICES,
    "fraction-evaluate": (KINDS["split"], KINDS["federated"]),
    "momentum": ("optimizer 'sgd'",),
    "server-learning-rate": tuple(
        f"strategy {name!r}" for name in ("fedavgm", "fedadam", "fedyogi", "fedadagrad")
    ),
    "server-momentum": ("strategy 'fedavgm'",),
    "proximal-mu": ("strategy 'fedprox'",),
    "num-malicious-nodes": ("strategy 'krum'",),
    "trim-share": ("strategy 'fedtrimmedavg'",),
}

_OF_CHECKPOINTS = ("checkpoint-every-steps", "checkpoint-every-rounds", "resume")


def check_phases(config: "AppConfig") -> None:
    """Refuse settings that no method of the run has, or that a method cannot do with.

    Raises
    ------
    ConfigError
        Naming the value, the rule and the remedy.
    """
    phases = phases_of(config)
    _check_effects(config, phases)
    _check_checkpoints(config, phases)
    for phase in phases:
        _check_split(config, phase)
        _check_devices(config, phase)


def without_effect(config: "AppConfig", phases: Iterable[Phase]) -> dict[str, Field[Any]]:
    """Return the settings that change nothing in any of these phases, by their key."""
    parts, known = _parts(config, phases), settings_of(type(config))
    return {key: known[key] for key, owners in _BELONGS_TO.items() if not parts & set(owners)}


def _parts(config: "AppConfig", phases: Iterable[Phase]) -> set[str]:
    return {f"optimizer {config.optimizer!r}"}.union(*(phase.parts for phase in phases))


def _check_effects(config: "AppConfig", phases: tuple[Phase, ...]) -> None:
    for key, item in without_effect(config, phases).items():
        value = getattr(config, item.name)
        if value != item.default:
            raise ConfigError(
                f"{key} = {value!r} has no effect: it belongs to "
                f"{' or '.join(_BELONGS_TO[key])}, and this run has "
                f"{', '.join(sorted(_parts(config, phases)))}; choose what it belongs to, or "
                f"leave {key} at {item.default!r}."
            )


def _check_checkpoints(config: "AppConfig", phases: tuple[Phase, ...]) -> None:
    known = settings_of(type(config))
    if not config.checkpoint_folder:
        for key in _OF_CHECKPOINTS:
            value, default = getattr(config, known[key].name), known[key].default
            if value != default:
                raise ConfigError(
                    f"{key} = {value!r} has no effect without a checkpoint-folder; name one, or "
                    f"leave {key} at {default!r}."
                )
    elif config.compare or len(phases) > 1 or phases[0].method.split is None:
        raise ConfigError(
            f"checkpoint-folder = {config.checkpoint_folder!r}, but only a run of one method that "
            f"trains over the cut is saved, and this one has {', '.join(p.name for p in phases)}; "
            "leave checkpoint-folder empty, or choose such a method, gpsl for example."
        )


def _check_split(config: "AppConfig", phase: Phase) -> None:
    split = phase.method.split
    if split is None:
        return
    if split.sampler == "straggler" and not config.client_costs:
        raise ConfigError(
            "client-costs is empty, but sampler 'straggler' has to know who is slow; name a .csv "
            "or .json file of the clients' costs, or the steps.jsonl of an earlier run."
        )
    if split.client_sync == "none" and not config.fraction_evaluate:
        raise ConfigError(
            "fraction-evaluate = 0.0, but with client-sync 'none' there is no whole model for the "
            "server to evaluate; set fraction-evaluate = 1.0, and devices hold out a fifth of "
            "their data for it."
        )


def _check_devices(config: "AppConfig", phase: Phase) -> None:
    method = phase.method
    if (
        method.trained in ("federated", "local-only")
        and config.learning_rate_schedule != "constant"
    ):
        raise ConfigError(
            f"learning-rate-schedule = {config.learning_rate_schedule!r} is one over the steps of "
            f"the run, and with method {phase.name!r} each device takes steps of its own; set "
            "learning-rate-schedule = 'constant'."
        )
    least = least_devices(config, phase.strategy)
    if config.min_available_nodes < least:
        raise ConfigError(
            f"min-available-nodes = {config.min_available_nodes}, but {phase.strategy} with "
            f"num-malicious-nodes = {config.num_malicious_nodes} needs {least} nodes, twice the "
            f"malicious ones and 3; set min-available-nodes = {least} or more."
        )
