"""What every group of measurements receives: the machine, its peaks, the shapes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from benchmarks.machine import Machine
from benchmarks.peaks import DOT, FMA, PAIRS, Peaks
from benchmarks.results import Shape
from benchmarks.timing import FULL, QUICK, Effort

#: M, K, N.
SHAPES: tuple[Shape, ...] = (
    (32, 1024, 1024),
    (256, 1024, 1024),
    (1024, 1024, 1024),
    (256, 256, 256),
    (128, 784, 512),
    (4096, 64, 1024),
    (512, 384, 1536),
)
TINY_SHAPES: tuple[Shape, ...] = ((8, 64, 48), (17, 32, 64))


@dataclass
class Context:
    """What a group receives.

    Attributes:
        machine: This machine.
        quick: Tiny sizes and few rounds, to check that the runner works, not how fast anything is.
        peaks: The library that measures peaks, or None where it cannot be built.
        rates: Operations per second of one core, by instruction.
        say: Shows what is being measured.
        skipped: What could not be measured, and why; groups add to it.
    """

    machine: Machine
    quick: bool = False
    peaks: Peaks | None = None
    rates: dict[str, float] = field(default_factory=dict)
    say: Callable[[str], None] = lambda text: None
    skipped: dict[str, str] = field(default_factory=dict)

    @property
    def effort(self) -> Effort:
        """How long to measure."""
        return QUICK if self.quick else FULL

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """The shapes of forward passes and training steps."""
        return TINY_SHAPES if self.quick else SHAPES

    @property
    def threads(self) -> int:
        """The largest number of threads that is measured."""
        return min(2, self.machine.cores)

    def goal(self, **by_kind: float) -> float | None:
        """The goal for this kind of machine, else that for `any`. None with tiny sizes."""
        if self.quick:
            return None
        kind = (self.machine.kind or "").removesuffix("-avx512")
        return by_kind.get(kind, by_kind.get("any"))

    def instruction(self, peak: str) -> str | None:
        """The tier's instruction for "dot" (8-bit codes), "fma" or "pairs" (16-bit codes); None where it has none."""
        return {"dot": DOT, "fma": FMA, "pairs": PAIRS}[peak].get(self.machine.tier)

    def rate(self, peak: str) -> float | None:
        """Operations per second that one core reaches with the :meth:`instruction`."""
        return self.rates.get(self.instruction(peak) or "")

    def gradient_peak(self, precision: str, gradient_bits: int | None) -> str:
        """The peak for the products of a backward pass with codes of 8 bits."""
        if gradient_bits is None:
            return "fma" if precision == "highest" else "pairs"
        # Without such instructions, codes of 8 bits are multiplied in pairs in any case.
        return "pairs" if self.machine.tier in ("avx2", "avx512bw") else "dot"
