"""The OpticalLinear kernel: y = ADC(DAC(x) . W + b + noise), fused, on numpy arrays and CPU torch tensors.

Arrays are float32 and C-contiguous unless another dtype is named. Wherever an array is taken, a CPU torch tensor
that does not require grad is taken as well, in place. M, N and K are rows, outputs and inputs.
"""

from collections.abc import Iterable
from typing import Any, Literal, Protocol, SupportsFloat, SupportsIndex, TypeAlias, TypedDict, TypeVar, final

import numpy as np
import numpy.typing as npt
from typing_extensions import Self

__all__ = [
    "OP_DOMAIN",
    "OP_DOMAIN_VERSION",
    "OP_NAME",
    "OP_VERSION",
    "OP_VERSION_ATTRIBUTE",
    "Params",
    "PreparedLayer",
    "Saved",
    "_Tensors",
    "__version__",
    "_saved_bytes",
    "available_isas",
    "forward_train",
    "hello_lumina",
    "isa",
    "manual_seed",
    "noise",
    "num_threads",
    "optical_linear_backward_kernel",
    "optical_linear_forward",
    "optical_linear_fused",
    "optical_linear_infer",
    "pack_weight",
    "quantize_weight",
    "schema",
    "set_num_threads",
    "unpack_weight",
    "version",
]

class _Array(Protocol):
    """A numpy array or a torch tensor."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> Any: ...
    def __len__(self) -> int: ...

_ArrayT = TypeVar("_ArrayT", bound=_Array)
_Numbers: TypeAlias = SupportsFloat | Iterable[SupportsFloat]
_BiasStage: TypeAlias = Literal["analog", "digital"]
_Detection: TypeAlias = Literal["offset", "balanced"]
_PhotonReference: TypeAlias = Literal["full_scale", "mean"]
_Precision: TypeAlias = Literal["highest", "high", "medium", "8 bits"]

class _Parameter(TypedDict):
    name: str
    type: Literal["INT", "FLOAT", "FLOATS", "STRING"]
    place: Literal["attribute", "input", "call"]
    default: int | float | str | None
    minimum: int | float | None
    maximum: int | float | None
    choices: tuple[str, ...]
    allowed: str
    meaning: str
    since: int
    draws_noise: bool

__version__: str
OP_DOMAIN: str
"""The ONNX domain of the operator."""
OP_NAME: str
"""The operator's name in its domain."""
OP_VERSION: int
"""The latest version of the operator; earlier ones are there, too."""
OP_DOMAIN_VERSION: int
"""The version of the domain that models import, whatever that of the operator."""
OP_VERSION_ATTRIBUTE: str
"""The attribute that holds the version of the operator a node was made for."""

