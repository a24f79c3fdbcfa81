"""The rivals in the benchmarks compute what the operator computes, so that like is compared with like."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounter

import lumina_kernel
from benchmarks import eager, memory, rivals, sessions, timing
from lumina_onnx import OpticalProfile
from lumina_onnx.nn import functional

BITS = ("input_bits", "weight_bits", "output_bits")
dimensions = st.integers(1, 40)


def tensors(m: int, k: int, n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, weight, bias = (torch.randn(size, generator=generator) for size in ((m, k), (n, k), (n,)))
    return x, weight, bias


@given(dimensions, dimensions, dimensions, st.integers(0, 99), st.sampled_from([0, 3, 8]), st.sampled_from([0, 4, 8]))
def test_eager_pytorch_is_the_same_without_an_adc(
    m: int, k: int, n: int, seed: int, input_bits: int, weight_bits: int
) -> None:
    x, weight, bias = tensors(m, k, n, seed)
    bits: dict[str, Any] = {"input_bits": input_bits, "weight_bits": weight_bits}
    expected = lumina_kernel.optical_linear_forward(x, weight, bias, 0.0, 0, **bits)
    found = eager.optical_linear(x, weight, bias, output_bits=0, **bits)
    scale = float(x.abs().max() * weight.abs().sum(-1).max() + bias.abs().max())
    assert float((found - expected).abs().max()) <= 2e-6 * scale


@given(dimensions, dimensions, dimensions, st.integers(0, 99), st.sampled_from([2, 4, 8]))
def test_eager_pytorch_with_fixed_ranges_is_within_a_step(m: int, k: int, n: int, seed: int, bits: int) -> None:
    """It clips where the operator clips, and has the same gradient."""
    results = []
    ranges = {"input_range": 1.5, "output_range": 2.0 * k**0.5}
    profile = OpticalProfile(bits, bits, bits, **ranges)
    for side in ("ours", "theirs"):
        x, weight, bias = (tensor.requires_grad_() for tensor in tensors(m, k, n, seed))
        if side == "ours":
            y = functional.optical_linear(x, weight, bias, profile)
        else:
            y = eager.optical_linear(x, weight, bias, **ranges, **dict.fromkeys(BITS, bits))
        y.backward(torch.ones(m, n))
        results.append((y.detach(), x.grad, weight.grad, bias.grad))
    levels = 2 ** (bits - 1) - 1
    (ours, *gradients), (theirs, *others) = results
    assert float((ours - theirs).abs().max()) <= 1.001 * ranges["output_range"] / levels
    # PyTorch passes the gradient of a value beyond the range if it rounds to the range, that is within half a step.
    x, weight, bias = tensors(m, k, n, seed)
    z = eager.optical_linear(x, weight, bias, input_range=1.5, **dict.fromkeys(BITS[:2], bits), output_bits=0)
    edges = [
        (0.999 * limit < v.abs()) & (v.abs() < (1.001 + 0.5 / levels) * limit)
        for v, limit in ((x, 1.5), (z, ranges["output_range"]))
    ]
    if not any(bool(edge.any()) for edge in edges):
        for gradient, other in zip(gradients, others, strict=True):
            torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-3)


@given(dimensions, dimensions, dimensions, st.integers(0, 99))
def test_eager_pytorch_is_within_a_step_of_the_adc(m: int, k: int, n: int, seed: int) -> None:
    x, weight, bias = tensors(m, k, n, seed)
    expected = functional.optical_linear(x, weight, bias, OpticalProfile())
    step = expected.abs().amax(-1, keepdim=True) / 127
    rivals = [eager.optical_linear(x, weight, bias)]
    if k > 1:  # for k = 1 torch._int_mm of torch 2.13 returns memory that it has not written
        rivals.append(eager.optical_linear_int_mm(x, weight, bias))
    for found in rivals:
        assert bool(((found - expected).abs() <= 1.001 * step).all())
    analog = lumina_kernel.optical_linear_forward(x, weight, bias, 0.0, 8)
    step = analog.abs().amax(-1, keepdim=True) / 127
    assert bool(((eager.three_lines(x, weight, bias, 0.0, 8) - analog).abs() <= 1.001 * step).all())


def test_eager_pytorch_seldom_differs_at_all() -> None:
    x, weight, bias = tensors(128, 256, 200, 1)
    expected = functional.optical_linear(x, weight, bias, OpticalProfile())
    step = expected.abs().amax(-1, keepdim=True) / 127
    for found in (eager.optical_linear(x, weight, bias), eager.optical_linear_int_mm(x, weight, bias)):
        assert float(((found - expected).abs() > 0.5 * step).float().mean()) < 1e-3


@pytest.mark.parametrize("law", ["noise_relative", "noise_additive"])
def test_eager_pytorch_has_the_same_noise(law: str) -> None:
    """On both sides, the noise divided by its sigma is standard normal."""
    torch.manual_seed(0)
    x, weight, bias = tensors(300, 20, 300, 2)
    level: dict[str, Any] = {law: 0.05}
    bits: dict[str, Any] = {"input_bits": 8, "weight_bits": 8}
    clean = lumina_kernel.optical_linear_forward(x, weight, bias, 0.0, 0, **bits)
    sigma = 0.05 * (clean.abs() if law == "noise_relative" else clean.abs().amax(-1, keepdim=True))
    profile = OpticalProfile(output_bits=0, **level)
    for noisy in (
        eager.optical_linear(x, weight, bias, output_bits=0, **level),
        functional.optical_linear(x, weight, bias, profile, seed=3),
    ):
        eps = ((noisy - clean) / sigma).double()
        assert abs(float(eps.mean())) < 5 / 300
        assert abs(float(eps.var()) - 1) < 5 * 2**0.5 / 300


def test_eager_pytorch_has_the_same_gradient() -> None:
    grads = []
    forwards: list[Callable[..., torch.Tensor]] = [
        lambda x, weight, bias: functional.optical_linear(x, weight, bias, OpticalProfile()),
        lambda *tensors: eager.optical_linear(*tensors),
        lambda *tensors: eager.OpticalLinearIntMm.apply(*tensors, 0.0),
    ]
    for forward in forwards:
        leaves = [tensor.requires_grad_() for tensor in tensors(33, 50, 40, 4)]
        torch.manual_seed(1)
        forward(*leaves).backward(torch.randn(33, 40))
        grads.append([leaf.grad for leaf in leaves])
    for ours, *others in zip(*grads, strict=True):
        for theirs in others:
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_two_noise_laws_at_once_are_refused() -> None:
    with pytest.raises(ValueError, match=r"relative = 0\.1 and additive = 0\.2: allowed is one law at a time"):
        eager.add_noise(torch.ones(1, 1), 0.1, 0.2)


# Training


@pytest.mark.parametrize("task", rivals.tasks(quick=True), ids=lambda task: task.name)
def test_all_sides_train_the_same_network(task: rivals.Task) -> None:
    """All sides have the same parameters and, except for the noise, compute the same."""
    with torch.no_grad():
        exact = task.model(task.x)
    scale = float(exact.abs().max())
    for side in (rivals.OURS, rivals.EAGER, rivals.INT_MM, rivals.PLAIN):
        model = rivals.with_layers_of(side, task.model)
        torch.testing.assert_close(list(model.parameters()), list(task.model.parameters()), rtol=0, atol=0)
        error = float((model(task.x).detach() - exact).abs().max())
        assert error <= (0.0 if side == rivals.PLAIN else 0.2 * scale), side
        assert side == rivals.PLAIN or error > 0, side
        rivals.step(task, side)()


def test_what_a_layer_saves() -> None:
    task = rivals.layer((16, 64, 32))
    codes = 64 * (16 + 32)
    assert rivals.saved_bytes(task, rivals.EAGER) == 4 * codes
    assert rivals.saved_bytes(task, rivals.AUTOCAST) == 2 * codes
    assert rivals.saved_bytes(task, rivals.INT_MM) == codes + 4 * (16 + 32)
    for side in (rivals.OURS, rivals.RESULTS):
        assert rivals.saved_bytes(task, side) == 64 * 16 + 4 * (16 + 32)


def test_results_alone_are_of_the_shapes_of_a_layer() -> None:
    for needs_x in (True, False):
        task = rivals.layer((16, 64, 32))
        x = task.x.detach().requires_grad_(needs_x)
        model = rivals.with_layers_of(rivals.RESULTS, task.model)
        y = model(x)
        y.backward(task.grad)
        assert y.shape == (16, 32)
        assert [[*parameter.grad.shape] for parameter in model.parameters() if parameter.grad is not None] == [
            [32, 64],
            [32],
        ]
        assert (x.grad is not None) == needs_x


def test_multiply_adds_of_the_backward_pass() -> None:
    assert rivals.layer((2, 3, 5)).multiply_adds() == 2 * 2 * 3 * 5
    # The first layer's input is data and gets no gradient.
    perceptron = rivals.networks(quick=True)[0]
    assert perceptron.multiply_adds() == 8 * (64 * 32 + 2 * 32 * 32 + 2 * 32 * 10)


def test_without_aihwkit_the_report_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aihwkit", None)
    assert str(rivals.why_no_aihwkit.__wrapped__()).startswith("not installed (")


def test_where_the_system_keeps_no_peak_it_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(memory, "RESET", tmp_path / "nowhere" / "clear_refs")
    with pytest.raises(SystemExit) as stopped:
        memory._child(0, rivals.OURS, "highest", 1, True)
    assert stopped.value.code == memory.CANNOT
    assert "does not reset a process's peak of memory" in capsys.readouterr().err


def child(code: str) -> str:
    """A program for :func:`memory.peak` to run in the place of the interpreter."""
    return f"#!{sys.executable}\nimport sys\n{code}\n"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("code", "error", "message"),
    [
        ("sys.exit('no such task')", RuntimeError, "failed:\nno such task"),
        ("print(0, flush=True)\nsys.stdin.readline()\nsys.exit('in a step')", RuntimeError, "failed:\nin a step"),
        (f"print('no peak', file=sys.stderr)\nsys.exit({memory.CANNOT})", memory.Missing, "no peak"),
    ],
)
def test_a_child_that_ends_early_says_why(
    code: str, error: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "python"
    program.write_text(child(code), encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    with pytest.raises(error, match=message):
        memory.peak(0, rivals.OURS, "highest", 1, True)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_peak_of_a_step_is_seen_or_on_record(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Steps that report 5, 7, 1, ... bytes more than before, in a process that is far smaller than that."""
    reported = [1 << 40, *((1 << 40) + more for more in (5, 7, 1))]
    code = f"for number in {reported}:\n print(number, flush=True)\n sys.stdin.readline()"
    program = tmp_path / "python"
    program.write_text(child(code), encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setattr(memory, "PAGE", 1)
    assert memory.peak(0, rivals.OURS, "highest", 1, True) == 6


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))


