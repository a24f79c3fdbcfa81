"""Attention modules on optical hardware: torch's own results, and each projection a layer of its own."""

import copy
import io
import itertools
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict  # noqa: E402
from torch.nn import functional as F  # noqa: E402
from torch.nn.utils import parametrizations, parametrize, prune  # noqa: E402
from torch.optim.swa_utils import AveragedModel  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

from lumina_onnx import reference  # noqa: E402
from lumina_onnx.nn import (  # noqa: E402
    OpticalLayer,
    OpticalLinear,
    OpticalMultiheadAttention,
    calibrate,
    convert,
    frozen,
    gradient_bits,
    noise,
    report,
)
from lumina_onnx.profile import OpticalProfile  # noqa: E402

ANALOG = OpticalProfile(input_bits=0, weight_bits=0, output_bits=0)
CLEAN = OpticalProfile()
NOISY = OpticalProfile(noise_additive=0.1)
PARAMETERS: Any = {"input_bits": 8, "weight_bits": 8, "output_bits": 8, "noise_additive": 0.1}
NAMES = ["q_proj", "k_proj", "v_proj", "out_proj"]


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    torch.manual_seed(0)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def attention(**options: Any) -> Any:
    """An attention module with no parameter at its initial zeros."""
    module = nn.MultiheadAttention(8, 2, **options)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape) / 2)
    return module


def layers(model: Any) -> Any:
    return {name: module for name, module in model.named_modules() if isinstance(module, OpticalLayer)}


def both(module: Any, call: Any) -> Any:
    """Outputs and gradients of all parameters, of the module and of its conversion without bits and noise."""
    results = []
    for net in (module, convert(module, ANALOG)):
        parameters = dict(net.named_parameters())
        net.zero_grad()
        outputs = [output for output in call(net) if output is not None]
        sum(
            (output * torch.randn(output.shape, generator=torch.Generator().manual_seed(1))).sum() for output in outputs
        ).backward()
        results.append((outputs, {name: parameter.grad for name, parameter in parameters.items()}))
    return results


def assert_same(results: Any) -> None:
    (expected, gradients), (found, own) = results
    assert list(own) == list(gradients)
    for a, b in zip([*found, *own.values()], [*expected, *gradients.values()], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * max(1.0, float(b.detach().abs().max())))


SHAPES: dict[str, Any] = {
    "packed": {},
    "no bias": {"bias": False},
    "separate": {"kdim": 6, "vdim": 5},
    "separate, no bias": {"kdim": 6, "bias": False},
    "learnt keys": {"add_bias_kv": True},
    "zero keys": {"add_zero_attn": True},
    "all keys": {"add_bias_kv": True, "add_zero_attn": True, "vdim": 5},
}
MASKS = ("none", "causal", "hint", "float", "heads", "padding", "float padding", "padding and mask", "padding and hint")


def masks(kind: str, batch: int, length: int, sources: int, batched: bool) -> Any:
    draw = torch.Generator().manual_seed(3)
    late = torch.ones(length, sources, dtype=torch.bool).triu(1)
    ends = torch.tensor([[False] * (sources - row % 2 - 1) + [True] * (row % 2 + 1) for row in range(batch)])
    ends = ends if batched else ends[0]
    found: dict[str, Any] = {
        "none": {},
        "causal": {"attn_mask": late},
        "hint": {"attn_mask": late, "is_causal": True},
        "float": {"attn_mask": torch.randn(length, sources, generator=draw)},
        "heads": {"attn_mask": torch.randn(2 * batch, length, sources, generator=draw)},
        "padding": {"key_padding_mask": ends},
        "float padding": {"key_padding_mask": torch.randn(ends.shape, generator=draw)},
        "padding and mask": {"key_padding_mask": ends, "attn_mask": late},
        "padding and hint": {"key_padding_mask": ends, "attn_mask": late, "is_causal": True},
    }
    return found[kind]


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("shape", SHAPES)
def test_results_and_gradients_are_torchs(shape: str, mask: str) -> None:
    for batch_first, batched, weights in itertools.product((True, False), (True, False), ("no", "mean", "each")):
        module = attention(**SHAPES[shape], batch_first=batch_first)
        batch, length, sources = (3, 4, 4) if mask in ("causal", "hint", "padding and hint") else (3, 4, 5)
        batch = batch if batched else 1

        def signal(rows: int, k: int, batch: int = batch, batched: bool = batched, first: bool = batch_first) -> Any:
            if not batched:
                return torch.randn(rows, k, requires_grad=True)
            return torch.randn(*((batch, rows) if first else (rows, batch)), k, requires_grad=True)

        inputs = signal(length, 8), signal(sources, module.kdim), signal(sources, module.vdim)
        options = masks(mask, batch, length, sources, batched)
        options.update(need_weights=weights != "no", average_attn_weights=weights != "each")

        def call(net: Any, inputs: Any = inputs, options: Any = options) -> Any:
            result = net(*inputs, **options)
            return (*result, *torch.autograd.grad(result[0].square().sum(), inputs, retain_graph=True))

        results = both(module, call)
        assert_same(results)
        assert [output.shape for output in results[0][0]] == [output.shape for output in results[1][0]]


