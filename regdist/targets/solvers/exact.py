"""Optima of one term in ball arithmetic, from exact numbers.

K is the number of actions, q the anchor, t = p/q.
"""

from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple, Protocol

from regdist.numerics import balls
from regdist.numerics.balls import Ball, ball

Reward = Fraction | None
"""A reward; None forbids its action."""


class Weights(NamedTuple):
    """The anchor, q_i = c_i e^{l_i}, divided by their sum if it is `normalized`."""

    factor: tuple[Fraction, ...]
    exponent: tuple[Fraction, ...]
    normalized: bool

    def logs(self) -> list[Ball]:
        """log q_i, exactly -inf where it is 0."""
        logs = [
            ball(c).log() + ball(x) if c else balls.nothing()
            for c, x in zip(self.factor, self.exponent, strict=True)
        ]
        if not self.normalized:
            return logs
        log_sum = balls.log_sum(logs)
        return [x if balls.is_nothing(x) else x - log_sum for x in logs]

    def makes_one(self, ratio: dict[int, Fraction]) -> bool:
        """Whether sum_i q_i t_i over these actions is exactly 1, for rational t_i.

        Exponentials of different rationals are independent over the rationals (Lindemann and
        Weierstrass): those of each exponent must balance.
        """
        excess: dict[Fraction, Fraction] = {} if self.normalized else {Fraction(0): Fraction(-1)}
        for i, (c, x) in enumerate(zip(self.factor, self.exponent, strict=True)):
            more = ratio.get(i, Fraction(0)) - (1 if self.normalized else 0)
            excess[x] = excess.get(x, Fraction(0)) + c * more
        return not any(excess.values())


class Exact(Protocol):
    """A problem whose optimum balls enclose."""

    def solve(self) -> list[Ball]:
        """log p in balls of the working precision, exactly -inf where p is 0, exactly 0 where 1.

        Raises:
            UnresolvedError: that takes more bits.
            ValueError: the optimum is not unique, or there is none.
        """
        ...


class Tilt(NamedTuple):
    """Reverse KL to one or several anchors: p proportional to prod_t q_t^{b_t/b} e^{R/b}."""

    reward: tuple[Reward, ...]
    terms: tuple[tuple[Fraction, Weights], ...]

    def solve(self) -> list[Ball]:
        total = sum((beta for beta, _ in self.terms), Fraction(0))
        if total <= 0:
            raise ValueError(
                "no optimum is known: an anchor that follows the policy at a temperature of at "
                "most 1 outweighs the other terms"
            )
        logs = [weights.logs() for _, weights in self.terms]
        out = []
        for i, reward in enumerate(self.reward):
            rows = [row[i] for row in logs]
            if reward is None or any(map(balls.is_nothing, rows)):
                out.append(balls.nothing())
            else:
                pairs = zip(self.terms, rows, strict=True)
                pooled = balls.total([ball(beta / total) * x for (beta, _), x in pairs])
                out.append(pooled + ball(reward / total))
        kept = [i for i, x in enumerate(out) if not balls.is_nothing(x)]
        _check_some(kept)
        log_z = balls.log_sum(out)
        return _spread({i: out[i] - log_z for i in kept}, len(out))


class Moved(NamedTuple):
    """Total variation: mass goes to the best action from all more than beta below it."""

    reward: tuple[Reward, ...]
    beta: Fraction
    weights: Weights

    def solve(self) -> list[Ball]:
        logs = self.weights.logs()
        best = max(r for r in self.reward if r is not None)
        top = [i for i, r in enumerate(self.reward) if r == best]
        kept, moved = {}, []
        for i, reward in enumerate(self.reward):
            if balls.is_nothing(logs[i]):
                continue
            if reward is not None and best - reward == self.beta:
                raise ValueError(
                    f"the optimum is not unique: action {i} is exactly beta below the best, so "
                    "that any part of its mass may move there"
                )
            if reward is None or best - reward > self.beta:
                moved.append(logs[i])
            else:
                kept[i] = logs[i]
        if moved and len(top) > 1:
            raise ValueError(
                f"the optimum is not unique: the best actions {top} tie, and the mass that leaves "
                "the others may be shared among them in any way"
            )
        if moved:
            kept[top[0]] = balls.log_sum([*moved, logs[top[0]]])
        return _spread(kept, len(logs))


