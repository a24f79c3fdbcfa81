"""What speed.py and machine_code.py make of machine code: loops, what counts in them, and the comparison with the bars.

The code is written here, so that neither LLVM nor a library for aarch64 is needed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import machine_code
import pytest
import speed
from machine_code import Failure, Flow, Frame, Instruction, Loop, frame

ROOT = Path(__file__).parents[2]


def code(text: str, start: int = 0x1000) -> list[Instruction]:
    """Instructions at consecutive addresses; `@n` stands for the address of line n."""
    lines = text.strip().splitlines()
    found = []
    for index, line in enumerate(lines):
        name, _, operands = line.strip().partition(" ")
        operands = re.sub(r"@(\d+)", lambda m: f"{start + 4 * int(m[1]):#x} <f+0x0>", operands)
        found.append(Instruction(start + 4 * index, name, operands))
    return found


def names(instructions: Iterable[Instruction]) -> list[str]:
    return [instruction.name for instruction in instructions]


NEST = """
    mov x9, x1
    movi v0.2d, #0
    smlal v0.8h, v1.8b, v2.8b
    subs x9, x9, #1
    b.ne @2
    sadalp v4.4s, v0.8h
    add x9, x9, #8
    cbnz x0, @1
    ret
"""


def test_loops_within_loops() -> None:
    flow = Flow(code(NEST))
    inner, outer = flow.loops
    assert names(flow.own(inner)) == ["smlal", "subs", "b.ne"]
    assert names(flow.own(outer)) == ["movi", "sadalp", "add", "cbnz"]
    assert inner.parent is outer
    assert list(outer.below()) == [inner]


def test_a_block_that_lies_elsewhere_belongs_to_its_loop() -> None:
    flow = Flow(code("cbz x0, @4\nfmla v0.4s, v1.4s, v2.4s\ncbnz x1, @0\nret\nldr q0, [x0]\nb @1"))
    (loop,) = flow.loops
    assert names(flow.own(loop)) == ["cbz", "fmla", "cbnz", "ldr", "b"]


def test_a_branch_back_into_a_block_that_something_else_leads_to_is_no_loop() -> None:
    """A cold block may lie behind what it goes on to."""
    assert Flow(code("cbz x0, @3\nfmul v0.4s, v1.4s, v2.4s\nret\nmov x1, x2\nb @1")).loops == []


def test_the_shortest_way_does_the_most_without_calls() -> None:
    instructions = code("""
        cbz x0, @5
        fcvtns v0.4s, v1.4s
        nop
        nop
        b @9
        cbz x1, @8
        fcvtns v0.4s, v1.4s
        b @9
        bl @20
        subs x9, x9, #1
        b.ne @0
        ret
    """)
    flow = Flow(instructions)
    (loop,) = flow.loops

    def units(some: Iterable[Instruction]) -> int:
        return sum(each.kind == "fcvtns.4s" for each in some)

    assert names(flow.shortest(loop, units)) == ["cbz", "cbz", "fcvtns", "b", "subs", "b.ne"]
    (loop,) = Flow(code("bl @9\ncbnz x0, @0\nret")).loops
    assert Flow(code("bl @9\ncbnz x0, @0\nret")).shortest(loop, units) == []


@pytest.mark.parametrize(
    ("text", "kind", "is_memory", "on_stack", "is_vector"),
    [
        ("smlal2 v0.8h, v1.16b, v2.16b", "smlal2.8h", False, False, True),
        ("sdot v0.4s, v1.16b, v2.4b[1]", "sdot.4s", False, False, True),
        ("ldp q0, q1, [x2], #0x20", "ldp", True, False, True),
        ("str q3, [sp, #0x40]", "str", True, True, True),
        ("ldr x3, [sp]", "ldr", True, True, False),
        ("add x3, sp, #0x10", "add", False, False, False),
    ],
)
def test_instructions(text: str, kind: str, is_memory: bool, on_stack: bool, is_vector: bool) -> None:
    (instruction,) = code(text)
    found = (instruction.kind, instruction.is_memory, instruction.on_stack, instruction.is_vector)
    assert found == (kind, is_memory, on_stack, is_vector)


def test_addresses_do_not_matter_to_what_is_simulated() -> None:
    here, there = code("b.ne @0\nadrp x8, @3"), code("b.ne @0\nadrp x8, @3", 0x2000)
    assert [each.text for each in here] == [each.text for each in there] == ["b.ne somewhere", "adrp x8, somewhere"]


def test_names_of_functions() -> None:
    found = frame("small_tile<lumina_kernel::microkernel::neon::Neon<false>, 4, 8, (i32, u8), 2>", "/x/a.rs")
    assert found == Frame("small_tile", ("Neon<false>", "4", "8", "(i32, u8)", "2"), "/x/a.rs")
    assert frame("run", "/x/rust_op/kernel/src/forward/dac.rs").file == "forward/dac.rs"


def test_a_bound_counts_what_any_unit_takes_with_what_only_one_can(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 6 instructions, 2 are for the first unit alone: llvm-mca's bound is that of the 4 others."""
    pressure = [(0, 1, 1.0), (6, 0, 3.01), (6, 1, 2.99), (6, 2, 9.0)]
    region = {
        "Name": "0",
        "Instructions": ["nop"] * 6,
        "SummaryView": {"BlockRThroughput": 2},
        "ResourcePressureView": {
            "ResourcePressureInfo": [
                {"InstructionIndex": place, "ResourceIndex": unit, "ResourceUsage": usage}
                for place, unit, usage in pressure
            ]
        },
    }
    answer = {"CodeRegions": [region], "TargetInfo": {"Resources": ["V0", "V1", "L"]}}
    monkeypatch.setattr(machine_code, "run", lambda *command, given: json.dumps(answer))
    assert machine_code.bounds([], ["V0", "V1"], [code("nop")]) == [pytest.approx(3)]
    region["SummaryView"] = {"BlockRThroughput": 4}
    assert machine_code.bounds([], ["V0", "V1"], [code("nop")]) == [4]


