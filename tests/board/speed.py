"""Predicts with llvm-mca how fast the hot loops of the Arm tiers run, and fails where one is slower than its bar.

    tests/board/speed.py LIBRARY ... [--shipped LIBRARY ...] [--json FILE]

Nothing is measured: llvm-mca simulates a loop on a model of the processor, with all that it reads in the first-level
cache. Loops are found in the machine code and named by the functions that were inlined into them, so a library needs
line tables: the release profile with `debug = "line-tables-only"` and `strip = "none"`. `--shipped` proves that a
library without them has the machine code of one that is looked at. (Two builds never do: stripping must be all that
differs.)

How a loop is counted:

- Its multiply-adds (normals, elements) are counted from its instructions: see `WORK`.
- All its instructions count, even those that a branch within the loop may skip; of the loops of noise, DAC and ADC,
  which choose between whole and partial vectors, the shortest way through them that does the most.
- A short loop within another one of the same function (sums of 16 bits, widened after some blocks) is simulated
  together with it: the inner loop as often as it runs (`TRIPS`), then what surrounds it. That number must be an
  immediate operand in the outer loop, so it is the one of the library.
- Cycles are those of a trip in the steady state, without what precedes and follows the loop, and at least those that
  decoding takes.
- Of the same loop in a function, there may be several that differ in how much a trip does. Those that do the most are
  compared with the bars. The others do what is left at the end of a row, and are listed as "rest".
- The loops of the portable tier are simulated as well, to show what the tiers gain: for each bar the fastest of them.
- A spill is an access to the stack in the innermost loop. Spills cost what that loop takes less without them, where
  loads wait for earlier stores (otherwise the model lets no load wait, as if none read what was just written).

The bounds are what the same model allows at best, whatever the order and the latencies of instructions: for the
multiply-adds alone, and for all vector instructions but loads and stores.

The bars hold for fixed versions of rustc and llvm-mca (`PINNED`). With others the table is printed but nothing is
compared, and the exit status is 3. It is 1 where a bar is missed or a loop cannot be simulated, and 0 otherwise.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from machine_code import Failure, Flow, Frame, Instruction, Loop, bounds, cycles, disassembled, origins, run, text_of

# The kernel's side: names, tiles and bars. All that follows it depends on the instruction set alone.

#: How the versions begin that the bars hold for.
PINNED = {"rustc": ("1.95.", "1.96."), "llvm-mca": ("22.1.",)}


@dataclass(frozen=True)
class Tier:
    """A tier, and the processor whose model its loops are simulated on."""

    type: str
    """The tier's type, in the names of generic functions that multiply codes."""
    model: tuple[str, ...]
    """What selects the model in llvm-mca."""
    decoded: int
    """Instructions that the processor decodes in a cycle."""
    units: tuple[str, ...]
    """What the model calls its vector units."""


# llvm-mca's model of the Cortex-A72 is that of the Cortex-A57. It has none of the Cortex-A76, which is the core of the
# Neoverse N1. That model dispatches 3 operations a cycle, which suits the compiler's scheduler; the core dispatches 8,
# of 4 instructions decoded.
TIERS = {
    "neon": Tier("Neon<false>", ("-mcpu=cortex-a72",), 3, ("A57UnitW", "A57UnitX")),
    "neon_dotprod": Tier("Neon<true>", ("-mcpu=neoverse-n1", "-dispatch=8"), 4, ("N1UnitV0", "N1UnitV1")),
}
#: The type that stands there for all these tiers in everything else, which is compiled once.
SHARED = "Neon<false>"
#: That of the tier for any processor. Its loops are simulated on the same processors, for comparison.
PORTABLE = "Portable"


@dataclass(frozen=True)
class Work:
    """A kind of work, and how much of it instructions do."""

    function: str
    """The name of the functions that do it, without generic arguments: a regular expression."""
    file: str
    """How the path of their source begins, within the kernel's folder of sources: a regular expression."""
    units: dict[str, int]
    """What an instruction does, by its name and the type of its result. It counts where it comes from the function."""
    unit: str = "multiply-adds"
    per: int = 1000
    """Cycles are given for so many units."""
    within: str = ""
    """Where it is called from, directly or not: how that file's path begins, if it matters."""
    shortest: bool = False
    """Whether only the shortest way through a loop counts, of those that do the most."""
    bar_on_spills: bool = True
    """Whether spills may not cost a cycle. Noise, DAC and ADC need more values at once than there are registers."""
    of_tier: bool = False
    """Whether each tier has code of its own for it: see `SHARED`."""


