"""Runs in an environment that has the wheel and nothing of ours beside it: OUTPUT.npz MODEL..."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import onnxruntime

import lumina_onnx

DTYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64}


def inputs(session: onnxruntime.InferenceSession) -> dict[str, np.ndarray]:
    """Inputs of the model's shapes, the same in every environment; 3 where a dimension is free."""
    generator = np.random.default_rng(0)
    feed = {}
    for entry in session.get_inputs():
        shape = [size if isinstance(size, int) else 3 for size in entry.shape]
        feed[entry.name] = generator.random(shape).astype(DTYPES[entry.type])
    return feed


def main(output: str, *models: str) -> None:
    """Checks the installation and keeps the models' outputs."""
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
    np.savez(output, **results)
    print(f"onnxruntime {onnxruntime.__version__}, numpy {np.__version__}: {len(models)} models run")


if __name__ == "__main__":
    main(*sys.argv[1:])
