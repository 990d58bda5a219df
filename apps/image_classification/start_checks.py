"""What is checked of all phases before the first one trains, beside the configuration itself."""

from flwr.serverapp import Grid

from .config import AppConfig
from .federated import ask_devices, check_buffers, check_number
from .image_spec import ImageSpec
from .models import meta_model
from .samplers import SAMPLERS
from .split_learning import build_strategy

# Layers and where they can be cut do not depend on the images, so none have to be loaded.
_ANY_IMAGES = ImageSpec(num_channels=3, height=224, width=224, num_classes=10)


def check_methods(config: AppConfig) -> None:
    """Refuse what a method of the run cannot do with, by the configuration alone.

    The strategies are built as they are for training, so that what they refuse is refused here.

    Raises
    ------
    PslError
        If the model cannot be cut, or a strategy refuses its settings or the model.
    """
    model = meta_model(config.model, _ANY_IMAGES)
    for phase in config.parsed_phases:
        if phase.method.split is not None:
            build_strategy(config, model, phase.method.split)
        check_buffers(model, phase.method.strategy)


def check_devices(grid: Grid, config: AppConfig) -> None:
    """Refuse what a later phase cannot do with, by the data of the devices.

    A run of one phase is left alone: it asks its devices itself before it trains.

    Raises
    ------
    PslError
        If the devices do not answer, or their data cannot fill a batch, or they are too few.
    """
    phases = config.parsed_phases
    if len(phases) == 1 or all(phase.method.trained == "centralized" for phase in phases):
        return
    num_examples = ask_devices(grid, config).num_examples
    for phase in phases:
        if phase.method.split is not None:
            SAMPLERS[phase.method.split.sampler](config).schedule(num_examples, server_round=1)
        check_number(config, phase.strategy, len(num_examples))
