"""The losses of the named methods, written out as a trainer would write them for a list of samples.

Each takes one group of G samples, `actions` [G], and tables; returns the loss to be minimised,
which is differentiated in the logits. Nothing here is shared with the package: this is the judge.
"""

import functools
import itertools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np

sg = jax.lax.stop_gradient


def group_of(actions, logits, log_old, log_ref, reward):
    """What the loss of a group sees."""
    table = jax.nn.log_softmax(logits)
    return SimpleNamespace(
        actions=actions,
        table=table,
        lp=table[actions],
        old=log_old[actions],
        ref=log_ref[actions],
        r=reward[actions],
        greedy=reward[jnp.argmax(log_old)],
        size=len(actions),
        value=jnp.exp(log_old) @ reward,
        old_table=log_old,
        ref_table=log_ref,
        reward_table=reward,
    )


def average(x):
    """The mean, exact where all are equal: 1e-16 of a mean is 1e-10 of a z-score."""
    return x[0] + jnp.mean(x - x[0])


def std(x):
    return jnp.sqrt(jnp.sum((x - average(x)) ** 2) / max(len(x) - 1, 1) + 1e-60)


def mean(g):
    return average(g.r) if g.size > 1 else 0.0


def centred(g):
    return g.r - mean(g)


def z_score(g, eps=1e-6):
    return g.r / (1 + eps) if g.size == 1 else (g.r - average(g.r)) / (std(g.r) + eps)


def of_others(g, eps=1e-6):
    """NeMo-RL's: the mean and the unbiased deviation of the others, one sample after the other."""
    each = []
    for i in range(g.size):
        rest = jnp.delete(g.r, i, assume_unique_indices=True)
        gap = g.r[i] - average(rest)
        square = jnp.sum((rest - average(rest)) ** 2) / max(len(rest) - 1, 1)
        some = (square > 1e-20) & (len(rest) > 1)
        each.append(jnp.where(some, gap / (jnp.sqrt(jnp.where(some, square, 1)) + eps), gap))
    return jnp.stack(each)


def whitened(x, biased=False):
    """As verl's and SkyRL's masked_whiten; biased as OpenRLHF and NeMo-RL do, clamped."""
    squares = jnp.sum((x - jnp.mean(x)) ** 2)
    if biased:
        return (x - jnp.mean(x)) / jnp.sqrt(jnp.maximum(squares / len(x), 1e-8))
    return (x - jnp.mean(x)) / jnp.sqrt(squares / max(len(x) - 1, 1) + 1e-8)


def ppo(g, a, low=0.2, high=0.2, dual=jnp.inf):
    rho = jnp.exp(g.lp - g.old)
    gain = jnp.minimum(rho * a, jnp.clip(rho, 1 - low, 1 + high) * a)
    floor = jnp.where(jnp.isfinite(dual), jnp.where(a < 0, dual * a, -jnp.inf), -jnp.inf)
    return -jnp.mean(jnp.maximum(gain, floor))


def k3(lp, ref):
    return jnp.exp(ref - lp) - (ref - lp) - 1


def counted(g):
    """The group's correct samples: c, and which."""
    right = g.r > 0
    return jnp.sum(jnp.where(right, 1, 0)), right


def choose(n, k):
    return float(np.prod([(n - i) / (i + 1) for i in range(k)])) if n >= k else 0.0


def grpo(g, beta=0.04):
    return ppo(g, z_score(g)) + beta * jnp.mean(k3(g.lp, g.ref))


def sapo(g):
    a, rho = z_score(g), jnp.exp(g.lp - g.old)
    tau = jnp.where(a > 0, 1.0, 1.05)
    return -jnp.mean(4 / tau * jax.nn.sigmoid(tau * (rho - 1)) * a)


def gmpo(g):
    a, log_rho = z_score(g), g.lp - g.old
    held = jnp.clip(log_rho, -0.4, 0.4)
    side = jnp.where(a > 0, jnp.minimum(log_rho, held), jnp.maximum(log_rho, held))
    return -jnp.mean(a * jnp.exp(side))


def loo(g):
    return g.r if g.size == 1 else g.r - (jnp.sum(g.r) - g.r) / (g.size - 1)


