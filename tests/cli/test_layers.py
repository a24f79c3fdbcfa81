"""`lumina bench --layers`, the machine's facts, and the predictions for boards. No time is asserted."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lumina_kernel
import lumina_onnx
from lumina_onnx import reference
from lumina_onnx.cli import boards, layers, machine, timing


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "BURST", 1e-3)
    monkeypatch.setattr(layers, "SIZES", (32, 48))
    monkeypatch.setattr(machine, "READ_BYTES", 2**16)


def pasted(output: str) -> dict[str, Any]:
    """The block in an output."""
    _, _, rest = output.partition(layers.BEGIN)
    inner, end, _ = rest.partition(layers.END)
    assert end
    return json.loads(inner)


@pytest.mark.usefixtures("small")
def test_a_row_for_each_size_width_batch_and_number_of_threads(lumina: Any) -> None:
    result = lumina("bench", "--layers", "--threads", 2, "--threads", 1, "--rounds", 1, "--json")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    places = [(row["size"], row["threads"], row["batch"], row["bits"]) for row in facts["rows"]]
    assert places == list(itertools.product((32, 48), (1, 2), (1, 32), (8, 4, 2, 1)))
    assert all(0 < row["p50_us"] <= row["p99_us"] for row in facts["rows"])
    assert facts["isa"] == lumina_kernel.isa()
    assert facts["versions"]["lumina"] == lumina_onnx.__version__
    assert set(facts["read_gb_per_s"]) == {"1", "2"}
    assert "measure" in result.stderr


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("columns", [80, 160])
def test_the_block_holds_all_figures_in_short_lines(lumina: Any, monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    known = {"board": "Raspberry Pi 5 Model B Rev 1.0", "clock_mhz": 2000}
    monkeypatch.setattr(machine, "facts", lambda: real() | known)
    monkeypatch.setattr(lumina_kernel, "isa", lambda: "neon_dotprod")
    result = lumina("bench", "--layers", "--batch", 3, "--threads", 1, "--rounds", 1)
    assert result.exit_code == 0, result.output
    assert "…" not in result.stdout
    facts = pasted(result.stdout)
    assert facts["columns"] == list(layers.COLUMNS)
    assert [row[:4] for row in facts["rows"]] == [[size, bits, 3, 1] for size in (32, 48) for bits in (8, 4, 2, 1)]
    assert facts["predicted_for"] == "Raspberry Pi 5"
    for size, bits, batch, threads, *_, compute, memory in facts["rows"]:
        (board,) = (board for board in boards.BOARDS if board.name == "Raspberry Pi 5")
        expected = boards.predict(board, bits, batch, size, size, threads, hertz=2e9)
        assert compute == pytest.approx(1e6 * expected.compute, abs=0.051)
        assert memory == pytest.approx(1e6 * expected.memory, abs=0.051)
    text = " ".join(result.stdout.split())
    assert "predicted for Raspberry Pi 5 by llvm-mca, not measured" in text
    head = next(line for line in result.stdout.splitlines() if "threads" in line and "size" in line)
    assert "predicted" in head
    block = result.stdout[result.stdout.index(layers.BEGIN) :]
    assert max(map(len, block.splitlines())) < 240


real = machine.facts


@pytest.mark.usefixtures("small")
def test_nothing_is_predicted_for_an_unknown_board_or_another_tier(
    lumina: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for board, isa in ((None, "neon"), ("Raspberry Pi 4 Model B", "portable")):
        monkeypatch.setattr(machine, "facts", lambda board=board: {**real(), "board": board, "processor": "x"})
        monkeypatch.setattr(lumina_kernel, "isa", lambda isa=isa: isa)
        result = lumina("bench", "--layers", "--batch", 1, "--threads", 1, "--rounds", 1)
        assert result.exit_code == 0, result.output
        facts = pasted(result.stdout)
        assert facts["predicted_for"] is None
        assert {each for row in facts["rows"] for each in row[-2:]} == {None}
        assert "predicted" not in result.stdout[: result.stdout.index(layers.BEGIN)]


@pytest.mark.parametrize("bits", layers.BITS)
def test_the_layers_are_what_they_say(tmp_path: Path, bits: int) -> None:
    path = layers.write_layer(tmp_path, 33, bits)
    assert path.stat().st_size < 33 * 33 * bits / 8 + 33 * 8 + 1000
    x = np.random.default_rng(0).standard_normal((2, 33), np.float32)
    (got,) = lumina_onnx.load(path).run(None, {"X": x})
    largest = max(2 ** (bits - 1) - 1, 1)
    codes = np.random.default_rng(bits).integers(-largest, largest + 1, (33, 33), np.int8)
    if bits == 1:
        codes[codes == 0] = 1
    scale = np.ones(33, np.float32)
    expected = reference.optical_linear(
        x, codes, input_bits=8, weight_bits=bits, output_bits=8, weight_scale=scale, stream=0
    )
    assert np.array_equal(np.asarray(got), expected)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give a .onnx file, or --layers"),
        (["--layers", "{model}"], "cannot be given with --layers"),
        (["--layers", "--input", "{model}"], "cannot be given with --layers"),
        (["--layers", "--plot", "x.png"], "'x.png' cannot be given with --layers"),
    ],
)
def test_wrong_usage(lumina: Any, model: Any, arguments: list[str], words: str) -> None:
    result = lumina("bench", *(argument.format(model=model) for argument in arguments))
    assert result.exit_code == 2
    assert words in " ".join(result.stderr.replace("│", " ").split())


def test_layers_need_onnx_and_no_torch(tmp_path: Path) -> None:
    script = (
        "import sys\nfor name in {hidden}: sys.modules[name] = None\n"
        "from lumina_onnx.cli import layers, machine, main, timing\n"
        "timing.BURST, layers.SIZES, machine.READ_BYTES = 1e-3, (32,), 2**16\n"
        "sys.argv = ['lumina', 'bench', '--layers', '--threads', '1', '--rounds', '1']\nmain()\n"
    )

    def run(*hidden: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", script.format(hidden=hidden)]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)

    done = run("torch", "onnxscript", "onnx_ir", "matplotlib")
    assert done.returncode == 0, done.stderr
    assert len(pasted(done.stdout)["rows"]) == 8
    done = run("torch", "onnx")
    assert done.returncode == 1
    assert "--layers writes models with the Python package onnx, which is missing" in done.stderr
    assert list(tmp_path.iterdir()) == []


def pi(root: Path) -> Path:
    """Files as a Raspberry Pi 4 has them."""
    core = "processor\t: {}\nBogoMIPS\t: 108.00\nCPU implementer\t: 0x41\nCPU part\t: 0xd08\nCPU revision\t: 3\n\n"
    end = "Hardware\t: BCM2835\nSerial\t\t: 10000000abcdef01\nModel\t\t: Raspberry Pi 4 Model B Rev 1.4\n"
    for name, content in {
        "proc/cpuinfo": "".join(core.format(number) for number in range(4)) + end,
        "proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.4\0",
        "proc/meminfo": "MemTotal:        3884064 kB\nMemFree:         1 kB\n",
        "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq": "1800000\n",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "600000\n",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "ondemand\n",
        "sys/class/thermal/thermal_zone0/temp": "51121\n",
        "sys/devices/platform/soc/soc:firmware/get_throttled": "50000\n",
    }.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    return root


def test_the_facts_of_a_board(tmp_path: Path) -> None:
    facts = machine.facts(pi(tmp_path))
    wanted = {
        "board": "Raspberry Pi 4 Model B Rev 1.4",
        "processor": "Cortex-A72",
        "memory_mib": 3793,
        "clock_mhz": 1800,
        "governor": "ondemand",
    }
    assert wanted.items() <= facts.items()
    assert machine.state(tmp_path) == {"clock_mhz": 600, "celsius": 51.121, "throttled": "50000"}
    assert "abcdef01" not in json.dumps(facts)  # the serial number


def test_facts_that_cannot_be_read(tmp_path: Path) -> None:
    facts = machine.facts(tmp_path)
    assert {facts[name] for name in ("board", "memory_mib", "clock_mhz", "governor")} == {None}
    assert set(machine.state(tmp_path).values()) == {None}
    assert facts["processor"]


def test_processors_of_several_kinds_of_cores(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    parts = ("0xd05", "0xd05", "0xd0b", "0xfff")
    entry = "processor : {}\nmodel name : some\nCPU implementer : 0x41\nCPU part : {}\n"
    entries = [entry.format(number, part) for number, part in enumerate(parts)]
    (tmp_path / "proc/cpuinfo").write_text("\n".join(entries), encoding="utf-8")
    assert machine.processor(tmp_path) == "Cortex-A55 + Cortex-A76 + some"


@pytest.mark.parametrize(
    ("board", "processor", "name"),
    [
        (None, "Cortex-A72", "Raspberry Pi 4"),
        ("Raspberry Pi 5 Model B Rev 1.0", "Cortex-A76", "Raspberry Pi 5"),
        ("some board", "Cortex-A76", "Raspberry Pi 5"),
        ("some board", "Cortex-A53", None),
    ],
)
def test_boards_are_found_by_name_or_processor(board: str | None, processor: str, name: str | None) -> None:
    found = boards.find(board, processor)
    assert (found and found.name) == name


def test_predictions() -> None:
    """A layer of 1000 x 1000, by hand."""
    cycles = {"neon": {"one row": {"4": 125.0}, "rows": {"4": 100.0}, "DAC": 2.0, "ADC": 4.0}}
    board = boards.Board("b", "p", "neon", 1e9, 5e9)
    one = boards.predict(board, 4, 1, 1000, 1000, cycles=cycles)
    assert one.compute == pytest.approx(131e-6)
    assert one.memory == pytest.approx(100e-6)
    assert boards.predict(board, 4, 1, 1000, 1000, 2, hertz=2e9, cycles=cycles).compute == pytest.approx(131e-6 / 4)
    assert boards.predict(board, 4, 1, 1000, 1000, 9, cycles=cycles).compute == pytest.approx(131e-6 / 4)
    assert boards.predict(board, 4, 10, 1000, 1000, cycles=cycles).compute == pytest.approx(1060e-6)


def test_every_board_has_cycles() -> None:
    for board in boards.BOARDS:
        for bits in layers.BITS:
            for rows in layers.BATCHES:
                assert boards.predict(board, bits, rows, 64, 64).compute > 0
