"""Blocks of `noise`, `frozen` and `calibrate` belong to the thread and context that entered them."""

import asyncio
import contextvars
import copy
import gc
import pickle
import threading
import weakref
from collections.abc import AsyncGenerator, Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch._dynamo.testing import CompileCounterWithBackend  # noqa: E402
from torch.nn.utils import parametrizations  # noqa: E402

from lumina_onnx.nn import OpticalLinear, _scope, calibrate, convert, frozen, noise  # noqa: E402
from lumina_onnx.profile import OpticalProfile  # noqa: E402

NOISY = OpticalProfile(noise_additive=0.1, output_range=2.0)
X = torch.linspace(-1, 1, 24).reshape(4, 6)


def model(profile: OpticalProfile = NOISY) -> Any:
    torch.manual_seed(0)
    return convert(nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6)), profile, inplace=True)


def is_noisy(net: Any) -> Any:
    return not torch.equal(net(X), net(X))


def of_stream(net: Any, stream: Any) -> Any:
    with noise(net, True, stream=stream):
        return net(X)


def in_threads(*work: Any) -> Any:
    """The result of each of these functions, all run at once, each in its own thread."""
    barrier = threading.Barrier(len(work))

    def run(task: Any) -> Any:
        barrier.wait(60)
        return task(barrier)

    with ThreadPoolExecutor(len(work)) as pool:
        return [future.result(60) for future in [pool.submit(run, task) for task in work]]


def elsewhere(work: Any) -> Any:
    """The result of `work` in a thread that is outside of every block."""
    return in_threads(lambda _: work())[0]


@pytest.fixture(autouse=True)
def fresh_compiler() -> Generator[Any, None, None]:
    yield
    torch._dynamo.reset()
    assert _scope.current() == ()


# Threads


@pytest.mark.parametrize("compiled", [False, True])
def test_threads_have_settings_of_their_own(compiled: bool) -> None:
    net = model()
    expected = [of_stream(net, stream) for stream in range(4)]
    with noise(net):
        clean = net(X)
    forward = torch.compile(net, backend="aot_eager") if compiled else net
    forward(X)

    def fixed(stream: Any) -> Any:
        def work(barrier: Any) -> bool:
            for _ in range(5):
                with noise(net, True, stream=stream):
                    barrier.wait(60)  # all are in their blocks
                    assert torch.equal(forward(X), expected[stream])
                    barrier.wait(60)
            return True

        return work

    def off(barrier: Any) -> bool:
        for _ in range(5):
            with noise(net):
                barrier.wait(60)
                assert torch.equal(forward(X), clean)
            barrier.wait(60)  # the others are still in theirs
        return True

    def outside(barrier: Any) -> bool:
        for _ in range(5):
            barrier.wait(60)
            assert not torch.equal(forward(X), forward(X))
            barrier.wait(60)
        return True

    assert all(in_threads(*map(fixed, range(4)), off, outside))
    assert is_noisy(net)


def test_blocks_that_threads_leave_in_another_order() -> None:
    """The threads' blocks overlap; afterwards no setting of either remains."""
    net = model()
    first, second = threading.Event(), threading.Event()

    def one(_: Any) -> None:
        with noise(net):
            first.set()
            second.wait(60)

    def two(_: Any) -> None:
        first.wait(60)
        with noise(net):
            second.set()

    in_threads(one, two)
    assert is_noisy(net)


def test_a_thread_is_in_the_blocks_of_the_context_it_runs_in() -> None:
    net = model()
    with noise(net, True, stream=1):
        expected = net(X)
        context = contextvars.copy_context()
        assert elsewhere(lambda: is_noisy(net))
        assert torch.equal(elsewhere(lambda: context.run(net, X)), expected)
    assert torch.equal(context.run(net, X), expected), "a copied context keeps what it has"
    assert is_noisy(net)


# Tasks, generators


def test_tasks_have_settings_of_their_own() -> None:
    net = model()
    expected = [of_stream(net, stream) for stream in range(3)]
    found = []

    async def work(stream: Any) -> None:
        for _ in range(3):
            with noise(net, True, stream=stream):
                await asyncio.sleep(0)
                assert torch.equal(net(X), expected[stream])
                assert torch.equal(await asyncio.to_thread(net, X), expected[stream])
            await asyncio.sleep(0)
            assert is_noisy(net)

    async def main() -> None:
        await asyncio.gather(*map(work, range(3)))
        with noise(net, True, stream=0):
            task = asyncio.create_task(asyncio.sleep(0.01))
            task.add_done_callback(lambda _: found.append(net(X)))  # runs in the context of this line
        await task
        await asyncio.sleep(0)
        assert is_noisy(net)
        assert torch.equal(found[0], expected[0])

    asyncio.run(main())
    assert is_noisy(net)


