"""Gradients in products of 8 bits, asked for by a block or by a layer, with the bits that the kernel gives."""

import contextlib
import contextvars
import copy
import functools
import io
import pickle
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import torch._functorch.config as functorch  # noqa: E402
from torch import nn  # noqa: E402
from torch._dynamo.testing import CompileCounterWithBackend  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

import lumina_kernel  # noqa: E402
from lumina_onnx.nn import (  # noqa: E402
    OpticalLinear,
    _gradient_bits,
    _scope,
    convert,
    frozen,
    gradient_bits,
    noise,
    report,
)
from lumina_onnx.nn.functional import optical_linear  # noqa: E402
from lumina_onnx.profile import OpticalProfile  # noqa: E402

from .state_cases import STATES  # noqa: E402

PROFILE = OpticalProfile(input_range=2.5, output_range=2.0)
X = torch.randn(19, 6, generator=torch.Generator().manual_seed(2))
ASKED = "highest"
BOTH = {0: 8, 2: 8}
INDUCTOR = pytest.param("inductor", marks=pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler"))
recompute = functools.partial(checkpoint, use_reentrant=False)


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """As in a process that has entered no block."""
    torch._dynamo.reset()
    _gradient_bits.traced.any_block = False
    yield
    torch._dynamo.reset()
    torch.set_float32_matmul_precision(ASKED)
    assert _scope.current() == ()
    assert _gradient_bits.traced.bits is None


def model(profile: OpticalProfile = PROFILE, **options: Any) -> Any:
    torch.manual_seed(0)
    return convert(nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 5)), profile, inplace=True, **options)


def expected(net: Any, bits: Any = None, asked: str = ASKED, x: Any = X) -> Any:
    """The gradients of the sum of squares, from the kernel: of x, then of each parameter. `bits` are by layer."""

    def forward(layer: Any, x: Any) -> Any:
        weight, bias = layer.weight.detach(), layer.bias.detach()
        return lumina_kernel.forward_train(layer.profile.params(), x, weight, bias, 0, 0)

    def backward(index: int, saved: Any, grad: Any) -> Any:
        precision: Any = "8 bits" if (bits or {}).get(index) else asked
        return saved.backward(grad.contiguous(), precision)

    y, first = forward(net[0], x)
    z, second = forward(net[2], y.relu())
    dy, *last = backward(2, second, 2 * z)
    return [*backward(0, first, dy * (y > 0)), *last]


def gradients(net: Any, forward: Any = None, block: Any = None, x: Any = X) -> Any:
    """The same from torch, with the backward pass outside of the block."""
    net.zero_grad()
    x = x.clone().requires_grad_()
    with block or contextlib.nullcontext():
        y = (forward or net)(x)
    y.square().sum().backward()
    return [x.grad, *(parameter.grad for parameter in net.parameters())]


def same(found: Any, wanted: Any) -> bool:
    return all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_the_precisions_differ() -> None:
    """Or else the tests below would compare nothing."""
    net = model()
    results = [expected(net), expected(net, asked="high"), expected(net, BOTH), expected(net, {0: 8})]
    for index, result in enumerate(results):
        assert not any(same(result, other) for other in results[:index])
        assert same(result, expected(net, asked="medium")) == (index == 1)


def test_a_block_around_the_forward_pass_is_enough() -> None:
    net = model()
    assert same(gradients(net), expected(net))
    assert same(gradients(net, block=gradient_bits(8)), expected(net, BOTH))
    assert same(gradients(net), expected(net))
    y = net(X.requires_grad_(False))
    with gradient_bits(8):
        y.square().sum().backward()
    assert same([parameter.grad for parameter in net.parameters()], [2 * each for each in expected(net)[1:]])


@pytest.mark.parametrize("asked", ["highest", "high", "medium"])
def test_the_innermost_block_goes_before_the_layer_and_that_before_torch(asked: str) -> None:
    net = model()
    torch.set_float32_matmul_precision(asked)
    assert same(gradients(net), expected(net, asked=asked))
    net[2].gradient_bits = 8
    assert same(gradients(net), expected(net, {2: 8}, asked))
    with gradient_bits(8):
        assert same(gradients(net), expected(net, BOTH))
        with gradient_bits(None):
            assert same(gradients(net), expected(net, asked=asked))
            with gradient_bits(8):
                assert same(gradients(net), expected(net, BOTH))
            assert same(gradients(net), expected(net, asked=asked))
    net[2].gradient_bits = None
    assert same(gradients(net), expected(net, asked=asked))