class Curve(Protocol):
    """A strictly convex divergence in terms of y.

    y is the log of the distance of the best action's f' from an end of its range, in units in which
    t of every action is simple.
    """

    bounded: bool
    """Whether f' is bounded above, so that mass may leave the support."""
    sparse: bool
    """Whether f' is bounded below, so that p may be 0 on the support; then t grows with y."""

    def ratio(self, y: Ball, gap: Ball) -> tuple[Ball, Ball]:
        """Log t, and its slope in y, of an action by its gap below the best, over beta."""
        ...

    def edge_ratio(self, distance: Fraction) -> Ball:
        """Log t of an action at a distance in (reward over beta) from one at the end of f'."""
        ...

    def rational_edge_ratio(self, distance: Fraction) -> Fraction | None:
        """That t as a fraction, where it is one."""
        ...

    def ends(self, log_best: Ball, log_all: Ball) -> tuple[Ball, Ball]:
        """Two y that hold the root, from log q of the best action and of all."""
        ...


class AlphaCurve(NamedTuple):
    """The alpha family, power = alpha - 1: t = (e^y - power gap)^{1/power}."""

    power: Fraction

    @property
    def bounded(self) -> bool:
        return self.power < 0

    @property
    def sparse(self) -> bool:
        return self.power > 0

    def ratio(self, y: Ball, gap: Ball) -> tuple[Ball, Ball]:
        room, power = y.exp(), ball(self.power)
        left = room - power * gap
        return left.log() / power, room / (left * power)

    def edge_ratio(self, distance: Fraction) -> Ball:
        return ball(abs(self.power) * distance).log() / ball(self.power)

    def rational_edge_ratio(self, distance: Fraction) -> Fraction | None:
        exponent = 1 / self.power
        if exponent.denominator > 1 or abs(exponent) > 64:  # the fractions would be long
            return None
        return (abs(self.power) * distance) ** int(exponent)

    def ends(self, log_best: Ball, log_all: Ball) -> tuple[Ball, Ball]:
        k = -ball(self.power)
        return _ordered(k * log_best, k * log_all)


class JensenShannonCurve(NamedTuple):
    """f' = log(2t/(1 + t))/2: t = 1/(e^{y + 2 gap} + e^{2 gap} - 1)."""

    @property
    def bounded(self) -> bool:
        return True

    @property
    def sparse(self) -> bool:
        return False

    def ratio(self, y: Ball, gap: Ball) -> tuple[Ball, Ball]:
        room = y.exp()
        left = room - (-2 * gap).expm1()
        return -2 * gap - left.log(), -room / left

    def edge_ratio(self, distance: Fraction) -> Ball:
        d = ball(2 * distance)
        return -d - (-(-d).expm1()).log()

    def rational_edge_ratio(self, distance: Fraction) -> Fraction | None:
        return None

    def ends(self, log_best: Ball, log_all: Ball) -> tuple[Ball, Ball]:
        return _ordered(log_best, log_all)


def _ordered(a: Ball, b: Ball) -> tuple[Ball, Ball]:
    """Two ends in order, and room around them."""
    low, high = (a, b) if a.mid() < b.mid() else (b, a)
    return low - 1, high + 1


