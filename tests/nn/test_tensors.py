"""Which tensors go straight to the kernel, and what happens to the others."""

import ctypes
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402

import lumina_kernel  # noqa: E402
from lumina_onnx.nn import _dispatch, _parameters, _torch_state  # noqa: E402
from lumina_onnx.nn.functional import optical_linear  # noqa: E402
from lumina_onnx.profile import OpticalProfile  # noqa: E402

MAKES = (_torch_state.empty_on_cpu, torch.float32, torch.uint8)
PARAMS = lumina_kernel.Params(input_bits=8, weight_bits=8)
N, K = 3, 2


def call() -> Any:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(*shape, generator=generator) for shape in ((5, K), (N, K), (N,))]


@pytest.fixture(params=["table", "attributes"])
def tensors(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The passes with torch's table of C functions, and as they are where torch lacks it."""
    if request.param == "table" and not hasattr(Tensor, "__dlpack_c_exchange_api__"):
        pytest.skip(f"torch {torch.__version__} has no table of DLPack's functions")
    describe = None if request.param == "table" else _torch_state.describe
    made = lumina_kernel._Tensors(Tensor, nn.Parameter, *MAKES, describe)
    monkeypatch.setattr(_dispatch, "are_call", made.are_call)
    return made


class Subclass(Tensor):
    pass


def refused() -> Any:
    """Stand-ins for x that only torch's dispatcher can take, or that nothing can take."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    x = call()[0]
    with FakeTensorMode() as mode:
        fake = mode.from_tensor(x)
    return {
        "subclass": x.as_subclass(Subclass),
        "fake": fake,
        "float64": x.double(),
        "int32": x.int(),
        "complex64": x.to(torch.complex64),
        "meta": x.to("meta"),
        "sparse": x.to_sparse(),
        "nested": torch.nested.as_nested_tensor([x, x], layout=torch.jagged),
        "zero": torch._efficientzerotensor(5, K),
        "none": None,
        "array": x.numpy(),
    }


@pytest.mark.parametrize("kind", refused())
def test_what_is_no_dense_float32_tensor(tensors: Any, kind: Any) -> None:
    _, weight, bias = call()
    other = refused()[kind]
    assert not tensors.is_float(other)
    assert not _dispatch.is_plain(other, weight, bias)
    if kind not in ("subclass", "none"):
        assert tensors.forward(PARAMS, None, other, weight, bias, 0, 0, None, 1) is None


def test_wrappers_of_transforms(tensors: Any) -> None:
    x, weight, bias = call()
    found = []

    def look(x: Any) -> Any:
        found.extend([tensors.is_float(x), tensors.are_call(x, weight, bias), _dispatch.is_plain(x, weight, bias)])
        return x.sum()

    torch.vmap(look)(x)
    torch.func.grad(look)(x)
    torch.func.jvp(look, (x,), (x,))
    assert found == [False] * 9


@pytest.mark.parametrize("bias", [True, False])
def test_what_is_a_call(tensors: Any, bias: bool) -> None:
    x, weight, b = call()
    b = b if bias else None
    assert tensors.is_float(x)
    for each in (
        x,
        x[0],
        x[:0],
        x.expand(2, 5, K),
        x.t().contiguous().t(),
        x.clone().requires_grad_(),
        nn.Parameter(x),
    ):
        assert _dispatch.is_plain(each, nn.Parameter(weight), b)
    assert not _dispatch.is_plain(x[0, 0], weight, b)
    assert not _dispatch.is_plain(x[:, :1], weight, b)
    assert not _dispatch.is_plain(x[:, :0], weight[:, :0], b)
    assert not _dispatch.is_plain(x, weight[:0], b)
    assert not _dispatch.is_plain(x, weight[0], b)
    assert not _dispatch.is_plain(x, weight, torch.ones(N + 1))
    assert not _dispatch.is_plain(x, weight, torch.ones(N, 1))
    with torch.inference_mode():
        assert _dispatch.is_plain(x.clone(), weight, b)


def negated(tensor: Any) -> Any:
    """A tensor that stands for its negative."""
    return torch._neg_view(tensor)


def test_a_pass_refuses_tensors_that_do_not_fit(tensors: Any) -> None:
    x, weight, bias = call()
    layer = tensors.prepare(PARAMS, weight, bias, 1)
    fitting = {"layer": None, "x": x, "weight": weight, "bias": bias}

    def forward(layer: Any, x: Any, weight: Any, bias: Any) -> Any:
        return tensors.forward(PARAMS, layer, x, weight, bias, 0, 0, (True, True), 1)

    for change in [
        {"x": x.t()},
        {"x": torch.stack([x, x], -1)[..., 0]},
        {"x": torch.ones(5, K + 1)},
        {"x": x[0, 0]},
        {"x": negated(x)},
        {"weight": weight.t().contiguous().t()},
        {"weight": weight[0]},
        {"weight": negated(weight)},
        {"bias": torch.ones(N + 1)},
        {"bias": torch.ones(2 * N)[::2]},
        {"bias": negated(bias)},
        {"layer": layer, "x": torch.ones(5, 4), "weight": torch.ones(N, 4)},
    ]:
        assert forward(**{**fitting, **change}) is None, change
    y, saved = forward(**fitting)
    assert all(map(torch.equal, (y, saved), forward(**{**fitting, "layer": layer})))
    assert torch.equal(forward(**{**fitting, "layer": layer, "weight": negated(weight)})[0], y)  # not read

    grad = torch.ones(5, N)
    fitting = {"k": K, "dy": grad, "weight": weight, "saved": saved}

    def backward(k: Any, dy: Any, weight: Any, saved: Any) -> Any:
        return tensors.backward(PARAMS, k, dy, None, weight, saved, (True, True, True), (True, True), "highest", 1)

    for change in [
        {"dy": torch.ones(N, 5).t()},
        {"dy": grad[0, 0]},
        {"dy": grad.double()},
        {"dy": negated(grad)},
        {"weight": torch.ones(N, K + 1)},
        {"weight": torch.ones(N * K)},
        {"weight": negated(weight)},
        {"saved": saved[1:]},
        {"saved": torch.ones(saved.numel())},
        {"saved": torch.ones(2 * saved.numel(), dtype=torch.uint8)[::2]},
        {"saved": torch.ones(saved.numel() + 1, dtype=torch.uint8)[1:]},
    ]:
        assert backward(**{**fitting, **change}) is None, change
    assert [gradient.shape for gradient in backward(**fitting)] == [x.shape, weight.shape, bias.shape]
    with pytest.raises(
        ValueError, match="weight is 6 elements of 4 bytes at address 0x0: allowed is memory that is there"
    ):
        backward(**{**fitting, "weight": None})
    analog = lumina_kernel.Params(weight_bits=8)
    kept = tensors.forward(analog, None, x, weight, bias, 0, 0, (True, True), 1)[1]
    with pytest.raises(ValueError, match="x is 10 elements of 4 bytes at address 0x0: allowed is memory that is there"):
        tensors.backward(analog, K, grad, None, weight, kept, (False, True, False), (True, True), "highest", 1)
    with pytest.raises(ValueError, match=re.escape("weight or bias is no dense float32 tensor [N, K] or [N]")):
        tensors.prepare(PARAMS, weight.t(), bias, 1)


@pytest.mark.parametrize("shape", [(K,), (0, K), (4, 0, K), (2, 1, 3, K)])
def test_what_a_pass_makes_is_contiguous(tensors: Any, shape: Any) -> None:
    _, weight, bias = call()
    y, saved = tensors.forward(PARAMS, None, torch.ones(shape), weight, bias, 0, 0, (True, True), 1)
    dx, dw, db = tensors.backward(PARAMS, K, y, None, weight, saved, (True,) * 3, (True, True), "highest", 1)
    for made, size in ((y, (*shape[:-1], N)), (dx, shape), (dw, (N, K)), (db, (N,))):
        assert made.shape == size
        assert made.stride() == torch.empty(size).stride()
    none = tensors.backward(PARAMS, K, y, None, weight, saved, (False,) * 3, (True, True), "highest", 1)
    assert none == (None, None, None)


def test_a_pass_refuses_what_was_made_otherwise() -> None:
    """A release of torch whose function makes something else."""
    x, weight, bias = call()
    for make in (
        lambda sizes, strides, dtype: torch.empty(sizes, dtype=torch.float64),
        lambda sizes, strides, dtype: torch.empty([2 * size for size in sizes], dtype=dtype),
        lambda sizes, strides, dtype: torch.empty(sizes, dtype=dtype, device="meta"),
        lambda sizes, strides, dtype: None,
    ):
        tensors = lumina_kernel._Tensors(
            torch.Tensor, nn.Parameter, make, torch.float32, torch.uint8, _torch_state.describe
        )
        with pytest.raises(ValueError, match="torch made no dense tensor for y"):
            tensors.forward(PARAMS, None, x, weight, bias, 0, 0, None, 1)


WITHOUT_MEMORY = """
import sys

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
import lumina_kernel
from lumina_onnx.nn import _torch_state

class Wrapper(torch.Tensor):
    @staticmethod
    def __new__(cls, like):
        place = {"strides": like.stride(), "storage_offset": 5}
        return torch.Tensor._make_wrapper_subclass(cls, like.shape, **place, dtype=like.dtype)

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise AssertionError(function)

class Subclass(torch.Tensor):
    pass

def at(offset):
    return lambda like: torch.ones(like.numel() + offset, dtype=like.dtype)[offset:].view(like.shape)

def freed(offset):
    def make(like):
        made = at(offset)(like)
        made.untyped_storage().resize_(0)
        return made
    return make

def fake(offset):
    def make(like):
        whole = FakeTensorMode().from_tensor(torch.empty(like.numel() + offset, dtype=like.dtype))
        return whole[offset:].view(like.shape)
    return make

kinds = {
    "fake": fake(0), "fake at 5": fake(5), "fake far behind": fake(1 << 22), "wrapper": Wrapper,
    "freed": freed(0), "freed at 5": freed(5), "freed far behind": freed(1 << 22),
    "freed parameter": lambda like: torch.nn.Parameter(freed(5)(like), requires_grad=False),
    "freed subclass": lambda like: freed(5)(like).as_subclass(Subclass),
}
tensors = lumina_kernel._Tensors(
    torch.Tensor, torch.nn.Parameter, _torch_state.empty_on_cpu, torch.float32, torch.uint8,
    _torch_state.describe if sys.argv[1] == "attributes" else None,
)
params = lumina_kernel.Params(input_bits=0, weight_bits=8)
m, n, k = 5, 3, 2
x, weight, bias, dy = torch.ones(m, k), torch.ones(n, k), torch.ones(n), torch.ones(m, n)
y, kept = tensors.forward(params, None, x, weight, bias, 0, 0, (True, True), 1)

def forward(x, weight, bias):
    return tensors.forward(params, None, x, weight, bias, 0, 0, (True, True), 1)

def backward(dy, x, weight, saved):
    return tensors.backward(params, k, dy, x, weight, saved, (True, True, True), (True, True), "highest", 1)

def prepare(weight, bias):
    try:
        return bool(tensors.prepare(params, weight, bias, 1))
    except ValueError:
        return False

for call, arguments in [
    (forward, {"x": x, "weight": weight, "bias": bias}),
    (backward, {"dy": dy, "x": x, "weight": weight, "saved": kept}),
    (prepare, {"weight": weight, "bias": bias}),
]:
    assert call(**arguments)
    for name, value in arguments.items():
        for kind, make in kinds.items():
            print(call.__name__, name, kind, flush=True)
            assert not call(**{**arguments, name: make(value)}), "taken"
    for name, value in arguments.items():
        whole = {"like": value, "subclass": value.clone().as_subclass(Subclass), "at 8": at(8)(value).copy_(value)}
        for kind, made in whole.items():
            assert call(**{**arguments, name: made}), (name, kind)
"""


def test_a_tensor_without_memory_is_refused_whatever_its_offset(tensors: Any, request: pytest.FixtureRequest) -> None:
    """Runs in its own process, which reading the tensor would crash."""
    child = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WITHOUT_MEMORY, request.node.callspec.params["tensors"]],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert child.returncode == 0, f"{child.stdout[-100:]} ended with {child.returncode}: {child.stderr[-2000:]}"


def lying(**attributes: Any) -> Tensor:
    """A tensor of a class that says something else of itself than what its memory is."""

    class Lying(Tensor):
        @classmethod
        def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            name = getattr(getattr(function, "__self__", None), "__name__", function.__name__)
            return attributes[name] if name in attributes else super().__torch_function__(function, types, args, kwargs)

    return torch.zeros(5, K).as_subclass(Lying)


@pytest.mark.parametrize(
    "attributes", [{"shape": torch.Size((1 << 40, K))}, {"data_ptr": 1}, {"stride": (K, 1)}, {"dtype": torch.float32}]
)
def test_what_a_subclass_says_of_itself_is_not_believed(tensors: Any, attributes: Any) -> None:
    _, weight, bias = call()
    y, _ = tensors.forward(PARAMS, None, lying(**attributes), weight, bias, 0, 0, None, 1)
    assert torch.equal(y, tensors.forward(PARAMS, None, torch.zeros(5, K), weight, bias, 0, 0, None, 1)[0])


@pytest.mark.parametrize(
    "answer",
    [
        None,
        (),
        (torch.float64, 1 << 40, (5, K), (K, 1)),
        (torch.float32, 1 << 40, (5, K), (1,)),
        (torch.float32, 1 << 40, (-5, K), (K, 1)),
        (torch.float32, 1 << 40, (5, 2**70), (K, 1)),
        (torch.float32, -1, (5, K), (K, 1)),
        (torch.float32, None, (5, K), (K, 1)),
    ],
)
def test_what_describes_no_tensor_is_refused(answer: Any) -> None:
    tensors: Any = lumina_kernel._Tensors(Tensor, nn.Parameter, *MAKES, lambda tensor: answer)
    assert not tensors.are_call(*call())
    assert tensors.forward(PARAMS, None, *call(), 0, 0, None, 1) is None


def test_sizes_that_no_memory_has_are_not_wrapped(tensors: Any) -> None:
    everything = 2**64 - 1
    for bits in (0, 8, 16):
        params = lumina_kernel.Params(input_bits=bits)
        call_bytes, row_bytes = lumina_kernel._saved_bytes(params, 2**63 - 1, 2**63 - 1, True, True)
        assert call_bytes == everything
        assert row_bytes >= 2**63 if bits else row_bytes == 4
    analog, saved = lumina_kernel.Params(), torch.zeros(8, dtype=torch.uint8)
    grad = torch.ones(5, N)
    for k in (2**62, 2**63 - 1):
        needed, kept = (False, False, True), (True, True)
        assert tensors.backward(analog, k, grad, None, None, saved, needed, kept, "highest", 1) is None


def test_devices_are_not_mixed_by_the_operators() -> None:
    """With one tensor on "meta", torch uses the function that gives the results' shapes instead of the operator."""
    x, weight, bias = call()
    parameters, _ = _parameters.values_of(OpticalProfile())
    own = (_torch_state.RELEASE, "", 0, 0, OpticalProfile()._text)
    operators = torch.ops.lumina
    stream = torch.zeros((), dtype=torch.int64)
    message = "weight is on meta and x on cpu: allowed is one device for all"
    with pytest.raises(TypeError, match=message):
        operators.optical_linear(x, weight.to("meta"), bias, stream, 0, *parameters)
    with pytest.raises(TypeError, match=message):
        operators.optical_linear_train(x, weight.to("meta"), bias, stream, None, *own)
    with pytest.raises(TypeError, match="bias is on meta and x on cpu: allowed is one device for all"):
        operators.optical_linear(x, weight, bias.to("meta"), stream, 0, *parameters)
    y, saved, history = operators.optical_linear_train(x, weight, bias, stream, None, *own)
    operands = {"x": None, "weight": weight, "saved": saved, "history": history, "bits_of_block": None}
    for name in ("weight", "saved", "history"):
        changed = {**operands, name: operands[name].to("meta")}.values()
        with pytest.raises(TypeError, match=f"{name} is on meta and grad on cpu: allowed is one device for all"):
            operators.optical_linear_backward(y, *changed, K, True, True, True, True, True, 0, own[-1])


def test_defaults_of_torch_change_nothing() -> None:
    inputs: Any = [each.requires_grad_() for each in call()]
    profile = OpticalProfile(noise_additive=0.1)

    def run() -> Any:
        y = optical_linear(*inputs, profile, seed=1, stream=2)  # type: ignore[arg-type, misc]
        return [y, *torch.autograd.grad(y, inputs, torch.ones(5, N, dtype=torch.float32, device="cpu"))]

    expected = run()
    torch.set_default_dtype(torch.float64)
    try:
        found = run()
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.device("meta"):
        found += run()
    assert all(torch.equal(a, b) for a, b in zip(found, expected * 2, strict=True))


@pytest.mark.parametrize("tensor", [type("Tensor", (), {}), type("Tensor", (), {"__dlpack_c_exchange_api__": 1})])
def test_a_torch_without_a_table_of_dlpack_is_refused_in_words(tensor: Any) -> None:
    with pytest.raises(ValueError, match=r"torch\.Tensor has no table of DLPack's functions: allowed is a torch with"):
        lumina_kernel._Tensors(tensor, torch.nn.Parameter, *MAKES)


@pytest.mark.parametrize(("version", "function"), [(2, 1), (1, 0)])
def test_another_table_of_dlpack_is_refused_in_words(version: int, function: int) -> None:
    table = (ctypes.c_uint64 * 7)(version, 0, 0, 0, 0, function, 0)
    new = ctypes.pythonapi.PyCapsule_New
    new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]

    class Other:
        __dlpack_c_exchange_api__ = new(ctypes.addressof(table), b"dlpack_exchange_api", None)

    message = f"torch.Tensor has DLPack {version}: allowed is DLPack 1, with the function that describes a tensor"
    with pytest.raises(ValueError, match=re.escape(message)):
        lumina_kernel._Tensors(Other, nn.Parameter, *MAKES)


