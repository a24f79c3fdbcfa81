"""The rivals: noise-aware training in PyTorch without the kernel, each as a layer class that a network's layers become.

All have inputs, weights and outputs of 8 bits, or of a :class:`Way`'s, with a full scale per row, noise in proportion
to the signal, and a straight-through gradient; aihwkit adds effects of its own.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from benchmarks import eager
from benchmarks.context import SHAPES, TINY_SHAPES
from benchmarks.timing import Call, Side
from lumina_onnx import OpticalProfile
from lumina_onnx.nn import convert

NOISE = 0.02

#: Names in ``torch.set_float32_matmul_precision``. On our side "high" and "medium" are the same; in PyTorch "high" is
#: "highest" on processors without instructions for it.
HIGHEST, HIGH, MEDIUM = "highest", "high", "medium"


@dataclass(frozen=True)
class Way:
    """How our side trains.

    Attributes:
        name: Its name in a report.
        precision: The precision of float32 products.
        gradient_bits: As in :func:`lumina_onnx.nn.convert`.
        bits: The bits of inputs, weights and outputs; the rivals have as many.
    """

    name: str
    precision: str = HIGHEST
    gradient_bits: int | None = None
    bits: int = 8

    @property
    def law(self) -> str:
        """Bits and noise, for a report."""
        return f"{self.bits}/{self.bits}/{self.bits} bits, noise_relative"


AT_HIGHEST = Way(f'precision "{HIGHEST}"')
AT_HIGH = Way(f'precision "{HIGH}"', HIGH)
IN_8_BITS = Way("gradients of 8 bits", gradient_bits=8)
CODES_OF_4_BITS = Way("gradients of 8 bits", gradient_bits=8, bits=4)
WAYS = (AT_HIGHEST, AT_HIGH, IN_8_BITS, CODES_OF_4_BITS)

OURS = "ours"
OURS_COMPILED = "ours under torch.compile"
EAGER = "eager PyTorch"
COMPILED = "torch.compile of it"
AUTOCAST = "eager, autocast to bfloat16"
INT_MM = "torch._int_mm forward, separate passes"
AIHWKIT = "aihwkit's tile on the CPU"
PLAIN = "nn.Linear, without bits and noise"
PLAIN_COMPILED = "nn.Linear under torch.compile"
RESULTS = "layers of nothing but results"


class EagerLinear(nn.Linear):
    """:func:`eager.optical_linear` as a layer."""

    bits = 8

    def forward(self, input: Tensor) -> Tensor:
        bits = {"input_bits": self.bits, "weight_bits": self.bits, "output_bits": self.bits}
        return eager.optical_linear(input, self.weight, self.bias, **bits, noise_relative=NOISE)


class IntMmLinear(nn.Linear):
    """:class:`eager.OpticalLinearIntMm` as a layer."""

    def forward(self, input: Tensor) -> Tensor:
        rows = input.reshape(-1, self.in_features)
        y: Tensor = eager.OpticalLinearIntMm.apply(rows, self.weight, self.bias, NOISE)
        return y.view(*input.shape[:-1], self.out_features)


class ResultsLinear(nn.Linear):
    """No layer at all: it holds what ours cannot do without, and computes nothing.

    It is for what memory a step takes at least. PyTorch holds Y [M, N], dX [M, K], dW [N, K] and db [N] in float32 at
    the end of a layer's backward pass, and until then what the forward pass saved: codes of X at 8 bits, and a step in
    float32 for each row of X and W.
    """

    def forward(self, input: Tensor) -> Tensor:
        y: Tensor = _Results.apply(input, self.weight, self.bias)
        return y


class _Results(torch.autograd.Function):
    """Memory of ones: that of zeros would not be there before it is written to."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        steps = x.numel() // x.shape[-1] + len(weight)
        ctx.save_for_backward(torch.ones(x.numel() + 4 * steps, dtype=torch.uint8))
        ctx.shapes = x.shape, weight.shape, bias.shape
        return torch.ones(*x.shape[:-1], len(weight))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return tuple(
            torch.ones(shape) if need else None for shape, need in zip(ctx.shapes, ctx.needs_input_grad, strict=True)
        )