def test_the_precision_of_torch_is_still_read_when_the_gradient_is_computed() -> None:
    net = model()
    net[0].gradient_bits = 8
    x = X.clone().requires_grad_()
    y = net(x)
    torch.set_float32_matmul_precision("high")
    y.square().sum().backward()
    assert same([x.grad, *(parameter.grad for parameter in net.parameters())], expected(net, {0: 8}, "high"))


def test_each_layer_is_called_under_a_setting_of_its_own() -> None:
    net = model()

    def forward(x: Any) -> Any:
        with gradient_bits(8):
            x = net[1](net[0](x))
        return net[2](x)

    assert same(gradients(net, forward), expected(net, {0: 8}))
    assert same(gradients(net, gradient_bits(8)(net.forward)), expected(net, BOTH))


def test_the_forward_pass_and_inference_are_the_same() -> None:
    net = model()
    y = net(X)
    with gradient_bits(8):
        assert torch.equal(net(X), y)
        with torch.no_grad():
            assert torch.equal(net(X), y)


def test_the_function() -> None:
    layer, x = model()[2], torch.randn(7, 9)
    _, saved = lumina_kernel.forward_train(PROFILE.params(), x, layer.weight.detach(), layer.bias.detach(), 0, 0)
    tensors = [x.clone().requires_grad_(), layer.weight, layer.bias]
    with gradient_bits(8):
        found = optical_linear(*tensors, PROFILE)  # type: ignore[arg-type, call-arg]
    grad = torch.randn(7, 5)
    assert same(torch.autograd.grad(found, tensors, grad), saved.backward(grad, "8 bits"))
    assert not same(saved.backward(grad, "8 bits"), saved.backward(grad))


@pytest.mark.parametrize("sides", [(0, 0), (12, 9), (0, 8), (8, 12)])
def test_sides_of_more_than_8_bits_and_analog_ones_stay_on_floats(sides: Any) -> None:
    net = model(OpticalProfile(input_bits=sides[0], weight_bits=sides[1]))
    found = gradients(net, block=gradient_bits(8))
    assert same(found, expected(net, BOTH))
    assert same(found, expected(net)) == (8 not in sides)


def test_frozen_layers_and_accumulated_gradients() -> None:
    net = model()
    with frozen(net), gradient_bits(8):
        assert same(gradients(net), expected(net, BOTH))
    with frozen(net):
        assert same(gradients(net), expected(net))
        with gradient_bits(8):
            first, second = net(X), net(X[:3])
    net.zero_grad()
    (first.square().sum() + second.square().sum()).backward()
    wanted = [expected(net, BOTH, x=x)[1:] for x in (X, X[:3])]
    found = [parameter.grad for parameter in net.parameters()]
    assert same(found, [b + a for a, b in zip(*wanted, strict=True)])
    net[0].gradient_bits = 8
    with frozen(net):
        assert same(gradients(net), expected(net, {0: 8}))


def test_noise_in_a_block() -> None:
    net = model(PROFILE.replace(noise_additive=0.1))
    with noise(net), gradient_bits(8):
        quiet = gradients(net)
    net[0].profile = net[2].profile = PROFILE
    assert same(quiet, expected(net, BOTH))


def test_blocks_are_of_the_thread_and_context_that_enter_them() -> None:
    net = model()
    found = []

    def work() -> None:
        found.append(gradients(copy.deepcopy(net)))

    with gradient_bits(8):
        inherited = contextvars.copy_context()
        for target in (work, lambda: inherited.run(work)):
            thread = threading.Thread(target=target)
            thread.start()
            thread.join()
    assert same(found[0], expected(net))
    assert same(found[1], expected(net, BOTH))


def test_an_exception_ends_a_block() -> None:
    net = model()
    with pytest.raises(KeyError), gradient_bits(8):
        raise KeyError
    assert same(gradients(net), expected(net))


