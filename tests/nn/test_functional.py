"""`functional.optical_linear`: the reference's bits, its gradients, its errors."""

import dataclasses
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from hypothesis import assume, given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

import lumina_kernel  # noqa: E402
from lumina_onnx import reference, schema  # noqa: E402
from lumina_onnx.nn import OpticalLinear, frozen, noise  # noqa: E402
from lumina_onnx.nn.functional import optical_linear  # noqa: E402
from lumina_onnx.profile import OpticalProfile  # noqa: E402

from .cases import Case, assert_same_bits, cases  # noqa: E402

NOISY = OpticalProfile(noise_additive=0.1)
CLEAN = OpticalProfile()


def layer(m: int = 3, k: int = 5, n: int = 4) -> Any:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(*shape, generator=generator) for shape in ((m, k), (n, k), (n,)))


@given(cases())
def test_inference_equals_the_reference(case: Case) -> None:
    with torch.no_grad():
        y = optical_linear(case.x, case.weight, case.bias, case.profile, seed=case.seed, stream=case.stream)
    assert_same_bits(y, case.reference())


@given(cases())
def test_training_equals_the_reference(case: Case) -> None:
    x, weight, bias = case.leaves()
    y = optical_linear(x, weight, bias, case.profile, seed=case.seed, stream=case.stream)
    assert_same_bits(y, case.reference())
    y.backward(case.grad)
    for leaf, expected in zip((x, weight, bias), case.reference_gradients(), strict=True):
        if leaf is not None:
            assert_same_bits(leaf.grad, expected)


@given(cases(), st.tuples(st.booleans(), st.booleans(), st.booleans()), st.booleans())
def test_gradients_of_some_inputs_equal_the_reference(
    case: Case, wanted: tuple[bool, bool, bool], freeze: bool
) -> None:
    """The bits do not depend on what the forward pass kept for the gradients."""
    assume(any(wanted))
    n, k = case.weight.shape
    linear = OpticalLinear(k, n, case.bias is not None, profile=case.profile, seed=case.seed)
    leaves = (case.x.clone(), linear.weight, linear.bias)
    with torch.no_grad():
        for parameter, value in ((linear.weight, case.weight), (linear.bias, case.bias)):
            if parameter is not None:
                parameter.copy_(value)
    for leaf, want in zip(leaves, wanted, strict=True):
        if leaf is not None:
            leaf.requires_grad_(want)
    assume(any(leaf is not None and leaf.requires_grad for leaf in leaves))
    with noise(linear, True, stream=case.stream), frozen(linear) if freeze else nullcontext():
        y = linear(leaves[0])
    assert_same_bits(y, case.reference())
    y.backward(case.grad)
    for leaf, want, expected in zip(leaves, wanted, case.reference_gradients(), strict=True):
        if leaf is not None and want:
            assert_same_bits(leaf.grad, expected)
        elif leaf is not None:
            assert leaf.grad is None


@pytest.mark.parametrize(
    ("profile", "for_x", "for_weight"),
    [
        # The scales of 32 rows, 64 x 128 codes (with s_x), the ADC's mask of 64 x 32 and the DAC's of 64 x 128.
        (OpticalProfile(8, 8, 8, 1.0, 1.0), 32 * 4 + 64 * (4 + 16), 64 * (128 + 4 + 4)),
        (OpticalProfile(8, 8, 8), 32 * 4, 64 * (128 + 4)),
        (OpticalProfile(12, 12, 8), 32 * 4, 64 * (256 + 4)),
        (OpticalProfile(0, 0, 8), 32 * 4, 64 * 4),
    ],
)
def test_a_forward_pass_keeps_what_the_wanted_gradients_need(
    profile: OpticalProfile, for_x: int, for_weight: int
) -> None:
    x, weight, bias = torch.ones(64, 128), torch.ones(32, 128), torch.ones(32)

    def kept(*wanted: Any) -> Any:
        """Which of x and weight are kept as they are, and the number of bytes of the rest."""
        for tensor in (x, weight, bias):
            tensor.requires_grad_(any(tensor is one for one in wanted))
        tensors = saved_by(lambda: optical_linear(x, weight, bias, profile))
        held = [any(tensor.data_ptr() == kept.data_ptr() for kept in tensors) for tensor in (x, weight)]
        return (*held, sum(kept.nbytes for kept in tensors if kept.dtype == torch.uint8))

    adc, analog = 64 * 4 if profile.output_range else 0, not profile.input_bits
    assert kept(x) == (False, True, for_x)
    assert kept(weight) == (analog, False, for_weight)
    assert kept(x, weight, bias) == (analog, True, for_x + for_weight - adc)
    assert kept(bias) == (False, False, adc)


