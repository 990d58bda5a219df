"""What a module is made of, looked up once.

PyTorch walks the whole tree of modules each time it is asked for parameters, buffers or a
mode. In a step that takes milliseconds it is asked on every side.
"""

from torch import Tensor, nn


class ModuleIndex:
    """A module, with its parts at hand.

    Its modules and parameters are those that it has now, and stay so.

    Parameters
    ----------
    module : nn.Module
        The module.

    Attributes
    ----------
    module : nn.Module
        The same.
    parameters : dict of str to Parameter
        Its parameters by name, each once.
    is_tied : bool
        Whether a parameter or a buffer has more than one name.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.parameters = dict(module.named_parameters())
        buffers = dict(module.named_buffers())
        self._has_buffers = bool(buffers)
        named = [
            *module.named_parameters(remove_duplicate=False),
            *module.named_buffers(remove_duplicate=False),
        ]
        self.is_tied = len(named) > len(self.parameters) + len(buffers)
        self._modules = tuple(module.modules())
        self._modes: tuple[bool, ...] = ()

    @property
    def buffers(self) -> dict[str, Tensor]:
        """Its buffers by name, each once; a layer may have put others into their places."""
        return dict(self.module.named_buffers()) if self._has_buffers else {}

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Its parameters and buffers by name, detached, without copies.

        Buffers that a ``state_dict`` leaves out are among them: a forward pass needs them.
        """
        tensors = {**self.parameters, **self.buffers}
        return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}

    def train(self, mode: bool = True) -> None:
        """Put the module into training or evaluation mode, as ``nn.Module.train`` does.

        It is asked to only if it, or a part of it, is not as it was when it was last asked to:
        a cut shares its layers with the whole model, whose owner may have changed their mode.
        """
        if self._modes != (mode, *[module.training for module in self._modules]):
            self.module.train(mode)
            self._modes = (mode, *[module.training for module in self._modules])
