"""Functions of a law on actions, given as log-probabilities in nats.

Each works on one normalized law of shape [K]; batch with `jax.vmap`. All are defined at
probability 0, in value and gradient: a term that is infinite is a constant, with gradient 0.
Divergences have arguments `log_p, log_q` and say which sum they compute. Numbers that people sweep
(an order, a floor, a count of samples) are data. What is no law is refused, where it is known:
not under jit, vmap or grad.
"""

from regdist.metrics.distances import alpha_divergence as alpha_divergence
from regdist.metrics.distances import chi_squared as chi_squared
from regdist.metrics.distances import hellinger as hellinger
from regdist.metrics.distances import js as js
from regdist.metrics.distances import kl as kl
from regdist.metrics.distances import log_odds_error as log_odds_error
from regdist.metrics.distances import renyi_divergence as renyi_divergence
from regdist.metrics.distances import total_variation as total_variation
from regdist.metrics.diversity import SupportChange as SupportChange
from regdist.metrics.diversity import hypervolume as hypervolume
from regdist.metrics.diversity import quality_diversity as quality_diversity
from regdist.metrics.diversity import support_change as support_change
from regdist.metrics.diversity import vendi_score as vendi_score
from regdist.metrics.entropies import answer_entropy as answer_entropy
from regdist.metrics.entropies import effective_labels as effective_labels
from regdist.metrics.entropies import entropy as entropy
from regdist.metrics.entropies import hill_number as hill_number
from regdist.metrics.entropies import label_log_probs as label_log_probs
from regdist.metrics.entropies import renyi_entropy as renyi_entropy
from regdist.metrics.entropies import token_entropies as token_entropies
from regdist.metrics.entropies import tsallis_entropy as tsallis_entropy
from regdist.metrics.sampling import concentrability as concentrability
from regdist.metrics.sampling import effective_sample_size as effective_sample_size
from regdist.metrics.sampling import expected_reward as expected_reward
from regdist.metrics.sampling import optimal_baseline as optimal_baseline
from regdist.metrics.sampling import pass_at_k as pass_at_k
from regdist.metrics.sampling import pass_at_k_unbiased as pass_at_k_unbiased
from regdist.metrics.sampling import squared_score_norm as squared_score_norm
from regdist.metrics.sampling import success as success
from regdist.metrics.sampling import zero_advantage_probability as zero_advantage_probability
from regdist.metrics.tails import quantile as quantile
from regdist.metrics.tails import range_value_at_risk as range_value_at_risk
from regdist.policies.laws import restrict as restrict