def optical_linear_forward(
    input: _ArrayT,
    weight: _Array,
    bias: _Array | None,
    noise_std: SupportsFloat,
    bits: SupportsIndex,
    *,
    input_bits: SupportsIndex = 0,
    weight_bits: SupportsIndex = 0,
    input_range: SupportsFloat = 0.0,
    output_range: _Numbers = 0.0,
    weight_scale: _Numbers | None = None,
    noise_additive: SupportsFloat = 0.0,
    noise_shot: SupportsFloat = 0.0,
    bias_stage: _BiasStage = "analog",
    tile_features: SupportsIndex = 0,
    output_bound: SupportsFloat = 0.0,
    noise_read: SupportsFloat = 0.0,
    photons: SupportsFloat = 0.0,
    detection: _Detection = "offset",
    photon_reference: _PhotonReference = "full_scale",
    input_noise_relative: SupportsFloat = 0.0,
    input_noise_additive: SupportsFloat = 0.0,
    weight_levels: SupportsIndex = 0,
    seed: SupportsIndex | None = None,
    stream: SupportsIndex | None = None,
    out: _ArrayT | None = None,
) -> _ArrayT:
    """y = ADC(DAC(x) . W + b + noise), in one pass.

    Without `seed` every call draws fresh noise (`manual_seed` restarts it); with `seed` the call repeats bit for bit.

    Args:
        input: X, [..., K]. With no rows (M = 0) the result is empty.
        weight: W, [N, K]; quantised here where weight_bits > 0.
        bias: [N], or None.
        noise_std: sigma as a fraction of the signal (noise_relative).
        bits: ADC resolution, 0 (no ADC) or 2..16 (output_bits).
        input_bits: DAC resolution, 0 (analog) or 2..16.
        weight_bits: modulator resolution, 0 (analog) or 1..16.
        input_range: DAC full scale; 0 = the row's own maximum.
        output_range: ADC full scale, one number or one per output; 0 = the row's own maximum.
        weight_scale: step of one weight code, one number or one per output.
        noise_additive: sigma as a fraction of the full scale.
        noise_shot: sigma = noise_shot * sqrt(|z| * full scale).
        bias_stage: "analog" (before noise and ADC) or "digital" (after the ADC).
        tile_features: inputs of one pass of the core, with noise and an ADC of its own; 0 = the whole row.
        output_bound: ADC full scale in products of two full-scale operands, in place of output_range; 0 = none.
        noise_read: sigma of each weight in each use, as a fraction of its full scale.
        photons: photons of a full-scale product on the detector; 0 = no shot noise of light.
        detection: the light that the detector sees, "offset" or "balanced".
        photon_reference: what `photons` is that of: a "full_scale" product, or the row's "mean".
        input_noise_relative: sigma on the inputs behind the DAC as a fraction of the value, 0..1.
        input_noise_additive: the same as a fraction of the DAC's full scale.
        weight_levels: the code that is a weight's full scale; 0 = the largest.
        seed: 0..2^63-1, key of the noise.
        stream: 0..2^63-1, counts the draws under one seed; 0 if only the seed is given.
        out: [..., N] to write the result into; must not share memory with the inputs.

    Returns:
        Y, [..., N], of the kind of `input`; this is `out`, if given.

    Raises:
        TypeError: An argument of another kind or dtype.
        ValueError: A value or shape that is not allowed, an array that is not C-contiguous, a tensor on another
            device or one that requires grad.
    """

def optical_linear_fused(
    input: _ArrayT,
    weight: _Array,
    bias: _Array | None,
    noise_std: SupportsFloat,
    bits: SupportsIndex,
    seed: SupportsIndex,
) -> _ArrayT:
    """What LuminaFlow's SDK calls in training: `optical_linear_forward` with a seed.

    Rows have noise of their own, and a call with the same seed repeats bit for bit.

    Args:
        input: X, [..., K]; a numpy array in another order than C is copied.
        weight: W, [N, K], analog.
        bias: [N], or None.
        noise_std: sigma as a fraction of the signal.
        bits: ADC resolution, 2..16; 0, and 32 or more, mean no ADC.
        seed: 0..2^63-1, key of the noise.

    Returns:
        Y, [..., N].

    Raises:
        TypeError: An argument of another kind or dtype.
        ValueError: A value or shape that is not allowed.
    """

def optical_linear_infer(input: _ArrayT, weight: _Array, bias: _Array | None, bits: SupportsIndex) -> _ArrayT:
    """What LuminaFlow's SDK calls in inference: `optical_linear_fused` without noise."""

def optical_linear_backward_kernel(grad_output: _Array, input: _ArrayT, weight: _Array) -> tuple[_ArrayT, _ArrayT]:
    """The straight-through gradient of `optical_linear_fused`: grad_output . W [M, K] and grad_output^T . X [N, K].

    Args:
        grad_output: [M, N]; a numpy array in another order than C is copied, here and below.
        input: X, [M, K].
        weight: W, [N, K].

    Raises:
        TypeError: An array of another kind or dtype.
        ValueError: An array whose shape does not fit the others.
    """

def version() -> str:
    """The module's version, for LuminaFlow's SDK; the same as `__version__`."""