class Curved(NamedTuple):
    """One strictly convex divergence to one anchor, by one root."""

    reward: tuple[Reward, ...]
    beta: Fraction
    weights: Weights
    curve: AlphaCurve | JensenShannonCurve

    def solve(self) -> list[Ball]:
        log_q = self.weights.logs()
        rewards = {i: r for i, r in enumerate(self.reward) if r is not None}
        active = {i: r for i, r in rewards.items() if not balls.is_nothing(log_q[i])}
        _check_some(active)
        best = max(active.values())
        if self.curve.bounded:
            off = {i: r for i, r in rewards.items() if i not in active}
            lead = max(off.values(), default=best)
            if lead > best:
                mass, excess = self._edge(log_q, active, lead)
                if excess <= 0:
                    entrants = [i for i, r in off.items() if r == lead] if excess else []
                    return self._entered(log_q, active, lead, mass, entrants)
        if self.curve.sparse:
            active = self._support(log_q, active)
        if len(active) == 1:
            return _spread(dict.fromkeys(active, ball(0)), len(log_q))
        gap = {i: ball((best - r) / self.beta) for i, r in active.items()}

        def laws(y: Ball) -> tuple[dict[int, Ball], list[Ball]]:
            ratios = {i: self.curve.ratio(y, g) for i, g in gap.items()}
            return {i: log_q[i] + r for i, (r, _) in ratios.items()}, [
                slope for _, slope in ratios.values()
            ]

        def log_mass(y: Ball) -> tuple[Ball, Ball]:
            log_p, slopes = laws(y)
            mass = balls.log_sum(list(log_p.values()))
            pairs = zip(log_p.values(), slopes, strict=True)
            slope = balls.total([(x - mass).exp() * s for x, s in pairs])
            return (-mass, -slope) if self.curve.sparse else (mass, slope)

        tied = balls.log_sum([log_q[i] for i, r in active.items() if r == best])
        low, high = self.curve.ends(tied, balls.log_sum([log_q[i] for i in active]))
        if self.curve.sparse:
            widest = (best - min(active.values())) / self.beta
            edge = (ball(self.curve.power) * ball(widest)).log() if widest else low  # type: ignore[union-attr]
            low = edge if edge > low else low
        return _spread(laws(balls.falling_root(log_mass, low, high))[0], len(log_q))

    def _edge(
        self, log_q: list[Ball], actions: dict[int, Fraction], edge: Fraction
    ) -> tuple[Ball, int]:
        """The mass of actions when f' of this reward is at its end; the sign of mass - 1."""
        distance = {i: abs(r - edge) / self.beta for i, r in actions.items()}
        logs = [log_q[i] + self.curve.edge_ratio(d) for i, d in distance.items()]
        mass = balls.log_sum(logs).exp()
        if not (mass < 1 or mass > 1):
            exact = {i: self.curve.rational_edge_ratio(d) for i, d in distance.items()}
            known = {i: t for i, t in exact.items() if t is not None}
            if len(known) == len(exact) and self.weights.makes_one(known):
                return ball(1), 0
        return mass, balls.sign(mass - 1)

    def _support(self, log_q: list[Ball], active: dict[int, Fraction]) -> dict[int, Fraction]:
        """The actions with p > 0: those at whose edge the better ones hold less than 1."""
        for level in sorted(set(active.values()), reverse=True)[1:]:
            better = {i: r for i, r in active.items() if r > level}
            if self._edge(log_q, better, level)[1] >= 0:
                return better
        return active

    def _entered(
        self,
        log_q: list[Ball],
        active: dict[int, Fraction],
        lead: Fraction,
        mass: Ball,
        entrants: Sequence[int],
    ) -> list[Ball]:
        """The law when mass leaves the support for the best action off it."""
        if len(entrants) > 1:
            raise ValueError(
                f"the optimum is not unique: actions {list(entrants)} off the support tie for the "
                "mass that leaves it"
            )
        found = {
            i: log_q[i] + self.curve.edge_ratio((lead - r) / self.beta) for i, r in active.items()
        }
        found.update({i: (1 - mass).log() for i in entrants})
        return _spread(found, len(log_q))


def _check_some(active: object) -> None:
    if not active:
        raise ValueError("there is no optimum: the anchor excludes every action that is allowed")


def _spread(found: dict[int, Ball], size: int) -> list[Ball]:
    """A law over all actions; one that is alone has probability exactly 1."""
    if len(found) == 1:
        found = dict.fromkeys(found, ball(0))
    return [found.get(i, balls.nothing()) for i in range(size)]
