"""Noise-aware training: steps of a layer and of networks, their memory, and an epoch."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import eager, memory, rivals
from benchmarks.context import Context
from benchmarks.groups.forward import means, use_threads
from benchmarks.groups.scaling import LARGE
from benchmarks.results import Row, Time, compare
from benchmarks.rivals import (
    AIHWKIT,
    AT_HIGH,
    AT_HIGHEST,
    AUTOCAST,
    CODES_OF_4_BITS,
    COMPILED,
    EAGER,
    HIGH,
    HIGHEST,
    IN_8_BITS,
    INT_MM,
    MEDIUM,
    OURS,
    OURS_COMPILED,
    PLAIN,
    PLAIN_COMPILED,
    RESULTS,
    WAYS,
    Task,
    Way,
)
from benchmarks.timing import Call, Effort, Samples, Side, interleave
from lumina_onnx import OpticalProfile
from lumina_onnx import nn as optical
from lumina_onnx.cli import classifier

#: The rivals of each way, and the precision at which each runs. autocast always multiplies in bfloat16.
COMPARED = {
    AT_HIGHEST: [(EAGER, HIGHEST), (COMPILED, HIGHEST), (INT_MM, HIGHEST), (AUTOCAST, HIGHEST)],
    AT_HIGH: [(EAGER, HIGHEST), (EAGER, MEDIUM), (COMPILED, MEDIUM), (INT_MM, MEDIUM), (AUTOCAST, HIGHEST)],
    IN_8_BITS: [(EAGER, HIGHEST), (EAGER, MEDIUM), (COMPILED, MEDIUM), (INT_MM, MEDIUM), (AUTOCAST, HIGHEST)],
    CODES_OF_4_BITS: [(EAGER, HIGHEST), (EAGER, MEDIUM), (AUTOCAST, HIGHEST)],
}
SAVED, PEAK = "saved between forward and backward", "most at once in a step"
#: The ways that our peak is measured in, and what :func:`memory.peak` calls them.
PEAK_WAYS = {AT_HIGHEST: HIGHEST, AT_HIGH: HIGH, IN_8_BITS: memory.EIGHT_BITS}
#: In place of a way: a side that has no scratch, :class:`rivals.ResultsLinear`.
AT_LEAST = "if layers needed nothing but their results"
EAGER_HIGHEST = f'{EAGER}, precision "{HIGHEST}"'


def steps(context: Context) -> Iterator[Row]:
    """A layer of each shape, on all threads and on one."""
    tasks = [rivals.layer(shape) for shape in context.shapes]
    for threads in counts(context):
        found = []
        for task in tasks:
            for row in _step(context, task, threads):
                found.append(row)
                yield row
        for way in WAYS:
            mine = [row for row in found if row.what.endswith(f"{way.law}, {way.name}")]
            yield from means(mine, _goals(context, way) if threads == context.threads else {})


def networks(context: Context) -> Iterator[Row]:
    """Whole networks, with the optimizer's step."""
    for threads in counts(context):
        yield from _small(context, threads)
    for threads in counts(context):
        for task in rivals.networks(context.quick):
            yield from _step(context, task, threads)


def counts(context: Context) -> list[int]:
    """The numbers of threads, largest first."""
    return sorted({1, context.threads}, reverse=True)


def scaling(context: Context) -> Iterator[Row]:
    """The steps of :func:`steps` on two threads against one, at "highest"; each side waits until threads rest."""
    if context.machine.cores < 2:
        return
    for shape in context.shapes:
        task = rivals.layer(shape)
        context.say(" x ".join(map(str, shape)))
        call = rivals.step(task, OURS)
        sides = {count: Side(call, before=functools.partial(use_threads, count)) for count in (2, 1)}
        times = interleave(
            {str(count): side for count, side in sides.items()}, _effort(context, task), own_threads=True
        )
        yield compare(
            times["2"],
            times["1"],
            group="step-scaling",
            what=f"{task.name}: forward, backward, {AT_HIGHEST.law}, {AT_HIGHEST.name}",
            against="one thread",
            shape=shape,
            threads=2,
            tier=context.machine.tier,
            goal=context.goal(any=1.9) if math.prod(shape) >= LARGE else None,
        )


