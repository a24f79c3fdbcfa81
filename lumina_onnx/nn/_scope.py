"""What `with` blocks set for a model's layers, kept in the thread and context that entered them, never in the layers.

Each layer has an :class:`Identity`, a number. A :class:`Block` holds settings by these numbers, and a context variable
holds the blocks that a thread, or an asyncio task, is in.

A compiled graph belongs to no thread. It hands the layer's number to ``lumina::draw_stream``, which looks the setting
up when it runs. The number is a tensor, so that another number does not make torch compile again.
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

#: Kinds of blocks: NOISE sets (on, stream) of the noise, SUBSTITUTE a `linear.Substitute` that runs in a layer's place;
#: GRADIENT_BITS the bits of its gradient's products; CAPTURE is around the capture of a model for ONNX Runtime.
NOISE, SUBSTITUTE, GRADIENT_BITS, CAPTURE = "noise", "substitute", "gradient_bits", "capture"
#: In place of a layer's number: each layer, and each call of the function.
EACH = 0

_blocks: ContextVar[tuple[Block, ...]] = ContextVar("lumina_onnx.nn", default=())
_entered: ContextVar[None] = ContextVar("lumina_onnx.nn entered")
_numbers = itertools.count(1)

#: The blocks that the current thread and context is in, innermost first.
current = _blocks.get


class Block:
    """One `with` block: what it sets, by the numbers of the layers.

    Blocks may be left in any order, as those of suspended generators are. A block that is left in another context than
    the one it was entered in (by a generator that the garbage collector or an event loop ends) is over in every
    context, since nothing else could end it where it was entered. Otherwise, code that inherited the context stays in
    the block.
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
        except ValueError:  # the token belongs to another context
            self.over = True
        _blocks.set(tuple(block for block in _running() if block is not self))


def _running() -> tuple[Block, ...]:
    return tuple(block for block in current() if not block.over)


def settings_of(number: int) -> dict[str, Any]:
    """What the innermost block of each kind sets for the layer with this number."""
    found: dict[str, Any] = {}
    for block in current():
        place = number if number in block.settings else EACH
        if place in block.settings and not block.over:
            found.setdefault(block.kind, block.settings[place])
    return found


# When torch.compile's tracer runs for an export, it takes the results of these as constants, which the program keeps.


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def noise_of(number: int) -> tuple[bool, int | None]:
    """Whether a layer's noise is on, and its stream where that is fixed."""
    noise: tuple[bool, int | None] = settings_of(number).get(NOISE, (True, None))
    return noise


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def gradient_bits_of_call(own: int | None) -> int | None:
    """The bits of a gradient's products: `own`, those of the layer, unless a block sets others."""
    bits: int | None = settings_of(EACH).get(GRADIENT_BITS, own)
    return bits


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def is_captured() -> bool:
    """Whether a model is being captured for ONNX Runtime, where each node counts its own streams."""
    return any(block.kind == CAPTURE and not block.over for block in current())


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def is_exported_by_others() -> bool:
    """Whether ``torch.onnx.export`` is running, but not for our exporter."""
    return torch.onnx.is_in_onnx_export() and not is_captured()


def capturing() -> Block:
    """The block around a capture for ONNX Runtime."""
    return Block(CAPTURE, {})


def number_tensor(number: int) -> Tensor:
    """A number as an int64 tensor of one element, which is real even where tensors are made fake."""
    with torch.inference_mode(False), _disable_current_modes():
        return torch.from_numpy(np.array(number, dtype=np.int64))


class Identity:
    """A layer's identity in this process: a copy of the layer, however it is made, has another one.

    Attributes:
        number: a number that no other layer of the process has or had.
        tensor: the same number as a tensor, for compiled graphs.
    """

    def __init__(self) -> None:
        self.number = next(_numbers)
        self.tensor = number_tensor(self.number)

    def __deepcopy__(self, memo: dict[int, Any]) -> Identity:
        return Identity()

    def __reduce__(self) -> tuple[type[Identity], tuple[()]]:
        return Identity, ()
