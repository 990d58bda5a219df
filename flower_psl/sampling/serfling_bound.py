"""Serfling's and Hoeffding's bounds on the deviation of a global batch."""

import math
from bisect import bisect_left
from dataclasses import dataclass
from enum import StrEnum
from numbers import Real

from flower_psl.errors import ConfigError
from flower_psl.sampling.probability import probability as checked_probability
from flower_psl.sampling.whole_number import whole_number


class DeviationEvent(StrEnum):
    """What deviates by as much as a bound asks about.

    Members
    -------
    CLASS_ABOVE
        One class, given beforehand, has too large a share in the batch (or: too small a one).
    CLASS
        One class, given beforehand, deviates to either side.
    LARGEST_CLASS
        Any class deviates to either side.
    TOTAL_VARIATION
        Any set of classes deviates; see `total_variation`.
    """

    CLASS_ABOVE = "class-above"
    CLASS = "class"
    LARGEST_CLASS = "largest-class"
    TOTAL_VARIATION = "total-variation"


@dataclass(frozen=True, kw_only=True)
class SerflingBound:
    r"""Serfling's bound for a uniform draw without replacement from the pooled data.

    The share of one class in a draw of n from D examples exceeds its share in the pooled data
    by at least eps with a probability of at most

    .. math::
        \exp\left(-\frac{2 n \varepsilon^2}{\rho}\right),
        \qquad \rho = 1 - \frac{n - 1}{D}

    (R. J. Serfling, "Probability inequalities for the sum in sampling without replacement",
    Annals of Statistics 2, 1974; the guarantee of arXiv:2407.15738 v5, v6). It holds for
    every step of GPSL, whatever the number of clients and the skew of their data, as each is
    such a draw; not for batches of local sampling, whose `BatchLaw.bias` it does not know.

    Notes
    -----
    The other events are unions of m such one-sided deviations, and their probability is at
    most m times as large: m = 2 for a class to both sides and m = 2 C for any of C classes.
    The total variation is the largest deviation of a set of classes, and the share of a set
    is that of one class in a coarser labelling; of the 2^C sets, the empty and the full one
    never deviate, so m = 2^C - 2. All is done with logarithms, so large C do no harm.

    The bound knows neither the share of the class nor that counts are whole: the exact
    `BatchLaw.class_quantile` is smaller, for rare classes by far. As n reaches D, the
    deviation is 0 while the bound stays above it.

    Parameters
    ----------
    num_examples : int
        The pooled examples, D.
    num_classes : int
        C, at least 2.
    event : DeviationEvent, default TOTAL_VARIATION
        What deviates; also by its value, such as "class".

    Raises
    ------
    ConfigError
        If an argument is invalid.
    """

    num_examples: int
    num_classes: int
    event: DeviationEvent = DeviationEvent.TOTAL_VARIATION

    def __post_init__(self) -> None:
        """Check the arguments."""
        for name, least in (("num_examples", 1), ("num_classes", 2)):
            number = whole_number(name, getattr(self, name), at_least=least)
            object.__setattr__(self, name, number)
        if self.event not in list(DeviationEvent):
            raise ConfigError(
                f"event is {self.event!r}; there is no such event: choose from "
                f"{', '.join(DeviationEvent)}"
            )
        object.__setattr__(self, "event", DeviationEvent(self.event))

    def probability(self, batch_size: int, deviation: float) -> float:
        """Return the bound on the probability of a deviation of at least this size.

        Parameters
        ----------
        batch_size : int
            The examples of the step, n, at most D.
        deviation : float
            eps, above 0.

        Returns
        -------
        float
            From 0 to 1. 1 says nothing.

        Raises
        ------
        ConfigError
            If an argument is invalid.
        """
        size = self._checked_size(batch_size)
        return math.exp(min(0.0, self._log_probability(size, _checked_deviation(deviation))))

    def deviation(self, batch_size: int, delta: float) -> float:
        r"""Return the deviation that is exceeded with probability delta at most.

        It is :math:`\sqrt{\rho \ln(m / \delta) / (2 n)}`, cut off at 1, the largest deviation
        there is.

        Parameters
        ----------
        batch_size : int
            The examples of the step, n, at most D.
        delta : float
            The probability of a larger deviation, between 0 and 1.

        Returns
        -------
        float
            From 0 to 1. 1 says nothing.

        Raises
        ------
        ConfigError
            If an argument is invalid.
        """
        size = self._checked_size(batch_size)
        log_delta = math.log(checked_probability("delta", delta))
        return min(1.0, math.sqrt((self._log_union() - log_delta) / self._rate(size)))

    def batch_size(self, deviation: float, delta: float) -> int:
        r"""Return the smallest batch that deviates as much with probability delta at most.

        By the bound this is the smallest n for which `probability` is at most delta, that is,
        with :math:`a = \ln(m / \delta) / (2 \varepsilon^2)`, about a (D + 1) / (D + a). If the
        bound is above delta even for n = D, it is D, as the pooled data do not deviate at all.

        Parameters
        ----------
        deviation : float
            eps, above 0.
        delta : float
            The probability of a deviation of at least this size, between 0 and 1.

        Returns
        -------
        int
            From 1 to D.

        Raises
        ------
        ConfigError
            If an argument is invalid.
        """
        deviation = _checked_deviation(deviation)
        log_delta = math.log(checked_probability("delta", delta))
        return 1 + bisect_left(
            range(1, self.num_examples),
            True,
            key=lambda size: self._log_probability(size, deviation) <= log_delta,
        )

    def _rate(self, batch_size: int) -> float:
        """Return 2 n / rho, the factor of eps**2 in the exponent."""
        return 2 * batch_size * self.num_examples / (self.num_examples - batch_size + 1)

    def _log_union(self) -> float:
        """Return the logarithm of m, the number of one-sided deviations in the event."""
        logarithms = {
            DeviationEvent.CLASS_ABOVE: 0.0,
            DeviationEvent.CLASS: math.log(2),
            DeviationEvent.LARGEST_CLASS: math.log(2 * self.num_classes),
            DeviationEvent.TOTAL_VARIATION: self.num_classes * math.log(2)
            + math.log1p(-(2.0 ** (1 - self.num_classes))),
        }
        return logarithms[self.event]

    def _log_probability(self, batch_size: int, deviation: float) -> float:
        return self._log_union() - self._rate(batch_size) * deviation**2

    def _checked_size(self, batch_size: int) -> int:
        size = whole_number("batch_size", batch_size, at_least=1)
        if size > self.num_examples:
            raise ConfigError(
                f"batch_size is {size}, but the pooled data have {self.num_examples} examples; "
                f"none is drawn twice: choose batch_size <= {self.num_examples}"
            )
        return size


class HoeffdingBound(SerflingBound):
    r"""Hoeffding's bound, which leaves out what drawing without replacement gains: rho = 1.

    It is that of independent draws, and holds without replacement too (W. Hoeffding,
    "Probability inequalities for sums of bounded random variables", JASA 58, 1963). So it is
    never below Serfling's, and as good as that for n far below D. All else is as there, the
    limit n <= D included.
    """

    def _rate(self, batch_size: int) -> float:
        return 2.0 * batch_size


def _checked_deviation(deviation: float) -> float:
    if isinstance(deviation, bool) or not isinstance(deviation, Real) or not deviation > 0:
        raise ConfigError(
            f"deviation is {deviation!r}; it is a difference of shares and must be above 0: pass "
            "for instance 0.1"
        )
    return float(deviation)