def saved_by(run: Any) -> Any:
    """The tensors that a forward pass saves for the gradient."""
    tensors = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensors.append(tensor) or tensor, lambda t: t):  # type: ignore[func-returns-value]
        run()
    return tensors


@pytest.mark.parametrize("freeze", [False, True])
@pytest.mark.parametrize(("m", "n", "k"), [(32, 1024, 1024), (256, 100, 700), (5, 33, 40)])
@pytest.mark.parametrize("weight_bits", [0, 1, 8, 12])
def test_a_layer_keeps_the_codes_of_its_input_alone(freeze: bool, m: int, n: int, k: int, weight_bits: int) -> None:
    layer = OpticalLinear(k, n, profile=OpticalProfile(8, weight_bits, 8, 1.0, 1.0))
    x = torch.zeros(m, k, requires_grad=True)
    with frozen(layer) if freeze else nullcontext():
        tensors = saved_by(lambda: layer(x))
    (saved,) = (tensor for tensor in tensors if tensor is not layer.weight)
    # Rows of codes are padded to at most an odd number of cache lines, rows of bits to 16.
    assert saved.nbytes <= m * (k + 127) + 4 * m + 4 * n + 63 + m * (n + k + 30) // 8
    assert len(tensors) == 2


@pytest.mark.parametrize("freeze", [False, True])
@pytest.mark.parametrize("weight_bits", [0, 8])
def test_a_weight_changed_in_place_before_its_gradient_raises(freeze: bool, weight_bits: int) -> None:
    """A linear layer of torch's raises too."""
    ours = OpticalLinear(5, 4, profile=OpticalProfile(8, weight_bits, 8))
    for linear in (torch.nn.Linear(5, 4), ours):
        for x in (torch.ones(3, 5, requires_grad=True), torch.ones(3, 5)):
            with frozen(linear) if freeze else nullcontext():
                y = linear(x)
            with torch.no_grad():
                linear.weight.add_(1)
            if x.requires_grad:
                with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                    y.sum().backward()
            else:
                y.sum().backward()


@pytest.mark.parametrize("weight_bits", [1, 8, 12])
def test_a_weight_that_became_nan_unseen_gives_nan(weight_bits: int) -> None:
    layer = OpticalLinear(5, 4, profile=OpticalProfile(8, weight_bits, 8))
    x = torch.ones(3, 5, requires_grad=True)
    y = layer(x)
    layer.weight.data[1, 2] = float("nan")
    y.sum().backward()
    assert x.grad.isnan().sum(0).tolist() == [0, 0, 3, 0, 0]


@pytest.mark.parametrize(("bits", "weight_bits"), [(8, 0), (8, 1), (8, 2), (4, 4), (8, 8), (9, 12), (12, 16), (0, 8)])
def test_training_of_wide_layers_equals_the_reference(bits: int, weight_bits: int) -> None:
    generator = torch.Generator().manual_seed(0)
    m, k, n = 5, 600, 37
    case = Case(
        profile=OpticalProfile(bits, weight_bits, 8, 1.5 if bits else 0.0, 20.0, noise_additive=0.1),
        x=torch.randn(m, k, generator=generator),
        weight=torch.randn(n, k, generator=generator),
        bias=torch.randn(n, generator=generator),
        grad=torch.randn(m, n, generator=generator),
        seed=1,
        stream=2,
    )
    leaves = case.leaves()
    y = optical_linear(*leaves, case.profile, seed=case.seed, stream=case.stream)
    assert_same_bits(y, case.reference())
    y.backward(case.grad)
    for leaf, expected in zip(leaves, case.reference_gradients(), strict=True):
        assert_same_bits(leaf.grad, expected)
        assert bool((leaf.grad != 0).any())


