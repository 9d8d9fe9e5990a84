import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
import scipy.optimize
from hypothesis import given
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree

import regdist as rd
from regdist.numerics.roots import where_unknown
from tests import judge
from tests.strategies import REGULARIZERS, bandits, betas, laws

every_regularizer = pytest.mark.parametrize("name", REGULARIZERS)
# One member of each solver: the others are the same program with other numbers.
SAME = ("Hellinger", "Neyman", "entropy", "reverse KL + entropy")
every_solver = pytest.mark.parametrize("name", [n for n in REGULARIZERS if n not in SAME])
ALPHAS = [1.0, 0.0, 0.5, 2.0, -1.0, 3.0, 10.0, 1 - 1e-9, 1e-9, 1 + 1e-9, 0.97]


def hard_problem(random, size, dtype=np.float64, deepest=700):
    """Beta from 1e-8 to 1e8, reward gaps up to 1e6, references down to e^-700, zeros among them."""
    beta = 10.0 ** random.uniform(-8, 8)
    reward = random.normal(size=size) * 10.0 ** random.uniform(-3, 5.5)
    reward = random.choice([reward, np.round(reward), random.integers(0, 2, size)])
    log_q = -random.random(size) * random.choice([1, 30, deepest])
    if random.random() < 0.3:
        log_q[random.integers(size)] = -np.inf
    if not np.any(np.isfinite(log_q)):
        log_q[0] = 0
    log_q = log_q - np.logaddexp.reduce(log_q)
    bandit = rd.bandit(reward.astype(dtype), log_reference=log_q.astype(dtype))
    return bandit, dtype(beta)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_hard_problems_against_50_digits(alpha):
    """TV error at most 1e-11 and error of log p at most 1e-12 relative to max(1, |log p|).

    The second bound leaves out actions whose own probability the problem does not condition: under
    alpha < 1 the best action beyond the edge (its p is what the others leave), under alpha > 1
    actions at the edge of the support (p there has infinite slope in the multiplier).
    """
    random = np.random.default_rng([7, int(1000 * (alpha + 5))])
    for trial in range(60):
        bandit, beta = hard_problem(random, (2, 5)[trial % 2])
        target = rd.target(bandit, rd.AlphaDivergence(alpha, beta))
        exact = judge.alpha_target(bandit.reward, bandit.log_ref, alpha, beta)
        assert judge.total_variation(target.log_probs, exact) <= 1e-11
        log_p, well = list(target.log_probs), well_conditioned(bandit, exact, alpha)
        kept = [(a, b) for a, b, ok in zip(log_p, exact, well, strict=True) if ok]
        assert judge.log_error(*zip(*kept, strict=True)) <= 1e-12 if kept else True
        assert target.converged
        assert target.residual <= 1e-11


def test_forward_kl_by_name_on_hard_problems_against_50_digits():
    """As `test_hard_problems_against_50_digits`, for the record that knows alpha at trace time."""
    random = np.random.default_rng(8)
    for trial in range(60):
        bandit, beta = hard_problem(random, (2, 5)[trial % 2])
        target = rd.target(bandit, rd.ForwardKL(beta))
        exact = judge.alpha_target(bandit.reward, bandit.log_ref, 0.0, beta)
        assert judge.total_variation(target.log_probs, exact) <= 1e-11
        log_p, well = list(target.log_probs), well_conditioned(bandit, exact, 0.0)
        kept = [(a, b) for a, b, ok in zip(log_p, exact, well, strict=True) if ok]
        assert judge.log_error(*zip(*kept, strict=True)) <= 1e-12 if kept else True
        assert target.converged


@pytest.mark.parametrize("alpha", [1.0, 0.0, 0.5, 1.5, 2.0, 3.0])
def test_close_actions_far_below_a_rare_best_one(alpha):
    """Their own gap decides, and it is lost if it is taken as a difference of two huge gaps."""
    random = np.random.default_rng(3)
    log_q = np.array([-600.0, -1.0, -0.8, -2.0])
    log_q -= np.logaddexp.reduce(log_q)
    for _ in range(20):
        beta = 10.0 ** random.uniform(-8, -4)
        reward = [1e5 * random.random(), 0.0, beta * random.normal(), 3 * beta * random.normal()]
        bandit = rd.bandit(reward, log_reference=log_q)
        target = rd.target(bandit, rd.AlphaDivergence(alpha, beta))
        exact = judge.alpha_target(bandit.reward, bandit.log_ref, alpha, beta)
        assert judge.total_variation(target.log_probs, exact) <= 1e-12
        assert target.converged


