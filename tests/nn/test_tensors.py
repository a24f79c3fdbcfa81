"""Which tensors go straight to the kernel, and what the kernel makes of the others."""

import ctypes
import re

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

import lumina_kernel  # noqa: E402
from lumina_onnx.nn import _ops  # noqa: E402
from lumina_onnx.nn.functional import optical_linear  # noqa: E402
from lumina_onnx.profile import OpticalProfile  # noqa: E402

TENSORS = lumina_kernel._Tensors(torch.Tensor, nn.Parameter)
PARAMS = lumina_kernel.Params(input_bits=8, weight_bits=8)
N, K = 3, 2


def call():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(*shape, generator=generator) for shape in ((5, K), (N, K), (N,))]


class Subclass(torch.Tensor):
    pass


def refused():
    """Tensors of x's shape that only torch's dispatcher can take, or none of them can."""
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
def test_what_is_no_dense_float32_tensor(kind):
    _, weight, bias = call()
    other = refused()[kind]
    assert not TENSORS.is_float(other)
    assert not _ops.is_plain(other, weight, bias)
    if kind not in ("subclass", "none"):
        y = torch.full((5, N), 7.0)
        assert not TENSORS.forward(PARAMS, None, other, weight, bias, 0, 0, y, None, True, True, 1)
        assert torch.equal(y, torch.full((5, N), 7.0))


def test_wrappers_of_transforms():
    x, weight, bias = call()
    found = []

    def look(x):
        found.extend([TENSORS.is_float(x), TENSORS.are_call(x, weight, bias), _ops.is_plain(x, weight, bias)])
        return x.sum()

    torch.vmap(look)(x)
    torch.func.grad(look)(x)
    torch.func.jvp(look, (x,), (x,))
    assert found == [False] * 9


@pytest.mark.parametrize("bias", [True, False])
def test_what_is_a_call(bias):
    x, weight, b = call()
    b = b if bias else None
    assert TENSORS.is_float(x)
    for each in (
        x,
        x[0],
        x[:0],
        x.expand(2, 5, K),
        x.t().contiguous().t(),
        x.clone().requires_grad_(),
        nn.Parameter(x),
    ):
        assert _ops.is_plain(each, nn.Parameter(weight), b)
    assert not _ops.is_plain(x[0, 0], weight, b)
    assert not _ops.is_plain(x[:, :1], weight, b)
    assert not _ops.is_plain(x[:, :0], weight[:, :0], b)
    assert not _ops.is_plain(x, weight[:0], b)
    assert not _ops.is_plain(x, weight[0], b)
    assert not _ops.is_plain(x, weight, torch.ones(N + 1))
    assert not _ops.is_plain(x, weight, torch.ones(N, 1))
    with torch.inference_mode():
        assert _ops.is_plain(x.clone(), weight, b)


def test_a_pass_touches_no_tensor_that_does_not_fit():
    x, weight, bias = call()
    y = torch.full((5, N), 7.0)
    call_bytes, row_bytes = _ops.saved_bytes(PARAMS, N, K, (True, True))
    saved = torch.full((call_bytes + 5 * row_bytes,), 7, dtype=torch.uint8)
    layer = TENSORS.prepare(PARAMS, weight, bias, 1)
    fitting = {"layer": None, "x": x, "weight": weight, "bias": bias, "y": y, "saved": saved}

    def forward(layer, x, weight, bias, y, saved):
        return TENSORS.forward(PARAMS, layer, x, weight, bias, 0, 0, y, saved, True, True, 1)

    for change in [
        {"x": x.t()},
        {"x": torch.stack([x, x], -1)[..., 0]},
        {"x": torch.ones(5, K + 1)},
        {"x": x[0, 0]},
        {"weight": weight.t().contiguous().t()},
        {"weight": weight[0]},
        {"bias": torch.ones(N + 1)},
        {"bias": torch.ones(2 * N)[::2]},
        {"layer": layer, "x": torch.ones(5, 4), "weight": torch.ones(N, 4)},
        {"y": torch.ones(4, N)},
        {"y": torch.ones(5, N, dtype=torch.float64)},
        {"y": torch.ones(N, 5).t()},
        {"saved": saved[1:]},
        {"saved": torch.ones(saved.numel())},
        {"saved": torch.ones(2 * saved.numel(), dtype=torch.uint8)[::2]},
    ]:
        assert not forward(**{**fitting, **change}), change
    assert bool((y == 7).all())
    assert bool((saved == 7).all())
    assert forward(**fitting)
    assert forward(**{**fitting, "layer": layer})

    grad = torch.ones(5, N)
    dx, dw, db = torch.full((5, K), 7.0), torch.full((N, K), 7.0), torch.full((N,), 7.0)
    fitting = {"k": K, "dy": grad, "weight": weight, "saved": saved, "dx": dx, "dw": dw, "db": db}

    def backward(k, dy, weight, saved, dx, dw, db):
        return TENSORS.backward(PARAMS, k, dy, None, weight, saved, dx, dw, db, "highest", True, True, 1)

    for change in [
        {"dy": torch.ones(N, 5).t()},
        {"dy": grad[0, 0]},
        {"dy": grad.double()},
        {"weight": torch.ones(N, K + 1)},
        {"weight": torch.ones(N * K)},
        {"saved": saved[1:]},
        {"dx": torch.ones(4, K)},
        {"dw": torch.ones(N, K).double()},
        {"db": torch.ones(N + 1)},
    ]:
        assert not backward(**{**fitting, **change}), change
    assert all(bool((gradient == 7).all()) for gradient in (dx, dw, db))
    assert backward(**fitting)
    with pytest.raises(
        ValueError, match="weight is 6 elements of 4 bytes at address 0x0: allowed is memory that is there"
    ):
        backward(**{**fitting, "weight": None})
    analog = lumina_kernel.Params(weight_bits=8)
    kept = torch.zeros(call_bytes + 5 * 4, dtype=torch.uint8)
    with pytest.raises(ValueError, match="x is 10 elements of 4 bytes at address 0x0: allowed is memory that is there"):
        TENSORS.backward(analog, K, grad, None, weight, kept, None, dw, None, "highest", True, True, 1)
    with pytest.raises(ValueError, match=re.escape("weight or bias is no dense float32 tensor [N, K] or [N]")):
        TENSORS.prepare(PARAMS, weight.t(), bias, 1)


def test_defaults_of_torch_change_nothing():
    inputs = [each.requires_grad_() for each in call()]
    profile = OpticalProfile(noise_additive=0.1)

    def run():
        y = optical_linear(*inputs, profile, seed=1, stream=2)
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
def test_a_torch_without_a_table_of_dlpack_is_refused_in_words(tensor):
    with pytest.raises(ValueError, match=r"torch\.Tensor has no table of DLPack's functions: allowed is a torch with"):
        lumina_kernel._Tensors(tensor, torch.nn.Parameter)


@pytest.mark.parametrize(("version", "function"), [(2, 1), (1, 0)])
def test_another_table_of_dlpack_is_refused_in_words(version, function):
    table = (ctypes.c_uint64 * 7)(version, 0, 0, 0, 0, function, 0)
    new = ctypes.pythonapi.PyCapsule_New
    new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]

    class Other:
        __dlpack_c_exchange_api__ = new(ctypes.addressof(table), b"dlpack_exchange_api", None)

    message = f"torch.Tensor has DLPack {version}: allowed is DLPack 1, with the function that describes a tensor"
    with pytest.raises(ValueError, match=re.escape(message)):
        lumina_kernel._Tensors(Other, nn.Parameter)
