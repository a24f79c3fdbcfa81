"""The half of version_matrix.py that runs in the small environment: numpy and onnxruntime alone."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime


def session(model: Any, library: Any, threads: int = 1) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.register_custom_ops_library(library)
    options.register_custom_ops_library(library)
    return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


LEVELS = ("ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_ALL")


def without_library(path: Path, level: Any, optimised: Any = None) -> Any:
    options = onnxruntime.SessionOptions()
    if optimised:
        options.optimized_model_filepath = str(optimised)
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run_bodies(folder: Path, results: Any) -> None:
    """Runs models without the library: keeps what noiseless ones give for the parent; noisy ones must be finite.

    Also keeps the model whose layers share weights, as optimised by ONNX Runtime.
    """
    cases = sorted(folder.glob("*.body.onnx"))
    assert cases, f"nothing to run without the library in {folder}"
    for path in cases:
        feeds = dict(np.load(path.with_suffix(".npz")))
        for level in LEVELS:
            outputs = without_library(path, level).run(None, feeds)
            np.savez(results / f"{path.name.removesuffix('.body.onnx')}.ran.{level}.npz", *outputs)
    without_library(folder / "shared.body.onnx", LEVELS[-1], results / "shared.optimised.onnx")
    for path in noisy_models(folder):
        for level in LEVELS:
            for y in without_library(path, level).run(None, inputs_of(path)):
                assert np.isfinite(y).all(), f"{path.stem}, {level}: not finite without the library"


def noisy_models(folder: Path) -> Any:
    paths = sorted(folder.glob("*.noisy.onnx"))
    assert paths, f"nothing with noise in {folder}"
    return paths


def inputs_of(path: Path) -> Any:
    return dict(np.load(path.with_name(f"{path.name.removesuffix('.noisy.onnx')}.inputs.npz")))


def check_noise(folder: Path, library: Any, count: Any) -> Any:
    """With noise, each model's first output has the same mean and spread with the library and without.

    Not checked with optimisation off, where ONNX Runtime gives all layers of a model the same noise.
    """
    paths = noisy_models(folder)
    for path in paths:
        name = path.name.removesuffix(".noisy.onnx")
        few = {key: array[:3] for key, array in inputs_of(path).items()}
        draws = []
        for made in (session(path, library), *(without_library(path, level) for level in LEVELS[1:])):
            draws.append(np.stack([made.run(None, few)[0].astype(np.float64).reshape(-1) for _ in range(count)]))
        ours, *bodies = draws
        mean, variance = ours.mean(0), ours.var(0)
        # Where the ADC hides the noise, nearly all draws are equal and say little about the spread.
        floor = 0.05 * variance.mean()
        for body in bodies:
            error = np.sqrt((np.maximum(body.var(0), floor) + np.maximum(variance, floor)) / count)
            apart = (np.abs(body.mean(0) - mean) / error).max()
            assert apart < 6, f"{name}: means with and without the library are {apart:.1f} errors apart"
            # Sigma depends on the magnitude of the result, so small and large results are compared separately.
            for part in np.array_split(np.argsort(np.abs(mean)), 3):
                spread = np.sqrt(body.var(0)[part].mean() / variance[part].mean())
                most = 1.08 if len(part) >= 50 else 1.3
                assert 1 / most < spread < most, (
                    f"{name}: without the library the spread is {spread:.2f} of that with it"
                )
    return len(paths)


def check(folder: Path, library: Any) -> Any:
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


def main() -> None:
    folder, results, count, *libraries = sys.argv[1:]
    draws = json.loads(count)
    if draws is not None:
        run_bodies(Path(folder), Path(results))
    for library in libraries:
        count = check(Path(folder), library)
        what = f"{count} models, the same bits ({Path(library).name})"
        print(f"onnxruntime {onnxruntime.__version__}: {what}", flush=True)
    if draws:
        count = check_noise(Path(folder), libraries[0], draws)
        what = f"{count} models with the same noise without the library"
        print(f"onnxruntime {onnxruntime.__version__}: {what}", flush=True)


main()