@pytest.mark.parametrize("weights", [True, False])
def test_self_attention_is_torchs_with_and_without_its_fast_path(weights: bool) -> None:
    module, x = attention(batch_first=True).eval(), torch.randn(3, 5, 8)
    padding = torch.tensor([[False] * 4 + [True]] * 3)
    optical = convert(module, ANALOG)
    for options in ({}, {"key_padding_mask": padding}):
        for context in (torch.no_grad, torch.enable_grad, torch.inference_mode):
            with context():
                expected = module(x, x, x, need_weights=weights, **options)
                found = optical(x, x, x, need_weights=weights, **options)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("weights", [True, False])
def test_rows_that_see_nothing_and_empty_inputs_are_torchs(weights: bool) -> None:
    module = attention(batch_first=True)
    optical, x = convert(module, ANALOG), torch.randn(2, 4, 8)
    padding = torch.tensor([[True] * 4, [False] * 4])
    found, expected = (net(x, x, x, key_padding_mask=padding, need_weights=weights)[0] for net in (optical, module))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5, equal_nan=True)
    for shape in ((0, 4, 8), (2, 0, 8)):
        x = torch.randn(shape)
        for one, other in zip(*(net(x, x, x, need_weights=weights) for net in (optical, module)), strict=True):
            assert one is other is None or torch.equal(one, other)


@pytest.mark.parametrize("weights", [True, False])
def test_dropout_is_torchs(weights: bool) -> None:
    module, x = attention(dropout=0.5), torch.randn(5, 3, 8)
    results = []
    for net in (module, convert(module, ANALOG)):
        torch.manual_seed(4)
        results.append(net(x, x, x, need_weights=weights))
        assert not torch.equal(net(x, x, x)[0], results[-1][0])
        assert torch.equal(copy.deepcopy(net).eval()(x, x, x)[0], copy.deepcopy(net).eval()(x, x, x)[0])
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)


def test_each_projection_is_the_operator_on_its_rows() -> None:
    optical = convert(attention(batch_first=True), NOISY)
    query, key, value = (torch.randn(3, 5, 8) for _ in range(3))
    seen: dict[str, Any] = {}
    for name, layer in layers(optical).items():
        layer.register_forward_hook(lambda _, x, y, name=name: seen.update({name: (*x, y)}))
    with noise(optical, True, stream=3), torch.no_grad():
        result, _ = optical(query, key, value)
    assert list(seen) == NAMES
    parts = [*zip(optical.in_proj_weight.chunk(3), optical.in_proj_bias.chunk(3), strict=True)]
    parts += [(optical.out_proj.weight, optical.out_proj.bias)]
    for (name, (x, y)), (weight, bias) in zip(seen.items(), parts, strict=True):
        arrays = [tensor.detach().numpy() for tensor in (x, weight, bias)]
        own = optical.get_submodule(name)
        expected = reference.optical_linear(*arrays, **PARAMETERS, seed=own.seed, stream=3)
        np.testing.assert_array_equal(y.numpy(), expected)
        assert torch.equal(own.weight, weight)
        assert torch.equal(own.bias, bias)
    assert [x is signal for (x, _), signal in zip(list(seen.values())[:3], (query, key, value), strict=True)] == [
        True
    ] * 3
    assert torch.equal(result, seen["out_proj"][1])


