"""Transforms: a problem to a problem. They may change the reward, the reference, or both.

Every function takes a `Bandit` as its first argument and returns one with the same actions and
labels, so that transforms compose. K is the number of actions.
"""

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from regdist.metrics import label_log_probs
from regdist.numerics.logspace import log_sum_exp, normalize
from regdist.numerics.records import (
    Number,
    Table,
    as_array,
    check_actions,
    check_choice,
    check_log_probs,
    is_concrete,
    looks_like_probabilities,
    warn_if_cut,
)
from regdist.policies import laws
from regdist.problems.bandit import Bandit, check_reward, takes_bandit
from regdist.regularizers.divergence import KL
from regdist.regularizers.regularizer import Regularizer, check_regularizer


@takes_bandit
def with_reward(bandit: Bandit, reward: Table) -> Bandit:
    """The same problem with another reward, shape [K].

    Raises:
        ValueError: another shape, NaN or +inf, or every action of the reference is forbidden.

    Examples:
        >>> b = rd.transform.with_reward(rd.bandit([1.0, 0.0], [0.3, 0.7]), [0.0, 2.0])
        >>> print(b.reward)
        [0. 2.]
    """
    row = _row("reward", reward, bandit)
    if is_concrete(row, bandit):
        check_reward(np.asarray(row), np.asarray(bandit.log_ref))
    return Bandit(row, bandit.log_ref, bandit.label)


@takes_bandit
def with_reference(bandit: Bandit, log_reference: Table) -> Bandit:
    """The same problem with another reference: log-probabilities, shape [K].

    With `rd.laws` this tempers, filters or mixes the reference:

    Examples:
        >>> b = rd.bandit([1.0, 0.0, 0.0], [0.3, 0.6, 0.1])
        >>> print(jnp.exp(rd.transform.with_reference(b, rd.laws.min_p(b.log_ref, 0.5)).log_ref))
        [0.333... 0.666... 0.        ]
    """
    row = _row("log_reference", log_reference, bandit)
    if is_concrete(row) and looks_like_probabilities(np.asarray(row)) and bandit.num_actions > 1:
        raise ValueError(
            "log_reference must be log-probabilities in nats; these look like probabilities: give "
            "their logarithms"
        )
    log_q = normalize(row)
    return Bandit(bandit.reward, log_q, bandit.label)


@takes_bandit
def temper(bandit: Bandit, temperature: Number) -> Bandit:
    """The reference at another temperature: q^{1/T}, normalized. See `rd.laws.temper`."""
    return with_reference(bandit, laws.temper(bandit.log_ref, temperature))


@takes_bandit
def nucleus(bandit: Bandit, mass: Number) -> Bandit:
    """The reference cut to its smallest set of likeliest actions that holds `mass`.

    See `rd.laws.nucleus` (arXiv 1904.09751).
    """
    return with_reference(bandit, laws.nucleus(bandit.log_ref, mass))


@takes_bandit
def min_p(bandit: Bandit, fraction: Number) -> Bandit:
    """The reference cut to actions at least `fraction` times as likely as the likeliest.

    See `rd.laws.min_p` (arXiv 2407.01082).
    """
    return with_reference(bandit, laws.min_p(bandit.log_ref, fraction))


@takes_bandit
def verify(bandit: Bandit, threshold: Number) -> Bandit:
    """A verifier: reward 1 where R >= threshold, else 0. Forbidden actions stay forbidden.

    Examples:
        >>> print(verify(rd.bandit([0.2, 0.9, 0.7]), 0.7).reward)
        [0. 1. 1.]
    """
    tau = _scalar("threshold", threshold, bandit)
    if is_concrete(tau) and np.any(np.isnan(np.asarray(tau))):
        raise ValueError("threshold must be a number; got NaN")
    passed = (bandit.reward >= tau).astype(bandit.reward.dtype)
    return with_reward(bandit, jnp.where(jnp.isneginf(bandit.reward), -jnp.inf, passed))