def passk_best(g, normalize=True):
    order = jnp.argsort(-g.r)
    if g.size == 1:
        return 0 * jnp.sum(g.lp)
    a = jnp.zeros(g.size).at[order[0]].set(g.r[order[0]] - g.r[order[1]])
    return ppo(g, a / (std(g.r) + 1e-6) if normalize else a, dual=3.0)


def passk_analytic(g, k):
    c, right = counted(g)
    n = g.size
    up, down = [0.0], [0.0]
    for n_right in range(1, n + 1):
        rho = 1 - choose(n - n_right, k) / choose(n, k)
        s = np.sqrt(max(rho * (1 - rho), 0))
        beside = choose(n - n_right - 1, k - 1) / choose(n - 1, k - 1)
        up.append((1 - rho) / s if s else 0.0)
        down.append((1 - rho - beside) / s if s else 0.0)
    a = jnp.where(right, jnp.array(up)[c], jnp.array(down)[c])
    return ppo(g, a, dual=3.0)


def pkpo(g, k):
    """The paper's: over all subsets of k that hold a sample, what it adds to their maximum."""
    each = []
    for i in range(g.size):
        rest, total = [j for j in range(g.size) if j != i], 0.0
        for others in itertools.combinations(rest, k - 1):
            best = jnp.max(g.r[jnp.array(others)])
            total = total + jnp.maximum(g.r[i], best) - best
        each.append(total / choose(g.size, k))
    return -jnp.sum(sg(jnp.stack(each)) * g.lp)


def asymre(g, delta=-0.1):
    return -jnp.mean((g.r - average(g.r) - delta) * g.lp)


def signed(g, positive, negative, subset=False):
    c, right = counted(g)
    a = jnp.where(right, positive * g.r, -negative)
    if subset:
        count = (c if negative == 0 else g.size - c).astype(float)
        a = jnp.where(count > 0, a * g.size / jnp.maximum(count, 1), 0)
    return ppo(g, a, dual=3.0)


def nonzero(g):
    count = jnp.sum(jnp.where(g.r != 0, 1.0, 0.0))
    a = centred(g) * g.size / jnp.maximum(count, 1)
    return -jnp.mean(g.lp * a)


def optimal(g, again=True):
    p = jnp.exp(g.table)
    rho = jnp.exp(g.lp - g.old)
    score = 1 - 2 * jnp.exp(g.lp) + jnp.sum(p**2)
    weight = rho**2 * score * (jnp.minimum(rho, 8) ** 2 if again else 1)
    a = g.r - jnp.sum(weight * g.r) / jnp.sum(weight)
    return -jnp.mean(sg(a * jnp.minimum(rho, 8)) * g.lp)


def riskpo(g):
    a, b = jnp.quantile(g.r, 0.2), jnp.quantile(g.r, 0.9)
    inside = jnp.maximum(g.r - a, 0) - jnp.maximum(g.r - b, 0) + a - b
    tail = -jnp.maximum(a - g.r, 0) / (0.2 + 1e-6)
    both = (1.5 * tail + inside / (0.7 + 1e-6)) / 2.5
    return ppo(g, both / (std(g.r) + 1e-6), dual=3.0)


def penalised(g, kind, placement="loss", beta=0.3):
    """REINFORCE with the mean baseline and a penalty, on-policy."""
    ratio = g.lp - g.ref
    terms = {
        "k1": ratio,
        "k2": ratio**2 / 2,
        "k3": k3(g.lp, g.ref),
        "abs": jnp.abs(ratio),
        "k3+": sg(k3(g.lp, g.ref)) + ratio**2 / 2 - sg(ratio**2 / 2),
        "corrected": jnp.exp(g.lp - g.old) * k3(g.lp, g.ref),
        "corrected, cut": jnp.minimum(jnp.exp(g.lp - g.old) * k3(g.lp, g.ref), 0.2),
        "live": jnp.exp(g.lp - sg(g.lp)) * k3(g.lp, g.ref),
        "live, cut": jnp.minimum(jnp.exp(g.lp - sg(g.lp)) * ratio**2 / 2, 0.1),
    }[kind]
    if placement == "loss":
        return -jnp.mean(g.lp * centred(g)) + beta * jnp.mean(terms)
    paid = sg(g.r - beta * terms)
    return -jnp.mean(g.lp * (paid - (jnp.mean(paid) if g.size > 1 else 0)))


