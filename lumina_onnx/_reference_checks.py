"""Checks of arguments, and the parameters once checked. Errors name the argument, its value and what is allowed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._reference_noise import check_keys
from ._reference_quantizer import largest_code

Floats = NDArray[np.float32]
Range = float | Sequence[float] | Floats


MAX_INTEGER_K = 131072
"""Largest K of an exact integer product: 127 * 127 * 131072 < 2^31."""
MAX_TILES = 65536
"""Most parts of a row: a sum of that many codes of 16 bits is below 2^31."""
LEAST_PHOTONS = 1e-6
PHOTONS_ALLOWED = "0 (no shot noise of light), or a finite number >= 1e-6"
LEAST_FINE_SIGMA = np.float32(0.6)
"""The smallest sigma of additive noise on inputs, in steps of the grid that they are rounded to."""


@dataclass(frozen=True)
class Params:
    input_bits: int
    weight_bits: int
    output_bits: int
    input_range: np.float32
    """0 = dynamic."""
    output_range: Floats
    """[1] or [N]; a single 0 = dynamic, or `output_bound`."""
    relative: np.float32
    additive: np.float32
    shot: np.float32
    bias_stage: str
    tile_features: int
    output_bound: np.float32
    read: np.float32
    photons: np.float32
    detection: str
    photon_reference: str
    input_relative: np.float32
    input_additive: np.float32
    weight_levels: int
    seed: int
    stream: int

    @staticmethod
    def check(
        *,
        input_bits: int,
        weight_bits: int,
        output_bits: int,
        input_range: float,
        output_range: Range,
        noise_relative: float,
        noise_additive: float,
        noise_shot: float,
        bias_stage: str,
        tile_features: int,
        output_bound: float,
        noise_read: float,
        photons: float,
        detection: str,
        photon_reference: str,
        input_noise_relative: float,
        input_noise_additive: float,
        weight_levels: int,
        seed: int,
        stream: int,
    ) -> Params:
        check_bits("input_bits", input_bits, (0, *range(2, 17)), "0 (analog), 2..16")
        check_bits("weight_bits", weight_bits, range(17), "0 (analog), 1..16")
        check_bits("output_bits", output_bits, (0, *range(2, 17)), "0 (no ADC), 2..16")
        check_bits("tile_features", tile_features, range(131073), "0 (the whole row), 1..131072")
        check_bits("weight_levels", weight_levels, range(32768), "0 (L), 1..L, the largest code of weight_bits")
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
        params = Params(
            input_bits,
            weight_bits,
            output_bits,
            level("input_range", input_range),
            ranges,
            level("noise_relative", noise_relative),
            level("noise_additive", noise_additive),
            level("noise_shot", noise_shot),
            bias_stage,
            tile_features,
            level("output_bound", output_bound),
            level("noise_read", noise_read),
            level("photons", photons, least=LEAST_PHOTONS, allowed=PHOTONS_ALLOWED),
            choice("detection", detection, "offset", "balanced"),
            choice("photon_reference", photon_reference, "full_scale", "mean"),
            level("input_noise_relative", input_noise_relative, most=1, allowed="0..1"),
            level("input_noise_additive", input_noise_additive, most=1, allowed="0..1"),
            weight_levels,
            seed,
            stream,
        )
        params._check_readers()
        params._check_full_scales()
        params._check_input_noise()
        return params

    def _check_readers(self) -> None:
        """Refuses what nothing would read."""
        for name, value, default in (
            ("detection", self.detection, "offset"),
            ("photon_reference", self.photon_reference, "full_scale"),
        ):
            if value != default and not self.photons:
                raise ValueError(f'{name} = "{value}" would be ignored: with photons 0 there is no light')
        for name, level in (
            ("input_noise_relative", self.input_relative),
            ("input_noise_additive", self.input_additive),
        ):
            if level and not self.input_bits:
                raise ValueError(
                    f"{name} = {text(level)} would be ignored: with input_bits 0 there is no DAC behind which it enters"
                )
        if self.weight_levels and not (self.reads_light or self.output_bound):
            raise ValueError(
                f"weight_levels = {self.weight_levels} would be ignored: without noise_read, photons and output_bound "
                "nothing refers to a weight's full scale"
            )

    def _check_full_scales(self) -> None:
        bound, photons = self.output_bound, self.photons
        if bound and self.output_range[0] != 0:
            given = ", ".join(text(number) for number in self.output_range)
            raise ValueError(
                f"output_bound = {text(bound)}: allowed is 0 where output_range is given "
                f"({given if len(self.output_range) == 1 else f'[{given}]'}): both are the ADC's full scale"
            )
        for name, value in (("output_bound", bound), ("noise_read", self.read), ("photons", photons)):
            if value and not (self.input_bits and self.weight_bits):
                raise ValueError(
                    f"{name} = {text(value)}: allowed is 0 where input_bits ({self.input_bits}) or weight_bits "
                    f"({self.weight_bits}) is 0: it refers to the full scale of both"
                )
        if bound and self.bias_stage == "analog":
            raise ValueError(
                f'output_bound = {text(bound)}: allowed is 0 where bias_stage is "analog": an output without light '
                "would lose its bias"
            )
        if photons and self.shot:
            raise ValueError(
                f"noise_shot = {text(self.shot)}: allowed is 0 where photons is given ({text(photons)}): both are the "
                "shot noise"
            )
        largest = largest_code(self.weight_bits) if self.weight_bits else 0
        if self.weight_levels > largest:
            raise ValueError(
                f"weight_levels = {self.weight_levels}: allowed is 0 or 1..{largest}, the largest code with "
                f"weight_bits {self.weight_bits}"
            )

    def _check_input_noise(self) -> None:
        if not self.input_additive:
            return
        fine = np.float32(self.input_full_scale)
        least = LEAST_FINE_SIGMA / fine
        words = text(least) if least >= 1e-4 else np.format_float_scientific(least, exp_digits=1)
        if self.input_additive < LEAST_FINE_SIGMA / fine:
            raise ValueError(
                f"input_noise_additive = {text(self.input_additive)}: allowed is 0, or at least {words} "
                f"with input_bits {self.input_bits}: a smaller sigma is below {text(LEAST_FINE_SIGMA)} steps of the "
                "grid that noisy inputs are rounded to"
            )

    def check_shape(self, n: int, k: int) -> None:
        """Checks what depends on N outputs and K inputs."""
        if len(self.output_range) not in (1, n):
            raise ValueError(
                f"output_range has {len(self.output_range)} elements: "
                f"allowed is 1, or one for each of the N = {n} outputs"
            )
        if len(self.tiles(k)) > MAX_TILES:
            raise ValueError(
                f"tile_features = {self.tile_features}: allowed is at least {-(-k // MAX_TILES)} for K = {k}, so that "
                f"a row has at most {MAX_TILES} parts"
            )
        if self.integer and k > MAX_INTEGER_K:
            raise ValueError(
                f"K (columns of weight) = {k}: allowed is at most {MAX_INTEGER_K} where input_bits ({self.input_bits}) "
                f"and weight_bits ({self.weight_bits}) are both 1..8, so that the sum is exact in 32 bits"
            )

    def check_bound(self, scale: Floats) -> None:
        """Checks that the full scale of each channel is finite; `scale` ``[N]`` is the step of a weight code."""
        with np.errstate(over="ignore"):
            full_scale = self.output_bound * (scale * np.float32(self.weight_full_scale))
        if not np.isfinite(full_scale).all():
            raise ValueError(
                f"output_bound = {text(self.output_bound)}: allowed is a number with which output_bound * weight_scale "
                f"* L_w is finite, which it is not for output {np.argwhere(~np.isfinite(full_scale))[0, 0]}"
            )

    @property
    def dynamic_output(self) -> bool:
        return bool(self.output_range[0] == 0 and not self.output_bound)

    @property
    def integer(self) -> bool:
        """Whether the product is computed exactly, in integers."""
        return 1 <= self.input_bits <= 8 and 1 <= self.weight_bits <= 8

    @property
    def reads_range(self) -> bool:
        """Whether a law of the noise on outputs reads R."""
        return bool(self.additive or self.shot)

    @property
    def reads_light(self) -> bool:
        """Whether a law of the noise on outputs reads sums over the codes of inputs."""
        return bool(self.read or self.photons)

    @property
    def noisy_outputs(self) -> bool:
        return bool(self.relative) or self.reads_range or self.reads_light

    @property
    def balanced(self) -> bool:
        return self.detection == "balanced"

    @property
    def noisy_inputs(self) -> bool:
        return bool(self.input_relative or self.input_additive)

    @property
    def input_code_bits(self) -> int:
        """Bits of the codes of X in the product: noise rounds them to a grid as fine as their type holds."""
        if not self.noisy_inputs:
            return self.input_bits
        return 8 if self.input_bits <= 8 else 16

    @property
    def input_shift(self) -> int:
        """g: a step of the DAC is 2^g steps of that grid."""
        return self.input_code_bits - self.input_bits

    @property
    def input_full_scale(self) -> int:
        """L_x: the code in the product that is the DAC's full scale."""
        return largest_code(self.input_bits) << self.input_shift

    @property
    def weight_full_scale(self) -> int:
        """L_w: the code that is a weight's full scale."""
        return self.weight_levels or largest_code(self.weight_bits)

    def tiles(self, k: int) -> list[slice]:
        """The parts of a row of `k` inputs, in order."""
        tile = min(self.tile_features or k, k)
        return [slice(start, min(start + tile, k)) for start in range(0, k, tile)]


