"""The methods a run can choose from: what each sets, whose it is, and what departs from it."""

from dataclasses import dataclass
from typing import Literal

Trained = Literal["split", "federated", "local-only", "centralized"]
ClientSync = Literal["step", "round", "none"]
ServerUpdate = Literal["global-batch", "per-client-average", "per-client-sequential"]


@dataclass(frozen=True, kw_only=True)
class Split:
    """How split learning trains: the arguments of `ParallelSplitLearning` by their names here.

    Attributes
    ----------
    sampler : str
        A key of `SAMPLERS`.
    client_sync : {"step", "round", "none"}
    server_update : {"global-batch", "per-client-average", "per-client-sequential"}
    client_strategy : str
        A key of `FLOWER_STRATEGIES`; "" for the mean, weighted by examples.
    """

    sampler: str = "gpsl"
    client_sync: ClientSync = "step"
    server_update: ServerUpdate = "global-batch"
    client_strategy: str = ""


@dataclass(frozen=True, kw_only=True)
class Method:
    """A named set of arguments.

    Attributes
    ----------
    paper : str
        Whose method it is, or that it is nobody's.
    departs : str
        What is not as in the paper.
    split : Split or None
        What split learning gets; None where the model is not cut.
    strategy : str
        The strategy of Flower that aggregates whole models, a key of `FLOWER_STRATEGIES`.
    trained : {"split", "federated", "local-only", "centralized"}
        Where the training takes place: over the cut, on devices that share whole models, on
        devices that share nothing, or on the server.
    """

    paper: str
    departs: str
    split: Split | None = None
    strategy: str = ""
    trained: Trained = "split"


def _federated(
    strategy: str, paper: str, departs: str = "all devices train in every round"
) -> Method:
    return Method(paper=paper, departs=departs, strategy=strategy, trained="federated")


_SPLITFED = "arXiv:2004.12088 (Thapa et al., SplitFed)"
_ADAPTIVE = "arXiv:2003.00295 (Reddi et al.)"
_ROBUST = "arXiv:1803.01498 (Yin et al.)"
_NO_PAPER = "no paper, a baseline"

# As the installed sources have it, against algorithm 2 of the paper.
_AS_FLOWER_HAS_IT = (
    "all devices train in every round; Flower's second moments begin at 0, the paper's at tau^2 "
    "or more"
)

CUSTOM = "custom"

METHODS: dict[str, Method] = {
    "gpsl": Method(
        paper="arXiv:2407.15738 (Kohankhaki et al.)",
        departs="nothing",
        split=Split(sampler="gpsl"),
    ),
    "psl": Method(
        paper="Jeon and Kim, ICOIN 2020; FPLS in arXiv:2407.15738",
        departs="clients share one segment, as in GPSL, so that only the sampling differs",
        split=Split(sampler="fpls"),
    ),
    "splitfed-v1": Method(
        paper=_SPLITFED,
        departs="a round is one pass; optimizers are new in each round; batches as in FLS",
        split=Split(
            sampler="fls",
            client_sync="round",
            server_update="per-client-average",
        ),
    ),
    "splitfed-v2": Method(
        paper=_SPLITFED,
        departs="a round is one pass; the clients' order is drawn anew in each step; devices have "
        "new optimizers in each round; batches as in FLS",
        split=Split(
            sampler="fls",
            client_sync="round",
            server_update="per-client-sequential",
        ),
    ),
    "sl": Method(
        paper="arXiv:1810.06060 (Gupta and Raskar), arXiv:1812.00564 (Vepakomma et al.)",
        departs="one client a step and one optimizer for the whole model are the relay in which "
        "weights and optimizer state travel; the clients' order is that of their keys",
        split=Split(sampler="sl"),
    ),
    "local-only": Method(
        paper=_NO_PAPER,
        departs="no model is ever shared; accuracy is the mean over the devices",
        trained="local-only",
    ),
    "centralized": Method(
        paper=_NO_PAPER, departs="the server has all training data", trained="centralized"
    ),
    "fedavg": _federated("fedavg", "arXiv:1602.05629 (McMahan et al.)"),
    "fedprox": _federated(
        "fedprox",
        "arXiv:1812.06127 (Li et al.)",
        "all devices train in every round, and all do the same number of epochs",
    ),
    "fedavgm": _federated("fedavgm", "arXiv:1909.06335 (Hsu et al.)"),
    "fedadam": _federated(
        "fedadam",
        _ADAPTIVE,
        f"{_AS_FLOWER_HAS_IT}; Flower corrects the bias of both moments, as if one round later, "
        "and the paper does not",
    ),
    "fedyogi": _federated("fedyogi", _ADAPTIVE, _AS_FLOWER_HAS_IT),
    "fedadagrad": _federated("fedadagrad", _ADAPTIVE, _AS_FLOWER_HAS_IT),
    "fedmedian": _federated(
        "fedmedian", _ROBUST, "the median is that of weights after local epochs, not of gradients"
    ),
    "fedtrimmedavg": _federated(
        "fedtrimmedavg",
        _ROBUST,
        "the mean is that of weights after local epochs, not of gradients",
    ),
    "krum": _federated(
        "krum",
        "Blanchard et al., NeurIPS 2017 (arXiv:1703.02757)",
        "it chooses among weights after local epochs, not among gradients",
    ),
}
"""By name. No method is a class of its own: each is a set of public arguments."""


def name_of(split: Split) -> str:
    """Return the name of the method with these settings, `CUSTOM` if it has none."""
    names = [name for name, method in METHODS.items() if method.split == split]
    return names[0] if names else CUSTOM
