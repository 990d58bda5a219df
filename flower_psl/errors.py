"""What can go wrong, as one family of exceptions.

Every message quotes the value, the rule it breaks and the remedy, so that a log line
is enough to act on.
"""


class PslError(Exception):
    """Base class of every error that flower_psl raises on purpose."""


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