def hello_lumina() -> str:
    """A greeting, for LuminaFlow's SDK, with the version, the instruction-set tier and the number of threads."""

def manual_seed(seed: SupportsIndex) -> None:
    """Restarts the noise of calls without a seed: after it, the same calls draw the same noise.

    Until this function is first called, the seed comes from the operating system.
    """

def noise(
    seed: SupportsIndex, stream: SupportsIndex, rows: SupportsIndex, columns: SupportsIndex, out: _Array | None = None
) -> Any:
    """The standard normals eps [M, N] that a call with this seed and stream draws, as a numpy array.

    The value at (m, n) depends on seed, stream, m and n alone.

    Args:
        seed: 0..2^63-1.
        stream: 0..2^63-1.
        rows: M; may be 0.
        columns: N; may be 0.
        out: [M, N] to write the result into; it is returned.
    """

def schema() -> list[_Parameter]:
    """The operator's parameters, one dict each, in the order of the documentation."""

def isa() -> str:
    """The instruction-set tier in use: the fastest that this processor has, or the one that LUMINA_ISA names.

    Raises:
        ValueError: LUMINA_ISA names a tier that this processor lacks.
    """

def available_isas() -> list[str]:
    """The instruction-set tiers of this processor, slowest first."""

def num_threads() -> int:
    """The maximum number of threads that a call uses."""

def set_num_threads(n: SupportsIndex) -> None:
    """Sets the maximum number of threads that a call uses, 1..4096. Results do not depend on it."""

@final
class Params:
    """The parameters of an optical linear layer, checked. Immutable; floats are kept in 32 bits.

    Raises:
        ValueError: A value that is not allowed, or that the others make meaningless.
    """

    def __new__(
        cls,
        *,
        input_bits: SupportsIndex = 0,
        weight_bits: SupportsIndex = 0,
        output_bits: SupportsIndex = 8,
        input_range: SupportsFloat = 0.0,
        output_range: _Numbers = 0.0,
        noise_relative: SupportsFloat = 0.0,
        noise_additive: SupportsFloat = 0.0,
        noise_shot: SupportsFloat = 0.0,
        bias_stage: _BiasStage = "analog",
        tile_features: SupportsIndex = 0,
        output_bound: SupportsFloat = 0.0,
        noise_read: SupportsFloat = 0.0,
        photons: SupportsFloat = 0.0,
        detection: _Detection = "offset",
        photon_reference: _PhotonReference = "full_scale",
        input_noise_relative: SupportsFloat = 0.0,
        input_noise_additive: SupportsFloat = 0.0,
        weight_levels: SupportsIndex = 0,
    ) -> Self: ...
    @property
    def input_bits(self) -> int: ...
    @property
    def weight_bits(self) -> int: ...
    @property
    def output_bits(self) -> int: ...
    @property
    def input_range(self) -> float: ...
    @property
    def output_range(self) -> float | tuple[float, ...]: ...
    @property
    def noise_relative(self) -> float: ...
    @property
    def noise_additive(self) -> float: ...
    @property
    def noise_shot(self) -> float: ...
    @property
    def bias_stage(self) -> _BiasStage: ...
    @property
    def tile_features(self) -> int: ...
    @property
    def output_bound(self) -> float: ...
    @property
    def noise_read(self) -> float: ...
    @property
    def photons(self) -> float: ...
    @property
    def detection(self) -> _Detection: ...
    @property
    def photon_reference(self) -> _PhotonReference: ...
    @property
    def input_noise_relative(self) -> float: ...
    @property
    def input_noise_additive(self) -> float: ...
    @property
    def weight_levels(self) -> int: ...
    def __eq__(self, other: object, /) -> bool: ...
    def __ne__(self, other: object, /) -> bool: ...
    def __hash__(self) -> int: ...
    def __getnewargs_ex__(self) -> tuple[tuple[()], dict[str, Any]]: ...

