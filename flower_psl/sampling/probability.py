"""The one check of probabilities that come from outside."""

from numbers import Real

from flower_psl.errors import ConfigError


def probability(name: str, value: object) -> float:
    """Return `value` as a plain `float` between 0 and 1, or say what is wrong with it.

    Parameters
    ----------
    name : str
        What the probability is of, as the error message shall call it.
    value : object
        A Python or NumPy number. Neither 0 nor 1 is accepted.

    Returns
    -------
    float
        The same number.

    Raises
    ------
    ConfigError
        If `value` is no number, or does not lie between 0 and 1.
    """
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < float(value) < 1:
        raise ConfigError(
            f"{name} is {value!r}; it is a probability and must lie between 0 and 1, both "
            "excluded: pass for instance 0.05"
        )
    return float(value)
