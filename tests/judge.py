"""The mpmath judge: targets of the alpha family at 50 digits, from the textbook formula."""

import mpmath as mp
import numpy as np
from scipy.optimize import brentq

DIGITS = 50


def alpha_target(reward, log_q, alpha, beta):
    """log p of max E_p R - beta D_alpha(p || q) as mpmath numbers (-inf where p = 0).

    p = q (u + (1 - alpha) D)^{-1/(1-alpha)} with D = (max R - R)/beta, the maximum taken over all
    actions, and log u found by bisection; mass that the support cannot place goes to
    the best actions off it.
    """
    with mp.workdps(DIGITS + 10):
        reward = [_exact(x) for x in reward]
        log_q = [None if x == -np.inf else _exact(x) for x in log_q]
        support = [i for i, x in enumerate(log_q) if x is not None]
        log_z = mp.log(sum(mp.exp(log_q[i]) for i in support))
        log_q = [None if x is None else x - log_z for x in log_q]
        k = 1 - _exact(alpha)
        beta = _exact(beta)
        within = support if k <= 0 else range(len(reward))
        best = max(reward[i] for i in within)
        gap = [(best - r) / beta for r in reward]

        def log_p_at(log_u):
            out = []
            for i in support:
                base = mp.exp(log_u) + k * gap[i]
                out.append(log_q[i] - mp.log(base) / k if base > 0 else -mp.inf)
            return out

        def log_mass(log_u):
            return mp.log(mp.fsum(mp.exp(x) for x in log_p_at(log_u)))

        result = [-mp.inf] * len(reward)
        if k == 0:
            weights = {i: log_q[i] - gap[i] for i in support}
            total = mp.log(mp.fsum(mp.exp(w) for w in weights.values()))
            for i, w in weights.items():
                result[i] = w - total
            return result
        if k > 0 and all(gap[i] > 0 for i in support):
            placed = [log_q[i] - mp.log(k * gap[i]) / k for i in support]
            mass = mp.fsum(mp.exp(x) for x in placed)
            if mass < 1:
                for i, x in zip(support, placed, strict=True):
                    result[i] = x
                entrants = [i for i in within if gap[i] == 0]
                for i in entrants:
                    result[i] = mp.log((1 - mass) / len(entrants))
                return result
        if max(gap[i] for i in support) == 0:
            log_u = mp.mpf(0)
        else:
            log_u = _bracketed_root(log_mass, k, gap, log_q, support)
        for i, x in zip(support, log_p_at(log_u), strict=True):
            result[i] = x
        return result


def _exact(x):
    return x if isinstance(x, mp.mpf) else mp.mpf(float(x))


def _bracketed_root(log_mass, k, gap, log_q, support):
    """The log u at which the mass is 1; the mass falls with log u for k > 0 and rises for k < 0."""
    smallest = min(gap[i] for i in support)
    near = [i for i in support if gap[i] == smallest]
    log_best = mp.log(mp.fsum(mp.exp(log_q[i]) for i in near))
    if k < 0:
        low, high = mp.mpf(0), -log_best * -k
    else:
        low, high = k * log_best, mp.mpf(0)
        if smallest > 0:
            low = -(mp.mpf(10) ** 4)
    sign = -1 if k > 0 else 1
    for _ in range(240):
        middle = (low + high) / 2
        if sign * log_mass(middle) > 0:
            high = middle
        else:
            low = middle
    return (low + high) / 2


def total_variation(log_p, exact):
    """Half the sum of |p - exact| in mpmath."""
    with mp.workdps(DIGITS):
        pairs = zip(log_p, exact, strict=True)
        return float(mp.fsum(abs(mp.exp(_exact(a)) - mp.exp(b)) for a, b in pairs) / 2)


def log_error(log_p, exact):
    """Largest error of log p relative to max(1, |log p|) where both are positive."""
    with mp.workdps(DIGITS):
        errors = [
            abs(_exact(a) - b) / max(1, abs(b))
            for a, b in zip(log_p, exact, strict=True)
            if not (mp.isinf(b) or np.isneginf(float(a)))
        ]
        return float(max(errors, default=0))


def divergence(log_p, log_q, alpha):
    """D_alpha(p || q) at 50 digits from its definition; alpha may be 0 or 1."""
    with mp.workdps(DIGITS):
        p, q = ([mp.exp(_exact(x)) for x in law] for law in (log_p, log_q))
        a = _exact(alpha)
        if a == 1:
            return mp.fsum(x * mp.log(x / y) - x + y for x, y in zip(p, q, strict=True))
        if a == 0:
            return mp.fsum(y * mp.log(y / x) - y + x for x, y in zip(p, q, strict=True))
        return mp.fsum(
            y * ((x / y) ** a - a * x / y + a - 1) for x, y in zip(p, q, strict=True)
        ) / (a * (a - 1))


