"""Optical layers with the tools that PyTorch users have around their models."""

import copy
import io
import pickle
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402
from torch.nn.utils import parametrizations, prune  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

from lumina_onnx.nn import OpticalLinear, calibrate, convert, frozen, noise, report  # noqa: E402
from lumina_onnx.nn.functional import optical_linear  # noqa: E402
from lumina_onnx.profile import OpticalProfile  # noqa: E402

from .ecosystem_cases import CLEAN, NOISY, Doubled, all_equal, batch, model  # noqa: E402

# Training


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("profile", [NOISY, OpticalProfile(0, 0, 8, noise_shot=0.2)])
def test_a_checkpointed_block_draws_the_same_noise_again(use_reentrant: bool, profile: OpticalProfile) -> None:
    def run(checkpointed: Any) -> Any:
        net, x = model(profile), batch().requires_grad_()
        torch.manual_seed(4)
        y = checkpoint(net, x, use_reentrant=use_reentrant) if checkpointed else net(x)
        y.square().sum().backward()
        return [y.detach(), x.grad, *(parameter.grad for parameter in net.parameters()), torch.get_rng_state()]

    assert all_equal(run(True), run(False))


def test_a_checkpointed_block_keeps_nothing() -> None:
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):  # type: ignore[func-returns-value]
        net, x = model(), batch().requires_grad_()
        net(x)
        plain = len(kept)
        kept.clear()
        checkpoint(net, x, use_reentrant=False)
    assert plain >= 3
    assert len(kept) < plain


def test_a_resumed_run_continues_bit_for_bit() -> None:
    def train(net: Any, optimiser: Any, steps: Any) -> None:
        for _ in range(steps):
            optimiser.zero_grad()
            net(torch.randn(16, 6)).square().sum().backward()
            optimiser.step()

    def start(seed: Any) -> Any:
        net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
        net = convert(net, NOISY, seed=seed, inplace=True)
        return net, torch.optim.Adam(net.parameters(), lr=0.01)

    net, optimiser = start(0)
    calibrate(net, [batch()], progress=False)
    torch.manual_seed(9)
    train(net, optimiser, 3)
    file = io.BytesIO()
    torch.save({"net": net.state_dict(), "optimiser": optimiser.state_dict(), "rng": torch.get_rng_state()}, file)
    train(net, optimiser, 3)

    file.seek(0)
    state = torch.load(file, weights_only=True)
    other, optimiser = start(1)
    other.load_state_dict(state["net"])
    optimiser.load_state_dict(state["optimiser"])
    torch.set_rng_state(state["rng"])
    train(other, optimiser, 3)
    assert all_equal(net.parameters(), other.parameters())
    assert report(net) == report(other)


OPTIMISERS = [
    (torch.optim.SGD, {"weight_decay": 0.1, "momentum": 0.9, "foreach": False}),
    (torch.optim.SGD, {"weight_decay": 0.1, "momentum": 0.9, "foreach": True}),
    (torch.optim.SGD, {"weight_decay": 0.1, "momentum": 0.9, "fused": True}),
    (torch.optim.AdamW, {"weight_decay": 0.1, "foreach": False}),
    (torch.optim.AdamW, {"weight_decay": 0.1, "foreach": True}),
    (torch.optim.AdamW, {"weight_decay": 0.1, "fused": True}),
]


