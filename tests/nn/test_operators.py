"""The operators in torch's registry: how they are declared, what they refuse, what is saved between them."""

import importlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import lumina_kernel  # noqa: E402
from lumina_onnx.nn import OpticalLinear, _kernel, _parameters, _torch_release, _torch_state  # noqa: E402
from lumina_onnx.nn._streams import NO_NOISE  # noqa: E402
from lumina_onnx.nn.functional import optical_linear  # noqa: E402
from lumina_onnx.profile import OpticalProfile  # noqa: E402

NOISY = OpticalProfile(noise_additive=0.1)
CLEAN = OpticalProfile()


def layer(m: int = 3, k: int = 5, n: int = 4) -> Any:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(*shape, generator=generator) for shape in ((m, k), (n, k), (n,)))


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize(
    "profile",
    [
        OpticalProfile(4, 4, 4, 1.0, (1.0, 2.0, 3.0, 4.0), 0.1, 0.1, 0.1, "digital"),
        OpticalProfile(input_bits=0, weight_bits=0, output_bits=0),
        OpticalProfile(input_bits=12, weight_bits=12),
    ],
)
def test_operators_are_registered_soundly(grad: bool, profile: OpticalProfile) -> None:
    x, weight, bias = (tensor.requires_grad_(grad) for tensor in layer())
    parameters, _ = _parameters.values_of(profile)
    stream = torch.tensor(3)
    if grad:
        torch.library.opcheck(
            torch.ops.lumina.optical_linear_train.default,
            (x, weight, bias, stream, None, "0.0", "", 1, 8, profile._text),
        )
    else:
        torch.library.opcheck(torch.ops.lumina.optical_linear.default, (x, weight, bias, stream, 1, *parameters))
        arguments = (x, weight, None, stream, 1, *parameters)
        torch.library.opcheck(torch.ops.lumina.optical_linear.default, arguments, {"gradient_bits": 8})


@pytest.mark.parametrize("needs", [(True, True, True), (True, False, False), (False, True, True)])
@pytest.mark.parametrize("with_history", [False, True])
def test_the_gradients_operator_is_registered_soundly(needs: Any, with_history: bool) -> None:
    x, weight, bias = layer()
    y, saved, history = torch.ops.lumina.optical_linear_train(
        x, weight, bias, torch.tensor(3), None, "0.0", "", 1, 0, NOISY._text
    )
    operands = (y, None, weight, saved, history if with_history else None, None, 5)
    torch.library.opcheck(
        torch.ops.lumina.optical_linear_backward.default, (*operands, *needs, *_kernel.Kept(), 0, NOISY._text)
    )


def test_the_operators_that_look_settings_up_are_registered_soundly() -> None:
    arguments = (torch.zeros((), dtype=torch.int64), torch.zeros((), dtype=torch.int64))
    # Another draw follows each one, which the comparison of a traced call with an eager one would report.
    schema_and_shapes = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.lumina.draw_stream.default, arguments, test_utils=schema_and_shapes)
    torch.library.opcheck(
        torch.ops.lumina.draw_stream_in_branch.default, (arguments[1], False), test_utils=schema_and_shapes
    )
    torch.library.opcheck(torch.ops.lumina.gradient_bits_of_block.default, arguments[:1])


@pytest.mark.parametrize("profile", [CLEAN, NOISY, OpticalProfile(0, 0, 0, noise_shot=0.2, output_range=2.0)])
def test_the_inference_operator_has_the_gradient_of_the_training_one(profile: OpticalProfile) -> None:
    def gradients(call: Any) -> Any:
        tensors = [tensor.requires_grad_() for tensor in layer()]
        return torch.autograd.grad(call(*tensors).square().sum(), tensors)

    parameters, _ = _parameters.values_of(profile)
    found = gradients(lambda *xwb: torch.ops.lumina.optical_linear(*xwb, torch.tensor(3), 1, *parameters))
    expected = gradients(lambda *xwb: optical_linear(*xwb, profile, seed=1, stream=3))  # type: ignore[arg-type, misc]
    assert all(map(torch.equal, found, expected))


def test_the_inference_operator_has_no_second_derivative() -> None:
    x, weight, bias = layer()
    y = torch.ops.lumina.optical_linear(
        x.requires_grad_(), weight, bias, torch.tensor(0), 0, *_parameters.values_of(CLEAN)[0]
    )
    (gradient,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="optical_linear has no second derivative"):
        gradient.sum().backward()