@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, RuntimeError])
def test_an_interrupt_while_a_tensor_is_described_is_not_lost(place: int, error: type[BaseException]) -> None:
    """A signal's handler may run inside the function that describes tensors. Other errors say that it cannot be."""
    asked = 0

    def describe(tensor: Any) -> Any:
        nonlocal asked
        asked += 1
        if asked == place + 1:
            raise error
        return _torch_state.describe(tensor)

    class Plain:
        """A class without a table, so that the function is asked."""

    made = lumina_kernel._Tensors(Plain, nn.Parameter, *MAKES, describe)
    usual = lumina_kernel._Tensors(Plain, nn.Parameter, *MAKES, _torch_state.describe)
    x, weight, bias = (nn.Parameter(tensor) for tensor in call())
    y, saved = usual.forward(PARAMS, None, x, weight, bias, 0, 0, (True, True), 1)  # type: ignore[misc]
    gradients: Any = ((True, True, True), (True, True), "highest", 1)
    calls: dict[str, Callable[[], Any]] = {
        "are_call": lambda: made.are_call(x, weight, bias),
        "forward": lambda: made.forward(PARAMS, None, x, weight, bias, 0, 0, (True, True), 1),
        "backward": lambda: made.backward(PARAMS, K, y, None, weight, saved, *gradients),
    }
    if place < 2:
        calls["prepare"] = lambda: made.prepare(PARAMS, weight, bias, 1)
    if place < 1:
        calls["is_float"] = lambda: made.is_float(x)
    for name, attempt in calls.items():
        asked = 0
        if name == "prepare" or error is not RuntimeError:
            with pytest.raises(ValueError if error is RuntimeError else error):
                attempt()
        else:
            assert not attempt()


