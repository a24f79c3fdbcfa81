"""Arrays and tensors of every kind, valid and invalid, in memory between canaries."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

CANARY = 96


class Subclass(np.ndarray):
    """An array like any other."""


class TensorSubclass(torch.Tensor):
    """A tensor like any other."""


class Wrong(NamedTuple):
    """The error with which a wrong argument is refused."""

    error: type[Exception]
    #: Part of the message.
    message: str


class Memory:
    """The memory of one call, each array between canaries."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.blocks: list[tuple[np.ndarray, np.ndarray, slice]] = []
        self.written: list[int] = []

    def put(self, values: np.ndarray, *, written: bool = False, unaligned: bool = False) -> np.ndarray:
        """A copy of `values` between canaries, in C order."""
        start = CANARY + 4 * int(self.rng.integers(8)) + unaligned
        block = self.rng.integers(0, 256, start + values.nbytes + CANARY, np.uint8)
        place = slice(start, start + values.nbytes)
        array: np.ndarray = np.frombuffer(block[place], values.dtype).reshape(values.shape)
        array[...] = values
        if written:
            self.written.append(len(self.blocks))
        self.blocks.append((block, block.copy(), place))
        return array

    def check(self, taken: bool) -> None:
        """Asserts that nothing has changed except, if the call was accepted, the memory for its results."""
        for index, (block, before, place) in enumerate(self.blocks):
            if taken and index in self.written:
                block, before = block.copy(), before.copy()
                block[place] = before[place] = 0
            assert np.array_equal(block, before), f"memory {index} was written"


Form = Callable[[Memory, np.ndarray], tuple[Any, Wrong | None]]


def contiguous(array: np.ndarray) -> Wrong | None:
    """What is wrong with an array that numpy does not report as C-contiguous and aligned; else None."""
    if not array.flags.c_contiguous:
        return Wrong(ValueError, "is not C-contiguous")
    return None if array.flags.aligned else Wrong(ValueError, "starts at an address")


def strided(step: int) -> Form:
    def form(memory: Memory, values: np.ndarray) -> tuple[Any, Wrong | None]:
        if values.ndim == 0:
            return memory.put(values), None
        wide = np.zeros((*values.shape[:-1], abs(step) * values.shape[-1]), values.dtype)
        array = memory.put(wide)[..., ::step]
        if array.flags.writeable:
            array[...] = values
            memory.blocks[-1][1][:] = memory.blocks[-1][0]
        return array, contiguous(array)

    return form


def fortran(memory: Memory, values: np.ndarray) -> tuple[Any, Wrong | None]:
    array = memory.put(np.ascontiguousarray(values.T)).T
    return array, contiguous(array)


def broadcast(memory: Memory, values: np.ndarray) -> tuple[Any, Wrong | None]:
    array = np.broadcast_to(memory.put(values[:1]), values.shape)
    # Broadcasting a single row changes nothing.
    return array, contiguous(array)


def ones_with_odd_strides(memory: Memory, values: np.ndarray) -> tuple[Any, Wrong | None]:
    array = memory.put(values)
    strides = [52 if size == 1 else stride for size, stride in zip(array.shape, array.strides, strict=True)]
    return np.lib.stride_tricks.as_strided(array, strides=strides), None


def read_only(memory: Memory, values: np.ndarray) -> tuple[Any, Wrong | None]:
    array = memory.put(values)
    array.flags.writeable = False
    return array, None


def unaligned(memory: Memory, values: np.ndarray) -> tuple[Any, Wrong | None]:
    array = memory.put(values, unaligned=True)
    return array, contiguous(array)


def cast(dtype: str) -> Form:
    wrong = Wrong(TypeError, " has dtype ")
    return lambda memory, values: (memory.put(values.astype(dtype)), None if values.dtype == dtype else wrong)


def other(make: Callable[[np.ndarray], Any]) -> Form:
    return lambda memory, values: (make(values), Wrong(TypeError, " is of type "))


