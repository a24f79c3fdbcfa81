"""One process of a DistributedDataParallel run: `python distributed_child.py RANK WORLD FOLDER`."""

import os
import sys
from pathlib import Path

import torch
from torch import nn

from lumina_onnx.nn import convert, noise
from lumina_onnx.profile import OpticalProfile

PROFILE = OpticalProfile(noise_additive=0.1)
STEPS, ROWS, RATE = 3, 16, 0.1


def model() -> nn.Module:
    torch.manual_seed(0)
    return convert(nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 5)), PROFILE, inplace=True)


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(ROWS, 12, generator=generator), torch.randn(ROWS, 5, generator=generator)


def main(rank: int, world: int, folder: Path) -> None:
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
    # Noise on, each rank its own: the gradients are averaged all the same.
    optimiser.zero_grad()
    parallel(x).square().sum().backward()
    gradients = [parameter.grad for parameter in net.parameters()]
    found = {"losses": losses, "weights": weights, "alike": alike, "apart": apart, "gradients": gradients}
    torch.save(found, folder / f"{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    # Without the interpreter's shutdown: there a thread of gloo's or autograd's that asks for the GIL may end the
    # process (https://github.com/pytorch/pytorch/issues/190489), or be waited for with it.
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
