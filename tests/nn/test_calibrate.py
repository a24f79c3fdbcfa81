"""`calibrate`: what is observed, and the ranges that follow from it."""

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from torch import nn  # noqa: E402

from lumina_onnx import reference  # noqa: E402
from lumina_onnx._histogram import Histogram  # noqa: E402
from lumina_onnx.nn import OpticalLinear, calibrate, convert, frozen, noise  # noqa: E402
from lumina_onnx.profile import OpticalProfile  # noqa: E402

PROFILE = OpticalProfile(input_bits=4, weight_bits=4, output_bits=4, noise_additive=0.05)


def net(profile: OpticalProfile = PROFILE) -> Any:
    torch.manual_seed(0)
    return convert(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3)), profile, inplace=True)


def batches(count: int = 4) -> Any:
    torch.manual_seed(1)
    return [torch.randn(16, 6) for _ in range(count)]


def signals(model: Any, data: Any) -> Any:
    """|x| and |z| of each layer according to the reference: dynamic ranges, no noise, no ADC before z."""
    found: dict[Any, Any] = {
        name: ([], []) for name, _ in model.named_children() if isinstance(model.get_submodule(name), OpticalLinear)
    }
    for x in data:
        for name, module in model.named_children():
            if isinstance(module, OpticalLinear):
                arrays = x.numpy(), module.weight.detach().numpy(), module.bias.detach().numpy()
                bits = {key: getattr(module.profile, key) for key in ("input_bits", "weight_bits")}
                found[name][0].append(np.abs(arrays[0]).ravel())
                z = reference.optical_linear(*arrays, **bits, output_bits=0)
                found[name][1].append(np.abs(z).ravel())
                x = torch.from_numpy(reference.optical_linear(*arrays, **bits, output_bits=module.profile.output_bits))
            elif isinstance(module, nn.ReLU):
                x = module(x)
    return {name: tuple(np.concatenate(part) for part in parts) for name, parts in found.items()}


def test_max() -> None:
    model, data = net(), batches()
    result = calibrate(model, data, progress=False)
    for name, (x, z) in signals(model, data).items():
        layer = model.get_submodule(name)
        assert layer.profile == PROFILE.replace(input_range=float(x.max()), output_range=float(z.max()))
        row = next(row for row in result.layers if row.name == name)
        assert (row.input_range, row.output_range) == (layer.profile.input_range, layer.profile.output_range)
        assert (row.input_clipped, row.output_clipped, row.values) == (0.0, 0.0, x.size)


@pytest.mark.parametrize("percentile", [50.0, 90.0, 99.9, 100.0])
def test_percentile(percentile: float) -> None:
    model, data = net(), batches()
    result = calibrate(model, data, method="percentile", percentile=percentile, progress=False)
    for name, parts in signals(model, data).items():
        row = next(row for row in result.layers if row.name == name)
        for values, found, clipped in zip(
            parts, (row.input_range, row.output_range), (row.input_clipped, row.output_clipped), strict=True
        ):
            exact = np.percentile(values, percentile, method="inverted_cdf")
            expected = exact or values.max()
            assert expected <= found <= expected * (1 + 1 / 256)
            assert clipped == pytest.approx(np.mean(values > found), abs=2e-2)


@settings(max_examples=30)
@given(
    st.integers(2, 8), st.sampled_from([0.0, 0.05, 0.2]), st.sampled_from([0.0, 0.1]), st.integers(0, 100),
    st.sampled_from([1, 3]),
)  # fmt: skip
def test_mse_finds_the_least_error(bits: int, additive: float, shot: float, seed: int, power: int) -> None:
    generator = np.random.default_rng(seed)
    values = (generator.normal(size=4000) ** power).astype(np.float32)
    histogram = Histogram()
    histogram.add(values)
    found = histogram.full_scales("mse", 1.0, bits, (0.0, additive, shot))[0]
    assert 0 < found <= np.abs(values).max()

    levels = 2 ** (bits - 1) - 1
    eps = generator.normal(size=values.size)

    def error(full_scale: Any) -> Any:
        sigma = np.sqrt((additive * full_scale) ** 2 + shot**2 * np.abs(values) * full_scale)
        v = values + sigma * eps
        y = np.round(np.clip(v / full_scale * levels, -levels, levels)) * full_scale / levels
        return np.mean((y - values) ** 2)

    best = min(error(candidate) for candidate in np.abs(values).max() * np.linspace(0.02, 1, 200))
    # The 10 % allow for sampled noise and a finite grid: the search itself works on expectations.
    assert error(found) <= best * 1.1 + 1e-12


