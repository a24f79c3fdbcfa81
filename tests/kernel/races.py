"""Calls on arrays that another process keeps writing. Prints how often each call had which outcome, as JSON."""

from __future__ import annotations

import collections
import json
import mmap
import os
import re
import signal
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

import lumina_kernel

N, K, CALLS = 8, 20_000, 400
SHORT = 20_001
"""Odd, so that the last byte of a packed row is padded."""
generator = np.random.default_rng(0)


def shared(values: np.ndarray) -> np.ndarray:
    """A copy of `values` in memory that child processes share."""
    array: np.ndarray = np.frombuffer(mmap.mmap(-1, values.nbytes), values.dtype).reshape(values.shape)
    array[...] = values
    return array


def normal(*shape: int) -> np.ndarray:
    return generator.standard_normal(shape).astype(np.float32)


def outcome(call: Callable[[], Any]) -> str:
    """ "done", or the error without its indices. Anything but an Exception ends the process."""
    try:
        call()
    except Exception as error:
        return re.sub(r"\[[0-9, ]+\]", "[#]", f"{type(error).__name__}: {error}")
    return "done"


def race(array: np.ndarray, values: tuple[float, float], call: Callable[[], Any]) -> dict[str, int]:
    """The outcomes of `call` while another process sets the last element of `array` to these values in turn."""
    element = array.reshape(-1)[-1:]
    low, high = (np.full_like(element, value) for value in values)
    writer = os.fork()
    if writer == 0:
        while True:
            element[...] = low
            element[...] = high
    try:
        return dict(collections.Counter(outcome(call) for _ in range(CALLS)))
    finally:
        os.kill(writer, signal.SIGKILL)
        os.waitpid(writer, 0)


def forward(x: np.ndarray, w: np.ndarray, bias: np.ndarray, **more: Any) -> Callable[[], Any]:
    return lambda: lumina_kernel.optical_linear_forward(x, w, bias, 0.1, 8, seed=1, **more)


def main() -> None:
    """Races on every argument that is read, or read again."""
    lumina_kernel.set_num_threads(1)
    nan, inf = float("nan"), float("inf")
    x, w, bias, y = shared(normal(4, K)), shared(normal(N, K)), shared(normal(N)), shared(np.zeros((4, N), np.float32))
    results = {}
    for bits in (0, 1, 4, 8, 12):
        results[f"weight, {bits} bits"] = race(w, (nan, 1.0), forward(x, w, bias, input_bits=8, weight_bits=bits))
        w[...] = normal(N, K)
    results["prepared"] = race(
        w, (inf, 1.0), lambda: lumina_kernel.PreparedLayer(lumina_kernel.Params(weight_bits=4), w)
    )
    w[...] = normal(N, K)
    results["quantize_weight"] = race(w, (nan, 1.0), lambda: lumina_kernel.quantize_weight(w, 8))
    w[...] = normal(N, K)
    for bits in (0, 8, 12):
        results[f"x, {bits} bits"] = race(x, (nan, 1e30), forward(x, w, bias, input_bits=bits, weight_bits=bits))
        x[...] = normal(4, K)
    results["bias"] = race(bias, (nan, 1.0), forward(x[:, :64].copy(), w[:, :64].copy(), bias))
    bias[...] = normal(N)
    results["out"] = race(y, (nan, 1.0), forward(x, w, bias, noise_shot=0.1, noise_additive=0.1, out=y))

    params = lumina_kernel.Params(input_bits=8, weight_bits=8, output_bits=8, input_range=2.0, output_range=3.0)
    analog = lumina_kernel.Params(weight_bits=8, output_bits=8, output_range=3.0)
    dy = shared(normal(4, N))
    for array, read in ((w, "weight"), (x, "x")):
        results[f"forward_train, {read}"] = race(
            array, (nan, 1.0), lambda: lumina_kernel.forward_train(params, x, w, bias, 0, 0)
        )
        array[...] = normal(*array.shape)
    for kind in (params, analog):
        _, saved = lumina_kernel.forward_train(kind, x, w, bias, 0, 0)
        for name, array in {"dy": dy, "weight": w, "x": x}.items():
            results[f"backward, {name}, {kind.input_bits} bits"] = race(array, (nan, inf), partial(saved.backward, dy))
            array[...] = np.ones_like(array)

    for bits in (1, 2, 4):
        codes = shared(np.ones((N, SHORT), np.int8))
        results[f"pack_weight, {bits} bits"] = race(codes, (-128, 1), partial(lumina_kernel.pack_weight, codes, bits))
        codes[...] = 1
        packed = shared(lumina_kernel.pack_weight(codes, bits))
        values = (int(packed[0, -1]), 0xF0 if bits > 1 else 0xFF)
        results[f"unpack_weight, {bits} bits"] = race(
            packed, values, partial(lumina_kernel.unpack_weight, packed, bits, SHORT)
        )
    print(json.dumps(results))


if __name__ == "__main__":
    main()
