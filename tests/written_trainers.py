"""The trainers' losses from their options, for a list of samples: part of the judge.

Each is written after the trainer's code, options read where the code reads them; it takes what
`losses.group_of` makes. Nothing here is shared with the package.
"""

import jax
import jax.numpy as jnp
import numpy as np

from tests.losses import average, of_others, std

sg = jax.lax.stop_gradient


def clipped(a, rho, low, high, dual):
    gain = jnp.minimum(rho * a, jnp.clip(rho, 1 - low, 1 + high) * a)
    return gain if dual is None else jnp.where(a < 0, jnp.maximum(gain, dual * a), gain)


def whiten(x, biased):
    square = jnp.mean((x - jnp.mean(x)) ** 2)
    if biased:
        return (x - jnp.mean(x)) / jnp.sqrt(jnp.maximum(square, 1e-8))
    return (x - jnp.mean(x)) / jnp.sqrt(square * len(x) / (len(x) - 1) + 1e-8)


def trl(g, o):
    """`GRPOTrainer._compute_loss`, of sequences of one token."""
    a = g.r - average(g.r)
    if o.get("scale_rewards", "group") != "none":
        a = a / (std(g.r) + 1e-4)
    rho, low = jnp.exp(g.lp - g.old), o.get("epsilon", 0.2)
    high, loss = o.get("epsilon_high") or low, o.get("loss_type", "dapo")
    if loss == "cispo":
        gain = sg(jnp.minimum(rho, high)) * a * g.lp
    elif loss == "sapo":
        tau = jnp.where(a > 0, o.get("sapo_temperature_pos", 1.0), 1.05)
        gain = jax.nn.sigmoid(tau * (rho - 1)) * 4 / tau * a
    else:
        top = jnp.minimum(rho, o["delta"]) if "delta" in o else rho
        gain = jnp.minimum(top * a, jnp.clip(rho, 1 - low, 1 + high) * a)
    kl = jnp.exp(g.ref - g.lp) - (g.ref - g.lp) - 1
    if o.get("use_bias_correction_kl", True):
        kl = kl * rho
    return jnp.mean(o.get("beta", 0.0) * kl - gain)


def trl_rloo(g, o):
    kl = g.old - g.ref
    paid = g.r - o.get("beta", 0.05) * kl
    a = paid - (jnp.sum(paid) - paid) / (g.size - 1)
    low = o.get("epsilon", 0.2)
    return -jnp.mean(clipped(a, jnp.exp(g.lp - g.old), low, o.get("epsilon_high") or low, None))


def kl_penalty(lp, ref, kind):
    """verl's."""
    base, x = kind.removesuffix("+"), lp - ref
    value = {"kl": x, "k1": x, "abs": jnp.abs(x), "mse": x**2 / 2, "k2": x**2 / 2}.get(base)
    if value is None:  # low_var_kl, k3
        x3 = jnp.clip(-x, -20, 20)
        value = jnp.clip(jnp.exp(x3) - x3 - 1, -10, 10)
    if not kind.endswith("+"):
        return value
    return x**2 / 2 - sg(x**2 / 2) + sg(value)


def verl(g, o):
    """`ppo_loss` after `compute_advantage`; names without their places."""
    paid = g.r
    if o.get("use_kl_in_reward"):
        paid = paid - o.get("kl_coef", 0.001) * kl_penalty(g.old, g.ref, o.get("kl_penalty", "kl"))
    name = o.get("adv_estimator", "gae")
    if name == "gae":
        value = jnp.exp(g.old_table) @ g.reward_table
        if o.get("use_kl_in_reward"):
            kl = kl_penalty(g.old_table, g.ref_table, o.get("kl_penalty", "kl"))
            value = value - o.get("kl_coef", 0.001) * jnp.exp(g.old_table) @ kl
        a = whiten(paid - value, False)
    elif name == "grpo":
        a = paid - average(paid)
        a = a / (std(paid) + 1e-6) if o.get("norm_adv_by_std_in_grpo", True) else a
    elif name == "rloo":
        a = paid * g.size / (g.size - 1) - average(paid) * g.size / (g.size - 1)
    elif name == "reinforce_plus_plus":
        a = whiten(paid, False)
    else:  # opo, of one token each
        a = paid - average(paid)
    a, rho = sg(a), jnp.exp(g.lp - g.old)
    low, high = o.get("clip_ratio_low", 0.2), o.get("clip_ratio_high", 0.2)
    mode = o.get("loss_mode", "vanilla")
    if mode == "vanilla":
        gain = clipped(a, rho, low, high, o.get("clip_ratio_c", 3.0))
    elif mode == "gspo":
        gain = clipped(a, rho, low, high, None)
    elif mode == "cispo":
        gain = sg(jnp.clip(rho, 1 - low, 1 + high)) * a * g.lp
    elif mode == "gpg":
        gain = a * g.lp
    elif mode == "dro":
        gain = a * g.lp - o["dro_beta"] / 2 * (g.lp - g.old) ** 2
    else:  # dppo_tv
        p, old = sg(jnp.exp(g.lp)), jnp.exp(g.old)
        kept = jnp.where(a > 0, p - old <= high, p - old >= -low)
        cap = o.get("clip_ratio_c", 3.0)
        gain = jnp.where(kept, 1.0, 0.0) * sg(jnp.minimum(rho, cap)) * a * g.lp
    kl = 0.0
    if o.get("use_kl_loss"):
        kind = o.get("kl_loss_type", "low_var_kl")
        kl = o.get("kl_loss_coef", 0.001) * kl_penalty(g.lp, g.ref, kind)
    entropy = -jnp.sum(jnp.exp(g.table) * g.table)
    return jnp.mean(kl - gain) - o.get("entropy_coeff", 0.0) * entropy


