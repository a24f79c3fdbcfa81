"""The page of boards: cycles that llvm-mca predicts for the kernel's loops, and the time of a layer that follows."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.plots import pyplot, save
from lumina_onnx.cli.boards import BOARDS, predict

Facts = dict[str, Any]

BITS = (8, 4, 2, 1)
SIZES = (256, 512, 1024, 2048, 4096)
CORES = (1, 2, 3, 4)
#: Works that have no bar: names of their rows.
OTHERS = {"noise": "adding a normal", "DAC": "DAC, an element", "ADC": "ADC, an element"}


def bar_name(bits: int, rows: str) -> str:
    """The name of a bar in tests/board/speed.py."""
    return f"{bits} bit{'s' * (bits > 1)}, {rows}"


def slowest(facts: Facts, tier: str, work: str) -> Facts:
    """The slowest main loop that does some work on a tier."""
    return max(
        (loop for loop in facts["loops"] if (loop["tier"], loop["work"], loop["main"]) == (tier, work, True)),
        key=lambda loop: loop["relative"],
    )


def cycles(facts: Facts) -> Facts:
    """What :mod:`lumina_onnx.cli.boards` needs: for each tier, cycles for 1,000 multiply-adds, or for an element.

    Where a tier has no tiles of its own for many rows, codes are unpacked to 8 bits first.
    """
    found: Facts = {}
    for board in BOARDS:
        bars = {bar["name"]: bar["relative"] for bar in facts["bars"] if bar["tier"] == board.tier}
        eight = bars[bar_name(8, "rows")]
        found[board.tier] = {
            "one row": {str(bits): bars[bar_name(bits, "one row")] for bits in BITS},
            "rows": {str(bits): bars.get(bar_name(bits, "rows"), eight) for bits in BITS},
            **{work: slowest(facts, board.tier, work)["relative"] for work in ("DAC", "ADC")},
        }
    return found


def _table(head: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    head = list(head)
    rows = [head, ["---", *["---:"] * (len(head) - 1)], *map(list, lines)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def loops(facts: Facts) -> str:
    """Tables of the loops that are compared with a bar, and of noise, DAC and ADC: the slowest copy of each.

    Beside them is what the portable tier takes.
    """
    versions = facts["versions"]
    parts = [f"rustc {versions['rustc']}, llvm-mca {versions['llvm-mca']}."]
    for board in BOARDS:
        lines = []
        for bar in facts["bars"]:
            if bar["tier"] == board.tier:
                told = next(loop for loop in facts["loops"] if loop["id"] == bar["loop"])
                lines.append([bar["name"], *_figures(told), f"{bar['bar']:g}", _cycles(bar["portable"])])
        lines += [[name, *_figures(slowest(facts, board.tier, work)), "", ""] for work, name in OTHERS.items()]
        head = ["loop", "cycles", "of the bound", "of the products' bound", "spills cost", "bar", "portable kernel"]
        model = f"`{' '.join(facts['models'][board.tier])}`"
        parts.append(f"`{board.tier}`, {board.processor} ({model}):\n\n{_table(head, lines)}")
    return "\n\n".join(parts)


def _figures(loop: Facts) -> list[str]:
    of_products = "" if loop["work"] in (*OTHERS, "normals") else _percent(loop["of_unit_bound"])
    spills = loop["relative"] * loop["spill_cycles"] / loop["cycles"]
    return [_cycles(loop["relative"]), _percent(loop["of_bound"]), of_products, _cycles(spills)]


def _cycles(number: float | None) -> str:
    return "" if number is None else f"{number:.0f}" if number >= 20 else f"{number:.1f}"


def _percent(part: float) -> str:
    return f"{100 * part:.0f} %"


def times(facts: Facts) -> str:
    """A table for each board: microseconds of a layer for one row, by size, bits and cores."""
    parts, known = [], cycles(facts)
    for board in BOARDS:
        head = ["inputs x outputs, bits", *(f"{n} core{'s' * (n > 1)}" for n in CORES), "memory floor"]
        lines = []
        for size in SIZES:
            for bits in BITS:
                found = [predict(board, bits, 1, size, size, cores, cycles=known) for cores in CORES]
                computed = [micro(each.compute, each.compute >= each.memory) for each in found]
                lines.append([f"{size} x {size}, {bits}", *computed, micro(found[0].memory, False)])
        told = f"{board.name}, {board.hertz / 1e9:g} GHz, memory at {board.bandwidth / 1e9:g} GB/s, microseconds:"
        parts.append(f"{told}\n\n{_table(head, lines)}")
    return "\n\n".join(parts)


def micro(seconds: float, bold: bool) -> str:
    """Microseconds in three figures; bold if asked for."""
    value = seconds * 1e6
    digits = f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
    return f"**{digits}**" if bold else digits


#: Inputs and outputs of the layer that is drawn.
DRAWN = 1024


def draw(facts: Facts, path: Path) -> None:
    """Draws the time of one layer on each board: bars for the numbers of cores, marks for the floor of memory."""
    plt, known = pyplot(), cycles(facts)
    figure, axes = plt.subplots(1, len(BOARDS), figsize=(9.5, 4), layout="constrained")
    width = 0.8 / len(CORES)
    for panel, board in zip(axes, BOARDS, strict=True):
        for number, cores in enumerate(CORES):
            found = [predict(board, bits, 1, DRAWN, DRAWN, cores, cycles=known) for bits in BITS]
            places = [place + (number - (len(CORES) - 1) / 2) * width for place in range(len(BITS))]
            label = f"computing, {cores} core{'s' * (cores > 1)}"
            panel.bar(places, [1e6 * each.compute for each in found], 0.92 * width, label=label)
        floors = [1e6 * each.memory for each in found]
        panel.hlines(floors, *[[p + side for p in range(len(BITS))] for side in (-0.45, 0.45)], color="black")
        panel.plot([], [], color="black", label="reading the weights from memory")
        panel.set_xticks(range(len(BITS)), [f"{bits} bit{'s' * (bits > 1)}" for bits in BITS])
        panel.set_title(f"{board.name}, {board.processor}, {board.hertz / 1e9:g} GHz", fontsize=9)
        panel.set_ylabel("microseconds", fontsize=8)
        panel.grid(axis="y", linewidth=0.3)
        panel.set_axisbelow(True)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=8)
    figure.suptitle(f"one row through a layer of {DRAWN} x {DRAWN}, predicted", fontsize=9)
    save(figure, path)
