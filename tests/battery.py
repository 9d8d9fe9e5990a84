"""Problems whose limits are known by hand or by an independent integration, for `identify`.

Nothing here asks the package where a flow goes: an optimum is written down, a vertex is where an
argument puts it, and a planar flow is chosen by its formula. `how` says which.
"""

import dataclasses
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize

import regdist as rd

m = rd.methods
NONE = m.advantage.GroupRelative(0.0, "mean")


@dataclasses.dataclass(frozen=True)
class Case:
    """A question and its answer.

    Attributes:
        name: of the case.
        ask: what `identify` is asked: method, bandit and options.
        words: verdicts that are right.
        regularizer: of the answer as it prints; "" for None, "?" where it is not looked at.
        law: where the first start ends, shape [K]; None where it is not looked at.
        how: how the answer is known.
    """

    name: str
    ask: Callable[[], tuple]
    words: tuple[str, ...]
    regularizer: str
    law: np.ndarray | None
    how: str


def reverse(reward, reference, beta):
    """q e^{R/beta}, normalized."""
    logits = np.log(reference) + np.asarray(reward) / beta
    return np.exp(logits - np.logaddexp.reduce(logits))


def by_root(reward, reference, beta, inverse, bounds):
    """The optimum whose slope is (R - level)/beta: p = q f'^-1, the level by brentq."""
    reward, reference = np.asarray(reward), np.asarray(reference)

    def law(level):
        return reference * inverse((reward - level) / beta)

    level = scipy.optimize.brentq(
        lambda x: law(x).sum() - 1, *bounds, xtol=1e-15, rtol=1e-15, maxiter=500
    )
    return law(level)


def forward(reward, reference, beta):
    """-q/p + (R - level)/beta = 0: p = q beta/(u + max R - R), u > 0 by its logarithm."""
    gap, reference = max(reward) - np.asarray(reward), np.asarray(reference)

    def miss(log_u):
        return (reference * beta / (np.exp(log_u) + gap)).sum() - 1

    log_u = scipy.optimize.brentq(miss, -80, np.log(beta + 1), xtol=1e-15, rtol=1e-15)
    return reference * beta / (np.exp(log_u) + gap)


def pearson(reward, reference, beta):
    """alpha = 2: p = q (1 + (R - level)/beta)+."""
    low, high = min(reward) - 2 * beta - 1, max(reward) + beta
    return by_root(reward, reference, beta, lambda x: np.maximum(1 + x, 0), (low, high))


PROBLEMS = {
    "coin": ([1.0, 0.0], [0.5, 0.5]),
    "odd coin": ([1.0, 0.0], [0.1, 0.9]),
    "three": ([1.0, 0.5, 0.0], [0.2, 0.3, 0.5]),
    "two levels": ([1.0, 1.0, 0.0], [0.1, 0.3, 0.6]),
    "five": ([1.0, 0.0, 0.4, 0.7, 0.2], [0.2, 0.35, 0.25, 0.1, 0.1]),
    "rare": ([1.0, 0.0, 0.3], [1e-13, 0.6, 0.4 - 1e-13]),
    "thirty": (list(np.linspace(0, 1, 30)), list(np.full(30, 1 / 30) * 1.0)),
}