def steps(net: Any, stream: Any) -> Generator[Any, None, None]:
    with noise(net, True, stream=stream):
        while True:
            yield net(X)


def test_suspended_generators_end_in_any_order() -> None:
    net = model()
    one, two, three = (steps(net, stream) for stream in range(3))
    for generator in (one, two, three):
        next(generator)
    two.close()
    assert torch.equal(net(X), of_stream(net, 2))
    one.close()
    assert torch.equal(net(X), of_stream(net, 2))
    three.close()
    assert is_noisy(net)


@pytest.mark.parametrize("end", [elsewhere, lambda work: contextvars.copy_context().run(work)])
@pytest.mark.parametrize("block", [noise, frozen])
def test_a_generator_that_ends_in_another_context_ends_its_block(block: Any, end: Any) -> None:
    net = model()

    def generator() -> Generator[Any, None, None]:
        with block(net):
            yield

    suspended: Any = generator()
    next(suspended)
    end(suspended.close)
    assert is_noisy(net)
    with torch.no_grad():
        net[0].weight.mul_(2)
    net(X)
    with noise(net):
        pass
    assert _scope.current() == (), "what is over is dropped"


def test_an_asynchronous_generator_that_is_not_exhausted() -> None:
    net = model()

    async def values() -> AsyncGenerator[Any, None]:
        with noise(net):
            while True:
                yield net(X)

    async def main() -> None:
        async for _ in values():
            break
        gc.collect()
        await asyncio.sleep(0.01)
        assert is_noisy(net)

    asyncio.run(main())
    with noise(net):
        pass


# Layers


@pytest.mark.parametrize("duplicate", [copy.deepcopy, copy.copy, lambda net: pickle.loads(pickle.dumps(net))])
def test_a_copy_is_in_no_block(duplicate: Any) -> None:
    layer = model()[0]
    with noise(layer):
        assert not is_noisy(layer)
        other = duplicate(layer)
        assert is_noisy(other)
        with noise(other, True, stream=1):
            assert not is_noisy(other)
            assert not torch.equal(other(X), layer(X))
        converted = convert(layer, NOISY)
        assert is_noisy(converted)
        assert is_noisy(OpticalLinear.from_linear(layer, NOISY))
    assert "_identity" not in layer.to_linear().__dict__


def test_a_copy_of_a_parametrised_layer_is_in_no_block() -> None:
    """torch copies the attributes of parametrised layers one by one."""
    layer = parametrizations.weight_norm(OpticalLinear(6, 6, profile=NOISY))
    with noise(layer):
        other = copy.deepcopy(layer)
        assert is_noisy(other)
        with noise(other, True, stream=1):
            assert not is_noisy(layer)
            assert not torch.equal(layer(X), other(X))
    assert is_noisy(other)


def test_a_model_pickled_before_settings_were_of_the_context() -> None:
    layer = OpticalLinear(6, 6, profile=NOISY)
    state = {**layer.__getstate__(), "_noise": (False, None), "_frozen": None, "_observer": None}
    other = OpticalLinear.__new__(OpticalLinear)
    other.__setstate__(state)
    assert is_noisy(other)
    with noise(other):
        assert not is_noisy(other)
    assert set(other.__dict__) == set(layer.__dict__)


def test_a_block_keeps_no_layer_alive() -> None:
    net = model()
    last = weakref.ref(net[2])
    with noise(net):
        context = contextvars.copy_context()
        del net[2]
        gc.collect()
        assert last() is None
        layers = [OpticalLinear(6, 6, profile=NOISY) for _ in range(100)]
        assert all(map(is_noisy, layers)), "no number is given twice"
    assert context.run(is_noisy, layers[0])


def test_a_wrapped_model_is_in_the_block() -> None:
    net = model()
    with noise(net):
        assert not is_noisy(nn.DataParallel(net))
        assert torch.equal(torch.func.functional_call(net, dict(net.named_parameters()), (X,)), net(X))


def test_what_a_layer_says_of_its_noise() -> None:
    layer = OpticalLinear(6, 6, profile=NOISY)
    with noise(layer):
        assert not layer.noise_is_on
        assert "noise=off (additive 0.1)" in repr(layer)
        assert elsewhere(lambda: layer.noise_is_on and "noise=on (additive 0.1)" in repr(layer))
    assert layer.noise_is_on


def test_a_layer_made_where_tensors_are_fake() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        layer = OpticalLinear(6, 6, profile=NOISY, seed=3)
    layer.load_state_dict(OpticalLinear(6, 6, profile=NOISY).state_dict(), assign=True)
    with noise(layer, True, stream=1):
        assert torch.equal(torch.compile(layer, backend="aot_eager", fullgraph=True)(X), layer(X))


