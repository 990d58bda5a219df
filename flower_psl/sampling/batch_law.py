"""The law of the labels in a global batch: exact where it can be, simulated beside it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flower_psl.errors import ConfigError
from flower_psl.sampling.hypergeometric import hypergeometric_law
from flower_psl.sampling.label_counts import label_counts
from flower_psl.sampling.label_table import label_table
from flower_psl.sampling.probability import probability
from flower_psl.sampling.schedule import BatchSchedule
from flower_psl.sampling.whole_number import whole_number


@dataclass(frozen=True, eq=False)
class BatchLaw:
    r"""How the labels of one global batch deviate from those of the pooled data.

    There are two views of a batch, each with a constructor of its own:

    - `of_schedule`: given how many examples each client contributes. What is left to chance
      is which examples these are. Any sampler's steps can be seen so.
    - `of_uniform_draw`: a uniform draw from the pooled data. So is a step of GPSL while its
      schedule is not yet drawn, however the data are divided among clients.

    A deviation is a class's share in the batch less its share in the pooled data.

    Attributes
    ----------
    batch_sizes : NDArray[int64], shape (S,)
        The examples that each client of the step contributes, b_k, at least 1.
    client_counts : NDArray[int64], shape (S, C)
        These clients' examples of each class.
    pooled_counts : NDArray[int64], shape (C,)
        All clients' examples of each class.

    Notes
    -----
    Client k contributes the next b_k examples of a uniform permutation of its D_k. Whichever
    places these are, a uniform permutation has a uniform subset there. So, as long as earlier
    draws are not looked at, its label counts are multivariate hypergeometric over *all* its
    data, late in the round as well as early; depletion acts only through the clients that a
    step has left. Clients are independent. With n the sum of the b_k and p_{kc} the share of
    class c in client k's data, the batch's counts N_c have

    .. math::
        E[N_c] &= \sum_k b_k p_{kc}, \\
        Cov[N_c, N_e] &= \sum_k b_k \frac{D_k - b_k}{D_k - 1}
                         (1_{c = e}\, p_{kc} - p_{kc} p_{ke}),

    and N_c has the convolution of the clients' hypergeometric laws. The total variation is
    half the sum of the absolute deviations, so its mean is exactly half the sum of theirs.
    Its quantiles, and those of the largest class, hang on all classes jointly: they have no
    closed form and are simulated, for instance as
    ``np.quantile(total_variation(law.simulate(10_000, rng)), 0.95)``.

    The mean deviation, or *bias*, with p_c the share in the pooled data, is

    .. math::
        \frac{E[N_c]}{n} - p_c = \sum_k \left(\frac{b_k}{n} - \frac{D_k}{D}\right) p_{kc}.

    It is 0 for b_k in proportion to D_k. Local sampling misses that by rounding b_k, by equal
    b_k for unequal D_k, and above all when clients run out of data. There every batch is drawn
    around the wrong share: a bound on chance bounds the distance from the bias, not the bias.
    In GPSL the b_k are drawn too, and the mean of the bias over schedules is 0.

    This is the setting of arXiv:2407.15738 (v5, v6), which bounds the deviations by Serfling's
    inequality (`SerflingBound`); their exact law is not in the paper.
    """

    batch_sizes: NDArray[np.int64]
    client_counts: NDArray[np.int64]
    pooled_counts: NDArray[np.int64]

    @classmethod
    def of_uniform_draw(cls, pooled_counts: ArrayLike, batch_size: int) -> "BatchLaw":
        r"""Return the law of a uniform draw without replacement from the pooled data.

        Every step of GPSL (with `min_client_batch` 1) is such a draw. Its shuffled word of
        client keys is one of :math:`D! / \prod_k D_k!`, and the clients' permutations are
        :math:`\prod_k D_k!`; each of the D! orders of the pooled data comes from exactly one
        word and one set of permutations, so all are equally likely. A step is a fixed run of
        places in that order. Neither K nor the division of the data among clients appears in
        the result: it is the law of a single client that holds the pool.

        Parameters
        ----------
        pooled_counts : array_like of int, shape (C,)
            All clients' examples of each class.
        batch_size : int
            The examples drawn, n.

        Returns
        -------
        BatchLaw
            The multivariate hypergeometric law.

        Raises
        ------
        ConfigError
            If the counts are no label counts, or fewer examples than `batch_size` exist.
        """
        pooled = label_counts("pooled data", pooled_counts)
        size = whole_number("batch_size", batch_size, at_least=1)
        if size > pooled.sum():
            raise ConfigError(
                f"batch_size is {size}, but the pooled data have {pooled.sum()} examples; none is "
                f"drawn twice: choose batch_size <= {pooled.sum()}"
            )
        return cls(np.array([size], dtype=np.int64), pooled[np.newaxis], pooled)

    @classmethod
    def of_schedule(
        cls, schedule: BatchSchedule, counts_by_client: Mapping[int, ArrayLike]
    ) -> "Iterator[BatchLaw]":
        """Return the law of every step, given the schedule.

        Parameters
        ----------
        schedule : BatchSchedule
            How many examples each client contributes to each step.
        counts_by_client : Mapping[int, array_like of int, shape (C,)]
            Client key to the client's examples of each class, for the clients of the schedule.

        Returns
        -------
        Iterator[BatchLaw]
            One law a step, in order. Arguments are checked at once, laws made when asked for.
            Each is the law of its step alone: the steps of a round are not independent.

        Raises
        ------
        ConfigError
            If the counts are of other clients or other numbers of classes, are no label
            counts, or are fewer than a client contributes in the round.
        """
        table = label_table(schedule, counts_by_client)
        row_of = {key: row for row, key in enumerate(schedule.client_keys)}
        pooled = table.sum(axis=0)
        return (
            cls(
                np.array(list(step.values()), dtype=np.int64),
                table[[row_of[key] for key in step]],
                pooled,
            )
            for step in schedule
        )

    @property
    def batch_size(self) -> int:
        """The examples in the batch, n."""
        return int(self.batch_sizes.sum())

    @property
    def mean_counts(self) -> NDArray[np.float64]:
        """Expected examples of each class, float64, shape (C,)."""
        means: NDArray[np.float64] = self.batch_sizes @ self._client_shares
        return means

    @property
    def covariance(self) -> NDArray[np.float64]:
        """Covariances of the classes' numbers of examples, float64, shape (C, C)."""
        shares, totals = self._client_shares, self.client_counts.sum(axis=1)
        # A client with one example gives it for sure: 0 of 0 is 0.
        weights = self.batch_sizes * (totals - self.batch_sizes) / np.maximum(totals - 1, 1)
        products: NDArray[np.float64] = shares.T @ (weights[:, np.newaxis] * shares)
        return np.diag(weights @ shares) - products

    @property
    def bias(self) -> NDArray[np.float64]:
        """Mean deviation of each class, float64, shape (C,)."""
        return self.mean_counts / self.batch_size - self._pooled_shares

    def class_law(self, label: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return the exact law of the number of examples of one class.

        It takes time in proportion to n**2 if many clients have part of the class.

        Parameters
        ----------
        label : int
            The class, from 0 to C - 1.

        Returns
        -------
        counts : NDArray[int64], shape (S,)
            The numbers that can occur, ascending without gaps.
        probabilities : NDArray[float64], shape (S,)
            Their probabilities; the sum is 1 to within 1e-12.

        Raises
        ------
        ConfigError
            If there is no such class.
        """
        label = whole_number("label", label, at_least=0, below=self.pooled_counts.size)
        lowest, law = 0, np.ones(1)
        for size, counts in zip(self.batch_sizes.tolist(), self.client_counts, strict=True):
            low, part = hypergeometric_law(int(counts.sum()), int(counts[label]), size)
            lowest += low
            law = np.convolve(law, part)
        return np.arange(lowest, lowest + len(law)), law

    def expected_class_deviations(self) -> NDArray[np.float64]:
        """Return the exact mean of each class's absolute deviation, float64, shape (C,)."""
        size = self.batch_size
        means = []
        for label, share in enumerate(self._pooled_shares):
            counts, law = self.class_law(label)
            means.append(law @ np.abs(counts / size - share))
        return np.array(means)

    def expected_total_variation(self) -> float:
        """Return the exact mean of the total variation, from 0 to 1."""
        return float(self.expected_class_deviations().sum() / 2)

    def class_quantile(self, label: int, delta: float) -> float:
        """Return the absolute deviation that a class exceeds with probability delta at most.

        This is the exact counterpart of `SerflingBound.deviation` for the event "class".

        Parameters
        ----------
        label : int
            The class, from 0 to C - 1.
        delta : float
            The probability, between 0 and 1.

        Returns
        -------
        float
            The smallest such deviation, from 0 to 1: one that really occurs.

        Raises
        ------
        ConfigError
            If there is no such class, or delta is not between 0 and 1.
        """
        delta = probability("delta", delta)
        counts, law = self.class_law(label)
        size, total = self.batch_size, int(self.pooled_counts.sum())
        # In whole numbers, so that deviations of the same size to both sides are equal.
        distances = np.abs(counts * total - size * self.pooled_counts[label])
        order = np.argsort(distances)
        beyond = np.append(np.cumsum(law[order][::-1])[-2::-1], 0.0)
        first = np.flatnonzero(beyond <= delta * (1 + 1e-12))[0]
        return float(distances[order[first]] / (size * total))

    def simulate(self, num_draws: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """Draw batches and return their deviations, class by class.

        Parameters
        ----------
        num_draws : int
            M, the number of independent batches.
        rng : numpy.random.Generator
            The source of randomness.

        Returns
        -------
        NDArray[float64], shape (M, C)
            Deviations, as of `label_deviations`.

        Raises
        ------
        ConfigError
            If `num_draws` is no whole number above 0.
        """
        num_draws = whole_number("num_draws", num_draws, at_least=1)
        drawn = np.zeros((num_draws, self.pooled_counts.size), dtype=np.int64)
        for size, counts in zip(self.batch_sizes.tolist(), self.client_counts, strict=True):
            drawn += rng.multivariate_hypergeometric(counts, size, size=num_draws)
        return drawn / self.batch_size - self._pooled_shares

    @property
    def _client_shares(self) -> NDArray[np.float64]:
        shares: NDArray[np.float64] = self.client_counts / self.client_counts.sum(1, keepdims=True)
        return shares

    @property
    def _pooled_shares(self) -> NDArray[np.float64]:
        shares: NDArray[np.float64] = self.pooled_counts / self.pooled_counts.sum()
        return shares
