"""`convert` and `report`: which layers, with which profile and seed, and what is left."""

import copy
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from lumina_onnx.nn import OpticalLinear, calibrate, convert, noise, report  # noqa: E402
from lumina_onnx.profile import OpticalProfile  # noqa: E402

CLEAN = OpticalProfile()
FINE = OpticalProfile(input_bits=12, weight_bits=12, output_bits=12)
NOISY = OpticalProfile(noise_additive=0.1)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)
        self.body = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Any) -> Any:
        return self.head(self.body(x))


def reasons(model: Any) -> Any:
    return {layer.name: layer.reason for layer in report(model).left}


def test_every_linear_is_converted() -> None:
    net = Net()
    optical = convert(net, NOISY)
    assert type(net.head) is nn.Linear
    assert [type(m) for m in (optical.head, optical.body[0], optical.body[2])] == [OpticalLinear] * 3
    assert optical.head.profile == NOISY
    assert torch.equal(optical.head.weight, net.head.weight)
    assert optical.head.name == "head"
    assert optical.body[2].name == "body.2"
    assert list(optical.state_dict()) != list(net.state_dict())
    optical.load_state_dict(net.state_dict(), strict=True)


def test_inplace_keeps_modules_parameters_hooks_and_mode() -> None:
    net = Net().eval()
    head, weight = net.head, net.head.weight
    calls = []
    head.register_forward_hook(lambda *_: calls.append(1))
    assert convert(net, CLEAN, inplace=True) is net
    assert net.head is head
    assert head.weight is weight
    assert not head.training
    net(torch.zeros(2, 8))
    assert calls == [1]


def test_the_model_may_itself_be_a_linear() -> None:
    linear = nn.Linear(3, 2)
    optical = convert(linear, CLEAN)
    assert type(optical) is OpticalLinear
    assert report(optical).converted[0].name == ""
    assert "(model)" in str(report(optical))


def test_skip_and_overrides() -> None:
    net = convert(Net(), CLEAN, skip="head", overrides={"body.*": NOISY, "*.2": FINE})
    assert type(net.head) is nn.Linear
    assert net.body[0].profile == NOISY
    assert net.body[2].profile == FINE
    assert reasons(net) == {"conv": "no Linear", "head": "skip 'head'"}
    convert(net, CLEAN, inplace=True)
    assert type(net.head) is OpticalLinear
    assert reasons(net) == {"conv": "no Linear"}


@pytest.mark.parametrize("arguments", [{"skip": ["haed"]}, {"overrides": {"haed": CLEAN}}])
def test_a_pattern_without_a_layer(arguments: Any) -> None:
    argument = next(iter(arguments))
    message = rf"{argument} pattern 'haed' matches no Linear layer: there are body.0, body.2, head$"
    with pytest.raises(ValueError, match=message):
        convert(Net(), CLEAN, **arguments)


def test_a_convolution_is_no_layer_for_a_pattern() -> None:
    with pytest.raises(ValueError, match=r"skip pattern 'conv' matches no Linear layer"):
        convert(Net(), CLEAN, skip=("conv",))


def test_seeds() -> None:
    def seeds(model: Any) -> Any:
        return [layer.seed for layer in report(model).converted]

    first = seeds(convert(Net(), CLEAN))
    assert len(set(first)) == 3
    assert seeds(convert(Net(), CLEAN)) == first
    assert seeds(convert(Net(), CLEAN, skip="body.0")) == first[1:]
    assert not set(seeds(convert(Net(), CLEAN, seed=1))) & set(first)


def test_copies_in_one_model_get_seeds_of_their_own() -> None:
    first = convert(Net(), NOISY)
    net = nn.ModuleDict({"a": first, "b": copy.deepcopy(first), "c": nn.ModuleDict({"head": nn.Linear(8, 3)})})
    net = convert(net, NOISY)
    seeds = [layer.seed for layer in report(net).converted]
    assert len(set(seeds)) == len(seeds) == 7
    assert seeds[:3] == [layer.seed for layer in report(first).converted]
    assert [layer.seed for layer in report(convert(net, NOISY)).converted] == seeds
    assert [layer.seed for layer in report(convert(net, CLEAN, seed=4)).converted] == seeds


def test_a_copy_beside_a_skipped_layer_gets_a_seed_of_its_own() -> None:
    first = convert(nn.Linear(8, 8), NOISY)
    net = convert(nn.Sequential(first, copy.deepcopy(first)), CLEAN, skip="0")
    assert net[0].seed == first.seed != net[1].seed


