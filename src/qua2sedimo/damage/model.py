"""What measured configurations say about the damage of every option, and how sure that is.

    y(c) = s(ln Σ_l exp(w·x(l, c_l) + v(l, c_l))) + δ·[one layer alone] + ε_images + noise,   s(t) = t − softplus(t − κ)

y is the log of the images' mean squared error under configuration c. Squared errors of independent sources add, so the
error is a sum of damages, one a layer; a layer in 16 bits adds nothing. x(l, o) are the features of option o of layer
l, v(l, o) is its own effect beside them. A ruined picture cannot get worse: damage saturates at κ. Images measured
together have ε in common, since some pictures are harder than others, and layers alone have δ.

All parameters have normal priors, so layers that were never measured closely are judged by their kind. The most likely
parameters are found by Gauss-Newton steps in the space of records: with J the derivative of y, S the prior variance and
N that of the noise, everything follows from K = J·S·Jᵀ + N, of records × records, however many parameters there are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy.sparse import csr_array
from scipy.special import expit

from qua2sedimo.damage.columns import Features
from qua2sedimo.options import Option, SearchSpace

#: Nepers of squared error in a decibel of PSNR.
DECIBEL = np.log(10) / 10
#: The kind of records of one layer alone.
ALONE = 0
_STEPS, _CLOSE, _SHORTEST = 30, 1e-5, 1e-3
_ROUNDS, _SETTLED = 8, 0.05
#: Prior standard deviations in nepers: of κ, of δ, of what images have in common. κ is expected one neper above the
#: largest error.
_LIMIT, _SHIFT, _IMAGES = 1.0, 1.0, 0.4
_UNREACHED = 1e3  # a κ at which nothing saturates
#: Noise that is assumed first, of layers alone and of others, and the number of records that this assumption is worth:
#: layers measured once cannot tell noise from their spread, and a layer alone is not quite a layer among others.
_ALONE_NOISE, _NOISE, _ASSUMED = 0.55, 0.3, 20
_LEAST_NOISE = 0.02
#: Of records that differ little the noise is assumed to be at most this share of their standard deviation.
_NOISE_SHARE = 0.5
#: Layers, blocks, operations, methods and options may differ by these factors times as much as is expected of pictures;
#: how likely that is before there are records, relative to the first.
_DIFFERING = {1.0: 1.0, 0.3: 0.5, 0.1: 0.25}
_LEAST_POWER = 0.1  # more error is never better
#: Another unit than decibels is not tried where left-out records correlate so well, and must be more likely by so many
#: nepers.
_GOOD, _CLEARLY = 0.9, 3.0
_TELLING = 20  # records from which another unit than decibels is tried


@dataclass(frozen=True, eq=False)
class Observations:
    """Measured configurations.

    Shapes:
        choices: int [records, layers], the option of each layer, −1 where it is in 16 bits; log_error: [records], the
        log of the images' mean squared error; kind: int [records], kinds of records differ in their noise, and
        ``ALONE`` is one layer alone; images: int [records], which images.
    """

    choices: np.ndarray
    log_error: np.ndarray
    kind: np.ndarray
    images: np.ndarray


@dataclass(frozen=True, eq=False)
class DamageModel:
    """Parameters of the model, most likely or drawn: w, κ, δ, ε of each set of images, v.

    ``noise``: standard deviation of each kind of record, in nepers. ``left_out``: what a fit without a record, of the
    model linearised, would have predicted for it [records]. ``log_evidence``: of the records under this prior, of the
    model linearised, but for a constant.
    """

    features: Features
    noise: np.ndarray
    left_out: np.ndarray
    log_evidence: float
    parameters: np.ndarray
    _posterior: _Posterior

    @property
    def weights(self) -> np.ndarray:
        """w [features]."""
        return self.parameters[: self.features.mean.size]

    @property
    def own(self) -> np.ndarray:
        """v [layers, options]."""
        return self.parameters[-self.features.offered.size :].reshape(self.features.offered.shape)

    @property
    def limit(self) -> float:
        """κ."""
        return float(self.parameters[self.features.mean.size])

    @cached_property
    def log_damage(self) -> np.ndarray:
        """w·x + v, the log of what each option adds: [layers, options]."""
        return self.features.values @ self.weights + self.own

    def predict(self, choices: np.ndarray) -> np.ndarray:
        """Log error [records] of choices [records, layers] on images like others."""
        total, _ = _total(self.log_damage, choices)
        return total - np.logaddexp(0, total - self.limit)

    def scores(self, space: SearchSpace) -> dict[str, dict[Option, float]]:
        """Minus the damage of each option, in units of the typical option's: what an integer program adds up."""
        relative = np.exp(self.log_damage - np.median(self.log_damage[self.features.offered]))
        return {n: {o: -float(relative[i, j]) for j, o in enumerate(space.options[n])}
                for i, n in enumerate(space.layers)}  # fmt: skip

    def draw(self, rng: np.random.Generator, spread: float = 1.0) -> DamageModel:
        """One model as likely as the measurements leave it; ``spread`` widens the deviations, since where errors do not
        just add, the model is surer of itself than it should be."""
        drawn = self.parameters + spread * self._posterior.deviation(rng)
        for power in self.features.powers:
            drawn[power] = np.maximum(drawn[power], _LEAST_POWER)
        return replace(self, parameters=drawn)


