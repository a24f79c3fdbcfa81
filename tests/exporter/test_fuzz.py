"""3,000 random models of the operator against the page that defines it, in child processes that may crash."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

FOLDER = Path(__file__).parent
VECTORS = FOLDER.parent / "vectors"
sys.path.insert(0, str(FOLDER))

import fuzz_page as page  # noqa: E402 (its folder is on the path from here on)
from fuzz_breaks import BREAKS  # noqa: E402

CASES = 3000
PARTS = 2


@pytest.mark.parametrize("part", range(PARTS))
def test_random_models(part: int, tmp_path: Path) -> None:
    """Valid models give the page's bits, broken ones are refused with a message; `inspect` reads or refuses either."""
    count = CASES // PARTS
    command = [sys.executable, str(FOLDER / "fuzz_child.py"), str(part * count), str(count), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    last = (tmp_path / "case").read_text() if (tmp_path / "case").exists() else "none"
    assert done.returncode == 0, f"died of case {last}: {done.stdout}{done.stderr}"
    *faults, counts = done.stdout.splitlines()
    assert not faults, "\n".join(faults[:20])
    tried = Counter(json.loads(counts))
    assert sum(tried[kind] for kind in ("single", "chain", "shared", "branches", "loop", "wide")) == count * 2 // 3
    for kind in ("chain", "shared", "branches", "loop", "wide", *(f"broken: {what}" for what in BREAKS)):
        assert tried[kind] > 5, kind
    for bits in range(17):
        for storage in ["float32"] + ["int8"] * (1 <= bits <= 8) + ["uint8"] * (bits in (1, 2, 4)):
            assert tried[f"{storage} {bits}"] > 5, f"{storage} of {bits} bits"
    assert tried["numbers"] > 100_000
    assert 1_000 < tried["not a number"] < tried["numbers"] / 5
    assert tried["mangled and read"] > 100
    assert tried["mangled and refused"] > 100


# The golden vectors prove that the numbers to compare with are right.


def read(name: str) -> Any:
    return json.loads((VECTORS / name).read_text())


def floats(words: str) -> np.ndarray:
    return np.array([int(word, 16) for word in words.split()], np.uint32).view(np.float32)


def test_the_fuzzers_noise() -> None:
    for row in read("noise.json")["rows"]:
        eps = page.normals(row["seed"], row["stream"], row["row"] + 1, row["columns"]) if row["row"] < 100 else None
        if eps is not None:
            expected = floats(row["eps"])
            found = eps[row["row"], row["start"] : row["start"] + len(expected)]
            np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))
    table = np.array([[int(word, 16) for word in line.split()] for line in read("noise.json")["box_muller"]], np.uint32)
    for found, expected in zip(page.box_muller(table[:, 0].copy(), table[:, 1].copy()), table.T[2:], strict=True):
        np.testing.assert_array_equal(found.view(np.uint32), expected)


@pytest.mark.parametrize("case", read("forward.json"), ids=lambda case: case["name"])
def test_the_fuzzers_forward_pass(case: dict[str, Any]) -> None:
    params = dict(case["params"])
    for name in ("input_range", "noise_relative", "noise_additive", "noise_shot"):
        params[name] = float(floats(params[name])[0])
    params["output_range"] = floats(params["output_range"]).tolist()
    n, k, bits = case["n"], case["k"], params["weight_bits"]
    weight = floats(case["weight"]).reshape(n, k)
    scale = page.default_scale(weight, bits) if bits else np.ones(n, np.float32)
    if case["weight_scale"] is not None:
        scale = np.resize(floats(case["weight_scale"]), n)
    bias = None if case["bias"] is None else floats(case["bias"])
    x, expected = floats(case["x"]).reshape(-1, k), floats(case["y"])
    call = {"seed": case["seed"], "stream": case["stream"]}
    found = [page.optical_linear(x, weight, scale, bias, **params, **call)]
    if "packed" in case:
        packed = np.array(case["packed"].split(), np.uint8).reshape(n, -1)
        found.append(page.optical_linear(x, packed, scale, bias, in_features=k, **params, **call))
    for y in found:
        np.testing.assert_array_equal(y.reshape(-1).view(np.uint32), expected.view(np.uint32))
