"""Methods: how a policy is moved. A method is a composition; `presets` names the known ones."""

from regdist.methods import advantage as advantage
from regdist.methods import averaging as averaging
from regdist.methods import batch as batch
from regdist.methods import controller as controller
from regdist.methods import matching as matching
from regdist.methods import off_policy as off_policy
from regdist.methods import penalty as penalty
from regdist.methods import signal as signal
from regdist.methods import surrogate as surrogate
from regdist.methods import token_advantage as token_advantage
from regdist.methods import token_balance as token_balance
from regdist.methods import token_shaping as token_shaping
from regdist.methods import token_weight as token_weight
from regdist.methods import weight as weight
from regdist.methods.composition import compose as compose
from regdist.methods.expectation import Expectation as Expectation
from regdist.methods.expectation import Group as Group
from regdist.methods.expectation import Population as Population
from regdist.methods.expectation import Sampled as Sampled
from regdist.methods.gauges import Diagnostics as Diagnostics
from regdist.methods.gauges import ShownGroup as ShownGroup
from regdist.methods.gauges import diagnostics as diagnostics
from regdist.methods.gauges import show_group as show_group
from regdist.methods.loss import View as View
from regdist.methods.loss import from_loss as from_loss
from regdist.methods.method import Method as Method
from regdist.methods.moments import Moments as Moments
from regdist.methods.moments import update_moments as update_moments
from regdist.methods.presets.aggregation import aggregation as aggregation
from regdist.methods.presets.catalog import Preset as Preset
from regdist.methods.presets.catalog import catalog as catalog
from regdist.methods.presets.catalog import named as named
from regdist.methods.presets.control import *  # noqa: F403
from regdist.methods.presets.group import *  # noqa: F403
from regdist.methods.presets.matching import *  # noqa: F403
from regdist.methods.presets.rewards import *  # noqa: F403
from regdist.methods.presets.success import *  # noqa: F403
from regdist.methods.presets.tokens import *  # noqa: F403
from regdist.methods.presets.trust import *  # noqa: F403
from regdist.methods.torch_loss import TorchBatch as TorchBatch
from regdist.methods.torch_loss import from_torch as from_torch
from regdist.numerics.face import shown


def __dir__() -> list[str]:
    of_samples = "advantage averaging controller matching penalty signal surrogate weight"
    of_steps = "token_advantage token_balance token_shaping token_weight"
    return shown(globals(), ("off_policy", *of_samples.split(), *of_steps.split()))