def test_names_seeds_and_report() -> None:
    net = nn.ModuleDict(
        {"a": nn.MultiheadAttention(8, 2, kdim=6, vdim=5), "b": nn.MultiheadAttention(8, 2, bias=False)}
    )
    rows = report(convert(net, NOISY)).converted
    assert [row.name for row in rows] == [f"{module}.{name}" for module in "ab" for name in NAMES]
    assert [(row.out_features, row.in_features) for row in rows] == [(8, 8), (8, 6), (8, 5), (8, 8)] + [(8, 8)] * 4
    assert [row.kind for row in rows] == (["OpticalProjection"] * 3 + ["OpticalLinear"]) * 2
    assert len({row.seed for row in rows}) == 8
    assert not report(convert(net, NOISY)).left
    assert report(convert(net, NOISY)).converted == rows
    assert "b.k_proj    OpticalProjection  8  8  8/8/8" in str(report(convert(net, NOISY)))
    alone = convert(nn.MultiheadAttention(8, 2), CLEAN)
    assert type(alone) is OpticalMultiheadAttention
    assert list(layers(alone)) == [row.name for row in report(alone).converted] == NAMES
    assert [layer.name for layer in layers(alone).values()] == NAMES


def test_converting_again_keeps_seeds_and_ranges() -> None:
    optical = convert(attention(), NOISY)
    calibrate(optical, [torch.randn(5, 3, 8)], forward=lambda net, x: net(x, x, x), progress=False)
    before = report(optical)
    assert report(convert(optical, NOISY, seed=5)) == before
    other = convert(optical, CLEAN, gradient_bits=8)
    assert [row.seed for row in report(other).converted] == [row.seed for row in before.converted]
    ranges = [[row.profile and row.profile.input_range for row in rows.converted] for rows in (before, report(other))]
    assert ranges[0] == ranges[1]
    assert all(ranges[0])
    assert {row.gradient_bits for row in report(other).converted} == {8}


def test_skip_and_overrides_by_projection_and_by_module() -> None:
    net = nn.ModuleDict({"a": attention(), "b": attention()})
    four = OpticalProfile(weight_bits=4)
    optical = convert(net, CLEAN, skip=["*.q_proj", "b"], overrides={"a": four, "*.k_proj": NOISY})
    assert {row.name: row.profile for row in report(optical).converted} == {
        "a.k_proj": NOISY,
        "a.v_proj": four,
        "a.out_proj": four,
    }
    assert {row.name: row.reason for row in report(optical).left} == {
        "a.q_proj": "skip '*.q_proj'",
        **{f"b.{name}": "skip 'b'" for name in NAMES if name != "q_proj"},
        "b.q_proj": "skip '*.q_proj'",
    }
    assert type(optical["b"]) is nn.MultiheadAttention
    x = torch.randn(5, 3, 8)
    torch.testing.assert_close(convert(net, ANALOG, skip=["*.q_proj", "a.out_proj"])["a"](x, x, x), net["a"](x, x, x))
    convert(optical, CLEAN, inplace=True)
    assert [row.name for row in report(optical).converted] == [f"{module}.{name}" for module in "ab" for name in NAMES]
    assert [name for name, _ in optical["a"].named_children()] == NAMES
    with pytest.raises(ValueError, match=r"skip pattern 'c' matches no Linear layer: there are a.q_proj, a.k_proj, .*"):
        convert(net, CLEAN, skip="c")


def test_the_module_stays_the_same() -> None:
    net: Any = nn.Sequential(attention(dropout=0.1))
    module, weight, hooks = net[0], net[0].in_proj_weight, []
    module.register_forward_hook(lambda *_: hooks.append(1))
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
    before = list(net.named_parameters())
    convert(net, NOISY, inplace=True)
    assert net[0] is module
    assert issubclass(type(module), nn.MultiheadAttention)
    assert all(a == b and x is y for (a, x), (b, y) in zip(net.named_parameters(), before, strict=True))
    assert weight is module.in_proj_weight
    x, start = torch.randn(5, 3, 8), weight.detach().clone()
    module(x, x, x)[0].sum().backward()
    optimiser.step()
    assert hooks == [1]
    assert not torch.equal(module.q_proj.weight, start[:8])
    assert torch.equal(module.q_proj.weight, weight[:8])


def test_initialisers_reach_the_rows() -> None:
    optical = convert(nn.Sequential(nn.MultiheadAttention(8, 2)), CLEAN)

    def initialise(module: Any) -> None:
        if isinstance(module, nn.Linear):
            nn.init.constant_(module.weight, 2.0)
            module.bias.data.fill_(3)

    optical.apply(initialise)
    assert {value for parameter in optical.parameters() for value in parameter.unique().tolist()} == {2.0, 3.0}


