"""The half of version_matrix.py that runs in the small environment: numpy and onnxruntime alone."""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime


def session(model, library, threads=1):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.register_custom_ops_library(library)
    options.register_custom_ops_library(library)
    return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def check_bodies(folder):
    """Without the library: small models within their body's tolerance, exported ones run."""
    level = onnxruntime.GraphOptimizationLevel
    cases = sorted(path.with_suffix("").with_suffix("") for path in folder.glob("*.body.npz"))
    assert cases, f"nothing to run without the library in {folder}"
    exported = [path for path in folder.glob("*.onnx") if b"op_version" in path.read_bytes()]
    for optimisation in (level.ORT_DISABLE_ALL, level.ORT_ENABLE_BASIC, level.ORT_ENABLE_ALL):
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = optimisation
        options.log_severity_level = 4
        for path in cases:
            case = np.load(f"{path}.body.npz")
            (y,) = onnxruntime.InferenceSession(f"{path}.onnx", options).run(None, {"X": case["x"]})
            near = np.abs(y.astype(np.float64) - case["expected"]) <= case["distance"]
            assert near.all(), f"{path.stem}, {optimisation}: {(~near).sum()} results beyond the body's tolerance"
        for path in set(exported) - {path.with_suffix(".onnx") for path in cases}:
            feeds = dict(np.load(path.with_suffix(".inputs.npz")))
            for y in onnxruntime.InferenceSession(str(path), options).run(None, feeds):
                assert np.isfinite(y).all(), f"{path.stem}: not finite without the library"
    return len(cases), len(exported) - len(cases)


def check(folder, library):
    cases = sorted(folder.glob("*.json"))
    assert cases, f"nothing to run in {folder}"
    for case in cases:
        expected = json.loads(case.read_text())
        feeds = dict(np.load(case.with_suffix(".inputs.npz")))
        outputs = np.load(case.with_suffix(".outputs.npz"))
        for threads in (1, 3):
            made = session(case.with_suffix(".onnx"), library, threads)
            shape = made.get_outputs()[0].shape
            assert shape == expected["shape"], f"{case.stem}: shape {shape} instead of {expected['shape']}"
            for run in range(expected["runs"]):
                for index, y in enumerate(made.run(None, feeds)):
                    right = outputs[f"{run}_{index}"]
                    tolerance = expected["tolerance"]
                    same = np.allclose(y, right, 0, tolerance) if tolerance else y.tobytes() == right.tobytes()
                    assert same, f"{case.stem}: output {index} of run {run} on {threads} threads differs"
    try:
        session(folder / "wrong.onnx", library)
    except Exception as error:
        refused = str(error)
    else:
        refused = "nothing"
    message = 'lumina::OpticalLinear node "fc1": attribute output_bits = 99: allowed is 0 (no ADC), 2..16'
    assert message in refused, f"a wrong attribute: {refused}"
    return len(cases)


def main():
    folder, *libraries = sys.argv[1:]
    near, ran = check_bodies(Path(folder))
    what = f"without the library {near} models within tolerance, {ran} others run"
    print(f"onnxruntime {onnxruntime.__version__}: {what}", flush=True)
    for library in libraries:
        count = check(Path(folder), library)
        what = f"{count} models, the same bits ({Path(library).name})"
        print(f"onnxruntime {onnxruntime.__version__}: {what}", flush=True)


main()
