"""Results of measurements: rows with a ratio, its spread and its goal."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, asdict, dataclass, replace
from typing import Any

from benchmarks.timing import Samples

Shape = tuple[int, ...]


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """The first quartile, the median and the third."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


@dataclass(frozen=True)
class Time:
    """Seconds of one side's call: its median and its minimum."""

    median: float
    minimum: float

    @staticmethod
    def of(samples: Samples) -> Time:
        """The time from all samples of all rounds."""
        return Time(statistics.median(samples.seconds), min(samples.seconds))


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        group: The group that measures it.
        what: What ran on our side.
        against: The other side.
        shape: M, K, N; or rows and the sizes of a network's layers; or rows and columns of noise. None for a geometric
            mean over shapes.
        threads: Threads of both sides.
        tier: Our instruction-set tier.
        ratio: How many times as fast we are; with `unit` "peak" the fraction of the peak that we reach, with `unit`
            "bytes" how many times as much memory the other side takes. The median over rounds of the quotient of the
            two sides' medians in a round.
        low: The first quartile of the quotients.
        high: The third quartile.
        unit: "times", "peak" or "bytes".
        ours: Our time; None for a mean and for bytes.
        theirs: The other side's time.
        of_peak: The fraction that we reach of the processor's peak for this work; None where that says little.
        peak: Which peak that is.
        goal: The least that `ratio` should be; None if there is no goal.
        or_of_peak: The least `of_peak` that also meets the goal.
        ours_bytes: Our bytes, with `unit` "bytes".
        theirs_bytes: The other side's bytes.
    """

    group: str
    what: str
    against: str
    shape: Shape | None
    threads: int
    tier: str
    ratio: float
    low: float
    high: float
    unit: str = "times"
    ours: Time | None = None
    theirs: Time | None = None
    of_peak: float | None = None
    peak: str | None = None
    goal: float | None = None
    or_of_peak: float | None = None
    ours_bytes: int | None = None
    theirs_bytes: int | None = None

    @property
    def met(self) -> bool | None:
        """Whether the row reaches its goal; None if it has none."""
        if self.goal is None:
            return None
        return self.ratio >= self.goal or (
            self.or_of_peak is not None and self.of_peak is not None and self.of_peak >= self.or_of_peak
        )

    def with_goal(self, goal: float | None) -> Row:
        """The same row with another goal."""
        return replace(self, goal=goal)

    def as_dict(self) -> dict[str, Any]:
        """For JSON, without fields that have their default."""
        usual = {name: given.default for name, given in self.__dataclass_fields__.items()}
        return {name: value for name, value in asdict(self).items() if usual[name] is MISSING or value != usual[name]}

    @staticmethod
    def from_dict(fields: dict[str, Any]) -> Row:
        """The row from what :meth:`as_dict` returned."""
        times = {side: Time(**fields[side]) for side in ("ours", "theirs") if side in fields}
        return Row(**fields | times | {"shape": tuple(fields["shape"]) if fields["shape"] else None})


def quotients(ours: Samples, theirs: Samples, scale: float = 1.0) -> tuple[float, float, float]:
    """Quartiles over rounds of `scale * theirs / ours`, as low, median, high."""
    pairs = zip(ours.medians, theirs.medians, strict=True)
    return quartiles([scale * other / own for own, other in pairs])


def compare(ours: Samples, theirs: Samples, *, scale: float = 1.0, **fields: Any) -> Row:
    """The row for two sides that were measured in turn; the ratio is `scale * theirs / ours`."""
    low, ratio, high = quotients(ours, theirs, scale)
    return Row(ratio=ratio, low=low, high=high, ours=Time.of(ours), theirs=Time.of(theirs), **fields)


def geometric_mean(rows: Iterable[Row], goal: float | None) -> Row:
    """The mean over the shapes of rows that are otherwise alike."""
    rows = list(rows)
    first = rows[0]

    def mean(values: list[float]) -> float:
        return math.exp(statistics.fmean(map(math.log, values)))

    return Row(
        group=first.group,
        what=first.what,
        against=first.against,
        shape=None,
        threads=first.threads,
        tier=first.tier,
        ratio=mean([row.ratio for row in rows]),
        low=mean([row.low for row in rows]),
        high=mean([row.high for row in rows]),
        unit=first.unit,
        goal=goal,
    )
