"""A model in two parts that is still one model to its optimizer and its checkpoints."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Self, TypeVar

from torch import Tensor, nn
from torch.nn import Parameter

from flower_psl.errors import ConfigError, CutError

T = TypeVar("T")


class SplitModel:
    """The client segment, the server segment, and the whole model that they are.

    `cut` makes one from a whole model. Two hand-written modules do as well, if the names
    in their ``state_dict`` are those of the whole model.

    It is no ``nn.Module``: as submodules of one, the segments would have their names
    prefixed (``client.conv1.weight``), and a whole model's keys would be lost.

    Parameters
    ----------
    client : nn.Module
        The part in front of the cut. It returns one tensor.
    server : nn.Module
        The part behind the cut. It takes that tensor.
    at : str
        Name of the cut layer, ``""`` for hand-written segments.
    order : iterable of str
        The whole model's ``state_dict`` keys in their order. Keys that are not named
        come last, the client's first.

    Attributes
    ----------
    client, server : nn.Module
        The segments.
    at : str
        Name of the cut layer.

    Raises
    ------
    CutError
        If both segments have a key, a parameter or a buffer in common.

    Examples
    --------
    >>> client = nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 8, 3), relu=nn.ReLU()))
    >>> server = nn.Sequential(OrderedDict(flatten=nn.Flatten(), head=nn.Linear(7200, 10)))
    >>> split = SplitModel(client, server)
    """

    def __init__(
        self, client: nn.Module, server: nn.Module, *, at: str = "", order: Iterable[str] = ()
    ) -> None:
        _refuse_shared(client, server)
        self.client = client
        self.server = server
        self.at = at
        self._position = {name: position for position, name in enumerate(order)}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the whole model's output: ``server(client(inputs))``."""
        return self.server(self.client(*args, **kwargs))

    def __repr__(self) -> str:
        """Name the cut and the sizes of the segments."""
        sizes = [
            sum(parameter.numel() for parameter in segment.parameters())
            for segment in (self.client, self.server)
        ]
        return f"SplitModel(at={self.at!r}, client={sizes[0]:,}, server={sizes[1]:,} parameters)"

    def state_dict(self) -> dict[str, Any]:
        """Return the whole model's state, without copies, in the original order."""
        return self._ordered({**self.client.state_dict(), **self.server.state_dict()}.items())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Copy a whole model's state into both segments.

        Parameters
        ----------
        state : mapping of str to Tensor
            Exactly the keys and shapes of `state_dict`, in any order.

        Raises
        ------
        ConfigError
            If a key is missing or unknown, or a shape differs. Nothing is loaded then.
        """
        own = self.state_dict()
        wrong = [
            f"{name} is {tuple(state[name].shape)} instead of {tuple(tensor.shape)}"
            for name, tensor in own.items()
            if isinstance(tensor, Tensor) and name in state and state[name].shape != tensor.shape
        ]
        missing = [name for name in own if name not in state]
        unexpected = [name for name in state if name not in own]
        if missing or unexpected or wrong:
            raise ConfigError(
                f"state_dict with missing keys {missing}, unexpected keys {unexpected} and wrong "
                f"shapes {wrong}; keys and shapes must be those of the whole model. Build the "
                "model with the same arguments as the one that the state is from."
            )
        for segment in (self.client, self.server):
            segment.load_state_dict({name: state[name] for name in segment.state_dict()})

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Iterate over the whole model's parameters by name, in the original order."""
        both = [*self.client.named_parameters(), *self.server.named_parameters()]
        yield from self._ordered(both).items()

    def parameters(self) -> Iterator[Parameter]:
        """Iterate over the whole model's parameters in the original order.

        One optimizer over them is the one that centralized training would have, down to
        the positions in its ``state_dict``.
        """
        yield from (parameter for _, parameter in self.named_parameters())

    def train(self, mode: bool = True) -> Self:
        """Put both segments into training (or evaluation) mode."""
        self.client.train(mode)
        self.server.train(mode)
        return self

    def eval(self) -> Self:
        """Put both segments into evaluation mode."""
        return self.train(False)

    def _ordered(self, items: Iterable[tuple[str, T]]) -> dict[str, T]:
        last = len(self._position)
        return dict(sorted(items, key=lambda item: self._position.get(item[0], last)))


def _refuse_shared(client: nn.Module, server: nn.Module) -> None:
    """Refuse segments that have a ``state_dict`` key or a tensor in common.

    Raises
    ------
    CutError
        Naming the keys, or the tensors on both sides.
    """
    if keys := [name for name in client.state_dict() if name in server.state_dict()]:
        raise CutError(
            f"both segments have the state_dict keys {keys}; each key of the whole model belongs "
            "to one segment. Name the layers apart, for example with "
            "nn.Sequential(OrderedDict(stem=...)) and nn.Sequential(OrderedDict(head=...))."
        )
    client_names = {id(tensor): name for name, tensor in _tensors(client)}
    tied = [
        f"{client_names[id(tensor)]} (client) = {name} (server)"
        for name, tensor in _tensors(server)
        if id(tensor) in client_names
    ]
    if tied:
        raise CutError(
            f"tensors are shared across the cut: {', '.join(tied)}; tied weights cannot be on two "
            "machines. Untie them, or cut where they are on the same side."
        )


def _tensors(segment: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from segment.named_parameters(remove_duplicate=False)
    yield from segment.named_buffers(remove_duplicate=False)
