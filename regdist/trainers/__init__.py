"""Configurations of trainers: what they compose, and where that goes."""

from regdist.numerics.face import shown
from regdist.trainers.explanation import TRAINERS as TRAINERS
from regdist.trainers.explanation import Explanation as Explanation
from regdist.trainers.explanation import as_json as as_json
from regdist.trainers.explanation import explain as explain
from regdist.trainers.explanation import options_page as options_page
from regdist.trainers.settings import read as read


def __dir__() -> list[str]:
    return shown(globals())