@given(cases(), st.lists(st.booleans(), min_size=3, max_size=3))
def test_each_gradient_alone(case: Case, wanted: list[bool]) -> None:
    leaves: Any = [
        tensor if tensor is None else tensor.clone().requires_grad_(want)
        for tensor, want in zip((case.x, case.weight, case.bias), wanted, strict=True)
    ]
    assume(any(leaf is not None and leaf.requires_grad for leaf in leaves))
    y = optical_linear(*leaves, case.profile, seed=case.seed, stream=case.stream)  # type: ignore[arg-type, misc]
    y.backward(case.grad)
    for leaf, expected in zip(leaves, case.reference_gradients(), strict=True):
        if leaf is not None and leaf.requires_grad:
            assert_same_bits(leaf.grad, expected)
        elif leaf is not None:
            assert leaf.grad is None


def straight_through(hard: Any, soft: Any) -> Any:
    """The value of `hard` with the gradient of `soft`."""
    return soft + (hard - soft).detach()


def quantise(v: Any, full_scale: Any, bits: Any) -> Any:
    levels = 2 ** (bits - 1) - 1
    codes = torch.where(full_scale > 0, v / full_scale * levels, torch.zeros_like(v))
    return torch.round(codes.clamp(-levels, levels)) * full_scale / levels


def equations(case: Case, x: Any, weight: Any, bias: Any) -> Any:
    """The operator with straight-through estimates, in float64 with plain torch; also returns v and its range."""
    profile = case.profile
    a, w = x, weight
    if profile.input_bits:
        full_scale = torch.tensor(profile.input_range, dtype=torch.float64)
        soft = x.clamp(-full_scale, full_scale) if profile.input_range else x
        if not profile.input_range:
            full_scale = x.detach().abs().amax(-1, keepdim=True)
        a = straight_through(quantise(x, full_scale, profile.input_bits), soft)
    if profile.weight_bits:
        codes, scale = reference.quantize_weight(case.weight.numpy(), profile.weight_bits)
        hard = torch.from_numpy(codes).double() * torch.from_numpy(scale).double()[:, None]
        w = straight_through(hard, weight)
    z = a @ w.T
    if bias is not None and profile.bias_stage == "analog":
        z = z + bias
    static = profile.output_range != 0
    full_scale = torch.tensor(profile.output_range, dtype=torch.float64)
    if not static:
        full_scale = z.detach().abs().amax(-1, keepdim=True)
    magnitude = z.detach().abs()
    variance = (profile.noise_relative * magnitude) ** 2 + (profile.noise_additive * full_scale) ** 2
    variance = variance + profile.noise_shot**2 * magnitude * full_scale
    rows = int(np.prod(case.x.shape[:-1]))
    eps = reference.noise(case.seed, case.stream, rows, weight.shape[0]).reshape(z.shape)
    v = z + variance.sqrt() * torch.from_numpy(eps).double()
    y = v
    if profile.output_bits:
        soft = torch.minimum(torch.maximum(v, -full_scale), full_scale) if static else v
        if not static:
            full_scale = v.detach().abs().amax(-1, keepdim=True)
        y = straight_through(quantise(v, full_scale, profile.output_bits), soft)
    if bias is not None and profile.bias_stage == "digital":
        y = y + bias
    return y, v.detach(), full_scale if static and profile.output_bits else None