PATH = "/x/rust_op/kernel/src/microkernel"


def frames(tier: str, results: str = "a::Scaling") -> list[Frame]:
    """What an instruction of a tile for codes comes from."""
    return [
        frame("vmlal_s8", "/rust/core.rs"),
        frame("small_tile<4, 1, 2>", f"{PATH}/neon/multiply.rs"),
        frame(f"tile_vectors<{tier}, {results}, 4, 4, 1, 2, 1>", f"{PATH}/tile/int.rs"),
    ]


def test_what_a_loop_works_at() -> None:
    (product,) = code("smlal v0.8h, v1.8b, v2.8b")
    (site,) = speed.sites_of(product, frames("a::Neon<false>"))
    assert (site.tier, str(site)) == ("neon", "small_tile, 4 bits, 1 x 32")
    assert [site.tier for site in speed.sites_of(product, frames("Neon<true>"))] == ["neon_dotprod"]
    assert [(site.tier, site.portable) for site in speed.sites_of(product, frames("Portable"))] == [
        ("neon", True),
        ("neon_dotprod", True),
    ]
    assert speed.sites_of(product, frames("Neon<maybe>")) == []
    (other,) = code("add v0.4s, v1.4s, v2.4s")
    assert speed.sites_of(other, frames("Neon<false>")) == []


def test_what_is_compiled_once_counts_for_every_tier() -> None:
    (product,) = code("fmla v0.4s, v1.4s, v2.s[0]")
    origin = [frame("float_tile<a::Neon<false>, 6, 1>", f"{PATH}/tile/float.rs")]
    assert [(site.tier, str(site)) for site in speed.sites_of(product, origin)] == [
        ("neon", "float_tile, 6 x 16"),
        ("neon_dotprod", "float_tile, 6 x 16"),
    ]


def test_products_of_a_gradient_are_counted_apart() -> None:
    (product,) = code("smlal v0.8h, v1.8b, v2.8b")
    assert [site.work for site in speed.sites_of(product, frames("Neon<false>"))] == ["codes"]
    for results in ("High", "Joined"):
        (site,) = speed.sites_of(product, frames("Neon<false>", results))
        assert (site.work, str(site)) == ("gradient codes", "small_tile, 4 bits, 1 x 32")
    with pytest.raises(Failure, match="tile_vectors at 0x1000 is for Sums: known are Scaling, High, Joined"):
        speed.sites_of(product, frames("Neon<false>", "Sums"))


def test_products_of_codes_that_come_from_elsewhere() -> None:
    (product,) = code("smlal v0.8h, v1.8b, v2.8b")
    with pytest.raises(Failure, match="small_tile at 0x1000 is not called from tile_vectors"):
        speed.sites_of(product, frames("Neon<false>")[:2])


def nested_case(text: str = NEST) -> speed.Case:
    flow = Flow(code(text))
    inner = next(loop for loop in flow.loops if loop.parent)
    (product,) = (each for each in flow.own(inner) if each.kind == "smlal.8h")
    (site,) = speed.sites_of(product, frames("Neon<false>"))
    origins = {each.address: frames("Neon<false>") for block in flow.blocks for each in block}
    return speed.case_of(Path("x.so"), "f", flow, inner, site, origins)


def test_the_loop_around_sums_of_16_bits_is_counted() -> None:
    """4 bits: 17 products fit, which are 8 blocks of two slots, and one that is left over."""
    case = nested_case()
    assert names(case.trip) == ["movi", *["smlal", "subs", "b.ne"] * 8, "sadalp", "add", "cbnz"]
    assert (case.units, case.inner_units, case.inner_trips, case.error) == (64, 8, 8, "")


def test_the_number_of_inner_trips_must_be_the_library_s() -> None:
    assert "8 times" in nested_case(NEST.replace("#8", "#9")).error


