"""The judge of trees: dictionaries of prefixes and sums over paths, as one would write them.

Shares no code with the package. A law of steps is {prefix: {token: probability}}.
"""

import functools
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


class Group:
    """What a trainer's loss sees of a list of sequences: padded tables [G, T] and a mask."""

    def __init__(self, rows, weights, logits, old, ref, reward, steps, mask, chooses, there):
        import jax
        import jax.numpy as jnp

        table = jnp.where(chooses[:, None], jax.nn.log_softmax(logits, axis=1), old)
        mask, steps = jnp.asarray(mask), jnp.asarray(steps)
        self.mask = mask[rows].astype(float)
        at = steps[rows]
        self.at, self.table, self.old_table, self.ref_table = at, table, old, ref
        self.rows, self.every = (
            rows,
            (steps, jnp.asarray(mask).astype(float), jnp.asarray(there), reward),
        )
        self.lp, self.old, self.ref = (
            jnp.where(mask[rows], x.ravel()[at], 0.0) for x in (table, old, ref)
        )
        self.r, self.n, self.w, self.size = reward[rows], self.mask.sum(1), weights, len(rows)
        self.endless = False

    def mean(self, x):
        """The mean over samples, exact where all are equal."""
        return x[0] + (self.w * (x - x[0])).sum()

    def std(self):
        """The unbiased deviation of the rewards; of the law itself where it has no end."""
        square = (self.w * (self.r - self.mean(self.r)) ** 2).sum()
        if not self.endless:
            square = square * self.size / max(self.size - 1, 1)
        return (square + 1e-60) ** 0.5

    def z(self, eps=1e-6):
        """GRPO's advantage; a group of one keeps its reward."""
        if self.size == 1 and not self.endless:
            return self.r / (1 + eps)
        return (self.r - self.mean(self.r)) / (self.std() + eps)

    def total(self, x):
        """The sum over the tokens of each sample."""
        return (x * self.mask).sum(1)

    def by_sequence(self, x):
        """Trainers' seq-mean-token-mean."""
        return (self.w * self.total(x) / self.n).sum()

    def by_token(self, x):
        """Trainers' token-mean."""
        return (self.w * self.total(x)).sum() / (self.w * self.n).sum()

    def by_sum(self, x, most=1.0):
        """Trainers' seq-mean-token-sum, over a constant."""
        return (self.w * self.total(x)).sum() / most


def expected(loss, size, logits, old, ref, reward, steps, there, mask, chooses, exists):
    """Minus the gradient of a loss, averaged over all L^G groups; of the law itself for None."""
    logits = np.where(exists, logits, -1e300)
    count = len(reward)
    chance = np.exp(np.where(there, np.ravel(old)[steps], 0).sum(1))
    facts = old, ref, reward, steps, mask, chooses, there
    if size is None:
        slope = _slopes(loss, True)(logits, np.arange(count)[None], chance, *facts)[0]
        return -np.where(exists, slope, 0)
    groups = np.array(list(itertools.product(range(count), repeat=size)))
    slopes = _slopes(loss, False)(logits, groups, np.full(size, 1 / size), *facts)
    return -np.where(exists, np.einsum("n,nsv->sv", chance[groups].prod(1), slopes), 0)


@functools.cache
def _slopes(loss, endless):
    """The gradient of a loss in each of many groups, as one program."""
    import jax

    def one(z, rows, weights, *facts):
        group = Group(rows, weights, z, *facts)
        group.endless = endless
        return loss(group)

    return jax.jit(jax.vmap(jax.grad(one), in_axes=(None, 0, *[None] * 8)))
