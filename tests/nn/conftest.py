"""No test here is timed: threads start and torch compiles within the first example."""

from hypothesis import settings

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
