import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.integrate
import scipy.optimize

import regdist as rd
from regdist.numerics.spectrum import spectrum
from tests.strategies import REGULARIZERS

BANDIT = rd.bandit([1.0, 0.8, 0.0, 0.3, 0.5], [0.02, 0.1, 0.6, 0.18, 0.1])
SGD = optax.sgd(0.5)


# Total variation has a field that jumps at its corners: no Jacobian, hence no rate.
SMOOTH = [name for name in REGULARIZERS if name not in ("total variation", "reverse KL + TV")]


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("make", [rd.methods.policy_gradient, rd.methods.natural_policy_gradient])
def test_predicted_and_measured_rates_agree(name, make):
    """The spectrum predicts, without the run, how fast the run approaches in the end."""
    regularizer = REGULARIZERS[name].make(0.8)
    aim = rd.target(BANDIT, regularizer)
    path = rd.run(make(regularizer), BANDIT, 4000, SGD, record_every=5, tolerance=1e-12)
    c = rd.certify(make(regularizer), BANDIT, aim, path, optimizer=SGD)
    assert c.verdict == "converges"
    assert c.passes
    assert c.stationarity.field_norm < 1e-14
    assert np.all(c.stability.eigenvalues < 0)
    assert np.isclose(c.pace.measured, c.pace.predicted, rtol=0.03)
    assert c.pace.asymptotic <= c.pace.measured * 1.05
    assert c.distance.total_variation < 1e-6
    assert c.remaining_steps == 0
    if name in ("reverse KL", "entropy", "reverse KL + entropy"):
        assert c.distance.identity_error < 1e-14
    else:
        assert c.distance.identity_error is None


def test_spectrum_by_hand():
    """Natural gradient with reverse KL: every mode at -beta. Softmax: -beta (diag p - p p^T)."""
    aim = rd.target(BANDIT, rd.ReverseKL(0.4))
    natural = rd.certify(rd.methods.natural_policy_gradient(rd.ReverseKL(0.4)), BANDIT, aim)
    assert np.allclose(natural.stability.eigenvalues, [-0.4] * 4, rtol=1e-12)
    plain = rd.certify(rd.methods.policy_gradient(rd.ReverseKL(0.4)), BANDIT, aim)
    p = np.asarray(aim.probs)
    want = np.sort(-0.4 * np.linalg.eigvalsh(np.diag(p) - np.outer(p, p))[1:])[::-1]
    assert np.allclose(plain.stability.eigenvalues, want, rtol=1e-10)
    assert np.isclose(plain.stability.fastest, want[-1], rtol=1e-10)


@pytest.mark.parametrize(
    ("make", "regularizer"),
    [
        (rd.methods.policy_gradient, rd.ReverseKL(0.3)),
        (rd.methods.natural_policy_gradient, rd.ForwardKL(0.3)),
    ],
)
def test_large_tables_agree_with_the_dense_spectrum(make, regularizer):
    """140 actions, probabilities over twelve decades, matrix-free against the dense Jacobian."""
    random = np.random.default_rng(0)
    log_q = random.normal(size=140) * 4
    log_q -= np.logaddexp.reduce(log_q)
    bandit = rd.bandit(random.normal(size=140), log_reference=log_q)
    method, aim = make(regularizer), rd.target(bandit, regularizer)
    c = rd.certify(method, bandit, aim, steps=10)
    dense = np.asarray(jax.jacfwd(lambda z: rd.field(method, z, bandit))(aim.log_probs))
    m = int(np.argmax(aim.log_probs))
    rest = np.arange(140) != m
    reduced = dense[rest][:, rest] - dense[m][rest]
    scale = np.abs(reduced).max(0)
    slow = 1 / np.linalg.eigvals(np.linalg.inv(reduced / scale) / scale[:, None])
    slow = slow[np.argsort(np.abs(slow))]
    fast = np.linalg.eigvals(reduced)
    assert np.isclose(c.stability.eigenvalues[0], slow[0].real, rtol=1e-4)
    assert np.isclose(c.stability.fastest, fast[np.argmax(np.abs(fast))].real, rtol=1e-4)


