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
    "isa",
    "manual_seed",
    "noise",
    "num_threads",
    "optical_linear_forward",
    "pack_weight",
    "quantize_weight",
    "schema",
    "set_num_threads",
    "unpack_weight",
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
_Precision: TypeAlias = Literal["highest", "high", "medium"]

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

__version__: str
OP_DOMAIN: str
"""The ONNX domain of the operator."""
OP_NAME: str
"""The operator's name in its domain."""
OP_VERSION: int
"""The operator's version."""
OP_VERSION_ATTRIBUTE: str
"""The attribute in which a node says the version that it was made for."""

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
    seed: SupportsIndex | None = None,
    stream: SupportsIndex | None = None,
    out: _ArrayT | None = None,
) -> _ArrayT:
    """y = ADC(DAC(x) . W + b + noise), in one pass.

    Without `seed` every call draws fresh noise (`manual_seed` restarts it); with `seed` the call repeats bit for bit.

    Args:
        input: X, [..., K]. With no row (M = 0) the result is empty.
        weight: W, [N, K]; quantised here where weight_bits > 0.
        bias: [N], or None.
        noise_std: sigma as a fraction of the signal (noise_relative).
        bits: ADC resolution, 0 (no ADC) or 2..16 (output_bits).
        input_bits: DAC resolution, 0 (analog) or 2..16.
        weight_bits: modulator resolution, 0 (analog) or 1..16.
        input_range: DAC full scale; 0 = the row's own maximum.
        output_range: ADC full scale, one number or one for each output; 0 = the row's own maximum.
        weight_scale: step of one weight code, one number or one for each output.
        noise_additive: sigma as a fraction of the full scale.
        noise_shot: sigma = noise_shot * sqrt(|z| * full scale).
        bias_stage: "analog" (before noise and ADC) or "digital" (after the ADC).
        seed: 0..2^63-1, key of the noise.
        stream: 0..2^63-1, counts the draws under one seed; 0 where only the seed is given.
        out: [..., N] to write the result into; shares no memory with the inputs.

    Returns:
        Y, [..., N], of the kind of `input`; `out` where that is given.

    Raises:
        TypeError: An argument of another kind or dtype.
        ValueError: A value or shape that is not allowed, an array that is not C-contiguous, a tensor on another
            device or one that requires grad.
    """

def manual_seed(seed: SupportsIndex) -> None:
    """Restarts the noise of calls without a seed: after it the same calls draw the same noise.

    Until the first call of this function the seed comes from the operating system.
    """

def noise(
    seed: SupportsIndex, stream: SupportsIndex, rows: SupportsIndex, columns: SupportsIndex, out: _Array | None = None
) -> Any:
    """The standard normals eps [M, N] that a call with this seed and stream adds, as a numpy array.

    The value at (m, n) depends on seed, stream, m and n alone.

    Args:
        seed: 0..2^63-1.
        stream: 0..2^63-1.
        rows: M, may be 0.
        columns: N, may be 0.
        out: [M, N] to write the result into, and to return.
    """

def schema() -> list[_Parameter]:
    """The operator's parameters, one dict each, in the order of the documentation."""

def isa() -> str:
    """The instruction-set tier that runs: the fastest that this processor has, or LUMINA_ISA's.

    Raises:
        ValueError: LUMINA_ISA names a tier that this processor lacks.
    """

def available_isas() -> list[str]:
    """The instruction-set tiers of this processor, slowest first."""

def num_threads() -> int:
    """The threads that a call uses at most."""

def set_num_threads(n: SupportsIndex) -> None:
    """Sets the threads that a call uses at most, 1..4096. Results do not depend on it."""

@final
class Params:
    """The parameters of an optical linear layer, checked. Immutable; floats are kept in 32 bits.

    Raises:
        ValueError: A value that is not allowed, or that the others would make meaningless.
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
        weight_scale: Step of one weight code, one number or one for each output; the default where None.
    """

    def __new__(
        cls, params: Params, weight: _Array, bias: _Array | None = None, weight_scale: _Numbers | None = None
    ) -> Self: ...
    def forward(self, x: _ArrayT, seed: SupportsIndex, stream: SupportsIndex, out: _ArrayT | None = None) -> _ArrayT:
        """Y [..., N] of X [..., K], as `optical_linear_forward`."""

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
    """The codes [N, K] of weights [N, K] at 1..16 bits (int8, from 9 bits int16), and the scale [N]."""

def pack_weight(codes: _Array, bits: SupportsIndex) -> npt.NDArray[np.uint8]:
    """Packs int8 codes [N, K] of 1, 2 or 4 bits several to a byte: uint8 [N, ceil(K * bits / 8)].

    A code is stored as c + 2^(bits-1) (with 1 bit 0 for -1 and 1 for +1), low bits first, rows padded with zero bits.
    """