def approx_kl(lp, ref, kind):
    """OpenRLHF's `compute_approx_kl`."""
    x = lp - ref
    value = {"k1": x, "k2": x**2 / 2, "k3": jnp.exp(-x) - 1 + x}[kind]
    return jnp.clip(value, -10, 10)


def openrlhf(g, o):
    """`compute_advantages_and_returns`, then `PolicyLoss`; names without their places."""
    name, kind = o.get("estimator", "gae"), o.get("kl.estimator", "k1")
    beta, lost = o.get("init_coef", 0.01), o.get("use_loss", False)
    kl = 0.0 if lost else approx_kl(g.old, g.ref, kind)
    rewards = g.r
    if name == "rloo":
        rewards = g.r - (jnp.sum(g.r) - g.r) / (g.size - 1)
    elif name in ("reinforce_baseline", "dr_grpo"):
        rewards = g.r - average(g.r)
    elif name == "group_norm":
        rewards = (g.r - average(g.r)) / (std(g.r) + 1e-9)
    a = rewards - beta * kl
    if name == "gae":
        value = jnp.exp(g.old_table) @ g.reward_table
        if not lost:
            each = approx_kl(g.old_table, g.ref_table, kind)
            value = value - beta * jnp.exp(g.old_table) @ each
        a = a - value
    if name in ("gae", "reinforce", "reinforce_baseline"):
        a = a - jnp.mean(a) if o.get("no_std_norm") else whiten(a, True)
    rho = jnp.exp(g.lp - g.old)
    low, high = o.get("eps_clip_low_high", (0.2, 0.2))
    loss = -clipped(sg(a), rho, low, high, o.get("dual_clip"))
    if lost:
        value = approx_kl(g.lp, g.ref, kind)
        if o.get("unbiased_gradient"):
            surrogate = sg(jnp.minimum(rho, 10)) * (g.lp - g.ref) ** 2 / 2
            value = sg(value) + surrogate - sg(surrogate)
        loss = loss + beta * value
    return jnp.mean(loss)


def nemo_rl(g, o):
    """`GRPOAdvantageEstimator` or that of REINFORCE++, then `ClippedPGLossFn`."""
    scaled = o.get("normalize_rewards", True)
    if o.get("name", "grpo") == "reinforce_plus_plus":
        a = whiten(g.r - average(g.r), True)
    elif o.get("use_leave_one_out_baseline", True):
        a = of_others(g) if scaled else (g.r - average(g.r)) * g.size / (g.size - 1)
    else:
        a = g.r - average(g.r)
        a = a / (std(g.r) + 1e-6) if scaled else a
    a = jnp.clip(a, o.get("advantage_clip_low", -np.inf), o.get("advantage_clip_high", np.inf))
    rho = jnp.exp(g.lp - g.old)
    low, high = o.get("ratio_clip_min", 0.2), o.get("ratio_clip_max", 0.2)
    if o.get("force_on_policy_ratio") or o.get("disable_ppo_ratio"):
        gain = sg(a) * g.lp
    elif o.get("use_cispo"):
        gain = sg(a * jnp.clip(rho, 1 - low, 1 + high)) * g.lp
    else:
        gain = clipped(sg(a), rho, low, high, o.get("ratio_clip_c"))
    x = jnp.clip(g.ref - g.lp, -20, 20)
    kind = o.get("reference_policy_kl_type", "k3")
    kl = {"k1": -x, "k2": x**2 / 2, "k3": jnp.exp(x) - 1 - x}[kind]
    other = g.old if o.get("use_on_policy_kl_approximation") else sg(g.lp)
    kl = jnp.clip(jnp.exp(g.lp - other) * kl, -10, 10)
    right = jnp.where(g.r > 0, 1.0, 0.0)
    nll = -jnp.sum(right * g.lp) / jnp.maximum(jnp.sum(right), 1)
    beta = o.get("reference_policy_kl_penalty", 0.01)
    return jnp.mean(beta * kl - gain) + o.get("positive_example_nll_weight", 0.0) * nll
