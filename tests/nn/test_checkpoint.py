"""What the backward pass recomputes has the same noise as before: torch.utils.checkpoint, eager and compiled."""

import functools
import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import torch._functorch.config as functorch  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils.checkpoint import (  # noqa: E402
    CheckpointError,
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from lumina_onnx.nn import convert, frozen, noise  # noqa: E402
from lumina_onnx.profile import OpticalProfile  # noqa: E402

NOISY = OpticalProfile(noise_additive=0.3)
X = torch.linspace(-1, 1, 30).reshape(5, 6)
NEEDS_COMPILER = pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
#: Blocks around the forward pass; the backward pass is outside of them.
BLOCKS = {"drawn": lambda net: nullcontext(), "fixed": lambda net: noise(net, True, stream=3), "off": noise}

recompute = functools.partial(checkpoint, use_reentrant=False)


def model() -> Any:
    torch.manual_seed(0)
    layers = [layer for _ in range(3) for layer in (nn.Linear(6, 6), nn.ReLU())]
    return convert(nn.Sequential(*layers), NOISY, inplace=True)


def run(net: Any, forward: Any, block: Any = BLOCKS["drawn"]) -> Any:
    """The output, all gradients, and the generator's state after it."""
    torch.manual_seed(5)
    net.zero_grad()
    x = X.clone().requires_grad_()
    with block(net):
        y = forward(x)
    y.square().sum().backward()
    return [y.detach(), x.grad, *(parameter.grad for parameter in net.parameters()), torch.get_rng_state()]


def assert_same(found: Any, expected: Any) -> None:
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[Any]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def whole(net: Any, x: Any) -> Any:
    return recompute(net, x)


def each(net: Any, x: Any) -> Any:
    for layer in net:
        x = recompute(layer, x)
    return x


def nested(net: Any, x: Any) -> Any:
    return recompute(lambda x: recompute(net[2:], recompute(net[:2], x)), x)


def broken(net: Any, x: Any) -> Any:
    x = recompute(net[:2], x)
    torch._dynamo.graph_break()
    return recompute(net[2:], x)


def without_generator(net: Any, x: Any) -> Any:
    return recompute(net, x, preserve_rng_state=False)


@pytest.mark.parametrize(
    ("backend", "forward"), [("aot_eager", nested), pytest.param("inductor", each, marks=NEEDS_COMPILER)]
)
def test_a_compiled_model_with_checkpoints_has_the_gradients_of_the_eager_one(backend: str, forward: Any) -> None:
    net = model()
    compiled = torch.compile(functools.partial(forward, net), backend=backend, fullgraph=True)
    for block in BLOCKS.values():
        assert_same(run(net, compiled, block), run(net, net, block))


@pytest.mark.parametrize("forward", [broken, without_generator])
def test_other_ways_of_checkpointing_in_a_compiled_model(forward: Any) -> None:
    net = model()
    compiled = torch.compile(functools.partial(forward, net), backend="aot_eager")
    for block in BLOCKS.values():
        assert_same(run(net, compiled, block), run(net, net, block))


def test_a_model_compiled_inside_a_checkpoint() -> None:
    net = model()
    compiled = torch.compile(net, backend="aot_eager")
    assert_same(run(net, lambda x: recompute(compiled, x)), run(net, net))


def test_several_calls_before_their_gradients() -> None:
    net = model()
    compiled = torch.compile(functools.partial(whole, net), backend="aot_eager")

    def twice(forward: Any) -> Any:
        return lambda x: forward(x) - 2 * forward(x)

    assert_same(run(net, twice(compiled)), run(net, twice(net)))


@pytest.mark.parametrize(
    ("policy", "compiled"), [("MUST_SAVE", False), ("PREFER_RECOMPUTE", False), ("MUST_RECOMPUTE", True)]
)
def test_selective_checkpoints(policy: str, compiled: bool) -> None:
    """The policy's answer for our operators makes no difference."""
    net = model()
    contexts = functools.partial(create_selective_checkpoint_contexts, lambda *_, **__: CheckpointPolicy[policy])

    def forward(x: Any) -> Any:
        return recompute(net, x, context_fn=contexts)

    if compiled:
        forward = torch.compile(forward, backend="aot_eager", fullgraph=True)
    assert_same(run(net, forward), run(net, net))


def test_memory_that_the_compiler_saves() -> None:
    """With a memory budget, torch.compile recomputes what it chooses to, without any checkpoint."""
    net = model()
    with functorch.patch(activation_memory_budget=0.1):
        compiled = torch.compile(net, backend="aot_eager")
        for block in BLOCKS.values():
            assert_same(run(net, compiled, block), run(net, net, block))


def test_no_memory_for_the_stream() -> None:
    net = model()
    with functorch.patch(activation_memory_budget=0):
        compiled = torch.compile(net, backend="aot_eager")
        with pytest.raises(Exception, match=r"activation_memory_budget = 0 computes everything again in the backward"):
            compiled(X)
        with torch.no_grad(), noise(net, True, stream=3):
            assert torch.equal(compiled(X), net(X))


# In eager mode backward() runs the checkpointed modules under the settings in force where backward() is called.


@pytest.mark.parametrize("freeze", [False, True])
@pytest.mark.parametrize("forward", [whole, each, nested])
@pytest.mark.parametrize("block", ["fixed", "off"])
def test_backward_outside_of_the_block_raises(block: str, forward: Any, freeze: bool) -> None:
    net = model()
    with frozen(net) if freeze else nullcontext():
        expected = run(net, net, BLOCKS[block])
        with pytest.raises(CheckpointError):
            run(net, functools.partial(forward, net), BLOCKS[block])
        with BLOCKS[block](net):  # type: ignore[attr-defined]
            assert_same(run(net, functools.partial(forward, net)), expected)


def test_backward_inside_of_a_block_after_a_forward_pass_outside_raises() -> None:
    net = model()
    y = whole(net, X)
    with noise(net), pytest.raises(CheckpointError):
        y.sum().backward()


def test_backward_inside_of_another_block_raises() -> None:
    net = model()
    with noise(net, True, stream=3):
        y = whole(net, X)
    with noise(net, True, stream=4), pytest.raises(RuntimeError, match="computed an optical layer again, with other"):
        y.sum().backward()
    with noise(net):
        y = whole(net, X)
    with noise(net, True, stream=0), pytest.raises(RuntimeError, match=r"call backward\(\) inside the block"):
        y.sum().backward()


def test_a_block_without_an_effect_needs_no_backward_inside() -> None:
    net = model()
    assert_same(run(net, functools.partial(whole, net), lambda net: noise(net, True)), run(net, net))
    quiet = convert(net, OpticalProfile())
    assert_same(run(quiet, functools.partial(whole, quiet), noise), run(quiet, quiet))


def test_a_context_function_holds_the_settings() -> None:
    net = model()
    held = functools.partial(noise, net, True, stream=3)

    def forward(x: Any) -> Any:
        return recompute(net, x, context_fn=lambda: (held(), held()))

    assert_same(run(net, forward), run(net, net, lambda net: held()))