def well_conditioned(bandit, exact, alpha):
    """Where a relative change of 1e-16 in the multiplier's distance to the edge moves log p little.

    d log p / d log(distance) is 1/(1 - alpha) times the share of the multiplier in the distance.
    """
    if alpha == 1:
        return [True] * len(exact)
    out = []
    for log_q, log_p in zip(bandit.log_ref, exact, strict=True):
        if mp.isinf(log_p) or not np.isfinite(log_q):
            out.append(False)
            continue
        ratio = float(log_p) - float(log_q)
        out.append((alpha < 1 and ratio < 20) or (alpha > 1 and ratio > -20))
    return out


@pytest.mark.parametrize("alpha", [1.0, 0.0, 0.5, 2.0])
def test_float32_on_the_same_range(alpha):
    """What float32 gives: TV and relative log p within 1e-4; on plain problems TV 1e-6."""
    random = np.random.default_rng(11)
    for _ in range(60):
        bandit, beta = hard_problem(random, 5, np.float32)
        target = rd.target(bandit, rd.AlphaDivergence(alpha, beta))
        assert target.log_probs.dtype == jnp.float32
        assert target.value.dtype == jnp.float32
        # the judge sees the float32 inputs, beta included, as the exact problem
        exact = judge.alpha_target(bandit.reward, bandit.log_ref, alpha, np.float32(beta))
        plain = float(jnp.ptp(bandit.reward)) / beta < 30 and float(bandit.log_ref.min()) > -10
        assert judge.total_variation(target.log_probs, exact) <= (1e-6 if plain else 1e-4)
        assert judge.log_error(target.log_probs, exact) <= 1e-4


@every_solver
@given(bandit=bandits(sizes=(5,), zeros=True), beta=betas(-1, 1))
def test_float32_of_every_regulariser(name, bandit, beta):
    """On plain problems TV 2e-6 from float64, which the other tests judge; the dtype is kept."""
    make = REGULARIZERS[name].make
    small = jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == jnp.float64 else x, bandit)
    target, judged = rd.target(small, make(beta)), rd.target(bandit, make(beta))
    assert target.log_probs.dtype == target.value.dtype == target.residual.dtype == jnp.float32
    assert target.converged
    if judged.unique and target.unique:
        assert 0.5 * np.sum(np.abs(np.asarray(target.probs) - np.asarray(judged.probs))) <= 2e-6
    assert np.isclose(target.value, judged.value, rtol=1e-5, atol=1e-5)


@jax.jit
@jax.value_and_grad
def loss(z, bandit, regularizer):
    return -rd.objective(rd.log_softmax(z), bandit, regularizer)


@every_regularizer
@given(bandit=bandits(sizes=(5,)), beta=betas())
def test_against_a_generic_optimiser(name, bandit, beta):
    """scipy on logits, from uniform and from the reference: nothing is better."""
    make = REGULARIZERS[name].make
    regularizer = make(beta)
    target = rd.target(bandit, regularizer)
    starts = np.zeros(bandit.num_actions), np.asarray(bandit.log_ref)
    runs = [
        scipy.optimize.minimize(
            lambda z: tuple(np.asarray(x) for x in loss(jnp.asarray(z), bandit, regularizer)),
            start,
            jac=True,
            method="L-BFGS-B",
            options={"ftol": 1e-15, "gtol": 1e-10, "maxiter": 500},
        )
        for start in starts
    ]
    found = min(runs, key=lambda run: run.fun)
    scale = 1 + abs(float(target.value))
    assert -found.fun <= float(target.value) + 1e-12 * scale
    # at a corner of total variation such an optimiser stalls; it has other judges
    if "TV" not in name and name != "total variation":
        assert -found.fun >= float(target.value) - 1e-5 * scale
    assert (
        abs(float(rd.objective(target.log_probs, bandit, regularizer) - target.value))
        <= 1e-12 * scale
    )