def _goals(context: Context, way: Way) -> dict[str, float | None]:
    return {
        AT_HIGHEST: {EAGER: context.goal(intel=3.0, amd=4.0)},
        AT_HIGH: {EAGER_HIGHEST: context.goal(amd=5.2, avx2=2.4), AUTOCAST: context.goal(amd=3.0)},
        IN_8_BITS: {EAGER_HIGHEST: context.goal(amd=6.5), AUTOCAST: context.goal(amd=4.0)},
        CODES_OF_4_BITS: {EAGER_HIGHEST: context.goal(avx2=3.0)},
    }[way]


def _step(context: Context, task: Task, threads: int) -> Iterator[Row]:
    """Ours in each way against its rivals, which include PyTorch at its default precision."""
    context.say(f"{task.name}, {' x '.join(map(str, task.shape))}, {threads} threads")
    use_threads(threads)
    # Compiling takes seconds: with tiny sizes once is enough to see that it runs.
    compiled = not context.quick or (threads == context.threads and task.shape == context.shapes[0])
    compared = {
        way: [other for other in others if compiled or other[0] != COMPILED] for way, others in COMPARED.items()
    }
    # Only the bits of a way matter to a rival.
    ours = {(OURS, way): rivals.at_precision(rivals.step(task, OURS, way), way.precision) for way in compared}
    theirs = {
        (side, asked, way.bits): rivals.at_precision(rivals.step(task, side, Way("", bits=way.bits)), asked)
        for way, others in compared.items()
        for side, asked in others
    }
    sides: dict[Any, Side] = {**ours, **theirs}
    try:
        times = interleave(sides, _effort(context, task))
    finally:
        torch.set_float32_matmul_precision(HIGHEST)
        if compiled:
            torch.compiler.reset()
    for way, others in compared.items():
        for side, asked in others:
            name = EAGER_HIGHEST if side == EAGER and asked == HIGHEST and way != AT_HIGHEST else side
            group = "networks" if task.optimized else "training"
            yield _row(context, task, threads, way, times[OURS, way], name, times[side, asked, way.bits], group)


def analog(context: Context) -> Iterator[Row]:
    """aihwkit, if it is installed. It has threads of its own, so each side waits until threads rest."""
    if reason := rivals.why_no_aihwkit():
        context.skipped["aihwkit"] = reason
        return
    for threads in counts(context):
        use_threads(threads)
        found = []
        for task in rivals.tasks(context.quick):
            context.say(f"{task.name}, {' x '.join(map(str, task.shape))}, {threads} threads")
            sides = {side: rivals.step(task, side) for side in (OURS, AIHWKIT)}
            times = interleave(sides, _effort(context, task), own_threads=True)
            found.append(
                _row(context, task, threads, AT_HIGHEST, times[OURS], AIHWKIT, times[AIHWKIT], group="aihwkit")
            )
            yield found[-1]
        yield from means([row for row in found if row.what == found[0].what], {})


def _effort(context: Context, task: Task) -> Effort:
    """Fewer rounds for a network, since each takes long."""
    return dataclasses.replace(context.effort, rounds=min(context.effort.rounds, 9 if task.optimized else 15))


def _row(
    context: Context, task: Task, threads: int, way: Way, ours: Samples, against: str, theirs: Samples, group: str
) -> Row:
    # No instruction alone sums products of codes of 4 bits everywhere.
    peak = context.gradient_peak(way.precision, way.gradient_bits) if way.bits == 8 else None
    rate = context.rate(peak) if peak else None
    operations = 2 * task.multiply_adds()
    return compare(
        ours,
        theirs,
        group=group,
        what=f"{task.name}: forward, backward{', SGD' if task.optimized else ''}, {way.law}, {way.name}",
        against=against,
        shape=task.shape,
        threads=threads,
        tier=context.machine.tier,
        peak=peak if rate else None,
        of_peak=operations / (Time.of(ours).median * rate * threads) if rate else None,
    )