@takes_bandit
def typicality_bias(bandit: Bandit, weight: Number) -> Bandit:
    """R + weight log q: raters who like what is typical (arXiv 2510.01171).

    The reverse-KL target becomes proportional to q^{1 + weight/beta} e^{R/beta}: the reference
    sharpened. Actions off the support get reward -inf.

    Examples:
        >>> b = rd.bandit([0.0, 0.0], [0.8, 0.2])
        >>> print(rd.target(typicality_bias(b, 0.5), rd.ReverseKL(0.5)).probs.round(4))  # q^2
        [0.9412 0.0588]
    """
    return condition(bandit, bandit.log_ref, weight)


@takes_bandit
def condition(bandit: Bandit, log_likelihood: Table, weight: Number = 1.0) -> Bandit:
    """R + weight log P(c | y): conditioning on an event c with guidance weight (2406.12120).

    With rewards 0 and beta = 1 the reverse-KL target is q P(c|y)^weight, normalized: at
    weight 1 Bayes' posterior. Where the likelihood is 0 the action is forbidden.

    Args:
        bandit: the problem.
        log_likelihood: log P(c | y), shape [K]; -inf allowed.
        weight: the guidance weight.
    """
    w = _scalar("weight", weight, bandit)
    log_l = _row("log_likelihood", log_likelihood, bandit)
    never = jnp.isneginf(log_l) & (w != 0)
    gain = jnp.where(jnp.isneginf(log_l), 0, log_l) * w
    return with_reward(bandit, jnp.where(never, -jnp.inf, bandit.reward + gain))


@takes_bandit
def scalarize(bandit: Bandit, rewards: Table, weights: Table) -> Bandit:
    r"""One reward from several: sum_m weights_m rewards_m.

    $$\tilde R_i = \sum_m w_m R_{m i}$$

    The reverse-KL target is q e^{sum w_m R_m/beta}. An action that is the argmax of no weighting
    still has positive probability under all of them.

    Args:
        bandit: the problem; its own reward is replaced.
        rewards: shape [M, K].
        weights: shape [M].

    Examples:
        >>> b = rd.bandit([0.0, 0.0, 0.0])
        >>> print(scalarize(b, [[1.0, 0.0, 0.4], [0.0, 1.0, 0.4]], [0.5, 0.5]).reward)
        [0.5 0.5 0.4]
    """
    table, w = _rows("rewards", rewards, "weights", weights, bandit)
    return with_reward(bandit, jnp.sum(w[:, None] * table, axis=0))


@takes_bandit
def lagrangian(bandit: Bandit, costs: Table, multipliers: Table, limits: Table = 0.0) -> Bandit:
    r"""R - sum_m multipliers_m (costs_m - limits_m): constraints priced into the reward.

    $$\tilde R_i = R_i - \sum_m \mu_m (c_{m i} - \ell_m)$$

    `rd.constrained` finds the multipliers that keep E_p costs_m <= limits_m (arXiv 2310.04373).

    Args:
        bandit: the problem.
        costs: shape [M, K].
        multipliers: prices >= 0 for upper limits, shape [M].
        limits: shape [M]; they shift all rewards alike and so do not change any target.
    """
    table, prices = _rows("costs", costs, "multipliers", multipliers, bandit)
    bound = as_array("limits", limits, table.dtype)
    if bound.ndim and bound.shape != prices.shape:
        raise ValueError(f"limits must have shape {prices.shape}; got {bound.shape}")
    above = table - jnp.broadcast_to(bound, prices.shape)[:, None]
    return with_reward(bandit, bandit.reward - jnp.sum(prices[:, None] * above, axis=0))