# Calls that take other ways than a plain eager one


def test_functional_transforms() -> None:
    net = model()

    def loss(parameters: Any, x: Any) -> Any:
        return torch.func.functional_call(net, parameters, (x,)).square().sum()

    def found(block: Any) -> Any:
        with block:
            of_parameters, of_x = torch.func.grad(loss, argnums=(0, 1))(dict(net.named_parameters()), X)
        return [of_x, *of_parameters.values()]

    assert same(found(gradient_bits(8)), expected(net, BOTH))
    assert same(found(gradient_bits(None)), expected(net))
    net[0].gradient_bits = 8
    assert same(found(contextlib.nullcontext()), expected(net, {0: 8}))
    y, pull = torch.func.vjp(net, X)
    assert torch.equal(pull(2 * y)[0], expected(net, {0: 8})[0])


def test_the_gradient_of_each_sample() -> None:
    net = model()

    def loss(parameters: Any, row: Any) -> Any:
        return torch.func.functional_call(net, parameters, (row.unsqueeze(0),)).square().sum()

    with gradient_bits(8):
        found = torch.vmap(torch.func.grad(loss), in_dims=(None, 0))(dict(net.named_parameters()), X)
    for index, row in enumerate(X):
        wanted = expected(net, BOTH, x=row.unsqueeze(0))[1:]
        assert same([gradient[index] for gradient in found.values()], wanted)
    x = X.clone().requires_grad_()
    with gradient_bits(8):
        y = torch.vmap(net)(x)
    (dx,) = torch.autograd.grad(y.square().sum(), x)
    assert same(dx, [expected(net, BOTH, x=row.unsqueeze(0))[0][0] for row in X])


def test_several_gradients_at_once() -> None:
    net, grads = model(), torch.randn(3, 19, 5)
    x = X.clone().requires_grad_()
    with gradient_bits(8):
        y = net(x)
    (found,) = torch.autograd.grad(y, x, grads, is_grads_batched=True, retain_graph=True)
    assert same(found, [torch.autograd.grad(y, x, grad, retain_graph=True)[0] for grad in grads])
    assert not torch.equal(found[0], torch.autograd.grad(net(x), x, grads[0])[0])


def test_under_a_mode_that_intercepts_calls() -> None:
    net = model()
    for call in (net, functools.partial(recompute, net)):
        with FlopCounterMode(display=False):
            assert same(gradients(net, call, gradient_bits(8)), expected(net, BOTH))
            assert same(gradients(net, call), expected(net))


@pytest.mark.parametrize("freeze", [False, True])
@pytest.mark.parametrize("depth", [1, 2])
def test_a_checkpoint_keeps_the_setting_of_the_forward_pass(depth: int, freeze: bool) -> None:
    net = model()
    forward = net
    for _ in range(depth):
        forward = functools.partial(recompute, forward)
    with frozen(net) if freeze else contextlib.nullcontext():
        assert same(gradients(net, forward, gradient_bits(8)), expected(net, BOTH))
        with gradient_bits(8):
            y = forward(X)
        net.zero_grad()
        with gradient_bits(None):
            y.square().sum().backward()
        assert same([parameter.grad for parameter in net.parameters()], expected(net, BOTH)[1:])


def test_a_reentrant_checkpoint_reads_the_setting_in_the_backward_pass() -> None:
    net = model()
    reentrant = functools.partial(checkpoint, use_reentrant=True)
    with gradient_bits(8):
        assert same(gradients(net, functools.partial(reentrant, net)), expected(net, BOTH))
    assert same(gradients(net, functools.partial(reentrant, gradient_bits(8)(net.forward))), expected(net, BOTH))
    net[2].gradient_bits = 8
    assert same(gradients(net, functools.partial(reentrant, net), gradient_bits(8)), expected(net, {2: 8}))


# torch.compile