@final
class PreparedLayer:
    """A layer whose weights are quantised and packed once.

    Args:
        params: The layer's parameters.
        weight: [N, K].
        bias: [N], or None.
        weight_scale: Step of one weight code, one number or one per output; None for the default.
    """

    def __new__(
        cls, params: Params, weight: _Array, bias: _Array | None = None, weight_scale: _Numbers | None = None
    ) -> Self: ...
    def forward(self, x: _ArrayT, seed: SupportsIndex, stream: SupportsIndex, out: _ArrayT | None = None) -> _ArrayT:
        """Y [..., N] for X [..., K], as from `optical_linear_forward`."""

    @property
    def n(self) -> int:
        """N, the outputs."""

    @property
    def k(self) -> int:
        """K, the inputs."""

    @property
    def weight_scale(self) -> npt.NDArray[np.float32]:
        """The step of one weight code, [N]; ones where the weights are analog."""

def quantize_weight(
    weight: _Array, bits: SupportsIndex, weight_scale: _Numbers | None = None
) -> tuple[npt.NDArray[np.int8] | npt.NDArray[np.int16], npt.NDArray[np.float32]]:
    """The codes [N, K] of weights [N, K] at 1..16 bits (int8; from 9 bits on int16), and the scale [N]."""

def pack_weight(codes: _Array, bits: SupportsIndex) -> npt.NDArray[np.uint8]:
    """Packs int8 codes [N, K] of 1, 2 or 4 bits, several to a byte: uint8 [N, ceil(K * bits / 8)].

    A code is stored as c + 2^(bits-1) (with 1 bit: 0 for -1 and 1 for +1), low bits first, rows padded with zero bits.
    """

def unpack_weight(packed: _Array, bits: SupportsIndex, in_features: SupportsIndex) -> npt.NDArray[np.int8]:
    """The inverse of `pack_weight`: int8 [N, K].

    Raises:
        ValueError: Also for a code of -2^(bits-1), which no quantiser gives, and for padding bits that are not 0.
    """

@final
class Saved:
    """What `forward_train` saved for the gradient.

    It refers to the weights, and to x if that is analog: they must be unchanged when `backward` is called.
    """

    @property
    def x_codes(self) -> npt.NDArray[np.int8] | npt.NDArray[np.int16] | None:
        """The codes of X [M, K]; None where X is analog."""

    @property
    def x_step(self) -> npt.NDArray[np.float32]:
        """The step of one code of X, [M]; NaN in rows that are NaN throughout."""

    @property
    def weight_scale(self) -> npt.NDArray[np.float32]:
        """The step of one weight code, [N]."""

    @property
    def adc_saturated(self) -> npt.NDArray[np.bool_] | None:
        """Where the ADC saturated, [M, N], or [M, tiles, N] where rows are split into tiles.

        None where it cannot (no ADC, or a dynamic output_range).
        """

    @property
    def dac_saturated(self) -> npt.NDArray[np.bool_] | None:
        """Where the DAC saturated, [M, K]; None where it cannot (a dynamic input_range)."""

    def backward(self, dy: _ArrayT, precision: _Precision = "highest") -> tuple[_ArrayT, _ArrayT, _ArrayT]:
        """The straight-through gradient: dx [M, K], dw [N, K] and db [N], of the kind of dy.

        Args:
            dy: [M, N].
            precision: "highest", "high" or "medium", as in torch.set_float32_matmul_precision; or "8 bits".

        "highest" is float32 in a fixed order. At the others, g s (g: dy where the ADC did not saturate; s: x_step or
        weight_scale) is cut into blocks of the terms of a sum and rounded to a fixed point, whose full scale is the
        block's largest magnitude: 16 bits in blocks of 512 terms at "high" and "medium", 8 bits in blocks of 256 terms
        at "8 bits". Its products with codes c of up to 8 bits are exact. Results are the same bits on every processor
        and for any number of threads. An element of dx or dw, a sum of T terms in B blocks, is off the exact sum by at
        most

            (T + 2) 2^-23 sum |g s c|  +  T 2^-125 (1 + max |c|)

        at "highest", and at the others

            sum over blocks of max|g s| sum|c| / (2 L - 1)  +  (2 B + 8) 2^-24 sum |g s c|  +  T 2^-112 (1 + max |c|)

        with L = 32639 or, for 8 bits, 127; where nothing overflows. A side that is analog or has codes of more than 8
        bits is computed as at "highest", and so is db.

        Raises:
            TypeError: An argument of another kind or dtype.
            ValueError: A shape or value that is not allowed, or weights whose shape has changed since.
        """