def optima():
    """The regularized optimum attracts from everywhere inside: the objective is concave in p."""
    for (name, (reward, q)), beta in itertools.product(PROBLEMS.items(), (0.03, 0.3, 1e4)):
        b = (reward, q)
        say = {"how": "concave objective, closed form"}
        yield Case(
            f"reverse KL {beta:g}, {name}",
            lambda b=b, beta=beta: (m.policy_gradient(rd.ReverseKL(beta)), rd.bandit(*b), {}),
            ("converges",),
            f"ReverseKL({beta:g})" if name != "thirty" else "?",
            reverse(reward, q, beta),
            **say,
        )
        if name == "rare" and beta == 1e4:
            continue
        yield Case(
            f"forward KL {beta:g}, {name}, natural",
            lambda b=b, beta=beta: (
                m.natural_policy_gradient(rd.ForwardKL(beta)),
                rd.bandit(*b),
                {},
            ),
            # At 1e-13 the level is 1e-15 above the best reward: its response may be lost.
            ("converges",) if name != "rare" else ("converges", "coincides"),
            f"ForwardKL({beta:g})" if name != "rare" else "?",
            forward(reward, q, beta),
            **say,
        )
    for name, beta in itertools.product(("coin", "odd coin", "three", "five"), (0.3, 3.0, 100.0)):
        b = PROBLEMS[name]
        for estimator, make, law in (
            ("k2", "ReverseKL", reverse),
            ("k3", "ForwardKL", forward),
        ):
            yield Case(
                f"{estimator} in the loss, {beta:g}, {name}",
                lambda b=b, beta=beta, e=estimator: (
                    m.dr_grpo(beta=beta, estimator=e),
                    rd.bandit(*b),
                    {},
                ),
                ("converges",),
                f"{make}({beta:g})",
                law(*b, beta),
                how="the gradient of that KL",
            )
    for beta in (0.05, 0.3, 2.0):
        for name in ("coin", "three", "five"):
            b = PROBLEMS[name]
            law = pearson(*b, beta)
            one = (law > 0).sum() == 1
            yield Case(
                f"Pearson {beta:g}, {name}",
                lambda b=b, beta=beta: (
                    m.policy_gradient(rd.AlphaDivergence(2.0, beta)),
                    rd.bandit(*b),
                    {},
                ),
                ("vertex",) if one else ("converges",),
                "?",
                law,
                how="concave objective; sparse where 1 + (R - level)/beta < 0",
            )
    for beta in (0.05, 0.3):
        for reward in ([1.0, 0.0], [1.0, 0.5, 0.0]):
            size = len(reward)
            yield Case(
                f"entropy {beta:g}, uniform reference, {size}",
                lambda r=reward, beta=beta: (m.entropy_bonus(beta), rd.bandit(r), {}),
                ("converges",),
                f"Entropy({beta:g})",
                reverse(reward, np.full(size, 1 / size), beta),
                how="softmax of R/beta; only its response tells it from reverse KL",
            )
    for beta in (1e-8, 1e-3):
        yield Case(
            f"reverse KL {beta:g}, three",
            lambda beta=beta: (
                m.policy_gradient(rd.ReverseKL(beta)),
                rd.bandit(*PROBLEMS["three"]),
                {},
            ),
            ("converges", "vertex"),
            "?",
            np.array([1.0, 0.0, 0.0]),
            how="the others hold e^{-0.5/beta} or less",
        )


def vertices():
    """Without a penalty the mass goes to the best action: dp_i/dt = p_i (...) grows for it."""
    plain = {
        "reinforce": m.reinforce(),
        "rloo": m.rloo(),
        "dr_grpo": m.dr_grpo(),
        "grpo": m.grpo(0.0),
        "natural": m.natural_policy_gradient(),
        "k1 in the loss": m.dr_grpo(beta=0.3, estimator="k1"),
    }
    problems = {
        "three": PROBLEMS["three"],
        "rare": PROBLEMS["rare"],
        "near tie": ([1.0, 1 - 1e-6, 0.0], [0.2, 0.5, 0.3]),
        "nearer tie": ([1.0, 1 - 1e-9, 0.0], [0.2, 0.5, 0.3]),
    }
    for (name, method), (about, b) in itertools.product(plain.items(), problems.items()):
        best = int(np.argmax(b[0]))
        yield Case(
            f"{name}, {about}",
            lambda method=method, b=b: (method, rd.bandit(*b), {}),
            ("vertex",),
            "",
            np.eye(len(b[0]))[best],
            how="the best action's gain is the largest everywhere",
        )
    for log_q in (-25.0, -28.0, -31.0, -100.0):
        yield Case(
            f"reinforce, best action at e^{log_q:g}, from the reference",
            lambda log_q=log_q: (
                m.reinforce(),
                rd.bandit([1.0, 0.0], log_reference=[log_q, np.log1p(-np.exp(log_q))]),
                {"starts": [[log_q, np.log1p(-np.exp(log_q))]]},
            ),
            ("vertex",),
            "",
            np.array([1.0, 0.0]),
            how="dp/dt = 2 p^2 (1-p)^2 > 0",
        )
    for size in (2, 4):
        yield Case(
            f"rloo in groups of {size}",
            lambda size=size: (
                m.rloo(),
                rd.bandit(*PROBLEMS["three"]),
                {"expectation": rd.Group(size)},
            ),
            ("vertex",),
            "",
            np.array([1.0, 0.0, 0.0]),
            how="leave-one-out is unbiased: the field of REINFORCE",
        )
    yield Case(
        "a best action that the reference forbids",
        lambda: (m.reinforce(), rd.bandit([2.0, 1.0, 0.0], [0.0, 0.4, 0.6]), {}),
        ("vertex",),
        "",
        np.array([0.0, 1.0, 0.0]),
        how="probability 0 stays",
    )
    yield Case(
        "a forbidden action",
        lambda: (
            m.policy_gradient(rd.ReverseKL(0.3)),
            rd.bandit([-np.inf, 1.0, 0.0], [0.2, 0.3, 0.5]),
            {},
        ),
        ("converges",),
        "ReverseKL(0.3)",
        np.append(0.0, reverse([1.0, 0.0], [0.375, 0.625], 0.3)),
        how="it is left out",
    )