def test_models_converted_with_different_seeds_do_not_share_their_noise() -> None:
    x = torch.randn(4, 8)
    nets = [nn.Linear(8, 8)]
    nets = [convert(nets[0], NOISY, seed=seed) for seed in (0, 0, 1)]
    results = []
    for net in nets:
        with noise(net, True, stream=3):
            results.append(net(x))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_converting_again_changes_nothing() -> None:
    net = convert(Net(), NOISY, seed=3, overrides={"head": FINE})
    calibrate(net, [torch.randn(16, 8)], progress=False)
    before, rows = copy.deepcopy(net.state_dict()), report(net)
    again = convert(net, NOISY, seed=5, overrides={"head": FINE})
    assert report(again) == rows
    assert all(torch.equal(a, b) for a, b in zip(before.values(), again.state_dict().values(), strict=True))


def test_converting_again_with_another_profile() -> None:
    net: Any = convert(Net(), NOISY)
    calibrate(net, [torch.randn(16, 8)], progress=False)
    ranges, seed = (net.head.profile.input_range, net.head.profile.output_range), net.head.seed
    net = convert(net, FINE.replace(noise_shot=0.1), overrides={"body.0": OpticalProfile(0, 8, 8, output_range=5.0)})
    assert net.head.profile == FINE.replace(noise_shot=0.1, input_range=ranges[0], output_range=ranges[1])
    assert net.head.seed == seed
    assert net.body[0].profile == OpticalProfile(0, 8, 8, output_range=5.0)
    assert convert(net, NOISY, skip="head").head.profile == net.head.profile


def test_tied_parameters_and_shared_modules_stay_so() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(10, 4)
            self.first = self.second = nn.Linear(4, 4)
            self.head = nn.Linear(4, 10, bias=False)
            self.head.weight = self.embed.weight

    net = convert(Tied(), CLEAN)
    assert net.first is net.second
    assert net.head.weight is net.embed.weight
    names = {layer.name: layer.aliases for layer in report(net).converted}
    assert names == {"first": ("second",), "head": ()}
    assert "first = second" in str(report(net))
    assert not report(net).left
    assert type(convert(Tied(), CLEAN, skip="second").first) is nn.Linear


class Doubled(nn.Linear):
    def forward(self, x: Any) -> Any:
        return 2 * super().forward(x)


class Plain(nn.Linear):
    pass


def test_what_is_left_and_why() -> None:
    net: Any = nn.ModuleDict(
        {
            "own": Doubled(3, 3),
            "plain": Plain(3, 3),
            "lazy": nn.LazyLinear(3),
            "parametrised": nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)),
            "patched": nn.Linear(3, 3),
            "attention": nn.MultiheadAttention(4, 2),
            "lstm": nn.LSTM(3, 3),
            "bilinear": nn.Bilinear(3, 3, 3),
            "norm": nn.LayerNorm(3),
            "embedding": nn.Embedding(3, 3),
        }
    )
    net["patched"].forward = lambda x: x
    convert(net, CLEAN, inplace=True)
    projections = [f"attention.{each}_proj" for each in ("q", "k", "v", "out")]
    assert [layer.name for layer in report(net).converted] == ["plain", "parametrised", *projections]
    assert reasons(net) == {
        "own": "Doubled has a forward of its own",
        "lazy": "not initialised yet: run a batch before converting",
        "patched": "Linear has a forward of its own",
        "lstm": "no Linear",
        "bilinear": "no Linear",
    }
    x = torch.randn(2, 3)
    assert torch.equal(net["own"](x), 2 * nn.functional.linear(x, net["own"].weight, net["own"].bias))


def test_a_model_without_linear_layers() -> None:
    with pytest.warns(UserWarning, match=r"no layer of the model was converted"):
        net = convert(nn.Conv1d(1, 1, 1), CLEAN)
    assert str(report(net)).startswith("0 converted, 1 left (1 Conv1d)")


def test_the_report_as_a_table() -> None:
    text = str(report(convert(Net(), NOISY.replace(input_bits=0, output_range=2.0), skip="head")))
    assert text == (
        "2 converted, 2 left (1 Conv2d, 1 Linear)\n\n"
        "layer   kind           N  K  bits x/w/y  input range  output range  noise\n"
        "------  -------------  -  -  ----------  -----------  ------------  ------------\n"
        "body.0  OpticalLinear  8  8  -/8/8       -                       2  additive 0.1\n"
        "body.2  OpticalLinear  8  8  -/8/8       -                       2  additive 0.1\n\n"
        "left  kind    why\n"
        "----  ------  -----------\n"
        "conv  Conv2d  no Linear\n"
        "head  Linear  skip 'head'"
    )


def count_calls(model: Any) -> Any:
    calls: dict[Any, Any] = {}
    for name, module in model.named_modules():
        if isinstance(module, OpticalLinear):
            original = module.forward  # no hook, which would close torch's fast path
            module.forward = lambda *x, name=name, original=original, **keywords: (  # type: ignore[method-assign]
                calls.update({name: calls.get(name, 0) + 1}),
                original(*x, **keywords),
            )[1]
    return calls


