"""A step that ended in the middle."""

from flower_psl.errors import PslError


class TornError(Exception):
    """Ends a run in a step of which some updates were made and others were not.

    Parameters
    ----------
    cause : PslError
        Why it ended.
    """

    def __init__(self, cause: PslError) -> None:
        super().__init__(str(cause))
        self.cause = cause