@pytest.mark.parametrize(
    ("method", "percentile"), [("max", 99.9), ("percentile", 50.0), ("percentile", 99.9), ("percentile", 100.0)]
)
def test_each_output_has_the_range_of_its_own_values(method: Any, percentile: float) -> None:
    model, together, data = net(), net(), batches()
    with torch.no_grad():
        for each in (model, together):
            each[0].weight[2] *= 100
    result = calibrate(model, data, method=method, percentile=percentile, per_output=True, progress=False)
    calibrate(together, data, method=method, percentile=percentile, progress=False)
    for name, (_, z) in signals(model, data).items():
        layer, row = model.get_submodule(name), next(row for row in result.layers if row.name == name)
        outputs = z.reshape(-1, layer.out_features)
        assert layer.profile.output_range == row.output_range
        assert layer.profile.input_range == together.get_submodule(name).profile.input_range
        exact = outputs.max(axis=0)
        if method == "percentile":
            exact = np.percentile(outputs, percentile, axis=0, method="inverted_cdf")
        assert (exact <= row.output_range).all()
        assert (np.array(row.output_range) <= np.minimum(exact * (1 + 1 / 32), outputs.max(axis=0))).all()
        assert row.output_clipped == pytest.approx(np.mean(outputs > row.output_range), abs=2e-2)


def test_a_loud_output_coarsens_no_step_but_its_own() -> None:
    errors = []
    for per_output in (False, True):
        model = net(OpticalProfile(output_bits=4)).eval()
        with torch.no_grad():
            model[0].weight[2] *= 100
            calibrate(model, batches(), per_output=per_output, progress=False)
            x = batches()[0]
            difference = model[0](x) - nn.functional.linear(x, model[0].weight, model[0].bias)
        errors.append(difference[:, [0, 1, 3, 4, 5, 6, 7]].square().mean())
    assert errors[1] < errors[0] / 20


@settings(max_examples=20)
@given(st.integers(0, 100), st.sampled_from([4, 8]), st.sampled_from([0.0, 0.05]), st.integers(1, 5))
def test_mse_of_each_output_is_near_that_of_its_own_histogram(
    seed: int, bits: int, additive: float, columns: int
) -> None:
    generator = np.random.default_rng(seed)
    normals = generator.normal(size=(3000, columns)) * 10.0 ** generator.uniform(-3, 3, columns)
    normals[:, 0] **= 3
    values = normals.astype(np.float32)
    apart = Histogram(columns)
    for part in np.split(values, 3):
        apart.add(part)
    found = apart.full_scales("mse", 1.0, bits, (0.0, additive, 0.0))
    levels, eps = 2 ** (bits - 1) - 1, generator.normal(size=len(values))

    def error(column: int, full_scale: float) -> Any:
        v = values[:, column] + additive * full_scale * eps
        y = np.round(np.clip(v / full_scale * levels, -levels, levels)) * full_scale / levels
        return np.mean((y - values[:, column]) ** 2)

    for column in range(columns):
        alone = Histogram()
        alone.add(values[:, column])
        best = alone.full_scales("mse", 1.0, bits, (0.0, additive, 0.0))[0]
        assert error(column, found[column]) <= error(column, best) * 1.15


def test_an_output_that_was_always_zero_has_the_largest_range() -> None:
    model = net()
    with torch.no_grad():
        model[0].weight[5] = 0
        model[0].bias[5] = 0
    result = calibrate(model, batches(), per_output=True, progress=False)
    ranges = model[0].profile.output_range
    assert ranges[5] == max(ranges) > sorted(ranges)[0]
    assert result.layers[0].note == "1 of its 8 outputs was always 0: it has the largest range of the others"
    assert "per output" in str(result)


def test_one_output_alone_has_a_plain_range() -> None:
    model: Any = convert(nn.Linear(6, 1), PROFILE)
    calibrate(model, batches(), per_output=True, progress=False)
    assert isinstance(model.profile.output_range, float)


def test_mse_clips_a_heavy_tail_and_max_does_not() -> None:
    torch.manual_seed(0)
    data = [torch.randn(256, 6) ** 3]
    wide, narrow = net(), net()
    calibrate(wide, data, progress=False)
    result = calibrate(narrow, data, method="mse", progress=False)
    assert narrow[0].profile.input_range < 0.8 * wide[0].profile.input_range
    assert narrow[0].profile.output_range < wide[0].profile.output_range
    assert result.layers[0].input_clipped > 0
    x = data[0]
    with noise(wide), noise(narrow):
        exact = nn.functional.linear(x, wide[0].weight, wide[0].bias)
        assert (narrow[0](x) - exact).square().mean() < (wide[0](x) - exact).square().mean()