@every_solver
@given(bandit=bandits(zeros=True), beta=betas(-8, 8))
def test_a_distribution_that_beats_every_perturbation(name, bandit, beta):
    make = REGULARIZERS[name].make
    target = rd.target(bandit, make(beta))
    assert abs(float(jnp.sum(target.probs)) - 1) <= 1e-13
    assert target.converged
    scale = 1 + abs(float(target.value)) + beta
    for law in laws(bandit.num_actions, 5):
        for weight in (1e-3, 0.3, 1.0):
            log_mix = jnp.logaddexp(
                target.log_probs + jnp.log1p(-weight * 0.999999), law + jnp.log(weight)
            )
            log_mix = log_mix - jax.nn.logsumexp(log_mix)
            assert rd.objective(log_mix, bandit, make(beta)) <= target.value + 1e-13 * scale


@every_regularizer
@given(bandit=bandits(sizes=(5,)), beta=betas(-3, 3), shift=st.integers(-64, 64))
def test_order_relabelling_and_shift(name, bandit, beta, shift):
    make = REGULARIZERS[name].make
    target = rd.target(bandit, make(beta))
    order = np.array([3, 0, 4, 2, 1])
    moved = rd.Bandit(bandit.reward[order], bandit.log_ref[order], bandit.label)
    relabelled = rd.target(moved, make(beta))
    assert np.allclose(relabelled.probs, target.probs[order], rtol=0, atol=1e-13)
    lifted = rd.target(rd.Bandit(bandit.reward + shift, bandit.log_ref, bandit.label), make(beta))
    assert np.allclose(lifted.probs, target.probs, rtol=0, atol=1e-13)
    assert np.isclose(lifted.value, target.value + shift, rtol=0, atol=1e-11 * (1 + beta))
    assert np.isclose(lifted.multiplier, target.multiplier + shift, rtol=0, atol=1e-11 * (1 + beta))
    flat = rd.Bandit(bandit.reward, jnp.full(5, -np.log(5.0)), bandit.label)
    law = rd.target(flat, make(beta)).log_probs
    best_first = np.asarray(law)[np.argsort(-np.asarray(flat.reward), kind="stable")]
    above = best_first[1:] <= best_first[:-1]
    assert np.all(above | np.isclose(best_first[1:], best_first[:-1], rtol=0, atol=1e-13))


@every_regularizer
@given(bandit=bandits(zeros=True))
def test_limits(name, bandit):
    """beta to 0: the anchor restricted to the best actions; beta to infinity: the anchor."""
    member = REGULARIZERS[name]
    terms = member.make(1.0).reduce(bandit.log_ref)
    anchor = terms[0].log_anchor
    weak = rd.target(bandit, member.make(1e10))
    assert rd.metrics.total_variation(weak.log_probs, anchor) <= 1e-8
    strong = rd.target(bandit, member.make(1e-10))
    usable = jnp.ones_like(anchor, bool) if member.leaves else jnp.isfinite(anchor)
    best = usable & (bandit.reward == jnp.max(jnp.where(usable, bandit.reward, -jnp.inf)))
    # an action with a gap of at least 1/64 keeps at most q ((1 - alpha) gap/beta)^{-1/(1 - alpha)},
    # and for the others, whose f' is bounded by that of alpha = 0 times a constant, no more
    alpha = 1 if member.alpha is None else member.alpha
    left = ((1 - alpha) / 64e-10) ** (-1 / (1 - alpha)) if alpha < 1 else 1e-8
    assert jnp.sum(jnp.where(best, strong.probs, 0)) >= 1 - left - 1e-12
    inside = best & jnp.isfinite(anchor)
    if jnp.any(inside) and not member.leaves:
        limit = rd.metrics.restrict(anchor, inside)
        assert rd.metrics.total_variation(strong.log_probs, limit) <= 1e-6


@every_solver
def test_jit_vmap_and_loop_agree(name):
    make = REGULARIZERS[name].make
    bandit = rd.bandit([1.0, 0.25, -2.0, 1.0, 0.5], [0.1, 0.3, 0.3, 0.2, 0.1])
    grid = jnp.geomspace(1e-3, 1e3, 7)
    batch = jax.jit(jax.vmap(lambda b: rd.target(bandit, make(b))))(grid)
    loop = [rd.target(bandit, make(float(b))) for b in grid]
    if name in ("reverse KL", "Pearson"):
        with jax.disable_jit():
            plain = rd.target(bandit, make(0.25))
        assert np.allclose(plain.probs, rd.target(bandit, make(0.25)).probs, rtol=0, atol=1e-15)
    for i, one in enumerate(loop):
        for field in ("log_probs", "value", "multiplier"):
            got = getattr(batch, field)[i]
            scale = 1e-14 * (1 + float(grid[i]))  # beta times a divergence of order 1
            assert np.allclose(got, getattr(one, field), rtol=1e-14, atol=scale)