def after(g, beta=0.3):
    """OpenRLHF: k1 subtracted from the normalised advantage."""
    return -jnp.mean(g.lp * sg(z_score(g) - beta * (g.lp - g.ref)))


def squared(g, beta):
    """VarGrad: the variance of the residual, mean subtracted with its gradient."""
    residual = g.lp - g.ref - g.r / beta
    return jnp.mean((residual - jnp.mean(residual)) ** 2)


def balance(g, beta):
    log_z = jax.nn.logsumexp(g.ref_table + g.reward_table / beta)
    return jnp.mean((log_z + g.lp - g.ref - g.r / beta) ** 2)


def gvpo(g, beta, old=False):
    ratio = g.lp - (g.old if old else g.ref)
    terms = (beta * (ratio - jnp.mean(ratio)) - (g.r - jnp.mean(g.r))) ** 2
    return jnp.sum(terms) / 2 / max(g.size - 1, 1)


def flowrl(g):
    residual = g.lp - g.ref - 15 * z_score(g)
    w = jnp.minimum(sg(jnp.exp(g.lp - g.old)), 10)
    return jnp.mean(w * (residual - sg(jnp.mean(residual))) ** 2)


def cov(g, a):
    return (a - jnp.mean(a)) * (g.lp - jnp.mean(g.lp))


def clip_cov(g):
    """The mean over all subsets of the eligible samples that the code may drop."""
    a, rho = z_score(g), jnp.exp(g.lp - g.old)
    c = sg(cov(g, a))
    clipped = jnp.where(a > 0, rho > 1.2, rho < 0.8)
    eligible = (c > -0.1) & (c < 5) & ~clipped
    number = jnp.sum(jnp.where(eligible, 1, 0))
    drop = max(int(0.5 * g.size), 1)
    terms = -jnp.where(
        a < 0,
        jnp.maximum(jnp.minimum(rho * a, jnp.clip(rho, 0.8, 1.2) * a), 3 * a),
        jnp.minimum(rho * a, jnp.clip(rho, 0.8, 1.2) * a),
    )
    total, count = 0 * jnp.sum(terms), 0.0
    for kept in itertools.product([True, False], repeat=g.size):
        dropped = ~jnp.array(kept)
        many = jnp.sum(jnp.where(dropped, 1, 0))
        possible = jnp.all(eligible | ~dropped) & (many == jnp.minimum(drop, number))
        total = total + jnp.where(possible, jnp.mean(jnp.where(dropped, 0, terms)), 0)
        count = count + jnp.where(possible, 1.0, 0.0)
    return total / count


def kl_cov(g):
    """The mean over all orders in which equal covariances may be ranked."""
    a = z_score(g)
    log_rho = g.lp - g.old
    many = max(int(0.5 * g.size), 1)
    c = np.array(0.0) + sg(cov(g, a))
    total, count = 0 * jnp.sum(log_rho), 0.0
    for chosen in itertools.combinations(range(g.size), many):
        inside = jnp.isin(jnp.arange(g.size), jnp.array(chosen))
        worst = jnp.min(jnp.where(inside, c, jnp.inf))
        best = jnp.max(jnp.where(inside, -jnp.inf, c))
        possible = worst >= best - 1e-12
        size = log_rho * sg(jnp.sign(log_rho))  # as in torch, whose |x| has slope 0 at 0
        terms = -jnp.exp(log_rho) * a + 0.1 * jnp.where(inside, size, 0)
        total = total + jnp.where(possible, jnp.mean(terms), 0)
        count = count + jnp.where(possible, 1.0, 0.0)
    return total / count


def steer(g):
    a, p = z_score(g), jnp.exp(g.lp)
    entropy = -jnp.sum(jnp.exp(g.table) * g.table)
    moved = jnp.abs(a / jnp.exp(g.old) * p * (1 - p) * (g.lp + entropy))
    k = -jnp.log(0.8) / jnp.maximum(jnp.max(moved), 0.02)
    weight = sg(jnp.exp(-k * moved))
    rho = jnp.exp(g.lp - g.old)
    gain = jnp.minimum(rho * a, jnp.clip(rho, 0.8, 1.2) * a)
    return -jnp.mean(weight * jnp.where(a < 0, jnp.maximum(gain, 3 * a), gain))


