"""Modes of a model or of the whole process, shared by the blocks of several threads.

The first to enter remembers the mode before, the last to leave restores it.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from weakref import WeakKeyDictionary

import torch
from torch import nn

_lock = threading.Lock()
# For each module, the number of blocks that evaluate it and its mode before the first.
_evaluated: WeakKeyDictionary[nn.Module, tuple[int, bool]] = WeakKeyDictionary()
_uncompiled = 0
_stance: contextlib.ExitStack = contextlib.ExitStack()


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Puts a model into eval mode, and at the end restores the mode of each of its modules."""
    modules = list(model.modules())
    with _lock:
        for module in modules:
            blocks, mode = _evaluated.get(module, (0, module.training))
            _evaluated[module] = (blocks + 1, mode)
    try:
        model.eval()
        yield
    finally:
        with _lock:
            for module in modules:
                blocks, mode = _evaluated.pop(module)
                if blocks > 1:
                    _evaluated[module] = (blocks - 1, mode)
                else:
                    module.training = mode


@contextlib.contextmanager
def uncompiled() -> Iterator[None]:
    """Makes compiled models run their original code: a compiled graph does not see which context it runs in."""
    global _uncompiled
    with _lock:
        if not _uncompiled:
            _stance.enter_context(torch.compiler.set_stance("force_eager"))
        _uncompiled += 1
    try:
        yield
    finally:
        with _lock:
            _uncompiled -= 1
            if not _uncompiled:
                _stance.close()
