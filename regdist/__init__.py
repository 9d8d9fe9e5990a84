"""regdist: exact target distributions of regularised RL, and where policy gradients really go."""

from regdist import logspace as logspace
from regdist.problem import Bandit as Bandit
from regdist.problem import bandit as bandit
from regdist.regularizer import AlphaDivergence as AlphaDivergence
from regdist.regularizer import Entropy as Entropy
from regdist.regularizer import ForwardKL as ForwardKL
from regdist.regularizer import Regularizer as Regularizer
from regdist.regularizer import ReverseKL as ReverseKL
from regdist.target import Target as Target
from regdist.target import objective as objective
from regdist.target import target as target
