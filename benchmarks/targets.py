"""Targets: the tilt in closed form, and one root for each problem of a batch."""

from typing import NamedTuple

import numpy as np

from benchmarks.work import Call, Contender, Work

BETA = 0.1
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
KEPT_HEAP = {
    "MALLOC_TOP_PAD_": str(2**30),
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**33),
}


class Batch(NamedTuple):
    """Rewards and log-references, shape [B, K]."""

    reward: np.ndarray
    log_ref: np.ndarray


def batch(size: int, actions: int, dtype: str = "float64") -> Batch:
    """Uniform rewards, references uniform on the simplex."""
    random = np.random.default_rng(0)
    reward = random.random((size, actions))
    log_ref = np.log(random.dirichlet(np.ones(actions), size))
    return Batch(reward.astype(dtype), log_ref.astype(dtype))


def _regdist(regularizer_of) -> "Contender":
    def make(data: Batch) -> Call:
        import jax
        import jax.numpy as jnp

        import regdist as rd

        label = jnp.arange(data.reward.shape[1])
        regularizer = regularizer_of(rd)
        solve = jax.jit(
            jax.vmap(lambda r, q: rd.target(rd.Bandit(r, q, label), regularizer).log_probs)
        )
        tables = [jnp.asarray(x) for x in data]
        return lambda: np.asarray(solve(*tables)[:, 0][:8])

    return Contender(make)


def _with(contender: Contender, env: dict[str, str]) -> Contender:
    return Contender(contender.make, contender.share, env)


def _torch_softmax(data: Batch) -> Call:
    import torch

    reward, log_ref = (torch.from_numpy(x) for x in data)
    return lambda: torch.log_softmax(log_ref + reward / BETA, -1)[:8, 0].numpy()


def _scipy_softmax(data: Batch) -> Call:
    import scipy.special

    beta = data.reward.dtype.type(BETA)
    return lambda: scipy.special.log_softmax(data.log_ref + data.reward / beta, axis=-1)[:8, 0]


def _brentq(data: Batch) -> Call:
    import scipy.optimize

    def call() -> np.ndarray:
        first = []
        for reward, log_q in zip(*data, strict=True):
            q, best = np.exp(log_q), reward.argmax()

            def excess(level: float, q=q, reward=reward) -> float:
                return float(np.sum(BETA * q / (level - reward))) - 1

            low = reward[best] + BETA * q[best]
            level = scipy.optimize.brentq(excess, low, reward[best] + BETA, xtol=1e-15)
            first.append(np.log(BETA * q[0] / (level - reward[0])))
        return np.array(first[:8])

    return call


def _optimistix(data: Batch) -> Call:
    import jax
    import jax.numpy as jnp
    import optimistix

    solver = optimistix.Bisection(rtol=1e-12, atol=1e-12)

    def one(reward, log_q):
        q, best = jnp.exp(log_q), jnp.argmax(reward)

        def excess(level, _):
            return jnp.sum(BETA * q / (level - reward)) - 1

        low, high = reward[best] + BETA * q[best], reward[best] + BETA
        options = {"lower": low, "upper": high}
        middle = (low + high) / 2
        found = optimistix.root_find(excess, solver, middle, options=options, throw=False)
        return jnp.log(BETA * q / (found.value - reward))

    solve = jax.jit(jax.vmap(one))
    tables = [jnp.asarray(x) for x in data]
    return lambda: np.asarray(solve(*tables)[:8, 0])


def _cvxpy(data: Batch) -> Call:
    import cvxpy

    def call() -> np.ndarray:
        first = []
        for reward, log_q in zip(data.reward[:4], data.log_ref[:4], strict=True):
            p = cvxpy.Variable(len(reward))
            worth = reward @ p + BETA * cvxpy.sum(cvxpy.multiply(np.exp(log_q), cvxpy.log(p)))
            cvxpy.Problem(cvxpy.Maximize(worth), [cvxpy.sum(p) == 1]).solve()
            first.append(np.log(p.value[0]))
        return np.array(first)

    return call