@pytest.mark.parametrize(("optimiser", "options"), OPTIMISERS)
@pytest.mark.parametrize(
    "clip", [lambda p: nn.utils.clip_grad_norm_(p, 0.1), lambda p: nn.utils.clip_grad_value_(p, 0.01), lambda p: None]
)
def test_clipping_decay_and_steps_are_those_of_linear(optimiser: Any, options: Any, clip: Any) -> None:
    """Given the optical layers' gradients, nn.Linear layers end up with the same weights."""
    net = model()
    twin = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    twin.load_state_dict(
        {name: value for name, value in net.state_dict().items() if name.split(".")[-1] in ("weight", "bias")}
    )
    before = [parameter.detach().clone() for parameter in net.parameters()]
    optimisers = [optimiser(each.parameters(), lr=0.05, **options) for each in (net, twin)]
    for _ in range(3):
        net.zero_grad()
        net(batch()).square().sum().backward()
        for ours, theirs in zip(net.parameters(), twin.parameters(), strict=True):
            theirs.grad = ours.grad.clone()
        norms = [clip(list(each.parameters())) for each in (net, twin)]
        assert norms[0] == norms[1]
        for each in optimisers:
            each.step()
    assert all_equal(net.parameters(), twin.parameters())
    assert not any(torch.equal(a, b) for a, b in zip(net.parameters(), before, strict=True))


def test_gradients_accumulate_as_those_of_linear() -> None:
    net, x = model(), batch()
    net(x).sum().backward()
    first = [parameter.grad.clone() for parameter in net.parameters()]
    with noise(net, True, stream=3):
        net(x).sum().backward()
        both = [parameter.grad.clone() for parameter in net.parameters()]
        net.zero_grad()
        net(x).sum().backward()
    assert all_equal(both, [a + parameter.grad for a, parameter in zip(first, net.parameters(), strict=True)])


def test_a_gradient_in_a_hook_and_in_several_pieces() -> None:
    net, x = model(), batch()
    with noise(net, True, stream=1):
        y = net(x)
        whole = torch.autograd.grad(y, list(net.parameters()), torch.ones_like(y), retain_graph=True)
        parts = torch.autograd.grad(y, list(net.parameters()), torch.ones(2, *y.shape), is_grads_batched=True)
        for single, stacked in zip(whole, parts, strict=True):
            assert torch.equal(stacked, torch.stack([single, single]))
        seen = []
        net[0].register_full_backward_hook(lambda module, inputs, outputs: seen.append(outputs[0].shape))
        net(x.requires_grad_()).sum().backward()
    assert seen == [(16, 8)]


def test_averaged_weights() -> None:
    net = model()
    average = torch.optim.swa_utils.AveragedModel(net)
    average.update_parameters(net)
    with torch.no_grad():
        net[0].weight.add_(1)
    average.update_parameters(net)
    torch.testing.assert_close(average.module[0].weight, net[0].weight - 0.5)
    with noise(net, True, stream=1), noise(average, True, stream=1):
        assert not torch.equal(average(batch()), net(batch()))


# Types and devices


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda net: net.half(), r"weight is torch.float16: allowed is torch.float32; convert it with .float\(\)"),
        (lambda net: net.to(torch.bfloat16), r"weight is torch.bfloat16: allowed is torch.float32"),
        (lambda net: net.double(), r"weight is torch.float64: allowed is torch.float32"),
        (lambda net: net.to("meta"), r"weight is on meta and x on cpu: allowed is one device for all"),
    ],
)
@pytest.mark.parametrize("grad", [True, False])
def test_a_model_that_was_moved_or_narrowed(change: Any, message: str, grad: bool) -> None:
    net = model()
    x = batch().to(net[0].weight.dtype)
    change(net)
    with torch.set_grad_enabled(grad), pytest.raises(TypeError, match=message):
        net(x if "meta" in message else x.to(net[0].weight.dtype))