@takes_bandit
def length_penalty(
    bandit: Bandit, length: Table, weight: Number, beyond: Number | None = None
) -> Bandit:
    """R - weight length: a price per token, shape [K]. Any other cost per action goes the same way.

    With `beyond` it is of the tokens after so many, R - weight max(length - beyond, 0). DAPO's soft
    punishment of overlong answers, as verl's reward manager has it, is the weight factor/buffer
    beyond most - buffer tokens (arXiv 2503.14476: factor 1, and no more than it).

    Examples:
        >>> print(length_penalty(rd.bandit([1.0, 1.0]), [10, 20], 0.01).reward)
        [0.9 0.8]
        >>> print(length_penalty(rd.bandit([1.0, 1.0]), [10, 20], 1.0 / 4, beyond=20 - 4).reward)
        [1. 0.]
    """
    w, counted = _scalar("weight", weight, bandit), _row("length", length, bandit)
    if beyond is not None:
        counted = jnp.maximum(counted - _scalar("beyond", beyond, bandit), 0)
    return with_reward(bandit, bandit.reward - w * counted)


@takes_bandit
def entropy_penalty(bandit: Bandit, weight: Number, log_p: Table | None = None) -> Bandit:
    """R - weight (-log p(y)): each action pays for its surprisal; in the mean weight H(p).

    With p the reference (the default) a positive weight is a typicality bias and a negative one an
    exploration bonus that flattens the reference. With p the policy held fixed it is the entropy
    term of a reward-shaped update. Actions with p = 0 are forbidden.

    Args:
        bandit: the problem.
        weight: positive to penalize, negative for a bonus.
        log_p: whose surprisal, shape [K]; default the reference.
    """
    law = _whose(bandit, log_p, "rd.transform.entropy_penalty(bandit, weight, log_p)")
    return condition(bandit, law, weight)


@takes_bandit
def cluster_mass(bandit: Bandit, weight: Number = 1.0, log_p: Table | None = None) -> Bandit:
    r"""R + weight p(answer of y): how likely the policy is to give the same answer (its label).

    $$\tilde R_i = R_i + w \sum_{j: a_j = a_i} p_j$$

    With rewards 0 it is self-labeled training: soft majority voting, right or wrong.

    Args:
        bandit: the problem; labels say which actions give the same answer.
        weight: of the mass, which lies between 0 and 1.
        log_p: whose answers, shape [K]; default the reference.

    Examples:
        >>> b = rd.bandit([0.0, 0.0, 0.0], [0.3, 0.3, 0.4], label=[0, 0, 1])
        >>> print(cluster_mass(b).reward)
        [0.6 0.6 0.4]
    """
    law = _whose(bandit, log_p, "rd.transform.cluster_mass(bandit, weight, log_p)")
    mass = jnp.exp(label_log_probs(law, bandit.label))[bandit.label]
    return with_reward(bandit, bandit.reward + _scalar("weight", weight, bandit) * mass)


