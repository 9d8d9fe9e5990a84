"""Functions of a law on actions, given as log-probabilities in nats.

Each works on one normalized law of shape [K]; batch with `jax.vmap`. All are defined at
probability 0, in value and gradient: a term that is infinite is a constant, with gradient 0.
Divergences have arguments `log_p, log_q` and say which sum they compute. Numbers that people sweep
(an order, a floor, a count of samples) are data. What is known not to be a distribution
(probabilities, unnormalized weights, a batch) is refused by name; under jit nobody looks at values.
"""

from regdist.metrics.distances import *  # noqa: F403
from regdist.metrics.diversity import *  # noqa: F403
from regdist.metrics.entropies import *  # noqa: F403
from regdist.metrics.prompts import *  # noqa: F403
from regdist.metrics.sampling import *  # noqa: F403
from regdist.metrics.tails import *  # noqa: F403
from regdist.metrics.tokens import *  # noqa: F403
from regdist.numerics.face import shown
from regdist.policies.laws import restrict as restrict


def __dir__() -> list[str]:
    return shown(globals())