def lp_reg(g):
    """All negative samples, if there are two."""
    a, rho = z_score(g), jnp.exp(g.lp - g.old)
    p = jnp.exp(g.old_table)
    kept = jnp.where(p >= 0.5 * jnp.max(p), p, 0)
    proxy = kept / jnp.sum(kept)
    target = proxy[g.actions]
    chosen = (a < 0) & (jnp.exp(sg(g.lp)) < target) & (jnp.sum(jnp.where(a < 0, 1, 0)) > 1)
    log_target = jnp.log(jnp.where(target > 0, target, 1))
    plain = -jnp.minimum(rho * a, jnp.clip(rho, 0.0, 10.0) * a)
    return jnp.mean(jnp.where(chosen, -rho * a + k3(g.lp, log_target), plain))


def bapo(g):
    a, rho = z_score(g), jnp.exp(g.lp - g.old)
    pairs = [(0.6 + 0.05 * i, 1.2) for i in range(5)] + [
        (0.8, 1.2 + 0.05 * i) for i in range(1, 17)
    ]
    low, high, done = 0.8, 2.0, jnp.zeros((), bool)
    for lower, upper in pairs:
        up = jnp.sum(jnp.where(a > 0, jnp.minimum(rho, upper) * a, 0))
        down = -jnp.sum(jnp.where(a < 0, jnp.maximum(rho, lower) * a, 0))
        enough = up >= down
        low = jnp.where(enough & ~done, lower, low)
        high = jnp.where(enough & ~done, upper, high)
        done = done | enough
    gain = jnp.minimum(rho * a, jnp.clip(rho, sg(low), sg(high)) * a)
    return -jnp.mean(jnp.where(a < 0, jnp.maximum(gain, 3 * a), gain))


def drpo(g):
    c, right = counted(g)
    both = (c > 0) & (c < g.size)
    length = jnp.array([3.0, 1.0, 2.0])[g.actions]
    weight = jnp.where(right, jnp.exp((1 - length / 3) / 0.1), 0)
    up = jnp.sum(weight * g.lp) / jnp.where(both, jnp.sum(weight), 1)
    wrong = jnp.where(right, 0.0, jnp.exp(g.lp / 10)) / jnp.maximum(g.size - c, 1).astype(float)
    down = 10 * jnp.log(jnp.where(both, jnp.sum(wrong), 1))
    kl = -jnp.mean(g.lp - g.old)
    return jnp.where(both, down - up, 0) + 500 * jnp.maximum(kl - 1e-4, 0) ** 2


def aepo(g, share, temperature):
    """Samples weighed by t/p: the expectation of drawing them from t."""
    right = g.reward_table > 0
    aim = jax.nn.softmax(jnp.where(right, sg(g.table) / temperature, -jnp.inf))
    extra = sg(aim[g.actions] / jnp.exp(g.lp))
    return ppo(g, (1 - share) * z_score(g) + share * extra, dual=3.0)


def dcpo(g):
    right = g.r > 0
    entropy = -jnp.sum(jnp.exp(g.old_table) * g.old_table)
    x = jnp.minimum(jnp.abs(0.5 - entropy), 0.1) / jnp.maximum(
        jnp.mean(jnp.where(right, 1.0, 0.0)), 1e-9
    )
    a = jnp.where(jnp.any(right), x / (1 + x), 0)
    aim = jax.nn.softmax(g.old_table / jnp.where(entropy <= 0.5, 1.2, 0.8))
    extra = jnp.where(right, aim[g.actions] / jnp.exp(g.old), 0)
    return ppo(g, (1 - a) * z_score(g) + a * extra, dual=3.0)


def disco(g, tau=10.0, plain=False, ratio=False):
    c, right = counted(g)
    both = (c > 0) & (c < g.size)
    good, bad = (jnp.maximum(x, 1).astype(float) for x in (c, g.size - c))
    s = jnp.exp(g.lp - g.old) if ratio else g.lp
    up = jnp.sum(jnp.where(right, s, 0)) / good
    wrong = jnp.where(right, 0.0, 1.0)
    if plain:
        down = jnp.sum(wrong * s) / bad
    else:
        down = tau * jnp.log(jnp.where(both, jnp.sum(wrong * jnp.exp(s / tau)) / bad, 1))
    kl = -jnp.mean(g.lp - g.old)
    return jnp.where(both, down - up, 0) + 500 * jnp.maximum(kl - 1e-4, 0) ** 2


