"""Layers in several processes; test_distributed.py covers torch.distributed."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")


def python(script: Any, timeout: int = 120) -> Any:
    """Runs a script in its own process; the time limit is only there to catch a deadlock."""
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=timeout, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


FORK = """
import os, sys
import torch
from torch import nn
from lumina_onnx.nn import OpticalLinear, frozen, noise
from lumina_onnx.profile import OpticalProfile

torch.manual_seed(0)
torch.set_num_threads(3)
layer = OpticalLinear(300, 400, profile=OpticalProfile(noise_additive=0.1))
x, grad = torch.randn(200, 300), torch.randn(200, 400)

def run():
    layer.zero_grad()
    with noise(layer, True, stream=1):
        y = layer(x)
        y.backward(grad)
        with frozen(layer), torch.no_grad():
            return y.detach(), layer.weight.grad, layer(x)

def alike(results):  # in numpy: torch's own threads wait for ever in the child of a fork
    return all((a.numpy() == b.numpy()).all() for a, b in zip(results, expected))

expected = [tensor.clone() for tensor in run()]  # starts threads in the parent
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_forked_child_trains(threads: int) -> None:
    script = f"""
def child():
    torch.set_num_threads({threads})
    return 0 if alike(run()) else 1
pid = os.fork()
if pid == 0:
    os._exit(child())
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), alike(run()))
"""
    assert python(FORK + script) == "0 True"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_multiprocessing_by_fork() -> None:
    script = """
import torch.multiprocessing as multiprocessing
def work(stream):
    with noise(layer, True, stream=stream), torch.no_grad():
        return layer(x).numpy()
with multiprocessing.get_context("fork").Pool(2) as pool:
    results = pool.map(work, [1, 2, 1])
print((results[0] == expected[0].numpy()).all(), (results[2] == results[0]).all(), (results[1] == results[0]).all())
"""
    assert python(FORK + script) == "True True False"


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_data_loader_workers(start: str, tmp_path: Path) -> None:
    """The layer computes features in the workers, and trains in the parent process between the workers' batches."""
    script = """
from torch.utils.data import DataLoader, Dataset

class Features(Dataset):
    def __init__(self, layer, x):
        self.layer, self.x = layer, x
    def __len__(self):
        return 8
    def __getitem__(self, index):
        with noise(self.layer, True, stream=1), torch.no_grad():
            return self.layer(self.x + index)

def main():
    reader = copy.deepcopy(layer)
    data = Features(reader, x)
    loader = DataLoader(data, batch_size=2, num_workers=2, multiprocessing_context=START)
    found = []
    for batch in loader:
        found += list(batch)
        run()
    print(len(found), all(torch.equal(a, data[index]) for index, a in enumerate(found)))

if __name__ == "__main__":
    main()
"""
    path = tmp_path / "workers.py"
    path.write_text("import copy\n" + FORK + f"START = {start!r}\n" + script, encoding="utf-8")
    result = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, timeout=300, check=False)
    assert result.stdout.strip() == "8 True", result.stderr
