"""Bootstrapped linear heads over hashed features: H approximate draws from a posterior, trained by replay.

Head h minimises  sum_rows loss(row; w_h) with its own bootstrap weights + sum_f (w_hf - sigma z_hf)^2 / (2 sigma^2)
with z_h drawn once: bootstrapped heads (Osband et al. 2016, arXiv 1602.04621) with randomised priors (Osband,
Aslanides, Cassirer 2018, arXiv 1806.03335, lemma 3: exact posterior draws in the linear-Gaussian case). sigma is one
number per feature family, learnt from the data by MacKay's evidence update (MacKay 1992, Neural Computation 4, 4.8).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.special import expit

Floats = NDArray[np.float32]
PRIOR_ROWS = 4096
BLOCK = 1024  # features of which a step is taken at once
# Adam's decays a step. The objective moves with the data: moments of long ago say nothing, so both are shorter than the
# usual 0.9 and 0.999.
FIRST_DECAY, SECOND_DECAY = 0.8, 0.95
# Added to Adam's root mean square, in the gradient's unit (prior standard deviations): where a feature has little but
# its prior to follow, steps shrink with the gradient instead of keeping their full length.
ADAM_EPSILON = 0.1
# A learnt scale moves this part of the way to what the evidence asks for: one increment's evidence is noisy.
SCALE_STAYS, SCALE_MOVES = 0.7, 0.3
# It stays between a tenth and five times of the first one, whatever a few features say.
SCALE_SHRINKS, SCALE_GROWS = 10, 5


def prior_draws(ids: NDArray[np.uint64], heads: int, salt: int) -> Floats:
    """z for features by id, float32[f, H]: the same for every process that knows the salt. Standard normal, in
    antithetic pairs of heads, so that before any data the heads' mean is zero."""
    return _prior_table(heads, salt)[(ids % np.uint64(PRIOR_ROWS)).astype(np.intp)]


@lru_cache(maxsize=16)
def _prior_table(heads: int, salt: int) -> Floats:
    half = (heads + 1) // 2
    table = np.random.default_rng([salt, half]).standard_normal((PRIOR_ROWS, half)).astype(np.float32)
    return np.concatenate([table, -table], axis=1)[:, :heads]


@dataclass
class _Fit:
    """Weights on their way to the optimum, float32[F, H]: `u`, the prior's `z`, Adam's moments `m` and `v`."""

    u: Floats
    z: Floats
    m: Floats
    v: Floats
    steps: int

    def step(self, slopes: Floats, unit: Floats, rate: float) -> float:
        """One step by the losses' gradient `slopes` x `unit` and the prior's; returns the root of the mean square of
        both together. Kingma, Ba 2015 (arXiv 1412.6980, algorithm 1) with fast second moments: the objective moves with
        the data. In blocks that fit the processor's cache: twice as fast."""
        self.steps += 1
        of_first, of_second = 1 - FIRST_DECAY**self.steps, 1 - SECOND_DECAY**self.steps
        square = 0.0
        for start in range(0, len(self.u), BLOCK):
            part = slice(start, start + BLOCK)
            u, m, v, gradient = self.u[part], self.m[part], self.v[part], slopes[part]
            gradient *= unit[part]
            gradient += u
            gradient -= self.z[part]
            square += float(np.vdot(gradient, gradient))
            m *= FIRST_DECAY
            m += np.float32(1 - FIRST_DECAY) * gradient
            np.square(gradient, out=gradient)
            v *= SECOND_DECAY
            v += np.float32(1 - SECOND_DECAY) * gradient
            np.divide(v, of_second, out=gradient)
            np.sqrt(gradient, out=gradient)
            gradient += ADAM_EPSILON
            np.divide(m, gradient, out=gradient)
            gradient *= np.float32(rate / of_first)
            u -= gradient
        return math.sqrt(square / max(1, self.u.size))