def test_a_digital_bias_is_not_seen_by_the_adc() -> None:
    model = net(PROFILE.replace(bias_stage="digital"))
    with torch.no_grad():
        model[3].bias.fill_(1000.0)
    calibrate(model, batches(), progress=False)
    assert model[3].profile.output_range < 100
    model = net()
    with torch.no_grad():
        model[3].bias.fill_(1000.0)
    calibrate(model, batches(), progress=False)
    assert model[3].profile.output_range > 900


@pytest.mark.parametrize("method", ["max", "percentile", "mse"])
@pytest.mark.parametrize(
    ("profile", "has_input", "has_output"),
    [
        (OpticalProfile(input_bits=0), False, True),
        (OpticalProfile(output_bits=0), True, False),
        (OpticalProfile(output_bits=0, noise_relative=0.1), True, False),
        (OpticalProfile(output_bits=0, noise_additive=0.1), True, True),
        (OpticalProfile(output_bits=0, noise_shot=0.1), True, True),
    ],
)
def test_only_ranges_that_are_read_are_set(
    profile: OpticalProfile, has_input: bool, has_output: bool, method: str
) -> None:
    model = net(profile)
    calibrate(model, batches(), method=method, progress=False)  # type: ignore[arg-type]
    for layer in (model[0], model[3]):
        assert (layer.profile.input_range > 0) == has_input
        assert (layer.profile.output_range > 0) == has_output


def test_without_an_adc_mse_takes_the_maximum() -> None:
    models = [net(PROFILE.replace(output_bits=0)) for _ in range(2)]
    for model, method in zip(models, ("max", "mse"), strict=True):
        calibrate(model, batches(), method=method, progress=False)  # type: ignore[arg-type]
    assert models[0][3].profile.output_range == models[1][3].profile.output_range


