"""Named problems: a bandit or a tree with the names of its outcomes."""

from regdist.numerics.face import shown
from regdist.problems.drawn import Drawn as Drawn
from regdist.problems.drawn import drawn_rewards as drawn_rewards
from regdist.problems.files import load as load
from regdist.problems.game24 import game_of_24 as game_of_24
from regdist.problems.landscapes import landscape as landscape
from regdist.problems.landscapes import two_modes as two_modes
from regdist.problems.names import by_name as by_name
from regdist.problems.placed import EachTable as EachTable
from regdist.problems.placed import OnContexts as OnContexts
from regdist.problems.placed import OnTree as OnTree
from regdist.problems.postfix import game_of_24_postfix as game_of_24_postfix
from regdist.problems.prompts import PromptTask as PromptTask
from regdist.problems.prompts import graded_prompts as graded_prompts
from regdist.problems.restarted import Restarts as Restarts
from regdist.problems.restarted import restarts as restarts
from regdist.problems.roles import Players as Players
from regdist.problems.roles import players as players
from regdist.problems.sequences import forks as forks
from regdist.problems.sequences import long_and_short as long_and_short
from regdist.problems.sequences import one_or_two as one_or_two
from regdist.problems.sequences import think_then_answer as think_then_answer
from regdist.problems.sequences import tool_call as tool_call
from regdist.problems.state_table import StateTable as StateTable
from regdist.problems.task import Task as Task
from regdist.problems.task import TreeTask as TreeTask


def __dir__() -> list[str]:
    return shown(globals())
