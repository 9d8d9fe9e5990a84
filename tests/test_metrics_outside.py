"""Metrics against other people's packages."""

import math

import dit
import dit.divergences
import dit.multivariate
import jax
import jax.numpy as jnp
import moocore
import numpy as np
import pytest
import scipy.optimize
import scipy.spatial.distance
import scipy.stats

from regdist import metrics
from tests.registry_metrics import REWARD, SEQUENCES, SIZE
from tests.strategies import laws

PAIRS = list(zip(laws(SIZE, 1), laws(SIZE, 2), strict=True))
BITS = np.log(2)
distances = {name: jax.jit(getattr(metrics, name)) for name in ("js", "hellinger", "chi_squared")}
quality_diversity = jax.jit(metrics.quality_diversity)


def in_dit(log_p, outcomes=None):
    outcomes = outcomes or [str(i) for i in range(log_p.size)]
    p = np.exp(log_p)
    return dit.Distribution(outcomes, p / p.sum())


@pytest.mark.parametrize("order", [0.0, 0.3, 1.0, 2.0, 6.0, np.inf])
def test_entropies_against_dit(order):
    entropies = jax.jit(
        lambda p: [f(p, order) for f in (metrics.renyi_entropy, metrics.hill_number)]
    )
    for log_p, _ in PAIRS:
        want = dit.other.renyi_entropy(in_dit(log_p), order) * BITS
        assert np.allclose(entropies(log_p), [want, np.exp(want)], rtol=1e-13)
        if order < np.inf:
            tsallis = dit.other.tsallis_entropy(in_dit(log_p), order)
            assert np.isclose(metrics.tsallis_entropy(log_p, order), tsallis, rtol=1e-13)


@pytest.mark.parametrize("order", [0.5, 1.0, 2.0, 6.0])
def test_renyi_and_alpha_divergences_against_dit(order):
    """dit's alpha, of information geometry, is 1 - 2 alpha; its two limits are exchanged."""
    ours = jax.jit(
        lambda p, q: [f(p, q, order) for f in (metrics.renyi_divergence, metrics.alpha_divergence)]
    )
    for log_p, log_q in PAIRS:
        p, q = in_dit(log_p), in_dit(log_q)
        renyi, alpha = ours(log_p, log_q)
        assert np.isclose(renyi, dit.divergences.renyi_divergence(p, q, order) * BITS, rtol=1e-12)
        if order != 1:
            want = dit.divergences.alpha_divergence(p, q, 1 - 2 * order)
            assert np.isclose(alpha, want, rtol=1e-12)


def test_distances_against_dit_and_scipy():
    for log_p, log_q in PAIRS:
        p, q = np.exp(log_p), np.exp(log_q)
        got = {name: f(log_p, log_q) for name, f in distances.items()}
        hellinger = dit.divergences.hellinger_distance(in_dit(log_p), in_dit(log_q))
        assert np.isclose(got["hellinger"], hellinger, rtol=1e-12)
        js = scipy.spatial.distance.jensenshannon(p, q) ** 2
        assert np.isclose(got["js"], js, rtol=1e-12)
        chi = scipy.stats.chisquare(p / p.sum(), q / q.sum()).statistic
        assert np.isclose(got["chi_squared"], chi, rtol=1e-12)


def test_token_entropies_against_dit_and_the_chain_rule():
    distinct, where = np.unique(SEQUENCES, axis=0, return_inverse=True)
    token_entropies = jax.jit(metrics.token_entropies)
    for log_p, _ in PAIRS:
        masses = np.bincount(where, np.exp(log_p))
        joint = in_dit(np.log(masses), ["".join(map(str, row)) for row in distinct])
        want = [dit.multivariate.entropy(joint, [[t]], range(t)) * BITS for t in range(3)]
        got = token_entropies(log_p, jnp.asarray(SEQUENCES))
        assert np.allclose(got, want, rtol=1e-12)
        assert np.isclose(got.sum(), scipy.stats.entropy(masses), rtol=1e-13)


@pytest.mark.parametrize(("n", "objectives"), [(1, 2), (7, 1), (9, 2), (7, 3), (4, 4)])
def test_hypervolume_against_moocore(n, objectives):
    random = np.random.default_rng(n)
    volume = jax.jit(metrics.hypervolume)
    for _ in range(5):
        points = np.round(random.uniform(-0.3, 1, size=(n, objectives)), 1)  # ties and worse points
        reference = np.full(objectives, 0.1)
        want = moocore.hypervolume(points, ref=reference, maximise=True)
        assert np.isclose(volume(jnp.asarray(points), jnp.asarray(reference)), want, rtol=1e-13)


@pytest.mark.parametrize("n", [1, 5, 30])
def test_unbiased_pass_at_k_against_the_hypergeometric_law(n):
    c, k = np.meshgrid(np.arange(n + 1), np.arange(n + 1))
    got = jax.jit(jax.vmap(metrics.pass_at_k_unbiased, (None, 0, 0)))(n, c, k)
    assert np.allclose(got, scipy.stats.hypergeom.sf(0, n, c, k), rtol=1e-11, atol=0)


def test_optimal_baseline_minimises_the_variance():
    """Against scipy's minimiser of the trace of the covariance of w S (R - b)."""
    for log_p, log_b in PAIRS[:2]:
        p, b = np.exp(log_p), np.exp(log_b)
        score = np.eye(SIZE) - p

        def variance(baseline, p=p, b=b, score=score):
            estimate = (p / b * (REWARD - baseline))[:, None] * score
            return b @ (estimate**2).sum(axis=1) - ((b @ estimate) ** 2).sum()

        best = scipy.optimize.minimize_scalar(variance).x
        got = metrics.optimal_baseline(log_p, jnp.asarray(REWARD), log_b)
        assert np.isclose(got, best, rtol=1e-7)


def test_effective_sample_size_is_that_of_many_samples():
    """Kong's ratio when every action is drawn exactly as often as expected."""
    log_p, log_q = PAIRS[1]
    counts = np.exp(log_q)
    weights = np.exp(log_p - log_q)
    ratio = (counts @ weights) ** 2 / (counts @ weights**2)
    assert np.isclose(metrics.effective_sample_size(log_p, log_q), ratio, rtol=1e-13)


@pytest.mark.parametrize("n", [1, 2, 4])
def test_quality_diversity_against_every_draw(n):
    p, reward, label = np.array([0.1, 0.4, 0.2, 0.3]), np.array([3.0, 1, 1, 2]), [0, 0, 1, 0]
    total = 0.0
    for draw in np.ndindex(*[4] * n):
        archive = np.zeros(2)
        for i in draw:
            archive[label[i]] = max(archive[label[i]], reward[i])
        total += math.prod(p[list(draw)]) * archive.sum()
    got = quality_diversity(jnp.log(p), jnp.asarray(reward), jnp.array(label), n)
    assert np.isclose(got, total, rtol=1e-14)