def test_checkpoints_load_both_ways() -> None:
    for options in ({}, {"kdim": 6, "vdim": 5}, {"bias": False}):
        plain, other = attention(**options), attention(**options)
        optical = convert(plain, NOISY)
        calibrate(optical, [0], forward=lambda net, _: net(*signals(net)), progress=False)
        before = report(optical)
        state = other.state_dict()
        assert set(state) <= set(optical.state_dict())
        assert {key.rpartition(".")[0] for key in set(optical.state_dict()) - set(state)} == set(NAMES)
        optical.load_state_dict(state, strict=True)
        assert report(optical) == before
        assert all(torch.equal(optical.state_dict()[key], value) for key, value in state.items())
        fresh = convert(attention(**options), NOISY, seed=3)
        fresh.load_state_dict(optical.state_dict(), strict=True)
        assert report(fresh).converted == before.converted
        plain = optical.to_multihead_attention()
        assert type(plain) is nn.MultiheadAttention
        assert list(plain.state_dict()) == list(state)
        plain.load_state_dict(state, strict=True)
        assert plain.in_proj_bias is optical.in_proj_bias
        assert list(layers(optical)) == NAMES


def signals(module: Any) -> Any:
    return torch.randn(4, 3, 8), torch.randn(5, 3, module.kdim), torch.randn(5, 3, module.vdim)


def test_a_checkpoint_that_lost_its_ranges_is_noticed() -> None:
    optical = convert(attention(), NOISY)
    state = {key: value for key, value in optical.state_dict().items() if "k_proj" not in key}
    state["k_proj.input_range"] = torch.ones(1, dtype=torch.float64)
    with pytest.warns(
        UserWarning, match=r"layer 'k_proj': the checkpoint .* lacks k_proj.output_range, k_proj.range_k"
    ):
        optical.load_state_dict(state)
    assert optical.k_proj.profile.input_range == 1.0


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copies_compute_with_their_own_parameters(how: str) -> None:
    optical: Any = convert(nn.Sequential(attention()), NOISY, skip="*v_proj")
    twin: Any = copy.deepcopy(optical) if how == "deepcopy" else pickle.loads(pickle.dumps(optical))
    assert report(twin) == report(optical)
    with torch.no_grad():
        optical[0].in_proj_weight.zero_()
    assert twin[0].q_proj.weight.abs().sum() > 0
    with torch.no_grad():
        twin[0].in_proj_weight.fill_(2)
    assert torch.equal(twin[0].q_proj.weight, torch.full((8, 8), 2.0))
    x = torch.randn(5, 3, 8)
    with noise(twin):
        assert not torch.equal(twin[0](x, x, x)[0], optical[0](x, x, x)[0])


def test_tied_attentions_stay_tied() -> None:
    net: Any = nn.Sequential(attention(), attention())
    net[1].in_proj_weight = net[0].in_proj_weight
    net = convert(net, NOISY)
    assert net[1].in_proj_weight is net[0].in_proj_weight
    assert len({row.seed for row in report(net).converted}) == 8
    net[0].out_proj = net[1].out_proj
    assert type(convert(net, NOISY, skip="0.?_proj")[0]) is OpticalMultiheadAttention  # which calls the layer
    shared = nn.ModuleDict({"a": attention()})
    shared["b"] = shared["a"]
    rows = report(convert(shared, NOISY)).converted
    assert [(row.name, row.aliases) for row in rows] == [(f"a.{name}", (f"b.{name}",)) for name in NAMES]


def test_frozen_packs_each_projection_and_sees_changes() -> None:
    optical = convert(attention(), NOISY)
    x = torch.randn(5, 3, 8)
    with noise(optical, True, stream=1):
        optical(x, x, x)[0].square().sum().backward()
        expected, gradient = optical(x, x, x)[0], optical.in_proj_weight.grad.clone()
        optical.zero_grad()
        with frozen(optical):
            assert torch.equal(optical(x, x, x)[0], expected)
            optical(x, x, x)[0].square().sum().backward()
            assert torch.equal(optical.in_proj_weight.grad, gradient)
            with torch.no_grad():
                optical.in_proj_weight.mul_(2)
            with pytest.raises(RuntimeError, match="layer 'q_proj': in_proj_weight was changed in place inside frozen"):
                optical(x, x, x)


