"""States that others wrote: torch.distributed.checkpoint, and the first release."""

import copy
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import torch.distributed.checkpoint as dcp  # noqa: E402
from torch import nn  # noqa: E402

from lumina_onnx.nn import convert, noise  # noqa: E402
from lumina_onnx.profile import OpticalProfile  # noqa: E402

from .state_cases import (  # noqa: E402
    CLEAN,
    EACH,
    NOISY,
    STATES,
    STATIC,
    average,
    encoded,
    layer,
    model,
    settings,
)

pytestmark = [
    pytest.mark.filterwarnings("error"),
    pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninitialized"),
]


# torch.distributed.checkpoint


def read_in_place(folder: Path, net: Any, **options: Any) -> None:
    state = net.state_dict()
    dcp.load(state, checkpoint_id=folder, no_dist=True, **options)
    net.load_state_dict(state)


def test_a_distributed_checkpoint_into_a_fresh_model(tmp_path: Path) -> None:
    for index, profile in enumerate((STATIC, NOISY, EACH)):
        net = nn.Sequential(layer(profile, 2**63 - 1))
        dcp.save(net.state_dict(), checkpoint_id=tmp_path / str(index), no_dist=True)
        other = nn.Sequential(layer(STATIC.replace(output_range=9.0), 1))
        read_in_place(tmp_path / str(index), other)
        assert settings(other) == settings(net)
        assert torch.equal(other[0].weight, net[0].weight)


def test_the_model_state_of_torch_distributed(tmp_path: Path) -> None:
    from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

    net, other = model(STATIC), model(seed=3)
    dcp.save(get_model_state_dict(net), checkpoint_id=tmp_path, no_dist=True)
    state = get_model_state_dict(other)
    dcp.load(state, checkpoint_id=tmp_path, no_dist=True)
    set_model_state_dict(other, state)
    assert settings(other) == settings(net)


def test_a_distributed_checkpoint_of_linear_layers(tmp_path: Path) -> None:
    dcp.save(nn.Sequential(nn.Linear(5, 4)).state_dict(), checkpoint_id=tmp_path, no_dist=True)
    net = nn.Sequential(layer(STATIC, 7))
    read_in_place(tmp_path, net, planner=dcp.DefaultLoadPlanner(allow_partial_load=True))
    assert settings(net) == [(STATIC, 7)]


# The first release


def first_release() -> Any:
    """The model whose states are kept in states/, but with other weights, ranges and seeds."""
    profile = OpticalProfile(input_bits=6, weight_bits=4, output_bits=8, noise_additive=0.05)
    torch.manual_seed(1)
    layers = [nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5), nn.Linear(5, 3, bias=False)]
    return convert(nn.Sequential(*layers), profile.replace(output_range=7.0), seed=5)


def assert_is_of_the_first_release(net: Any) -> None:
    kept = torch.load(STATES / "result.pt", weights_only=True)
    assert [(profile.input_range, profile.output_range) for profile, _ in settings(net)] == [
        (0.0, 0.0),
        (0.3, 1.75),
        (0.0, (0.5, 1.1, 2.0)),
    ]
    assert [seed for _, seed in settings(net)] == [4095580443149560803, 6945362250095784762, 7724342125763136260]
    with noise(net, True, stream=3), torch.no_grad():
        assert torch.equal(net(kept["x"]), kept["y"])


def test_a_state_of_the_first_release() -> None:
    net = first_release()
    net.load_state_dict(torch.load(STATES / "json.pt", weights_only=True), strict=True)
    assert_is_of_the_first_release(net)
    other = first_release()
    other.load_state_dict(net.state_dict())
    assert_is_of_the_first_release(other)


def test_a_model_of_the_first_release() -> None:
    net = torch.load(STATES / "json-model.pt", weights_only=False)
    assert net[0].name == "0"
    assert net[0].label == "layer '0'"
    assert_is_of_the_first_release(net)
    assert_is_of_the_first_release(copy.deepcopy(net))
    assert type(net[0].to_linear()) is nn.Linear
    assert set(net[0].to_linear().__dict__) == set(nn.Linear(6, 8).__dict__)


def test_a_distributed_checkpoint_of_the_first_release(tmp_path: Path) -> None:
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    dcp_to_torch_save(STATES / "json-distributed", tmp_path / "state.pt")
    net = first_release()
    net.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert_is_of_the_first_release(net)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (torch.zeros(3), "_extra_state .* wrote: it is torch.float32: allowed is torch.uint8"),
        (torch.zeros(3, dtype=torch.uint8), "_extra_state of the checkpoint is not one that a release of this package"),
        (encoded([1]), "_extra_state of the checkpoint is not one that a release of this package wrote"),
        (encoded({"version": 1}), "_extra_state of the checkpoint is not one that a release of this package wrote"),
        (encoded({"version": 9}), "_extra_state .* wrote: it has version 9: allowed is 1"),
        (
            encoded({"version": 1, "seed": 0, "input_range": 0.5, "output_range": [1.0, 2.0]}),
            "the checkpoint does not fit the layer's profile: profile.output_range has 2 elements",
        ),
        (
            encoded({"version": 1, "seed": -1, "input_range": 0.5, "output_range": 0.0}),
            "_extra_state of the checkpoint: seed = -1: allowed is 0..2",
        ),
        (
            encoded({"version": 1, "seed": 0, "input_range": -1.0, "output_range": 0.0}),
            "the checkpoint does not fit the layer's profile: input_range = -1",
        ),
    ],
)
def test_an_entry_of_the_first_release_that_does_not_fit(entry: Any, message: str) -> None:
    net = layer(CLEAN, 3)
    state = {**nn.Linear(5, 4).state_dict(), "_extra_state": entry}
    with pytest.raises(ValueError, match=r"^OpticalLinear\(5 -> 4\): " + message):
        net.load_state_dict(state)
    assert settings(net) == [(CLEAN, 3)]


def test_an_average_of_the_first_release_is_refused() -> None:
    state = torch.load(STATES / "json.pt", weights_only=True)
    with pytest.raises(ValueError, match=r"_extra_state .* it is torch.float32: allowed is torch.uint8"):
        first_release().load_state_dict(average(state, state))