def pairs(g, beta, ipo=False, hard=True):
    """The mean over ordered pairs of two different samples."""
    ratio = g.lp - g.ref
    total = 0 * jnp.sum(ratio)
    for i, j in itertools.permutations(range(g.size), 2):
        gap = g.r[i] - g.r[j]
        wins = (
            jnp.where(gap == 0, 0.5, jnp.where(gap > 0, 1.0, 0.0)) if hard else jax.nn.sigmoid(gap)
        )
        d = ratio[i] - ratio[j]
        loss = (d - 0.5 / beta) ** 2 if ipo else -jax.nn.log_sigmoid(beta * d)
        total = total + 2 * wins * loss
    return total / max(g.size * (g.size - 1), 1)


def a_star_po(g, beta=0.3, value_beta=0.5):
    """TRL's regression, with the value of infinitely many samples of the reference."""
    value = value_beta * jnp.log(jnp.exp(g.ref_table) @ jnp.exp(g.reward_table / value_beta))
    return jnp.mean((beta * (g.lp - g.ref) - (g.r - value)) ** 2)


def xpo(logits, log_ref, reward, beta, alpha, ipo=False):
    """The mean over a sample of the policy and one of the reference; the policy's wins ties."""
    table = jax.nn.log_softmax(logits)
    ratio = table - log_ref
    total = 0.0
    for i, j in itertools.product(range(len(reward)), repeat=2):
        margin = beta * (ratio[i] - ratio[j])
        signed = jnp.where(reward[i] >= reward[j], margin, -margin)
        pair = -jax.nn.log_sigmoid(signed)
        if ipo:
            pair = (signed / beta - 1 / (2 * beta)) ** 2
        loss = pair + alpha * table[j]
        total = total + sg(jnp.exp(table[i])) * jnp.exp(log_ref[j]) * loss
    return total


def mpo(g, epsilon=0.1):
    """eta from the derivative of the dual, by bisection."""
    gap = g.r - jnp.max(g.r)

    def slope(x):
        e = jnp.exp(gap / jnp.exp(x))
        return epsilon + jnp.log(jnp.mean(e)) - jnp.sum(e * gap) / jnp.sum(e) / jnp.exp(x)

    low, high = jnp.array(-9.0), jnp.array(9.0)
    for _ in range(60):
        middle = (low + high) / 2
        low = jnp.where(slope(middle) < 0, middle, low)
        high = jnp.where(slope(middle) < 0, high, middle)
    e = sg(jnp.exp(gap / jnp.exp((low + high) / 2)))
    return -jnp.mean(e / jnp.mean(e) * g.lp)


def nash_md(g, beta=0.1, mix=0.5):
    opponent = jax.nn.softmax(mix * g.ref_table + (1 - mix) * sg(g.old_table))
    wins = jax.nn.sigmoid(g.r[:, None] - g.reward_table[None, :]) @ opponent
    return -jnp.mean((wins - 0.5) * g.lp - beta * sg(g.lp - g.ref) * g.lp)


def expected_update(loss, size, logits, log_old, log_ref, reward):
    """Minus the gradient, averaged over every one of the K^G groups drawn from the old policy."""
    groups = jnp.array(list(itertools.product(range(len(reward)), repeat=size)))
    chance = jnp.exp(jnp.sum(log_old[groups], axis=1))
    each = np.asarray(_updates(loss)(groups, logits, log_old, log_ref, reward))
    mean = chance @ each
    return mean, np.einsum("n,ni,nj->ij", chance, each - mean, each - mean)


@functools.cache
def _updates(loss):
    """Minus the gradient of a loss in each of many groups, as one program."""

    def one(actions, z, *tables):
        return -jax.grad(lambda z: loss(group_of(actions, z, *tables)))(z)

    return jax.jit(jax.vmap(one, in_axes=(0, None, None, None, None)))