def swap(model: nn.Module, layer: type[nn.Linear]) -> nn.Module:
    """A copy of the model with linear layers of another class and the same parameters."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = layer
    return model


def with_layers_of(side: str, model: nn.Module, way: Way = AT_HIGHEST) -> nn.Module:
    """A copy of a network of ``nn.Linear`` layers with the layers of one of the sides."""
    if side in (OURS, OURS_COMPILED):
        profile = OpticalProfile(way.bits, way.bits, way.bits, noise_relative=NOISE)
        model = convert(model, profile, gradient_bits=way.gradient_bits)
    elif side == AIHWKIT:
        model = _analog(model)
    elif side in (PLAIN, PLAIN_COMPILED):
        model = copy.deepcopy(model)
    else:
        layers: dict[str, type[nn.Linear]] = {INT_MM: IntMmLinear, RESULTS: ResultsLinear}
        model = swap(model, layers.get(side) or type("EagerLinear", (EagerLinear,), {"bits": way.bits}))
    return compiled(model) if side in (OURS_COMPILED, COMPILED, PLAIN_COMPILED) else model


def compiled(model: nn.Module) -> nn.Module:
    """The model as one graph. ``model.compile()`` on an ``nn.Sequential`` compiles its layers at most."""
    return cast("nn.Module", torch.compile(model, dynamic=False))


@dataclass(frozen=True)
class Task:
    """A network to train.

    Attributes:
        name: Its name in a report.
        shape: Rows, then the sizes of the layers.
        model: A network of ``nn.Linear`` layers.
        x: Its input; it gets a gradient if it requires one.
        grad: The gradient of its output.
        optimized: Whether a training step includes that of an optimizer, plain SGD.
    """

    name: str
    shape: tuple[int, ...]
    model: nn.Module
    x: Tensor
    grad: Tensor
    optimized: bool = True

    @staticmethod
    def of(
        name: str,
        shape: tuple[int, ...],
        make: Callable[[], nn.Module],
        *size: int,
        first: bool = False,
        optimized: bool = True,
    ) -> Task:
        """A task with a random input of a given size; the input of a `first` layer is data and needs no gradient."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = make()
            x = torch.randn(size).requires_grad_(not first)
            with torch.no_grad():
                grad = torch.randn_like(model(x))
        return Task(name, shape, model, x, grad, optimized)

    @torch.enable_grad()
    def multiply_adds(self) -> int:
        """Multiply-adds of the backward pass's products in the linear layers."""
        count = 0

        def add(layer: nn.Linear, inputs: tuple[Tensor, ...], _: Tensor) -> None:
            nonlocal count
            products = 1 + inputs[0].requires_grad
            count += products * inputs[0].numel() * layer.out_features

        model = copy.deepcopy(self.model)
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.register_forward_hook(add)
        model(self.x)
        return count


def step(task: Task, side: str, way: Way = AT_HIGHEST) -> Call:
    """A training step: forward, backward, and the optimizer's step if the task has one."""
    model = with_layers_of(side, task.model, way)
    parameters = list(model.parameters())
    optimizer = _optimizer(side, model) if task.optimized else None
    x = task.x.detach().clone().requires_grad_(task.x.requires_grad)
    dtype = torch.bfloat16 if side == AUTOCAST else torch.float32
    grad = task.grad.to(dtype)
    autocast = side == AUTOCAST

    @torch.enable_grad()
    def run() -> None:
        x.grad = None
        for parameter in parameters:
            parameter.grad = None
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = model(x)
        y.backward(grad if y.dtype == dtype else task.grad)
        if optimizer is not None:
            optimizer.step()

    return run


def at_precision(call: Call, precision: str) -> Side:
    """The call at a precision of float32 products, as ``torch.set_float32_matmul_precision`` names it."""
    return Side(call, before=lambda: torch.set_float32_matmul_precision(precision))


@torch.enable_grad()
def saved_bytes(task: Task, side: str) -> int:
    """Bytes that the forward pass keeps for the backward pass: the memory of all saved tensors, each counted once.

    Parameters that are saved unchanged do not count, since they stay in memory anyway.
    """
    model = with_layers_of(side, task.model)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    found: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        memory = tensor.untyped_storage()
        if memory.data_ptr() not in own:
            found[memory.data_ptr()] = memory.nbytes()
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=side == AUTOCAST):
        y = model(task.x)
    # Until here the graph holds the saved tensors, so that no memory was reused and counted twice.
    del y
    return sum(found.values())