# torch's encoder makes a nested tensor where it is not converted.
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("mask", [True, False])
def test_transformer_encoders_call_their_layers(train: bool, grad: bool, mask: bool) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    encoder = nn.TransformerEncoder(layer, 2).train(train)
    optical = convert(encoder, OpticalProfile(input_bits=16, weight_bits=16, output_bits=16))
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2]) if mask else None
    x = torch.randn(2, 5, 8)
    calls = count_calls(optical)
    with torch.set_grad_enabled(grad):
        y = optical(x, src_key_padding_mask=padding)
        expected = encoder(x, src_key_padding_mask=padding)
    names = ["linear1", "linear2", *(f"self_attn.{each}_proj" for each in ("q", "k", "v", "out"))]
    assert calls == {f"layers.{i}.{name}": 1 for i in range(2) for name in names}
    kept = slice(None) if padding is None else ~padding
    assert torch.allclose(y[kept], expected[kept], atol=1e-2)


def test_a_transformer_encoder_left_alone_keeps_its_fast_path() -> None:
    net = nn.ModuleDict({"encoder": nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), "head": nn.Linear(8, 2)})
    convert(net, CLEAN, skip="encoder.*", inplace=True)
    assert net["encoder"].activation_relu_or_gelu == 1


def test_transformer_decoders_call_their_layers() -> None:
    net = convert(nn.Transformer(8, 2, 1, 1, 16, batch_first=True).eval(), CLEAN)
    calls = count_calls(net)
    with torch.no_grad():
        net(torch.randn(1, 3, 8), torch.randn(1, 4, 8))
    assert set(calls.values()) == {1}
    assert len(calls) == 4 + 3 * 4  # the attentions of the encoder and the decoder, and the one between them


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (TypeError, "model is a int; allowed is a torch.nn.Module", {"model": 3}),
        (TypeError, "profile is str: allowed is a lumina_onnx.OpticalProfile", {"profile": "edge"}),
        (TypeError, r"overrides\['head'\] is int: allowed is a lumina_onnx.OpticalProfile", {"overrides": {"head": 4}}),
        (TypeError, "skip holds int 3: allowed is a name pattern", {"skip": [3]}),
        (ValueError, "seed = -2: allowed is 0..2", {"seed": -2}),
        (
            ValueError,
            "layer 'head': profile.output_range has 8 elements: allowed is 1, or one for each of the N = 3 outputs",
            {"profile": CLEAN.replace(output_range=(1.0,) * 8)},
        ),
        (TypeError, "layer 'body.0': weight is torch.float16: allowed is torch.float32", {"model": Net().half()}),
    ],
)
def test_bad_arguments(error: Any, message: str, arguments: Any) -> None:
    arguments = {"model": Net(), "profile": CLEAN, **arguments}
    with pytest.raises(error, match=message):
        convert(**arguments, inplace=True)
    if isinstance(arguments["model"], nn.Module):
        assert not report(arguments["model"]).converted


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize(("k", "n"), [(0, 4), (4, 0), (0, 0)])
def test_an_empty_layer_is_named(k: int, n: int) -> None:
    net: Any = nn.Sequential(nn.ReLU(), nn.Linear(k, n), nn.Linear(4, 3))
    shape = rf"weight has shape \[{n}, {k}\]: allowed is \[N, K\], N and K at least 1"
    with pytest.raises(ValueError, match=rf"^layer '1': {shape}; skip='1' leaves it as it is$"):
        convert(net, CLEAN)
    assert [row.name for row in report(convert(net, CLEAN, skip="1")).converted] == ["2"]
    with pytest.raises(ValueError, match=rf"^layer '': {shape}$"):
        convert(net[1], CLEAN)
    with pytest.raises(ValueError, match=rf"^layer 'head': {shape}$"):
        OpticalLinear.from_linear(net[1], CLEAN, name="head")
    assert type(net[1]) is nn.Linear


def test_layers_converted_together_do_not_share_their_noise() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    net[1].load_state_dict(net[0].state_dict())
    net = convert(net, NOISY)
    x = torch.randn(4, 8)
    with noise(net, True, stream=0):
        assert not torch.equal(net[0](x), net[1](x))


def test_a_bounded_full_scale_takes_the_place_of_a_calibrated_one() -> None:
    model: Any = convert(nn.Sequential(nn.Linear(6, 3)), OpticalProfile())
    model[0].profile = OpticalProfile(input_range=2.0, output_range=3.0)
    bounded = OpticalProfile(output_bound=1.5, bias_stage="digital", tile_features=4)
    model = convert(model, bounded)
    assert model[0].profile == bounded.replace(input_range=2.0)
    assert " 6 by 4 " in str(report(model))
    assert " 1.5 products " in str(report(model))