@takes_bandit
def mara(
    bandit: Bandit,
    regularizer: Regularizer,
    threshold: Number,
    form: str = "reward",
    *,
    over: str = "actions",
    anchor: str | int | Int[Array, ""] = "reference",
) -> Bandit:
    r"""Mode-anchored reward augmentation: all good actions, or all good answers, alike.

    $$\tilde R_i = R_z + \beta \log\frac{q_z}{q_i} \;\; \text{if } R_i \ge \tau, \text{ else } R_i$$

    Good actions are those with R >= threshold that the reference can take; z is one of them, the
    anchor (arXiv 2510.20817). With q the reference and beta the coefficient of the term that is
    held to it:

    - form "reward": good actions get R(z) + beta (log q(z) - log q(y)), the others keep R. The
      reverse-KL target is then flat over the good actions, at the level of z; with an entropy
      bonus beside it too. Under forward KL it is *not* flat.
    - form "substitute": good actions get the reward R(z) and the reference q(z), which is then
      normalized. Every divergence to the reference has a flat target. The paper leaves the
      reference unnormalized: for reverse KL this changes nothing, for forward KL it multiplies
      beta by the sum.

    Flat over actions, an answer counts as often as it has good forms. Over "answers" (labels; not
    from the paper) q is replaced by m, the mass of the good forms of an answer:

    $$\tilde R_i = R_z + \beta \log\frac{m_z}{m_{a(i)}}, \quad
    m_a = \sum_{a_j = a, R_j \ge \tau} q_j$$

    All good answers then have the same mass, and the good forms of one answer the odds of the
    reference. R_z = beta log(sum q e^{R/beta} / m_z) over the good forms of z's answer, their
    common reward if they have one: under reverse KL that answer keeps its odds to all that is not
    good. What is flat in which form is as above; with an entropy bonus a the m are sums of
    q^{b/(a + b)}, as forms have these odds under the target, and the bonus has the coefficient
    a + b. A form of a good answer that is below the threshold is not good and keeps R.

    Args:
        bandit: the problem.
        regularizer: what the problem is to be solved with; its beta is used.
        threshold: tau, a reward; for a quantile of the reward law under the reference pass
            `rd.metrics.quantile(bandit.log_ref, bandit.reward, level)`.
        form: "reward" or "substitute".
        over: "actions", as published, or "answers".
        anchor: "reference" for the good action with the largest q, as published; "target" for the
            one with the largest log q + R/beta, the likeliest under the reverse-KL target; or an
            action's index. Over answers: the one with the largest m, the one with the largest
            sum of q e^{R/beta}, or that of the action.

    Raises:
        ValueError: the threshold is above every reward, an unknown form or anchor, or no term of
            the regularizer is held to the reference.

    Examples:
        >>> b = rd.bandit([1.0, 1.0, 0.0], [0.6, 0.1, 0.3])
        >>> print(rd.target(mara(b, rd.ReverseKL(0.5), 1.0), rd.ReverseKL(0.5)).probs.round(4))
        [0.4836 0.4836 0.0327]
        >>> b = rd.bandit([1.0, 1.0, 1.0, 0.0], [0.4, 0.2, 0.1, 0.3], label=[0, 0, 1, 2])
        >>> flat = mara(b, rd.ReverseKL(0.5), 1.0, over="answers")
        >>> print(rd.target(flat, rd.ReverseKL(0.5)).probs.round(4))  # 2/3 + 1/3 against 1
        [0.3224 0.1612 0.4836 0.0327]
    """
    check_regularizer(regularizer)
    check_choice("form", form, ("reward", "substitute"), "rd.mara")
    check_choice("over", over, ("actions", "answers"), "rd.mara")
    reward, log_q = bandit.reward, bandit.log_ref
    tau = _scalar("threshold", threshold, bandit)
    good = (reward >= tau) & ~jnp.isneginf(log_q)
    if is_concrete(good) and not np.any(np.asarray(good)):
        reachable = jnp.max(jnp.where(jnp.isneginf(log_q), -jnp.inf, reward))
        raise ValueError(
            f"threshold must not be above every reward that the reference can reach, or there is "
            f"no anchor; got {float(tau):.6g} with a largest reward of {float(reachable):.6g}. "
            "For a quantile use rd.metrics.quantile(bandit.log_ref, bandit.reward, level)"
        )
    held = _held_to_reference(regularizer).astype(reward.dtype)
    if isinstance(anchor, str):
        check_choice("anchor", anchor, ("reference", "target"), "rd.mara (or an index)")
    else:
        check_actions("anchor", anchor, bandit.num_actions)
        if is_concrete(anchor, good) and not good[anchor]:
            raise ValueError(
                f"anchor must be a good action; action {int(anchor)} is below the threshold"
            )
    if over == "answers":
        level, gain, total = _level_of_answers(bandit, regularizer, held, good, anchor)
    else:
        safe = jnp.where(good, reward, 0)
        score = log_q if anchor == "reference" else log_q + safe / held
        named = not isinstance(anchor, str)
        z = jnp.asarray(anchor) if named else jnp.argmax(jnp.where(good, score, -jnp.inf))
        level, gain, total = reward[z], log_q[z] - jnp.where(good, log_q, 0), held
    if form == "reward":
        return with_reward(bandit, jnp.where(good, level + total * gain, reward))
    flat = with_reward(bandit, jnp.where(good, level, reward))
    shifted = jnp.where(good, log_q, 0) + total / held * gain
    return with_reference(flat, jnp.where(good, shifted, log_q))