def test_modes_streams_and_earlier_ranges() -> None:
    model = net(PROFILE.replace(input_range=1e-6, output_range=1e-6))
    model[2].eval()
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    data = batches()
    torch.set_rng_state(state)
    calibrate(model, data, progress=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    fresh = net()
    calibrate(fresh, data, progress=False)
    assert fresh[3].profile == model[3].profile
    calibrate(model, data, progress=False)
    assert fresh[3].profile == model[3].profile


def test_several_batches_are_one() -> None:
    data, models = batches(), [net(), net()]
    calibrate(models[0], data, method="mse", progress=False)
    calibrate(models[1], [torch.cat(data)], method="mse", progress=False)
    assert models[0][3].profile == models[1][3].profile


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.idle = nn.Linear(6, 2), nn.Linear(6, 2)

    def forward(self, x: Any, scale: float = 1.0) -> Any:
        return self.used(x * scale)


def test_a_layer_that_is_never_called() -> None:
    model = convert(Two(), PROFILE.replace(output_range=3.0))
    with pytest.warns(UserWarning, match=r"never called, so left with the ranges they had: 'idle'"):
        result = calibrate(model, batches(), progress=False)
    assert model.idle.profile == PROFILE.replace(output_range=3.0)
    row = next(row for row in result.layers if row.name == "idle")
    assert (row.values, row.output_range, row.note) == (0, 3.0, "never called")
    assert "never called" in str(result)


@pytest.mark.filterwarnings("ignore:calibrate. never called")
@pytest.mark.parametrize(
    ("batch", "forward", "scale"),
    [
        (lambda x: x, None, 1),
        (lambda x: (x, torch.zeros(16)), None, 1),
        (lambda x: [x, torch.zeros(16)], None, 1),
        (lambda x: {"x": x, "scale": 2.0}, None, 2),
        (lambda x: (x, 4.0), lambda model, batch: model(*batch), 4),
    ],
)
def test_kinds_of_batches(batch: Any, forward: Any, scale: int) -> None:
    model, x = convert(Two(), PROFILE), batches(1)[0]
    calibrate(model, iter([batch(x)]), forward=forward, progress=False)
    assert model.used.profile.input_range == float((x * scale).abs().max())  # type: ignore[union-attr]


def test_a_signal_that_is_always_zero() -> None:
    model = net()
    result = calibrate(model, [torch.zeros(4, 6)], progress=False)
    assert model[0].profile.input_range == 0
    assert "its input was always 0: dynamic" in result.layers[0].note


def test_the_progress_bar(capsys: pytest.CaptureFixture[str]) -> None:
    calibrate(net(), batches())
    assert "calibrate" in capsys.readouterr().out
    calibrate(net(), batches(), progress=False)
    assert capsys.readouterr().out == ""


def test_the_report_as_a_table() -> None:
    lines = str(calibrate(net(), batches(), progress=False)).splitlines()
    assert lines[0].split() == ["layer", "input", "range", "clipped", "output", "range", "clipped", "values", "note"]
    assert [line.split()[0] for line in lines[2:]] == ["0", "3"]


def with_nan() -> Any:
    x = torch.randn(4, 6)
    x[0, 0] = float("nan")
    return x


def loud() -> Any:
    model = net()
    with torch.no_grad():
        model[0].weight.fill_(2.0)
    return model


@pytest.mark.parametrize(
    ("message", "model", "data", "arguments"),
    [
        ("method = 'best': allowed is 'max', 'percentile', 'mse'", net, batches, {"method": "best"}),
        ("percentile = 0: allowed is a number above 0", net, batches, {"method": "percentile", "percentile": 0}),
        ("percentile = 101: allowed is a number above 0, at most 100", net, batches, {"percentile": 101}),
        ("model has no OpticalLinear: convert it first", lambda: nn.Linear(6, 2), batches, {}),
        ("batches is empty: allowed is at least one batch", net, list, {}),
        ("the input of layer '0' holds a value that is not finite", net, lambda: [with_nan()], {}),
        ("the output of layer '0' holds a value that is not finite", loud, lambda: [torch.full((1, 6), 3e38)], {}),
    ],
)
def test_bad_arguments(message: str, model: Any, data: Any, arguments: Any) -> None:
    model = model()
    before = [getattr(module, "profile", None) for module in model.modules()]
    with pytest.raises(ValueError, match=message):
        calibrate(model, data(), progress=False, **arguments)
    assert [getattr(module, "profile", None) for module in model.modules()] == before
    assert model.training
    if isinstance(model, nn.Sequential):
        model(batches(1)[0])


def test_calibrating_what_is_frozen_is_seen() -> None:
    model = net()
    with frozen(model), torch.no_grad():
        calibrate(model, batches(), progress=False)
        with pytest.raises(RuntimeError, match=r"layer '0': profile was changed inside frozen"):
            model(batches(1)[0])


def of_tiles(layer: OpticalLinear, x: Any, tile: int) -> Any:
    """|z| of each tile according to the reference, [tiles, M, N]: with the other tiles' codes at 0."""
    weight = layer.weight.detach().numpy()
    codes, scale = reference.quantize_weight(weight, layer.profile.weight_bits)
    parts = []
    for first in range(0, weight.shape[1], tile):
        part = np.zeros_like(weight)
        part[:, first : first + tile] = (codes * scale[:, None])[:, first : first + tile]
        bits = layer.profile.input_bits
        parts.append(np.abs(reference.optical_linear(x.numpy(), part, input_bits=bits, output_bits=0)))
    return np.array(parts), scale * (1 if layer.profile.weight_bits == 1 else 2 ** (layer.profile.weight_bits - 1) - 1)


@pytest.mark.parametrize("tile", [0, 4, 5])
@pytest.mark.parametrize("weight_bits", [1, 2, 8])
def test_ranges_are_those_of_tiles(weight_bits: int, tile: int) -> None:
    torch.manual_seed(0)
    profile = OpticalProfile(input_bits=3, weight_bits=weight_bits, tile_features=tile)
    model = convert(nn.Sequential(nn.Linear(16, 5, bias=False)), profile)
    layer: Any = model[0]
    (x,) = data = [torch.randn(32, 16)]
    z, full = of_tiles(layer, x, tile or 16)
    calibrate(model, data, progress=False)
    assert layer.profile.output_range == pytest.approx(z.max(), rel=1e-5)
    calibrate(model, data, per_output=True, progress=False)
    assert layer.profile.output_range == pytest.approx(tuple(z.max(axis=(0, 1))), rel=1e-5)
    layer.profile = profile.replace(output_bound=1.0, bias_stage="digital")
    report = calibrate(model, data, progress=False)
    assert layer.profile.output_bound == pytest.approx((z / full).max() / x.abs().max().item(), rel=1e-5)
    assert layer.profile.output_range == 0
    (row,) = report.layers
    assert (row.output_range, row.output_bound, row.note) == (0, layer.profile.output_bound, "")
    assert f"{row.output_bound:.4g} products" in str(report)


def test_a_bound_without_a_reader_stays() -> None:
    profile = OpticalProfile(output_bits=0, output_bound=3.0, bias_stage="digital")
    model = net(profile)
    report = calibrate(model, batches(), progress=False)
    layer: Any = model[0]
    assert layer.profile.output_bound == 3.0
    assert report.layers[0].note == "its output_bound stays 3"