def _small(context: Context, threads: int) -> Iterator[Row]:
    """A step of a small network, where calls cost more than arithmetic."""
    task = rivals.small()
    use_threads(threads)
    x, target = task.x.detach(), torch.randint(0, task.grad.shape[1], task.grad.shape[:1])

    def training(side: str) -> Call:
        model = rivals.with_layers_of(side, task.model)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

        @torch.enable_grad()
        def step() -> None:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), target).backward()
            optimizer.step()

        return step

    # Compiling takes seconds: with tiny sizes once is enough to see that it runs.
    compiled = [OURS_COMPILED, PLAIN_COMPILED] if not context.quick or threads == context.threads else []
    sides = {side: training(side) for side in (OURS, EAGER, PLAIN, *compiled)}
    try:
        times = interleave(sides, context.effort)
    finally:
        torch.compiler.reset()
    for side in (EAGER, PLAIN, *compiled):
        yield compare(
            times[OURS],
            times[side],
            against=side,
            group="networks",
            what=f"{task.name}: forward, loss, backward, SGD, {AT_HIGHEST.law}, {AT_HIGHEST.name}",
            shape=task.shape,
            threads=threads,
            tier=context.machine.tier,
            goal=context.goal(intel=2.0, amd=2.0) if side == EAGER and threads == context.threads else None,
        )


def kept(context: Context) -> Iterator[Row]:
    """Bytes kept between forward and backward, and the peak of a step."""
    use_threads(context.threads)
    tasks = rivals.tasks(context.quick)
    others = (EAGER, AUTOCAST, INT_MM)
    for task in tasks:
        context.say(f"bytes saved, {task.name}")
        ours, *theirs = (rivals.saved_bytes(task, side) for side in (OURS, *others))
        for side, amount in zip(others, theirs, strict=True):
            goal = context.goal(any=8.0) if side == EAGER else None
            yield _bytes(context, task, context.threads, f"{SAVED}, {AT_HIGHEST.law}", ours, side, amount, goal)
    for index in range(1 if context.quick else len(tasks)):
        try:
            yield from _peaks(context, tasks[index], index)
        except memory.Missing as reason:
            context.skipped["peak memory"] = str(reason)
            return


def _peaks(context: Context, task: Task, index: int) -> Iterator[Row]:
    """The most that a step holds at once, and the least that is possible.

    Ours is measured at each precision of gradients. At the highest, the others take as little as at any; "8 bits" they
    do not have.
    """

    def measured(side: str, threads: int, precision: str = HIGHEST) -> int:
        context.say(f"peak memory, {task.name}, {' x '.join(map(str, task.shape))}, {threads} threads, {side}")
        return memory.peak(index, side, precision, threads, context.quick)

    limit = measured(RESULTS, 1)
    for threads in counts(context):
        sides = (EAGER, INT_MM) if threads == context.threads and not context.quick else (EAGER,)
        theirs = {side: measured(side, threads) for side in sides}
        for way, precision in PEAK_WAYS.items():
            ours = measured(OURS, threads, precision)
            for side, amount in theirs.items():
                # 85 % of what is possible, and no less than the other side.
                goal = context.goal(any=max(1.0, 0.85 * amount / limit)) if side == EAGER else None
                yield _bytes(context, task, threads, f"{PEAK}, {way.law}, {way.name}", ours, side, amount, goal)
        for side, amount in theirs.items():
            yield _bytes(context, task, threads, f"{PEAK}, {AT_LEAST}", limit, side, amount, None)


def _bytes(
    context: Context, task: Task, threads: int, what: str, ours: int, side: str, theirs: int, goal: float | None
) -> Row:
    ratio = theirs / ours
    return Row(
        group="memory",
        what=f"{task.name}: {what}",
        against=side,
        shape=task.shape,
        threads=threads,
        tier=context.machine.tier,
        ratio=ratio,
        low=ratio,
        high=ratio,
        unit="bytes",
        ours_bytes=ours,
        theirs_bytes=theirs,
        goal=goal,
    )


# An epoch

#: The recipes in export/mnist5k.py: bits, and the noise's sigma as a fraction of the full scale.
RECIPES = ((8, 0.02), (4, 0.05))