@pytest.mark.parametrize("backend", ["aot_eager", INDUCTOR])
def test_a_compiled_graph_looks_the_block_up_when_it_runs(backend: str) -> None:
    net = model()
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(net, backend=counter, fullgraph=True)
    assert same(gradients(net, compiled), expected(net))
    assert counter.frame_count == 1
    for _ in range(2):
        assert same(gradients(net, compiled, gradient_bits(8)), expected(net, BOTH))
        assert same(gradients(net, compiled, gradient_bits(None)), expected(net))
        assert same(gradients(net, compiled), expected(net))
    assert counter.frame_count == 2, "the first block of a process compiles again, and no other"
    net[0].gradient_bits = 8
    assert same(gradients(net, compiled), expected(net, {0: 8}))
    assert counter.frame_count == 3
    assert same(gradients(net, compiled, gradient_bits(None)), expected(net))
    assert same(gradients(net, compiled, gradient_bits(8)), expected(net, BOTH))
    net[0].gradient_bits = None
    assert same(gradients(net, compiled), expected(net))
    assert counter.frame_count == 3


def test_a_graph_without_blocks_does_not_ask_for_them() -> None:
    net = model(gradient_bits=8)
    calls: list[str] = []

    def watch(graph: Any, inputs: Any) -> Any:
        calls.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    torch.compile(net, backend=watch, fullgraph=True)(X)
    assert "lumina.optical_linear_train" in calls
    assert "lumina.gradient_bits_of_block" not in calls


@pytest.mark.parametrize("around", [False, True])
def test_a_block_inside_a_compiled_function(around: bool) -> None:
    net = model()

    def function(x: Any) -> Any:
        with gradient_bits(8):
            x = net[0](x)
            with gradient_bits(None):
                x = net[2](net[1](x))
        return x

    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    for call in (function, compiled):
        block = gradient_bits(8) if around else None
        assert same(gradients(net, call, block), expected(net, {0: 8}))


def test_the_function_in_a_compiled_graph() -> None:
    net = model()

    @torch.compile(backend="aot_eager", fullgraph=True)
    def function(x: Any) -> Any:
        y = optical_linear(x, net[0].weight, net[0].bias, PROFILE).relu()
        with gradient_bits(8):
            return optical_linear(y, net[2].weight, net[2].bias, PROFILE)

    assert same(gradients(net, function), expected(net, {2: 8}))
    assert same(gradients(net, function, gradient_bits(8)), expected(net, BOTH))


def test_a_graph_break_in_a_block() -> None:
    net = model()

    @torch.compile(backend="aot_eager")
    def function(x: Any) -> Any:
        with gradient_bits(8):
            x = net[0](x)
            torch._dynamo.graph_break()
            x = x.relu()
        return net[2](x)

    for _ in range(2):
        assert same(gradients(net, function), expected(net, {0: 8}))


def test_threads_share_a_compiled_graph() -> None:
    net = model()
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    found = []

    def work() -> None:
        x = X.clone().requires_grad_()
        found.append(torch.autograd.grad(compiled(x).square().sum(), [x, *net.parameters()]))

    with gradient_bits(8):
        work()
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert same(found[0], expected(net, BOTH))
    assert same(found[1], expected(net))


@pytest.mark.parametrize("budget", [None, 0.1])
def test_what_a_compiled_graph_recomputes_keeps_the_setting(budget: float | None) -> None:
    net = model()
    patch = contextlib.nullcontext() if budget is None else functorch.patch(activation_memory_budget=budget)
    with patch:
        forward = net if budget else lambda x: recompute(lambda x: recompute(net[2], recompute(net[:2], x)), x)
        compiled = torch.compile(forward, backend="aot_eager", fullgraph=True)
        for block in (gradient_bits(8), gradient_bits(None), gradient_bits(8)):
            bits = BOTH if block.args == (8,) else {}
            assert same(gradients(net, compiled, block), expected(net, bits))


def test_no_memory_for_the_setting() -> None:
    net = model()
    with functorch.patch(activation_memory_budget=0):
        compiled = torch.compile(net, backend="aot_eager")
        assert same(gradients(net, compiled), expected(net))
        message = r"again in the backward pass, outside the block of lumina_onnx.nn.gradient_bits: allowed in a process"
        with gradient_bits(8), pytest.raises(Exception, match=message):
            compiled(X)


