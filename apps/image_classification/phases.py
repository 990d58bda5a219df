"""What a run consists of: methods one after the other, each for some rounds."""

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from flower_psl import ConfigError

from .methods import CUSTOM, METHODS, Method, Split, Trained, name_of
from .settings import check_choice, settings_of

if TYPE_CHECKING:
    from .config import AppConfig

KINDS: dict[Trained, str] = {
    "split": "split learning",
    "federated": "federated training",
    "local-only": "local-only training",
    "centralized": "centralized training",
}
"""What each kind of training is called in the words of the configuration."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One method for some rounds.

    Attributes
    ----------
    name : str
        As it was written: a key of `METHODS`, or `CUSTOM`.
    method : Method
    num_rounds : int
    """

    name: str
    method: Method
    num_rounds: int

    @property
    def leaves_a_whole_model(self) -> bool:
        """Whether another phase can go on from it."""
        split = self.method.split
        return self.method.trained != "local-only" and (
            split is None or split.client_sync != "none"
        )

    @property
    def strategy(self) -> str:
        """The strategy of Flower that it has, a key of `FLOWER_STRATEGIES`; "" if none."""
        split = self.method.split
        return self.method.strategy if split is None else split.client_strategy

    @property
    def parts(self) -> set[str]:
        """What of it has settings, in the words of the configuration."""
        parts = {KINDS[self.method.trained]}
        if self.strategy:
            parts.add(f"strategy {self.strategy!r}")
        if (split := self.method.split) is not None:
            parts |= {f"sampler {split.sampler!r}", f"client-sync {split.client_sync!r}"}
        return parts


def phases_of(config: "AppConfig") -> tuple[Phase, ...]:
    """Return the phases of a run: one, unless ``phases`` names several.

    Raises
    ------
    ConfigError
        If ``phases`` cannot be read, contradicts another key, or has a phase that leaves no
        whole model before another one.
    """
    names_and_rounds = (
        _parsed(config.phases) if config.phases else [(config.method, config.num_server_rounds)]
    )
    phases = tuple(
        Phase(name=name, method=_method(name, config), num_rounds=rounds)
        for name, rounds in names_and_rounds
    )
    _check_together(config, phases)
    return phases


def run_name(config: "AppConfig") -> str:
    """Return what records call the method of a run."""
    if config.phases:
        return config.phases
    split = phases_of(config)[0].method.split
    return config.method if split is None or config.method != CUSTOM else name_of(split)


def _parsed(text: str) -> list[tuple[str, int]]:
    phases = []
    for part in text.split(","):
        name, colon, rounds = (word.strip() for word in part.partition(":"))
        if not (name and colon and rounds.isdecimal() and int(rounds)):
            raise ConfigError(
                f"phases = {text!r} cannot be read at {part.strip()!r}: a phase is a method, a "
                'colon and its rounds, a whole number of at least 1; write "fedavg:3, gpsl:7", '
                "for example."
            )
        check_choice("phases: method", name, [*METHODS, CUSTOM])
        phases.append((name, int(rounds)))
    return phases


def _method(name: str, config: "AppConfig") -> Method:
    given = {field.name: getattr(config, field.name) for field in fields(Split)}
    chosen = {key: value for key, value in given.items() if value}
    return Method(paper="", departs="", split=Split(**chosen)) if name == CUSTOM else METHODS[name]


def _check_together(config: "AppConfig", phases: tuple[Phase, ...]) -> None:
    default = settings_of(type(config))["num-server-rounds"].default
    total = sum(phase.num_rounds for phase in phases)
    if config.num_server_rounds not in (default, total):
        raise ConfigError(
            f"num-server-rounds = {config.num_server_rounds} contradicts phases = "
            f"{config.phases!r}, which have {total} rounds; leave out num-server-rounds."
        )
    if config.phases and config.method != CUSTOM:
        raise ConfigError(
            f"method = {config.method!r} and phases = {config.phases!r} are both given, and the "
            "phases name their methods; leave out method."
        )
    if config.compare:
        _check_comparison(config, phases)
    for phase in () if config.compare else phases[:-1]:
        if not phase.leaves_a_whole_model:
            raise ConfigError(
                f"phases = {config.phases!r}: {phase.name!r} leaves no whole model, from which "
                "the next phase could go on, because devices keep parts of it; make it the last."
            )
    if not any(phase.name == CUSTOM for phase in phases):  # whose the settings would be
        for field in fields(Split):
            _check_agrees(config, phases, field.name)


def _check_comparison(config: "AppConfig", phases: tuple[Phase, ...]) -> None:
    names = [phase.name for phase in phases]
    if not config.phases or len(set(names)) < len(names):
        raise ConfigError(
            f"compare = true with phases = {config.phases!r}: a comparison is of the methods that "
            "phases name, each once, and their results go into folders of these names; write "
            '"fedavg:5, gpsl:5", for example.'
        )


def _check_agrees(config: "AppConfig", phases: tuple[Phase, ...], name: str) -> None:
    """Refuse a setting of split learning that a phase's method contradicts."""
    key, value = name.replace("_", "-"), getattr(config, name)
    splits = {phase.name: phase.method.split for phase in phases if phase.method.split}
    if value and not splits:
        raise ConfigError(
            f"{key} = {value!r} contradicts method = {phases[0].name!r}, which does not cut the "
            f"model; leave out {key}, or choose a method of split learning."
        )
    for method, split in splits.items():
        own = getattr(split, name)
        if value and value != own:
            raise ConfigError(
                f"{key} = {value!r} contradicts method = {method!r}, which means {key} = "
                f"{own!r}; leave out {key}, or set method = {CUSTOM!r} and all that it is to be."
            )
