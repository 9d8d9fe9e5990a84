"""The registry of metrics that the laws run over: functions of (log_p, log_q, actions).

`actions` says which rows of the tables of rewards, labels and so on the entries of the laws stand
for, so that relabelling the actions or leaving one out is another `actions`. A metric with a
number to sweep returns one value for each of a few.
"""

import itertools

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np

from regdist import metrics

SIZE = 6
_places = np.random.default_rng(5).normal(size=(SIZE, 2))

REWARD = np.array([0.5, 2.0, 1.0, 0.25, 2.0, 3.0])
LABEL = np.array([0, 2, 0, 2, 4, 1])
CORRECT = np.array([True, False, True, True, False, False])
SEQUENCES = np.array([[0, 0, 1], [0, 0, 2], [0, 1, 1], [1, 0, 0], [1, 0, 1], [0, 0, 1]])
SIMILARITY = np.exp(-((_places[:, None] - _places[None, :]) ** 2).sum(axis=-1))

ORDERS = (0.0, 0.5, 1.0, 2.0, np.inf)
VENDI_ORDERS = (1.0, 2.0, np.inf)  # below 1 the eigensolver's rounding shows
ALPHAS = (-1.0, 0.0, 0.5, 1.0, 2.0)
COUNTS = (1.0, 4.5, np.inf)
GROUPS = (1.0, 3.0)
FLOOR = 0.05
REFERENCE = np.array([0.01, 0.02])


def rows(table, like, actions):
    return jnp.asarray(table, like.dtype)[actions]


def swept(f, numbers):
    return jax.vmap(f)(jnp.asarray(numbers))


def _masses(p, q):
    change = metrics.support_change(p, q, FLOOR)
    return jnp.stack([change.lost_mass, change.gained_mass])


def _points(p, q):
    return jnp.stack([jnp.exp(p), jnp.exp(q)], axis=1)


METRICS = {
    "entropy": lambda p, q, a: metrics.entropy(p),
    "renyi_entropy": lambda p, q, a: swept(lambda n: metrics.renyi_entropy(p, n), ORDERS),
    "tsallis_entropy": lambda p, q, a: swept(lambda n: metrics.tsallis_entropy(p, n), ORDERS),
    "hill_number": lambda p, q, a: swept(lambda n: metrics.hill_number(p, n), ORDERS),
    "label_log_probs": lambda p, q, a: jnp.exp(metrics.label_log_probs(p, jnp.array(LABEL)[a])),
    "restrict": lambda p, q, a: metrics.entropy(metrics.restrict(p, jnp.array(CORRECT)[a])),
    "effective_labels": lambda p, q, a: metrics.effective_labels(
        p, jnp.array(LABEL)[a], jnp.array(CORRECT)[a], 0.5
    ),
    "answer_entropy": lambda p, q, a: metrics.answer_entropy(p, jnp.array(LABEL)[a]),
    "token_entropies": lambda p, q, a: metrics.token_entropies(p, jnp.array(SEQUENCES)[a]),
    "kl": lambda p, q, a: metrics.kl(p, q),
    "js": lambda p, q, a: metrics.js(p, q),
    "total_variation": lambda p, q, a: metrics.total_variation(p, q),
    "hellinger": lambda p, q, a: metrics.hellinger(p, q),
    "chi_squared": lambda p, q, a: metrics.chi_squared(p, q),
    "alpha_divergence": lambda p, q, a: swept(lambda x: metrics.alpha_divergence(p, q, x), ALPHAS),
    "renyi_divergence": lambda p, q, a: swept(lambda n: metrics.renyi_divergence(p, q, n), ORDERS),
    "log_odds_error": lambda p, q, a: metrics.log_odds_error(p, q),
    "expected_reward": lambda p, q, a: metrics.expected_reward(p, rows(REWARD, p, a)),
    "success": lambda p, q, a: metrics.success(p, jnp.array(CORRECT)[a]),
    "pass_at_k": lambda p, q, a: metrics.pass_at_k(
        metrics.success(p, jnp.array(CORRECT)[a]), jnp.array(COUNTS)
    ),
    "zero_advantage_probability": lambda p, q, a: metrics.zero_advantage_probability(
        metrics.success(p, jnp.array(CORRECT)[a]), jnp.array(GROUPS)
    ),
    "effective_sample_size": lambda p, q, a: metrics.effective_sample_size(p, q),
    "concentrability": lambda p, q, a: metrics.concentrability(p, q),
    "squared_score_norm": lambda p, q, a: metrics.squared_score_norm(p),
    "optimal_baseline": lambda p, q, a: metrics.optimal_baseline(p, rows(REWARD, p, a)),
    "optimal_baseline off-policy": lambda p, q, a: metrics.optimal_baseline(
        p, rows(REWARD, p, a), q
    ),
    "support_change": lambda p, q, a: _masses(p, q),
    "vendi_score": lambda p, q, a: swept(
        lambda n: metrics.vendi_score(p, rows(SIMILARITY, p, a)[:, a], n), VENDI_ORDERS
    ),
    "quality_diversity": lambda p, q, a: swept(
        lambda n: metrics.quality_diversity(p, rows(REWARD, p, a), jnp.array(LABEL)[a], n), COUNTS
    ),
    "hypervolume": lambda p, q, a: metrics.hypervolume(
        _points(p, q), jnp.asarray(REFERENCE, p.dtype)
    ),
}