def fit_damage(features: Features, seen: Observations) -> DamageModel:
    """The most likely model. Works from a single record on; without any, the prior is the model.

    How much layers differ is expected as in pictures, unless the records are likelier if they differ less: then few
    records do not mislead where errors alone say nearly everything.
    """
    if not len(seen.kind):
        return _fit(features, seen)
    fits = [(_fit(features.differing(by), seen), np.log(prior)) for by, prior in _DIFFERING.items()]
    return max(fits, key=lambda fit: fit[0].log_evidence + fit[1])[0]


def _fit(features: Features, seen: Observations) -> DamageModel:
    """The most likely model under the prior of ``features``.

    The noise of each kind is estimated from the residuals once the parameters have settled, and both are repeated until
    neither changes: before, all that the parameters have yet to learn would be taken for noise.
    """
    problem, assumed = _Problem(features, seen), _assumed_noise(seen)
    parameters, noise = problem.mean, assumed
    for _ in range(_ROUNDS):
        parameters = problem.most_likely(parameters, noise[seen.kind])
        posterior, residual, left_out, log_evidence = problem.around(parameters, noise[seen.kind])
        estimated = _noise(seen.kind, residual, posterior.free, assumed)
        if np.abs(np.log(estimated / noise)).max(initial=0.0) < _SETTLED:
            break
        noise = estimated
    return DamageModel(features, noise, left_out, log_evidence, parameters, posterior)


def fit_gain(
    features: Features, choices: np.ndarray, gain: np.ndarray, alone: tuple[np.ndarray, np.ndarray] | None = None
) -> tuple[DamageModel, float]:
    """(model, nepers of error per unit of gain) of any objective ``gain`` [records], higher is better.

    Gain is taken as decibels, unless the records are clearly more likely in another unit. ``alone``: (choices, gain) of
    layers measured alone, on images of their own. ``left_out`` is of the records first, then of these.
    """
    few = alone or (choices[:0], gain[:0])
    kind = np.repeat([1, ALONE], [len(gain), len(few[1])])
    both, gains = np.concatenate([choices, few[0]]), np.concatenate([gain, few[1]])
    spread = _total(features.values @ features.mean, choices)[0].std()
    best: tuple[float, DamageModel, float] | None = None
    telling = len(gain) >= _TELLING and gain.std() > 0
    others = [spread / gain.std() * factor for factor in (0.7, 1.4, 2.8)] if telling else []
    for unit in (DECIBEL, *others):
        # What images of layers alone have in common is part of what layers alone have.
        model = fit_damage(features, Observations(both, -unit * gains, kind, np.zeros_like(kind)))
        # Per unit of gain: a density in nepers says more of a gain the more nepers its unit has.
        evidence = model.log_evidence + len(gains) * np.log(unit / DECIBEL)
        if best is None or evidence > best[0] + (_CLEARLY if best[2] == DECIBEL else 0):
            best = evidence, model, float(unit)
        if best[2] == DECIBEL and _agree(best[1], gain) > _GOOD:
            break
    assert best is not None
    return best[1:]