def test_a_model_on_a_gpu() -> None:
    """Uses fake tensors that claim to be on a GPU, so that the message can be tested without a GPU."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        x, weight = torch.empty(4, 6, device="cuda"), torch.empty(8, 6, device="cuda")
        with pytest.raises(TypeError, match=r"x is on cuda:0: allowed is the CPU, where the kernel runs; .*\.cpu\(\)"):
            optical_linear(x, torch.empty(8, 6), None, CLEAN)
        with pytest.raises(TypeError, match=r"weight is on cuda:0: allowed is the CPU"):
            optical_linear(torch.empty(4, 6), weight, None, CLEAN)


def test_meta_and_back() -> None:
    with torch.device("meta"):
        net = convert(nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3)), NOISY, inplace=True)
        assert net(torch.empty(5, 6)).shape == (5, 3)
    net.to_empty(device="cpu")
    other = convert(nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3)), NOISY)
    net.load_state_dict(other.state_dict())
    with noise(net, True, stream=1), noise(other, True, stream=1):
        assert torch.equal(net(batch()), other(batch()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_casts_inputs_to_float32(dtype: Any) -> None:
    net, x = nn.Sequential(nn.Linear(6, 6), OpticalLinear(6, 3, profile=CLEAN)), batch()
    with torch.autocast("cpu", dtype=dtype):
        hidden = net[0](x)
        y = net(x)
    assert hidden.dtype == dtype
    assert y.dtype == torch.float32
    assert torch.equal(y, net[1](hidden.float()))
    y.sum().backward()
    assert net[0].weight.grad.dtype == net[1].weight.grad.dtype == torch.float32  # type: ignore[union-attr]
    with pytest.raises(TypeError, match=f"x is {dtype}: allowed is torch.float32"):
        net[1](hidden)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_without_gradients(context: Any) -> None:
    net = model()
    with noise(net, True, stream=1):
        expected = net(batch())
        with context():
            y = net(batch())
    assert torch.equal(y, expected)
    assert not y.requires_grad
    assert y.is_inference() == (context is torch.inference_mode)


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.to(memory_format=torch.channels_last),
        lambda x: x.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
        lambda x: torch.cat([x, x], -1)[..., :6],
        lambda x: torch.stack([x, x], -1)[..., 0],
        lambda x: torch._neg_view(-x),
        lambda x: x.flip(0),
        lambda x: x[:, :1].expand(x.shape),
    ],
)
def test_inputs_of_any_layout(view: Any) -> None:
    x = torch.randn(2, 3, 4, 6)
    odd = view(x)
    even = odd.clone(memory_format=torch.contiguous_format)
    gradients = []
    net = model(OpticalProfile(input_bits=0, noise_additive=0.1))
    for each in (odd, even):
        leaf = each.detach().requires_grad_()
        net.zero_grad()
        with noise(net, True, stream=1):
            y = net(leaf)
        y.backward(torch.ones_like(y).mT.contiguous().mT)
        gradients.append([y.detach(), leaf.grad, *(parameter.grad for parameter in net.parameters())])
    assert all_equal(*gradients)


# Weights that are computed


def test_pruning() -> None:
    net = model(CLEAN)
    prune.l1_unstructured(net[0], "weight", 0.5)
    y = net(batch())
    pruned = optical_linear(batch(), net[0].weight, net[0].bias, CLEAN)
    assert int((net[0].weight == 0).sum()) == 24
    assert torch.equal(y, net[2](pruned.relu()))
    y.sum().backward()
    assert (net[0].weight_orig.grad[net[0].weight_mask == 0] == 0).all()
    assert (net[0].weight_orig.grad != 0).any()
    with frozen(net), torch.no_grad():
        assert torch.equal(net(batch()), y)
    prune.remove(net[0], "weight")
    assert torch.equal(net(batch()), y)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
@pytest.mark.parametrize("count", [1, 2])
def test_a_copy_of_a_pruned_model(duplicate: Any, count: int) -> None:
    net = model(CLEAN)
    for _ in range(count):
        prune.l1_unstructured(net[0], "weight", 0.25)
    y = net(batch())
    assert not net[0].weight.is_leaf
    other = duplicate(net)
    assert torch.equal(other(batch()), y)
    other(batch()).sum().backward()
    assert other[0].weight_orig.grad is not None
    assert net[0].weight_orig.grad is None
    y.sum().backward()
    assert torch.equal(net[0].weight_orig.grad, other[0].weight_orig.grad)


@pytest.mark.filterwarnings("ignore:.*torch.nn.utils.*_norm.*:FutureWarning")
@pytest.mark.parametrize(
    "recompute",
    [
        lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
        nn.utils.weight_norm,
        lambda layer: nn.utils.spectral_norm(layer).eval(),
    ],
)
def test_conversion_of_a_model_whose_weight_a_hook_computes(recompute: Any) -> None:
    torch.manual_seed(0)
    net: Any = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Conv1d(8, 3, 1))
    recompute(net[0])
    prune.l1_unstructured(net[2], "weight", 0.5)
    net[2](net[0](batch()).T.unsqueeze(0))
    weight = net[0].weight.detach().clone()
    other = convert(net, CLEAN)
    assert type(net[0]) is nn.Linear
    hidden = other[0](batch())
    assert torch.equal(hidden, optical_linear(batch(), weight, net[0].bias, CLEAN))
    hidden.sum().backward()
    assert all(parameter.grad is not None for parameter in other[0].parameters())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_a_model_that_torch_cannot_copy() -> None:
    net: Any = nn.Sequential(nn.Linear(6, 8))
    net[0].cache = net[0].weight * 2
    with pytest.raises(
        RuntimeError, match=r"model holds '0\.cache', of which torch makes no deep copy, .* inplace=True"
    ):
        convert(net, CLEAN)
    assert isinstance(convert(net, CLEAN, inplace=True)[0], OpticalLinear)


@pytest.mark.parametrize(
    "norm", [parametrizations.weight_norm, parametrizations.spectral_norm, parametrizations.orthogonal]
)
def test_parametrised_weights(norm: Any) -> None:
    net = model(CLEAN).eval()
    norm(net[0])
    assert isinstance(net[0], OpticalLinear)
    with torch.no_grad():
        hidden = optical_linear(batch(), net[0].weight, net[0].bias, CLEAN)
        y = net(batch())
        assert torch.equal(y, net[2](hidden.relu()))
        with frozen(net):
            assert torch.equal(net(batch()), y)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
    net(batch()).square().sum().backward()
    optimiser.step()
    assert not torch.equal(net(batch()), y)
    with torch.no_grad():
        y = net(batch())
        assert torch.equal(copy.deepcopy(net)(batch()), y)
        nn.utils.parametrize.remove_parametrizations(net[0], "weight")
        assert type(net[0]) is OpticalLinear
        assert torch.equal(net(batch()), y)


@pytest.mark.filterwarnings("ignore:.*torch.nn.utils.weight_norm.*:FutureWarning")
def test_the_older_weight_norm() -> None:
    net = model(CLEAN)
    before = net(batch()).detach()
    nn.utils.weight_norm(net[0])
    y = net(batch())
    torch.testing.assert_close(y.detach(), before)
    y.sum().backward()
    assert (net[0].weight_g.grad != 0).any()


def test_subclasses() -> None:
    net = nn.Sequential(Doubled(6, 3, profile=NOISY))
    with noise(net, True, stream=1):
        expected = 2 * optical_linear(batch(), net[0].weight, net[0].bias, NOISY, seed=net[0].seed, stream=1)  # type: ignore[arg-type]
        assert torch.equal(net(batch()), expected)
        with frozen(net):
            assert torch.equal(net(batch()), expected)
        twin = copy.deepcopy(net)
        with noise(twin, True, stream=1):
            assert torch.equal(twin(batch()), expected)
        assert torch.equal(torch.compile(net, backend="aot_eager", fullgraph=True)(batch()), expected)
    assert report(net).converted[0].kind == "Doubled"
    assert type(convert(net, CLEAN)[0]) is Doubled
    assert type(net[0].to_linear()) is nn.Linear  # type: ignore[operator]


def test_tensor_subclasses() -> None:
    class Named(Tensor):
        pass

    net, x = model(), batch()
    with noise(net, True, stream=1):
        y = net(x.as_subclass(Named))
        assert type(y) is Named
        assert torch.equal(y.as_subclass(torch.Tensor), net(x))
