"""State of the process: threads, forks, the interpreter's lock, tiers, fresh noise."""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest

import lumina_kernel

from .processes import output, python

GENERATOR = np.random.default_rng(0)
X = GENERATOR.standard_normal((150, 300)).astype(np.float32)
W = GENERATOR.standard_normal((130, 300)).astype(np.float32)


def run(**more: object) -> np.ndarray:
    return lumina_kernel.optical_linear_forward(X, W, None, 0.1, 8, input_bits=8, weight_bits=8, **more)  # type: ignore[arg-type]


@pytest.fixture
def threads() -> Iterator[None]:
    before = lumina_kernel.num_threads()
    yield
    lumina_kernel.set_num_threads(before)


@pytest.mark.usefixtures("threads")
def test_the_number_of_threads_changes_no_bit() -> None:
    results = []
    for count in (1, 2, 3, 7):
        lumina_kernel.set_num_threads(count)
        assert lumina_kernel.num_threads() == count
        results.append(run(seed=1))
    for result in results[1:]:
        np.testing.assert_array_equal(result.view(np.uint32), results[0].view(np.uint32))


@pytest.mark.usefixtures("threads")
def test_calls_from_many_python_threads_at_once() -> None:
    lumina_kernel.set_num_threads(3)
    expected = run(seed=1)
    wrong: list[int] = []

    def work(index: int) -> None:
        for _ in range(10):
            if not np.array_equal(run(seed=1), expected):
                wrong.append(index)
            lumina_kernel.set_num_threads(2 + index % 3)

    workers = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


@pytest.mark.parametrize("value", [0, -1, 4097, 2**70])
def test_set_num_threads_refuses(value: int) -> None:
    with pytest.raises(ValueError, match=re.escape(f"n = {value}: allowed is an integer 1..4096")):
        lumina_kernel.set_num_threads(value)


def test_set_num_threads_refuses_what_is_no_integer() -> None:
    with pytest.raises(TypeError, match=re.escape("n is of type float: allowed is an integer 1..4096")):
        lumina_kernel.set_num_threads(1.5)  # type: ignore[arg-type]


@pytest.mark.parametrize(("value", "threads"), [("3", 3), ("5,2", 5), (" 2 ", 2), ("0", None), ("many", None)])
def test_default_threads(value: str, threads: int | None) -> None:
    found = int(output("print(lumina_kernel.num_threads())", OMP_NUM_THREADS=value))
    allowed = int(output("print(lumina_kernel.num_threads())"))
    assert found == (threads or allowed)
    assert 1 <= allowed <= len(os.sched_getaffinity(0))


# Made here rather than in the calls, since numpy releases the interpreter too.
DY, INPUT, WEIGHT = (np.ones(shape, np.float32) for shape in ((2000, 100), (2000, 30), (100, 30)))
SAVED = lumina_kernel.forward_train(lumina_kernel.Params(), INPUT, WEIGHT, None, 0, 0)[1]


def gradient() -> None:
    SAVED.backward(DY)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("call", [lambda: run(seed=1), gradient], ids=["forward", "gradient"])
def test_other_threads_run_python_during_a_long_call(call: Callable[[], object]) -> None:
    """No thread is made to yield the interpreter here, so another one runs only if a call releases it."""
    lumina_kernel.set_num_threads(1)
    gate, entered, interval = threading.Event(), threading.Event(), sys.getswitchinterval()
    seen = []

    def work() -> None:
        gate.set()
        for _ in range(1000):
            call()
            if entered.is_set():
                break
        seen.append(entered.is_set())

    worker = threading.Thread(target=work)
    sys.setswitchinterval(1000)
    try:
        worker.start()
        gate.wait()
        entered.set()
        worker.join()
    finally:
        sys.setswitchinterval(interval)
    assert seen == [True]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.parametrize("nested", [False, True])
def test_a_forked_child_computes_with_threads_of_its_own(nested: bool) -> None:
    script = f"""
lumina_kernel.set_num_threads(3)
expected = run(seed=1)
def fork(child):
    pid = os.fork()
    if pid == 0:
        os._exit(child())
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
def child():
    for count in (3, 2):
        lumina_kernel.set_num_threads(count)
        if not np.array_equal(run(seed=1), expected):
            return 1
    return fork(child_of_child) if {nested} else 0
def child_of_child():
    return 0 if np.array_equal(run(seed=1), expected) else 2
print(fork(child), np.array_equal(run(seed=1), expected))
"""
    assert output(script) == "0 True"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_draws_noise_of_its_own() -> None:
    script = """
run()
reader, writer = os.pipe()
if os.fork() == 0:
    os.write(writer, zlib.crc32(run()).to_bytes(4, "little"))
    os._exit(0)
os.wait()
print(int.from_bytes(os.read(reader, 4), "little") != zlib.crc32(run()))
"""
    assert output(script) == "True"


def test_two_processes_draw_different_noise() -> None:
    assert output("print(zlib.crc32(run()))") != output("print(zlib.crc32(run()))")
    seeded = "lumina_kernel.manual_seed(7); print(zlib.crc32(run()), zlib.crc32(run()))"
    assert output(seeded) == output(seeded)


def test_manual_seed_restarts_the_noise() -> None:
    lumina_kernel.manual_seed(5)
    first, second = run(), run()
    assert (first != second).any()
    lumina_kernel.manual_seed(5)
    np.testing.assert_array_equal(run(), first)
    np.testing.assert_array_equal(run(), second)
    np.testing.assert_array_equal(run(seed=5), first)
    np.testing.assert_array_equal(run(seed=5, stream=1), second)
    with pytest.raises(ValueError, match=re.escape("seed = -1: allowed is 0..2^63-1")):
        lumina_kernel.manual_seed(-1)


@pytest.mark.parametrize(("name", "shown"), [("sse9", "sse9"), ("", ""), ("\udcff", "\ufffd")])
def test_a_tier_that_the_processor_lacks_is_an_error(name: str, shown: str) -> None:
    for call in ("lumina_kernel.isa()", "run()"):
        result = python(call, LUMINA_ISA=name, PYTHONIOENCODING="utf-8")
        assert result.returncode != 0
        assert f"ValueError: LUMINA_ISA = {shown}: this processor has portable" in result.stderr


@pytest.mark.parametrize("tier", lumina_kernel.available_isas())
def test_every_tier_can_be_forced_and_gives_the_same_bits(tier: str) -> None:
    import zlib

    expected = f"{tier} {zlib.crc32(run(seed=3))}"  # type: ignore[arg-type]
    assert output("print(lumina_kernel.isa(), zlib.crc32(run(seed=3)))", LUMINA_ISA=tier) == expected