class StaticLinear(nn.Linear):
    """The layer in eager PyTorch with the bits, ranges and noise of a profile."""

    profile: OpticalProfile

    def forward(self, input: Tensor) -> Tensor:
        profile = self.profile
        assert isinstance(profile.output_range, float)
        return eager.optical_linear(
            input,
            self.weight,
            self.bias,
            input_bits=profile.input_bits,
            weight_bits=profile.weight_bits,
            output_bits=profile.output_bits,
            input_range=profile.input_range,
            output_range=profile.output_range,
            noise_additive=profile.noise_additive,
        )


def in_eager(model: nn.Module) -> nn.Module:
    """A copy of a network with its optical layers in eager PyTorch, under the same profiles."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, optical.OpticalLinear):
            profile = module.profile
            module.__class__ = StaticLinear  # type: ignore[assignment]
            module.profile = profile
    return model


def epoch(context: Context) -> Iterator[Row]:
    """Noise-aware training as the recipes of models/ do it, optimizer and batches included."""
    data = classifier.digits() if context.quick else classifier.mnist5k()
    if context.quick:
        data = dataclasses.replace(data, train_x=data.train_x[:128], train_y=data.train_y[:128])
    plain = classifier.perceptron(data.pixels, seed=0)
    for bits, noise in RECIPES[:1] if context.quick else RECIPES:
        context.say(f"{data.name}, {bits} bits")
        model = optical.convert(plain, OpticalProfile(bits, bits, bits, noise_additive=noise), seed=0)
        optical.calibrate(model, data.train_x.split(500), method="mse", progress=False)
        ours: dict[Way, nn.Module] = {way: copy.deepcopy(model) for way in WAYS if way.bits == 8}
        for way, trained in ours.items():
            for layer in trained.modules():
                if isinstance(layer, optical.OpticalLinear):
                    layer.gradient_bits = way.gradient_bits
        theirs: dict[tuple[str, str], nn.Module] = {
            (EAGER, HIGHEST): in_eager(model),
            (EAGER, MEDIUM): in_eager(model),
            (PLAIN, HIGHEST): copy.deepcopy(plain),
        }
        if not context.quick:
            theirs[COMPILED, HIGHEST] = rivals.compiled(in_eager(model))
        yield from _epoch(context, data, f"{bits}/{bits}/{bits} bits", ours, theirs)


def _epoch(
    context: Context,
    data: classifier.Data,
    law: str,
    ours: dict[Way, nn.Module],
    theirs: dict[tuple[str, str], nn.Module],
) -> Iterator[Row]:
    def training(model: nn.Module, precision: str) -> Side:
        return rivals.at_precision(lambda: classifier.fit(model, data, epochs=1, seed=0), precision)

    sides = {(OURS, way): training(model, way.precision) for way, model in ours.items()}
    others = {(side, asked): training(model, asked) for (side, asked), model in theirs.items()}
    try:
        effort = dataclasses.replace(context.effort, rounds=min(context.effort.rounds, 7))
        every: dict[Any, Side] = {**sides, **others}
        times = interleave(every, effort)
    finally:
        torch.set_float32_matmul_precision(HIGHEST)
        torch.compiler.reset()
    what = f"an epoch of {data.name}, {law}: batches of {classifier.BATCH}, Adam, noise_additive"
    for way in ours:
        for side, asked in theirs:
            if way == AT_HIGHEST and asked != HIGHEST:
                continue
            name = EAGER_HIGHEST if side == EAGER and asked == HIGHEST and way != AT_HIGHEST else side
            goals = {AT_HIGHEST: context.goal(any=3.0), AT_HIGH: context.goal(amd=2.4, avx2=1.9)}
            eager_highest = (side, asked) == (EAGER, HIGHEST)
            yield compare(
                times[OURS, way],
                times[side, asked],
                group="epoch",
                what=f"{what}, {way.name}",
                against=name,
                shape=(len(data.train_x), data.pixels, classifier.HIDDEN, classifier.HIDDEN, classifier.CLASSES),
                threads=1,
                tier=context.machine.tier,
                goal=goals.get(way) if eager_highest and law.startswith("8") else None,
            )