def _hunted(num: int, actions: int) -> Contender:
    """`falsify` on hard problems, and how many Newton steps the quick search takes."""

    def make(_: None) -> Call:
        import jax

        import regdist as rd

        problems = (rd.testing.hard_bandits(actions), rd.testing.betas())

        def converges(bandit, beta):
            return rd.target(bandit, rd.ForwardKL(beta)).converged

        steps = _newton_steps(rd, problems, jax.random.split(jax.random.key(1), num))
        quick = steps[steps > 0]
        likely = [float(np.percentile(quick, 99)), 1 - len(quick) / num]

        def call() -> tuple[np.ndarray, float]:
            made = rd.testing.falsify(
                converges, problems, num, key=jax.random.key(0), progress=False
            )
            return np.array([made.violations, made.rate, *likely]), made.seconds

        return call

    return Contender(make)


def _newton_steps(rd, problems, keys) -> np.ndarray:
    """How many steps until the quick search is certain; 0 where it hands over to the safe one.

    Found by allowing it one more step at a time.
    """
    import jax

    from regdist.targets import solve
    from regdist.targets.solvers import single

    seen, certain = [], []
    kept = single._QUICK_STEPS, single.where_unknown

    def unknown(key):
        bandit, beta = (make(k) for make, k in zip(problems, jax.random.split(key), strict=True))
        solve._target.__wrapped__(bandit, rd.ForwardKL(beta))
        return seen.pop()

    def noted(unknown, search, found):
        del search
        seen.append(unknown)
        return found

    try:
        single.where_unknown = noted
        for most in range(1, kept[0] + 1):
            single._QUICK_STEPS = most
            fresh = jax.jit(jax.vmap(lambda key: unknown(key)))  # traced again at every limit
            certain.append(~np.asarray(fresh(keys)))
    finally:
        single._QUICK_STEPS, single.where_unknown = kept
    return np.where(certain[-1], np.argmax(certain, axis=0) + 1, 0)


def _hunt(answer: list[float]) -> str:
    violations, rate, steps, left = answer[:4]
    return (
        f"{violations:.0f} not converged, {rate:,.0f} problems a second; {left:.1%} are handed to "
        f"the safe search, and of the others the 99th percentile is {steps:.0f} Newton steps"
    )


def targets(toy: bool) -> dict[str, Work]:
    """The closed form at two dtypes and settings; forward KL and other divergences."""
    rows, actions = (2000, 128) if toy else (100_000, 128)
    tilt = _regdist(lambda rd: rd.ReverseKL(BETA))
    made = {}
    heaps = {"": {}, ", kept heap": KEPT_HEAP, ", huge pages": HUGE_PAGES}
    for dtype in ("float32",) if toy else ("float32", "float64"):
        for about, env in {"": {}}.items() if toy else heaps.items():
            made[f"closed form, {rows} x {actions}, {dtype}{about}"] = Work(
                "log p of reverse KL, from tables to a table",
                lambda dtype=dtype: batch(rows, actions, dtype),
                {
                    "regdist": _with(tilt, env),
                    "torch log_softmax": Contender(_torch_softmax, env=env),
                    "scipy log_softmax": Contender(_scipy_softmax, env=env),
                },
                {"torch log_softmax": 1.5, "scipy log_softmax": 3.0},
                bytes=3.0 * rows * actions * np.dtype(dtype).itemsize,
                exponentials=float(rows * actions),
                dtype=dtype,
            )
    size, actions = (20, 100) if toy else (1000, 100)
    forward = _regdist(lambda rd: rd.ForwardKL(BETA))
    made[f"forward KL, {size} x {actions}"] = Work(
        "log p of forward KL, one root a problem",
        lambda: batch(size, actions),
        {
            "regdist": forward,
            "brentq loop": Contender(_brentq),
            "optimistix bisection": Contender(_optimistix),
            "cvxpy": Contender(_cvxpy, share=4 / size),
        },
        {"brentq loop": 10.0, "cvxpy": 1000.0},
    )
    num = 500 if toy else 64_000
    for actions in (6,) if toy else (6, 100):
        made[f"forward KL, {num} hard problems of {actions} actions"] = Work(
            "whether the solution is certified: how many are not, and problems a second",
            lambda: None,
            {"regdist": _hunted(num, actions)},
            exact=False,
            reads=_hunt,
        )
    for alpha in (0.5,) if toy else (0.5, 2.0, -1.0, 3.0):
        made[f"alpha {alpha:g}, {size} x {actions}"] = Work(
            "log p of an alpha divergence; the goal is at most twice the time of forward KL",
            lambda: batch(size, actions),
            {
                "regdist": _regdist(lambda rd, alpha=alpha: rd.AlphaDivergence(alpha, BETA)),
                "forward KL": forward,
            },
            {"forward KL": 0.5},
            exact=False,
        )
    return made