def mixed_target(reward, terms, guess):
    """log p of max E_p R - sum_t beta_t D_t(p || q_t), each term (slope in mpmath, beta, log q).

    Two nested searches on the stationarity conditions, at as many digits as the anchors are deep.
    Every anchor must hold every action. The guess only says where the searches start: they are
    bracketed by limits that do not depend on it.
    """
    deepest = max(abs(float(x)) for _, _, log_q in terms for x in log_q)
    with mp.workdps(DIGITS + 20 + int(1.5 * deepest)):
        reward = [_exact(x) for x in reward]
        terms = [(slope, _exact(beta), [_exact(x) for x in log_q]) for slope, beta, log_q in terms]
        best = max(range(len(reward)), key=lambda i: reward[i])
        floor = mp.mpf(-(10**10))

        def cost(log_p, i):
            return mp.fsum(b * slope(mp.exp(log_p - log_q[i])) for slope, b, log_q in terms)

        def log_p_at(s):
            level = cost(s, best)
            out = []
            for i, r in enumerate(reward):
                wanted = level - (reward[best] - r)
                if cost(floor, i) >= wanted:
                    out.append(-mp.inf)
                else:
                    start = max(mp.mpf(float(guess[i])), floor / 2)
                    out.append(
                        _root(lambda x, i=i, w=wanted: cost(x, i) - w, floor, s + 3000, start)
                    )
            return out

        start = mp.mpf(float(guess[best]))
        s = _root(lambda s: mp.log(mp.fsum(mp.exp(x) for x in log_p_at(s))), -1500, 0, start)
        return log_p_at(s)


def family_target(reward, log_q, beta, slope, log_inverse):
    """log p of max E_p R - beta D_f(p || q) from f' and its inverse, at 50 digits."""
    deepest = max(abs(float(x)) for x in log_q)
    with mp.workdps(DIGITS + 20 + int(1.5 * deepest)):
        reward, log_q = [_exact(x) for x in reward], [_exact(x) for x in log_q]
        best = max(range(len(reward)), key=lambda i: reward[i])
        gap = [(reward[best] - r) / _exact(beta) for r in reward]

        def log_p_at(log_p):
            level = slope(mp.exp(log_p - log_q[best]))
            pairs = zip(log_q, gap, strict=True)
            return [x + log_inverse(level - g) if g else x - log_q[best] + log_p for x, g in pairs]

        def log_mass(log_p):
            return mp.log(mp.fsum(mp.exp(x) for x in log_p_at(log_p)))

        return log_p_at(_root(log_mass, log_q[best] - 1, 0, mp.mpf(0)))


def _root(f, low, high, start):
    """A root of an increasing f by Newton steps with numerical slopes inside a bracket."""
    low, high = mp.mpf(low), mp.mpf(high)
    if f(high) <= 0:
        return high
    x, h, before = start, mp.mpf(10) ** (-(mp.mp.dps // 3)), mp.inf
    for count in range(900):
        value = f(x)
        if value > 0:
            high = x
        else:
            low = x
        slope = (f(x + h) - value) / h
        new = x - value / slope if slope > 0 else low
        halves = abs(value) < before / 2 and count % 8 < 7  # else the bracket does
        newton = low < new < high and halves
        before = abs(value) if newton else mp.inf
        x, old = (new if newton else (low + high) / 2), x
        step = abs(x - old) if newton else high - low
        if value == 0 or step < mp.mpf(10) ** (-DIGITS) * (1 + abs(x)):
            return old if value == 0 else x
    raise ArithmeticError("no root found")


def alpha_slope(alpha):
    """f' of the alpha family in mpmath."""
    a = mp.mpf(alpha) - 1
    return (lambda t: mp.log(t)) if a == 0 else (lambda t: (t**a - 1) / a)


def js_slope(t):
    """f' of Jensen-Shannon in mpmath."""
    return mp.log(2 * t / (1 + t)) / 2


def js_log_inverse(x):
    """log of the inverse of f' of Jensen-Shannon."""
    return 2 * x - mp.log(2 - mp.exp(2 * x))


def float_target(reward, q, alpha, beta):
    """p of max E_p R - beta D_alpha(p || q) in floats: scipy's brentq on the sum of p."""
    reward, q = np.asarray(reward, float), np.asarray(q, float)
    allowed = np.isfinite(reward)
    support, k = allowed & (q > 0), 1 - alpha
    p, r = np.zeros_like(q), np.where(allowed, reward, 0)
    top = r[allowed if k > 0 else support].max()
    gap = (top - r) / beta
    if k == 0:
        p[support] = q[support] * np.exp(-gap[support])
        return p / p.sum()

    def law(v):  # v = log of the distance of the pole, or the level, from the best reward
        at = np.exp(v) + gap[support] if k > 0 else np.maximum(np.exp(v) - gap[support], 0)
        return q[support] * (abs(k) * at) ** (-1 / k)

    entrants = allowed & (q == 0) & (r == top) & (k > 0) & ~np.any(support & (r == top))
    if np.any(entrants) and law(-np.inf).sum() < 1:
        p[support] = law(-np.inf)
        p[entrants] = (1 - p.sum()) / entrants.sum()
        return p
    p[support] = law(brentq(lambda v: np.log(max(law(v).sum(), 1e-300)), -80, 80, xtol=1e-15))
    return p / p.sum()