def test_calibration_noise_and_gradient_bits_reach_each_projection() -> None:
    net = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0), 1)
    optical, x = convert(net, NOISY), torch.randn(3, 5, 8)
    found = calibrate(optical, [x], progress=False)
    names = [f"layers.0.self_attn.{name}" for name in NAMES] + ["layers.0.linear1", "layers.0.linear2"]
    assert [row.name for row in found.layers] == names
    assert all(row.input_range and row.output_range and row.values for row in found.layers)
    calibrate(optical, [x], per_output=True, progress=False)
    ranges = layers(optical)["layers.0.self_attn.k_proj"].profile.output_range
    assert isinstance(ranges, tuple)
    assert len(ranges) == 8
    with noise(optical):
        assert torch.equal(optical(x), optical(x))
    for name in names:
        with noise(optical), noise(optical.get_submodule(name), True):
            assert not torch.equal(optical(x), optical(x))
    gradients = []
    for bits in (None, 8):
        with noise(optical), gradient_bits(bits):
            optical.zero_grad()
            optical(x).square().sum().backward()
            gradients.append(optical.layers[0].self_attn.in_proj_weight.grad.clone())
    assert not torch.equal(*gradients)
    torch.testing.assert_close(*gradients, rtol=0.1, atol=0.1 * float(gradients[0].abs().max()))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_training_run_equals_the_eager_one(backend: str) -> None:
    net = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)

    def run(compiled: bool) -> Any:
        model = convert(net, NOISY)
        forward = torch.compile(model, backend=backend, fullgraph=True) if compiled else model
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
        torch.manual_seed(7)
        for _ in range(2):
            optimiser.zero_grad()
            forward(torch.randn(3, 5, 8)).square().sum().backward()
            optimiser.step()
        return [parameter.detach() for parameter in model.parameters()]

    for eager, compiled in zip(run(False), run(True), strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-5, atol=1e-6)


def test_a_compiled_graph_asks_for_the_noise_when_it_runs() -> None:
    model: Any = convert(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0), NOISY)
    x = torch.randn(3, 5, 8)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert not torch.equal(compiled(x), compiled(x))
    for on, stream in ((False, None), (True, 4)):
        with noise(model, on, stream=stream):
            torch.testing.assert_close(compiled(x), model(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("strict", [True, False])
def test_an_exported_program_computes_the_same(strict: bool) -> None:
    model = convert(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), NOISY).eval()
    x = torch.randn(3, 5, 8)
    program = torch.export.export(model, (x,), strict=strict)
    targets = [node.target for node in program.graph.nodes if node.target is torch.ops.lumina.optical_linear.default]
    assert len(targets) == 6
    results = []
    for call in (program.module(), model):
        torch.manual_seed(3)
        results.append(call(x))
    torch.testing.assert_close(*results)


def test_checkpoints_autocast_and_averages() -> None:
    net = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    optical: Any = convert(net, NOISY)
    x, results = torch.randn(3, 5, 8), []
    for call in (optical, lambda x: checkpoint(optical, x, use_reentrant=False)):
        optical.zero_grad()
        torch.manual_seed(1)
        y = call(x)
        y.square().sum().backward()
        results.append([y, *(parameter.grad.clone() for parameter in optical.parameters())])
    assert all(map(torch.equal, *results))
    attention = optical.self_attn
    with torch.autocast("cpu", dtype=torch.bfloat16), noise(optical):
        y, _ = attention(*(x.bfloat16(),) * 3, key_padding_mask=torch.zeros(3, 5, dtype=torch.bool))
    assert y.dtype == torch.float32
    with noise(optical):
        torch.testing.assert_close(y, attention(x, x, x)[0], rtol=0.1, atol=0.05)
    averaged: Any = AveragedModel(optical)
    averaged.update_parameters(optical)
    assert [row.name for row in report(averaged).converted] == [row.name for row in report(optical).converted]
    assert torch.equal(averaged.module.self_attn.q_proj.weight, attention.q_proj.weight)


def test_a_whole_model_is_saved_and_its_state_known_to_torch_distributed() -> None:
    optical: Any = convert(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), NOISY)
    calibrate(optical, [torch.randn(3, 5, 8)], progress=False)
    file = io.BytesIO()
    torch.save(optical, file)
    file.seek(0)
    assert report(torch.load(file, weights_only=False)) == report(optical)
    other: Any = convert(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), NOISY)
    set_model_state_dict(other, get_model_state_dict(optical))
    assert report(other) == report(optical)
    assert torch.equal(other.self_attn.v_proj.weight, optical.self_attn.v_proj.weight)


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no distributed")
def test_data_parallel_training_and_calibration(tmp_path: Path) -> None:
    optical: Any = convert(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0), NOISY)
    x = torch.randn(3, 5, 8)
    with noise(optical, True, stream=1):
        optical(x).square().sum().backward()
    gradients = [parameter.grad.clone() for parameter in optical.parameters()]
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        optical.zero_grad()
        parallel = nn.parallel.DistributedDataParallel(optical)
        with noise(parallel, True, stream=1):
            parallel(x).square().sum().backward()
        assert all(torch.equal(a, b.grad) for a, b in zip(gradients, optical.parameters(), strict=True))
        found = calibrate(parallel, [x], progress=False)
    finally:
        torch.distributed.destroy_process_group()
    assert [row.name for row in found.layers] == [row.name for row in report(optical).converted]
    assert optical.self_attn.k_proj.profile.input_range > 0