# Compiled models


def test_a_compiled_model_has_one_graph_for_all_settings_and_copies() -> None:
    net = model()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(net, backend=counter, fullgraph=True)
    with torch.no_grad():
        for stream in range(10):
            with noise(net, True, stream=stream):
                assert torch.equal(compiled(X), net(X))
        with noise(net):
            clean = compiled(X)
            assert torch.equal(clean, net(X))
            with noise(net, True):
                assert not torch.equal(compiled(X), compiled(X))
            with noise(net[0], True, stream=3):
                assert torch.equal(compiled(X), net(X))
                assert not torch.equal(compiled(X), clean)
        assert not torch.equal(compiled(X), compiled(X))
        for _ in range(10):
            other = copy.deepcopy(net)
            again = torch.compile(other, backend=counter, fullgraph=True)
            with noise(other):
                assert torch.equal(again(X), clean)
                assert not torch.equal(compiled(X), clean)
    assert counter.frame_count == 1


def test_blocks_inside_a_compiled_function() -> None:
    net = model()

    def forward(x: Any) -> Any:
        with noise(net, True, stream=3):
            fixed = net(x)
            with noise(net[0]):
                partly = net(x)
                with noise(net):
                    clean = net(x)
        return fixed, partly, clean, net(x)

    compiled = torch.compile(forward, backend="aot_eager", fullgraph=True)
    for _ in range(2):
        *found, noisy = compiled(X)
        *expected, _ = forward(X)
        assert all(map(torch.equal, found, expected))
        assert not torch.equal(noisy, compiled(X)[-1])
        with noise(net, True, stream=5):
            assert torch.equal(compiled(X)[-1], net(X))
    assert is_noisy(net)


# frozen


def test_threads_freeze_a_model_by_themselves() -> None:
    net = model()
    inside, changed = threading.Event(), threading.Event()

    def freezes(_: Any) -> Any:
        with frozen(net), noise(net), torch.no_grad():
            before = net(X)
            inside.set()
            changed.wait(60)
            with pytest.raises(RuntimeError, match="layer '0': weight was changed in place inside frozen"):
                net(X)
        return before

    def changes(_: Any) -> Any:
        inside.wait(60)
        with noise(net), torch.no_grad():
            net[0].weight.mul_(2)  # no error: this thread has promised nothing
            after = net(X)
            with frozen(net):
                assert torch.equal(net(X), after)
                changed.set()
        return after

    before, after = in_threads(freezes, changes)
    assert not torch.equal(before, after)
    with noise(net), torch.no_grad():
        assert torch.equal(net(X), after)


# calibrate


@pytest.mark.parametrize("compiled", [False, True])
def test_calibrating_one_model_in_two_threads(compiled: bool) -> None:
    net = model(OpticalProfile(noise_additive=0.1))
    forward = torch.compile(net, backend="aot_eager") if compiled else net
    forward(X)
    net.train()
    net[1].eval()
    modes = [module.training for module in net.modules()]

    def with_data(scale: Any) -> Any:
        def work(barrier: Any) -> Any:
            def batches() -> Generator[Any, None, None]:
                for _ in range(3):
                    barrier.wait(60)  # both are inside
                    yield scale * X

            return calibrate(forward, batches(), progress=False)

        return work

    def outside(barrier: Any) -> Any:
        for _ in range(3):
            barrier.wait(60)
            assert not torch.equal(forward(X), forward(X)), "who does not calibrate has noise"
        return None

    one, three, _ = in_threads(with_data(1.0), with_data(3.0), outside)
    assert [report.layers[0].input_range for report in (one, three)] == [1.0, 3.0]
    assert [report.layers[0].values for report in (one, three)] == [3 * X.numel()] * 2
    assert net[0].profile.input_range in (1.0, 3.0)
    assert [module.training for module in net.modules()] == modes


def test_compiled_models_run_compiled_after_a_calibration() -> None:
    net = model(OpticalProfile())
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(net, backend=counter)
    with pytest.raises(KeyError):
        calibrate(compiled, raising(), progress=False)
    calibrate(compiled, [X], progress=False)
    assert counter.frame_count == 0
    compiled(X)
    assert counter.frame_count == 1


def raising() -> Generator[Any, None, None]:
    yield X
    raise KeyError


def test_a_calibration_keeps_the_compilers_stance() -> None:
    net = model(OpticalProfile())
    with torch.compiler.set_stance("fail_on_recompile"):
        calibrate(net, [X], progress=False)
        with pytest.raises(RuntimeError, match="fail_on_recompile"):
            torch.compile(net, backend="eager")(X)
