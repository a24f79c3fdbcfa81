"""Sessions beyond a single run: noise streams, threads, registration, shapes."""

from __future__ import annotations

import gc
import importlib
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import settings
from onnx import helper, numpy_helper
from op_model import Layer, assert_same_bits, make_session, random_layer, run

import lumina_kernel
import lumina_onnx

#: Of ONNX Runtime.
RELEASE = tuple(int(part) for part in onnxruntime.__version__.split(".")[:2])

NOISY = random_layer(
    17, 40, weight_bits=4, storage="uint8", input_bits=8, noise_relative=0.1, noise_additive=0.05, seed=5
)
X = np.random.default_rng(3).normal(size=(6, 40)).astype(np.float32)


def test_runs_differ_and_a_fresh_session_repeats_them(library: str) -> None:
    sequences = []
    for _ in range(2):
        session = make_session(NOISY.model(), library)
        sequences.append([run(session, X) for _ in range(4)])
    for stream, (first, again) in enumerate(zip(*sequences, strict=True)):
        assert_same_bits(first, NOISY.expected(X, stream))
        assert_same_bits(again, first)
    assert len({y.tobytes() for y in sequences[0]}) == 4


def test_an_empty_run_counts(library: str) -> None:
    session = make_session(NOISY.model(), library)
    assert run(session, X[:0]).shape == (0, 17)
    assert_same_bits(run(session, X), NOISY.expected(X, stream=1))


def test_a_refused_run_does_not_count(library: str) -> None:
    session = make_session(NOISY.model(x_shape=None), library)
    with pytest.raises(Exception, match="input X has shape"):
        run(session, X[:, 1:])
    assert_same_bits(run(session, X), NOISY.expected(X, stream=0))


def test_seeds_and_nodes_do_not_share_noise(library: str) -> None:
    layer = random_layer(8, 8, bias=False, output_bits=0, noise_additive=1.0, output_range=[1.0])
    x = np.zeros((4, 8), np.float32)
    draws = []
    for seed in (0, 1):
        seeded = Layer(layer.w, layer.w_scale, layer.b, {**layer.attributes, "seed": seed})
        draws.append(run(make_session(seeded.model(), library), x))
    assert (draws[0] != draws[1]).all()


@pytest.mark.parametrize("threads", [1, 3])
def test_eight_threads_share_a_session(library: str, threads: int) -> None:
    session, runs = make_session(NOISY.model(), library, threads=threads), 10
    start = threading.Barrier(8)

    def work(_: int) -> list[bytes]:
        start.wait()
        return [run(session, X).tobytes() for _ in range(runs)]

    with ThreadPoolExecutor(8) as pool:
        results = [y for part in pool.map(work, range(8)) for y in part]
    assert sorted(results) == sorted(NOISY.expected(X, stream).tobytes() for stream in range(8 * runs))


def expected_streams(layer: Layer, x: np.ndarray, runs: int) -> list[bytes]:
    """The outputs of `runs` runs. The reference is too slow, so the kernel computes them; every 250th is checked."""
    names = {row["name"] for row in lumina_kernel.schema() if row["place"] == "attribute"} - {"seed", "in_features"}
    params = lumina_kernel.Params(**{name: value for name, value in layer.attributes.items() if name in names})
    scale = layer.w_scale if params.weight_bits else None
    prepared = lumina_kernel.PreparedLayer(params, layer.w, layer.b, scale)
    seed = layer.attributes.get("seed", 0)
    streams = [prepared.forward(x, seed, stream) for stream in range(runs)]
    for stream in (*range(0, runs, 250), runs - 1):
        assert_same_bits(streams[stream], layer.expected(x, stream))
    return [y.tobytes() for y in streams]