def test_a_model_compiled_inside_a_checkpoint() -> None:
    net = model()
    compiled = torch.compile(net, backend="aot_eager")
    forward = functools.partial(recompute, compiled)
    with gradient_bits(8):
        assert same(gradients(net, forward), expected(net, BOTH))
    assert same(gradients(net, forward, gradient_bits(8)), expected(net)), "the graph looks it up again"
    net[0].gradient_bits = 8
    assert same(gradients(net, forward), expected(net, {0: 8}))


def test_a_block_inside_a_checkpoint_of_a_compiled_function() -> None:
    if torch.__version__ < (2, 10):
        pytest.skip("torch.compile of torch 2.8 and 2.9 refuses a function that sets an attribute in a checkpoint")
    net = model()

    def body(x: Any) -> Any:
        with gradient_bits(8):
            return net(x)

    compiled = torch.compile(lambda x: recompute(body, x), backend="aot_eager", fullgraph=True)
    assert same(gradients(net, compiled), expected(net, BOTH))


def test_branches_of_a_compiled_graph() -> None:
    """torch computes a branch anew for its gradient."""
    net = model()

    @torch.compile(backend="aot_eager", fullgraph=True)
    def function(x: Any) -> Any:
        return torch.cond(x.sum() > -1e9, net, lambda x: 2 * net(x), (x,))

    with gradient_bits(8):
        assert same(gradients(net, function), expected(net, BOTH))
    assert same(gradients(net, function, gradient_bits(8)), expected(net)), "the branch looks it up again"
    net[2].gradient_bits = 8
    assert same(gradients(net, function), expected(net, {2: 8}))


# Programs


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("saved", [False, True])
def test_an_exported_program_keeps_the_setting(strict: bool, saved: bool) -> None:
    net = model()
    net[2].gradient_bits = 8

    def run(block: Any) -> Any:
        with block:
            program = torch.export.export(net, (X,), strict=strict)
        if saved:
            file = io.BytesIO()
            torch.export.save(program, file)
            file.seek(0)
            program = torch.export.load(file)
        module = program.module()
        named = dict(module.named_parameters())
        x = X.clone().requires_grad_()
        calls = [node.kwargs for node in program.graph.nodes if "optical_linear" in str(node.target)]
        tensors = [x, *(named[name] for name, _ in net.named_parameters())]
        with gradient_bits(8 if block.__class__ is contextlib.nullcontext else None):
            return torch.autograd.grad(module(x).square().sum(), tensors), calls

    found, calls = run(contextlib.nullcontext())
    assert same(found, expected(net, {2: 8}))
    assert calls == [{}, {"gradient_bits": 8}]
    assert same(run(gradient_bits(8))[0], expected(net, BOTH))
    found, calls = run(gradient_bits(None))
    assert same(found, expected(net))
    assert calls == [{}, {}]


def test_a_block_inside_an_exported_model() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = model()

        def forward(self, x: Any) -> Any:
            with gradient_bits(8):
                return self.net(x)

    whole = Model()
    for strict in (False, True):
        module = torch.export.export(whole, (X,), strict=strict).module()
        x = X.clone().requires_grad_()
        tensors = [x, *module.parameters()]
        assert same(torch.autograd.grad(module(x).square().sum(), tensors), expected(whole.net, BOTH))


@pytest.mark.filterwarnings("ignore:`torch.jit.trace.*` is deprecated", "ignore::torch.jit.TracerWarning")
def test_a_traced_program_keeps_the_setting() -> None:
    net = model()
    with gradient_bits(8):
        program = torch.jit.trace(net, (X,))
    x = X.clone().requires_grad_()
    assert same(torch.autograd.grad(program(x).square().sum(), [x, *net.parameters()]), expected(net, BOTH))


def test_an_onnx_file_has_no_gradient(tmp_path: Path) -> None:
    exporter = pytest.importorskip("lumina_onnx.exporter")
    net = model().eval()
    exporter.export(net, (X,), tmp_path / "plain.onnx")
    net[0].gradient_bits = 8
    with gradient_bits(8):
        exporter.export(net, (X,), tmp_path / "bits.onnx")
    assert (tmp_path / "bits.onnx").read_bytes() == (tmp_path / "plain.onnx").read_bytes()


# Layers


