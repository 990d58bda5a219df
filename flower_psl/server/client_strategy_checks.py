"""Which of Flower's strategies can aggregate client segments."""

from flwr.serverapp.strategy import (
    Bulyan,
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    FedProx,
    FedXgbBagging,
    FedXgbCyclic,
    MultiKrum,
    QFedAvg,
    Strategy,
)

from flower_psl.errors import ConfigError

_CLIPS_ON_DEVICES = (
    "devices would have to clip their updates, and its mod sees no message of parallel split "
    "learning. Use the server-side wrapper of the same kind"
)
_TREES = "it aggregates trees of XGBoost. Use a strategy that aggregates arrays"
_REFUSED: dict[type[Strategy], str] = {
    DifferentialPrivacyClientSideAdaptiveClipping: _CLIPS_ON_DEVICES,
    DifferentialPrivacyClientSideFixedClipping: _CLIPS_ON_DEVICES,
    FedProx: (
        "it adds a term to the loss on each device, and here the loss is on the server. Use "
        "FedAvg with fewer steps_per_round"
    ),
    FedXgbBagging: _TREES,
    FedXgbCyclic: _TREES,
    QFedAvg: (
        "it needs each device's loss over its data, and here the loss is on the server. Use FedAvg"
    ),
}

# Nodes that must be there for each malicious one, beside three (Blanchard et al., 2017; El
# Mhamdi et al., 2018). Krum is a MultiKrum. Flower itself goes on with fewer, unprotected.
_NODES_PER_MALICIOUS: dict[type[Strategy], int] = {MultiKrum: 2, Bulyan: 4}


def check_client_strategy(strategy: object, min_available_nodes: int) -> None:
    """Refuse a strategy that could not aggregate what the clients have trained.

    Parameters
    ----------
    strategy : Strategy
        The strategy, perhaps one that wraps another.
    min_available_nodes : int
        Nodes that the run waits for.

    Raises
    ------
    ConfigError
        If it is none, needs what devices do not send or weighs by it, trains with a part of
        the nodes only, or wants more nodes than the run waits for.
    """
    if not isinstance(strategy, Strategy):
        raise ConfigError(
            f"client_strategy is {strategy!r}; it must be a strategy of flwr.serverapp.strategy, "
            "such as FedAdam()"
        )
    for each in layers_of(strategy):
        for kind, reason in _REFUSED.items():
            if isinstance(each, kind):
                raise ConfigError(
                    f"client_strategy is a {type(each).__name__}, which cannot aggregate client "
                    f"segments: {reason}."
                )
    innermost = layers_of(strategy)[-1]
    share = getattr(innermost, "fraction_train", 1.0)
    if share != 1.0:
        raise ConfigError(
            f"client_strategy has fraction_train={share}; every client that has trained is "
            "aggregated, and the sampler says who trains. Leave fraction_train at 1.0."
        )
    key = getattr(innermost, "weighted_by_key", "num-examples")
    if key != "num-examples":
        raise ConfigError(
            f"client_strategy has weighted_by_key={key!r}; what a client weighs in the mean is "
            "its 'num-examples', and nothing else. Leave weighted_by_key at 'num-examples'."
        )
    wanted = _min_nodes(strategy)
    if wanted > min_available_nodes:
        raise ConfigError(
            f"client_strategy wants {wanted} nodes and the run waits for {min_available_nodes}; "
            "it would wait without end, or not withstand its malicious nodes. Raise "
            "min_available_nodes, or lower the strategy's minimum or num_malicious_nodes."
        )


def check_clients(strategy: Strategy, num_clients: int) -> None:
    """Refuse a run in which no round could have as many clients as a strategy wants.

    Parameters
    ----------
    strategy : Strategy
        The strategy.
    num_clients : int
        Clients that have training data.

    Raises
    ------
    ConfigError
        If it wants more, or adds noise for more.
    """
    sampled = [int(getattr(each, "num_sampled_clients", 0)) for each in layers_of(strategy)]
    if (wanted := max(_min_nodes(strategy), *sampled)) > num_clients:
        raise ConfigError(
            f"client_strategy {type(strategy).__name__} wants {wanted} clients in each round, and "
            f"{num_clients} have training data. Lower its minimum of nodes, num_malicious_nodes "
            "or num_sampled_clients, or give more clients data."
        )


def check_round(strategy: Strategy, num_trained: int, where: str) -> None:
    """Refuse a round with another number of clients than a strategy was set up for.

    Parameters
    ----------
    strategy : Strategy
        The strategy.
    num_trained : int
        Clients that trained in the round.
    where : str
        Round and strategy, for the message.

    Raises
    ------
    ConfigError
        If it would wait for more, or adds the noise of another number to their mean.
    """
    if (wanted := _min_nodes(strategy)) > num_trained:
        raise ConfigError(
            f"{where}: it wants {wanted} nodes, and {num_trained} trained in this round. Lower "
            "its min_train_nodes and min_available_nodes, or choose a sampler that lets more "
            "clients take part in every round."
        )
    for each in layers_of(strategy):
        sampled = getattr(each, "num_sampled_clients", num_trained)
        if sampled != num_trained:
            raise ConfigError(
                f"{where}: its noise is that of num_sampled_clients={sampled}, and {num_trained} "
                "trained in this round, so it would not protect as it promises. Set it to the "
                "clients of a round, and choose a sampler that lets all take part in each."
            )


def _min_nodes(strategy: Strategy) -> int:
    """Return how many nodes a strategy waits for, or needs to promise what it does."""
    innermost = layers_of(strategy)[-1]
    robust = [
        3 + each * int(getattr(innermost, "num_malicious_nodes", 0))
        for kind, each in _NODES_PER_MALICIOUS.items()
        if isinstance(innermost, kind)
    ]
    waits = [getattr(innermost, name, 0) for name in ("min_train_nodes", "min_available_nodes")]
    return max(map(int, [*waits, *robust]))


def layers_of(strategy: Strategy) -> list[Strategy]:
    """Return a strategy, the one that it wraps, and so on."""
    layers = [strategy]
    while isinstance(inner := getattr(layers[-1], "strategy", None), Strategy):
        layers.append(inner)
    return layers