PRODUCTS = {"smull.8h": 8, "smull2.8h": 8, "smlal.8h": 8, "smlal2.8h": 8, "sdot.4s": 16, "smmla.4s": 32, "mla.4s": 4}
ROUNDED = {"fcvtns.4s": 4}
# Of a square root are a sine and a cosine made. The tiers estimate it first.
ROOTS = {"frsqrte.4s": 8, "fsqrt.4s": 8}
# What the tiles for codes leave over, at the end of a row.
REST = r"add_groups"
CODES = Work(rf"\w+_tile|{REST}", r"microkernel/(?:neon|tile/int)/", PRODUCTS, of_tier=True)
WORK = {
    "codes": CODES,
    "gradient codes": CODES,
    "floats": Work(r"float_tile", r"microkernel/tile/float", {"fmla.4s": 4}),
    "gradient": Work(r"products", r"microkernel/tile/gradient", {"fmla.4s": 4}),
    "normals": Work(r"group", r"microkernel/gauss", ROOTS, "normals", 1, bar_on_spills=False),
    "noise": Work(r"group", r".*epilogue/noise", {"fmla.4s": 4}, "elements", 1, shortest=True, bar_on_spills=False),
    "DAC": Work(r"codes_i8", r"microkernel/r", ROUNDED, "elements", 1, r".*/dac", shortest=True, bar_on_spills=False),
    "ADC": Work(r"group", r".*epilogue/adc", ROUNDED, "elements", 1, shortest=True, bar_on_spills=False),
}

#: The caller of the algorithms for codes. Its generic arguments are the tier's type, what becomes of the sums, and the
#: tile's.
TILE, TILE_ARGUMENTS = r"tile_vectors", ("bits", "size", "rows", "vectors")
#: The work of the algorithms for codes, by what becomes of the sums.
RESULTS = {"Scaling": "codes", "High": "gradient codes", "Joined": "gradient codes"}


def small_blocks(tile: dict[str, int]) -> int:
    """Blocks whose products a sum of 16 bits has room for: `blocks_at_once` in neon/multiply.rs."""
    room = (2**15 - 1) // ((2 ** tile["size"] - 1) * 127)
    return room // (8 // tile["size"])


#: How often the inner loop of an algorithm runs in each trip of the loop around it.
TRIPS: dict[str, Callable[[dict[str, int]], int]] = {"small_tile": small_blocks}


@dataclass(frozen=True)
class Bar:
    """The most cycles that a tier's loops may take."""

    work: str
    cycles: dict[str, float]
    """For each tier."""
    tile: dict[str, int] = field(default_factory=dict)
    """Which tiles: rows 0 are those of the tier's largest tile."""
    in_python_only: bool = False
    """Whether only the Python extension has such loops."""


BARS = {
    "8 bits, one row": Bar("codes", {"neon": 130, "neon_dotprod": 35}, {"size": 8, "bits": 8, "rows": 1}),
    "4 bits, one row": Bar("codes", {"neon": 130, "neon_dotprod": 67}, {"size": 4, "bits": 4, "rows": 1}),
    "2 bits, one row": Bar("codes", {"neon": 130, "neon_dotprod": 68}, {"size": 2, "bits": 2, "rows": 1}),
    "1 bit, one row": Bar("codes", {"neon": 135, "neon_dotprod": 72}, {"size": 1, "bits": 1, "rows": 1}),
    "8 bits, rows": Bar("codes", {"neon": 130, "neon_dotprod": 34}, {"size": 8, "bits": 8, "rows": 0}),
    "4 bits, rows": Bar("codes", {"neon": 130}, {"size": 4, "bits": 4, "rows": 0}),
    "2 bits, rows": Bar("codes", {"neon": 130}, {"size": 2, "bits": 2, "rows": 0}),
    "1 bit, rows": Bar("codes", {"neon": 130}, {"size": 1, "bits": 1, "rows": 0}),
    "gradients, 8 bits": Bar(
        "gradient codes", {"neon": 130, "neon_dotprod": 34}, {"size": 8, "bits": 8, "rows": 0}, in_python_only=True
    ),
    "floats": Bar("floats", {"neon": 265, "neon_dotprod": 133}, {"rows": 0}),
    "gradients, floats": Bar("gradient", {"neon": 265, "neon_dotprod": 133}, {"rows": 0}, in_python_only=True),
    "a normal": Bar("normals", {"neon": 8.5, "neon_dotprod": 6.2}),
}