@given(cases())
def test_gradients_agree_with_autograd_of_the_equations(case: Case) -> None:
    size = case.x.abs()
    # Where float32 and float64 differ by more than rounding, only the reference can tell which result is right.
    # The equations below are those of version 1.
    assume(not schema.later(case.parameters))
    assume(case.x.numel() > 0 and bool(((size == 0) | ((size > 1e-30) & (size < 1e30))).all()))
    leaves = case.leaves()
    optical_linear(*leaves, case.profile, seed=case.seed, stream=case.stream).backward(case.grad)

    wide = [None if leaf is None else leaf.detach().double().requires_grad_() for leaf in leaves]
    y, v, full_scale = equations(case, *wide)
    if full_scale is not None:
        # At the very edge of saturation, float32 and float64 may fall on different sides.
        assume(bool(((v.abs() - full_scale).abs() > 1e-4 * full_scale).all()))
    y.backward(case.grad.double())
    for name, leaf, other in zip(("x", "weight", "bias"), leaves, wide, strict=True):
        if leaf is not None:
            tolerance = 1e-4 * (float(other.grad.abs().max()) or 1.0)  # type: ignore[union-attr]
            assert torch.allclose(leaf.grad.double(), other.grad, rtol=0, atol=tolerance), name  # type: ignore[union-attr]


def test_manual_seed_repeats_the_noise() -> None:
    x, weight, bias = layer()
    torch.manual_seed(1)
    first, second = (optical_linear(x, weight, bias, NOISY) for _ in range(2))
    torch.manual_seed(1)
    again = optical_linear(x, weight, bias, NOISY)
    assert not torch.equal(first, second)
    assert torch.equal(first, again)


@pytest.mark.parametrize(("profile", "stream"), [(CLEAN, None), (NOISY, 3)])
def test_nothing_is_drawn_without_need(profile: OpticalProfile, stream: int | None) -> None:
    x, weight, bias = layer()
    before = torch.get_rng_state()
    optical_linear(x, weight, bias, profile, stream=stream)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_stream_may_be_a_tensor() -> None:
    x, weight, bias = layer()
    y = optical_linear(x, weight, bias, NOISY, stream=torch.tensor(7))
    assert torch.equal(y, optical_linear(x, weight, bias, NOISY, stream=7))
    assert not torch.equal(y, optical_linear(x, weight, bias, NOISY, stream=8))
    assert not torch.equal(y, optical_linear(x, weight, bias, NOISY, stream=7, seed=1))


def test_tensors_that_are_not_contiguous() -> None:
    x, weight, bias = layer(m=6, k=4, n=4)
    odd = [x.T.contiguous().T.requires_grad_(), weight.T.contiguous().T.requires_grad_(), bias]
    even = [x.clone().requires_grad_(), weight.clone().requires_grad_(), bias]
    assert not odd[0].is_contiguous()
    results = []
    for leaves in (odd, even):
        y = optical_linear(*leaves, OpticalProfile(input_bits=0, weight_bits=0))  # type: ignore[arg-type, call-arg]
        y.sum().backward()  # an expanded gradient
        results.append((y, leaves[0].grad, leaves[1].grad))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_autocast_computes_in_float32() -> None:
    x, weight, bias = layer()
    weight.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = optical_linear(x.bfloat16().requires_grad_(), weight, bias, CLEAN)
    assert y.dtype == torch.float32
    assert torch.equal(y, optical_linear(x.bfloat16().float(), weight, bias, CLEAN))
    y.sum().backward()
    assert weight.grad.dtype == torch.float32


def test_threads_follow_torch() -> None:
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            optical_linear(*layer(), CLEAN)  # type: ignore[arg-type, call-arg]
            assert lumina_kernel.num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_a_second_derivative_raises() -> None:
    x, weight, bias = layer()
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(optical_linear(x, weight, bias, CLEAN).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"no second derivative: its gradient is a straight-through estimate"):
        (gradient**2).sum().backward()


def test_checkpointing_repeats_the_noise() -> None:
    x, weight, bias = layer()
    gradients = []
    for checkpointed in (False, True):
        torch.manual_seed(5)
        leaf = weight.clone().requires_grad_()

        def run(x: Any, leaf: Any = leaf) -> Any:
            return optical_linear(x, leaf, bias, dataclasses.replace(NOISY, output_range=1.0))

        y = torch.utils.checkpoint.checkpoint(run, x, use_reentrant=False) if checkpointed else run(x)
        y.square().sum().backward()
        gradients.append(leaf.grad)
    assert torch.equal(*gradients)