def test_tiny_eigenvalues_keep_their_digits():
    """A mode of size 1e-150 beside one of size 1: dense and matrix-free."""
    for size in (6, 300):
        p = np.exp(np.linspace(0, -340, size))
        p /= p.sum()

        def product(v, p=p):
            return -(p * v - p * (p @ v))

        slow, fast = spectrum(product, size, 0)
        assert np.isclose(slow[0], -p[-1], rtol=1e-6)
        assert np.isclose(fast, -np.linalg.eigvalsh(np.diag(p) - np.outer(p, p)).max(), rtol=1e-6)


def test_a_plateau_is_called_a_plateau():
    """A rare good action: the plain gradient waits, the natural one does not; the target stands."""
    bandit = rd.bandit([1.0, 0.0], [1e-6, 1 - 1e-6])
    regularizer = rd.ReverseKL(0.02)
    aim = rd.target(bandit, regularizer)
    assert aim.probs[0] > 0.99
    c = rd.certify(rd.methods.policy_gradient(regularizer), bandit, aim, steps=1000)
    assert c.verdict == "plateau"
    assert c.passes
    assert c.stationarity.field_norm < 1e-14
    assert c.distance.total_variation > 0.9
    assert c.remaining_steps > 1e4
    assert "still approaching" in c.sentence
    assert "more steps to go" in c.sentence
    quick = rd.certify(
        rd.methods.natural_policy_gradient(regularizer),
        bandit,
        aim,
        steps=4000,
        optimizer=optax.sgd(1.0),
    )
    assert quick.verdict == "converges"


def test_the_time_a_plateau_predicts_is_right_near_the_target():
    regularizer = rd.ReverseKL(0.3)
    aim = rd.target(BANDIT, regularizer)
    method = rd.methods.policy_gradient(regularizer)
    path = rd.run(method, BANDIT, 300, SGD, record_every=20)
    c = rd.certify(method, BANDIT, aim, path, optimizer=SGD)
    assert c.verdict == "plateau"
    more = round(c.remaining_steps)
    end = rd.run(method, BANDIT, 300 + more, SGD, record_every=300 + more)
    left = rd.metrics.total_variation(end.log_probs[-1], aim.log_probs)
    assert 0.7e-6 < left < 1.4e-6


def test_elsewhere_vertex_cycles_and_diverges():
    regularizer = rd.ReverseKL(0.3)
    wrong = rd.target(BANDIT, rd.ForwardKL(0.3))
    aim = rd.target(BANDIT, regularizer)
    natural = rd.methods.natural_policy_gradient(regularizer)
    c = rd.certify(natural, BANDIT, wrong)
    assert c.verdict == "elsewhere"
    assert not c.passes
    greedy = rd.certify(rd.methods.natural_policy_gradient(), BANDIT, aim, optimizer=optax.sgd(1.0))
    assert greedy.verdict == "vertex"
    assert greedy.distance.objective_gap is None
    wild = rd.certify(natural, BANDIT, aim, optimizer=optax.sgd(2.1 / 0.3))
    assert wild.verdict == "cycles"
    edge = rd.certify(natural, BANDIT, aim, optimizer=optax.sgd(2.0 / 0.3))  # a cycle of two
    assert edge.verdict == "cycles"
    broken = optax.scale_by_schedule(lambda count: jnp.where(count < 6, -0.1, jnp.inf))
    assert rd.certify(natural, BANDIT, aim, optimizer=broken).verdict == "diverges"
    lost = rd.run(natural, BANDIT, 100, init=[0.0, 0.0, -np.inf, 0.0, 0.0])
    c = rd.certify(natural, BANDIT, aim, lost)
    assert c.verdict == "elsewhere"
    assert c.distance.kl_from_target == np.inf


