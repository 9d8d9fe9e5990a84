"""Runs: the exact gradient of a batch and of one problem, sampled and exact groups.

Batches run by `rd.sweep`, a device to each core.
"""

from collections.abc import Callable

import numpy as np

from benchmarks.targets import BETA, Batch, batch
from benchmarks.work import Call, Contender, Work

RATE = 0.1
TWO_DEVICES = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}


def _ran(steps: int, preset: str, group: int | None = None) -> Callable:
    """From regdist's modules to the last log p of a run: of tables, and a key for drawn groups."""

    def make(rd, jax, jnp, optax) -> Callable:
        method = {
            "reverse KL": lambda: rd.methods.policy_gradient(rd.ReverseKL(BETA)),
            "rloo": rd.methods.rloo,
            "grpo": lambda: rd.methods.grpo(0.0),
        }[preset]()
        optimizer = optax.sgd(RATE)
        over = rd.Population() if group is None else rd.Sampled(group)

        def one(reward, log_ref, key=None):
            bandit = rd.Bandit(reward, log_ref, jnp.arange(reward.shape[0]))
            path = rd.run(method, bandit, steps, optimizer, over, key, record_every=steps)
            return path.log_probs[-1]

        return one

    return make


def _answer(log_p, group: int | None) -> np.ndarray:
    """First probabilities of the first runs; drawn groups differ, so then means over the runs."""
    log_p = np.asarray(log_p)
    return log_p[:8, 0] if group is None else np.mean(np.exp(log_p), 0)[:8]


def _vmapped(steps: int, preset: str, group: int | None = None) -> Contender:
    """All runs as one vmap, on one device."""

    def make(data: Batch) -> Call:
        import jax
        import jax.numpy as jnp
        import optax

        import regdist as rd

        run = jax.jit(jax.vmap(_ran(steps, preset, group)(rd, jax, jnp, optax)))
        given = [jnp.asarray(x) for x in data]
        if group is not None:
            given.append(jax.random.split(jax.random.key(0), len(data.reward)))
        return lambda: _answer(run(*given), group)

    return Contender(make)


def _swept(steps: int, preset: str, group: int | None = None) -> Contender:
    """The same by `rd.sweep`, on two devices, each a core."""

    def make(data: Batch) -> Call:
        import jax
        import jax.numpy as jnp
        import optax

        import regdist as rd

        one = _ran(steps, preset, group)(rd, jax, jnp, optax)
        axes, key = {"tables": tuple(data)}, None if group is None else jax.random.key(0)

        def call() -> tuple[np.ndarray, float]:
            made = rd.sweep(
                lambda tables, **key: one(*tables, **key), axes, key=key, progress=False
            )
            return _answer(made.values, group), made.seconds

        return call

    return Contender(make, env=TWO_DEVICES)


def _across_devices(tables):
    """Tables with their rows shared out among the devices: what is elementwise in rows stays so."""
    import jax
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    devices = Mesh(np.array(jax.devices()), ("rows",))
    whole = len(jax.tree.leaves(tables)[0]) % jax.device_count() == 0
    place = NamedSharding(devices, PartitionSpec("rows" if whole else None))
    return [jax.device_put(x, place) for x in tables]


def _torch_loop(
    steps: int, total: int, by_hand: bool, step: Callable, answer: Callable
) -> Contender:
    """The loop that a paper writes: `step` of torch, z and the tables moves z or returns its worth.

    What it returns is maximized with autograd.
    """

    def make(data: Batch) -> Call:
        import torch

        tables = [torch.from_numpy(x) for x in data]

        def call() -> np.ndarray:
            z = tables[1].clone().requires_grad_(not by_hand)
            optimizer = torch.optim.SGD([z], lr=RATE)
            for _ in range(steps):
                worth = step(torch, z, *tables)
                if not by_hand:
                    optimizer.zero_grad()
                    (-worth).backward()
                    optimizer.step()
            return answer(torch, z.detach()).numpy()

        return call

    return Contender(make, share=steps / total)