def forward_train(
    params: Params,
    x: _ArrayT,
    weight: _Array,
    bias: _Array | None,
    seed: SupportsIndex,
    stream: SupportsIndex,
) -> tuple[_ArrayT, Saved]:
    """The forward pass, and what its gradient needs: Y [M, N], and a `Saved`, whose method is `backward`.

    Args:
        params: The layer's parameters.
        x: [M, K].
        weight: [N, K]; quantised here.
        bias: [N], or None.
        seed: 0..2^63-1, key of the noise.
        stream: 0..2^63-1.
    """

# Everything below is for `lumina_onnx.nn` only.

def _saved_bytes(params: Params, n: SupportsIndex, k: SupportsIndex, for_x: bool, for_weight: bool) -> tuple[int, int]:
    """The bytes that a forward pass saves for its gradient: a number per call, and a number per row of X."""

@final
class _Tensors:
    """The passes on torch's tensors, as torch's own C functions (DLPack's) describe them.

    Args:
        tensor: torch.Tensor.
        parameter: torch.nn.Parameter.
        empty: Makes a tensor in the CPU's memory from its sizes, strides and dtype.
        float32: torch.float32.
        uint8: torch.uint8.
        describe: Returns a tensor's dtype, address, sizes and strides, or None if it is not in the CPU's memory. None:
            the table of C functions of `tensor` does so.

    Raises:
        ValueError: `describe` is None, and torch has no such table or one of another version of DLPack.
    """

    def __new__(
        cls, tensor: type, parameter: type, empty: Any, float32: Any, uint8: Any, describe: Any = None
    ) -> Self: ...
    def is_float(self, tensor: object) -> bool:
        """Whether this is a float32 tensor in the CPU's memory, of no subclass but `parameter`, and not a wrapper."""

    def are_call(self, x: object, weight: object, bias: object) -> bool:
        """Whether these are such an input [..., K], weight [N, K], and bias [N] or None, with N and K at least 1."""

    def prepare(self, params: Params, weight: Any, bias: Any, threads: int) -> PreparedLayer:
        """A `PreparedLayer`."""

    def forward(
        self,
        params: Params,
        layer: PreparedLayer | None,
        x: Any,
        weight: Any,
        bias: Any,
        seed: SupportsIndex,
        stream: SupportsIndex,
        kept: tuple[bool, bool] | None,
        threads: int,
    ) -> tuple[Any, Any] | None:
        """The forward pass: Y, and what the gradients of X and of W need, as far as they are `kept`.

        That is uint8, or None where `kept` is. In place of both None, and nothing was done, if an operand is not dense,
        of another type or size, or stands for its negative. If there is a `layer`, its weights are used, and only the
        shapes of `weight` and `bias` are read. `threads` is torch's number of threads; later calls use as many.
        """

    def backward(
        self,
        params: Params,
        k: int,
        dy: Any,
        x: Any,
        weight: Any,
        saved: Any,
        needed: tuple[bool, bool, bool],
        kept: tuple[bool, bool],
        precision: _Precision,
        threads: int,
    ) -> tuple[Any, Any, Any] | None:
        """As `Saved.backward`, with None for a gradient that is not `needed`, and None for all as from `forward`.

        That is also the answer where `saved` is not aligned to 4 bytes. `weight` is read for dx, an analog x for dw.
        """
