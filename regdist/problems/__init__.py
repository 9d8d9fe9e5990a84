"""Named problems: a bandit with the names of its outcomes."""

from regdist.numerics.face import shown
from regdist.problems.files import load as load
from regdist.problems.game24 import game_of_24 as game_of_24
from regdist.problems.landscapes import landscape as landscape
from regdist.problems.landscapes import two_modes as two_modes
from regdist.problems.names import by_name as by_name
from regdist.problems.on_tree import OnTree as OnTree
from regdist.problems.state_table import StateTable as StateTable
from regdist.problems.task import Task as Task


def __dir__() -> list[str]:
    return shown(globals())