def ties():
    """Equal rewards without a penalty: their odds do not move at the end."""
    for name, method in (("plain", m.reinforce()), ("natural", m.natural_policy_gradient())):
        for reward in ([1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 0.2], [1.0, 0.0, 1.0, 0.0, 1.0]):
            yield Case(
                f"tie, {name}, {reward}",
                lambda method=method, r=reward: (method, rd.bandit(r), {}),
                ("depends on start",),
                "",
                None,
                how="a face of rest points",
            )


@rd.record
class Planar(m.signal.Signal):
    """Rewards that make dx/dt of x = log p_0/p_2, y = log p_1/p_2 a normal form.

    r' = mu r + first r^3 + second r^5, angle' = omega; natural geometry.
    """

    mu: jax.Array
    omega: jax.Array
    first: jax.Array
    second: jax.Array

    def __call__(self, tables):
        x, y = tables.log_p[0] - tables.log_p[2], tables.log_p[1] - tables.log_p[2]
        square = x * x + y * y
        grow = self.mu + self.first * square + self.second * square**2
        zero = jnp.zeros_like(x)
        return jnp.stack([grow * x - self.omega * y, grow * y + self.omega * x, zero])


def planar(mu, omega, first, second=0.0):
    return m.compose(NONE, signal=Planar(mu, omega, first, second), geometry="natural")


# Rewards differ, so that time is in units of 1; `Planar` does not look at them.
PLANE = ([1.0, 0.0, 0.5], [0.3, 0.2, 0.5])


def turns():
    """r' = r (mu + first r^2 + second r^4): cycles and points by their signs."""
    uniform = np.full(3, 1 / 3)
    for mu, omega in itertools.product((1.0, 0.1, 1e-2, 1e-4), (1.0, 30.0)):
        yield Case(
            f"cycle of radius {mu**0.5:g}, speed {omega:g}",
            lambda mu=mu, omega=omega: (
                planar(mu, omega, -1.0),
                rd.bandit(*PLANE),
                {} if omega == 1 else {"starts": [[0.4, 0.0, 0.0]]},  # each turn costs as much
            ),
            ("cycles",),
            "",
            None,
            how="r' = r (mu - r^2)",
        )
    for rate in (1.0, 1e-2, 1e-3, 1e-5, 1e-7):
        yield Case(
            f"spiral of rate {rate:g}",
            lambda rate=rate: (planar(-rate, 1.0, 0.0), rd.bandit(*PLANE), {}),
            ("converges", "coincides", "elsewhere"),
            "?",
            uniform,
            how="r' = -rate r",
        )
    for omega in (0.0, 1.0):
        yield Case(
            f"a point inside an unstable cycle inside a stable one, speed {omega:g}",
            lambda omega=omega: (
                planar(-0.1, omega, 0.6, -0.5),
                rd.bandit(*PLANE),
                {"starts": [[0.0, 0.0, 0.0], [0.2, 0.0, 0.0], [1.5, 0.0, 0.0]]},
            ),
            ("depends on start",),
            "",
            uniform,
            how="r' = r (-0.1 + 0.6 r^2 - 0.5 r^4): r = 0 and 1 attract, 0.447 repels",
        )


@rd.record
class Echo(m.signal.Signal):
    """Pays c p_i on top of the reward: what is likely is liked."""

    c: jax.Array

    def __call__(self, tables):
        return tables.reward + self.c * jnp.exp(tables.log_p)


def several():
    """Two attractors and more, by scalar equations."""
    for c, beta in ((4.0, 1.0), (3.0, 0.5), (10.0, 1.0)):
        yield Case(
            f"echo {c:g} at beta {beta:g} on a flat coin",
            lambda c=c, beta=beta: (
                m.compose(NONE, signal=Echo(c), regularizer=rd.ReverseKL(beta)),
                rd.bandit([0.0, 0.0]),
                {},
            ),
            ("depends on start",),
            "",
            None,
            how="log-odds x = (c/beta) tanh(x/2): three roots for c > 2 beta, the middle repels",
        )
        yield Case(
            f"echo {c:g} at beta {10 * beta:g} on a flat coin",
            lambda c=c, beta=beta: (
                m.compose(NONE, signal=Echo(c), regularizer=rd.ReverseKL(10 * beta)),
                rd.bandit([0.0, 0.0]),
                {},
            ),
            ("converges", "coincides", "elsewhere"),
            "?",
            np.array([0.5, 0.5]),
            how="c < 2 beta: one root",
        )
    for size in (3, 4):
        yield Case(
            f"echo on {size} equal actions",
            lambda size=size: (
                m.compose(NONE, signal=Echo(6.0), regularizer=rd.ReverseKL(1.0)),
                rd.bandit([0.0] * size),
                {},
            ),
            ("depends on start",),
            "",
            None,
            how="symmetric, and the uniform law repels: c/K > beta",
        )
    for beta in (1.0, 2.0):
        yield Case(
            f"GRPO with k2 at {beta:g} without eps on a coin",
            lambda beta=beta: (
                m.grpo(beta, "k2", eps=0.0),
                rd.bandit([1.0, 0.0], [0.1, 0.9]),
                {},
            ),
            ("depends on start",),
            "",
            None,
            how="the gain of the bad action is -1/sqrt(p) at the vertex; an interior root too",
        )


