"""What every metric obeys, over the registry.

Each metric is compiled once a dtype, for all pairs of laws below at a time.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest

from regdist import metrics
from tests.registry_metrics import (
    DEFINITIONS,
    DISTANCES,
    INFINITE,
    METRICS,
    SIZE,
    vendi_rounding,
)
from tests.strategies import laws

DTYPES = [jnp.float64, jnp.float32]
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
STEP = 1e-4
NEAR = (1, 3, 5, 7, 9, 12)
PERMUTATION = np.array([3, 5, 0, 1, 4, 2])

# The scope keeps the tests of one metric together, and so on one worker.
each_metric = pytest.mark.parametrize("name", METRICS, scope="module")
each_dtype = pytest.mark.parametrize("dtype", DTYPES)

_zeros = [
    [1, 0, 0, 0, 0, 0],
    [0, 0, 0, 0, 1, 0],
    [0.5, 0, 0, 0, 0.5, 0],
    [0.5, 0.125, 0, 0, 0.25, 0.125],
    [0, 0.25, 0.25, 0, 0.25, 0.25],
    [0.1, 0.2, 0.1, 0.3, 0.1, 0.2],
]


def log_softmax(z):
    return np.asarray(jax.nn.log_softmax(jnp.asarray(z), axis=-1))


def pairs(dtype):
    """The pairs of laws by kind, each an array [pairs, 2, K]."""
    random = np.random.default_rng(0)
    with np.errstate(divide="ignore"):
        zeros = np.log(np.array(list(itertools.product(_zeros, repeat=2))))
    # exp(log p) is 0 at these depths, and ratios overflow
    d = -120.0 if dtype == jnp.float32 else -900.0
    half = np.log(0.5)
    deep = [
        [d, half, half, d, 1.5 * d, -np.inf],
        list(np.log([0.4, 0.1, 0.1, 0.1, 0.1, 0.2])),
        [0.0, d, d, d, -np.inf, d],
    ]
    generic = np.stack([[*laws(SIZE, 1)], [*laws(SIZE, 2)]], axis=1)
    bases = random.normal(size=(len(NEAR), 2, SIZE))
    steps = 10.0 ** -np.array(NEAR)[:, None, None] * random.normal(size=bases.shape)
    near = np.stack([bases, bases + steps], axis=2).reshape(-1, 2, SIZE)
    shifts = STEP * np.concatenate([np.eye(2 * SIZE), -np.eye(2 * SIZE)])
    moved = (
        np.concatenate([np.zeros((1, 2 * SIZE)), shifts]) + random.normal(size=2 * SIZE)
    ).reshape(-1, 2, SIZE)
    return {
        "zeros": zeros,
        "deep": np.array(list(itertools.product(deep, repeat=2))),
        "generic": generic,
        "relabelled": generic[:, :, PERMUTATION],
        "near": log_softmax(near),
        "equal": np.stack([generic[:, 0], generic[:, 0]], axis=1),
        "moved": log_softmax(moved),
    }


@functools.cache
def evaluate(name, dtype):
    """Laws, values, reverse and (in float64) forward derivatives of a metric, by kind of pair."""
    kinds = pairs(dtype)
    table = jnp.asarray(np.concatenate(list(kinds.values())), dtype)
    ends = np.cumsum([len(x) for x in kinds.values()])
    actions = np.concatenate(
        [
            np.tile(PERMUTATION if kind == "relabelled" else np.arange(SIZE), (len(x), 1))
            for kind, x in kinds.items()
        ]
    )

    def all_of(pair, actions):
        def f(pair):
            return METRICS[name](pair[0], pair[1], actions)

        forward = [jax.jacfwd(f)(pair)] if dtype == jnp.float64 else []
        return f(pair), jax.jacrev(f)(pair), *forward

    results = jax.jit(jax.vmap(all_of), compiler_options=QUICK)(table, jnp.asarray(actions))
    parts = [np.split(np.asarray(x), ends[:-1]) for x in (table, *results)]
    return {kind: tuple(x[i] for x in parts) for i, kind in enumerate(kinds)}


def exact_law(log_law):
    weights = [mp.exp(mp.mpf(float(x))) if x > -np.inf else mp.mpf(0) for x in log_law]
    return [w / mp.fsum(weights) for w in weights]


@each_metric
@each_dtype
@pytest.mark.parametrize("kind", ["zeros", "generic", "near"])
def test_value_against_the_definition_at_50_digits(name, dtype, kind):
    """To the last few ulps, and where p is near q to those of the log-ratios."""
    log_laws, value, *_ = evaluate(name, dtype)[kind]
    for pair, got in zip(log_laws, value, strict=True):
        if not np.all(np.isfinite(got)):
            continue
        with mp.workdps(80):
            want = np.ravel(DEFINITIONS[name](*map(exact_law, pair)))
            want = np.array([x if abs(x) > 1e-35 else 0 for x in want])
            error = [abs(mp.mpf(float(x)) - y) for x, y in zip(np.ravel(got), want, strict=True)]
        gap = min(1.0, np.abs(pair[0] - pair[1]).max()) if kind == "near" else 1.0
        eps = float(jnp.finfo(dtype).eps)  # the laws themselves add up to 1 within a few
        solver = vendi_rounding(exact_law(pair[0]), eps) if name == "vendi_score" else 0
        assert np.all(np.array(error) * gap <= 30 * eps * np.abs(want) + solver)


@each_metric
@each_dtype
def test_zero_probability_in_value_and_both_modes(name, dtype):
    """Infinite only where the mathematics says so, and no pull on an action of probability 0."""
    log_laws, value, *slopes = evaluate(name, dtype)["zeros"]
    expected = [
        INFINITE[name](*(pair > -np.inf)) if name in INFINITE else np.zeros(value.shape[1:], bool)
        for pair in log_laws
    ]
    assert np.array_equal(value == np.inf, expected)
    assert np.all(np.isfinite(value) | (value == np.inf))
    gone = np.isneginf(log_laws).reshape(-1, *[1] * (value.ndim - 1), 2, SIZE)
    for slope in slopes:
        assert np.all(np.isfinite(slope))
        assert np.all(np.where(gone, slope, 0) == 0)
        assert np.allclose(slope, slopes[0], rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("name", list(METRICS), scope="module")
@each_dtype
def test_actions_too_rare_for_the_dtype(name, dtype):
    _, value, *slopes = evaluate(name, dtype)["deep"]
    assert not np.any(np.isnan(value))
    assert all(np.all(np.isfinite(slope)) for slope in slopes)


@each_metric
def test_derivatives_are_those_of_the_value(name):
    """Against central differences, through the softmax and so along the simplex."""
    log_laws, value, reverse, forward = (
        x.astype(float) for x in evaluate(name, jnp.float64)["moved"]
    )
    up, down = np.split(value[1:], 2)
    difference = np.moveaxis((up - down) / (2 * STEP), 0, -1)
    for slope in (reverse[0], forward[0]):
        along = slope - np.exp(log_laws[0]) * slope.sum(axis=-1, keepdims=True)
        assert np.allclose(along.reshape(difference.shape), difference, rtol=1e-6, atol=1e-7)


@each_metric
def test_names_of_actions_do_not_matter(name):
    known, renamed = (evaluate(name, jnp.float64)[kind] for kind in ("generic", "relabelled"))
    assert np.allclose(known[1], renamed[1], rtol=1e-12, atol=1e-15)
    assert np.allclose(known[2][..., PERMUTATION], renamed[2], rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("name", DISTANCES, scope="module")
@each_dtype
def test_a_distance_is_0_at_equality_and_positive_however_close(name, dtype):
    _, value, *slopes = evaluate(name, dtype)["equal"]
    assert np.all(value == 0)
    assert all(np.all(np.isfinite(slope)) for slope in slopes)
    log_laws, value, *_ = evaluate(name, dtype)["near"]
    apart = np.abs(log_laws[:, 0] - log_laws[:, 1]).max(axis=-1) > 100 * jnp.finfo(dtype).eps
    assert np.all(value >= 0)
    if name == "renyi_divergence":  # order 0 asks only about the supports
        assert np.all(value[:, 0] == 0)
        value = value[:, 1:]
    assert np.all(value[apart] > 0)


@each_metric
def test_vmap_is_a_loop_and_the_dtype_stays(name):
    log_laws, value, *_ = evaluate(name, jnp.float64)["generic"]
    f = functools.partial(METRICS[name], a=jnp.arange(SIZE))

    @functools.partial(jax.jit, compiler_options=QUICK)
    def loop(table):
        return jax.lax.map(lambda pair: f(pair[0], pair[1]), table)

    assert np.allclose(loop(jnp.asarray(log_laws)), value, rtol=1e-13, atol=1e-16)
    for dtype in DTYPES:
        law = jax.ShapeDtypeStruct((SIZE,), dtype)
        assert jax.eval_shape(f, law, law).dtype == dtype


@each_metric
def test_an_action_that_neither_law_takes_changes_nothing(name):
    log_laws, value, reverse, *_ = evaluate(name, jnp.float64)["zeros"]
    only_last = [i for i, pair in enumerate(log_laws) if np.all(np.isneginf(pair[:, 2]))]
    kept = np.array([0, 1, 3, 4, 5])

    def shorter(pair):
        return METRICS[name](pair[0], pair[1], jnp.asarray(kept))

    @functools.partial(jax.jit, compiler_options=QUICK)
    def both(table):
        return jax.vmap(shorter)(table), jax.vmap(jax.jacrev(shorter))(table)

    got, slopes = both(jnp.asarray(log_laws[only_last][..., kept]))
    size = got.shape[-1] if name == "label_log_probs" else None
    assert np.allclose(got, value[only_last][..., :size], rtol=1e-13, atol=1e-15)
    want = reverse[only_last][..., kept]
    assert np.allclose(slopes, want[:, :size] if size else want, rtol=1e-11, atol=1e-14)


ORDERS = [0.0, 1e-9, 0.3, 1 - 1e-9, 1.0, 2.0, 50.0, np.inf]
SWEEPS = {
    "renyi_entropy": (lambda p, q, x: metrics.renyi_entropy(p, x), ORDERS),
    "tsallis_entropy": (lambda p, q, x: metrics.tsallis_entropy(p, x), ORDERS),
    "hill_number": (lambda p, q, x: metrics.hill_number(p, x), ORDERS),
    "renyi_divergence": (metrics.renyi_divergence, ORDERS),
    "alpha_divergence": (metrics.alpha_divergence, [-2.0, 0.0, 0.3, 1.0, 1 + 1e-9, 3.0]),
    "pass_at_k": (
        lambda p, q, x: metrics.pass_at_k(jnp.exp(p[0]), x),
        [0.0, 0.5, 1.0, 9.0, np.inf],
    ),
    "zero_advantage_probability": (
        lambda p, q, x: metrics.zero_advantage_probability(jnp.exp(p[0]), x),
        [1.0, 2.0, 7.5],
    ),
    "support_change": (
        lambda p, q, x: metrics.support_change(p, q, x).lost_mass,
        [0.0, 0.01, 0.1, 0.5],
    ),
    "vendi_score": (lambda p, q, x: metrics.vendi_score(p, (1 + jnp.eye(p.size)) / 2, x), ORDERS),
    "quality_diversity": (
        lambda p, q, x: metrics.quality_diversity(p, jnp.exp(q), jnp.arange(p.size) // 2, x),
        [0.5, 1.0, 4.0, np.inf],
    ),
}


@pytest.mark.parametrize("name", SWEEPS)
def test_numbers_that_people_sweep_are_data(name):
    """One compiled function for all, the same as typed numbers, and finite derivatives in them."""
    f, numbers = SWEEPS[name]
    table = jnp.asarray(pairs(jnp.float64)["zeros"])

    @functools.partial(jax.jit, compiler_options=QUICK)
    def sweep(table, numbers):
        def of_pair(pair):
            return jax.vmap(lambda x: jax.value_and_grad(f, 2)(pair[0], pair[1], x))(numbers)

        return jax.vmap(of_pair)(table)

    value, slope = sweep(table, jnp.asarray(numbers))
    assert not np.any(np.isnan(value))
    assert np.all(np.isfinite(slope))
    whole = [x for x in numbers if x == np.floor(x)][:2]
    typed = [f(*table[-1], int(x)) for x in whole]
    assert np.allclose(typed, [value[-1][numbers.index(x)] for x in whole], rtol=1e-13, atol=0)