def test_no_stream_is_no_noise() -> None:
    x, weight, bias = layer()
    silent = NOISY.replace(noise_additive=0.0)
    nothing, stream = torch.tensor(NO_NOISE), torch.tensor(0)
    inference, train = torch.ops.lumina.optical_linear, torch.ops.lumina.optical_linear_train
    assert torch.equal(
        inference(x, weight, bias, nothing, 1, *_parameters.values_of(NOISY)[0]), optical_linear(x, weight, bias, CLEAN)
    )
    found = train(x, weight, bias, nothing, None, "0.0", "", 1, 0, NOISY._text)
    assert all(map(torch.equal, found, train(x, weight, bias, stream, None, "0.0", "", 1, 0, silent._text)))


WRONG_CALLS = [
    (ValueError, r"x has shape \[3, 5\]: allowed is \[..., 3\]", lambda x, w, b: (x, torch.zeros(4, 3), b)),
    (TypeError, r"x is torch.bfloat16: allowed is torch.float32", lambda x, w, b: (x.bfloat16(), w, b)),
    (TypeError, r"weight is torch.float64: allowed is torch.float32", lambda x, w, b: (x, w.double(), b)),
    (ValueError, r"bias has shape \[1\]: allowed is \[4\]", lambda x, w, b: (x, w, b[:1])),
]


@pytest.mark.parametrize(("error", "message", "change"), WRONG_CALLS)
def test_the_operators_refuse_what_the_kernel_cannot_read(error: Any, message: Any, change: Any) -> None:
    tensors = change(*layer())
    with pytest.raises(error, match=message):
        torch.ops.lumina.optical_linear(*tensors, torch.tensor(0), 0, *_parameters.values_of(CLEAN)[0])
    with pytest.raises(error, match=message):
        torch.ops.lumina.optical_linear_train(*tensors, torch.tensor(0), None, "0.0", "", 0, 0, CLEAN._text)


def test_the_gradients_operator_refuses_what_the_kernel_cannot_read() -> None:
    def backward(grad: Any, saved: Any) -> None:
        needs = (True, True, True)
        operands = (grad, None, torch.ones(4, 5), saved, torch.zeros(0), None, 5)
        torch.ops.lumina.optical_linear_backward(*operands, *needs, *_kernel.Kept(), 0, CLEAN._text)

    with pytest.raises(TypeError, match=r"grad is torch.float64: allowed is torch.float32"):
        backward(torch.ones(3, 4, dtype=torch.float64), torch.zeros(9999, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"what was saved for the gradient is torch.uint8 \[16\] on cpu"):
        backward(torch.ones(3, 4), torch.zeros(16, dtype=torch.uint8))


def test_an_exported_program_under_autocast_is_refused_not_misread() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(5, 5), OpticalLinear(5, 4, profile=CLEAN))
    program = torch.export.export(model, (torch.ones(3, 5),)).module()
    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        pytest.raises(TypeError, match=r"x is torch.bfloat16: allowed is torch.float32"),
    ):
        program(torch.ones(3, 5))


@pytest.mark.parametrize(
    ("profile", "unpack", "message"),
    [
        (CLEAN, lambda t: t[:16], r"what was saved for the gradient is torch.uint8 \[16\] on cpu: allowed is uint8 \["),
        (CLEAN, lambda t: t if t.is_floating_point() else t.int(), r"what was saved for the gradient is torch.int32"),
        (CLEAN, lambda t: t if t.is_floating_point() else t.repeat_interleave(2)[::2],
         r"what was saved for the gradient is torch.uint8 \[\d+\] on cpu \(torch.strided, its elements out of order\)"),
        (CLEAN, lambda t: t if t.is_floating_point() else t.to_sparse(),
         r"what was saved for the gradient is torch.uint8 \[\d+\] on cpu \(torch.sparse_coo, "),
        (CLEAN, lambda t: t.bfloat16() if t.is_floating_point() else t,
         r"weight saved for the gradient is torch.bfloat16 \[4, 5\] on cpu: allowed is float32 \[4, 5\]"),
        (CLEAN, lambda t: t.T if t.is_floating_point() else t,
         r"weight saved for the gradient is torch.float32 \[5, 4\] on cpu: allowed is float32 \[4, 5\]"),
        (CLEAN, lambda t: t.to("meta") if t.is_floating_point() else t,
         r"weight saved for the gradient is torch.float32 \[4, 5\] on meta: allowed is float32 \[4, 5\] on the CPU"),
        (OpticalProfile(0, 8, 8), lambda t: t.half() if t.shape == (3, 5) else t,
         r"x saved for the gradient is torch.float16 \[3, 5\] on cpu: allowed is float32 \[3, 5\]"),
        (OpticalProfile(8, 0, 8), lambda t: t[:1] if t.is_floating_point() else t,
         r"weight saved for the gradient is torch.float32 \[1, 5\] on cpu: allowed is float32 \[4, 5\]"),
    ],
)  # fmt: skip
def test_saved_tensors_that_a_hook_changed_are_refused(profile: OpticalProfile, unpack: Any, message: str) -> None:
    x, weight, bias = (tensor.requires_grad_() for tensor in layer())
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, unpack):
        y = optical_linear(x, weight, bias, profile)
    with pytest.raises(ValueError, match=message):
        y.sum().backward()


