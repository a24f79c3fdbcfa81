"""Runs the operator in other releases of ONNX Runtime, each in an environment of its own.

    python tests/runtime/version_matrix.py 1.17.3 1.24.4 newest
    python tests/runtime/version_matrix.py --python OTHER/bin/python --library liblumina_ort.so

Small models from this folder's tests must give the reference's bits, and exported models torch's; models/*.onnx must
give the bits that they give in this environment's ONNX Runtime. Without the library, models run by their function body
at each level of optimisation: with the noise off, each layer must be within the body's tolerance; with it on, outputs
must have the same mean and spread as with the library. Weights that layers share must be unpacked once. Releases run
side by side, one on each core. Needs a network (or pip settings for a mirror) and, for 1.17, Python 3.12 or older.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import venv
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from lumina_onnx.exporter import body, nodes, passes
from lumina_onnx.exporter.comparing import compare_body
from lumina_onnx.exporter.passes.silence_noise import SilenceNoise
from lumina_onnx.exporter.watching import Watched

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.append(str(ROOT / "tests" / "exporter"))
RUNS = 3
OPSET = 20

Arrays = dict[str, NDArray[Any]]


def write_cases(folder: Path) -> None:
    """Models, inputs and expected outputs, one run after another, for `version_matrix_child.py`."""
    import onnxruntime
    from exported_models import exported_models
    from op_model import few_rows_layer, make_session, random_layer, run

    import lumina_onnx

    def write(
        name: str,
        model: bytes,
        feeds: Arrays,
        outputs: list[list[Any]],
        shape: list[Any],
        tolerance: float = 0.0,
    ) -> None:
        # Some models carry a body and some do not; here the library's kernel runs both kinds.
        (folder / f"{name}.onnx").write_bytes(model)
        proto = onnx.load_from_string(model)
        if not proto.functions:
            proto.ir_version = 9
            next(entry for entry in proto.opset_import if not entry.domain).version = OPSET
            proto.functions.append(body.function(OPSET))
        noisy = any(node.is_noisy for node in nodes.optical_nodes(ir.from_proto(proto)))
        if noisy:
            (folder / f"{name}.noisy.onnx").write_bytes(proto.SerializeToString())
        write_body_case(folder / name, proto, feeds)
        np.savez(folder / f"{name}.inputs.npz", **feeds)  # type: ignore[arg-type]
        runs = {f"{run}_{index}": y for run, ys in enumerate(outputs) for index, y in enumerate(ys)}
        np.savez(folder / f"{name}.outputs.npz", **runs)
        (folder / f"{name}.json").write_text(json.dumps({"runs": len(outputs), "shape": shape, "tolerance": tolerance}))

    noise = {"noise_relative": 0.05, "noise_additive": 0.02, "noise_shot": 0.05}
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
    # A full scale for each output, a constant of 280 bytes, with each law.
    each = {"input_bits": 8, "output_range": [float(20 + n) for n in range(70)]}
    layers |= {
        "each_all": random_layer(70, 65, seed=6, weight_bits=4, storage="uint8", input_range=4.0, **each, **noise),
        "each_relative": random_layer(70, 65, seed=7, weight_bits=8, storage="int8", **each, noise_relative=0.1),
        "each_additive": random_layer(70, 65, bias_stage="digital", **each, noise_additive=0.05),
        "each_shot": random_layer(70, 65, seed=9, weight_bits=1, storage="uint8", **each, noise_shot=0.2),
    }
    x = np.random.default_rng(0).normal(size=(100, 65)).astype(np.float32)
    for name, layer in layers.items():
        outputs = [[layer.expected(x, stream)] for stream in range(RUNS)]
        model = layer.model(x_shape=["batch", 65])
        write(name, model, {"X": x}, outputs, ["batch", 70])
        if name == "each_all":
            write("nested", nested(model), {"X": x}, outputs, ["batch", 70])
    sharing = [
        replace(layer, attributes=layer.attributes | others)
        for layer in (layers["float"], layers["packed4"])
        for others in ({"noise_shot": 0.0}, {"output_range": [30.0], "bias_stage": "digital"}, {"output_bits": 5})
    ]
    outputs = [[layer.expected(x, stream) for layer in sharing] for stream in range(RUNS)]
    write("shared", shared(sharing), {"X": x}, outputs, ["batch", 70])

    large = few_rows_layer(4)
    row = np.random.default_rng(2).normal(size=(1, 1030)).astype(np.float32)
    outputs = [[large.expected(row, stream)] for stream in range(RUNS)]
    write("row", large.model(x_shape=["batch", 1030]), {"X": row}, outputs, ["batch", len(large.w)])

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


def nested(content: bytes) -> bytes:
    """A model with its layer moved into an `if` in a loop that runs once.

    The weights move there too: ONNX Runtime before 1.29 shows a custom operator no constants of the enclosing graphs.
    """
    model = onnx.load_from_string(content)
    graph = model.graph
    ((layer,), (x,), (y,)) = graph.node, graph.input, graph.output
    layer.output[:] = ["of_layer"]
    result = partial(helper.make_tensor_value_info, elem_type=TensorProto.FLOAT, shape=["batch", 70])
    zero = numpy_helper.from_array(np.float32(0), "zero")
    other = helper.make_node("Expand", ["zero", "shape"], ["other"])
    shape = numpy_helper.from_array(np.array([1, 70]), "shape")
    choice = helper.make_node(
        "If",
        ["positive"],
        ["chosen"],
        then_branch=helper.make_graph([layer], "then", [], [result(layer.output[0])], graph.initializer),
        else_branch=helper.make_graph([other], "else", [], [result("other")], [zero, shape]),
    )
    body = helper.make_graph(
        [
            helper.make_node("ReduceMax", [x.name], ["largest"], keepdims=0),
            helper.make_node("Greater", ["largest", "least"], ["positive"]),
            choice,
            helper.make_node("Identity", ["going"], ["still_going"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("count", TensorProto.INT64, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("still_going", TensorProto.BOOL, []), result("chosen")],
        [numpy_helper.from_array(np.float32(0), "least")],
    )
    loop = helper.make_node("Loop", ["once", ""], ["results"], body=body)
    squeeze = helper.make_node("Squeeze", ["results", "first"], [y.name])
    constants = [numpy_helper.from_array(np.array(value), name) for name, value in (("once", 1), ("first", [0]))]
    model.graph.CopyFrom(helper.make_graph([loop, squeeze], "graph", [x], [y], constants))
    return model.SerializeToString()


def shared(layers: list[Any]) -> bytes:
    """One node for each layer on the same X; nodes with the same W read the same initializers."""
    model = onnx.load_from_string(layers[0].model(x_shape=["batch", 65]))
    names = {id(layer.w): f"{index}." for index, layer in enumerate(layers)}
    for part in (model.graph.node, model.graph.initializer, model.graph.output):
        del part[:]
    for index, layer in enumerate(layers):
        part = onnx.load_from_string(layer.model(name=f"fc{index}")).graph
        prefix = names[id(layer.w)]
        (node,) = part.node
        node.input[1:] = [prefix + name for name in node.input[1:]]
        node.output[:] = [f"Y{index}"]
        model.graph.node.append(node)
        model.graph.output.append(helper.make_tensor_value_info(f"Y{index}", TensorProto.FLOAT, None))
        if prefix == f"{index}.":
            for tensor in part.initializer:
                tensor.name = prefix + tensor.name
                model.graph.initializer.append(tensor)
    return model.SerializeToString()


def write_body_case(path: Path, model: onnx.ModelProto, feeds: Arrays) -> None:
    """A model whose layers show what they get and give, without noise."""
    quiet, _ = passes.run(ir.from_proto(model), SilenceNoise())
    layers = nodes.optical_nodes(quiet)
    assert len(layers) == 1 or not any(node.nested for node in layers), f"{path.name}: its one layer is its output"
    watched = Watched(quiet, [number for number, node in enumerate(layers) if not node.nested])
    onnx.save(ir.to_proto(watched.model), f"{path}.body.onnx")
    np.savez(f"{path}.body.npz", **feeds)  # type: ignore[arg-type]


def check_bodies(cases: Path, results: Path) -> int:
    """Checks that layers are within tolerance in the runs that `version_matrix_child.py` kept; returns their number."""
    count = 0
    for path in sorted(cases.glob("*.body.onnx")):
        model = ir.load(path)
        layers, names = nodes.optical_nodes(model), [value.name for value in model.graph.outputs]
        shown = {node.outputs[0].name: node.inputs[0].name for node in model.graph if node.op_type == "Identity"}  # type: ignore[union-attr]
        runs = sorted(results.glob(f"{path.name.removesuffix('.body.onnx')}.ran.*.npz"))
        assert runs, f"{path.name} did not run"
        for run in runs:
            outputs = np.load(run)
            values = dict(np.load(path.with_suffix(".npz")))
            values |= {shown.get(name, name): outputs[f"arr_{index}"] for index, name in enumerate(names)}
            for layer in layers:
                x, y = layer.node.inputs[0].name, layer.node.outputs[0].name  # type: ignore[union-attr]
                values.setdefault(y, outputs["arr_0"])
                row = compare_body(layer, [(values[x], values[y])])
                assert row.ok, f"{run.name}: {layer.name} is {row.max_difference} away from the reference"
                count += 1
    return count


def check_sharing(cases: Path, results: Path) -> None:
    """Of each W that layers share, the session held one matrix."""
    layers = nodes.optical_nodes(ir.load(cases / "shared.onnx"))
    weights = {layer.weight for layer in layers}
    (shape,) = {(layer.in_features, layer.out_features) for layer in layers}
    assert len(weights) < len(layers)
    held = onnx.load(results / "shared.optimised.onnx").graph.initializer
    count = sum(tuple(tensor.dims) == shape for tensor in held)
    assert count == len(weights), f"{len(weights)} weights that {len(layers)} layers share are held as {count} matrices"


def make_environment(folder: Path, version: str) -> Path:
    """Creates an environment with numpy and this onnxruntime alone; returns its Python."""
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    runtime = "onnxruntime" if version == "newest" else f"onnxruntime=={version}"
    numpy = "numpy<2" if version.startswith(("1.17.", "1.18.")) else "numpy"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--quiet", "--no-deps", runtime, numpy], check=True)
    return python


def run_release(
    cases: Path, libraries: list[str], draws: int | None, version: str, python: str | Path, results: Path
) -> bool:
    """Runs all checks in one release, and prints and returns whether they passed.

    Without a number of draws nothing runs without the library.
    """
    results.mkdir()
    command = [python, "-I", HERE / "version_matrix_child.py", cases, results, json.dumps(draws), *libraries]
    child = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=600
    )
    verdict = f"FAILED (exit status {child.returncode})"
    if child.returncode == 0 and draws is None:
        verdict = "passed, the library only"
    elif child.returncode == 0:
        try:
            verdict = f"{check_bodies(cases, results)} layers within the body's tolerance"
            check_sharing(cases, results)
        except AssertionError as error:
            verdict = f"FAILED ({error})"
    print(f"{child.stdout}onnxruntime {version}: {verdict}", flush=True)
    return not verdict.startswith("FAILED")


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
    parser.add_argument(
        "--draws", type=int, default=200, help="runs of each model for the statistics of its noise; 0 skips them"
    )
    parser.add_argument(
        "--library-only", action="store_true", help="run nothing without the library: the bodies take most of the time"
    )
    arguments = parser.parse_args()
    if 0 < arguments.draws < 100:
        parser.error("--draws: allowed is 0, or 100 and more")
    if bool(arguments.versions) == bool(arguments.python):
        parser.error("give releases of onnxruntime, or --python")
    libraries = [str(Path(library).resolve()) for library in arguments.library or [lumina_onnx.library_path()]]
    draws = None if arguments.library_only else arguments.draws
    with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor(os.cpu_count()) as pool:
        # Environments are created while the models are written.
        environments = [Path(temporary, f"onnxruntime-{version}") for version in arguments.versions]
        pythons = pool.map(make_environment, environments, arguments.versions)
        cases = Path(temporary, "cases")
        cases.mkdir()
        write_cases(cases)
        releases = dict(zip(arguments.versions or arguments.python, arguments.python or pythons, strict=True))
        results = [Path(temporary, f"results-{index}") for index in range(len(releases))]
        check = partial(run_release, cases, libraries, draws)
        passed = list(pool.map(check, releases, releases.values(), results))
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