def _level_of_answers(
    bandit: Bandit,
    regularizer: Regularizer,
    held: Array,
    good: Array,
    anchor: str | int | Int[Array, ""],
) -> tuple[Array, Array, Array]:
    """R_z, log m_z - log m of each action's answer (0 if it is not good), and the coefficient.

    A sum of reverse KLs and entropies counts as the one reverse KL that it merges into.
    """
    reward, label = bandit.reward, bandit.label
    merged = regularizer.reduce(bandit.log_ref)[0] if regularizer.merges() else None
    total = held if merged is None else merged.beta
    log_w = jnp.where(good, bandit.log_ref if merged is None else merged.log_anchor, -jnp.inf)
    top = jnp.max(jnp.where(good, reward, -jnp.inf))
    tilt = jnp.where(good, jnp.where(good, reward, 0) - top, 0) / total
    log_m = label_log_probs(normalize(log_w), label)
    log_tilted = label_log_probs(normalize(log_w + tilt), label)
    if isinstance(anchor, str):
        z = jnp.argmax(log_m if anchor == "reference" else log_tilted)
    else:
        z = label[jnp.asarray(anchor)]
    inside = good & (label == z)
    best = jnp.max(jnp.where(inside, reward, -jnp.inf))
    short = jnp.where(inside, best - jnp.where(inside, reward, 0), 0) / total
    base = jnp.where(inside, log_w, -jnp.inf)
    level = best + total * (log_sum_exp(base - short) - log_sum_exp(base))
    takes = good & ~jnp.isneginf(log_m[label])  # another anchor may leave an answer out
    return level, jnp.where(takes, log_m[z] - jnp.where(takes, log_m[label], 0), 0), total


def _held_to_reference(regularizer: Regularizer) -> Array:
    """The coefficient of the terms whose anchor is the reference."""
    held = [t for t in regularizer.terms if t.anchor is None and not t.is_bonus]
    families = {isinstance(t.divergence, KL) for t in held}
    if not held or len(families) > 1 or (False in families and len(held) > 1):
        raise ValueError(
            f"mara needs the beta of one term that is held to the reference; got {regularizer!r}. "
            "An entropy bonus or terms with other anchors may stand beside it"
        )
    total = held[0].beta
    for term in held[1:]:
        total = total + term.beta
    return total


def _scalar(name: str, value: Number, bandit: Bandit) -> Float[Array, ""]:
    number = as_array(name, value, bandit.reward.dtype)
    if number.ndim:
        raise ValueError(f"{name} must be one number; got shape {number.shape}. For more: jax.vmap")
    return number


def _whose(bandit: Bandit, log_p: Table | None, where: str) -> Array:
    """The law asked for, by default the reference."""
    if log_p is None:
        return bandit.log_ref
    law = check_log_probs("log_p", log_p, where, bandit.num_actions)
    return jnp.asarray(law, bandit.reward.dtype)


def _row(name: str, values: Table, bandit: Bandit) -> Float[Array, " K"]:
    warn_if_cut(name, values)
    row = as_array(name, values, bandit.reward.dtype)
    if row.shape != bandit.reward.shape:
        raise ValueError(
            f"{name} must have shape {bandit.reward.shape}, one entry for each "
            f"action; got {row.shape}"
        )
    return row


def _rows(
    name: str, values: Table, weight_name: str, weights: Table, bandit: Bandit
) -> tuple[Float[Array, "M K"], Float[Array, " M"]]:
    rows = as_array(name, values, bandit.reward.dtype)
    w = as_array(weight_name, weights, bandit.reward.dtype)
    if rows.ndim != 2 or rows.shape[1:] != bandit.reward.shape or w.shape != rows.shape[:1]:
        raise ValueError(
            f"{name} must have shape [M, {bandit.num_actions}] and {weight_name} shape [M]; got "
            f"{rows.shape} and {w.shape}"
        )
    return rows, w