def output(layer: sessions.Layer, x: np.ndarray, **options: bool) -> np.ndarray:
    return sessions.Bound(sessions.model([layer], len(x)), x, **options).output()


@pytest.mark.parametrize("m", [1, 5])
def test_sessions_compute_the_layer(m: int) -> None:
    generator = np.random.default_rng(0)
    x, weight = generator.standard_normal((m, 200), np.float32), generator.standard_normal((96, 200), np.float32)
    exact = x @ weight.T
    # How much of the signal is left at each number of bits: at 8 nearly all, at 4 most, then little.
    least = {8: 0.999, 4: 0.98, 2: 0.5, 1: 0.7}
    for bits, bound in least.items():
        for library in (True, False):
            assert cosine(output(sessions.optical(weight, bits), x, library=library), exact) > bound
    for bits in (8, 4, 2):
        for block in (32, 128):
            assert cosine(output(sessions.n_bits(weight, bits, block), x), exact) > least[bits]
    assert cosine(output(sessions.mat_mul(weight), x), exact) > 0.999999
    assert cosine(output(sessions.integer_chain(weight, unsigned=True), x), exact) > 0.999
    signed = 0.999 if sessions.signed_products_are_exact() else 0.9
    assert cosine(output(sessions.integer_chain(weight), x), exact) > signed


