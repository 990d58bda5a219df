"""The one check of whole numbers that come from outside."""

from numbers import Integral

from flower_psl.errors import ConfigError


def whole_number(name: str, value: object, *, at_least: int, below: int | None = None) -> int:
    """Return `value` as a plain `int`, or say what is wrong with it.

    Parameters
    ----------
    name : str
        What the number is, as the error message shall call it.
    value : object
        A Python or NumPy integer. Booleans and floats are refused, whole or not.
    at_least : int
        The smallest value allowed.
    below : int, optional
        The smallest value that is too large. No upper limit by default.

    Returns
    -------
    int
        The same number as a Python `int`, whose arithmetic cannot overflow.

    Raises
    ------
    ConfigError
        If `value` is no integer or lies outside the limits.
    """
    # The usual case first: to ask what else is an integer takes far longer.
    if type(value) is not int and (isinstance(value, bool) or not isinstance(value, Integral)):
        raise ConfigError(
            f"{name} is {value!r} ({type(value).__name__}); it must be a whole number: pass an int"
        )
    number = int(value)
    if number < at_least:
        raise ConfigError(f"{name} is {number}; it must be at least {at_least}: pass a larger int")
    if below is not None and number >= below:
        raise ConfigError(f"{name} is {number}; it must be below {below}: pass a smaller int")
    return number