def test_eight_sessions_of_many_runs_each(library: str) -> None:
    """Each thread runs its own session and its neighbour's in turn, so two threads are in each session at once."""
    runs = 20 * settings().max_examples
    shapes = [(1, 17, 40), (6, 17, 40), (3, 33, 65), (1, 100, 129), (2, 9, 7), (40, 16, 16), (1, 3, 1), (5, 64, 31)]
    noise = {"noise_relative": 0.1, "noise_shot": 0.05, "noise_additive": 0.02}
    bits = [(8, 8, 8), (8, 4, 0), (0, 0, 6), (8, 1, 8), (4, 2, 8), (12, 12, 12), (0, 8, 0), (6, 6, 6)]
    layers = [
        random_layer(n, k, weight_bits=w, input_bits=x, output_bits=y, seed=seed, **noise)
        for seed, ((_, n, k), (x, w, y)) in enumerate(zip(shapes, bits, strict=True))
    ]
    inputs = [np.random.default_rng(m).normal(size=(m, k)).astype(np.float32) for m, _, k in shapes]
    sessions = [make_session(layer.model(), library, threads=1 + index % 3) for index, layer in enumerate(layers)]
    start = threading.Barrier(8)

    def work(thread: int) -> dict[int, list[bytes]]:
        mine = thread, (thread + 1) % 8
        start.wait()
        results: dict[int, list[bytes]] = {index: [] for index in mine}
        for _ in range(runs // 2):
            for index in mine:
                results[index].append(run(sessions[index], inputs[index]).tobytes())
        return results

    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(work, range(8)))
    for index, (layer, x) in enumerate(zip(layers, inputs, strict=True)):
        expected = expected_streams(layer, x, runs)
        streams = {y: stream for stream, y in enumerate(expected)}
        assert len(streams) == runs
        taken = [[streams[y] for y in part[index]] for part in parts if index in part]
        # A thread's streams ascend; both threads together have had every stream once.
        assert all(part == sorted(part) for part in taken), f"session {index}"
        assert sorted(taken[0] + taken[1]) == list(range(runs)), f"session {index}"


def test_two_sessions_at_once(library: str) -> None:
    other = random_layer(9, 40, input_bits=6, noise_shot=0.1, seed=9, output_bits=5)
    layers, start = [NOISY, other], threading.Barrier(2)
    sessions = [make_session(layer.model(), library, threads=2) for layer in layers]

    def work(index: int) -> None:
        start.wait()
        for stream in range(20):
            assert_same_bits(run(sessions[index], X), layers[index].expected(X, stream))

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(work, index) for index in range(2)]:
            done.result()


def test_many_sessions_one_after_another(library: str) -> None:
    expected = NOISY.expected(X)
    for _ in range(30):
        session = make_session(NOISY.model(), library)
        assert_same_bits(run(session, X), expected)
        del session
        gc.collect()


def test_the_same_options_registered_again(library: str, c_library: str) -> None:
    options = onnxruntime.SessionOptions()
    for path in (library, library, c_library, lumina_onnx.library_path()):
        options.register_custom_ops_library(path)
    for _ in range(2):
        session = onnxruntime.InferenceSession(NOISY.model(), options)
        assert_same_bits(run(session, X), NOISY.expected(X))
        options.register_custom_ops_library(library)


def test_an_extension_without_a_file_is_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("lumina_kernel.lumina_kernel"), "__file__", None)
    with pytest.raises(ImportError, match="lumina_kernel was loaded from no file: allowed is one, which ONNX Runtime"):
        lumina_onnx.library_path()


def test_load_with_options_that_have_the_operator(library: str) -> None:
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(library)
    for _ in range(2):
        assert_same_bits(run(lumina_onnx.load(NOISY.model(), sess_options=options), X), NOISY.expected(X))