def _agree(model: DamageModel, gain: np.ndarray) -> float:
    """The correlation of left-out predictions with ``gain`` [records]; 1 where all are equal."""
    return float(np.corrcoef(-model.left_out[: len(gain)], gain)[0, 1]) if gain.std() > 0 else 1.0


@dataclass(frozen=True, eq=False)
class _Jacobian:
    """Derivatives of y by the parameters: by own effects sparse, for a record has but one option a layer.

    Shapes:
        dense: [records, w, κ, δ, ε]; own: [records, layers · options].
    """

    dense: np.ndarray
    own: csr_array

    def __matmul__(self, parameters: np.ndarray) -> np.ndarray:
        width = self.dense.shape[1]
        return np.asarray(self.dense @ parameters[:width] + self.own @ parameters[width:])

    def transposed(self, records: np.ndarray) -> np.ndarray:
        return np.concatenate([records @ self.dense, self.own.T @ records])

    def kernel(self, variance: np.ndarray) -> np.ndarray:
        """J·S·Jᵀ: [records, records]."""
        width = self.dense.shape[1]
        kernel = (self.dense * variance[:width]) @ self.dense.T
        if variance[width:].any():
            kernel += (self.own.multiply(variance[width:]).tocsr() @ self.own.T).toarray()
        return np.asarray(kernel)


@dataclass(frozen=True, eq=False)
class _Posterior:
    """What the measurements leave possible, of the model linearised; ``inverse``: K⁻¹; ``noises``: N [records]."""

    jacobian: _Jacobian
    variance: np.ndarray
    inverse: np.ndarray
    noises: np.ndarray

    @property
    def free(self) -> np.ndarray:
        """How much of each record's noise the parameters did not take up, 0 to 1: [records]."""
        return self.noises * np.diag(self.inverse)

    def deviation(self, rng: np.random.Generator) -> np.ndarray:
        """Parameters drawn, minus their mean, by Matheron's rule: a draw from the prior and of the noise, corrected by
        what the records would then have said. No covariance of the parameters is needed."""
        prior = np.sqrt(self.variance) * rng.normal(size=len(self.variance))
        noise = np.sqrt(self.noises) * rng.normal(size=len(self.noises))
        said = self.inverse @ (self.jacobian @ prior + noise)
        return np.asarray(prior - self.variance * self.jacobian.transposed(said))