def float32(value: Any) -> Floats:
    with np.errstate(over="ignore"):
        return np.asarray(value, dtype=np.float64).astype(np.float32)


def spread(name: str, value: Any, n: int) -> Floats:
    values = float32(value).reshape(-1)
    if len(values) not in (1, n):
        raise ValueError(f"{name} has {len(values)} elements: allowed is 1, or one for each of the N = {n} outputs")
    return np.full(n, values, dtype=np.float32)


def level(
    name: str,
    value: float,
    *,
    least: float = 0.0,
    most: float = np.inf,
    allowed: str = "a finite number >= 0 (in 32 bits)",
) -> np.float32:
    """A number in 32 bits: 0, or `least` to `most`, which is `allowed` in words."""
    rounded: np.float32 = float32(value).reshape(1)[0]
    inside = np.isfinite(rounded) and (rounded == 0 or np.float32(least) <= rounded <= most)
    if not inside or (value != 0 and rounded == 0):
        raise ValueError(f"{name} = {value}: allowed is {allowed}")
    return rounded


def choice(name: str, value: str, *choices: str) -> str:
    if value not in choices:
        allowed = ", ".join(f'"{each}"' for each in choices)
        raise ValueError(f'{name} = "{value}": allowed is {allowed}')
    return value


def text(value: np.float32) -> str:
    """A number with the fewest digits that give it back, and no exponent."""
    return np.format_float_positional(value, unique=True, trim="-")


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