FLUSHED = """
import ctypes
import platform
import sys
from pathlib import Path
import numpy as np
import onnxruntime

library, model, folder, threads = sys.argv[1:]
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = int(threads)
options.add_session_config_entry("session.set_denormal_as_zero", "1")
if platform.machine() == "aarch64":
    # There ONNX Runtime ignores that entry. The threads that it starts inherit the register.
    fpcr_and_fpsr = (ctypes.c_uint * 2)(1 << 24, 0)
    assert ctypes.CDLL("libm.so.6").fesetenv(fpcr_and_fpsr) == 0
options.register_custom_ops_library(library)
session = onnxruntime.InferenceSession(Path(model).read_bytes(), options)
one, tiny = np.float32([1]), np.float32([1e-39])
assert (one * tiny == 0).all(), "this thread does not flush"
np.save(Path(folder, "y.npy"), session.run(None, {"X": np.load(Path(folder, "x.npy"))})[0])
assert (one * tiny == 0).all(), "the run changed the thread's floating-point environment"
"""


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("weight_bits", [0, 8])
def test_flush_to_zero_changes_nothing(library: str, threads: int, weight_bits: int, tmp_path: Path) -> None:
    storage = "int8" if weight_bits else "float32"
    layer = random_layer(70, 65, weight_bits=weight_bits, storage=storage, output_bits=0, noise_relative=0.1)
    tiny = np.float32(1e-39)
    assert layer.b is not None
    layer = Layer(layer.w, layer.w_scale, layer.b * tiny, layer.attributes)
    x = np.random.default_rng(0).normal(size=(80, 65)).astype(np.float32) * tiny
    model = tmp_path / "model.onnx"
    model.write_bytes(layer.model())
    np.save(tmp_path / "x.npy", x)
    # ONNX Runtime sets the main thread's modes when a process creates its first session, so a fresh process is needed.
    subprocess.run([sys.executable, "-c", FLUSHED, library, model, tmp_path, str(threads)], check=True)
    expected = layer.expected(x)
    assert (np.abs(expected[expected != 0]) < np.finfo(np.float32).tiny).any()
    assert_same_bits(np.load(tmp_path / "y.npy"), expected)


@pytest.mark.parametrize(
    ("x_shape", "expected"),
    [
        (["batch", 40], ["batch", 17]),
        (["batch", "features"], ["batch", 17]),
        (["batch", "time", 40], ["batch", "time", 17]),
        (["batch", None], ["batch", 17]),
        ([40], [17]),
        ([3, 40], [3, 17]),
    ],
)
def test_shape_inference(library: str, x_shape: list[int | str | None], expected: list[int | str]) -> None:
    session = make_session(NOISY.model(x_shape=x_shape), library)
    assert session.get_outputs()[0].shape == expected
    assert session.get_outputs()[0].type == "tensor(float)"


def test_a_dimension_without_a_name_is_not_taken_for_a_number(library: str) -> None:
    after = [helper.make_node("Shape", ["Y"], ["S"]), helper.make_node("Cast", ["S"], ["Z"], to=1)]
    session = make_session(NOISY.model(x_shape=[None, 40], after=after), library)
    assert run(session, X).tolist() == [6, 17]


def test_outputs_written_where_the_caller_wants_them(library: str) -> None:
    session = make_session(NOISY.model(), library)
    y = np.full((6, 17), np.nan, np.float32)
    binding = session.io_binding()
    binding.bind_cpu_input("X", X)
    binding.bind_output("Y", "cpu", 0, np.float32, y.shape, y.ctypes.data)
    session.run_with_iobinding(binding)
    assert_same_bits(y, NOISY.expected(X))


def test_output_over_its_own_input_is_refused(library: str) -> None:
    layer = random_layer(4, 4)
    buffer = np.ones((2, 4), np.float32)
    session = make_session(layer.model(), library)
    binding = session.io_binding()
    binding.bind_cpu_input("X", buffer)
    binding.bind_output("Y", "cpu", 0, np.float32, buffer.shape, buffer.ctypes.data)
    with pytest.raises(Exception, match="output Y: its memory overlaps that of input X"):
        session.run_with_iobinding(binding)