def tensor(make: Callable[[torch.Tensor], torch.Tensor], wrong: Wrong | None = None) -> Form:
    def form(memory: Memory, values: np.ndarray) -> tuple[Any, Wrong | None]:
        # Without elements, a tensor needs no memory.
        found = None if wrong is NO_MEMORY and not values.size else wrong
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return make(torch.from_numpy(memory.put(values))), found

    return form


def transposed(memory: Memory, values: np.ndarray) -> tuple[Any, Wrong | None]:
    made = torch.from_numpy(memory.put(np.ascontiguousarray(values.T)))
    made = made.permute(*reversed(range(made.dim())))
    return made, contiguous(made.numpy())


def negated(made: torch.Tensor) -> torch.Tensor:
    """A tensor with the negative bit set: its values are the negated contents of its memory."""
    return torch.complex(torch.zeros_like(made), -made).conj().imag


def freed(made: torch.Tensor, offset: int = 9, left: int | None = 0) -> torch.Tensor:
    """A tensor at an offset in a storage that was freed, or (`left` None) is one byte too short."""
    made = torch.cat([made.new_zeros(offset), made.reshape(-1)])[offset:].view(made.shape)
    storage = made.untyped_storage()
    storage.resize_(storage.nbytes() - 1 if left is None else left)
    return made


def fake(made: torch.Tensor) -> torch.Tensor:
    """A tensor without memory that claims to be on the CPU, at an offset."""
    whole = FakeTensorMode().from_tensor(torch.zeros(made.numel() + 9))
    return whole[9:].view(made.shape)


NO_VIEW = Wrong(TypeError, "tensor without a numpy view")
NO_MEMORY = Wrong(ValueError, "allowed is one that has its memory")

GOOD: list[Form] = [
    lambda memory, values: (memory.put(values), None),
    lambda memory, values: (memory.put(values).view(Subclass), None),
    read_only,
    ones_with_odd_strides,
    tensor(lambda made: made),
    tensor(lambda made: torch.nn.Parameter(made, requires_grad=False)),
    tensor(lambda made: made.as_subclass(TensorSubclass)),
]
#: Some of these are valid after all, if the values have that dtype or a shape for which every order is the same.
ODD: list[Form] = [
    strided(2),
    strided(-1),
    strided(-3),
    fortran,
    broadcast,
    unaligned,
    transposed,
    *(cast(dtype) for dtype in ("f8", "f2", ">f4", "i4", "u1", "?", "c8", "V4")),
    *(other(make) for make in (list, str, bytes, memoryview, lambda values: 1.0, lambda values: {"a": values})),  # type: ignore[arg-type]
    lambda memory, values: (values.astype(object), Wrong(TypeError, " has dtype object")),
    tensor(lambda made: made.double(), Wrong(TypeError, " has dtype float64")),
    tensor(lambda made: made.bfloat16(), NO_VIEW),
    tensor(lambda made: made.to_sparse(), NO_VIEW),
    tensor(fake, NO_VIEW),
    tensor(lambda made: made.to("meta"), Wrong(ValueError, "is on the device meta")),
    tensor(freed, NO_MEMORY),
    tensor(lambda made: freed(made, 0), NO_MEMORY),
    tensor(lambda made: freed(made, left=None), NO_MEMORY),
]
ODD_FLOATS: list[Form] = [
    tensor(lambda made: made.clone().requires_grad_(), Wrong(ValueError, "requires grad")),
    tensor(lambda made: torch.nn.Parameter(made), Wrong(ValueError, "requires grad")),
    tensor(negated, NO_VIEW),
]
UNFIT: list[Form] = [
    strided(2),
    fortran,
    unaligned,
    cast("f8"),
    cast("i8"),
    other(list),
    lambda memory, values: (read_only(memory, values)[0], Wrong(ValueError, "is read-only")),
    lambda memory, values: (memory.put(np.ones((*values.shape, 1), values.dtype)), Wrong(ValueError, " has shape ")),
    lambda memory, values: (memory.put(np.ones(values.size + 1, values.dtype)), Wrong(ValueError, " has shape ")),
]