def test_the_integer_chain_is_one_operator_in_a_session(tmp_path: Path) -> None:
    """The rival is ONNX Runtime's fused operator, not the five separate ones in the model."""
    for unsigned in (False, True):
        path = tmp_path / f"{unsigned}.onnx"
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(path)
        layer = sessions.integer_chain(np.ones((32, 64), np.float32), unsigned=unsigned)
        onnxruntime.InferenceSession(sessions.model([layer], 1), options)
        operators = {node.op_type for node in onnx.load(path).graph.node}
        assert operators in ({"DynamicQuantizeMatMul"}, {"DynamicQuantizeLinear", "MatMulIntegerToFloat"})


def test_unsigned_products_are_exact_where_signed_ones_may_saturate() -> None:
    ones = np.ones((32, 64), np.float32)
    found = output(sessions.integer_chain(ones, unsigned=True), ones[:1])
    assert found.tolist() == [[64.0] * 32]
    exact = bool((output(sessions.integer_chain(ones), ones[:1]) == 64).all())
    assert exact == sessions.signed_products_are_exact()
    assert ("integer product" in sessions.exact_products()) == exact


def test_networks_have_relu_between_their_layers() -> None:
    generator = np.random.default_rng(0)
    x = generator.standard_normal((3, 40), np.float32)
    weights = [generator.standard_normal(size, np.float32) for size in ((50, 40), (30, 50), (20, 30))]
    exact = x
    for index, weight in enumerate(weights):
        exact = (np.maximum(exact, 0) if index else exact) @ weight.T
    chain = partial(sessions.integer_chain, unsigned=True)
    for build in (sessions.mat_mul, chain, lambda weight: sessions.optical(weight, 8)):
        network = sessions.model([build(weight) for weight in weights], len(x))
        assert cosine(sessions.Bound(network, x, threads=2).output(), exact) > 0.999