# Which values are +inf, from the supports of p and q; all others are finite.
INFINITE = {
    "kl": lambda p, q: np.any(p & ~q),
    "chi_squared": lambda p, q: np.any(p & ~q),
    "concentrability": lambda p, q: np.any(p & ~q),
    "log_odds_error": lambda p, q: np.any(q & ~p),
    "alpha_divergence": lambda p, q: [
        bool((x <= 0 and np.any(q & ~p)) or (x >= 1 and np.any(p & ~q))) for x in ALPHAS
    ],
    "renyi_divergence": lambda p, q: [
        bool(not np.any(p & q) or (n >= 1 and np.any(p & ~q))) for n in ORDERS
    ],
}

# 0 at p = q, and never negative
DISTANCES = (
    "kl",
    "js",
    "total_variation",
    "hellinger",
    "chi_squared",
    "alpha_divergence",
    "renyi_divergence",
    "log_odds_error",
)


# The definitions, from mpmath numbers p and q that add up to 1: sums over p > 0 as they stand in
# the textbook, with no care for cancellation.


def _power_sum(p, n):
    return mp.fsum(x**n for x in p if x > 0)


def _entropy(p):
    return -mp.fsum(x * mp.log(x) for x in p if x > 0)


def _renyi(p, n):
    if n == 1:
        return _entropy(p)
    return -mp.log(max(p)) if n == np.inf else mp.log(_power_sum(p, n)) / (1 - n)


def _tsallis(p, n):
    if n == np.inf:
        return mp.mpf(0)
    return _entropy(p) if n == 1 else (1 - _power_sum(p, n)) / (n - 1)


def _cells(p, keys):
    """Masses by key, the keys in order."""
    keys = [tuple(np.atleast_1d(k)) for k in keys]
    return {k: mp.fsum(x for x, j in zip(p, keys, strict=True) if j == k) for k in sorted(keys)}


def _kl(p, q):
    return mp.fsum(x * mp.log(x / y) for x, y in zip(p, q, strict=True) if x > 0)


def _js(p, q):
    m = [(x + y) / 2 for x, y in zip(p, q, strict=True)]
    return (_kl(p, m) + _kl(q, m)) / 2


def _alpha(p, q, a):
    if a in (0, 1):
        return _kl(q, p) if a == 0 else _kl(p, q)
    total = mp.fsum(x**a * y ** (1 - a) for x, y in zip(p, q, strict=True) if x > 0 and y > 0)
    return (total - 1) / (a * (a - 1))


def _renyi_divergence(p, q, n):
    both = [(x, y) for x, y in zip(p, q, strict=True) if x > 0 and y > 0]
    if n == 1:
        return _kl(p, q)
    if n == np.inf:
        return mp.log(max(x / y for x, y in both))
    return mp.log(mp.fsum(x**n * y ** (1 - n) for x, y in both)) / (n - 1)


def _success(p):
    return mp.fsum(x for x, right in zip(p, CORRECT, strict=True) if right)


def _restricted(p):
    total = _success(p)
    return [x / total if right else mp.mpf(0) for x, right in zip(p, CORRECT, strict=True)]


def _hill_of_answers(p):
    return mp.exp(_renyi(_cells(_restricted(p), LABEL).values(), 0.5)) if _success(p) > 0 else 0


def _token_entropies(p):
    prefixes = [_entropy(_cells(p, SEQUENCES[:, :t]).values()) for t in (1, 2, 3)]
    return [late - early for early, late in zip([0, *prefixes[:2]], prefixes, strict=True)]


def _baseline(p, b):
    squares = mp.fsum(x * x for x in p)
    weights = [
        x * x / y * (1 - 2 * x + squares) if x > 0 and y > 0 else mp.mpf(0)
        for x, y in zip(p, b, strict=True)
    ]
    if mp.fsum(weights) == 0:
        return mp.fdot(p, map(float, REWARD))
    return mp.fdot(weights, map(float, REWARD)) / mp.fsum(weights)


def _spectrum(p):
    n = len(p)
    matrix = mp.matrix(n, n)
    for i, j in itertools.product(range(n), repeat=2):
        matrix[i, j] = mp.sqrt(p[i] * p[j]) * mp.mpf(float(SIMILARITY[i, j]))
    return [max(x, mp.mpf(0)) for x in mp.eigsy(matrix, eigvals_only=True)]