def test_an_interrupt_in_a_subclass_is_not_lost(tensors: Any) -> None:
    class Interrupted(Tensor):
        def is_neg(self) -> Any:
            raise KeyboardInterrupt

    x, weight, bias = call()
    with pytest.raises(KeyboardInterrupt):
        tensors.forward(PARAMS, None, x.as_subclass(Interrupted), weight, bias, 0, 0, None, 1)


STEP = """
import hashlib
import torch
from lumina_onnx import OpticalProfile
from lumina_onnx.nn import _kernel, functional

generator = torch.Generator().manual_seed(0)
x, weight, bias = (torch.randn(*shape, generator=generator).requires_grad_() for shape in ((5, 40), (30, 40), (30,)))
assert _kernel.is_float(x)
y = functional.optical_linear(x, weight, bias, OpticalProfile(noise_relative=0.01), seed=1, stream=2)
y.backward(torch.ones_like(y))
digest = hashlib.sha256()
for tensor in (y, x.grad, weight.grad, bias.grad):
    digest.update(tensor.detach().numpy().tobytes())
print(digest.hexdigest())
"""
OTHER_VERSION = """
import ctypes
import torch

table = (ctypes.c_uint64 * 7)(2, 0, 0, 0, 0, 0, 0)
new = ctypes.pythonapi.PyCapsule_New
new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
torch.Tensor.__dlpack_c_exchange_api__ = new(ctypes.addressof(table), b"dlpack_exchange_api", None)
"""


def test_a_torch_with_a_later_dlpack_is_asked_for_attributes() -> None:
    results = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=False)
        for code in (STEP, OTHER_VERSION + STEP)
    ]
    assert [result.returncode for result in results] == [0, 0], results[1].stderr
    assert results[0].stdout == results[1].stdout
