"""The one check of real numbers that come from outside."""

import math
from numbers import Real

from flower_psl.errors import ConfigError


def real_number(
    name: str,
    value: object,
    *,
    at_least: float = -math.inf,
    above: float = -math.inf,
    at_most: float = math.inf,
    finite: bool = True,
) -> float:
    """Return `value` as a plain `float`, or say what is wrong with it.

    Parameters
    ----------
    name : str
        What the number is, as the error message shall call it.
    value : object
        A Python or NumPy number. Booleans are refused, and what is not a number.
    at_least, above, at_most : float, optional
        The limits, of which `above` is itself too small. No limits by default.
    finite : bool, default True
        Refuse infinity too.

    Returns
    -------
    float
        The same number as a Python `float`.

    Raises
    ------
    ConfigError
        If `value` is no number or lies outside the limits.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ConfigError(
            f"{name} is {value!r} ({type(value).__name__}); it must be a number: pass a float"
        )
    number = float(value)
    if math.isnan(number) or (finite and math.isinf(number)):
        raise ConfigError(f"{name} is {number}; it must be finite: pass another number")
    if number < at_least:
        raise ConfigError(f"{name} is {number}; it must be at least {at_least}: pass a larger one")
    if number <= above:
        raise ConfigError(f"{name} is {number}; it must be above {above}: pass a larger one")
    if number > at_most:
        raise ConfigError(f"{name} is {number}; it must be at most {at_most}: pass a smaller one")
    return number