def vendi_rounding(p, eps):
    """What an eigensolver's error makes of each score.

    Weyl: rounding to `eps` in a matrix of n rows moves any eigenvalue by n eps times the largest,
    however small it is itself, and -x log x is steep there. How it rounds hangs on the processor.
    """
    exact = _spectrum(p)
    moved = len(p) * eps * max(exact)
    scores = []
    for n in VENDI_ORDERS:
        here, off = mp.exp(_renyi(exact, n)), mp.mpf(0)
        for i in range(len(exact)):
            off += abs(
                mp.exp(_renyi([x + moved * (k == i) for k, x in enumerate(exact)], n)) - here
            )
        scores.append(off)
    return scores


def _quality_diversity(p, n):
    """Sum over cells and actions of R_i times the chance that i is its cell's best draw."""

    def none_of(mass):
        return (1 - mass) ** n if n < np.inf else mp.mpf(mass == 0)

    total = mp.mpf(0)
    for cell in set(LABEL):
        better = mp.mpf(0)
        members = [i for i in range(len(p)) if LABEL[i] == cell]
        for i in sorted(members, key=lambda i: -REWARD[i]):
            total += float(REWARD[i]) * (none_of(better) - none_of(better + p[i]))
            better += p[i]
    return total


def _hypervolume(p, q):
    """The area under a staircase."""
    corner = [mp.mpf(float(x)) for x in REFERENCE]
    area, reached = mp.mpf(0), corner[1]
    for x, y in sorted(zip(p, q, strict=True), reverse=True):
        if x > corner[0] and y > reached:
            area += (x - corner[0]) * (y - reached)
            reached = y
    return area


def _change(p, q):
    pairs = list(zip(p, q, strict=True))
    return [
        mp.fsum(y for x, y in pairs if y > FLOOR >= x),
        mp.fsum(x for x, y in pairs if x > FLOOR >= y),
    ]


DEFINITIONS = {
    "entropy": lambda p, q: _entropy(p),
    "renyi_entropy": lambda p, q: [_renyi(p, n) for n in ORDERS],
    "tsallis_entropy": lambda p, q: [_tsallis(p, n) for n in ORDERS],
    "hill_number": lambda p, q: [mp.exp(_renyi(p, n)) for n in ORDERS],
    "label_log_probs": lambda p, q: [_cells(p, LABEL).get((a,), 0) for a in range(SIZE)],
    "restrict": lambda p, q: _entropy(_restricted(p)) if _success(p) > 0 else 0,
    "effective_labels": lambda p, q: _hill_of_answers(p),
    "answer_entropy": lambda p, q: _entropy(_cells(p, LABEL).values()),
    "token_entropies": lambda p, q: _token_entropies(p),
    "kl": _kl,
    "js": _js,
    "total_variation": lambda p, q: mp.fsum(abs(x - y) for x, y in zip(p, q, strict=True)) / 2,
    "hellinger": lambda p, q: mp.sqrt(
        max(0, 1 - mp.fsum(mp.sqrt(x * y) for x, y in zip(p, q, strict=True)))
    ),
    "chi_squared": lambda p, q: mp.fsum(
        (x - y) ** 2 / y for x, y in zip(p, q, strict=True) if y > 0
    ),
    "alpha_divergence": lambda p, q: [_alpha(p, q, a) for a in ALPHAS],
    "renyi_divergence": lambda p, q: [_renyi_divergence(p, q, n) for n in ORDERS],
    "log_odds_error": lambda p, q: max(
        abs(mp.log(p[i] * q[j] / (p[j] * q[i])))
        for i, j in itertools.product([i for i in range(len(p)) if q[i] > 0], repeat=2)
    ),
    "expected_reward": lambda p, q: mp.fdot(p, map(float, REWARD)),
    "success": lambda p, q: _success(p),
    "pass_at_k": lambda p, q: [
        1 - (1 - _success(p)) ** n if n < np.inf else mp.mpf(_success(p) > 0) for n in COUNTS
    ],
    "zero_advantage_probability": lambda p, q: [
        _success(p) ** n + (1 - _success(p)) ** n for n in GROUPS
    ],
    "effective_sample_size": lambda p, q: (
        0
        if any(y == 0 < x for x, y in zip(p, q, strict=True))
        else 1 / mp.fsum(x * x / y for x, y in zip(p, q, strict=True) if y > 0)
    ),
    "concentrability": lambda p, q: max(x / y for x, y in zip(p, q, strict=True) if y > 0),
    "squared_score_norm": lambda p, q: 1 - mp.fsum(x * x for x in p),
    "optimal_baseline": lambda p, q: _baseline(p, p),
    "optimal_baseline off-policy": _baseline,
    "support_change": _change,
    "vendi_score": lambda p, q: [mp.exp(_renyi(_spectrum(p), n)) for n in VENDI_ORDERS],
    "quality_diversity": lambda p, q: [_quality_diversity(p, n) for n in COUNTS],
    "hypervolume": _hypervolume,
}
