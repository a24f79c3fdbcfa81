"""Random calls from Python with arrays and tensors of every kind, valid and invalid. Its argument: how many CASES.

All memory of a call lies between canaries, which must not change; nor must memory that is only read. The results of an
accepted call equal the reference bit for bit; a refused call raises a TypeError or ValueError that begins with the
argument's name.
"""

from __future__ import annotations

import faulthandler
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from boundary_forms import GOOD, ODD, ODD_FLOATS, UNFIT, Memory, TensorSubclass, Wrong, freed, negated
from torch._subclasses.fake_tensor import FakeTensorMode

import lumina_kernel
from lumina_onnx import reference


class Call:
    """The arguments of a call, about `arguments` of them, of which at most one is wrong."""

    #: How many calls were rightly refused.
    refused = 0

    def __init__(self, rng: np.random.Generator, arguments: int = 6) -> None:
        self.rng, self.memory = rng, Memory(rng)
        #: How many arguments are left before the wrong one.
        self.until_fault = int(rng.integers(2 * arguments))
        #: What a message may begin with, and what is wrong; empty and None if the call should be accepted.
        self.names: tuple[str, ...] = ()
        self.wrong: Wrong | None = None

    def pick(self, choices: Sequence[Any]) -> Any:
        return choices[int(self.rng.integers(len(choices)))]

    def is_fault(self) -> bool:
        self.until_fault -= 1
        return self.until_fault == -1

    def read(self, name: str, values: np.ndarray, *, matrix: bool = False, names: tuple[str, ...] = ()) -> Any:
        """`values` in a valid form, or in an invalid one for the wrong argument. `matrix`: any matrix is accepted."""
        if not self.is_fault():
            return self.pick(GOOD)(self.memory, values)[0]
        if self.rng.random() < 0.2:
            shape = (1, *values.shape) if matrix else (*values.shape[:-1], values.shape[-1] + 1)
            self.names, self.wrong = (name, *names, *SHAPES), Wrong(ValueError, "")
            return self.memory.put(np.ones(shape, values.dtype))
        forms = ODD + ODD_FLOATS if values.dtype == np.float32 else ODD
        made, self.wrong = self.pick(forms)(self.memory, values)
        self.names = (name,)
        return made

    def write(self, name: str, shape: tuple[int, ...], dtype: Any = np.float32) -> Any:
        """Memory for a result; for the wrong argument with another dtype, shape or order, or read-only."""
        values = self.rng.integers(1, 100, shape).astype(dtype)
        if self.is_fault():
            made, self.wrong = self.pick(UNFIT)(self.memory, values)
            self.names = (name,)
            if self.wrong is not None:
                return made
        made = self.memory.put(values, written=True)
        return torch.from_numpy(made) if self.rng.random() < 0.4 else made

    def overlapping(self, name: str, values: np.ndarray, shape: tuple[int, ...]) -> tuple[Any, Any]:
        """`values`, and memory for a result called `name` whose first element is the last of the values."""
        count = int(np.prod(shape))
        block = self.memory.put(np.concatenate([values.reshape(-1), np.ones(count - 1, np.float32)]))
        pair: list[Any] = [block[: values.size].reshape(values.shape), block[values.size - 1 :].reshape(shape)]
        self.until_fault, self.names, self.wrong = -1, (name,), Wrong(ValueError, "shares memory with")
        return tuple(torch.from_numpy(one) if self.rng.random() < 0.3 else one for one in pair)  # type: ignore[return-value]

    def judge(self, call: Callable[[], Any]) -> Any:
        """The result, or None if the call was rightly refused."""
        try:
            result = call()
        except (TypeError, ValueError) as raised:
            error: Exception = raised
        else:
            assert self.wrong is None, f"taken in spite of {self.names} {self.wrong}"
            self.memory.check(taken=True)
            return result
        self.memory.check(taken=False)
        message = str(error)
        expected = self.wrong is not None and isinstance(error, self.wrong.error) and self.wrong.message in message
        assert expected, f"{type(error).__name__}: {message}: {self.names} {self.wrong}"
        assert message.startswith(self.names), f"{message}: {self.names}"
        Call.refused += 1
        return None


