"""The judge of trees: dictionaries of prefixes and sums over paths, as one would write them.

Shares no code with the package. A law of steps is {prefix: {token: probability}}.
"""

import itertools

import numpy as np


def random_tree(random, depth, vocabulary, chance=0.0):
    """Sequences that end at random, at most `depth` long, shuffled; and laws of some chance states.

    Every prefix that goes on has one to `vocabulary` tokens.
    """
    leaves, going, laws = [], [()], {}
    while going:
        prefix = going.pop()
        tokens = random.permutation(vocabulary)[: random.integers(1, vocabulary + 1)]
        if random.random() < chance:
            laws[prefix] = dict(
                zip(tokens.tolist(), random.dirichlet(np.ones(len(tokens))), strict=True)
            )
        for token in tokens.tolist():
            longer = (*prefix, token)
            ends = len(longer) == depth or random.random() < 0.4
            (leaves if ends else going).append(longer)
    order = random.permutation(len(leaves))
    return [leaves[i] for i in order], laws


def states_of(leaves):
    """All prefixes that go on, by depth, then by tokens."""
    found = {leaf[:t] for leaf in leaves for t in range(len(leaf))}
    return sorted(found, key=lambda prefix: (len(prefix), prefix))


def tokens_of(leaves, prefix):
    """The tokens that go on from a prefix."""
    n = len(prefix)
    return sorted({leaf[n] for leaf in leaves if len(leaf) > n and leaf[:n] == prefix})


def as_law(leaves, table):
    """A padded table of log-probabilities, as a law of steps."""
    states = states_of(leaves)
    return {s: {v: np.exp(table[i, v]) for v in tokens_of(leaves, s)} for i, s in enumerate(states)}


def of_leaves(leaves, law):
    """The probability of each whole sequence: a product over its steps."""
    return np.array([np.prod([law[x[:t]][x[t]] for t in range(len(x))]) for x in leaves])


def below(leaves, prefix):
    """Which sequences go through a prefix."""
    return np.array([leaf[: len(prefix)] == prefix for leaf in leaves])


def conditional(leaves, chances, prefix, token):
    """P(token | prefix) under a law of whole sequences."""
    return chances[below(leaves, (*prefix, token))].sum() / chances[below(leaves, prefix)].sum()


def penalised(leaves, reward, law, chance, divergence):
    """E R less the divergence of the law in every state where the policy moves, by visits."""
    chances = of_leaves(leaves, law)
    total = chances @ reward
    for s in states_of(leaves):
        if s not in chance:
            total -= chances[below(leaves, s)].sum() * divergence(s, law[s])
    return total


def answers(leaves, label, chances, prefix):
    """H(answer | prefix), in nats."""
    here = np.where(below(leaves, prefix), chances, 0)
    share = [here[np.asarray(label) == a].sum() / here.sum() for a in sorted(set(label))]
    return -sum(x * np.log(x) for x in share if x > 0)


def every_pair(states, vocabulary):
    """All states with all tokens."""
    return itertools.product(enumerate(states), range(vocabulary))
