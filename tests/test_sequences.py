"""Named trees against sums that one would write by hand, path by path."""

import collections
import itertools
import math
from fractions import Fraction

import jax.numpy as jnp
import numpy as np
import pytest

import regdist as rd

P = rd.problems


def paths(task):
    """The sequences as tuples of names, with probability under the reference, reward and label."""
    bandit = task.tree.bandit
    tables = (np.exp(bandit.log_ref), bandit.reward, bandit.label)
    return [
        (tuple(name.split()), float(q), float(r), int(a))
        for name, q, r, a in zip(task.outcomes, *tables, strict=True)
    ]


def close(got, want):
    return np.allclose(got, want, rtol=1e-13, atol=1e-15)


def written(tokens):
    """An independent reading of postfix: (legal, height of the stack, exact value, infix text)."""
    stack = []
    for token in tokens:
        if token.isdigit():
            stack.append((Fraction(token), token))
            continue
        if len(stack) < 2:
            return False, 0, None, ""
        (b, right), (a, left) = stack.pop(), stack.pop()
        stack.append((apply(token, a, b), f"({left} {token} {right})"))
    value, text = stack[-1] if stack else (None, "")
    return True, len(stack), value, text


def apply(token, a, b):
    """Exactly; None for what divides by zero, and for what is made of it."""
    if a is None or b is None or (token == "/" and b == 0):
        return None
    if token == "/":
        return a / b
    return a * b if token == "*" else a + (b if token == "+" else -b)


@pytest.mark.parametrize(
    ("numbers", "target", "operations"),
    [((2, 3, 4), 24, "+-*/"), ((1, 1, 2), 2, "/-"), ((3, 8), 24, "*")],
)
def test_postfix_is_every_token_string_that_can_be_read(numbers, target, operations):
    """All strings of 2n - 1 tokens, tried one by one; in each state all legal tokens alike."""
    task = P.game_of_24_postfix(numbers, target, operations)
    bag = collections.Counter(map(str, numbers))
    assert task.tokens == (*sorted(bag, key=int), *operations)
    legal = {}
    for tokens in itertools.product(task.tokens, repeat=2 * len(numbers) - 1):
        reads, height, value, _ = written(tokens)
        if reads and height == 1 and collections.Counter(t for t in tokens if t.isdigit()) == bag:
            legal[tokens] = float(value == target)
    assert {tokens: r for tokens, _, r, _ in paths(task)} == legal
    assert task.tree.num_leaves == len(legal)
    law = np.exp(task.tree.log_ref)
    for state, row in zip(task.states, law, strict=True):
        tokens = state.split()
        left = bag - collections.Counter(t for t in tokens if t.isdigit())
        may = [t in left or (t in operations and written(tokens)[1] > 1) for t in task.tokens]
        assert close(row, np.array(may) / sum(may))


@pytest.mark.parametrize(("hand", "count"), [((1, 3, 4, 6), 7680), ((3, 3, 8, 8), 1920)])
def test_postfix_says_what_the_bandit_of_expressions_says(hand, count):
    """One sequence for each expression, as much worth, as likely, with the same right answers."""
    task, other = P.game_of_24_postfix(hand), P.game_of_24(hand)
    assert task.tree.num_leaves == other.bandit.num_actions == count
    place = {name: i for i, name in enumerate(other.outcomes)}
    outcomes, rewards = task.outcomes, np.asarray(task.tree.bandit.reward)
    texts = [written(name.split())[3] for name in outcomes]
    to = np.array([place[text[1:-1]] for text in texts])
    assert np.array_equal(np.sort(to), np.arange(count))
    assert np.array_equal(rewards, other.bandit.reward[to])
    if len(set(hand)) == len(hand):
        assert np.allclose(task.tree.bandit.log_ref, other.bandit.log_ref[to], rtol=0, atol=1e-13)
    label, theirs = np.asarray(task.tree.bandit.label), np.asarray(other.bandit.label)[to]
    pairs = set(zip(label.tolist(), theirs.tolist(), strict=True))
    assert len(pairs) == len(set(label.tolist())) == len(set(theirs.tolist()))
    right = {task.answer(int(i)) for i in np.flatnonzero(rewards)}
    assert {int(other.bandit.label[place[name]]) for name in right} == {
        int(a) for a, r in zip(other.bandit.label, other.bandit.reward, strict=True) if r == 1
    }
    for text, reward in zip(texts, rewards, strict=True):
        try:
            value = eval(text.replace("(", "(Fraction(1) * "))
        except ZeroDivisionError:
            value = None
        assert (value == 24) == (reward == 1)


