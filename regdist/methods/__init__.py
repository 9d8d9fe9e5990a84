"""Methods: how a policy is moved. A method is a composition; `presets` names the known ones."""

from regdist.methods.expectation import Expectation as Expectation
from regdist.methods.expectation import Group as Group
from regdist.methods.expectation import Population as Population
from regdist.methods.expectation import Sampled as Sampled
from regdist.methods.method import Method as Method
from regdist.methods.method import field as field
from regdist.methods.presets import grpo as grpo
from regdist.methods.presets import natural_policy_gradient as natural_policy_gradient
from regdist.methods.presets import policy_gradient as policy_gradient
from regdist.methods.presets import rloo as rloo
