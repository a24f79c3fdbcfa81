"""`torch.compile` over optical layers."""

import copy
import pickle
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch._dynamo.testing import CompileCounter  # noqa: E402

import lumina_onnx  # noqa: E402
from lumina_onnx.nn import OpticalLinear, _parameters, calibrate, convert, frozen, noise  # noqa: E402
from lumina_onnx.nn.functional import optical_linear  # noqa: E402
from lumina_onnx.profile import OpticalProfile  # noqa: E402

NOISY = OpticalProfile(noise_additive=0.1)
BACKENDS = [
    "aot_eager",
    pytest.param("inductor", marks=pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")),
]


def net() -> Any:
    torch.manual_seed(0)
    model = convert(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), NOISY, inplace=True)
    calibrate(model, [torch.randn(64, 6)], progress=False)
    return model


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[Any]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("grad", [True, False])
def test_two_noisy_calls_on_one_input_are_not_merged(backend: Any, grad: bool) -> None:
    layer, x = OpticalLinear(6, 6, profile=NOISY), torch.randn(4, 6)

    @torch.compile(backend=backend, fullgraph=True)
    def difference(x: Any) -> Any:
        return layer(x) - layer(x)

    with torch.set_grad_enabled(grad):
        assert difference(x).abs().max() > 0
        assert not torch.equal(difference(x), difference(x))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_compiled_training_run_equals_the_eager_one(backend: Any) -> None:
    def run(compiled: Any) -> Any:
        model = net()
        forward = torch.compile(model, backend=backend, fullgraph=True) if compiled else model
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
        torch.manual_seed(7)
        for _ in range(3):
            optimiser.zero_grad()
            forward(torch.randn(8, 6)).square().sum().backward()
            optimiser.step()
        return [parameter.detach() for parameter in model.parameters()]

    for eager, compiled in zip(run(False), run(True), strict=True):
        assert torch.equal(eager, compiled)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("optical", [False, True])
def test_a_weight_changed_in_place_before_its_gradient_raises_in_a_compiled_model(backend: Any, optical: bool) -> None:
    layer = OpticalLinear(6, 8, profile=NOISY) if optical else nn.Linear(6, 8)
    compiled = torch.compile(layer, backend=backend, fullgraph=True)
    for x in (torch.ones(4, 6, requires_grad=True), torch.ones(4, 6)):
        y = compiled(x)
        with torch.no_grad():
            layer.weight.add_(1)
        if x.requires_grad:
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                y.sum().backward()
        else:
            y.sum().backward()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_compiled_inference_equals_the_eager_one(backend: Any, context: Any) -> None:
    model = net().eval()
    compiled = torch.compile(model, backend=backend, fullgraph=True)

    def run(forward: Any) -> Any:
        torch.manual_seed(7)
        with context():
            return [forward(x) for x in (torch.randn(4, 6), torch.randn(9, 6), torch.zeros(1, 6))]

    results, expected = run(compiled), run(model)
    assert all(map(torch.equal, results, expected))
    assert not any(result.requires_grad for result in results)
    assert not torch.equal(compiled(torch.zeros(1, 6)), results[2])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("inside", [True, False])
def test_autocast_around_and_inside_a_compiled_model(backend: Any, grad: bool, inside: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), OpticalLinear(6, 3, profile=NOISY))
    x = torch.randn(4, 6)

    def forward(x: Any) -> Any:
        if not inside:
            return model(x)
        with torch.autocast("cpu", torch.bfloat16):
            return model(x)

    def run(forward: Any) -> Any:
        torch.manual_seed(7)
        model.zero_grad()
        with torch.set_grad_enabled(grad), torch.autocast("cpu", torch.bfloat16, enabled=not inside):
            y = forward(x)
        if grad:
            y.square().sum().backward()
        return [y.detach(), *(parameter.grad for parameter in model[1].parameters() if grad)]

    expected = run(forward)
    results = run(torch.compile(forward, backend=backend, fullgraph=True))
    assert results[0].dtype == torch.float32
    assert all(map(torch.equal, results, expected))


def test_a_graph_for_training_is_of_one_release() -> None:
    """torch keeps compiled graphs on disk: it must not reuse one that another release of ours made."""
    calls: list[Any] = []

    def watch(graph: Any, inputs: Any) -> Any:
        calls.extend(node for node in graph.graph.nodes if "optical_linear_train" in str(node.target))
        return graph.forward

    torch.compile(OpticalLinear(3, 2, profile=NOISY), backend=watch, fullgraph=True)(torch.randn(4, 3))
    (call,) = calls
    assert lumina_onnx.__version__ in call.args


def test_noise_off_and_another_batch_size_in_a_compiled_model() -> None:
    model = net()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for m in (4, 9):
        x = torch.randn(m, 6)
        assert not torch.equal(compiled(x), compiled(x))
        with noise(model):
            assert torch.equal(compiled(x), model(x))
        with noise(model, True, stream=3):
            assert torch.equal(compiled(x), model(x))