@pytest.mark.parametrize(
    ("words", "rewards", "talk", "fillers"),
    [((0.75, 0.15), (1, 1), 0.2, 1), ((0.6, 0.4), (1.0, 0.5), 0.3, 2), ((0.2, 0.1), (2, 1), 1, 0)],
)
def test_one_or_two(words, rewards, talk, fillers):
    task = P.one_or_two(words, rewards, talk, fillers)
    law, paid = [*words, 1 - sum(words)], [*rewards, 0]
    assert len(paths(task)) == 3 * (fillers + 1)
    for tokens, q, r, a in paths(task):
        n = len(tokens) - 1
        assert tokens == ("well",) * n + (("one", "two", "three")[a],)
        assert close(q, talk**n * (1 - talk if n < fillers else 1) * law[a])
        assert r == paid[a]
        assert task.answers[a] == tokens[-1]
    if rewards[0] == rewards[1]:
        for family in (rd.ReverseKL, rd.ForwardKL):
            p = rd.target(task.tree.bandit, family(0.05)).probs
            one, two, _ = np.bincount(task.tree.bandit.label, p)
            assert close(one / two, words[0] / words[1])
            assert one + two > 0.9 + 0.04


@pytest.mark.parametrize(
    ("lengths", "right", "wrong"),
    [((2, 6), (0.15, 0.15), (0.35, 0.35)), ((3, 1), (0.1, 0.2), (0.3, 0.4)), ((1,), (1,), (0,))],
)
def test_long_and_short(lengths, right, wrong):
    task = P.long_and_short(lengths, right, wrong)
    law = {}
    for n, good, bad in zip(lengths, right, wrong, strict=True):
        law[("think",) * (n - 1) + ("right",)] = good
        law[("think",) * (n - 1) + ("wrong",)] = bad
    leaves = paths(task)
    assert {x for x, *_ in leaves} == set(law)
    assert all(close(q, law[x]) for x, q, *_ in leaves)
    assert all((r == 1) == (x[-1] == "right") == (a == 0) for x, _, r, a in leaves)
    if lengths != (3, 1):  # the default's is in the docstring
        return
    mean = sum(q * r for _, q, r, _ in leaves)
    steps = np.exp(task.tree.log_ref)
    want = np.zeros(steps.shape)
    for tokens, q, r, _ in leaves:
        push = q * (r - mean) / len(tokens)
        for t, token in enumerate(tokens):
            state = task.states.index(" ".join(tokens[:t]))
            want[state] -= push * steps[state]
            want[state, task.tokens.index(token)] += push
    method = rd.methods.dr_grpo(averaging="sequence")
    assert np.allclose(rd.field(method, task.tree.log_ref, task.tree), want, rtol=0, atol=1e-15)


THOUGHTS = {
    "defaults": {},
    "two steps": {
        "thoughts": (0.5, 0.2, 0.3),
        "answers": ((1, 0), (0.3, 0.7), (0.25, 0.75)),
        "rewards": (-0.5, 2),
        "steps": 2,
    },
}
USUAL = {
    "thoughts": (0.7, 0.1, 0.1, 0.1),
    "answers": ((0.9, 0.1), *[(0.2, 0.8)] * 3),
    "rewards": (0, 1),
    "steps": 1,
}


@pytest.mark.parametrize("name", THOUGHTS)
def test_think_then_answer(name):
    task, given = P.think_then_answer(**THOUGHTS[name]), {**USUAL, **THOUGHTS[name]}
    thoughts, answers, steps = given["thoughts"], given["answers"], given["steps"]
    size, count = len(thoughts), len(given["rewards"])
    leaves = paths(task)
    assert len(leaves) == len({x for x, *_ in leaves}) == size**steps * count
    for tokens, q, r, a in leaves:
        had = [int(x.removeprefix("thought")) - 1 for x in tokens[:-1]]
        assert len(had) == steps
        speaks = sum(answers[i][a] for i in had) / steps
        assert close(q, math.prod(thoughts[i] for i in had) * speaks)
        assert (tokens[-1], r) == (f"answer{a + 1}", given["rewards"][a])
    # What is drawn by hand: the answer alone is paid, so its law is tilted and nothing else.
    q = np.array([x[1] for x in leaves])
    label = np.array([x[3] for x in leaves])
    said = np.bincount(label, q)
    p = said * np.exp(np.array(given["rewards"]) / 0.3)
    p /= p.sum()
    best = rd.target(task.tree.bandit, rd.ReverseKL(0.3))
    assert close(best.probs, q * (p / said)[label])
    if name == "defaults":

        def entropy(law):
            return -sum(law * np.log(law))

        assert entropy(np.asarray(best.probs)) > entropy(q) + 0.2
        assert entropy(p) < entropy(said) - 0.2


