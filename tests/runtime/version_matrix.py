"""Runs the operator in other releases of ONNX Runtime, each in an environment of its own.

    python tests/runtime/version_matrix.py 1.17.3 1.20.1 1.23.2 newest
    python tests/runtime/version_matrix.py --python OTHER/bin/python --library liblumina_ort.so

Small models of this folder's tests must give the reference's bits, exported models torch's; models/*.onnx must give
what this environment's ONNX Runtime gives. Without the library the small models run by their function body, noise off,
within its tolerance at each level of optimisation, and the others run. Needs a network (or pip's settings for a mirror)
and, for 1.17, Python 3.12 or older.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.append(str(ROOT / "tests" / "exporter"))
RUNS = 3


def write_cases(folder: Path) -> None:
    """Models, inputs and expected outputs, one run after another, for `version_matrix_child.py`."""
    import numpy as np
    import onnxruntime
    from exported_models import exported_models
    from op_model import few_rows_layer, make_session, random_layer, run

    import lumina_onnx

    def write(
        name: str,
        model: bytes,
        feeds: dict[str, Any],
        outputs: list[list[Any]],
        shape: list[Any],
        tolerance: float = 0.0,
    ) -> None:
        (folder / f"{name}.onnx").write_bytes(model)
        np.savez(folder / f"{name}.inputs.npz", **feeds)
        runs = {f"{run}_{index}": y for run, ys in enumerate(outputs) for index, y in enumerate(ys)}
        np.savez(folder / f"{name}.outputs.npz", **runs)
        (folder / f"{name}.json").write_text(json.dumps({"runs": len(outputs), "shape": shape, "tolerance": tolerance}))

    noise = {"noise_relative": 0.05, "noise_additive": 0.02, "noise_shot": 0.01}
    layers = {
        "float": random_layer(70, 65, seed=1, **noise),
        "sixteen": random_layer(70, 65, seed=2, weight_bits=16, input_bits=12, **noise),
        "int8": random_layer(70, 65, seed=3, weight_bits=8, storage="int8", input_bits=8, input_range=4.0, **noise),
        "packed4": random_layer(70, 65, seed=4, weight_bits=4, storage="uint8", input_bits=8, **noise),
        "packed1": random_layer(70, 65, seed=5, weight_bits=1, storage="uint8", input_bits=4, bias=False, **noise),
        "digital": random_layer(
            70, 65, weight_bits=2, storage="uint8", bias_stage="digital", output_range=[9.0] * 70, output_bits=6
        ),
    }
    x = np.random.default_rng(0).normal(size=(100, 65)).astype(np.float32)
    for name, layer in layers.items():
        outputs = [[layer.expected(x, stream)] for stream in range(RUNS)]
        write(name, layer.model(x_shape=["batch", 65]), {"X": x}, outputs, ["batch", 70])

    large = few_rows_layer(4)
    row = np.random.default_rng(2).normal(size=(1, 1030)).astype(np.float32)
    outputs = [[large.expected(row, stream)] for stream in range(RUNS)]
    write("row", large.model(x_shape=["batch", 1030]), {"X": row}, outputs, ["batch", len(large.w)])

    for name, layer in layers.items():
        write_body_case(folder / f"{name}_body", layer, x)

    for case in exported_models(RUNS):
        write(case.name, case.model, case.feeds, case.outputs, case.shape, case.tolerance)

    rng = np.random.default_rng(1)
    for path in sorted((ROOT / "models").glob("*.onnx")):
        session = lumina_onnx.load(path)
        feeds = {}
        for given in session.get_inputs():
            dims = [dim if isinstance(dim, int) else 3 for dim in given.shape]
            assert given.type == "tensor(float)", f"{path.name}: input {given.name} is {given.type}"
            feeds[given.name] = rng.random(dims, dtype=np.float32)
        outputs = [session.run(None, feeds) for _ in range(RUNS)]
        write(path.stem, path.read_bytes(), feeds, outputs, session.get_outputs()[0].shape)

    (folder / "wrong.onnx").write_bytes(random_layer(3, 4, output_bits=99).model())
    assert run(make_session(layers["float"].model(), lumina_onnx.library_path()), x).shape == (100, 70)
    print(f"expected outputs: reference, torch and onnxruntime {onnxruntime.__version__}")


def write_body_case(path: Path, layer: Any, x: Any) -> None:
    """A layer without noise as a model with its function body, what it must give and how near."""
    import numpy as np
    import onnx

    from lumina_onnx.exporter import body, tolerance

    silent = {name: value for name, value in layer.attributes.items() if not name.startswith("noise_")}
    model = onnx.load_from_string(dataclasses.replace(layer, attributes=silent).model(x_shape=["batch", 65]))
    model.ir_version = 9
    next(entry for entry in model.opset_import if not entry.domain).version = 20
    model.functions.append(body.function(20))
    scale = layer.w_scale if silent.get("weight_bits") else None
    defaults = {"input_bits": 0, "weight_bits": 0, "output_bits": 8, "output_range": 0.0, "bias_stage": "analog"}
    settings = {**defaults, **silent}
    expected, distance = tolerance.allowed(x, weight=layer.w, bias=layer.b, weight_scale=scale, **settings)
    onnx.save(model, f"{path}.onnx")
    np.savez(f"{path}.body.npz", x=x, expected=expected, distance=distance)


def make_environment(folder: Path, version: str) -> Path:
    """A Python that has numpy and this onnxruntime, nothing else."""
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    runtime = "onnxruntime" if version == "newest" else f"onnxruntime=={version}"
    numpy = "numpy<2" if version.startswith(("1.17.", "1.18.")) else "numpy"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--quiet", "--no-deps", runtime, numpy], check=True)
    return python


def main() -> int:
    import lumina_onnx

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("versions", nargs="*", help='releases of onnxruntime, or "newest"')
    parser.add_argument(
        "--python", action="append", help="instead of releases: an interpreter with numpy and onnxruntime, repeatable"
    )
    parser.add_argument(
        "--library", action="append", help="file to register, repeatable; default: lumina_onnx.library_path()"
    )
    arguments = parser.parse_args()
    if bool(arguments.versions) == bool(arguments.python):
        parser.error("give releases of onnxruntime, or --python")
    libraries = [str(Path(library).resolve()) for library in arguments.library or [lumina_onnx.library_path()]]
    failed = []
    with tempfile.TemporaryDirectory() as temporary:
        cases = Path(temporary, "cases")
        cases.mkdir()
        write_cases(cases)
        for version in arguments.versions or arguments.python:
            python = version if arguments.python else make_environment(Path(temporary, version), version)
            command = [python, "-I", HERE / "version_matrix_child.py", cases, *libraries]
            child = subprocess.run(command, check=False, timeout=600)
            if child.returncode != 0:
                failed.append(version)
                print(f"onnxruntime {version}: FAILED (exit status {child.returncode})", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