@dataclass(frozen=True)
class Site:
    """What a loop works at."""

    tier: str
    work: str
    function: str
    tile: tuple[tuple[str, int], ...]
    portable: bool = False
    """Whether the code is not the tier's but the portable one, for comparison."""

    def __str__(self) -> str:
        tile = dict(self.tile)
        parts = [self.function]
        if "bits" in tile:
            parts.append(f"{tile['bits']} bits" + (f" in {tile['size']}" if tile["size"] != tile["bits"] else ""))
        if "rows" in tile:
            parts.append(f"{tile['rows']} x {16 * tile['vectors']}")
        return ", ".join(parts)


def sites_of(instruction: Instruction, frames: Sequence[Frame]) -> list[Site]:
    """What an instruction works at if it does any of `WORK`: the same for each of `TIERS` that executes it."""
    for name, work in WORK.items():
        if instruction.kind not in work.units:
            continue
        for depth, each in enumerate(frames):
            if not (re.fullmatch(work.function, each.name) and re.match(work.file, each.file)):
                continue
            outer = frames[depth:]
            if work.within and not any(re.match(work.within, other.file) for other in outer):
                continue
            numbers = [int(argument) for argument in each.arguments if argument.isdecimal()]
            tile = tuple(zip(("rows", "vectors"), numbers[-2:], strict=False))
            kind, types = each.arguments[0], dict.fromkeys(TIERS, SHARED)
            if work.of_tier:
                caller = next((other for other in outer if re.fullmatch(TILE, other.name)), None)
                if caller is None:
                    raise Failure(f"{each.name} at {instruction.address:#x} is not called from {TILE}")
                kind, what, *sizes = caller.arguments
                if what not in RESULTS:
                    raise Failure(f"{TILE} at {instruction.address:#x} is for {what}: known are {', '.join(RESULTS)}")
                if RESULTS[what] != name:
                    continue
                tile = tuple(zip(TILE_ARGUMENTS, map(int, sizes), strict=False))
                types = {tier: facts.type for tier, facts in TIERS.items()}
            portable = kind == PORTABLE
            return [Site(tier, name, each.name, tile, portable) for tier in TIERS if portable or kind == types[tier]]
    return []


# Loops


@dataclass
class Case:
    """A loop that is simulated."""

    library: str
    function: str
    site: Site
    trip: list[Instruction]
    """What one trip executes: of the loop around it, where it is simulated together with that."""
    inner: list[Instruction]
    """What a trip of the innermost loop executes."""
    inner_units: int
    inner_trips: int
    error: str = ""
    main: bool = False
    cycles: float = 0.0
    """Cycles of a trip."""
    spill_cycles: float = 0.0
    """What spills cost in a trip of the innermost loop."""
    bound: float = 0.0
    """Cycles of the trip's vector instructions, without loads and stores, at best."""
    unit_bound: float = 0.0
    """Cycles of the instructions that `WORK` counts, at best."""

    @property
    def units(self) -> int:
        """Multiply-adds, normals or elements of a trip."""
        return self.inner_units * self.inner_trips

    @property
    def relative(self) -> float:
        """Cycles as they are compared with a bar."""
        return self.cycles * WORK[self.site.work].per / self.units if self.units else 0.0

    @property
    def parts(self) -> tuple[float, float]:
        """Which parts of the cycles the two bounds are."""
        return (self.bound / self.cycles, self.unit_bound / self.cycles) if self.cycles else (0.0, 0.0)

    @property
    def spills(self) -> int:
        """Accesses to the stack in the innermost loop."""
        return sum(instruction.on_stack for instruction in self.inner)

    @property
    def spills_cost(self) -> bool:
        """Whether spills take a cycle where they may not."""
        return WORK[self.site.work].bar_on_spills and self.spill_cycles >= 1

    def facts(self) -> dict[str, Any]:
        """What is written as JSON."""
        of_bound, of_unit_bound = self.parts
        return {
            "tier": self.site.tier,
            "work": self.site.work,
            "name": str(self.site),
            **dict(self.site.tile),
            "main": self.main,
            "library": self.library,
            "instructions": len(self.trip),
            "units": self.units,
            "cycles": self.cycles,
            "relative": round(self.relative, 3),
            "of_bound": round(of_bound, 4),
            "of_unit_bound": round(of_unit_bound, 4),
            "spills": self.spills,
            "spill_cycles": self.spill_cycles,
            "error": self.error,
        }