def test_a_model_on_meta_gets_its_values_later() -> None:
    with torch.device("meta"):
        optical = convert(nn.MultiheadAttention(8, 2), CLEAN)
    x = torch.empty(5, 3, 8, device="meta")
    assert optical(x, x, x)[0].shape == x.shape
    plain = attention()
    optical = optical.to_empty(device="cpu")
    optical.load_state_dict(plain.state_dict())
    x = torch.randn(5, 3, 8)
    torch.testing.assert_close(convert(optical, ANALOG)(x, x, x), plain(x, x, x), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
def test_a_weight_computed_by_a_hook_is_not_frozen() -> None:
    plain = attention()
    nn.utils.weight_norm(plain, "in_proj_weight")
    optical, x = convert(plain, ANALOG), torch.randn(5, 3, 8)
    torch.testing.assert_close(optical(x, x, x), plain(x, x, x), rtol=1e-4, atol=1e-5)
    with frozen(optical), torch.no_grad():
        before = optical(x, x, x)[0]
        optical.in_proj_weight_g.mul_(2)
        assert not torch.equal(optical(x, x, x)[0], before)


def test_symbolic_tracing_keeps_the_module_whole() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = attention()

        def forward(self, x: Any, padding: Any) -> Any:
            y, _ = self.attention(x, x, x, key_padding_mask=padding, need_weights=False)
            return y

    net = convert(Net(), NOISY)
    traced = torch.fx.symbolic_trace(net)
    assert [node.op for node in traced.graph.nodes].count("call_module") == 1
    x, padding = torch.randn(5, 3, 8), torch.tensor([[False] * 4 + [True]] * 3)
    with noise(traced, True, stream=1), noise(net, True, stream=1):
        assert torch.equal(traced(x, padding), net(x, padding))


def test_functional_calls_and_vmap_see_the_given_parameters() -> None:
    net = convert(attention(), ANALOG)
    x = torch.randn(5, 3, 8)
    doubled = {name: 2 * parameter.detach() for name, parameter in net.named_parameters()}
    found = torch.func.functional_call(net, doubled, (x, x, x))[0]
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(2)
    torch.testing.assert_close(found, net(x, x, x)[0])

    def loss(parameters: Any) -> Any:
        return torch.func.functional_call(net, parameters, (x, x, x), {"need_weights": False})[0].square().sum()

    gradients = torch.func.grad(loss)(dict(net.named_parameters()))
    net(x, x, x, need_weights=False)[0].square().sum().backward()
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-4)


