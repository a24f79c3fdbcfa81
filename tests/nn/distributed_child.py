"""One process of several that train, calibrate and save together: `python distributed_child.py RANK WORLD FOLDER`."""

import copy
import itertools
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict

from lumina_onnx.nn import OpticalLinear, calibrate, convert, gradient_bits, noise
from lumina_onnx.profile import OpticalProfile

PROFILE = OpticalProfile(noise_additive=0.1)
STEPS, ROWS, RATE = 3, 16, 0.1


def model() -> nn.Module:
    torch.manual_seed(0)
    return convert(nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 5)), PROFILE, inplace=True)


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(ROWS, 12, generator=generator), torch.randn(ROWS, 5, generator=generator)


# The numbers of the batches that each rank calibrates on.
SHARDS = {"alike": (range(2), range(2, 4)), "uneven": (range(3), range(3, 4)), "empty": (range(2), range(0))}
METHODS = ("max", "percentile", "mse")


class WithIdle(nn.Module):
    """A batch norm, whose buffers DistributedDataParallel broadcasts, and a layer that only rank 1 calls."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(12, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Linear(20, 5))
        self.rare = nn.Linear(12, 5)

    def forward(self, x: torch.Tensor, rare: bool = False) -> torch.Tensor:
        return self.net(x) + (self.rare(x) if rare else 0)


def data(numbers: range) -> list[torch.Tensor]:
    return [(1 + number) * batch(number)[0] for number in numbers]


def settings(net: nn.Module) -> list[tuple[float, float, int]]:
    layers = [module for module in net.modules() if isinstance(module, OpticalLinear)]
    return [(layer.profile.input_range, layer.profile.output_range, layer.seed) for layer in layers]  # type: ignore[misc]


def failing(numbers: range) -> Iterator[torch.Tensor]:
    yield from data(numbers)
    raise OSError("the disk is gone")


def error_of(*arguments: Any, **options: Any) -> str:
    net = arguments[0]
    before = settings(net)
    try:
        report = calibrate(*arguments, progress=False, **options)
    except Exception as error:
        return f"{type(error).__name__}: {error}" if settings(net) == before else "ranges have changed"
    return f"no error, but {report}"


def calibrated(rank: int) -> dict[str, Any]:
    """The ranges that the ranks find together, and the errors that they raise together."""
    found: dict[str, Any] = {}
    for name, shards in SHARDS.items():
        for method, per_output in itertools.product(METHODS, (False, True)):
            net, case = model(), f"{name}, {method}, {per_output}"
            options: Any = {"method": method, "per_output": per_output}
            report = calibrate(net, data(shards[rank]), progress=rank == 0, **options)
            found[case] = settings(net)
            found[f"{case}, report"] = str(report)
    net = nn.parallel.DistributedDataParallel(convert(WithIdle(), PROFILE))
    shard = data(SHARDS["uneven"][rank])
    calibrate(net, shard, forward=lambda net, x: net(x, rare=rank == 1), progress=False)
    found["wrapped"] = settings(net)

    net, own = model(), data(range(rank, rank + 1))
    calibrate(net, own, group=False, progress=False)
    found["alone"] = settings(net)
    net, first = model(), torch.distributed.new_group([0])
    if rank == 0:
        calibrate(net, own, group=first, progress=False)
        found["subgroup"] = settings(net)
    else:
        found["subgroup"] = error_of(net, own, group=first)
    other: Any = copy.deepcopy(model())
    with torch.no_grad():
        other[2].weight[0, 0] += 1e-6 * rank
    small = nn.Sequential(nn.Linear(12, 20 + rank))
    found["errors"] = {
        "signal": error_of(model(), [float("nan") * x if rank else x for x in own]),
        "data": error_of(model(), failing(range(1)) if rank else own),
        "no data": error_of(model(), []),
        "method": error_of(model(), own, method="mse" if rank else "max"),
        "per_output": error_of(model(), own, per_output=rank == 1),
        "no layer": error_of(nn.Linear(12, 5) if rank else model(), own),
        "layers": error_of(convert(small, PROFILE) if rank else model(), own),
        "size": error_of(convert(small, PROFILE), own),
        "profile": error_of(convert(model(), PROFILE.replace(weight_bits=8 - rank)), own),
        "weights": error_of(other, own),
        "group": error_of(model(), own, group=0),
    }
    net = model()
    calibrate(net, own, progress=False)  # after all these errors the ranks are still in step
    found["at last"] = settings(net)
    return found


def saved(rank: int, folder: Path) -> dict[str, Any]:
    """The ranges and seeds that the ranks read from a checkpoint that they wrote together."""
    net = calibrated_model()
    dcp.save(net.state_dict(), checkpoint_id=folder / "checkpoint")
    fresh = convert(nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 5)), PROFILE, seed=1 + rank)
    state = fresh.state_dict()
    dcp.load(state, checkpoint_id=folder / "checkpoint")
    fresh.load_state_dict(state)
    found = {"expected": settings(net), "checkpoint": settings(fresh)}
    fresh = nn.parallel.DistributedDataParallel(copy.deepcopy(model()))  # type: ignore[assignment]
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(fresh, get_model_state_dict(net) if rank == 0 else {}, options=options)
    return {**found, "sent": settings(fresh)}


def calibrated_model() -> nn.Module:
    net: Any = model()
    calibrate(net, data(range(1)), group=False, progress=False)
    net[2].profile = net[2].profile.replace(output_range=2.5)
    return net


def main(rank: int, world: int, folder: Path) -> None:
    warnings.simplefilter("error")
    warnings.filterwarnings("default", category=FutureWarning)
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=world)
    net = model()
    parallel = nn.parallel.DistributedDataParallel(net)
    optimiser = torch.optim.SGD(parallel.parameters(), lr=RATE)
    losses = []
    with noise(net):
        for step in range(STEPS):
            x, target = (part.chunk(world)[rank] for part in batch(step))
            optimiser.zero_grad()
            loss = nn.functional.mse_loss(parallel(x), target)
            loss.backward()
            optimiser.step()
            losses.append(loss.detach())
    weights = [parameter.detach().clone() for parameter in net.parameters()]

    x = batch(0)[0]
    torch.manual_seed(5)
    alike = parallel(x).detach()
    torch.manual_seed(5 + rank)
    apart = parallel(x).detach()
    # The noise is on and differs between ranks; the gradients are averaged all the same.
    optimiser.zero_grad()
    parallel(x).square().sum().backward()
    gradients = [parameter.grad for parameter in net.parameters()]
    optimiser.zero_grad(set_to_none=True)
    with noise(net), gradient_bits(8):
        y = parallel(batch(rank)[0])
    y.square().sum().backward()
    of_8_bits = [parameter.grad for parameter in net.parameters()]
    found = {"losses": losses, "weights": weights, "alike": alike, "apart": apart, "gradients": gradients}
    found |= {"of 8 bits": of_8_bits}
    found |= {"calibrated": calibrated(rank), "saved": saved(rank, folder)}
    torch.save(found, folder / f"{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    # Skips the interpreter's shutdown: there, a thread of gloo or autograd that asks for the GIL may end the process
    # (https://github.com/pytorch/pytorch/issues/190489), or be waited for while the GIL is held.
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