COUNTED = {kind for work in WORK.values() for kind in work.units}


def works(instructions: Iterable[Instruction]) -> bool:
    """Whether any instruction is of a kind that counts for some work."""
    return any(instruction.kind in COUNTED for instruction in instructions)


def cases_of(library: Path) -> list[Case]:
    """The loops of a library that do any of `WORK` for a tier of `TIERS`."""
    found: list[tuple[str, Flow, Loop]] = []
    addresses: set[int] = set()
    for function, instructions in disassembled(library).items():
        if not works(instructions):
            continue
        flow = Flow(instructions)
        for loop in flow.loops:
            # What does such work around an inner loop that does is what is left at the end of a row.
            if works(flow.own(loop)) and not any(works(flow.own(each)) for each in loop.below()):
                found.append((function, flow, loop))
                around = flow.own(loop.parent) if loop.parent else []
                widening = [each for each in around if each.kind in WIDENING]
                addresses.update(each.address for each in flow.own(loop) if each.kind in COUNTED)
                addresses.update(each.address for each in widening)
    frames = origins(library, addresses)
    cases = []
    for function, flow, loop in found:
        counted = [each for each in flow.own(loop) if each.kind in COUNTED]
        sites = list(dict.fromkeys(site for each in counted for site in sites_of(each, frames[each.address])))
        if len(sites) > len({site.tier for site in sites}):
            raise Failure(f"{library}: the loop at {flow.own(loop)[0].address:#x} mixes {', '.join(map(str, sites))}")
        cases += [case_of(library, function, flow, loop, site, frames) for site in sites]
    most: dict[tuple[str, Site], int] = defaultdict(int)
    for case in cases:
        most[case.function, case.site] = max(most[case.function, case.site], case.inner_units)
    for case in cases:
        most_of_all = case.inner_units == most[case.function, case.site]
        case.main = most_of_all and not re.fullmatch(REST, case.site.function)
    return cases


#: Instructions that add sums of 16 bits to sums of 32.
WIDENING = {"sadalp.4s", "saddw.4s", "saddw2.4s"}


def case_of(library: Path, function: str, flow: Flow, loop: Loop, site: Site, frames: dict[int, list[Frame]]) -> Case:
    """A loop as it is simulated."""
    work = WORK[site.work]

    def units(instructions: Iterable[Instruction]) -> int:
        counted = [each for each in instructions if each.kind in work.units]
        return sum(work.units[each.kind] for each in counted if site in sites_of(each, frames[each.address]))

    trip = flow.shortest(loop, units) if work.shortest else flow.own(loop)
    case = Case(library.name, function, site, trip, trip, units(trip), 1)
    if not trip:
        case.error = "every way through it calls a function or has a loop"
        case.trip = case.inner = flow.own(loop)
    elif any(instruction.calls for instruction in trip):
        case.error = "it calls a function"
    elif loop.parent and site.function in TRIPS:
        around = flow.own(loop.parent)
        if any(
            each.kind in WIDENING and any(frame.name == site.function for frame in frames[each.address])
            for each in around
        ):
            case.inner_trips = TRIPS[site.function](dict(site.tile))
            place = next((i for i, each in enumerate(around) if each.address > trip[0].address), len(around))
            case.trip = [*around[:place], *trip * case.inner_trips, *around[place:]]
            immediate = re.compile(rf"#(?:{case.inner_trips}|{case.inner_trips:#x})\b")
            if not any(immediate.search(each.operands) for each in around):
                case.error = f"the inner loop should run {case.inner_trips} times, which no operand around it says"
            elif len(loop.parent.children) > 1:
                case.error = "it is not the only loop in the one around it"
    return case


# Simulation


