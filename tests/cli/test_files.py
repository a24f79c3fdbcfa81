"""The command writes files whole or not at all: on a full disk, on a signal, through links and into pipes."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lumina_onnx import _files

OLD = b"what was there before"

# Limits the size of every file that this process writes, which simulates a full disk.
FULL_DISK = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({0}, {0}))"
# Replaces the function through which everything is written: for the last argument it reports that it is halfway, and
# stays there.
HALF_WAY = """
import contextlib, sys, time
import lumina_onnx._files as files
whole = files.replacing

@contextlib.contextmanager
def half(target):
    with whole(target) as temporary:
        if str(target) == sys.argv[-1]:
            temporary.write_bytes(b"half")
            print("half way", flush=True)
            time.sleep(60)
        yield temporary

files.replacing = half
"""


@pytest.fixture
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model [batch, 60] -> [batch, 60] of one MatMul."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 60]) for name in "xy")
    weight = np.random.default_rng(0).normal(size=(60, 60)).astype(np.float32)
    node = helper.make_node("MatMul", ["x", "a"], ["y"], name="only")
    graph = helper.make_graph([node], "ready", [x], [y], [numpy_helper.from_array(weight, "a")])
    path = tmp_path_factory.mktemp("ready") / "ready.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def commands(model: Path, ready: Path, folder: Path) -> dict[str, list[str]]:
    """Each way to write a file, with the file as its last argument."""
    return {
        "npz": ["run", str(model), "--batch", "400", "--output", str(folder / "y.npz")],
        "npy": ["run", str(model), "--batch", "400", "--output", str(folder / "y.npy")],
        "png": ["bench", str(model), "--threads", "1", "--rounds", "1", "--plot", str(folder / "y.png")],
        "onnx": ["convert", str(ready), "-p", "edge", str(folder / "y.onnx")],
    }


WAYS = ["npz", "npy", "png", "onnx"]


def start(before: str, arguments: list[str]) -> subprocess.Popen[str]:
    # As from a terminal: in the background or under nohup, the tests may have inherited ignored signals.
    heard = "import signal\nfor each in (signal.SIGINT, signal.SIGHUP):\n    signal.signal(each, signal.SIG_DFL)\n"
    heard += "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    script = f"{heard}{before}\nfrom lumina_onnx.cli import main\nmain()\n"
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(("way", "old"), [*((way, True) for way in WAYS), ("npz", False)])
def test_a_full_disk_leaves_what_was_there_and_says_so_in_a_line(
    model: Any, ready: Any, tmp_path: Path, way: Any, old: Any
) -> None:
    arguments = commands(model, ready, tmp_path)[way]
    target = Path(arguments[-1])
    if old:
        target.write_bytes(OLD)
    # The float32 model that bench makes for itself must fit.
    with start(FULL_DISK.format(20_000 if way == "png" else 1_000), arguments) as child:
        out, err = child.communicate(timeout=60)
    assert child.returncode == 1
    assert out == ""
    assert err.splitlines()[-1] == f"error: path = '{target}': cannot be written (File too large)"
    assert "Traceback" not in err
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [OLD] * old


@pytest.mark.parametrize(
    ("number", "way"), [("SIGTERM", way) for way in ("npz", "png", "onnx")] + [("SIGINT", "npz"), ("SIGHUP", "npz")]
)
def test_a_signal_leaves_what_was_there_and_nothing_else(
    model: Any, ready: Any, tmp_path: Path, number: Any, way: Any
) -> None:
    arguments = commands(model, ready, tmp_path)[way]
    target = Path(arguments[-1])
    target.write_bytes(OLD)
    with start(HALF_WAY, arguments) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "half way\n"
        assert len(list(tmp_path.iterdir())) == 2
        child.send_signal(getattr(signal, number))
        _, err = child.communicate(timeout=60)
    # A shell shows 128 plus the signal's number for both.
    assert child.returncode == (130 if number == "SIGINT" else -getattr(signal, number))
    assert "Traceback" not in err
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [OLD]


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    script = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + (
        "from lumina_onnx.cli.process import ended_by_signals\n"
        "with ended_by_signals():\n    signal.raise_signal(signal.SIGHUP)\n    print('goes on')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "goes on\n"


def test_a_second_signal_does_not_wait() -> None:
    script = (
        "import signal\nfrom lumina_onnx.cli.process import ended_by_signals\n"
        "with ended_by_signals():\n    try:\n        signal.raise_signal(signal.SIGTERM)\n"
        "    finally:\n        signal.raise_signal(signal.SIGTERM)\n        print('undone')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGTERM, "", "")


@pytest.mark.parametrize(("way", "umask"), [("npz", 0o022), ("npz", 0o077), ("png", 0o077), ("onnx", 0o022)])
def test_permissions_are_the_umasks_or_those_of_the_old_file(
    lumina: Any, model: Any, ready: Any, tmp_path: Path, way: str, umask: int
) -> None:
    arguments = commands(model, ready, tmp_path)[way]
    target = Path(arguments[-1])
    before = os.umask(umask)
    try:
        for mode in (0o666 & ~umask, 0o640):
            if target.exists():
                target.chmod(mode)
            assert lumina(*arguments).exit_code == 0
            assert stat.S_IMODE(target.stat().st_mode) == mode
    finally:
        os.umask(before)
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("dangling", [False, True])
@pytest.mark.parametrize("way", ["npy", "onnx"])
def test_of_a_link_the_file_that_it_points_to_is_written(
    lumina: Any, model: Any, ready: Any, tmp_path: Path, way: str, dangling: bool
) -> None:
    there, here = tmp_path / "there", tmp_path / "here"
    there.mkdir()
    here.mkdir()
    arguments = commands(model, ready, here)[way]
    target, file = Path(arguments[-1]), there / "file.bin"
    target.symlink_to(file)
    if not dangling:
        file.write_bytes(OLD)
    assert lumina(*arguments).exit_code == 0
    assert target.is_symlink()
    assert OLD not in file.read_bytes()
    assert file.stat().st_size > 1000
    assert (list(there.iterdir()), list(here.iterdir())) == ([file], [target])


@pytest.mark.parametrize("way", ["npz", "npy", "png"])
def test_into_a_pipe(lumina: Any, model: Any, ready: Any, tmp_path: Path, way: str) -> None:
    arguments = commands(model, ready, tmp_path)[way]
    target, read = Path(arguments[-1]), []
    os.mkfifo(target)
    reader = threading.Thread(target=lambda: read.append(target.read_bytes()))
    reader.start()
    result = lumina(*arguments)
    reader.join(60)
    assert result.exit_code == 0, result.output
    assert stat.S_ISFIFO(target.stat().st_mode)
    copy = tmp_path / f"copy.{way}"
    copy.write_bytes(read[0])
    if way == "png":
        assert read[0].startswith(b"\x89PNG")
    elif way == "npy":
        assert np.load(copy).shape == (400, 3)
    else:
        with np.load(copy) as content:
            assert content["output"].shape == (400, 3)


def test_a_model_goes_into_no_pipe(lumina: Any, model: Any, ready: Any, tmp_path: Path) -> None:
    arguments = commands(model, ready, tmp_path)["onnx"]
    os.mkfifo(arguments[-1])
    result = lumina(*arguments)
    assert result.exit_code == 1
    assert f"path = '{arguments[-1]}' is a pipe or a device; allowed is the name of a file, *.onnx" in result.stderr


# The helper by itself, which every way of writing uses.


def test_until_the_end_the_old_file_is_there(tmp_path: Path) -> None:
    target = tmp_path / ("n" * 250 + ".txt")
    target.write_text("old")
    with _files.replacing(target) as temporary:
        assert temporary.name == target.name
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_whatever_is_raised_leaves_nothing(tmp_path: Path, error: Any) -> None:
    def write() -> None:
        with _files.replacing(tmp_path / "y.txt") as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        write()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("make", "kind", "why"),
    [
        (lambda folder: folder, IsADirectoryError, "Is a directory"),
        (lambda folder: folder / "no" / "y.txt", FileNotFoundError, "No such file or directory"),
        (lambda folder: _loop(folder / "loop.txt"), OSError, "Too many levels of symbolic links"),
        (lambda folder: _file(folder / "file") / "y.txt", NotADirectoryError, "Not a directory"),
    ],
    ids=["folder", "no folder", "loop", "file"],
)
def test_what_cannot_be_written_is_named(
    tmp_path: Path, make: Callable[[Path], Path], kind: type[OSError], why: str
) -> None:
    target = make(tmp_path)
    with pytest.raises(kind) as caught, _files.replacing(target) as temporary:
        temporary.write_text("new")
    assert str(caught.value) == f"path = '{target}': cannot be written ({why})"
    assert caught.value.errno is not None


def test_a_protected_file_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = _file(tmp_path / "y.txt")
    target.chmod(0o444)
    if os.geteuid() == 0:  # root may write to any file
        monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(PermissionError, match=r"y\.txt': cannot be written \(Permission denied\)"):
        _files.replacing(target).__enter__()
    assert list(tmp_path.iterdir()) == [target]
    assert target.read_bytes() == OLD


def _loop(path: Path) -> Path:
    path.symlink_to(path)
    return path


def _file(path: Path) -> Path:
    path.write_bytes(OLD)
    return path