def test_an_optimiser_with_memory_gets_no_predicted_rate():
    regularizer = rd.ReverseKL(0.5)
    adam = optax.adam(0.05)
    method, aim = rd.methods.policy_gradient(regularizer), rd.target(BANDIT, regularizer)
    with jax.numpy_dtype_promotion("standard"):  # optax's adam promotes its step count
        c = rd.certify(method, BANDIT, aim, optimizer=adam)
    assert c.pace.predicted is None
    assert c.pace.asymptotic is None
    assert c.pace.measured is not None


def test_momentum_may_go_where_no_flow_goes():
    """GRPO with a k2 penalty on a coin has two ends. Big steps of adam pass the nearer one by."""
    method, aim = rd.methods.grpo(1.0, "k2", eps=0.0), scaled_target()
    adam = optax.adam(2.0)
    with jax.numpy_dtype_promotion("standard"):
        path = rd.run(method, COIN, 2, adam, init=np.log([0.3, 0.7]), record_every=1)
        c = rd.certify(method, COIN, aim, path, optimizer=adam)
        end = rd.run(method, COIN, 3000, adam, init=np.log([0.3, 0.7]), record_every=3000)
    assert rd.metrics.total_variation(end.log_probs[-1], aim.log_probs) > 0.1
    assert c.verdict == "undecided"


def test_sparse_targets_are_judged_on_their_support():
    regularizer = rd.AlphaDivergence(2.0, 0.15)
    aim = rd.target(BANDIT, regularizer)
    assert aim.probs[2] == 0
    c = rd.certify(rd.methods.natural_policy_gradient(regularizer), BANDIT, aim, steps=4000)
    assert c.verdict == "converges"
    assert len(c.stability.eigenvalues) == 3


def test_one_action_and_records_are_plain_numbers():
    one = rd.bandit([1.0])
    c = rd.certify(
        rd.methods.policy_gradient(rd.ReverseKL(1.0)), one, rd.target(one, rd.ReverseKL(1.0))
    )
    assert c.verdict == "converges"
    assert isinstance(dataclasses.asdict(c)["distance"]["kl_to_target"], float)
    method = rd.methods.policy_gradient(rd.ReverseKL(1.0))
    batch = jax.vmap(lambda _: rd.run(method, one, 10))(jnp.ones(2))
    with pytest.raises(ValueError, match="one run"):
        rd.certify(method, one, rd.target(one, rd.ReverseKL(1.0)), batch)


TIE = rd.bandit([1.0, 1.0, 0.0], [0.40, 0.05, 0.55])
GOAL = rd.target(TIE, rd.ReverseKL(0.25))
COIN = rd.bandit([1.0, 0.0], [0.1, 0.9])
THREE = rd.bandit([1.0, 0.5, 0.0], [0.2, 0.3, 0.5])
PLAIN = rd.methods.policy_gradient(rd.ReverseKL(0.25))


def scaled_target():
    """GRPO's k2 at beta 1 on a coin rests where beta is the standard deviation, or at the best."""
    p = scipy.optimize.brentq(
        lambda p: np.sqrt(p * (1 - p)) * (np.log(p / (1 - p)) - np.log(1 / 9)) - 1, 0.2, 0.6
    )
    return rd.target(COIN, rd.ReverseKL(np.sqrt(p * (1 - p))))


@dataclasses.dataclass(frozen=True)
class Rest:
    """A run whose limit is known, and is not the target."""

    method: rd.Method
    bandit: rd.Bandit
    target: rd.Target
    words: tuple[str, ...]
    options: dict
    why: str


