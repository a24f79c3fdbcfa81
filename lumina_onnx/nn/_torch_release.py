"""Refuses a torch that is too old, before one of the names that it lacks does."""

import torch

#: The oldest release that the tests have run with; pyproject.toml names it too.
OLDEST = (2, 8)

if tuple(int(number) for number in torch.__version__.split(".")[:2]) < OLDEST:
    raise ImportError(f"torch {torch.__version__} is too old: allowed is PyTorch {'.'.join(map(str, OLDEST))} or newer")