def self_consistent():
    """GRPO divides by sigma: reverse KL's odds at b sigma, where sigma is that of the end."""
    for b, name in itertools.product((1.5, 3.0), ("three", "five")):
        reward, q = map(np.asarray, PROBLEMS[name])

        def sigma(beta, reward=reward, q=q):
            p = reverse(reward, q, beta)
            return np.sqrt(p @ reward**2 - (p @ reward) ** 2)

        beta = scipy.optimize.brentq(lambda x, b=b, s=sigma: b * s(x) - x, 0.2, 10.0, xtol=1e-14)
        yield Case(
            f"GRPO with k2 at {b:g}, {name}, from the reference",
            lambda b=b, reward=reward, q=q: (
                m.grpo(b, "k2", eps=0.0),
                rd.bandit(reward, q),
                {"starts": np.log(q)[None]},
            ),
            ("converges",),
            f"ReverseKL({beta:.6g})",
            reverse(reward, q, beta),
            how="beta = b sigma(p), by brentq",
        )


def coinciding():
    """An end that a target shares, while the method is another."""
    yield Case(
        "GRPO with k3 on a coin",
        lambda: (
            m.grpo(3.0, eps=0.0),
            rd.bandit([1.0, 0.0], [0.5, 0.5]),
            {"starts": np.log([[0.5, 0.5]])},
        ),
        ("coincides",),
        "",
        None,
        how="two actions have one odds, and the effective beta moves with sigma",
    )
    law = np.array([0.7, 0.2, 0.1])
    yield Case(
        "a law of one's own",
        lambda: (
            m.dr_grpo(beta=0.3, estimator="k2"),
            rd.bandit(*PROBLEMS["three"]),
            {"targets": {"mine": rd.target(rd.bandit(*PROBLEMS["three"]), rd.ReverseKL(0.3))}},
        ),
        ("converges",),
        "ReverseKL(0.3)",
        reverse(*PROBLEMS["three"], 0.3),
        how="the closed form, which the law joins",
    )
    yield Case(
        "off-policy samples of a fixed law",
        lambda: (
            m.policy_gradient(rd.ReverseKL(0.3)),
            rd.bandit(*PROBLEMS["three"]),
            {"old": jnp.log(jnp.asarray(law))},
        ),
        ("elsewhere",),
        "?",
        None,
        how="the samples weigh the rewards, and the policy does not: no target of the table",
    )


def written():
    """Losses pasted with weights, whose expected gradient is known."""
    sg = jax.lax.stop_gradient

    def k2(v):
        a = sg(v.rewards - v.mean(v.rewards))
        return -a * v.log_probs + 0.3 * (v.log_probs - v.ref_log_probs) ** 2 / 2

    def k3(v):
        a = sg(v.rewards - v.mean(v.rewards))
        left = v.ref_log_probs - v.log_probs
        return -a * v.log_probs + 0.3 * (jnp.exp(left) - left - 1)

    def plain(v):
        return -sg(v.rewards) * v.log_probs

    for name in ("coin", "three", "five"):
        b = PROBLEMS[name]
        for loss, law, label in ((k2, reverse, "ReverseKL(0.3)"), (k3, forward, "ForwardKL(0.3)")):
            yield Case(
                f"pasted {loss.__name__}, {name}",
                lambda loss=loss, b=b: (m.from_loss(loss), rd.bandit(*b), {}),
                ("converges",),
                label,
                law(*b, 0.3),
                how="the gradient of that KL",
            )
        if name != "coin":  # differences of a written loss are slow, and this is one flow
            continue
        yield Case(
            f"pasted REINFORCE, {name}",
            lambda b=b: (m.from_loss(plain), rd.bandit(*b), {}),
            ("vertex",),
            "",
            np.eye(len(b[0]))[0],
            how="the policy gradient",
        )


CASES = [
    case
    for family in (
        optima,
        vertices,
        ties,
        turns,
        several,
        self_consistent,
        coinciding,
        written,
    )
    for case in family()
]
