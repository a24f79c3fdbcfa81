"""Results that must be the same under `python -O`: `python -O optimised_child.py FOLDER` prints them as JSON."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

import lumina_onnx
from lumina_onnx import nn as optical
from lumina_onnx.exporter import export, verify
from lumina_onnx.nn.functional import optical_linear
from lumina_onnx.profile import OpticalProfile

PROFILE = OpticalProfile(input_bits=6, weight_bits=4, output_bits=8, noise_additive=0.05)


def digest(*arrays: Any) -> str:
    return hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)).hexdigest()


def error_of(call: Callable[[], Any]) -> str:
    try:
        return f"no error, but {call()}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def freed(tensor: Tensor) -> Tensor:
    """The tensor without its storage, as sharded training leaves it between uses."""
    tensor.untyped_storage().resize_(0)
    return tensor


def guards() -> dict[str, str]:
    """The errors of calls that must raise."""
    found = {}
    for name in ("x", "weight", "bias"):
        for grad in (False, True):
            layer, x = optical.OpticalLinear(6, 4, profile=PROFILE, seed=0), torch.randn(3, 6)
            layer.name = "head"
            freed(x if name == "x" else getattr(layer, name).data)
            with torch.set_grad_enabled(grad):
                found[f"{name}, grad {grad}"] = error_of(lambda layer=layer, x=x: layer(x))  # type: ignore[misc]
        if name != "x":
            found[f"{name}, frozen"] = error_of(optical.frozen(layer).__enter__)
    for index in range(2):
        layer, x, seen = optical.OpticalLinear(6, 4, profile=PROFILE, seed=0), torch.randn(3, 6), []  # type: ignore[var-annotated]

        def unpack(tensor: Tensor, seen: list[None] = seen, index: int = index) -> Tensor:
            seen.append(None)
            return freed(tensor.clone()) if len(seen) == index + 1 else tensor

        with saved_tensors_hooks(lambda tensor: tensor, unpack):
            y = layer(x.requires_grad_())
        found[f"saved {index}"] = error_of(y.sum().backward)
    y = optical_linear(torch.randn(3, 6), torch.randn(4, 6, requires_grad=True), None, PROFILE)
    found["grad"] = error_of(lambda: y.backward(freed(torch.ones(3, 4))))
    layer.weight = None  # type: ignore[assignment]
    found["no weight, frozen"] = error_of(optical.frozen(layer).__enter__)
    return found


def results(folder: Path) -> dict[str, Any]:
    """A training step, calibration, export and a run, as digests of their bits, and the errors from `guards`."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    net = optical.convert(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)), PROFILE)
    x, target = torch.randn(16, 6), torch.randn(16, 4)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    nn.functional.mse_loss(net(x), target).backward()
    optimizer.step()
    optical.calibrate(net, [x], method="mse", progress=False)
    path = folder / "model.onnx"
    export(net.eval(), x, path)
    (y,) = lumina_onnx.load(path).run(None, {"input": x.numpy()})
    with optical.noise(net, True, stream=0), torch.no_grad():
        expected = net(x)
    return {
        "state": digest(*(value.numpy() for value in net.state_dict().values())),
        "ranges": [module.profile.output_range for module in net if isinstance(module, optical.OpticalLinear)],
        "file": digest(np.frombuffer(path.read_bytes(), np.uint8)),
        "run": digest(y),
        "torch": digest(expected.numpy()),
        "verified": verify(path, inputs={"input": x.numpy()}, reference=net).ok,
        "guards": guards(),
    }


if __name__ == "__main__":
    print(json.dumps({"optimize": sys.flags.optimize, **results(Path(sys.argv[1]))}))
