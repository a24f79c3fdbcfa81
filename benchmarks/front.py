"""The README's table of speed, in both languages."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks.pages import fastest, summary
from benchmarks.questions import ONNXRUNTIME, TRAINING, Line, Page
from benchmarks.report import Report

HEAD = {"en": ("", "compared with", "times as fast"), "zh": ("", "对比对象", "加速比")}


@dataclass(frozen=True)
class Entry:
    """A line of the table: the rows it summarises, the column it compares with, and its words in each language."""

    page: Page
    line: Line
    column: int
    words: dict[str, tuple[str, str]]


ENTRIES = (
    Entry(
        TRAINING,
        Line("", "training", '"highest"'),
        0,
        {"en": ("training step of a layer", "eager PyTorch"), "zh": ("一层的训练步", "PyTorch 即时模式")},
    ),
    Entry(
        TRAINING,
        Line("", "training", '"highest"'),
        1,
        {"en": ("training step of a layer", "`torch.compile`"), "zh": ("一层的训练步", "`torch.compile`")},
    ),
    Entry(
        TRAINING,
        Line("", "epoch", '8/8/8 bits.*"highest"'),
        0,
        {
            "en": ("epoch of 4,000 MNIST images", "eager PyTorch"),
            "zh": ("4,000 幅 MNIST 图像的一轮训练", "PyTorch 即时模式"),
        },
    ),
    Entry(
        ONNXRUNTIME,
        Line("", "session", "^8-bit weights, DAC and ADC", 1),
        0,
        {
            "en": ("one row through a layer, 8-bit weights", "float32 `MatMul`"),
            "zh": ("单行输入经过一层，8 比特权重", "float32 `MatMul`"),
        },
    ),
    Entry(
        ONNXRUNTIME,
        Line("", "session", "^4-bit weights, DAC and ADC", 1),
        0,
        {
            "en": ("one row through a layer, 4-bit weights", "float32 `MatMul`"),
            "zh": ("单行输入经过一层，4 比特权重", "float32 `MatMul`"),
        },
    ),
    Entry(
        ONNXRUNTIME,
        Line("", "session", "^4-bit weights, DAC and ADC", 1),
        1,
        {
            "en": ("one row through a layer, 4-bit weights", "`MatMulNBits`, 4 bits"),
            "zh": ("单行输入经过一层，4 比特权重", "4 比特的 `MatMulNBits`"),
        },
    ),
    Entry(
        ONNXRUNTIME,
        Line("", "session", "^8-bit weights, DAC and ADC", 16),
        1,
        {
            "en": ("sixteen rows through a layer, 8-bit weights", "fastest integer operators"),
            "zh": ("十六行输入经过一层，8 比特权重", "最快的整数算子"),
        },
    ),
)


def table(folder: Path, language: str) -> str:
    """The table, from the rows in `folder`.

    Raises:
        ValueError: A line has no rows.
    """
    reports = {
        TRAINING.title: Report.of_files([folder / "training.json"]),
        ONNXRUNTIME.title: Report.of_files([folder / "onnxruntime.json"]),
    }
    lines = [f"| {' | '.join(HEAD[language])} |", "|---|---|---:|"]
    for entry in ENTRIES:
        report = reports[entry.page.title]
        shown = entry.page.shown(report.rows, report.machine["tier"])
        column = entry.page.columns[entry.column]
        rows = fastest([row for row in shown if entry.line.holds(row) and column.holds(row)])
        if not rows:
            raise ValueError(f"no measured row for {entry.words['en']}")
        lines.append(f"| {' | '.join((*entry.words[language], summary(rows)))} |")
    return "\n".join(lines)
