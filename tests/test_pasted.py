"""Losses that the documentation does not have, as a user pastes them; each limit by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

import regdist as rd
from regdist.runs.starts import starts

detach = jax.lax.stop_gradient
REWARD, Q = np.array([1.0, 0.5, 0.0]), np.array([0.2, 0.3, 0.5])
THREE = rd.bandit(REWARD, Q)
TWO_GOOD = rd.bandit([1.0, 1.0, 0.0], Q)
COIN = rd.bandit([1.0, 0.0], [0.1, 0.9])
BETA = 0.4
TILTED = Q * np.exp(REWARD / BETA) / np.sum(Q * np.exp(REWARD / BETA))
PAID = Q * REWARD / np.sum(Q * REWARD)


def weighted_likelihood(view):
    """-e^(A/beta) log p: of samples of q, the cross entropy from q e^(R/beta) / Z."""
    advantage = view.rewards - view.mean(view.rewards)
    return -jnp.exp(advantage / BETA) * view.log_probs


def rewarded_likelihood(view):
    """-R log p: of samples of q, the cross entropy from q R / Z; of the policy's, its gradient."""
    return -view.rewards * view.log_probs


def proximal(view):
    """-rho A + c rho log rho: at rho = 1 the second term has the gradient E[score] = 0."""
    log_rho = view.log_probs - view.old_log_probs
    advantage = view.rewards - view.mean(view.rewards)
    return jnp.exp(log_rho) * (2.0 * log_rho - advantage)


def shaped(view):
    """A + min(-0.4 log p, |A|/2): the best action's gain exceeds any other's by A's gap over 2."""
    advantage = view.rewards - view.mean(view.rewards)
    bonus = jnp.minimum(-0.4 * detach(view.log_probs), jnp.abs(advantage) / 2)
    return -(advantage + bonus) * view.log_probs


def one_sided(view):
    """1 - sigmoid(+-(l - E l)/2), l = log p/q: what is good gains, what is bad loses."""
    log_ratio = view.log_probs - view.ref_log_probs
    x = (log_ratio - detach(view.mean(log_ratio))) / 2
    return 1 - jax.nn.sigmoid(jnp.where(view.rewards > 0.5, x, -x))


def regressed(view):
    """The variance of beta log(p/q) - R, half of the mean over pairs of squared differences."""
    miss = BETA * (view.log_probs - view.ref_log_probs) - view.rewards
    return (miss - view.mean(miss)) ** 2


AT_Q = {"old": jnp.log(Q)}
CASES = {
    # p = q e^(R/beta)/Z whatever the reference of the problem is: samples stay those of `old`
    "weighted, of q": (weighted_likelihood, THREE, AT_Q, "coincides", TILTED, None),
    "weighted, own": (weighted_likelihood, THREE, {}, "vertex", [1, 0, 0], None),
    # q (1 + (R - L)/b) with b = L = E_q R is q R/E_q R: Pearson's target here, and here alone
    "rewarded, of q": (rewarded_likelihood, THREE, AT_Q, "coincides", PAID, None),
    "rewarded, own": (rewarded_likelihood, THREE, {}, "vertex", [1, 0, 0], None),
    "proximal": (proximal, THREE, {}, "vertex", [1, 0, 0], None),
    "shaped": (shaped, THREE, {}, "vertex", [1, 0, 0], None),
    "one-sided": (one_sided, COIN, {}, "vertex", [1, 0], None),
    "regressed": (regressed, THREE, {}, "converges", TILTED, rd.ReverseKL(BETA)),
    "regressed, of q": (regressed, THREE, AT_Q, "converges", TILTED, rd.ReverseKL(BETA)),
}


@pytest.mark.parametrize("name", CASES)
def test_a_pasted_loss_goes_where_it_does_by_hand(name, monkeypatch):
    monkeypatch.setattr("regdist.runs.identify.usual_starts", lambda bandit, _: starts(bandit, 0))
    loss, bandit, options, word, law, regularizer = CASES[name]
    found = rd.identify(rd.methods.from_loss(loss), bandit, **options)
    assert found.verdict == word, str(found)
    assert np.allclose(found.probs, law, atol=1e-9)
    assert repr(found.regularizer) == repr(regularizer)
    assert "trusted" in found.sentence


def test_two_good_actions_under_one_sided_sigmoids():
    """On the face of the two the gains are sigmoid'(x)/2, largest at x = 0, and x = (1-s) d, -s d.

    s is the share of action 0, d the difference of their l; so s grows where s > 1/2, and falls
    below: to one of the two, by the start. From between 2/5, where d = 0, and 1/2 it falls to 2/5,
    where all its digits vanish, and what is left of the bad action, like 1/t, pushes it through.
    """
    method = rd.methods.from_loss(one_sided)
    away = np.log([[0.7, 0.1, 0.2], [0.1, 0.7, 0.2]])
    found = rd.identify(method, TWO_GOOD, starts=away)
    assert found.verdict == "depends on start"
    assert "action 0 alone" in found.sentence
    assert "action 1 alone" in found.sentence
    start = np.log([0.45, 0.549, 0.001])

    def flow(_, z):
        p = np.exp(z - np.logaddexp.reduce(z))
        log_ratio = np.log(p) - np.log(Q)
        slope = 1 / (2 * np.cosh((log_ratio - p @ log_ratio) / 4)) ** 2 / 2
        gain = slope * [1, 1, -1]
        return p * (gain - p @ gain)

    end = solve_ivp(flow, (0, 1e8), start, "LSODA", rtol=1e-10, atol=1e-12).y[:, -1]
    assert end[1] - np.logaddexp.reduce(end) > -1e-6
    between = rd.identify(method, TWO_GOOD, starts=start[None])
    assert between.verdict == "vertex"
    assert between.probs[1] == 1


def test_a_plain_gradient_goes_along_the_ties_that_it_comes_to():
    """z_i' = p_i p_3 on rewards 1, 1, 0: odds of the two best grow like the root of time."""
    tie = rd.bandit([1.0, 1.0, 0.0], [0.4, 0.05, 0.55])

    def flow(_, z):
        p = np.exp(z - np.logaddexp.reduce(z))
        return p * (np.array([1.0, 1.0, 0.0]) - p[0] - p[1])

    times = [1e4, 1e6, 1e8]
    made = solve_ivp(flow, (0, 1e8), tie.log_ref, "LSODA", t_eval=times, rtol=1e-10, atol=1e-12)
    odds = made.y[0] - made.y[1]
    assert np.allclose(np.diff(odds), np.log(100) / 2, atol=0.01)
    for method, goes_on in (
        (rd.methods.reinforce(), True),
        (rd.methods.natural_policy_gradient(), False),
    ):
        found = rd.identify(method, tie)
        assert found.verdict == "depends on start"
        assert ("a plain gradient may go on" in found.sentence) == goes_on