@pytest.mark.parametrize(
    "duplicate", [copy.copy, copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer)), lambda layer: layer]
)
def test_a_layer_keeps_its_setting(duplicate: Any) -> None:
    net = nn.Sequential(OpticalLinear(6, 9, profile=PROFILE, gradient_bits=8), nn.ReLU(), model()[2])
    net = nn.Sequential(*map(duplicate, net))
    assert [net[0].gradient_bits, net[2].gradient_bits] == [8, None]
    assert same(gradients(net), expected(net, {0: 8}))
    assert repr(net[0]).endswith("bias_stage=analog, noise=none, gradient_bits=8)")
    assert repr(net[2]).endswith("bias_stage=analog, noise=none)")


def test_a_layer_of_a_release_without_the_setting() -> None:
    net = torch.load(STATES / "json-model.pt", weights_only=False)
    assert net[0].gradient_bits is None
    assert "_gradient_bits" in net[0].__dict__
    state = model()[0].__getstate__()
    del state["_gradient_bits"]
    layer = OpticalLinear.__new__(OpticalLinear)
    layer.__setstate__(state)
    assert layer.gradient_bits is None
    layer(X).sum().backward()


def test_the_state_says_nothing_of_it() -> None:
    layer = OpticalLinear(6, 9, profile=PROFILE, gradient_bits=8)
    other = OpticalLinear(6, 9, profile=PROFILE)
    assert list(layer.state_dict()) == list(other.state_dict())
    layer.load_state_dict(other.state_dict())
    other.load_state_dict(layer.state_dict())
    assert (layer.gradient_bits, other.gradient_bits) == (8, None)


def test_to_and_from_linear() -> None:
    layer = OpticalLinear.from_linear(nn.Linear(6, 9), PROFILE, gradient_bits=8)
    assert layer.gradient_bits == 8
    linear = layer.to_linear()
    assert set(linear.__dict__) == set(nn.Linear(6, 9).__dict__)
    assert OpticalLinear.from_linear(layer, PROFILE).gradient_bits is None


def test_convert_and_report() -> None:
    net = model(gradient_bits=8, skip="2")
    assert net[0].gradient_bits == 8
    assert type(net[2]) is nn.Linear
    again = convert(net, PROFILE.replace(input_bits=4))
    assert (again[0].gradient_bits, again[2].gradient_bits) == (8, None)
    text = str(report(again))
    assert re.search(r"output range +noise +gradient\n", text)
    assert re.search(r"\n +0 .* none +8 bits\n +2 .* none +-$", text)
    assert [layer.gradient_bits for layer in report(again).layers] == [8, None]
    assert [layer.gradient_bits for layer in report(convert(again, PROFILE, gradient_bits=8)).layers] == [8, 8]
    assert "gradient" not in str(report(model()))


@pytest.mark.parametrize(
    ("error", "value", "message"),
    [
        (ValueError, 4, "gradient_bits = 4: allowed is 8, or None"),
        (ValueError, 0, "gradient_bits = 0: allowed is 8, or None"),
        (ValueError, 16, "gradient_bits = 16: allowed is 8, or None"),
        (TypeError, True, "gradient_bits is bool True: allowed is 8, or None"),
        (TypeError, 8.0, "gradient_bits is float 8.0: allowed is 8, or None"),
        (TypeError, "8", "gradient_bits is str '8': allowed is 8, or None"),
        (TypeError, [8], "gradient_bits is list: allowed is 8, or None"),
    ],
)
def test_other_bits_are_refused(error: Any, value: Any, message: str) -> None:
    def block() -> None:
        with gradient_bits(value):
            pass

    layer = model()[0]

    def assign() -> None:
        layer.gradient_bits = value

    calls = [
        block,
        assign,
        lambda: OpticalLinear(3, 2, profile=PROFILE, gradient_bits=value),
        lambda: OpticalLinear.from_linear(nn.Linear(3, 2), PROFILE, gradient_bits=value),
        lambda: convert(nn.Linear(3, 2), PROFILE, gradient_bits=value),
    ]
    for call in calls:
        with pytest.raises(error, match=f"^{re.escape(message)}$"):
            call()
    assert layer.gradient_bits is None
    assert _scope.current() == ()