def same(got: Any, expected: np.ndarray) -> None:
    """Asserts that an array or tensor has exactly the expected bits."""
    array = got.detach().numpy() if isinstance(got, torch.Tensor) else got
    assert array.dtype == expected.dtype, array.dtype
    assert array.shape == expected.shape, (array.shape, expected.shape)
    width = f"u{expected.itemsize}"
    assert np.array_equal(np.ascontiguousarray(array).view(width), expected.view(width)), "other bits"


class Layer(NamedTuple):
    """The values of a layer and of its input."""

    x: np.ndarray
    w: np.ndarray
    bias: np.ndarray | None
    parameters: dict[str, Any]
    seed: int
    stream: int

    @property
    def params(self) -> lumina_kernel.Params:
        return lumina_kernel.Params(**self.parameters)

    @property
    def shape(self) -> tuple[int, int, int]:
        """M, N and K."""
        n, k = self.w.shape
        return self.x.size // k, n, k

    def expected(self) -> np.ndarray:
        key: dict[str, Any] = {"seed": self.seed, "stream": self.stream}
        return reference.optical_linear(self.x, self.w, self.bias, **self.parameters, **key)

    def gradients(self, dy: np.ndarray) -> tuple[np.ndarray, ...]:
        key: dict[str, Any] = {"seed": self.seed, "stream": self.stream}
        return reference.optical_linear_backward(dy, self.x, self.w, self.bias, **self.parameters, **key)


def any_layer(rng: np.random.Generator, *, rows: int | None = None) -> Layer:
    """A random layer of up to 33 outputs and inputs, with an input of any rank."""

    def pick(*choices: Any) -> Any:
        return choices[int(rng.integers(len(choices)))]

    n, k = (pick(1, 2, 3, 5, 8, 15, 16, 17, 33) for _ in range(2))
    leading = pick((), (1,), (2,), (5,), (0,), (2, 3), (1, 1, 2), (3, 0)) if rows is None else (rows,)
    input_bits = pick(0, 0, 2, 4, 8, 8, 9, 16)
    levels = [pick(0.0, 0.0, 0.1, 0.5) for _ in range(3)]
    parameters = {
        "input_bits": input_bits,
        "weight_bits": pick(0, 1, 2, 4, 7, 8, 12),
        "output_bits": pick(0, 2, 8, 12),
        "input_range": pick(0.0, 1.5) if input_bits else 0.0,
        "output_range": pick(0.0, 2.5, [0.5 + 0.25 * i for i in range(n)] if n > 1 else 0.5),
        "noise_relative": levels[0],
        "noise_additive": levels[1],
        "noise_shot": levels[2],
        "bias_stage": pick("analog", "digital"),
    }
    normal = [rng.standard_normal(shape).astype(np.float32) for shape in ((*leading, k), (n, k), (n,))]
    if normal[0].size and rng.random() < 0.1:
        normal[0].reshape(-1)[-1] = pick(np.nan, np.inf, -np.inf, 1e-42)
    bias = normal[2] if rng.random() < 0.7 else None
    return Layer(normal[0], normal[1], bias, parameters, int(rng.integers(2**40)), int(rng.integers(2**40)))


#: What a message may begin with if a shape is wrong: any argument whose shape does not fit the others.
SHAPES = ("input", "x", "weight", "bias", "out", "output_range", "N (rows", "K (columns")