@jax.jit
def jacobians(reward, log_q, alpha, beta):
    def law(reward, log_q, alpha, beta):
        labels = jnp.arange(reward.shape[0])
        bandit = rd.Bandit(reward, rd.logspace.normalize(log_q), labels)
        return rd.target(bandit, rd.AlphaDivergence(alpha, beta)).log_probs

    inputs = reward, log_q, alpha, beta
    return [mode(law, (0, 1, 2, 3))(*inputs) for mode in (jax.jacfwd, jax.jacrev)]


@pytest.mark.parametrize("alpha", [1.0, 0.0, 0.5, 2.0, -1.0, 1 - 1e-8, 1e-8])
@pytest.mark.parametrize("beta", [0.05, 0.7, 30.0])
def test_derivatives_against_differences_at_50_digits(alpha, beta):
    """Jacobians of log p in both modes, with respect to reward, reference, beta and alpha."""
    reward, log_q = [1.0, 0.3, 0.0, 0.9], np.log([0.1, 0.4, 0.3, 0.2])
    inputs = jnp.array(reward), jnp.asarray(log_q), jnp.array(alpha), jnp.array(beta)
    forward, backward = jacobians(*inputs)
    step = mp.mpf(10) ** -20
    for which, index in [(0, 0), (0, 1), (1, 0), (1, 3), (2, None), (3, None)]:
        moved = []
        for sign in (1, -1):
            point = [
                [mp.mpf(x) for x in reward],
                [mp.mpf(x) for x in log_q],
                mp.mpf(alpha),
                mp.mpf(beta),
            ]
            with mp.workdps(60):
                if index is None:
                    point[which] += sign * step
                else:
                    point[which][index] += sign * step
                moved.append(judge.alpha_target(*point))
        with mp.workdps(60):
            exact = [(a - b) / (2 * step) for a, b in zip(*moved, strict=True) if not mp.isinf(a)]
        present = [i for i, a in enumerate(moved[0]) if not mp.isinf(a)]
        for jacobian in (forward, backward):
            column = jacobian[which] if index is None else jacobian[which][:, index]
            got = np.asarray(column)[present]
            want = np.array([float(x) for x in exact])
            assert np.allclose(got, want, rtol=1e-10, atol=1e-11 * np.abs(want).max())


@jax.jit
def answer_and_derivatives(bandit, regularizer):
    """p [5], value, multiplier, log p [5]; their Jacobians in both modes, in the flat inputs.

    One program for a solver, which both tests of its derivatives use, and one solution in it.
    """
    inputs, whole = ravel_pytree((bandit.reward, bandit.log_ref, regularizer))

    def solve(inputs):
        reward, log_ref, regularizer = whole(inputs)
        t = rd.target(rd.Bandit(reward, log_ref, bandit.label), regularizer)
        numbers = jnp.stack([t.value, t.multiplier])
        return jnp.concatenate([t.probs, numbers, jnp.where(t.probs > 0, t.log_probs, 0)])

    answer, push = jax.linearize(solve, inputs)
    pull = jax.linear_transpose(push, inputs)
    forward = jax.vmap(push, out_axes=1)(jnp.eye(len(inputs)))
    backward = jax.vmap(lambda y: pull(y)[0])(jnp.eye(len(answer)))
    return answer, (forward, backward)