def _torch(steps: int, total: int, by_hand: bool) -> Contender:
    """Reverse KL, with autograd or with the gradient written out."""

    def step(torch, z, reward, log_ref):
        log_p = torch.log_softmax(z, -1)
        p, worth = log_p.exp(), reward - BETA * (log_p - log_ref)
        if not by_hand:
            return (p * worth).sum()
        z += RATE * p * (worth - (p * worth).sum(-1, keepdim=True))
        return None

    return _torch_loop(
        steps, total, by_hand, step, lambda torch, z: torch.log_softmax(z, -1)[:8, 0]
    )


def _scan(steps: int, devices: bool = True) -> Contender:
    """Optax in a plain scan: autodiff of the objective."""

    def make(data: Batch) -> Call:
        import jax
        import jax.numpy as jnp
        import optax

        optimizer = optax.sgd(RATE)

        def one(reward, log_ref):
            def loss(z):
                log_p = jax.nn.log_softmax(z)
                return -jnp.sum(jnp.exp(log_p) * (reward - BETA * (log_p - log_ref)))

            def step(state, _):
                z, memory = state
                updates, memory = optimizer.update(jax.grad(loss)(z), memory)
                return (optax.apply_updates(z, updates), memory), None

            state, _ = jax.lax.scan(step, (log_ref, optimizer.init(log_ref)), None, length=steps)
            return jax.nn.log_softmax(state[0])

        run = jax.jit(jax.vmap(one))
        tables = _across_devices(data)
        return lambda: np.asarray(run(*tables)[:8, 0])

    return Contender(make, env=TWO_DEVICES if devices else {})


def _binary(size: int, actions: int) -> Batch:
    made = batch(size, actions)
    reward = (np.random.default_rng(1).random((size, actions)) < 0.2).astype(float)
    return Batch(reward, made.log_ref)


def _worth(reward, group: int, preset: str, mean: Callable, std: Callable):
    """RLOO or GRPO advantages of groups, in whatever array library."""
    centered = reward - mean(reward)
    if preset == "rloo":
        return centered * (group / (group - 1))
    return centered / (std(reward) + 1e-4)


def _torch_sampled(steps: int, total: int, group: int, preset: str, by_hand: bool) -> Contender:
    """Drawn groups, with autograd or with the gradient written out."""

    def step(torch, z, reward, _):
        p = torch.softmax(z.detach(), -1)
        actions = torch.multinomial(p, group, replacement=True)
        worth = _worth(
            reward.gather(1, actions),
            group,
            preset,
            lambda x: x.mean(1, keepdim=True),
            lambda x: x.std(1, keepdim=True),
        )
        if not by_hand:
            return (worth * torch.log_softmax(z, -1).gather(1, actions)).mean(1).sum()
        z.scatter_add_(1, actions, RATE / group * worth)
        z -= RATE / group * p * worth.sum(1, keepdim=True)
        return None

    return _torch_loop(
        steps, total, by_hand, step, lambda torch, z: torch.softmax(z, -1).mean(0)[:8]
    )


def _categorical(steps: int, total: int, group: int, preset: str) -> Contender:
    """The same loop in a scan, on `jax.random.categorical` and autodiff."""

    def make(data: Batch) -> Call:
        import jax
        import jax.numpy as jnp

        def one(reward, log_ref, key):
            def step(z, t):
                actions = jax.random.categorical(jax.random.fold_in(key, t), z, shape=(group,))
                worth = _worth(
                    reward[actions], group, preset, jnp.mean, lambda x: jnp.std(x, ddof=1)
                )
                slope = jax.grad(lambda z: jnp.mean(worth * jax.nn.log_softmax(z)[actions]))(z)
                return z + RATE * slope, None

            return jax.nn.softmax(jax.lax.scan(step, log_ref, jnp.arange(steps))[0])

        run = jax.jit(jax.vmap(one))
        keys = jax.random.split(jax.random.key(0), len(data.reward))
        given = _across_devices([*data, keys])
        return lambda: np.asarray(jnp.mean(run(*given), 0)[:8])

    return Contender(make, share=steps / total, env=TWO_DEVICES)