def test_the_operators_parameters_are_the_kernels() -> None:
    table = {row["name"]: row["type"] for row in lumina_kernel.schema()}
    types = {"INT": "int", "FLOAT": "float", "FLOATS": "float[]", "STRING": "str"}
    arguments = torch.ops.lumina.optical_linear.default._schema.arguments
    options = [each for each in arguments if each.kwarg_only and each.name != "gradient_bits"]
    # A program that was saved before an option was there loads: it has a default.
    assert [each.default_value for each in options] == [row.default for row in _parameters.OPTIONS]
    declared = [each for each in arguments if not each.kwarg_only][len(options) - len(_parameters.NAMES) :] + options
    for argument, parameter in zip(declared, _parameters.NAMES, strict=True):
        assert argument.name == parameter
        kind = str(argument.type).replace("List[float]", "float[]")
        assert kind == types[table[parameter]]


AGAIN = """
import importlib
import sys
import torch
import lumina_onnx.nn

def run():
    from lumina_onnx.nn import OpticalLinear
    from lumina_onnx.profile import OpticalProfile
    layer = OpticalLinear(5, 4, profile=OpticalProfile())
    x = torch.ones(2, 3, 5)
    assert torch.equal(torch.func.vmap(layer)(x), layer(x))
    torch.func.grad(lambda x: layer(x).sum())(x)
    zero = torch.zeros((), dtype=torch.int64)
    torch.ops.lumina.draw_stream(zero, zero)
    torch.ops.lumina.gradient_bits_of_block(zero)

run()
for name in [name for name in sys.modules if name.partition(".")[0] == "lumina_onnx"]:
    del sys.modules[name]
import lumina_onnx.nn
run()
for name in ("_registry", "_streams", "_gradient_bits", "_operators", "_autograd"):
    importlib.reload(sys.modules[f"lumina_onnx.nn.{name}"])
run()
"""


def test_the_operators_are_defined_again_when_the_package_is_imported_again() -> None:
    """As a notebook does that reloads modules, or an import after one that was interrupted."""
    command = [sys.executable, "-W", "ignore", "-c", AGAIN]
    child = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert child.returncode == 0, child.stderr[-2000:]


def test_a_call_that_records_nothing_runs_the_function_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, bias = (tensor.requires_grad_() for tensor in layer())
    arguments = (x, weight, bias, torch.tensor(3), 1, *_parameters.values_of(NOISY)[0])
    expected = torch.ops.lumina.optical_linear(*arguments)
    assert expected.requires_grad
    redispatched, redispatch = [], torch._ops.OpOverload.redispatch

    def redispatch_noted(operator: Any, *given: Any) -> Any:
        redispatched.append(operator)
        return redispatch(operator, *given)

    monkeypatch.setattr(torch._ops.OpOverload, "redispatch", redispatch_noted)
    with torch.no_grad():
        assert torch.equal(torch.ops.lumina.optical_linear(*arguments), expected)
    assert not redispatched
    assert torch.ops.lumina.optical_linear(*arguments).requires_grad
    assert redispatched


@pytest.mark.parametrize(
    ("version", "taken"), [("2.7.1", False), ("1.13.1", False), ("2.8.0a0+git", True), ("3.0", True)]
)
def test_a_torch_that_is_too_old_is_refused(version: str, taken: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    if taken:
        importlib.reload(_torch_release)
        return
    with pytest.raises(ImportError, match=f"torch {re.escape(version)} is too old: allowed is PyTorch 2.8 or newer"):
        importlib.reload(_torch_release)


def test_the_package_asks_for_the_oldest_torch_that_it_takes() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    assert f'"torch>={".".join(map(str, _torch_release.OLDEST))}"' in text


def test_a_torch_that_lacks_what_is_used_is_named() -> None:
    message = (
        f"lumina-onnx {_torch_state.RELEASE} uses torch._C._none.such, which torch {torch.__version__} lacks: install a"
    )
    with pytest.raises(ImportError, match=re.escape(message)):
        _torch_state.internal("_C._none.such")
