"""Over what an update is averaged."""

from regdist.records import record


@record
class Population:
    """The exact expectation over actions: every action, weighted by its probability."""