@every_solver
@given(bandit=bandits(sizes=(5,)), beta=betas(-1, 1), key=st.integers(0, 10**6))
def test_derivatives_are_the_limits_of_differences(name, bandit, beta, key):
    """Reward, reference, beta and alpha moved together in a random direction, in both modes."""
    regularizer = REGULARIZERS[name].make(beta)
    random = np.random.default_rng(key)
    inputs = (bandit.reward, bandit.log_ref, regularizer)
    moves = jax.tree.map(lambda x: jnp.asarray(random.normal(size=x.shape)) * beta, inputs)

    def along(h):
        """The law and its value after a move of size h of every input."""
        reward, log_ref, moved = jax.tree.map(lambda x, d: x + h * d, inputs, moves)
        t = rd.target(rd.Bandit(reward, rd.logspace.normalize(log_ref), bandit.label), moved)
        return jnp.append(t.probs, t.value)

    h = 1e-4
    one, two = ((along(k * h) - along(-k * h)) / (2 * k * h) for k in (1, 2))
    want = (4 * one - two) / 3  # Richardson: an error of h^4
    kinked = REGULARIZERS[name].kinked and not np.allclose(one, two, rtol=0, atol=1e-4)
    # what `normalize` lets through of a move of the reference
    p = jnp.exp(bandit.log_ref)
    moves = ravel_pytree((moves[0], moves[1] - p @ moves[1], moves[2]))[0]
    for jacobian in answer_and_derivatives(bandit, regularizer)[1]:
        got = jacobian[:6] @ moves
        assert kinked or np.allclose(got, want, rtol=0, atol=1e-7 * (1 + float(jnp.abs(got).max())))


@jax.jit
def law_and_derivatives(alpha):
    bandit = rd.bandit([1.0, 0.3, 0.0, -2.0], [0.1, 0.4, 0.3, 0.2])

    def law(a):
        t = rd.target(bandit, rd.AlphaDivergence(a, 3.0))
        return jnp.append(t.log_probs, t.value)

    def both(a):
        return jax.jvp(law, (a,), (jnp.ones_like(a),))

    (here, first), (_, second) = jax.jvp(both, (alpha,), (jnp.ones_like(alpha),))
    return here, first, second


@pytest.mark.parametrize("alpha", [1.0, 0.0])
def test_no_seam_in_alpha(alpha):
    """Values and first two derivatives in alpha join across the members alpha = 1 and 0."""
    bandit = rd.bandit([1.0, 0.3, 0.0, -2.0], [0.1, 0.4, 0.3, 0.2])
    h = 1e-4
    left, here, right = (law_and_derivatives(jnp.array(alpha + d)) for d in (-h, 0.0, h))
    assert np.allclose((right[0] - left[0]) / (2 * h), here[1], rtol=0, atol=1e-6)
    assert np.allclose((right[1] - left[1]) / (2 * h), here[2], rtol=0, atol=1e-6)
    assert np.allclose(left[2], right[2], rtol=0, atol=1e-3)
    here = here[0]
    member = rd.ReverseKL(3.0) if alpha == 1 else rd.ForwardKL(3.0)
    assert np.allclose(rd.target(bandit, member).log_probs, here[:-1], rtol=0, atol=1e-15)


@every_solver
def test_no_nan_in_value_or_gradient(name):
    make = REGULARIZERS[name].make
    depth = np.log1p(-np.exp(-0.5) - np.exp(-700.0))
    log_q = jnp.array([-np.inf, -0.5, -np.inf, -700.0, depth])
    rewards = [[5.0, 1.0, 0.0, 2.0, 2.0], [0.0, 1.0, -np.inf, 2.0, 3.0], [1.0] * 5]
    forbidden = [0.0, -np.inf, 1.0, 2.0, 3.0]  # a forbidden action that the reference takes

    def solve(reward, beta):
        bandit = rd.Bandit(jnp.array(reward), log_q, jnp.arange(5))
        return answer_and_derivatives(bandit, make(beta))

    for beta in (1e-8, 1e-2, 1.0, 1e8):
        for reward in rewards:
            answer, jacobians = solve(reward, beta)
            assert not np.any(np.isnan(answer))
            assert np.all(np.isfinite(jacobians))
        _, (_, backward) = solve(forbidden, beta)
        assert not np.any(np.isnan(backward[:7]))


@given(bandit=bandits(sizes=(5,)), beta=betas(-2, 2), key=st.integers(0, 10**6))
def test_the_gap_to_the_optimum_is_a_kl(bandit, beta, key):
    """J(p) = value - beta KL(p || target), in value and gradient, at random p (2205.11275)."""
    target = rd.target(bandit, rd.ReverseKL(beta))
    z = jnp.asarray(np.random.default_rng(key).normal(size=5) * 2)

    def gap(z):
        return target.value - rd.objective(rd.log_softmax(z), bandit, rd.ReverseKL(beta))

    def kl(z):
        return beta * rd.metrics.kl(rd.log_softmax(z), target.log_probs)

    scale = 10 * (1 + beta)
    assert abs(float(gap(z) - kl(z))) <= 1e-13 * scale * (1 + float(kl(z)))
    assert np.allclose(
        jax.grad(gap)(z), jax.grad(kl)(z), rtol=0, atol=1e-13 * scale * (1 + float(kl(z)))
    )


