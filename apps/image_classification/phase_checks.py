"""Which settings go with which methods."""

from typing import TYPE_CHECKING

from flower_psl import ConfigError

from .flower_strategies import least_devices
from .phases import ON_DEVICES, Phase, phases_of
from .settings import settings_of

if TYPE_CHECKING:
    from .config import AppConfig

BELONGS_TO: dict[str, tuple[str, ...]] = {
    "local-batch-size": ("sampler 'fls'", ON_DEVICES),
    "min-client-batch": ("sampler 'gpsl'",),
    "drop-last": ("sampler 'gpsl'",),
    "client-costs": ("sampler 'straggler'",),
    "participation": ("sampler 'straggler'",),
    "concentration": ("sampler 'latent-dirichlet'",),
    "overlap": ("client-sync 'step'",),
    "local-epochs": (ON_DEVICES,),
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


def _check_effects(config: "AppConfig", phases: tuple[Phase, ...]) -> None:
    parts = set().union(*(phase.parts for phase in phases))
    for key, owners in BELONGS_TO.items():
        item = settings_of(type(config))[key]
        value = getattr(config, item.name)
        if value != item.default and not parts & set(owners):
            has = " and ".join(sorted(parts)) or "none of them"
            raise ConfigError(
                f"{key} = {value!r} has no effect: it belongs to {' or '.join(owners)}, and this "
                f"run has {has}; choose what it belongs to, or leave {key} at {item.default!r}."
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
    least = least_devices(config, method.strategy)
    if config.min_available_nodes < least:
        raise ConfigError(
            f"min-available-nodes = {config.min_available_nodes}, but {phase.name} with "
            f"num-malicious-nodes = {config.num_malicious_nodes} needs {least} nodes, twice the "
            f"malicious ones and 3; set min-available-nodes = {least} or more."
        )