ELSEWHERE = {
    "sampler": Rest(
        rd.methods.rloo(beta=0.25, estimator="k2"),
        TIE,
        GOAL,
        ("elsewhere",),
        {"loop": rd.loop(sampler=lambda law: rd.laws.temper(law, 2.0)), "steps": 20_000},
        "samples at temperature 2 weigh the penalty anew",
    ),
    "moving reference": Rest(
        rd.methods.dr_grpo(beta=0.25, estimator="k2"),
        TIE,
        GOAL,
        ("elsewhere", "vertex", "depends on start"),
        {"loop": rd.loop(sync_every=10), "steps": 5000},
        "a reference that follows holds nothing back",
    ),
    "weight decay": Rest(
        PLAIN,
        TIE,
        GOAL,
        ("elsewhere",),
        {"optimizer": optax.chain(optax.add_decayed_weights(0.05), optax.sgd(0.5))},
        "logits are pulled to 0",
    ),
    "tie": Rest(
        rd.methods.policy_gradient(),
        TIE,
        rd.target(TIE, rd.ReverseKL(1e-3)),
        ("depends on start",),
        {},
        "without a regularizer every split of the best is at rest",
    ),
    "other attractor": Rest(
        rd.methods.grpo(1.0, "k2", eps=0.0),
        COIN,
        scaled_target(),
        ("vertex",),
        {"init": np.log([0.98, 0.02]), "steps": 4000},
        "from .98 the deviation is too small for the penalty to pull back",
    ),
    "dying rate": Rest(
        PLAIN,
        THREE,
        rd.target(THREE, rd.ReverseKL(0.25)),
        ("undecided",),
        {"optimizer": optax.sgd(optax.exponential_decay(0.1, 100, 0.5))},
        "all steps together move it by 0.1 * 100/log 2 units of time",
    ),
    "steps of another method": Rest(
        PLAIN,
        THREE,
        rd.target(THREE, rd.ReverseKL(0.25)),
        ("undecided",),
        {"ran": rd.methods.policy_gradient(rd.ForwardKL(0.25))},
        "the path given was made by another method",
    ),
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_run_whose_limit_is_another_law_never_passes(name):
    case = ELSEWHERE[name]
    options = dict(case.options)
    path = None
    if "init" in options or "ran" in options:
        method, init = options.pop("ran", case.method), options.pop("init", None)
        steps = options.pop("steps", 2000)
        path = rd.run(method, case.bandit, steps, init=init, record_every=50)
    c = rd.certify(case.method, case.bandit, case.target, path, **options)
    assert not c.passes, str(c)
    assert c.verdict in case.words, str(c)
    assert c.remaining_steps is None


@pytest.mark.parametrize(
    ("reward", "reference", "beta"),
    [([1.0, 0.5, 0.0], [0.2, 0.3, 0.5], 0.1), ([1.0, 0.0], [1e-4, 1 - 1e-4], 0.05)],
)
@pytest.mark.parametrize("natural", [False, True])
def test_steps_to_go_against_an_integration_of_the_flow(reward, reference, beta, natural):
    """dz/dt = p (w - E w), or w - E w, w = R - beta log p/q, by another solver, from step 200."""
    bandit = rd.bandit(reward, reference)
    aim = rd.target(bandit, rd.ReverseKL(beta))
    make = rd.methods.natural_policy_gradient if natural else rd.methods.policy_gradient
    method = make(rd.ReverseKL(beta))
    path = rd.run(method, bandit, 20, record_every=20)
    c = rd.certify(method, bandit, aim, path)
    assert c.verdict == "plateau"
    r, log_q, goal = np.array(reward), np.log(reference), np.asarray(aim.probs)

    def flow(_, z):
        log_p = z - np.logaddexp.reduce(z)
        p, w = np.exp(log_p), r - beta * (log_p - log_q)
        return (1 if natural else p) * (w - p @ w)

    def left(_, z):
        return np.abs(np.exp(z - np.logaddexp.reduce(z)) - goal).sum() / 2 - 1e-6

    left.terminal = True
    start = np.asarray(path.log_probs[-1])
    solved = scipy.integrate.solve_ivp(
        flow, (0, 1e12), start, "LSODA", events=left, rtol=1e-9, atol=1e-12
    )
    steps = solved.t_events[0][0] / 0.1
    assert 0.99 < c.remaining_steps / steps < 1.01


@pytest.mark.parametrize("loop", [rd.loop(epochs=4), rd.loop(staleness=3), rd.loop(minibatches=2)])
def test_a_loop_is_judged_by_its_own_map(loop):
    """The linear map's largest factor is the rate at which the run really comes nearer."""
    aim = rd.target(THREE, rd.ReverseKL(0.25))
    c = rd.certify(PLAIN, THREE, aim, steps=6000, optimizer=SGD, loop=loop)
    assert c.verdict == "converges"
    assert np.isclose(-np.log(c.stability.factor), c.pace.measured, rtol=0.03)
    assert c.pace.predicted is None
    slow = rd.certify(PLAIN, THREE, aim, steps=50, optimizer=SGD, loop=loop)
    assert slow.verdict == "plateau"
    assert slow.remaining_steps is None


def test_stale_samples_turn_steps_unstable_that_fresh_ones_bear():
    """Steps of 2 shrink what is beside the target, and not on samples of three steps ago.

    The judge is a run from beside the target: it comes nearer by the factor, or leaves by it.
    """
    natural = rd.methods.natural_policy_gradient(rd.ReverseKL(0.25))
    aim = rd.target(THREE, rd.ReverseKL(0.25))
    beside = np.add(aim.log_probs, [1e-6, -1e-6, 0.0])
    for loop, stable in ((None, True), (rd.loop(staleness=3), False)):
        sgd, steps = optax.sgd(2.0), 20
        path = rd.run(natural, THREE, steps, sgd, init=beside, record_every=steps // 2, loop=loop)
        c = rd.certify(natural, THREE, aim, path, optimizer=sgd, loop=loop)
        middle, last = (rd.metrics.total_variation(x, aim.log_probs) for x in path.log_probs[1:])
        grows = float(last / middle) ** (2 / steps)
        assert (c.stability.factor < 1) == stable == (grows < 1) == c.passes
        if not stable:  # its two largest factors are a pair, which the distance goes round with
            assert np.isclose(c.stability.factor, grows, rtol=0.15)
            assert "steps of 2 repel" in c.sentence


@pytest.mark.parametrize("beta", [0.7, 1.0, 2.0])
@pytest.mark.parametrize("make", [rd.methods.policy_gradient, rd.methods.natural_policy_gradient])
def test_at_a_corner_zero_in_the_set_is_a_pass(make, beta):
    """At beta 1, the spread of the rewards, the optimum is the reference, and just so."""
    regularizer = rd.TotalVariation(beta)
    aim = rd.target(THREE, regularizer)
    c = rd.certify(make(regularizer), THREE, aim, optimizer=optax.sgd(0.01), steps=4000)
    assert c.passes, str(c)
    assert c.stationarity.corner
    wrong = rd.target(THREE, rd.TotalVariation(0.4))
    assert rd.certify(make(regularizer), THREE, wrong, optimizer=optax.sgd(0.01)).verdict == (
        "elsewhere"
    )


def test_steps_that_are_too_long_are_named():
    c = rd.certify(
        rd.methods.natural_policy_gradient(rd.ReverseKL(0.25)),
        THREE,
        rd.target(THREE, rd.ReverseKL(0.25)),
        optimizer=optax.sgd(9.0),
    )
    assert c.verdict == "cycles"
    assert "those below 8 are drawn in" in c.sentence
    assert np.isclose(c.stability.factor, 1.25)


def test_the_step_that_is_drawn_in_is_that_of_every_eigenvalue():
    """-5 bears steps below 0.4, -0.001 + i those below 0.002."""
    from regdist.runs.ends import End
    from regdist.runs.onward import longest_step

    turning = np.zeros((4, 4))
    turning[1:, 1:] = [[-5, 0, 0], [0, -1e-3, 1], [0, -1, -1e-3]]
    flow = SimpleNamespace(
        rate_slopes=lambda z, anchor: turning,
        held=lambda z: (np.arange(1, 4), 0),
        copies=np.ones(4),
    )
    case = SimpleNamespace(flow=flow)
    end = End(np.array([1.0, 0.0, 0.0, 0.0]), "attracts", "")
    assert np.isclose(longest_step(case, end), 2e-3 / (1 + 1e-6))


def test_a_controller_leaves_it_undecided():
    method = rd.methods.ppo_adaptive_kl(target=0.1)
    aim = rd.target(THREE, rd.ReverseKL(0.25))
    c = rd.certify(method, THREE, aim)
    assert c.verdict == "undecided"
    assert "controller" in c.sentence


def test_actions_that_move_alike_share_a_coordinate(monkeypatch):
    """Twelve actions of four kinds: the same certificate from four numbers as from twelve."""
    kinds = np.array([0, 1, 2, 3, 1, 2, 3, 1, 2, 3, 0, 3])
    reward = np.array([1.0, 0.5, 0.0, 0.2])[kinds]
    reference = np.array([0.1, 0.05, 0.1, 0.0875])[kinds]
    bandit = rd.bandit(reward, reference / reference.sum())
    for make, regularizer in (
        (rd.methods.policy_gradient, rd.ForwardKL(0.3)),
        (rd.methods.natural_policy_gradient, rd.Entropy(0.3)),
    ):
        method, aim = make(regularizer), rd.target(bandit, regularizer)
        path = rd.run(method, bandit, 400, SGD, record_every=20)
        whole = rd.certify(method, bandit, aim, path, optimizer=SGD)
        with monkeypatch.context() as patch:
            patch.setattr("regdist.runs.evidence.TOGETHER", 4)
            few = rd.certify(method, bandit, aim, path, optimizer=SGD)
        assert few.verdict == whole.verdict
        assert np.allclose(few.stability.eigenvalues[0], whole.stability.eigenvalues[0])
        assert np.isclose(few.stability.fastest, whole.stability.fastest)
        assert np.isclose(few.pace.predicted, whole.pace.predicted)
        if whole.remaining_steps:
            assert np.isclose(few.remaining_steps, whole.remaining_steps, rtol=1e-3)


def test_noise_explains_a_mean_within_it_and_no_more():
    """A run that is still on its way, further off than its noise, but not three times as far."""
    method, aim = rd.methods.rloo(beta=0.3, estimator="k2"), rd.target(THREE, rd.ReverseKL(0.3))
    sgd, noise = optax.sgd(0.01), rd.Sampled(8)
    off = np.add(aim.log_probs, [-0.05, 0.0, 0.05])
    path = rd.run(method, THREE, 200, sgd, noise, jax.random.key(0), init=off, record_every=2)
    c = rd.certify(method, THREE, aim, path, optimizer=sgd, expectation=noise)
    assert c.spread.predicted / 2 < c.spread.mean < 3 * c.spread.predicted
    assert c.verdict == "undecided"


def test_an_optimum_that_is_one_of_many_is_not_on_the_way():
    """At beta 1, the spread of the rewards, mass may go from the worst to the best for nothing."""
    regularizer = rd.TotalVariation(1.0)
    method, aim = rd.methods.natural_policy_gradient(regularizer), rd.target(THREE, regularizer)
    sgd = optax.sgd(0.01)
    path = rd.run(method, THREE, 100, sgd, init=[0.0, -3.0, 0.0], record_every=10)
    c = rd.certify(method, THREE, aim, path, optimizer=sgd)
    end = rd.run(method, THREE, 20_000, sgd, init=[0.0, -3.0, 0.0], record_every=20_000)
    assert rd.metrics.total_variation(end.log_probs[-1], aim.log_probs) > 0.1
    assert not c.passes, str(c)


def test_a_run_that_hops_about_another_optimum_has_not_come():
    """Steps of a thousandth stay where it began, 0.02 away; those of 0.5 hop from there."""
    regularizer = rd.TotalVariation(1.0)
    method, aim = rd.methods.natural_policy_gradient(regularizer), rd.target(THREE, regularizer)
    start, sgd = np.log([0.22, 0.3, 0.48]), optax.sgd(0.5)
    short = rd.run(method, THREE, 20_000, optax.sgd(1e-3), init=start, record_every=20_000)
    assert np.isclose(rd.metrics.total_variation(short.log_probs[-1], aim.log_probs), 0.02)
    path = rd.run(method, THREE, 2000, sgd, init=start, record_every=20)
    assert not rd.certify(method, THREE, aim, path, optimizer=sgd).passes
