"""Machine code for aarch64: its instructions, its loops, the functions that it was inlined from, and its simulation.

LLVM's tools do the work: llvm-objdump disassembles, llvm-symbolizer reads line tables, llvm-mca simulates.
"""

from __future__ import annotations

import functools
import itertools
import json
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

#: An address within the library, as llvm-objdump writes it, and what stands for it in what is simulated.
ADDRESS, LABEL = re.compile(r"0x[0-9a-f]+ <[^>]*>"), "somewhere"


class Failure(Exception):
    """Something that the user can act on."""


@dataclass(frozen=True)
class Instruction:
    """One instruction of a library."""

    address: int
    name: str
    operands: str

    @functools.cached_property
    def kind(self) -> str:
        """The name and the type of the result: `smull.8h`."""
        vector = re.match(r"v\d+\.(\w+)", self.operands)
        return f"{self.name}.{vector[1]}" if vector else self.name

    @functools.cached_property
    def target(self) -> int | None:
        """Where a branch within a function goes, if the instruction is one and says so."""
        if not re.fullmatch(r"bc?\.\w+|b|cbn?z|tbn?z", self.name):
            return None
        place = re.search(r"0x([0-9a-f]+)(?: <|$)", self.operands)
        return int(place[1], 16) if place else None

    @property
    def ends_block(self) -> bool:
        """Whether it is a branch, or what control does not come back from."""
        return self.target is not None or not self.falls_through

    @property
    def falls_through(self) -> bool:
        """Whether the next instruction may follow it."""
        if self.calls and re.search(r"panic|unwrap_failed|expect_failed|abort|handle_alloc_error", self.operands):
            return False
        return self.name not in ("b", "br", "ret", "retaa", "retab", "udf", "brk", "hlt")

    @property
    def calls(self) -> bool:
        """Whether it is a call."""
        return self.name in ("bl", "blr")

    @property
    def is_memory(self) -> bool:
        """Whether it reads or writes memory."""
        return "[" in self.operands and re.match(r"(ld|st|prfm)", self.name) is not None

    @property
    def is_vector(self) -> bool:
        """Whether it is for the vector units."""
        return re.search(r"\b[vqdsh]\d", self.operands) is not None

    @property
    def on_stack(self) -> bool:
        """Whether it reads or writes the stack."""
        return self.is_memory and "[sp" in self.operands

    @property
    def text(self) -> str:
        """The instruction for the assembler, with one label in place of every address."""
        return f"{self.name} {ADDRESS.sub(LABEL, self.operands)}"