def _grouped(steps: int, group: int | None) -> Contender:
    """Population, or exact groups of a size, on the rewards of the first problem."""

    def make(data: Batch) -> Call:
        import jax
        import jax.numpy as jnp
        import optax

        import regdist as rd

        method, optimizer = rd.methods.grpo(0.0), optax.sgd(RATE)
        reward, label = jnp.asarray(data.reward[0]), jnp.arange(data.reward.shape[1])
        over = rd.Population() if group is None else rd.Group(group).on(reward)

        def one(log_ref):
            bandit = rd.Bandit(reward, log_ref, label)
            path = rd.run(method, bandit, steps, optimizer, over, record_every=steps)
            return path.log_probs[-1]

        run, log_ref = jax.jit(jax.vmap(one)), jnp.asarray(data.log_ref)
        return lambda: np.asarray(run(log_ref)[:8, 0])

    return Contender(make)


def runs(toy: bool) -> dict[str, Work]:
    """Exact and sampled runs."""
    made = {}
    steps = 20 if toy else 1000
    for size, actions in ((20, 100),) if toy else ((1000, 100), (4096, 32)):
        some = steps // 10
        made[f"population, {size} x {actions}, {steps} steps, float32"] = Work(
            "log p after gradient steps of reverse KL",
            lambda size=size, actions=actions: batch(size, actions, "float32"),
            {
                "regdist": _swept(steps, "reverse KL"),
                "regdist, one device": _vmapped(steps, "reverse KL"),
                "torch autograd": _torch(some, steps, by_hand=False),
                "torch by hand": _torch(some, steps, by_hand=True),
                "optax in a scan": _scan(steps),
            },
            {"torch autograd": 10.0, "torch by hand": 2.0},
            exponentials=float(size * actions * steps),
            dtype="float32",
            exact=False,
        )
    steps = 200 if toy else 10_000
    made[f"one problem, 100 actions, {steps} steps"] = Work(
        "log p after gradient steps of reverse KL",
        lambda: batch(1, 100),
        {
            "regdist": _vmapped(steps, "reverse KL"),
            "torch autograd": _torch(steps // 20, steps, by_hand=False),
            "torch by hand": _torch(steps // 20, steps, by_hand=True),
            "optax in a scan": _scan(steps, devices=False),
        },
        {"torch autograd": 300.0},
        exponentials=100.0 * steps,
        exact=False,
    )
    size, steps = (20, 20) if toy else (200, 200)
    made[f"population, {size} x 100, {steps} steps, all of them, float64"] = Work(
        "the same for all contenders from the first step to the last, so that answers compare",
        lambda size=size: batch(size, 100),
        {
            "regdist": _swept(steps, "reverse KL"),
            "regdist, one device": _vmapped(steps, "reverse KL"),
            "torch autograd": _torch(steps, steps, by_hand=False),
            "torch by hand": _torch(steps, steps, by_hand=True),
            "optax in a scan": _scan(steps),
        },
        exponentials=float(size * 100 * steps),
    )
    size, steps, some = (20, 20, 10) if toy else (1000, 200, 20)
    for preset in ("rloo",) if toy else ("rloo", "grpo"):
        made[f"sampled {preset}, G = 8, {size} x 100, {steps} steps"] = Work(
            "mean p after steps on drawn groups; the contenders draw different groups",
            lambda size=size: _binary(size, 100),
            {
                "regdist": _swept(steps, preset, 8),
                "regdist, one device": _vmapped(steps, preset, 8),
                "torch autograd": _torch_sampled(some, steps, 8, preset, by_hand=False),
                "torch by hand": _torch_sampled(some, steps, 8, preset, by_hand=True),
                "jax.random.categorical": _categorical(some, steps, 8, preset),
            },
            {"torch autograd": 5.0, "torch by hand": 3.0, "jax.random.categorical": 40.0},
            exponentials=float(size * 100 * steps),
            exact=False,
        )
    for group in (8,) if toy else (8, 64):
        for rows in (20,) if toy else (1, 1000):
            made[f"exact groups of {group}, binary reward, {rows} x 100, {steps} steps"] = Work(
                "log p after GRPO steps; the goal is at most 1.5 times the population step",
                lambda rows=rows: _binary(rows, 100),
                {"regdist": _grouped(steps, group), "population": _grouped(steps, None)},
                {"population": 1 / 1.5},
                exact=False,
            )
    return made
