"""The gradient is as exact as torch asks at the time it is computed, with the kernel's bits at that precision."""

from collections.abc import Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import lumina_kernel  # noqa: E402
from lumina_onnx.nn import _dispatch, _torch_state  # noqa: E402
from lumina_onnx.nn.functional import optical_linear  # noqa: E402
from lumina_onnx.profile import OpticalProfile  # noqa: E402

PROFILE = OpticalProfile(input_range=1.5, output_range=2.0)


def legacy(name: Any) -> None:
    torch.set_float32_matmul_precision(name)


def of_the_backend(name: Any) -> None:
    torch.backends.mkldnn.matmul.fp32_precision = {"highest": "ieee", "high": "tf32", "medium": "bf16"}[name]


SETTERS = [legacy, of_the_backend] if hasattr(torch.backends.mkldnn, "matmul") else [legacy]  # torch 2.8 has one alone


@pytest.fixture(autouse=True)
def settings_of_torch() -> Iterator[Any]:
    before = torch.backends.mkldnn.matmul.fp32_precision if of_the_backend in SETTERS else None
    yield
    torch.set_float32_matmul_precision("highest")
    if before is not None:
        torch.backends.mkldnn.matmul.fp32_precision = before


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The precisions with which gradients were computed, in order."""
    found = []
    precision = _torch_state.gradient_precision

    def watched() -> Any:
        found.append(precision())
        return found[-1]

    monkeypatch.setattr(_torch_state, "gradient_precision", watched)
    return found


def leaves() -> Any:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(*shape, generator=generator).requires_grad_() for shape in ((40, 33), (50, 33), (50,))]


def gradients(output: Any, inputs: Any) -> Any:
    generator = torch.Generator().manual_seed(1)
    return torch.autograd.grad(output, inputs, torch.randn(output.shape, generator=generator))


def of_the_kernel(inputs: Any, precision: Any) -> Any:
    x, weight, bias = (tensor.detach() for tensor in inputs)
    y, saved = lumina_kernel.forward_train(PROFILE.params(), x, weight, bias, 0, 0)
    generator = torch.Generator().manual_seed(1)
    return saved.backward(torch.randn(y.shape, generator=generator), precision)


def same_bits(actual: Any, expected: Any) -> Any:
    return all(torch.equal(a.view(torch.int32), b.view(torch.int32)) for a, b in zip(actual, expected, strict=True))


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("name", ["highest", "high", "medium"])
@pytest.mark.parametrize("set_precision", SETTERS)
def test_the_precision_is_the_one_set_when_the_gradient_is_computed(
    set_precision: Any, name: str, plain: bool, asked: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_dispatch, "is_plain", lambda *_: plain)
    inputs = leaves()
    y = optical_linear(*inputs, PROFILE)  # type: ignore[arg-type, call-arg]
    set_precision(name)
    actual = gradients(y, inputs)
    assert same_bits([optical_linear(*inputs, PROFILE)], [y])  # type: ignore[arg-type, call-arg]
    assert asked == [name]
    assert same_bits(actual, of_the_kernel(inputs, name))
    assert same_bits(actual, of_the_kernel(inputs, "highest")) == (name == "highest")


def test_a_compiled_step_follows_later_changes(asked: Any) -> None:
    @torch.compile(backend="aot_eager", fullgraph=True)
    def forward(x: Any, weight: Any, bias: Any) -> Any:
        return optical_linear(x, weight, bias, PROFILE)

    inputs: Any = leaves()
    # torch compiles anew where it may use TF32. When it does, torch 2.8 turns "medium" into "high".
    for name in ("highest", "high"):
        torch.set_float32_matmul_precision(name)
        gradients(forward(*inputs), inputs)
    asked.clear()
    for name in ("highest", "medium", "high"):
        torch.set_float32_matmul_precision(name)
        compiled = gradients(forward(*inputs), inputs)
        assert same_bits(compiled, of_the_kernel(inputs, name))
    assert asked == ["highest", "medium", "high"]