# The networks


class Projections(nn.Module):
    """The four linear layers of a block of a vision transformer, with nothing between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.width = width
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        # A sum over queries, keys and values stands in for attention and gives each of them a gradient.
        mixed = self.qkv(x).unflatten(-1, (3, self.width)).sum(-2)
        return self.fc2(self.fc1(self.proj(mixed)))


class Mixer(nn.Module):
    """A block of an MLP-Mixer: one perceptron across the patches, one across the channels."""

    def __init__(self, patches: int, width: int, across: int, hidden: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.patches = nn.Sequential(nn.Linear(patches, across), nn.GELU(), nn.Linear(across, patches))
        self.channels = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.patches(self.norms[0](x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norms[1](x))


def networks(quick: bool) -> list[Task]:
    """The networks that are trained, or small ones of their kind."""
    batch, pixels, hidden = (8, 64, 32) if quick else (128, 784, 512)
    images, tokens, width = (1, 9, 32) if quick else (4, 197, 192)
    patches, channels, across, wide = (9, 32, 16, 48) if quick else (196, 512, 256, 2048)

    def perceptron() -> nn.Module:
        return nn.Sequential(
            nn.Linear(pixels, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 10)
        )

    return [
        Task.of(
            "perceptron for MNIST's images", (batch, pixels, hidden, hidden, 10), perceptron, batch, pixels, first=True
        ),
        Task.of(
            "the linear layers of a ViT-Tiny block",
            (images * tokens, width, 4 * width),
            lambda: Projections(width, 4 * width),
            *(images, tokens, width),
        ),
        Task.of(
            "a block of MLP-Mixer S/16",
            (images * patches, channels, wide),
            lambda: Mixer(patches, channels, across, wide),
            *(images, patches, channels),
        ),
    ]


def layer(shape: tuple[int, ...]) -> Task:
    """One layer M x K x N as inside a network; forward and backward only."""
    m, k, n = shape
    return Task.of("one layer", shape, lambda: nn.Linear(k, n), m, k, optimized=False)


def tasks(quick: bool) -> list[Task]:
    """One layer of each shape, and the networks."""
    return [layer(shape) for shape in (TINY_SHAPES if quick else SHAPES)] + networks(quick)


def small() -> Task:
    """A network for which calls cost more than arithmetic."""
    sizes = (64, 64, 10)
    return Task.of(
        "a small perceptron",
        (64, *sizes),
        lambda: nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)),
        64,
        64,
    )


# aihwkit, where it is installed


@functools.cache
def why_no_aihwkit() -> str | None:
    """Why aihwkit cannot be measured here; None where it can."""
    try:
        with_layers_of(AIHWKIT, nn.Linear(3, 2))(torch.zeros(1, 3))
    except ImportError as error:
        return f"not installed ({error})"
    except RuntimeError as error:
        return f"does not run with torch {torch.__version__}: {error}"
    return None


def _analog(model: nn.Module) -> nn.Module:
    """The network on aihwkit's tiles in C++, one per layer, with bits and noise as close to ours as aihwkit allows."""
    from aihwkit.nn.conversion import convert_to_analog
    from aihwkit.simulator.configs import InferenceRPUConfig

    config = InferenceRPUConfig()
    config.mapping.max_input_size = config.mapping.max_output_size = 0
    config.forward.inp_res = config.forward.out_res = 1 / 254
    config.forward.out_noise = NOISE
    # convert_to_analog replaces submodules, so a layer that is the whole model needs a module around it.
    holder = nn.Sequential(copy.deepcopy(model))
    return convert_to_analog(holder, config)


def _optimizer(side: str, model: nn.Module) -> Any:
    """Plain SGD with a rate so small that the weights do not change, however often the step is run."""
    if side != AIHWKIT:
        return torch.optim.SGD(model.parameters(), lr=1e-9)
    from aihwkit.optim import AnalogSGD

    optimizer = AnalogSGD(model.parameters(), lr=1e-9)
    optimizer.regroup_param_groups(model)
    return optimizer