def forward(call: Call, *, prepared: bool = False) -> None:
    """`optical_linear_forward` and `PreparedLayer.forward`."""
    layer = any_layer(call.rng)
    shape = (*layer.x.shape[:-1], len(layer.w))
    name = "x" if prepared else "input"
    out = None
    if call.rng.random() < 0.1 and layer.x.size:
        x, out = call.overlapping("out", layer.x, shape)
        w, bias = call.memory.put(layer.w), layer.bias
    else:
        w = call.read("weight", layer.w, matrix=prepared)
        bias = None if layer.bias is None else call.read("bias", layer.bias)
    if prepared:
        arguments = w, bias
        made = call.judge(lambda: lumina_kernel.PreparedLayer(layer.params, *arguments)) if out is None else None
        if out is None and made is None:
            return
        made: Any = made or lumina_kernel.PreparedLayer(layer.params, layer.w, layer.bias)  # type: ignore[no-redef]
    if out is None:
        x = call.read(name, layer.x)
        out = call.write("out", shape) if call.rng.random() < 0.5 else None
    key: dict[str, Any] = {"seed": layer.seed, "stream": layer.stream}
    if prepared:
        result = call.judge(lambda: made.forward(x, **key, out=out))  # type: ignore[union-attr]
    else:
        parameters: dict[str, Any] = {**layer.parameters, "bits": layer.parameters["output_bits"]}
        parameters["noise_std"] = parameters.pop("noise_relative")
        del parameters["output_bits"]
        result = call.judge(lambda: lumina_kernel.optical_linear_forward(x, w, bias, **parameters, **key, out=out))
    if result is not None:
        assert out is None or result is out
        assert out is not None or isinstance(result, torch.Tensor) == isinstance(x, torch.Tensor)
        same(result, layer.expected())


def training(call: Call) -> None:
    """`forward_train`, and `backward` with what it saved."""
    layer = any_layer(call.rng, rows=int(call.rng.integers(6)))
    x = call.read("x", layer.x)
    w = call.read("weight", layer.w)
    bias = None if layer.bias is None else call.read("bias", layer.bias)
    result = call.judge(lambda: lumina_kernel.forward_train(layer.params, x, w, bias, layer.seed, layer.stream))
    if result is None:
        return
    y, saved = result
    same(y, layer.expected())

    back = Call(call.rng, 1)
    values = call.rng.standard_normal(layer.shape[:2]).astype(np.float32)
    dy = back.read("dy", values)
    gradients = back.judge(lambda: saved.backward(dy))
    if gradients is not None:
        for got, expected in zip(gradients, layer.gradients(values), strict=True):
            same(got, expected)


def storage(call: Call) -> None:
    """`quantize_weight`, `pack_weight`, `unpack_weight` and `noise`."""
    layer = any_layer(call.rng)
    call = Call(call.rng, 1)
    w = call.read("weight", layer.w, matrix=True)
    bits = call.pick([1, 2, 3, 4, 8, 9, 16])
    quantized = call.judge(lambda: lumina_kernel.quantize_weight(w, bits))
    if quantized is not None:
        for got, expected in zip(quantized, reference.quantize_weight(layer.w, bits), strict=True):
            same(got, expected)

    bits = call.pick([1, 2, 4])
    codes = reference.quantize_weight(layer.w, bits)[0]
    packing = Call(call.rng, 1)
    given = packing.read("codes", codes, matrix=True)
    packed = packing.judge(lambda: lumina_kernel.pack_weight(given, bits))
    if packed is not None:
        same(packed, reference.pack_weight(codes, bits))  # type: ignore[arg-type]
        unpacking = Call(call.rng, 1)
        bytes_of_rows = unpacking.read("packed", packed, matrix=True)
        unpacked = unpacking.judge(lambda: lumina_kernel.unpack_weight(bytes_of_rows, bits, layer.w.shape[1]))
        if unpacked is not None:
            same(unpacked, codes)

    drawing = Call(call.rng, 1)
    m, n, _ = layer.shape
    out = drawing.write("out", (m, n))
    drawn = drawing.judge(lambda: lumina_kernel.noise(layer.seed, layer.stream, m, n, out))
    if drawn is not None:
        same(drawn, reference.noise(layer.seed, layer.stream, m, n))