def test_the_kernel_has_the_names_and_constants_that_the_script_relies_on() -> None:
    sources = ROOT / "rust_op" / "kernel" / "src" / "microkernel"
    small = (sources / "neon" / "multiply.rs").read_text(encoding="utf-8")
    assert "let room = i16::MAX as usize / (((1 << BITS) - 1) * LARGEST_CODE);" in small
    assert "let blocks_at_once = room / slots;" in small
    assert "const LARGEST_CODE: usize = 127;" in small
    tiles = (sources / "tile" / "int.rs").read_text(encoding="utf-8")
    (arguments,) = re.findall(r"unsafe fn tile_vectors<([^>]*)>", tiles)
    assert re.findall(r"(\w+):", arguments)[:6] == ["S", "R", "BITS", "SIZE", "MR", "NV"]
    results = [
        re.findall(r"impl Results for (\w+)", path.read_text(encoding="utf-8")) for path in sources.rglob("*.rs")
    ]
    assert {name for names in results for name in names} == set(speed.RESULTS)


def case(relative: float, rows: int = 1, **facts: object) -> speed.Case:
    tile = (("bits", 4), ("size", 4), ("rows", rows), ("vectors", 1))
    found = speed.Case(
        "x.so", "f", speed.Site("neon", "codes", "small_tile", tile), code("nop"), code("nop"), 1000, 1, main=True
    )
    found.cycles = relative
    for name, value in facts.items():
        setattr(found, name, value)
    return found


@pytest.mark.parametrize(
    ("cases", "complaint"),
    [
        ([case(130)], ""),
        ([case(126), case(130.1), case(131)], "too slow in x.so"),
        ([case(126, spill_cycles=1.0)], "a spill costs a cycle in x.so"),
        ([case(126, spill_cycles=0.5)], ""),
        ([case(126), case(0, error="it calls a function")], "cannot be simulated: it calls a function"),
        ([case(126), case(500, main=False)], ""),
        ([], "no loop found"),
    ],
)
def test_bars(cases: list[speed.Case], complaint: str) -> None:
    (result,) = (r for r in speed.results(cases, python=False) if (r.name, r.tier) == ("4 bits, one row", "neon"))
    assert result.complaint == complaint


def test_bars_on_rows_are_for_the_largest_tile() -> None:
    found = speed.results([case(500, rows=1), case(400, rows=2), case(128, rows=4)], python=False)
    (result,) = (r for r in found if (r.name, r.tier) == ("4 bits, rows", "neon"))
    assert result.complaint == ""


def test_the_portable_tier_is_compared_but_misses_no_bar() -> None:
    others = [case(relative) for relative in (500, 640, 0)]
    for each in others:
        each.site = replace(each.site, portable=True)
    others[2].error = "it calls a function"
    found = speed.results([case(126), *others], python=False)
    (result,) = (r for r in found if (r.name, r.tier) == ("4 bits, one row", "neon"))
    assert (result.cases[0].relative, result.portable, result.complaint) == (126, others[0], "")


def test_bars_that_only_the_python_extension_can_reach() -> None:
    def missing(python: bool) -> set[str]:
        return {result.name for result in speed.results([], python) if result.complaint}

    assert missing(True) - missing(False) == {"gradients, 8 bits", "gradients, floats"}


@pytest.mark.parametrize(
    ("cycles", "rustc", "shipped", "status", "words"),
    [
        (126, "1.96.0", "same.so", 0, "speed: 0 bars missed"),
        (131, "1.96.0", "same.so", 1, "too slow"),
        (126, "1.96.0", "other.so", 1, "other.so has other machine code"),
        (126, "1.97.0", "same.so", 3, "NOT COMPARED, since the bars are for other versions: rustc 1.97.0, not 1.95.x"),
        (131, "1.97.0", "same.so", 3, "NOT COMPARED"),
    ],
)
def test_the_exit_status(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    cycles: float,
    rustc: str,
    shipped: str,
    status: int,
    words: str,
) -> None:
    for name in ("lines.so", "same.so", "other.so"):
        (tmp_path / name).touch()
    monkeypatch.setattr(speed, "versions", lambda libraries: {"rustc": rustc, "llvm-mca": "22.1.8"})
    monkeypatch.setattr(speed, "cases_of", lambda library: [case(cycles)])
    monkeypatch.setattr(speed, "predict", lambda cases: None)
    monkeypatch.setattr(speed, "text_of", lambda library: b"2" if library.name == "other.so" else b"1")
    bars = {name: bar for name, bar in speed.BARS.items() if name == "4 bits, one row"}
    monkeypatch.setattr(speed, "BARS", {name: replace(bar, cycles={"neon": 130}) for name, bar in bars.items()})
    arguments = ["speed.py", str(tmp_path / "lines.so"), "--shipped", str(tmp_path / shipped)]
    monkeypatch.setattr("sys.argv", [*arguments, "--json", str(tmp_path / "speed.json")])
    assert speed.main() == status
    output = capsys.readouterr()
    assert words in output.out + output.err
    (bar,) = json.loads((tmp_path / "speed.json").read_text(encoding="utf-8"))["bars"]
    assert (bar["relative"], bool(bar["complaint"])) == (cycles, cycles > 130)


def test_loops_are_numbered_from_their_header_on() -> None:
    loop = Loop(3, {1, 3, 4})
    assert loop.own() == [3, 4, 1]
