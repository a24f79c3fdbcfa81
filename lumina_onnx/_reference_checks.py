"""Checks of arguments, and the parameters once checked. Errors name the argument, its value and what is allowed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._reference_noise import check_keys

Floats = NDArray[np.float32]
Range = float | Sequence[float] | Floats


@dataclass(frozen=True)
class Params:
    input_bits: int
    weight_bits: int
    output_bits: int
    input_range: np.float32
    """0 = dynamic."""
    output_range: Floats
    """[1] or [N]; a single 0 = dynamic."""
    relative: np.float32
    additive: np.float32
    shot: np.float32
    bias_stage: str
    seed: int
    stream: int

    @staticmethod
    def check(
        input_bits: int,
        weight_bits: int,
        output_bits: int,
        input_range: float,
        output_range: Range,
        noise_relative: float,
        noise_additive: float,
        noise_shot: float,
        bias_stage: str,
        seed: int,
        stream: int,
    ) -> Params:
        check_bits("input_bits", input_bits, (0, *range(2, 17)), "0 (analog), 2..16")
        check_bits("weight_bits", weight_bits, range(17), "0 (analog), 1..16")
        check_bits("output_bits", output_bits, (0, *range(2, 17)), "0 (no ADC), 2..16")
        if input_bits == 0 and input_range != 0:
            raise ValueError(f"input_range = {input_range} would be ignored: with input_bits 0 there is no DAC")
        if bias_stage not in ("analog", "digital"):
            raise ValueError(f'bias_stage = {bias_stage!r}: allowed is "analog", "digital"')
        check_keys(seed, stream)
        ranges = float32(output_range).reshape(-1)
        allowed = "a single 0 (dynamic), or 1 or N finite numbers > 0"
        if len(ranges) == 0:
            raise ValueError(f"output_range has 0 elements: allowed is {allowed}")
        dynamic = np.ndim(output_range) <= 1 and np.array_equal(np.reshape(output_range, -1), [0])
        if not dynamic and not (np.isfinite(ranges) & (ranges > 0)).all():
            raise ValueError(f"output_range = {output_range}: allowed is {allowed}")
        return Params(
            input_bits,
            weight_bits,
            output_bits,
            level("input_range", input_range),
            ranges,
            level("noise_relative", noise_relative),
            level("noise_additive", noise_additive),
            level("noise_shot", noise_shot),
            bias_stage,
            seed,
            stream,
        )

    @property
    def dynamic_output(self) -> bool:
        return bool(self.output_range[0] == 0)

    @property
    def integer(self) -> bool:
        """Whether the product is computed exactly, in integers."""
        return 1 <= self.input_bits <= 8 and 1 <= self.weight_bits <= 8


def float32(value: Any) -> Floats:
    with np.errstate(over="ignore"):
        return np.asarray(value, dtype=np.float64).astype(np.float32)


def spread(name: str, value: Any, n: int) -> Floats:
    values = float32(value).reshape(-1)
    if len(values) not in (1, n):
        raise ValueError(f"{name} has {len(values)} elements: allowed is 1, or one for each of the N = {n} outputs")
    return np.full(n, values, dtype=np.float32)


def level(name: str, value: float) -> np.float32:
    rounded: np.float32 = float32(value).reshape(1)[0]
    if not (np.isfinite(rounded) and rounded >= 0) or (value != 0 and rounded == 0):
        raise ValueError(f"{name} = {value}: allowed is a finite number >= 0 (in 32 bits)")
    return rounded


def check_bits(name: str, bits: int, values: Iterable[int], allowed: str) -> None:
    if bits not in values:
        raise ValueError(f"{name} = {bits}: allowed is {allowed}")


def check_dtype(name: str, array: NDArray[Any]) -> None:
    if array.dtype != np.float32:
        raise TypeError(f"{name} has dtype {array.dtype}: allowed is float32")


def check_finite(name: str, array: NDArray[Any]) -> None:
    if not np.isfinite(array).all():
        index = np.argwhere(~np.isfinite(array))[0]
        raise ValueError(f"{name}{index.tolist()} = {array[tuple(index)]}: allowed is a finite number")