def predict(cases: Sequence[Case]) -> None:
    """Simulates the cases, each on its tier's processor."""
    for name, tier in TIERS.items():
        mine = [case for case in cases if case.site.tier == name and not case.error]
        trips = [case.trip for case in mine]
        vectors = [[each for each in trip if each.is_vector and not each.is_memory] for trip in trips]
        units = [[each for each in case.trip if each.kind in WORK[case.site.work].units] for case in mine]
        best = [bounds(tier.model, tier.units, some) for some in (vectors, units)]
        for case, taken, bound, unit_bound in zip(mine, cycles(tier.model, trips), *best, strict=True):
            case.cycles = max(taken, len(case.trip) / tier.decoded)
            case.bound, case.unit_bound = bound, unit_bound
        spilling = [case for case in mine if case.spills]
        waiting = (*tier.model, "-noalias=false")
        with_spills = cycles(waiting, [case.inner for case in spilling])
        without = cycles(waiting, [[each for each in case.inner if not each.on_stack] for case in spilling])
        for case, taken, spared in zip(spilling, with_spills, without, strict=True):
            case.spill_cycles = taken - spared


# Bars


@dataclass
class Result:
    """A bar of a tier, and the loops that are compared with it."""

    name: str
    tier: str
    cycles: float
    cases: list[Case]
    portable: Case | None
    """What the portable tier has for it: its fastest loop, since it is compiled with more luck in some places."""
    needed: bool
    """Whether one of the libraries should have such loops."""

    @property
    def worst(self) -> Case | None:
        """The slowest loop that could be simulated."""
        return max((case for case in self.cases if not case.error), key=lambda case: case.relative, default=None)

    @property
    def complaint(self) -> str:
        """What is wrong; nothing if the bar is reached."""
        if not self.cases:
            return "no loop found" if self.needed else ""
        errors = [f"cannot be simulated: {case.error}" for case in self.cases if case.error]
        good = [case for case in self.cases if not case.error]
        slow = [f"too slow in {case.library}" for case in good if case.relative > self.cycles]
        spilling = [f"a spill costs a cycle in {case.library}" for case in good if case.spills_cost]
        return ", ".join(dict.fromkeys(errors + slow + spilling))


def results(cases: Sequence[Case], python: bool) -> list[Result]:
    """Each bar with its loops. `python` says whether a Python extension is among the libraries."""
    found = []
    for name, bar in BARS.items():
        for tier, limit in bar.cycles.items():
            alike = [case for case in cases if (case.site.tier, case.site.work) == (tier, bar.work)]
            mine = matching(bar, [case for case in alike if case.main and not case.site.portable])
            others = matching(bar, [case for case in alike if case.site.portable and not case.error])
            portable = min(others, key=lambda case: case.relative, default=None)
            found.append(Result(name, tier, limit, mine, portable, python or not bar.in_python_only))
    return found


def matching(bar: Bar, cases: Sequence[Case]) -> list[Case]:
    """The loops for a bar's tiles."""
    want = dict(bar.tile)
    if want.get("rows") == 0:
        alike = {key: value for key, value in want.items() if key != "rows"}
        rows = [dict(case.site.tile)["rows"] for case in cases if alike.items() <= dict(case.site.tile).items()]
        want["rows"] = max(rows, default=0)
    return [case for case in cases if want.items() <= dict(case.site.tile).items()]


# The command


def versions(libraries: Sequence[Path]) -> dict[str, str]:
    """The versions of the compiler that made the libraries, and of llvm-mca."""
    compilers = set()
    for library in libraries:
        made = re.findall(rb"rustc version (\S+)", library.read_bytes())
        compilers |= {version.decode() for version in made} or {"unknown"}
    simulator = re.search(r"LLVM version (\S+)", run("llvm-mca", "--version"))
    return {"rustc": " and ".join(sorted(compilers)), "llvm-mca": simulator[1] if simulator else "unknown"}


COLUMNS = "{:13} {:42} {:4} {:>6} {:>6} {:>6} {:>8} {:>8} {:>8} {:>8} {:>6} {:>6}"
HEAD = ("tier", "loop", "", "copies", "instr.", "units", "cycles", "relative", "of bound", "of units", "spills", "cost")