def unpack_weight(packed: _Array, bits: SupportsIndex, in_features: SupportsIndex) -> npt.NDArray[np.int8]:
    """Undoes `pack_weight`: int8 [N, K].

    Raises:
        ValueError: Also a code of -2^(bits-1), which no quantiser gives, and padding bits that are not 0.
    """

@final
class Saved:
    """What `forward_train` saved for the gradient.

    It refers to the weights, and to an analog x: they are to be as they were when `backward` is called.
    """

    @property
    def x_codes(self) -> npt.NDArray[np.int8] | npt.NDArray[np.int16] | None:
        """The codes of X [M, K]; None where it is analog."""

    @property
    def x_step(self) -> npt.NDArray[np.float32]:
        """The step of one code of X, [M]; NaN in rows that are NaN throughout."""

    @property
    def weight_scale(self) -> npt.NDArray[np.float32]:
        """The step of one weight code, [N]."""

    @property
    def adc_saturated(self) -> npt.NDArray[np.bool_] | None:
        """Where the ADC saturated, [M, N]; None where it cannot (no ADC, or a dynamic output_range)."""

    @property
    def dac_saturated(self) -> npt.NDArray[np.bool_] | None:
        """Where the DAC saturated, [M, K]; None where it cannot (a dynamic input_range)."""

    def backward(self, dy: _ArrayT, precision: _Precision = "highest") -> tuple[_ArrayT, _ArrayT, _ArrayT]:
        """The straight-through gradient: dx [M, K], dw [N, K] and db [N], of the kind of dy.

        Args:
            dy: [M, N].
            precision: How exact dx and dw are at least, as torch.set_float32_matmul_precision names it. "highest" is
                float32 in a fixed order: the same bits on every processor. "medium" rounds g s to bf16 where the
                processor multiplies that faster than floats (AMD's from Zen 5 on) and the codes have up to 8 bits,
                and is "highest" elsewhere. "high" allows a sum of two bf16, which nowhere pays: it is "highest".

        An element of dx or dw is a sum of T terms g s c: g is dy where the ADC did not saturate, s an element of
        weight_scale or x_step, c a code (a value where that side is analog). It is off the exact sum by at most

            (r + (T + 2) 2^-23) sum |g s c|  +  T 2^-125 (1 + max |c|)

        where nothing overflows, with r = 0 at "highest", 2^-16 at "high" and 2^-8 at "medium". Results do not depend
        on the number of threads, and db does not depend on the precision.

        Raises:
            TypeError: An argument of another kind or dtype.
            ValueError: A shape or value that is not allowed, or weights of another shape by now.
        """

def forward_train(
    params: Params,
    x: _ArrayT,
    weight: _Array,
    bias: _Array | None,
    seed: SupportsIndex,
    stream: SupportsIndex,
) -> tuple[_ArrayT, Saved]:
    """The forward pass, and what its gradient needs: Y [M, N], and what `backward` is a method of.

    Args:
        params: The layer's parameters.
        x: [M, K].
        weight: [N, K]; quantised here.
        bias: [N], or None.
        seed: 0..2^63-1, key of the noise.
        stream: 0..2^63-1.
    """

# What follows is for `lumina_onnx.nn` alone.

def _saved_bytes(params: Params, n: SupportsIndex, k: SupportsIndex, for_x: bool, for_weight: bool) -> tuple[int, int]:
    """Bytes that a forward pass saves for its gradient, and bytes more for each row of X."""

@final
class _Tensors:
    """The passes on torch's tensors, which torch's own C functions (DLPack's) describe.

    Args:
        tensor: torch.Tensor.
        parameter: torch.nn.Parameter.

    Raises:
        ValueError: A torch with another version of DLPack.
    """

    def __new__(cls, tensor: type, parameter: type) -> Self: ...
    def is_float(self, tensor: object) -> bool:
        """Whether this is a float32 tensor in the CPU's memory, of no subclass but `parameter`, and no wrapper."""

    def are_call(self, x: object, weight: object, bias: object) -> bool:
        """Whether these are such an input [..., K], weight [N, K] and bias [N] or None; N and K are at least 1."""

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
        y: Any,
        saved: Any,
        for_x: bool,
        for_weight: bool,
        threads: int,
    ) -> bool:
        """The forward pass, unless a tensor is not dense or of another type or size: False, and nothing was done.

        Where there is a `layer`, its weights serve, and of `weight` and `bias` only the shape is read. `saved`, uint8,
        receives what the gradients of X and of W need, unless it is None. `threads` are torch's; later calls use
        as many.
        """

    def backward(
        self,
        params: Params,
        k: int,
        dy: Any,
        x: Any,
        weight: Any,
        saved: Any,
        dx: Any,
        dw: Any,
        db: Any,
        precision: _Precision,
        for_x: bool,
        for_weight: bool,
        threads: int,
    ) -> bool:
        """As `Saved.backward`, with False as from `forward`; weight is read for dx, and x for dw where it is analog."""
