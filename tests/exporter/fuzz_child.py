"""Runs cases of the fuzzer: `python fuzz_child.py FIRST COUNT FOLDER`.

Prints a line for each fault, and at the end JSON of what was tried. The file `case` in the folder names the running
case, in case the process dies of it.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from fuzz_breaks import BREAKS, broken, mangled
from fuzz_models import SHAPES, Case, pick

import lumina_onnx
from lumina_onnx import exporter


def case(number: int) -> Case:
    """A case derived from its number alone. A third of the cases are broken, the others are valid."""
    rng = np.random.default_rng([20, number])
    if number % 3 == 2:
        return broken(rng, list(BREAKS)[number // 3 % len(BREAKS)])
    return SHAPES[pick(rng, list(SHAPES))](rng)


def session(model: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return lumina_onnx.load(model, sess_options=options, providers=["CPUExecutionProvider"])


def faults(one: Case, model: bytes, counts: Counter[str]) -> Iterator[str]:
    """How ONNX Runtime's behaviour deviates from the page."""
    try:
        loaded = session(model)
    except Exception as error:
        text = str(error)
        if not one.refusal:
            yield f"is refused: {text}"
        for words in one.refusal:
            if words not in text:
                yield f"is refused without {words!r}: {text}"
        return
    if one.refusal:
        yield f"is not refused, with {one.refusal}"
        return
    for run, (feeds, expected) in enumerate(zip(one.feeds, one.expected, strict=True)):
        got = loaded.run(list(expected), feeds)
        for (name, right), found in zip(expected.items(), got, strict=True):
            counts["numbers"] += right.size
            counts["not a number"] += int(np.isnan(right).sum())
            counts["infinite"] += int(np.isinf(right).sum())
            if found.shape != right.shape:
                yield f"run {run}: {name} has shape {found.shape}, right is {right.shape}"
            elif (different := found.view(np.uint32) != right.view(np.uint32)).any():
                at = tuple(int(index) for index in np.argwhere(different)[0])
                yield f"run {run}: {name}{list(at)} = {found[at]!r}, right is {right[at]!r}; {different.sum()} differ"


def misread(one: Case, path: Path) -> Iterator[str]:
    """What `inspect` reports differently from the file's content."""
    try:
        report = exporter.inspect(path)
        json.dumps(report.to_dict(), allow_nan=False)
        if one.refusal and len(one.layers) == 1:
            str(report)
    except ValueError as error:
        if not one.refusal:
            yield f"inspect refuses it: {error}"
        return
    except Exception as error:
        yield f"inspect raises {error!r}"
        return
    if one.refusal:
        return
    layers = {layer.name: layer for layer in report.layers if layer.name in [right.name for right in one.layers]}
    for right in one.layers:
        if not right.name:
            continue
        found, attributes = layers[right.name], {"input_bits": 0, "weight_bits": 0, "seed": 0, **right.attributes}
        stated = [found.in_features, found.out_features, found.input_bits, found.weight_bits, found.seed]
        expected = [right.k, right.n, *(attributes[name] for name in ("input_bits", "weight_bits", "seed"))]
        if stated != expected:
            yield f"inspect reads {stated} where {expected} stand"


def main(first: int, count: int, folder: Path) -> None:
    counts: Counter[str] = Counter()
    path = folder / "model.onnx"
    for number in range(first, first + count):
        (folder / "case").write_text(str(number))
        one = case(number)
        model = one.model.SerializeToString()
        path.write_bytes(model)
        counts[one.kind] += 1
        for right in one.layers:
            counts[f"{right.w.dtype} {right.attributes.get('weight_bits', 0)}"] += not one.refusal
        for fault in (*faults(one, model, counts), *misread(one, path)):
            print(f"case {number} ({one.kind}) {fault}")
        path.write_bytes(mangled(np.random.default_rng([21, number]), model))
        try:
            exporter.inspect(path)
            counts["mangled and read"] += 1
        except ValueError:
            counts["mangled and refused"] += 1
        except Exception as error:
            print(f"case {number} (mangled) inspect raises {error!r}")
    print(json.dumps(counts))


if __name__ == "__main__":
    arguments: Any = sys.argv[1:]
    main(int(arguments[0]), int(arguments[1]), Path(arguments[2]))
