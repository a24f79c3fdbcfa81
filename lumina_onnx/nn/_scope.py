"""What `with` blocks set for the layers of a model: of the thread and context that entered them, never of the layers.

Each layer has an :class:`Identity`, a number. A :class:`Block` holds settings by these numbers, and a context variable
holds the blocks that a thread, or an asyncio task, is in.

A compiled graph is of no thread. It hands the layer's number to ``lumina::draw_stream``, which asks for the setting
when it runs: as a tensor, since another number is then no reason to compile again.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

#: Kinds of blocks: (on, stream) of the noise, a `linear.Substitute` that runs in a layer's place, and a model that is
#: captured for ONNX Runtime, whoever its layers are.
NOISE, SUBSTITUTE, CAPTURE = "noise", "substitute", "capture"

_blocks: ContextVar[tuple[Block, ...]] = ContextVar("lumina_onnx.nn", default=())
_entered: ContextVar[None] = ContextVar("lumina_onnx.nn entered")
_numbers = itertools.count(1)

#: The blocks that the running thread and context is in, the innermost first.
current = _blocks.get


class Block:
    """One `with` block: what it sets, by the numbers of the layers.

    Blocks may be left in any order, as those of suspended generators are. One that is left in another context than it
    was entered in (by a generator that the garbage collector or an event loop ends) is over in every context, since
    nothing else could end it where it was entered. Apart from that, who inherited the context keeps the block.
    """

    __slots__ = ("_token", "kind", "over", "settings")

    _token: Token[None]

    def __init__(self, kind: str, settings: Mapping[int, Any]) -> None:
        self.kind = kind
        self.settings = settings
        self.over = False

    def __enter__(self) -> None:
        self._token = _entered.set(None)
        _blocks.set((self, *_running()))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            _entered.reset(self._token)
        except ValueError:  # the token is of another context
            self.over = True
        _blocks.set(tuple(block for block in _running() if block is not self))


def _running() -> tuple[Block, ...]:
    return tuple(block for block in current() if not block.over)


def settings_of(number: int) -> dict[str, Any]:
    """What the innermost block of each kind sets for the layer with this number."""
    found: dict[str, Any] = {}
    for block in current():
        if number in block.settings and not block.over:
            found.setdefault(block.kind, block.settings[number])
    return found


# Where torch.compile's tracer runs for an export, it takes what these return for a constant: the program keeps that.


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def noise_of(number: int) -> tuple[bool, int | None]:
    """Whether a layer's noise is on, and its stream where that is fixed."""
    noise: tuple[bool, int | None] = settings_of(number).get(NOISE, (True, None))
    return noise


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def is_captured() -> bool:
    """Whether a model is captured for ONNX Runtime, where each node counts its streams itself."""
    return any(block.kind == CAPTURE and not block.over for block in current())


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def is_exported_by_others() -> bool:
    """Whether ``torch.onnx.export`` runs, and not for our exporter."""
    return torch.onnx.is_in_onnx_export() and not is_captured()


def capturing() -> Block:
    """The block around a capture for ONNX Runtime."""
    return Block(CAPTURE, {})


def number_tensor(number: int) -> Tensor:
    """A number as an int64 tensor of one element, and a real one where tensors are made fake."""
    with torch.inference_mode(False), _disable_current_modes():
        return torch.from_numpy(np.array(number, dtype=np.int64))


class Identity:
    """Who a layer is in this process: a copy of it, however it is made, is another one.

    Attributes:
        number: one that no other layer of the process has or had.
        tensor: the same for compiled graphs.
    """

    def __init__(self) -> None:
        self.number = next(_numbers)
        self.tensor = number_tensor(self.number)

    def __deepcopy__(self, memo: dict[int, Any]) -> Identity:
        return Identity()

    def __reduce__(self) -> tuple[type[Identity], tuple[()]]:
        return Identity, ()