#: What autograd's hooks may return for a saved tensor, and whether the gradient can be computed from it.
HANDED_BACK: list[tuple[Callable[[torch.Tensor], Any], bool]] = [
    (lambda saved: saved, True),
    (lambda saved: saved.clone(), True),
    (lambda saved: torch.from_numpy(saved.detach().resolve_neg().numpy().copy()), True),
    (lambda saved: torch.cat([torch.zeros(8, dtype=saved.dtype), saved.reshape(-1)])[8:].view(saved.shape), True),
    (lambda saved: saved.clone().as_subclass(TensorSubclass), True),
    (lambda saved: saved.double(), False),
    (lambda saved: saved.new_ones((*saved.shape[:-1], saved.shape[-1] + 1)), False),
    (lambda saved: saved.new_ones((saved.numel() + 1,)), False),
    (lambda saved: saved.to("meta"), False),
    (lambda saved: FakeTensorMode().from_tensor(saved.clone()), False),
    (lambda saved: FakeTensorMode().from_tensor(saved.new_ones(saved.numel() + 9))[9:].view(saved.shape), False),
    (lambda saved: freed(saved, 0), False),
    (freed, False),
    (lambda saved: saved.to_sparse() if saved.is_floating_point() else saved.int(), False),
    (lambda saved: None, False),
]


#: Tensors in various element orders, all of which a differentiable call accepts.
ORDERS: list[Callable[[torch.Tensor], torch.Tensor]] = [
    lambda made: made,
    lambda made: made.t().contiguous().t() if made.dim() == 2 else made,
    lambda made: torch.stack([made, made], -1)[..., 0],
    negated,
    lambda made: made.as_subclass(TensorSubclass),
    torch.nn.Parameter,
]


def layers(call: Call) -> None:
    """The differentiable function, with hooks that return other tensors than those saved."""
    from lumina_onnx.nn.functional import optical_linear
    from lumina_onnx.profile import OpticalProfile

    layer: Any = any_layer(call.rng)
    ranges = layer.parameters["output_range"]
    profile = OpticalProfile(
        **{**layer.parameters, "output_range": tuple(ranges) if isinstance(ranges, list) else ranges}
    )
    values = [array if array is None else torch.from_numpy(call.memory.put(array)) for array in layer[:3]]
    x, w, bias = (None if made is None else call.pick(ORDERS)(made).detach().requires_grad_() for made in values)
    change, usable = call.pick(HANDED_BACK)
    at, handed = int(call.rng.integers(3)), []

    def handed_back(saved: torch.Tensor) -> Any:
        handed.append(saved)
        return change(saved) if len(handed) == at + 1 else saved

    with torch.autograd.graph.saved_tensors_hooks(lambda saved: saved.detach(), handed_back):
        y = optical_linear(x, w, bias, profile, seed=layer.seed, stream=layer.stream)  # type: ignore[arg-type]
    same(y, layer.expected())
    dy = np.random.default_rng(layer.seed).standard_normal(y.shape).astype(np.float32)
    leaves = [leaf for leaf in (x, w, bias) if leaf is not None]
    gradients, error = None, None
    try:
        gradients = torch.autograd.grad(y, leaves, torch.from_numpy(call.memory.put(dy)))
    except Exception as raised:
        error = raised
    call.memory.check(taken=True)
    changed = handed[at] if len(handed) > at else None
    if gradients is None:
        Call.refused += 1
        assert changed is not None, f"refused without a reason: {error!r}"
        assert not usable, f"refused: {error!r}"
    elif usable or changed is None or not changed.numel():
        for got, expected in zip(gradients, layer.gradients(dy), strict=False):
            same(got, expected)
    else:
        # With no rows the backward pass reads nothing.
        assert not y.numel(), "a gradient from what cannot be read"


MODES: dict[str, Callable[[Call], None]] = {
    "forward": forward,
    "prepared": lambda call: forward(call, prepared=True),
    "training": training,
    "storage": storage,
    "layers": layers,
}


def main(cases: str) -> None:
    """Runs this many cases of each mode, and prints how many calls each mode refused.

    Each case has a seed of its own, printed before the case runs, since a crashed process can print nothing.
    """
    faulthandler.enable()
    warnings.simplefilter("ignore")
    for place, (mode, run) in enumerate(MODES.items()):
        Call.refused = 0
        for seed in range(int(cases)):
            print(f"mode {mode}, seed {(seed, place)}", file=sys.stderr, flush=True)
            run(Call(np.random.default_rng((seed, place))))
        print(mode, Call.refused)


if __name__ == "__main__":
    main(*sys.argv[1:])