@pytest.mark.parametrize(
    ("turns", "branches", "forced", "right"), [(3, 2, 4, 0.5), (2, 3, 1, 0.2), (2, 2, 0, 0.9)]
)
def test_forks(turns, branches, forced, right):
    task = P.forks(turns, branches, forced, right)
    tree = task.tree
    for tokens, q, r, a in paths(task):
        chosen, between = tokens[:: forced + 1], set(range(len(tokens)))
        between -= set(range(0, len(tokens), forced + 1))
        assert len(tokens) == turns * (forced + 1)
        assert {tokens[t] for t in between} <= {"walk"}
        others = (1 - right) / (branches - 1)
        assert close(q, math.prod(right if x == "turn1" else others for x in chosen))
        assert r == (chosen == ("turn1",) * turns)
        assert task.answers[a] == " ".join(chosen)
    assert close(jnp.exp(tree.bandit.log_ref) @ tree.bandit.reward, right**turns)
    decides = np.array([len(x.split()) % (forced + 1) == 0 for x in task.states])
    assert decides.sum() == sum(branches**t for t in range(turns))
    assert (~decides).sum() == sum(branches**t for t in range(1, turns + 1)) * forced
    entropies = np.asarray(rd.metrics.state_entropies(tree, tree.log_ref))
    assert np.all(entropies[~decides] == 0)
    law = np.array([right, *[(1 - right) / (branches - 1)] * (branches - 1)])
    assert close(entropies[decides], -sum(law * np.log(law)))
    if forced == 1:
        push = np.asarray(rd.field(rd.methods.reinforce(), tree.log_ref, tree))
        assert np.all(push[~decides] == 0)
        moved = np.abs(push[decides]).max(axis=1) > 1e-12
        assert moved.tolist() == [True, True, False, False]  # nothing is to be had off the way


@pytest.mark.parametrize(
    ("call", "queries", "works", "right", "cost"),
    [
        (0.3, (0.5, 0.5), (0.9, 0.4), (0.3, 0.9, 0.2), 0.1),
        (0.8, (0.2, 0.3, 0.5), (1, 0.5, 0.1), (0.4, 0.7, 0.3), 0.25),
    ],
)
def test_tool_call(call, queries, works, right, cost):
    task = P.tool_call(call, queries, works, right, cost)
    want: dict[tuple[str, ...], float] = {
        ("right",): (1 - call) * right[0],
        ("wrong",): (1 - call) * (1 - right[0]),
    }
    for i, (query, work) in enumerate(zip(queries, works, strict=True)):
        for result, chance, knows in (("found", work, right[1]), ("nothing", 1 - work, right[2])):
            begun = (f"call{i + 1}", result)
            want[(*begun, "right")] = call * query * chance * knows
            want[(*begun, "wrong")] = call * query * chance * (1 - knows)
    leaves = paths(task)
    assert {x for x, *_ in leaves} == set(want)
    for tokens, q, r, a in leaves:
        assert close(q, want[tokens])
        assert close(r, (tokens[-1] == "right") - cost * (len(tokens) == 3))
        assert task.answers[a] == tokens[-1]
    mean = sum(q * r for _, q, r, _ in leaves)
    by_hand = (1 - call) * right[0] - call * cost
    for query, work in zip(queries, works, strict=True):
        by_hand += call * query * (work * right[1] + (1 - work) * right[2])
    assert close(mean, by_hand)
    assert close(jnp.exp(task.tree.bandit.log_ref) @ task.tree.bandit.reward, by_hand)
    assert not np.any(task.tree.chooses[1 : 1 + len(works)])
    if call == 0.3:  # the default's optima are in the docstring
        return
    # The optimum by steps: soft values of answers, their mean over what the tool does.
    beta = 0.2
    soft = [beta * math.log(p * math.exp(1 / beta) + 1 - p) for p in right]
    weights = [(1 - call) * math.exp(soft[0] / beta)]
    for query, work in zip(queries, works, strict=True):
        worth = work * soft[1] + (1 - work) * soft[2] - cost
        weights.append(call * query * math.exp(worth / beta))
    best = rd.stepwise(task.tree, rd.ReverseKL(beta))
    law = np.exp(best.log_steps)
    assert close([law[0, :2].sum(), *law[0, 4:]], np.array(weights) / sum(weights))
    for i, work in enumerate(works):
        assert close(law[task.states.index(f"call{i + 1}"), 2:4], [work, 1 - work])


def test_names_are_those_of_tokens():
    for task in (
        P.one_or_two(fillers=0),
        P.forks(2, 3, 0),
        P.tool_call(),
        P.long_and_short((1,), (0.5,), (0.5,)),
    ):
        tree = task.tree
        assert len(task.tokens) == tree.paths.exists.shape[1]
        assert len(set(task.outcomes)) == tree.num_leaves
        assert len(task.answers) > int(tree.bandit.label.max())
        for state, prefix in zip(task.states, tree.prefixes, strict=True):
            assert state == " ".join(task.tokens[v] for v in prefix) == task.text(prefix)
