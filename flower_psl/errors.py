"""What can go wrong, as one family of exceptions.

Every message quotes the value, the rule it breaks and the remedy, so that a log line
is enough to act on.
"""

# Of a longer text the beginning and the end are kept: the value, and the remedy.
_KEPT_CHARACTERS = (3000, 1000)


class PslError(Exception):
    """Base class of every error that flower_psl raises on purpose.

    What a message quotes may come from another machine, so it is made `presentable`.
    """

    def __init__(self, message: str) -> None:
        super().__init__(presentable(message))


def presentable(text: str) -> str:
    """Return text as a log can hold it, whoever wrote it.

    Of more than 4,000 characters the middle is left out. Characters that cannot be seen, or
    that a terminal acts on, are escaped. Lines after the first are indented, so that none can
    pass for an entry of its own.
    """
    first, last = _KEPT_CHARACTERS
    if len(text) > first + last:
        text = f"{text[:first]} [{len(text) - first - last} characters] {text[-last:]}"
    visible = "".join(
        character
        if character.isprintable() or character in "\n\t"
        else character.encode("unicode_escape").decode()
        for character in text
    )
    return visible.replace("\n", "\n    ")


class ConfigError(PslError, ValueError):
    """An argument or a configuration value that breaks a rule."""


class CutError(PslError, ValueError):
    """A model that cannot be cut where it was asked to be cut."""


class ProtocolError(PslError):
    """A request or a reply that breaks a promise of the protocol."""


class ClientError(PslError):
    """A client that raised, or whose segment or data do not fit the run."""


class WaitError(PslError, TimeoutError):
    """A bound on waiting that was reached."""


class CheckpointError(PslError):
    """A saved state that is damaged, missing, or of another run than this one."""