def test_one_trace_for_a_sweep():
    traces = []

    @jax.jit
    def law(beta):
        traces.append(beta)
        return rd.target(rd.bandit([1.0, 0.0], [0.3, 0.7]), rd.ForwardKL(beta)).log_probs

    for beta in np.geomspace(1e-3, 1e3, 200):
        law(jnp.asarray(beta))
    assert len(traces) == 1
    assert jax.vmap(law)(jnp.geomspace(1e-3, 1e3, 200)).shape == (200, 2)
    seen = []

    @jax.jit
    def solved(bandit, regularizer):
        seen.append(regularizer)
        return rd.target(bandit, regularizer).value

    bandit = rd.bandit(np.arange(7.0), None)
    for beta in [1, 1.0, jnp.float32(1), np.float64(0.5), *np.geomspace(1e-3, 1e3, 200)]:
        solved(bandit, rd.AlphaDivergence(0.5, beta))
    for alpha in [0, 0.0, 1, jnp.float32(2), *np.linspace(-1, 2, 50)]:
        solved(bandit, rd.AlphaDivergence(alpha, 1))
    assert len(seen) == 1


def test_forward_kl_by_hand():
    """Binary reward, K = 2: Lambda solves b q1/(Lambda - 1) + b q2/Lambda = 1, a quadratic."""
    q1, q2, b = 0.2, 0.8, 0.3
    lam = (1 + b + np.sqrt((1 + b) ** 2 - 4 * b * q2)) / 2
    t = rd.target(rd.bandit([1, 0], [q1, q2]), rd.ForwardKL(b))
    assert np.allclose(t.probs, [b * q1 / (lam - 1), b * q2 / lam], rtol=1e-14)
    assert np.isclose(t.multiplier + b, lam, rtol=1e-14)
    reverse = rd.target(rd.bandit([1, 0], [q1, q2]), rd.ReverseKL(b))
    z = q1 * np.exp(1 / b) + q2
    assert np.isclose(reverse.value, b * np.log(z), rtol=1e-14)
    assert np.isclose(reverse.multiplier, b * np.log(z), rtol=1e-14)


def test_mass_off_the_support():
    """Forward KL puts 1 - sum b q/(R_out - R) on a better action that the reference never takes."""
    bandit = rd.bandit([1.0, 0.0, 3.0], [0.5, 0.5, 0.0])
    t = rd.target(bandit, rd.ForwardKL(0.5))
    inside = [0.5 * 0.5 / 2, 0.5 * 0.5 / 3]
    assert np.allclose(t.probs, [*inside, 1 - sum(inside)], rtol=1e-14)
    assert np.isclose(t.multiplier + 0.5, 3.0)
    assert t.converged
    # below the entry reward, and for reverse KL at any reward, nothing leaves the support
    assert rd.target(rd.bandit([1.0, 0.0, 1.1], [0.5, 0.5, 0.0]), rd.ForwardKL(5.0)).probs[2] == 0
    assert rd.target(bandit, rd.ReverseKL(0.5)).probs[2] == 0
    tied = rd.target(rd.bandit([0.0, 3.0, 3.0], [1.0, 0.0, 0.0]), rd.ForwardKL(0.5)).probs
    assert np.allclose(tied, [0.5 / 3, (1 - 0.5 / 3) / 2, (1 - 0.5 / 3) / 2])