def test_a_compiled_layer_is_named_in_errors_when_it_trains() -> None:
    model = net()
    with torch.no_grad():
        model[2].weight[1, 2] = float("nan")
    with pytest.raises(ValueError, match=r"layer '2': weight\[1, 2\] = NaN"):
        torch.compile(model, backend="aot_eager")(torch.randn(4, 6))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_a_copy_of_a_compiled_layer_computes_with_its_own_weights(duplicate: Any) -> None:
    layer, x = net()[0], torch.randn(4, 6)
    layer.compile(backend="aot_eager")
    with noise(layer):
        expected = layer(x)
    other = duplicate(layer)
    with torch.no_grad():
        other.weight.zero_()
        other.bias.zero_()
    with noise(other), noise(layer):
        assert torch.equal(other(x), torch.zeros(4, 8))
        assert torch.equal(layer(x), expected)


def test_a_compiled_layer_becomes_one_of_the_other_kind() -> None:
    linear, x = nn.Linear(6, 8), torch.randn(4, 6)
    linear.compile(backend="aot_eager")
    floats = linear(x)
    profile = OpticalProfile(input_bits=2)
    optical = OpticalLinear.from_linear(linear, profile)
    codes = optical_linear(x, linear.weight, linear.bias, profile)
    assert not torch.equal(floats, codes)
    assert torch.equal(optical(x), codes)
    optical.compile(backend="aot_eager")
    assert torch.equal(optical(x), codes)
    assert torch.equal(optical.to_linear()(x), floats)
    assert torch.equal(linear(x), floats)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("whole", [False, True])
def test_converting_a_compiled_model(whole: bool, inplace: bool) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(4, 6)
    expected = convert(model, OpticalProfile(input_bits=2))(x)
    for module in [model] if whole else [model[0], model[2]]:
        module.compile(backend="aot_eager")
    floats = model(x)
    optical = convert(model, OpticalProfile(input_bits=2), inplace=inplace)
    assert torch.equal(optical(x), expected)
    assert not torch.equal(floats, expected)
    again: Any = convert(optical, OpticalProfile(input_bits=3))
    with torch.no_grad():
        again[2].weight.zero_()
        again[2].bias.zero_()
    assert torch.equal(again(x), torch.zeros(4, 3))
    assert torch.equal(optical(x), expected)


def test_calibrating_and_freezing_a_compiled_model() -> None:
    model, x = net(), torch.randn(4, 6)
    before = model[0].profile
    compiled = torch.compile(model, backend="aot_eager")
    calibrate(compiled, [3 * x], progress=False)
    assert model[0].profile != before
    assert model[0].profile.input_range == float((3 * x).abs().max())
    with torch.no_grad(), noise(model, True, stream=1):
        expected = model(x)
        with frozen(model):
            assert torch.equal(compiled(x), expected)
        assert torch.equal(compiled(x), expected)


def test_a_default_device_elsewhere() -> None:
    layer, x = OpticalLinear(6, 6, profile=NOISY), torch.randn(4, 6)
    with torch.device("meta"):
        y = optical_linear(x, layer.weight, layer.bias, NOISY)
        assert y.device.type == "cpu"
        assert optical_linear(x, layer.weight, layer.bias, NOISY, stream=3).device.type == "cpu"


@pytest.mark.filterwarnings("ignore:Dynamo does not know how to trace:UserWarning")
def test_a_compiled_gradient_of_an_eager_call_equals_the_eager_one() -> None:
    from torch._dynamo import compiled_autograd

    model, x = net(), torch.randn(4, 6)

    def gradients() -> Any:
        model.zero_grad()
        with noise(model, True, stream=3):
            model(x).square().sum().backward()
        return [parameter.grad for parameter in model.parameters()]

    expected = gradients()
    with compiled_autograd._enable(torch.compile(backend="aot_eager")):
        assert all(map(torch.equal, gradients(), expected))


@pytest.mark.parametrize("grad", [False, True])
def test_the_functions_of_operators_are_not_compiled(grad: bool) -> None:
    """They run in a compiled graph, or where torch.compile has left a part of the code as it was."""
    tensors: Any = [torch.ones(*size).requires_grad_(grad) for size in ((4, 6), (3, 6), (3,))]
    (values, _), counter = _parameters.values_of(NOISY), CompileCounter()

    @torch.compiler.disable(recursive=False)
    def as_it_is() -> Any:
        return torch.ops.lumina.optical_linear(*tensors, torch.tensor(0), 0, *values)

    @torch.compile(backend=counter)
    def call(x: Any) -> Any:
        return as_it_is() + x

    call(torch.ones(3))
    assert counter.frame_count == 1  # the sum
