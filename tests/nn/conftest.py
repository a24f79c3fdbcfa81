"""Turns off hypothesis's deadline: threads start and torch compiles within the first example."""

from hypothesis import settings

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