def table(cases: Iterable[Case]) -> Iterator[str]:
    """The loops, a line for all that are alike."""
    yield COLUMNS.format(*HEAD)
    alike: dict[tuple[Any, ...], list[Case]] = defaultdict(list)
    works = list(WORK)
    for case in cases:
        place = (case.site.tier, works.index(case.site.work), str(case.site), not case.main, case.relative, case.error)
        key = (*place, len(case.trip), case.spills, case.spill_cycles)
        alike[key].append(case)
    for copies in (alike[key] for key in sorted(alike)):
        case = copies[0]
        name = (case.site.tier, f"{case.site.work}: {case.site}", "" if case.main else "rest", len(copies))
        if case.error:
            yield COLUMNS.format(*name, *("" for _ in HEAD[4:])).rstrip() + f" cannot be simulated: {case.error}"
            continue
        figures = (f"{case.cycles:.1f}", f"{case.relative:.2f}", *(f"{part:.0%}" for part in case.parts))
        yield COLUMNS.format(*name, len(case.trip), case.units, *figures, case.spills, f"{case.spill_cycles:.1f}")


def figure(case: Case | None) -> str:
    """Its cycles as they are compared with a bar."""
    return f"{case.relative:8.2f}" if case else f"{'-':>8}"


def written(facts: dict[str, Any]) -> str:
    """JSON with a line for each bar and each loop."""
    parts = []
    for name, value in facts.items():
        lines = ",\n".join(map(json.dumps, value)) if isinstance(value, list) else ""
        parts.append(f'"{name}": ' + (f"[\n{lines}\n]" if lines else json.dumps(value)))
    return "{\n" + ",\n".join(parts) + "\n}\n"


def main() -> int:
    """The command; see the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("libraries", nargs="+", type=Path, metavar="LIBRARY", help="with line tables")
    parser.add_argument("--shipped", nargs="+", type=Path, default=[], metavar="LIBRARY", help="the same, stripped")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--any-version", action="store_true", help="compare with the bars whatever the versions")
    options = parser.parse_args()
    try:
        return compare(options)
    except Failure as failure:
        print(f"speed: {failure}", file=sys.stderr)
        return 1


def compare(options: argparse.Namespace) -> int:
    """Prints the tables, and returns the exit status."""
    here = versions(options.libraries)
    everything = [case for library in options.libraries for case in cases_of(library)]
    predict(everything)
    cases = [case for case in everything if not case.site.portable]
    python = any(b"PyInit_lumina_kernel" in library.read_bytes() for library in options.libraries)
    judged = results(everything, python)
    print("\n".join(table(cases)))
    print("\nBars, in cycles for 1,000 multiply-adds or for a normal:")
    for result in judged:
        verdict = result.complaint or ("reached" if result.cases else "not looked for: in the Python extension only")
        worst, portable = figure(result.worst), figure(result.portable)
        print(f"{result.tier:13} {result.name:16} {worst} of {result.cycles:5g}, portable {portable}   {verdict}")
    print(f"\nrustc {here['rustc']}, llvm-mca {here['llvm-mca']}")
    if options.json:
        facts = {
            "versions": here,
            "models": {name: list(tier.model) for name, tier in TIERS.items()},
            "libraries": {library.name: library.stat().st_size for library in options.shipped},
            "bars": [
                {
                    "name": result.name,
                    "tier": result.tier,
                    "bar": result.cycles,
                    "relative": result.worst and round(result.worst.relative, 3),
                    "portable": result.portable and round(result.portable.relative, 3),
                    "loop": next((place for place, case in enumerate(cases) if case is result.worst), None),
                    "complaint": result.complaint,
                }
                for result in judged
            ],
            "loops": [{"id": place, **case.facts()} for place, case in enumerate(cases)],
        }
        options.json.write_text(written(facts), encoding="utf-8")
    code = {text_of(library) for library in options.libraries} if options.shipped else set()
    others = [library for library in options.shipped if text_of(library) not in code]
    for library in others:
        print(f"speed: {library} has other machine code than what was looked at", file=sys.stderr)
    strange = [
        f"{name} {here[name]}, not {' or '.join(f'{pin}x' for pin in pins)}"
        for name, pins in PINNED.items()
        if not here[name].startswith(pins)
    ]
    if strange and not options.any_version:
        print(f"speed: NOT COMPARED, since the bars are for other versions: {', '.join(strange)}", file=sys.stderr)
        return 3
    missed = [result for result in judged if result.complaint]
    broken = [case for case in cases if case.error]
    print(
        f"speed: {len(missed)} bars missed, {len(broken)} loops not simulated, {len(others)} libraries with other code"
    )
    return 1 if missed or broken or others else 0


if __name__ == "__main__":
    sys.exit(main())