def test_memory_that_is_not_aligned(library: str, tmp_path: Path) -> None:
    layer = random_layer(6, 7, noise_relative=0.1)
    model = onnx.load_from_string(layer.model(x_shape=["batch", 7]))
    for tensor in model.graph.initializer:
        data, path = tensor.raw_data, tmp_path / f"{tensor.name}.bin"
        path.write_bytes(b"\0" + data)
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in {"location": path.name, "offset": "1", "length": str(len(data))}.items():
            tensor.external_data.add(key=key, value=value)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    session = make_session(str(tmp_path / "model.onnx"), library)
    x = np.random.default_rng(0).normal(size=(3, 7)).astype(np.float32)
    assert_same_bits(run(session, x), layer.expected(x))

    binding = session.io_binding()
    odd = np.frombuffer(b"\0" + x.tobytes(), np.float32, offset=1).reshape(3, 7)
    y = np.zeros((3, 6), np.float32)
    binding.bind_input("X", "cpu", 0, np.float32, odd.shape, odd.ctypes.data)
    binding.bind_output("Y", "cpu", 0, np.float32, y.shape, y.ctypes.data)
    session.run_with_iobinding(binding)
    assert_same_bits(y, layer.expected(x, stream=1))

    buffer = np.zeros(4 * y.size + 1, np.uint8)
    binding.bind_output("Y", "cpu", 0, np.float32, y.shape, buffer.ctypes.data + 1)
    with pytest.raises(Exception, match="output Y: its memory is not aligned to 4 bytes"):
        session.run_with_iobinding(binding)


def test_weights_from_a_constant_node(library: str) -> None:
    model = onnx.load_from_string(NOISY.model())
    for tensor in model.graph.initializer:
        model.graph.node.insert(0, helper.make_node("Constant", [], [tensor.name], value=tensor))
    del model.graph.initializer[:]
    assert_same_bits(run(make_session(model.SerializeToString(), library), X), NOISY.expected(X))


@pytest.mark.parametrize("inside", [True, False], ids=["weights in the branch", "weights outside"])
def test_a_node_in_a_branch(library: str, inside: bool) -> None:
    model = onnx.load_from_string(NOISY.model(x_shape=["batch", 40]))
    graph = model.graph
    (y,) = graph.output
    branch = helper.make_graph(list(graph.node), "branch", [], [y], list(graph.initializer) if inside else [])
    other = helper.make_graph([helper.make_node("Identity", ["X"], ["E"])], "else", [], [y])
    other.output[0].name = "E"
    choose = helper.make_node("If", ["C"], ["Y"], then_branch=branch, else_branch=other)
    initializers = [numpy_helper.from_array(np.array(True), "C")] + ([] if inside else list(graph.initializer))
    # The flag is an input, so that ONNX Runtime does not replace the If with its branch.
    flag = helper.make_tensor_value_info("C", onnx.TensorProto.BOOL, [])
    outer = helper.make_graph([choose], "outer", [*graph.input, flag], [y], initializers)
    model.graph.CopyFrom(outer)
    if not inside and RELEASE < (1, 29):
        with pytest.raises(Exception, match="input W is not constant: allowed is an initializer"):
            make_session(model.SerializeToString(), library)
        return
    assert_same_bits(run(make_session(model.SerializeToString(), library), X), NOISY.expected(X))


@pytest.mark.skipif(
    RELEASE < (1, 24),
    reason="ONNX Runtime up to 1.23 crashes when a custom operator that infers shapes has an empty input",
)
def test_a_bias_left_out_by_an_empty_name(library: str) -> None:
    layer = random_layer(3, 4, bias=False, noise_relative=0.1)
    model = onnx.load_from_string(layer.model())
    model.graph.node[0].input.append("")
    x = np.ones((2, 4), np.float32)
    assert_same_bits(run(make_session(model.SerializeToString(), library), x), layer.expected(x))


def test_identical_nodes_are_not_merged(library: str) -> None:
    layer = random_layer(4, 4, bias=False, output_bits=0, noise_additive=1.0, output_range=[1.0])
    twin = helper.make_node(
        "OpticalLinear", ["X", "W", "W_scale"], ["T"], name="fc2", domain="lumina", **layer.attributes
    )
    after = [twin, helper.make_node("Sub", ["Y", "T"], ["Z"])]
    session = make_session(layer.model(after=after, x_shape=["batch", 4]), library)
    x = np.zeros((2, 4), np.float32)
    # Both nodes have the default seed, so they draw the same noise; each kernel counts its own runs.
    for _ in range(3):
        assert not run(session, x).any()
