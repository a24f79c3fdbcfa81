"""Several processes that train, calibrate and save together; each of them runs `distributed_child.py`."""

import itertools
import subprocess
import sys
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from lumina_onnx.nn import _ranks, calibrate, convert, gradient_bits, noise  # noqa: E402

if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("this torch has no gloo", allow_module_level=True)

from . import distributed_child as child  # noqa: E402


def all_equal(a: Any, b: Any) -> Any:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The results of two ranks."""
    folder = tmp_path_factory.mktemp("ranks")
    processes = [
        subprocess.Popen(
            [sys.executable, child.__file__, f"{rank}", "2", str(folder)], stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            process.kill()
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def test_data_parallel_training_is_that_of_the_joint_batch(ranks: Any) -> None:
    net = child.model()
    optimiser = torch.optim.SGD(net.parameters(), lr=child.RATE)
    with noise(net):
        for step in range(child.STEPS):
            x, target = child.batch(step)
            optimiser.zero_grad()
            loss = nn.functional.mse_loss(net(x), target)
            loss.backward()
            optimiser.step()
            halves = torch.stack([rank["losses"][step] for rank in ranks])
            torch.testing.assert_close(halves.mean(), loss.detach(), rtol=1e-5, atol=0)
    assert all_equal(ranks[0]["weights"], ranks[1]["weights"])
    for parameter, found in zip(net.parameters(), ranks[0]["weights"], strict=True):
        torch.testing.assert_close(found, parameter.detach(), rtol=1e-5, atol=1e-6)


def test_ranks_have_the_noise_of_their_seed(ranks: Any) -> None:
    assert torch.equal(ranks[0]["alike"], ranks[1]["alike"])
    assert torch.equal(ranks[0]["apart"], ranks[0]["alike"])
    assert not torch.equal(ranks[1]["apart"], ranks[0]["apart"])
    assert all_equal(ranks[0]["gradients"], ranks[1]["gradients"])


def test_ranks_average_gradients_of_8_bits(ranks: Any) -> None:
    net = child.model()
    with torch.no_grad():
        for parameter, trained in zip(net.parameters(), ranks[0]["weights"], strict=True):
            parameter.copy_(trained)

    def gradients(rank: int, bits: int | None) -> Any:
        with noise(net), gradient_bits(bits):
            y = net(child.batch(rank)[0])
        return torch.autograd.grad(y.square().sum(), list(net.parameters()))

    for bits in (8, None):
        mean = [(a + b) / 2 for a, b in zip(gradients(0, bits), gradients(1, bits), strict=True)]
        for rank in ranks:
            assert all_equal(rank["of 8 bits"], mean) == (bits == 8)


# Calibration


def test_ranges_are_those_of_one_process_with_all_batches(ranks: Any) -> None:
    for (name, shards), method, per_output in itertools.product(child.SHARDS.items(), child.METHODS, (False, True)):
        net, case = child.model(), f"{name}, {method}, {per_output}"
        options: Any = {"method": method, "per_output": per_output}
        report = calibrate(net, [x for shard in shards for x in child.data(shard)], progress=False, **options)
        for rank in ranks:
            assert rank["calibrated"][case] == child.settings(net)
            assert rank["calibrated"][f"{case}, report"] == str(report)


def test_a_wrapped_model_is_called_past_its_wrapper(ranks: Any) -> None:
    """Because of its batch norm, the wrapper would wait for all ranks in each call; and only rank 1 calls one layer."""
    net: Any = convert(child.WithIdle(), child.PROFILE)
    batches = [(x, rank == 1) for rank, shard in enumerate(child.SHARDS["uneven"]) for x in child.data(shard)]
    calibrate(net, batches, forward=lambda net, batch: net(*batch), progress=False)
    assert net.rare.profile.output_range > 0
    assert [rank["calibrated"]["wrapped"] for rank in ranks] == [child.settings(net)] * 2


def test_ranks_that_calibrate_alone(ranks: Any) -> None:
    nets = [child.model() for _ in ranks]
    for number, net in enumerate(nets):
        calibrate(net, child.data(range(number, number + 1)), progress=False)
    assert [rank["calibrated"]["alone"] for rank in ranks] == [child.settings(net) for net in nets]
    assert child.settings(nets[0]) != child.settings(nets[1])
    assert ranks[0]["calibrated"]["subgroup"] == child.settings(nets[0])
    assert ranks[1]["calibrated"]["subgroup"].startswith("ValueError: group is one that this process is no member of")


FAILED = "RuntimeError: calibrate: rank 1 failed, so no rank has new ranges. Its error: "


# Each case, with the errors of ranks 0 and 1.
ERRORS = [
    (
        "signal",
        FAILED + "ValueError: calibrate: the input",
        "ValueError: calibrate: the input of layer '0'",
    ),
    ("data", FAILED + "OSError: the disk is gone", "OSError: the disk is gone"),
    ("no layer", FAILED + "ValueError: model has no OpticalLinear", "ValueError: model has no OpticalLinear"),
    ("no data", "ValueError: batches is empty: allowed is at least one batch", None),
    (
        "method",
        "ValueError: calibrate: method is max on rank 0 and mse on rank 1: allowed is the same on",
        None,
    ),
    (
        "per_output",
        "ValueError: calibrate: per_output is False on rank 0 and True on rank 1: allowed is the same",
        None,
    ),
    ("layers", "ValueError: calibrate: the list of optical layers is 0, 2 on rank 0 and 0 on rank 1: ", None),
    ("size", "ValueError: calibrate: layer '0' is 12 -> 20 on rank 0 and 12 -> 21 on rank 1: allowed is the", None),
    (
        "profile",
        "ValueError: calibrate: the profile of layer '0' is OpticalProfile(input_bits=8, weight",
        None,
    ),
    ("weights", "ValueError: calibrate: the hash of the weights of layer '2' is ", None),
    ("group", "TypeError: group is int 0: allowed is a process group of torch.distributed, None ", None),
]


def test_no_rank_goes_on_where_one_cannot(ranks: Any) -> None:
    for case, first, second in ERRORS:
        assert ranks[0]["calibrated"]["errors"].pop(case).startswith(first)
        assert ranks[1]["calibrated"]["errors"].pop(case).startswith(second or first)
    assert not ranks[0]["calibrated"]["errors"]
    net = child.model()
    calibrate(net, child.data(range(2)), progress=False)
    assert [rank["calibrated"]["at last"] for rank in ranks] == [child.settings(net)] * 2


@pytest.mark.parametrize("group", [0, True, "WORLD"])
def test_a_group_without_torch_distributed(group: Any) -> None:
    with pytest.raises(TypeError, match=rf"group is {type(group).__name__} {group!r}: allowed is a process group"):
        calibrate(child.model(), child.data(range(1)), group=group, progress=False)


@pytest.mark.parametrize(
    ("backends", "device"), [("cpu:gloo,cuda:nccl", "cpu"), ("cuda:nccl", "cuda"), ("cpu:gloo", "cpu")]
)
def test_counts_are_added_up_where_the_backend_can(monkeypatch: pytest.MonkeyPatch, backends: str, device: str) -> None:
    monkeypatch.setattr(torch.distributed, "get_backend_config", lambda group: backends)
    assert _ranks._device(None) == torch.device(device)


# Checkpoints


def test_ranges_and_seeds_reach_every_rank(ranks: Any) -> None:
    expected = child.settings(child.calibrated_model())
    for rank in ranks:
        assert rank["saved"] == {"expected": expected, "checkpoint": expected, "sent": expected}
