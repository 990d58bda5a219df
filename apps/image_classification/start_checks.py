"""What is checked of all phases before the first one trains, beside the configuration itself."""

from .config import AppConfig
from .federated import check_buffers
from .image_spec import ImageSpec
from .models import meta_model
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
