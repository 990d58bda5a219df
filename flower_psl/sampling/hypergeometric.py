"""The hypergeometric law, exact for pools of any size."""

import numpy as np
from numpy.typing import NDArray


def hypergeometric_law(
    num_examples: int, num_marked: int, num_drawn: int
) -> tuple[int, NDArray[np.float64]]:
    r"""Return the law of the number of marked examples in a draw without replacement.

    Of D examples m are marked and b are drawn; x of these are marked with probability
    :math:`p(x) = \binom{m}{x} \binom{D - m}{b - x} / \binom{D}{b}`.

    Parameters
    ----------
    num_examples : int
        D, the examples there are.
    num_marked : int
        m, the marked ones among them, from 0 to D.
    num_drawn : int
        b, the examples drawn, from 0 to D.

    Returns
    -------
    lowest : int
        The smallest number possible, max(0, b - (D - m)).
    probabilities : NDArray[float64], shape (S,)
        Those of lowest, lowest + 1, ..., min(m, b). They add up to 1.

    Notes
    -----
    Logarithms of factorials of 10**7 are near 10**8, and a difference of them keeps 8 digits
    only. So the logarithms of the ratios

    .. math:: \frac{p(x + 1)}{p(x)} = \frac{(m - x)(b - x)}{(x + 1)(D - m - b + x + 1)}

    are added up, from the mode outwards, so that sums are small wherever p is not; the result
    is scaled to the sum 1.
    """
    lowest = max(0, num_drawn - (num_examples - num_marked))
    highest = min(num_marked, num_drawn)
    x = np.arange(lowest, highest, dtype=np.float64)
    ratios = np.log(
        (num_marked - x)
        / (x + 1)
        * ((num_drawn - x) / (num_examples - num_marked - num_drawn + x + 1))
    )
    mode = (num_drawn + 1) * (num_marked + 1) // (num_examples + 2)
    place = min(max(mode, lowest), highest) - lowest
    below = -np.cumsum(ratios[:place][::-1])[::-1]
    above = np.cumsum(ratios[place:])
    probabilities = np.exp(np.concatenate([below, [0.0], above]))
    return lowest, probabilities / probabilities.sum()
