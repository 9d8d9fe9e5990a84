"""Bundles of prompts, against sums over all prompts and samples that can make one."""

import itertools

import numpy as np
import pytest

import regdist as rd

m = rd.methods
PROBLEMS = [
    rd.bandit([1.0, 0.0, 0.3], [0.5, 0.3, 0.2]),
    rd.bandit([1.0, 0.0], [0.05, 0.95]),  # one action less
    rd.bandit([0.0, -np.inf, 2.0], [0.6, 0.3, 0.1]),
]
WEIGHTS = [0.5, 0.2, 0.3]
LAWS = [np.array([0.5, 0.3, 0.2]), np.array([0.05, 0.95]), np.array([6, 0, 1]) / 7]
REWARDS = [np.where(law > 0, one.reward, 0) for one, law in zip(PROBLEMS, LAWS, strict=True)]


def contexts_and_logits():
    contexts = rd.contexts(PROBLEMS, WEIGHTS)
    return contexts, np.where(contexts.forbidden, -np.inf, contexts.log_ref)


def paper_advantages(law, total, low=0.2, high=0.9, weight=1.5):
    """RiskPO's of the papers of one bundle, from their joint law, in the limit of many."""
    order = np.argsort(total)
    reached = np.cumsum(law[order])
    down, up = (total[order][np.argmax(reached >= level)] for level in (low, high))
    middle = np.clip(total - down, 0, None) - np.clip(total - up, 0, None) + down - up
    tail = -np.clip(down - total, 0, None) / (low + 1e-6)
    mixed = (weight * tail + middle / (high - low + 1e-6)) / (1 + weight)
    return mixed / (np.sqrt(law @ (total - law @ total) ** 2) + 1e-6)


def credited(credit, advantage, own, mean, std, total, whole, size):
    if credit == "std":
        return advantage / ((std if std > 1e-3 else 1) + 1e-6)
    if credit == "score":
        return advantage * np.where(own > 0, 0.5, 1.5)
    if credit == "share":
        gap = total - whole
        return advantage * np.where(
            abs(gap) > 1e-6, (own - mean) / np.where(gap == 0, 1, gap), 1 / size
        )
    return advantage


def judge(size, credit):
    """The field on each prompt's table: its part of bundles that begin with it."""
    field = np.zeros((3, 3))
    means = [law @ reward for law, reward in zip(LAWS, REWARDS, strict=True)]
    for who in itertools.product(range(3), repeat=size):
        made = np.array(list(itertools.product(*(range(len(LAWS[j])) for j in who))))
        law = np.prod([LAWS[j][a] for j, a in zip(who, made.T, strict=True)], axis=0)
        total = np.sum([REWARDS[j][a] for j, a in zip(who, made.T, strict=True)], axis=0)
        first, own = LAWS[who[0]], REWARDS[who[0]][made[:, 0]]
        std = np.sqrt(first @ (REWARDS[who[0]] - means[who[0]]) ** 2)
        whole = sum(means[j] for j in who)
        each = paper_advantages(law[law > 0], total[law > 0])
        each = credited(credit, each, own[law > 0], means[who[0]], std, total[law > 0], whole, size)
        score = np.eye(3)[made[:, 0]][:, : len(first)] - first
        share = np.prod([WEIGHTS[j] for j in who])
        field[who[0], : len(first)] += share * (law[law > 0] * each) @ score[law > 0]
    return field


@pytest.mark.parametrize(
    ("size", "credit"),
    [(1, "std"), (2, "uniform"), (3, "uniform"), (3, "std"), (2, "score"), (3, "share")],
)
def test_a_field_is_the_sum_over_bundles(size, credit):
    contexts, logits = contexts_and_logits()
    got = rd.field(m.riskpo(bundle=size, credit=credit), logits, contexts)
    assert np.allclose(got, judge(size, credit), rtol=0, atol=1e-12)


def test_a_bundle_of_one_is_each_prompts_own_group():
    contexts, logits = contexts_and_logits()
    got = rd.field(m.riskpo(), logits, contexts)
    for row, logit, one, weight in zip(got, logits, PROBLEMS, WEIGHTS, strict=True):
        own = weight * rd.field(m.riskpo(), logit[: one.reward.size], one)
        assert np.allclose(row[: own.size], own, rtol=0, atol=1e-15)


def test_what_no_bundle_is_made_of_is_refused():
    contexts, logits = contexts_and_logits()
    with pytest.raises(ValueError, match="contexts, many prompts under one policy"):
        rd.field(m.riskpo(bundle=2), PROBLEMS[0].log_ref, PROBLEMS[0])
    with pytest.raises(ValueError, match="limit of large groups"):
        rd.field(m.riskpo(bundle=2), logits, contexts, rd.Group(2))
    with pytest.raises(ValueError, match="12 out of 3 prompts with 3 actions have 41,452,398 out"):
        rd.field(m.riskpo(bundle=12), logits, contexts)