def test_parametrised_and_subclassed_attentions() -> None:
    class Plain(nn.MultiheadAttention):
        def heads(self) -> int:
            return self.num_heads

    class Halved(nn.Module):
        def forward(self, x: Any) -> Any:
            return x / 2

    class Own(nn.MultiheadAttention):
        def forward(self, *arguments: Any, **options: Any) -> Any:
            return super().forward(*arguments, **options)

    class Named(nn.MultiheadAttention):
        def __init__(self) -> None:
            super().__init__(8, 2)
            self.q_proj, self.k_proj = 3, nn.Linear(2, 3)

    x = torch.randn(5, 3, 8)
    parametrised = attention()
    parametrize.register_parametrization(parametrised, "in_proj_weight", Halved())
    parametrizations.weight_norm(parametrised.out_proj)
    module: Any
    optical: Any
    for module in (Plain(8, 2), parametrised):
        optical = convert(module, ANALOG)
        assert issubclass(type(optical), OpticalMultiheadAttention)
        assert [row.name for row in report(optical).converted] == NAMES
        torch.testing.assert_close(optical(x, x, x), module(x, x, x), rtol=1e-4, atol=1e-5)
        optical.load_state_dict(module.state_dict(), strict=True)
    optical = copy.deepcopy(convert(Plain(8, 2), CLEAN))
    assert issubclass(type(optical), Plain)
    assert issubclass(type(optical), OpticalMultiheadAttention)
    assert optical.heads() == 2
    with pytest.warns(UserWarning, match="no layer of the model was converted"):
        own = convert(Own(8, 2), CLEAN)
    assert [row.reason for row in report(own).left] == ["Own has a forward of its own"] * 3 + [
        "Own has a forward of its own, and may not call it"
    ]
    plain = Named()
    named: Any = convert(plain, ANALOG)
    torch.testing.assert_close(named(x, x, x), plain(x, x, x), rtol=1e-4, atol=1e-5)
    assert [row.name for row in report(named).converted] == ["k_proj", "v_proj", "out_proj"]
    assert named.to_multihead_attention().q_proj == 3
    assert {row.name: row.reason for row in report(named).left} == {
        name: f"the attention has another attribute {name}" for name in ("q_proj", "k_proj")
    }


def test_a_parametrised_attention_is_copied_and_loses_its_parametrisation() -> None:
    class Halved(nn.Module):
        def forward(self, x: Any) -> Any:
            return x / 2

    plain, x = attention(), torch.randn(5, 3, 8)
    parametrize.register_parametrization(plain, "in_proj_weight", Halved())
    expected = plain(x, x, x)
    optical = convert(plain, ANALOG)
    twin = copy.deepcopy(optical)
    with torch.no_grad():
        optical.parametrizations.in_proj_weight.original.zero_()
    assert not optical.q_proj.weight.any()
    for module in (twin, twin.to_multihead_attention()):
        torch.testing.assert_close(module(x, x, x), expected, rtol=1e-4, atol=1e-5)
    parametrize.remove_parametrizations(twin, "in_proj_weight")
    assert type(twin) is OpticalMultiheadAttention
    with frozen(twin):
        torch.testing.assert_close(twin(x, x, x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")
def test_what_is_refused() -> None:
    optical, x = convert(attention(), CLEAN), torch.randn(5, 3, 8)
    for message, arguments, options in (
        ("value has shape .4, 3, 8.: allowed is that of key, .5, 3. and K", (x, x, x[:4]), {}),
        ("key has a batch of 2: allowed is that of query, 3", (x, x[:, :2], x[:, :2]), {}),
        (r"attn_mask has shape \[1, 5\]: allowed is \[5, 5\]", (x, x, x), {"attn_mask": torch.zeros(1, 5)}),
        (
            r"key_padding_mask has shape \[3, 4\]: allowed is \[3, 5\]",
            (x, x, x),
            {"key_padding_mask": torch.zeros(3, 4)},
        ),
        ("is_causal = True says that attn_mask is causal, but attn_mask is None", (x, x, x), {"is_causal": True}),
        ("x is torch.float64: allowed is torch.float32", (x.double(),) * 3, {}),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            optical(*arguments, **options)
    with pytest.raises(TypeError, match="layer 'k_proj': its weight is a part of its attention's; allowed is to_multi"):
        optical.k_proj.to_linear()
    nested = torch.nested.nested_tensor([torch.randn(2, 8), torch.randn(3, 8)])
    with pytest.raises(TypeError, match="query is a nested tensor: allowed is a dense"):
        optical(nested, nested, nested)
    with pytest.raises(ValueError, match=r"layer 'v_proj': profile.output_range has 4 elements"):
        convert(attention(), CLEAN, overrides={"v_proj": CLEAN.replace(output_range=(1.0,) * 4)})
    assert isinstance(optical.out_proj, OpticalLinear)
    assert F.linear(x, optical.q_proj.weight).shape == x.shape


def test_a_pruned_attention_is_copied_after_a_forward_pass() -> None:
    attention = nn.MultiheadAttention(8, 2)
    prune.l1_unstructured(attention, "in_proj_weight", 0.5)
    model = convert(attention, ANALOG)
    x = torch.randn(3, 1, 8)
    expected = model(x, x, x)[0]
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(other(x, x, x)[0], expected, rtol=0, atol=0)
