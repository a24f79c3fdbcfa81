"""The runner of all benchmarks: `python -m benchmarks`."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.status import Status

import lumina_kernel
from benchmarks import pages, plots
from benchmarks import report as reports
from benchmarks.context import Context
from benchmarks.groups import GROUPS
from benchmarks.machine import machine
from benchmarks.peaks import ROOT, Missing, Peaks
from benchmarks.questions import PAGES
from benchmarks.results import Row
from benchmarks.timing import Effort

progress = Console(stderr=True)


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    listing = "\n".join(
        f"  {name:9} {group.about}{f' (--{group.page})' if group.page else ''}" for name, group in GROUPS.items()
    )
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="How fast the kernel is, as ratios to the alternatives and to this machine's peaks.",
        epilog=f"groups:\n{listing}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", metavar="GROUP", nargs="+", choices=list(GROUPS), help="measure these groups alone")
    kinds = parser.add_mutually_exclusive_group()
    for page, what in (("training", "training"), ("edge", "layers and networks in ONNX Runtime")):
        kinds.add_argument(
            f"--{page}",
            action="store_const",
            dest="kind",
            const=page,
            default="",
            help=f"measure {what}, which takes minutes, in place of the rest",
        )
    parser.add_argument("--show", metavar="FILE.json", type=Path, nargs="+", help="measure nothing: show earlier runs")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run? Its figures mean nothing")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write everything measured")
    parser.add_argument(
        "--page", metavar="FILE.md", type=Path, help="write a page of docs/measurements, with FILE.svg and FILE.json"
    )
    parser.add_argument("--in-process", action="store_true", help="measure in this process and on this tier alone")
    return parser.parse_args(argv)


def chosen(options: argparse.Namespace) -> list[str]:
    """The groups to measure."""
    return options.only or [name for name, group in GROUPS.items() if group.page == options.kind]


def peaks_of(context: Context, report: reports.Report) -> None:
    """Measures the processor's peaks; if they cannot be measured, records why."""
    try:
        context.peaks = Peaks()
    except Missing as reason:
        report.skipped["peaks"] = str(reason)
        return
    context.rates = context.peaks.rates(context.effort)
    report.operations_per_second = context.rates
    caches = context.machine.caches
    sizes = [caches.get("L1d", 2**15) // 2, caches.get("L2", 2**20) // 2]
    if not context.quick:
        last = max(caches.values(), default=2**25)
        sizes += [size for size in (2**23, 2**26) if 2 * sizes[1] < size < last] + [min(4 * last, 2**30)]
    effort = Effort(rounds=3, burst=5e-3, settle=0.0)
    bandwidth = context.peaks.bandwidth(sizes, effort)
    report.read_bytes_per_second = {reports.size_text(size): rate for size, rate in bandwidth.items()}


def child(groups: list[str], quick: bool, tier: str | None) -> tuple[list[Row], dict[str, str]]:
    """Measures groups in another process, on `tier` if it is given: its rows, and what it skipped and why."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.json"
        command = [sys.executable, "-m", "benchmarks", "--in-process", "--json", str(path), "--only", *groups]
        environment = os.environ | ({"LUMINA_ISA": tier} if tier else {})
        result = subprocess.run(
            command + ["--quick"] * quick, env=environment, cwd=ROOT, capture_output=True, text=True, check=False
        )
        if result.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{result.stderr}")
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return [Row.from_dict(row) for row in found["rows"]], found["skipped"]


def say(status: Status, group: str, text: str) -> None:
    """Shows what is being measured; without a terminal, as a line of its own."""
    status.update(f"{group}: {text}")
    if not progress.is_terminal:
        progress.print(f"{group}: {text}", style="dim")


def measure(options: argparse.Namespace) -> reports.Report:
    """Runs the groups."""
    here = machine()
    started = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    report = reports.Report(here.as_dict(), options.quick, started)
    context = Context(here, options.quick)
    begin = time.monotonic()
    names = chosen(options)
    with progress.status("peaks") as status:
        if here.load > 0.5:
            progress.print(
                f"Other work runs here (load {here.load:.1f}): the figures will be disturbed.", style="yellow"
            )
        peaks_of(context, report)
        for name in GROUPS:
            if name not in names:
                continue
            status.update(f"{name}: {GROUPS[name].about}")
            context.say = partial(say, status, name)
            before = time.monotonic()
            if GROUPS[name].alone and not options.in_process:
                rows, skipped = child([name], options.quick, None)
                report.rows += rows
                report.skipped |= skipped
            else:
                report.rows += GROUPS[name].run(context)
            progress.print(f"{name}: {time.monotonic() - before:.0f} s", style="dim")
        # The fastest tier is the processor's own; the slowest, portable, is not meant to be fast.
        several = [name for name in names if GROUPS[name].every_tier]
        if several and not options.in_process and "LUMINA_ISA" not in os.environ:
            for tier in lumina_kernel.available_isas()[-2:0:-1]:
                status.update(f"tier {tier}: {', '.join(several)}")
                report.rows += child(several, options.quick, tier)[0]
    report.skipped |= context.skipped
    report.seconds = time.monotonic() - begin
    return report


def main(argv: list[str] | None = None) -> int:
    """The command."""
    options = arguments(argv)
    report = reports.Report.of_files(options.show) if options.show else measure(options)
    found = {GROUPS[row.group].page for row in report.rows}
    page = found.pop() if len(found) == 1 else ""
    console = Console() if sys.stdout.isatty() else Console(width=190)
    reports.show(report, console)
    if options.json:
        options.json.write_text(report.as_json(), encoding="utf-8")
    if options.page:
        pages.write(report, PAGES[page], options.page)
        plots.draw(report, PAGES[page], options.page.with_suffix(".svg"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
