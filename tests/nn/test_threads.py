"""Calls from Python share torch's threads if torch is loaded."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata

import pytest

PRELUDE = """
import os, sys, threading
from pathlib import Path
import numpy as np
import torch
import lumina_kernel

torch.set_num_threads(3)
lumina_kernel.set_num_threads(3)
generator = np.random.default_rng(0)
x = generator.standard_normal((300, 300)).astype(np.float32)
w = generator.standard_normal((130, 300)).astype(np.float32)

def run():
    return lumina_kernel.optical_linear_forward(x, w, None, 0.1, 8, input_bits=8, weight_bits=8, seed=1)

def ours():
    "Whether the process has a pool of our own."
    names = [(task / "comm").read_text() for task in Path("/proc/self/task").iterdir()]
    return any(name.startswith("lumina-") for name in names)

def tasks():
    return len(list(Path("/proc/self/task").iterdir()))

def torch_runs():
    "A parallel operator of torch's: its threads are there from then on."
    return torch.ones(1 << 20).exp_().sum().item()
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc, and for libtorch_cpu.so")


def output(script: str, prelude: str = PRELUDE, **variables: str) -> str:
    """Runs a script in its own process; the time limit is only there to catch a deadlock."""
    result = subprocess.run(
        [sys.executable, "-c", prelude + script],
        env={name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"} | variables,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_tasks_run_on_the_threads_of_torch() -> None:
    script = """
torch_runs()
before = tasks()
run()
print(tasks() - before, ours())
"""
    assert output(script) == "0 False"


def another_runtime() -> str | None:
    """An OpenMP runtime that is not torch's: scikit-learn's wheels include one."""
    try:
        files = metadata.files("scikit-learn") or []
    except metadata.PackageNotFoundError:
        return None
    return next((str(file.locate()) for file in files if file.name.startswith("libgomp-")), None)


def test_a_preloaded_runtime_serves_torch_and_us() -> None:
    runtime = another_runtime()
    if runtime is None:
        pytest.skip("needs an OpenMP runtime besides torch's")
    script = """
torch_runs()
before = tasks()
run()
print(tasks() - before, ours())
"""
    assert output(script, LD_PRELOAD=runtime) == "0 False"


def test_another_number_of_threads_than_that_of_torch_has_a_pool_and_the_same_bits() -> None:
    script = """
expected = run()
lumina_kernel.set_num_threads(2)
print(np.array_equal(run(), expected), ours())
lumina_kernel.set_num_threads(1)
print(np.array_equal(run(), expected))
"""
    assert output(script).split() == ["True", "True", "True"]


def test_a_forked_child_does_not_wait_for_threads_that_stayed_with_its_parent() -> None:
    script = """
torch_runs()
expected = run()
pid = os.fork()
if pid == 0:
    os._exit(0 if np.array_equal(run(), expected) and ours() else 1)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), np.array_equal(run(), expected), ours())
"""
    assert output(script) == "0 True False"


def test_a_forked_child_that_imports_the_module_itself() -> None:
    script = f"""
import os, signal, sys
import torch
torch.set_num_threads(3)
torch.ones(1 << 20).exp_()
assert "lumina_kernel" not in sys.modules
pid = os.fork()
if pid == 0:
    signal.alarm(200)  # or a child that waits for ever would stay
    exec({PRELUDE!r})
    os._exit(0 if run().shape == (300, 130) and ours() else 1)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    assert output(script, prelude="") == "0"


def test_a_forked_child_that_loads_torch_itself_shares_its_threads() -> None:
    script = f"""
import os
pid = os.fork()
if pid == 0:
    import lumina_kernel
    exec({PRELUDE!r})
    torch_runs()
    before = tasks()
    run()
    os._exit(0 if tasks() == before and not ours() else 1)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    assert output(script, prelude="") == "0"


def test_many_python_threads_and_torch_at_once() -> None:
    script = """
expected, wrong = run(), []
def work(index):
    torch.set_num_threads(2 + index % 2)
    for _ in range(20):
        torch_runs()
        if not np.array_equal(run(), expected):
            wrong.append(index)
workers = [threading.Thread(target=work, args=(index,)) for index in range(6)]
for worker in workers:
    worker.start()
for worker in workers:
    worker.join()
print(wrong)
"""
    assert output(script) == "[]"