def run(*command: str, given: str = "") -> str:
    """What a command writes.

    Raises:
        Failure: It is missing, or fails.
    """
    try:
        done = subprocess.run(command, input=given, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise Failure(f"{command[0]} is missing: LLVM has it") from error
    if done.returncode:
        raise Failure(f"{' '.join(command[:3])} ...: {done.stderr.strip()[:500]}")
    return done.stdout


def disassembled(library: Path) -> dict[str, list[Instruction]]:
    """The functions of a library, by name and address. One that is stripped has a single one."""
    found: dict[str, list[Instruction]] = {}
    current: list[Instruction] = []
    text = run("llvm-objdump", "--disassemble", "--no-show-raw-insn", "--section=.text", str(library))
    for line in text.splitlines():
        if head := re.match(r"([0-9a-f]+) <(.*)>:$", line):
            current = found.setdefault(f"{head[2]} at {head[1]}", [])
        elif instruction := re.match(r"\s*([0-9a-f]+):\s+(\S+)\s*(.*)$", line):
            address, name, operands = instruction.groups()
            current.append(Instruction(int(address, 16), name, re.sub(r"\s*//.*", "", operands)))
    if not found:
        raise Failure(f"{library}: llvm-objdump finds no functions in it")
    return found


def text_of(library: Path) -> bytes:
    """All machine code of a library."""
    with tempfile.NamedTemporaryFile() as file:
        run("llvm-objcopy", "--output-target=binary", "--only-section=.text", str(library), file.name)
        return Path(file.name).read_bytes()


# Control flow


@dataclass
class Loop:
    """A natural loop. Blocks are numbered in the order of memory."""

    header: int
    blocks: set[int]
    parent: Loop | None = None
    children: list[Loop] = field(default_factory=list)

    def below(self) -> Iterator[Loop]:
        """The loops within it."""
        for child in self.children:
            yield child
            yield from child.below()

    def own(self) -> list[int]:
        """The blocks that no inner loop has, from the header on."""
        own = sorted(self.blocks.difference(*(child.blocks for child in self.children)))
        return [block for block in own if block >= self.header] + [block for block in own if block < self.header]


class Flow:
    """The blocks of a function, and its loops."""

    def __init__(self, instructions: Sequence[Instruction]) -> None:
        inside = {instruction.address: place for place, instruction in enumerate(instructions)}
        starts = {0}
        for place, instruction in enumerate(instructions):
            if instruction.target in inside:
                starts.add(inside[instruction.target])
            if instruction.ends_block and place + 1 < len(instructions):
                starts.add(place + 1)
        edges = [*sorted(starts), len(instructions)]
        self.blocks = [list(instructions[begin:end]) for begin, end in itertools.pairwise(edges)]
        number = {block[0].address: index for index, block in enumerate(self.blocks)}
        self.next: list[set[int]] = []
        for index, block in enumerate(self.blocks):
            last = block[-1]
            following = {number[last.target]} if last.target in number else set()
            if last.falls_through and index + 1 < len(self.blocks):
                following.add(index + 1)
            self.next.append(following)
        # Tables of addresses are not read: what nothing else leads to is where an indirect branch may go.
        led_to = set().union(*self.next)
        strays = {index for index in range(1, len(self.blocks)) if index not in led_to}
        for index, block in enumerate(self.blocks):
            if block[-1].name == "br":
                self.next[index] |= strays
        self.loops = self._loops()

    def _order(self) -> list[int]:
        """The blocks that can be reached, each before those that it leads to but for loops."""
        seen, order, stack = {0}, [], [(0, iter(sorted(self.next[0])))]
        while stack:
            block, rest = stack[-1]
            following = next((each for each in rest if each not in seen), None)
            if following is None:
                order.append(block)
                stack.pop()
            else:
                seen.add(following)
                stack.append((following, iter(sorted(self.next[following]))))
        return order[::-1]

    def _loops(self) -> list[Loop]:
        order = self._order()
        place = {block: index for index, block in enumerate(order)}
        before: dict[int, list[int]] = {block: [] for block in order}
        for block in order:
            for following in self.next[block]:
                before[following].append(block)
        # Which block dominates each at once: Cooper, Harvey and Kennedy's algorithm.
        above = {0: 0}

        def common(one: int, other: int) -> int:
            while one != other:
                while place[one] > place[other]:
                    one = above[one]
                while place[other] > place[one]:
                    other = above[other]
            return one

        changed = True
        while changed:
            changed = False
            for block in order[1:]:
                best = functools.reduce(common, [each for each in before[block] if each in above])
                changed |= above.get(block) != best
                above[block] = best

        def dominates(one: int, other: int) -> bool:
            while place[other] > place[one]:
                other = above[other]
            return one == other

        loops: dict[int, Loop] = {}
        for block in order:
            for header in self.next[block]:
                if dominates(header, block):
                    loop = loops.setdefault(header, Loop(header, {header}))
                    waiting = [block]
                    while waiting:
                        each = waiting.pop()
                        if each not in loop.blocks:
                            loop.blocks.add(each)
                            waiting += before[each]
        found = sorted(loops.values(), key=lambda loop: len(loop.blocks))
        for index, loop in enumerate(found):
            loop.parent = next((other for other in found[index + 1 :] if loop.header in other.blocks), None)
            if loop.parent:
                loop.parent.children.append(loop)
        return found

    def own(self, loop: Loop) -> list[Instruction]:
        """The instructions of a loop that no inner loop has."""
        return [instruction for block in loop.own() for instruction in self.blocks[block]]

    def shortest(self, loop: Loop, units: Callable[[Iterable[Instruction]], int]) -> list[Instruction]:
        """The shortest way through a loop that does most units, without calls and inner loops. Empty: there is none."""
        own = {block for block in loop.own() if not any(each.calls for each in self.blocks[block])}

        @functools.cache
        def best(block: int) -> tuple[int, int, tuple[int, ...]] | None:
            ways = []
            for following in self.next[block]:
                rest = (0, 0, ()) if following == loop.header else best(following) if following in own else None
                if rest is not None:
                    here = self.blocks[block]
                    ways.append((rest[0] + units(here), rest[1] - len(here), (block, *rest[2])))
            return max(ways, default=None)

        way = best(loop.header) if loop.header in own else None
        return [instruction for block in way[2] for instruction in self.blocks[block]] if way else []


# Where instructions come from


@dataclass(frozen=True)
class Frame:
    """A function that an instruction was inlined from."""

    name: str
    arguments: tuple[str, ...]
    """Its generic arguments, without paths."""
    file: str
    """Where its source is, within that of the kernel."""


@functools.cache
def frame(function: str, file: str) -> Frame:
    """A frame as llvm-symbolizer tells it."""
    name, _, arguments = re.sub(r"(?:[\w{}#]+::)+", "", function).partition("<")
    parts, depth = [""], 0
    for letter in arguments.removesuffix(">"):
        depth += (letter in "<(") - (letter in ">)")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return Frame(name, tuple(map(str.strip, parts)), re.sub(r".*rust_op/kernel/src/", "", file))


def origins(library: Path, addresses: Iterable[int]) -> dict[int, list[Frame]]:
    """For each address the functions that it was inlined from, the innermost first."""
    wanted = sorted(set(addresses))
    command = ("llvm-symbolizer", f"--obj={library}", "--functions=short", "--inlines", "--output-style=JSON")
    answers = run(*command, given="".join(f"{address:#x}\n" for address in wanted)).splitlines()
    found = {
        address: [frame(symbol["FunctionName"], symbol["FileName"]) for symbol in json.loads(answer)["Symbol"]]
        for address, answer in zip(wanted, answers, strict=True)
    }
    if not any(each.file for frames in found.values() for each in frames):
        raise Failure(f'{library} has no line tables: build it with debug = "line-tables-only" and strip = "none"')
    return found


# Simulation


#: Numbers of simulated trips. A trip's cycles are the slope between them, which does not include the start.
FEW, MANY = 20, 60


def cycles(model: Sequence[str], trips: Sequence[Sequence[Instruction]]) -> list[float]:
    """Cycles that a trip of each loop takes in the steady state; `model` selects the processor's model in llvm-mca.

    Raises:
        Failure: A loop cannot be simulated.
    """
    few, many = _summaries(model, trips, FEW), _summaries(model, trips, MANY)
    return [(b["TotalCycles"] - a["TotalCycles"]) / (MANY - FEW) for a, b in zip(few, many, strict=True)]


def bounds(model: Sequence[str], units: Sequence[str], trips: Sequence[Sequence[Instruction]]) -> list[float]:
    """Cycles that a trip would take at best, if neither its order nor any latency mattered.

    llvm-mca's own bound counts instructions that any of the vector `units` can execute apart from those that only one
    can, so it is at least what they all take, shared by these units.
    """
    return [
        max(summary["BlockRThroughput"], sum(summary["units"].get(unit, 0) for unit in units) / len(units))
        for summary in _summaries(model, trips, 1)
    ]


def _summaries(model: Sequence[str], trips: Sequence[Sequence[Instruction]], count: int) -> list[dict[str, Any]]:
    texts = ["\n".join(instruction.text for instruction in trip) for trip in trips]
    # Copies of a loop are simulated once.
    places = {text: place for place, text in enumerate(dict.fromkeys(texts))}
    source = "".join(
        f"# LLVM-MCA-BEGIN {place}\n{LABEL}{place}:\n{text.replace(LABEL, f'{LABEL}{place}')}\n# LLVM-MCA-END\n"
        for text, place in places.items()
    )
    command = ("llvm-mca", "-mtriple=aarch64-linux-gnu", *model, f"-iterations={count}", "-json")
    answer = json.loads(run(*command, given=source)) if source else {"CodeRegions": []}
    found = {}
    for region in answer["CodeRegions"]:
        # What follows the last instruction is their sum, for a trip.
        pressure = region["ResourcePressureView"]["ResourcePressureInfo"]
        sums = [each for each in pressure if each["InstructionIndex"] == len(region["Instructions"])]
        units = {answer["TargetInfo"]["Resources"][each["ResourceIndex"]]: each["ResourceUsage"] for each in sums}
        found[region["Name"]] = {**region["SummaryView"], "units": units}
    return [found[str(places[text])] for text in texts]