class Heads:
    """One output of the critic: H linear models over a growing set of features."""

    def __init__(
        self, heads: int, scale: NDArray[np.float64], learnt: NDArray[np.bool_], salt: int, learning_rate: float = 0.08
    ) -> None:
        """`scale`: prior standard deviation per family; `learnt`: which of them the data may move."""
        self.heads = heads
        self.salt = salt
        self.scale = scale.astype(np.float32)
        self._first_scale = self.scale.copy()
        self._learnt = learnt
        self._rate = learning_rate
        self._steps = 0
        self.families = np.zeros(0, np.uint8)
        self.u = np.zeros((0, heads), np.float32)
        self._z = np.zeros((0, heads), np.float32)
        self._m = np.zeros((0, heads), np.float32)
        self._v = np.zeros((0, heads), np.float32)

    def grow(self, ids: NDArray[np.uint64], families: NDArray[np.uint8]) -> None:
        """Meet new features: each starts at its prior draw."""
        z = prior_draws(ids, self.heads, self.salt)
        empty = np.zeros_like(z)
        self.families = np.concatenate([self.families, families])
        self.u = np.concatenate([self.u, z])
        self._z = np.concatenate([self._z, z])
        self._m = np.concatenate([self._m, empty])
        self._v = np.concatenate([self._v, empty])

    @property
    def trained(self) -> bool:
        return self._steps > 0

    def weights(self) -> Floats:
        """float32[F, H] in the output's own units."""
        return self.u * self.scale[self.families][:, None]

    def fit(
        self,
        x: sparse.csr_matrix,
        mass: Floats,
        total: Floats,
        link: Literal["logistic", "identity"],
        steps: int,
        offset: float | Floats,
        noise: float = 1.0,
        among: NDArray[np.intp] | None = None,
    ) -> float:
        """`steps` full passes of Adam over aggregated rows; returns the root mean square of the last gradient.

        Args:
          x: csr[R, F] of 0 and 1, rows as first met.
          mass: float[R, H], each head's bootstrap weight of the row.
          total: float[R, H], sum of weight x target.
          offset: added to every prediction, or float[R, 1] to each row's (log-odds or units).
          noise: variance of a target under the identity link.
          among: the only features that the data says anything of, ascending; `x` may hold a part of their rows. The
            others are put at their prior draw, which is their optimum, and cost nothing. None: all.
        """
        if among is None:
            found = _Fit(self.u, self._z, self._m, self._v, self._steps)
            families = self.families
        else:
            found = _Fit(self.u[among], self._z[among], self._m[among], self._v[among], self._steps)
            x, families = x[:, among], self.families[among]
        transposed = x.T.tocsr()
        sigma = self.scale[families][:, None]
        added = np.asarray(offset, np.float32)
        weights = np.empty_like(found.u)
        norm = 0.0
        for _ in range(steps):
            np.multiply(found.u, sigma, out=weights)
            predicted = x @ weights + added
            if link == "logistic":
                predicted = expit(predicted)
            norm = found.step(transposed @ (mass * predicted - total), sigma / np.float32(noise), self._rate)
        self._steps = found.steps
        if among is not None:
            self.u = self._z.copy()
            self._m, self._v = np.zeros_like(self._m), np.zeros_like(self._v)
            self.u[among], self._m[among], self._v[among] = found.u, found.m, found.v
        return norm

    def learn_scales(
        self, x: sparse.csr_matrix, information: NDArray[np.float64], pseudo: float = 20.0, shared: bool = False
    ) -> None:
        """One evidence update of each learnt family's scale.

        Args:
          x: csr[R, F].
          information: float[R], each row's Fisher information about its prediction (n p (1 - p) for the logistic link).
          pseudo: features' worth of belief in the first scale.
          shared: what a row says about one of its weights is blurred by the row's other weights, of which no more than
            the prior is taken as known: i / (1 + i v), v their prior variance. Without it features that always come
            together (a variant, its words in its campaign) each count the same information as theirs, and their
            scales shrink to half of what they are.
        """
        variance = np.square(self.scale.astype(np.float64))
        if shared:
            # What is not learnt (the intercepts) many rows share: it is as good as known.
            blur = np.where(self._learnt, variance, 0.0)
            others = np.maximum((x @ blur[self.families])[:, None] - blur, 0.0)
            by_family = x.T @ (information[:, None] / (1.0 + information[:, None] * others))
            of_feature = by_family[np.arange(len(self.families)), self.families]
        else:
            of_feature = np.asarray(x.T @ information).ravel()
        per_feature = of_feature * variance[self.families]
        determined = per_feature / (1.0 + per_feature)
        mean_square = np.square(self.weights().mean(axis=1, dtype=np.float64))
        count = len(self.scale)
        gamma = np.bincount(self.families, weights=determined, minlength=count)
        energy = np.bincount(self.families, weights=mean_square, minlength=count)
        prior = np.square(self._first_scale.astype(np.float64))
        wanted = np.sqrt((energy + pseudo * prior) / (gamma + pseudo))
        wanted = np.clip(wanted, self._first_scale / SCALE_SHRINKS, self._first_scale * SCALE_GROWS)
        # Weights keep their values where the scale moves: u = w / sigma.
        moved = np.where(self._learnt, SCALE_STAYS * self.scale + SCALE_MOVES * wanted, self.scale).astype(np.float32)
        ratio = (self.scale / moved)[self.families][:, None]
        self.u *= ratio
        self.scale = moved

    def keep(self, columns: NDArray[np.intp]) -> None:
        """Forget all features but these, ascending; they take their places in this order."""
        self.families = self.families[columns]
        self.u, self._z, self._m, self._v = (each[columns] for each in (self.u, self._z, self._m, self._v))