def test_entropy_ignores_the_reference_and_sums_merge():
    bandit = rd.bandit([1.0, 0.5, 0.0], [0.7, 0.2, 0.1])
    softmax = jax.nn.softmax(bandit.reward / 0.3)
    assert np.allclose(rd.target(bandit, rd.Entropy(0.3)).probs, softmax, rtol=1e-14)
    # q^{b/(a+b)} e^{R/(a+b)} (2510.20817, appendix)
    a, b = 0.2, 0.3
    both = rd.target(bandit, rd.ReverseKL(b) + rd.Entropy(a))
    want = jax.nn.softmax((b * bandit.log_ref + bandit.reward) / (a + b))
    assert np.allclose(both.probs, want, rtol=1e-14)
    p = both.probs
    by_hand = p @ bandit.reward - b * (p @ (jnp.log(p) - bandit.log_ref)) - a * (p @ jnp.log(p))
    assert np.isclose(both.value, by_hand, rtol=1e-14)
    teacher = jnp.log(jnp.array([0.1, 0.3, 0.6]))
    anchored = rd.target(bandit, rd.ReverseKL(b) + rd.ReverseKL(a, anchor=teacher))
    want = jax.nn.softmax((b * bandit.log_ref + a * teacher + bandit.reward) / (a + b))
    assert np.allclose(anchored.probs, want, rtol=1e-14)


def test_wrong_calls_say_what_to_do():
    bandit = rd.bandit([1.0, 0.0])
    with pytest.raises(ValueError, match="vmap"):
        rd.target(bandit, rd.ReverseKL(jnp.ones(3)))
    with pytest.raises(ValueError, match="anchor must have the shape"):
        rd.target(bandit, rd.ReverseKL(1.0, anchor=jnp.log(jnp.ones(3) / 3)))
    for bad in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="beta must be a finite number above 0"):
            rd.ReverseKL(bad)
    with pytest.raises(ValueError, match="alpha must be a finite number"):
        rd.AlphaDivergence(np.nan, 1.0)
    with pytest.raises(ValueError, match="normalized log-probabilities"):
        rd.ReverseKL(1.0, anchor=jnp.array([0.5, 0.5]))
    both = rd.ForwardKL(1.0) + rd.Entropy(0.5)
    assert np.isclose(rd.objective(bandit.log_ref, bandit, both), 0.5 + 0.5 * np.log(2))


def test_the_quick_search_agrees_with_the_safe_one(monkeypatch):
    """On hard problems, total variation 1e-12; most of them never need the safe one."""
    from regdist.targets import solve as driver
    from regdist.targets.solvers import single

    random = np.random.default_rng(3)
    made = [hard_problem(random, 6) for _ in range(300)]
    bandits = jax.tree.map(lambda *x: jnp.stack(x), *(b for b, _ in made))
    betas = jnp.asarray([beta for _, beta in made])
    left = []

    def solve(unknown_of):
        def choose(unknown, search, found):
            jax.debug.callback(lambda x: left.append(bool(x)), unknown)
            return where_unknown(unknown_of(unknown), search, found)

        monkeypatch.setattr(single, "where_unknown", choose)
        fresh = jax.jit(
            jax.vmap(lambda b, beta: driver._target.__wrapped__(b, rd.AlphaDivergence(0.5, beta)))
        )
        return jax.block_until_ready(fresh(bandits, betas))

    quick, safe = solve(lambda x: x), solve(jnp.ones_like)
    jax.effects_barrier()
    assert len(left) == 2 * len(betas)
    assert 0 < np.mean(left) < 0.3
    assert np.all(quick.converged)
    assert np.all(safe.converged)
    apart = 0.5 * np.sum(np.abs(np.asarray(quick.probs) - np.asarray(safe.probs)), axis=1)
    assert apart.max() <= 1e-12


def test_the_tilt_is_differentiable_beside_forbidden_and_excluded_actions():
    bandit = rd.bandit([1.0, 0.0, -np.inf, 0.5], [0.2, 0.5, 0.3, 0.0])
    by_beta = jax.jacfwd(lambda b: rd.target(bandit, rd.ReverseKL(b)).log_probs)(jnp.asarray(0.5))
    back = jax.jacrev(lambda b: rd.target(bandit, rd.ReverseKL(b)).log_probs)(jnp.asarray(0.5))
    p = rd.target(bandit, rd.ReverseKL(0.5)).probs
    # d log p_i / d beta = (E_p R - R_i)/beta^2 on the support
    want = (p[0] - np.array([1.0, 0.0])) / 0.25
    assert np.allclose(by_beta[:2], want, rtol=1e-14)
    assert np.array_equal(by_beta[2:], [0, 0])
    assert np.allclose(back, by_beta, rtol=0, atol=1e-14)