@settings(max_examples=10)
@given(st.integers(1, 6), dimensions, dimensions, st.sampled_from(sessions.exact_products()))
def test_standard_operators_are_the_operator_without_noise(m: int, k: int, n: int, product: str) -> None:
    generator = np.random.default_rng(k)
    x, weight = generator.standard_normal((m, k), np.float32), generator.standard_normal((n, k), np.float32)
    expected = output(sessions.optical(weight, 8), x)
    found = output(sessions.standard_operators(weight, 0.0, product), x)
    step = np.abs(expected).max(-1, keepdims=True) / 127
    assert (np.abs(found - expected) <= 1.001 * step).all()


def test_standard_operators_have_the_noise() -> None:
    x, weight = np.ones((1, 8), np.float32), np.ones((400, 8), np.float32)
    for product in sessions.exact_products():
        layer = sessions.standard_operators(weight, 0.05, product)
        session = sessions.Bound(sessions.model([layer], 1), x)
        eps = (np.concatenate([session.output() for _ in range(20)]) - 8) / (8 * 0.05)
        assert 0.9 < eps.std() < 1.1


def test_a_burst_waits_until_the_threads_of_the_last_one_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """First a process whose other threads spin for another 0.07 s, then one whose threads never rest."""
    for spins, sleeps in ((0.07, 5), (math.inf, 50)):
        clock: Any = [0.0]
        slept: list[float] = []

        def sleep(seconds: float, clock: list[float] = clock, slept: list[float] = slept) -> None:
            clock[0] += seconds
            slept.append(seconds)

        monkeypatch.setattr(time, "sleep", sleep)
        monkeypatch.setattr(time, "process_time", lambda clock=clock, spins=spins: min(clock[0], spins))
        timing.rest(0.02)
        assert slept == [0.02] * sleeps


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # by Dynamo
def test_a_compiled_side_is_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    counter = CompileCounter()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter))
    for graphs, side in enumerate((rivals.COMPILED, rivals.OURS_COMPILED, rivals.PLAIN_COMPILED), 1):
        rivals.step(rivals.small(), side)()
        assert counter.frame_count == graphs