class _Problem:
    """Features, observations, and the prior mean and variance of all parameters, in the order w, κ, δ, ε, v."""

    def __init__(self, features: Features, seen: Observations) -> None:
        self.features, self.seen = features, seen
        self.flat = csr_array(features.values.reshape(features.offered.size, -1))  # nearly all is one-hot
        self.alone = (seen.kind == ALONE).astype(float)
        sets = int(seen.images.max(initial=-1)) + 1
        self.images = np.eye(sets)[seen.images] if sets else np.zeros((0, 0))
        several = len(np.unique(seen.images)) > 1
        images = _IMAGES if several else 0.0  # of a single set: others are like it, as far as is known
        own = np.zeros(features.offered.size)
        self.mean = np.concatenate([features.mean, [_UNREACHED, 0.0], np.zeros(sets), own])
        deviation = np.concatenate([features.deviation, [_LIMIT, _SHIFT], np.full(sets, images), own + features.own])
        level, limit = features.groups["level"], features.mean.size
        if len(seen.kind):
            self.mean[level] += np.median(seen.log_error - self.predicted(self.mean)[0])
            self.mean[limit] = seen.log_error.max() + 1.0
        else:
            deviation[level] = deviation[limit] = 0.0  # the level of all options alike decides nothing
        self.variance = deviation**2

    def predicted(self, parameters: np.ndarray) -> tuple[np.ndarray, _Jacobian]:
        """(y, its derivatives)."""
        features, choices = self.features, self.seen.choices
        width = features.mean.size
        dense, own = np.split(parameters, [width + 2 + self.images.shape[1]])
        log_damage = features.values @ dense[:width] + own.reshape(features.offered.shape)
        total, share = _total(log_damage, choices)
        saturated = expit(total - dense[width])
        rows, layers = np.nonzero(choices >= 0)
        places = layers * features.offered.shape[1] + choices[rows, layers]
        slopes = csr_array(
            (((1 - saturated)[:, None] * share)[rows, layers], (rows, places)), shape=(len(choices), own.size)
        )
        more = np.column_stack([saturated, self.alone, self.images])
        y = total - np.logaddexp(0, total - dense[width]) + more[:, 1:] @ dense[width + 1 :]
        return y, _Jacobian(np.concatenate([(slopes @ self.flat).toarray(), more], axis=1), slopes)

    def most_likely(self, parameters: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """Gauss-Newton steps with a line search, from ``parameters`` on, under noise [records]."""
        certain = self.variance == 0

        def objective(parameters: np.ndarray, y: np.ndarray) -> float:
            off = (parameters - self.mean)[~certain]
            return float((((self.seen.log_error - y) / noise) ** 2).sum() + (off**2 / self.variance[~certain]).sum())

        y, jacobian = self.predicted(parameters)
        value = objective(parameters, y)
        for _ in range(_STEPS):
            kernel = jacobian.kernel(self.variance) + np.diag(noise**2)
            left = self.seen.log_error - y + jacobian @ (parameters - self.mean)
            aim = self.mean + self.variance * jacobian.transposed(np.linalg.solve(kernel, left))
            length = 1.0
            while length > _SHORTEST:
                candidate = parameters + length * (aim - parameters)
                y_there, jacobian_there = self.predicted(candidate)
                value_there = objective(candidate, y_there)
                if value_there < value:
                    break
                length /= 2
            else:
                break
            gain, value = value - value_there, value_there
            parameters, y, jacobian = candidate, y_there, jacobian_there
            if gain < _CLOSE * value:
                break
        return parameters

    def around(self, parameters: np.ndarray, noise: np.ndarray) -> tuple[_Posterior, np.ndarray, np.ndarray, float]:
        """(posterior, residuals, left-out predictions [records], log evidence) of the model linearised at
        ``parameters``."""
        y, jacobian = self.predicted(parameters)
        inverse = np.linalg.inv(jacobian.kernel(self.variance) + np.diag(noise**2))
        residual = self.seen.log_error - y
        surprise = residual + jacobian @ (parameters - self.mean)
        explained = inverse @ surprise
        left_out = self.seen.log_error - explained / np.diag(inverse)
        log_evidence = 0.5 * float(np.linalg.slogdet(inverse)[1] - surprise @ explained)
        return _Posterior(jacobian, self.variance, inverse, noise**2), residual, left_out, log_evidence


def _total(log_damage: np.ndarray, choices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(ln Σ of the chosen damages [records], each layer's share of the sum [records, layers])."""
    terms = log_damage[np.arange(len(log_damage)), np.maximum(choices, 0)]
    terms = np.where(choices >= 0, terms, -np.inf)
    total = np.logaddexp.reduce(terms, axis=1)
    return total, np.exp(terms - total[:, None])


def _assumed_noise(seen: Observations) -> np.ndarray:
    """Standard deviation of each kind's noise before any residual is known [kinds]."""
    kinds = np.arange(int(seen.kind.max(initial=-1)) + 1)
    assumed = np.where(kinds == ALONE, _ALONE_NOISE, _NOISE)
    for kind in kinds:
        of_kind = seen.log_error[seen.kind == kind]
        if len(of_kind) > 2:
            assumed[kind] = max(_LEAST_NOISE, min(assumed[kind], _NOISE_SHARE * of_kind.std()))
    return assumed


def _noise(kind: np.ndarray, residual: np.ndarray, free: np.ndarray, assumed: np.ndarray) -> np.ndarray:
    """Standard deviation of each kind's residuals, corrected for what the parameters took up (MacKay 1992), and drawn
    towards the noise first ``assumed`` [kinds] where records are few."""
    squares = np.bincount(kind, residual**2, len(assumed)) + _ASSUMED * assumed**2
    return np.maximum(_LEAST_NOISE, np.sqrt(squares / (np.bincount(kind, free, len(assumed)) + _ASSUMED)))