BAD = [
    (TypeError, r"x is list: allowed is a torch.Tensor", lambda x, w, b: ([1.0], w, b, CLEAN)),
    (TypeError, r"x is torch.float64: allowed is torch.float32; convert it with .float\(\)",
     lambda x, w, b: (x.double(), w, b, CLEAN)),
    (TypeError, r"weight is torch.float16: allowed is torch.float32", lambda x, w, b: (x, w.half(), b, CLEAN)),
    (TypeError, r"bias is torch.int64: allowed is torch.float32", lambda x, w, b: (x, w, b.long(), CLEAN)),
    (TypeError, r"x is a torch.sparse_coo tensor: allowed is a dense", lambda x, w, b: (x.to_sparse(), w, b, CLEAN)),
    (TypeError, r"x is a nested tensor: allowed is a dense",
     lambda x, w, b: (torch.nested.nested_tensor([x, x], layout=torch.jagged), w, b, CLEAN)),
    (TypeError, r"profile is dict: allowed is a lumina_onnx.OpticalProfile", lambda x, w, b: (x, w, b, {})),
    (ValueError, r"x has shape \[3, 4\]: allowed is \[..., 5\]", lambda x, w, b: (x[:, :4], w, b, CLEAN)),
    (ValueError, r"x has shape \[\]: allowed is \[..., 5\]", lambda x, w, b: (x[0, 0], w, b, CLEAN)),
    (ValueError, r"weight has shape \[5\]: allowed is \[N, K\]", lambda x, w, b: (x, w[0], b, CLEAN)),
    (ValueError, r"weight has shape \[0, 5\]: allowed is \[N, K\], N and K at least 1",
     lambda x, w, b: (x, w[:0], b, CLEAN)),
    (ValueError, r"bias has shape \[2\]: allowed is \[4\]", lambda x, w, b: (x, w, b[:2], CLEAN)),
    (ValueError, r"output_range has 3 elements: allowed is 1, or one for each of the N = 4 outputs",
     lambda x, w, b: (x, w, b, OpticalProfile(output_range=(1.0, 1.0, 1.0)))),
]  # fmt: skip


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize(("error", "message", "arguments"), BAD)
def test_bad_arguments(error: Any, message: Any, arguments: Any, grad: bool) -> None:
    x, weight, bias = layer()
    with pytest.raises(error, match=message):
        optical_linear(*arguments(x, weight.requires_grad_(grad), bias))


@pytest.mark.parametrize("name", ["seed", "stream"])
@pytest.mark.parametrize(
    ("error", "value", "message"),
    [
        (ValueError, -1, "= -1: allowed is 0..2"),
        (ValueError, 2**63, f"= {2**63}: allowed is 0..2"),
        (TypeError, 1.5, "is float 1.5: allowed is an int"),
        (TypeError, True, "is bool True: allowed is an int"),
    ],
)
def test_bad_counters(name: str, error: Any, value: Any, message: str) -> None:
    with pytest.raises(error, match=f"{name} {message}"):
        optical_linear(*layer(), CLEAN, **{name: value})  # type: ignore[arg-type, call-arg]


@pytest.mark.parametrize("stream", [torch.zeros(2, dtype=torch.int64), torch.zeros(())])
def test_bad_stream_tensors(stream: Any) -> None:
    with pytest.raises(TypeError, match=r"stream is a tensor of .*: allowed is an int, or an int64 tensor of one"):
        optical_linear(*layer(), CLEAN, stream=stream)  # type: ignore[arg-type, call-arg]


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(grad: bool, value: Any) -> None:
    x, weight, bias = layer()
    weight[2, 1] = value
    with pytest.raises(ValueError, match=r"^weight\[2, 1\] = (NaN|inf): allowed is a finite number"):
        optical_linear(x, weight.requires_grad_(grad), bias, CLEAN)


def test_a_tensor_elsewhere() -> None:
    x, weight, bias = layer()
    y = optical_linear(x.to("meta"), weight.to("meta"), bias.to("meta"), CLEAN)
    assert y.shape == (3, 4)
    assert y.device.type == "meta"
