"""Runs in an environment that has the wheel and nothing else of ours: OUTPUT.npz MODEL...

Each model runs with the operator's library, and without it by its function body.
"""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import onnxruntime

import lumina_onnx

DTYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64}


def inputs(session: onnxruntime.InferenceSession) -> dict[str, np.ndarray]:
    """Inputs with the model's shapes, the same in every environment; a free dimension is 3."""
    generator = np.random.default_rng(0)
    feed = {}
    for entry in session.get_inputs():
        shape = [size if isinstance(size, int) else 3 for size in entry.shape]
        feed[entry.name] = generator.random(shape).astype(DTYPES[entry.type])
    return feed


def check_body(model: str, session: onnxruntime.InferenceSession, feed: dict[str, np.ndarray]) -> None:
    """Without the library outputs have the same mean and spread; their noise differs, so single runs differ."""
    runs = 500

    def statistics(session: onnxruntime.InferenceSession) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mean and variance of each output, and the variance's standard error, large where outliers dominate it."""
        outputs = np.stack([session.run(None, feed)[0] for _ in range(runs)]).astype(np.float64)
        squares = (outputs - outputs.mean(axis=0)) ** 2
        return outputs.mean(axis=0), squares.mean(axis=0), squares.std(axis=0) / np.sqrt(runs)

    mean, variance, error = statistics(session)
    size = np.abs(mean).max()
    level = onnxruntime.GraphOptimizationLevel
    for optimisation in (level.ORT_DISABLE_ALL, level.ORT_ENABLE_BASIC, level.ORT_ENABLE_ALL):
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = optimisation
        body_mean, body_variance, body_error = statistics(onnxruntime.InferenceSession(model, options))
        allowed = 7 * np.sqrt((variance + body_variance) / runs) + 1e-3 * size
        far = np.abs(body_mean - mean) > allowed
        assert not far.any(), f"{model}: without the library, {optimisation}: means {body_mean[far]} not {mean[far]}"
        allowed = 7 * np.hypot(error, body_error) + (5e-3 * size) ** 2
        wide = np.abs(body_variance - variance) > allowed
        spreads = f"{np.sqrt(body_variance[wide])} not {np.sqrt(variance[wide])}"
        assert not wide.any(), f"{model}: without the library, {optimisation}: spreads {spreads}"


def main(output: str, *models: str) -> None:
    """Checks the installation and stores the models' outputs."""
    checkout = Path(__file__).resolve().parents[2]
    for module in (lumina_onnx.__file__, lumina_onnx.library_path()):
        assert checkout not in Path(module).parents, f"{module} is the checkout's, not the wheel's"
    assert importlib.util.find_spec("torch") is None, "torch is installed"
    assert lumina_onnx.OpticalProfile.presets(), "the presets are not installed"
    results = {}
    for model in models:
        first, second = lumina_onnx.load(model), lumina_onnx.load(Path(model).read_bytes())
        feed = inputs(first)
        for index, (a, b) in enumerate(zip(first.run(None, feed), second.run(None, feed), strict=True)):
            assert a.size, f"{model}: output {index} is empty"
            assert np.isfinite(a).all(), f"{model}: output {index} is not finite"
            assert np.array_equal(a, b), f"{model}: a fresh session does not repeat output {index}"
            results[f"{Path(model).name}:{index}"] = a
        check_body(model, first, feed)
    np.savez(output, **results)
    versions = f"onnxruntime {onnxruntime.__version__}, numpy {np.__version__}"
    print(f"{versions}: {len(models)} models run, also without the library")


if __name__ == "__main__":
    main(*sys.argv[1:])
