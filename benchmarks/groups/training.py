"""Noise-aware training: steps of a layer and of networks, their memory, and an epoch."""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from benchmarks import eager, memory, rivals
from benchmarks.context import Context
from benchmarks.groups.forward import BITS, means, use_threads
from benchmarks.groups.scaling import LARGE
from benchmarks.results import Row, Time, compare
from benchmarks.rivals import AIHWKIT, AUTOCAST, COMPILED, EAGER, INT_MM, OURS, OURS_COMPILED, PLAIN, Task
from benchmarks.timing import Call, Effort, Samples, Side, interleave
from lumina_onnx import OpticalProfile
from lumina_onnx import nn as optical
from lumina_onnx.cli import classifier

LAW = f"{BITS}, noise_relative"
#: The names in ``torch.set_float32_matmul_precision``. "high" is not measured: on our side it equals "medium", and in
#: PyTorch it equals "highest" on processors without instructions for it.
HIGHEST, MEDIUM = "highest", "medium"
#: The rivals at each precision, and the precision at which each runs. autocast always multiplies in bfloat16.
COMPARED = {
    HIGHEST: [(EAGER, HIGHEST), (COMPILED, HIGHEST), (INT_MM, HIGHEST), (AUTOCAST, HIGHEST)],
    MEDIUM: [(EAGER, HIGHEST), (EAGER, MEDIUM), (COMPILED, MEDIUM), (INT_MM, MEDIUM), (AUTOCAST, HIGHEST)],
}
SAVED, PEAK = "saved between forward and backward", "most at once in a step"
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
        for precision in (HIGHEST, MEDIUM):
            mine = [row for row in found if row.what.endswith(f'"{precision}"')]
            yield from means(mine, _goals(context, precision) if threads == context.threads else {})


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
            what=f'{task.name}: forward, backward, {LAW}, precision "{HIGHEST}"',
            against="one thread",
            shape=shape,
            threads=2,
            tier=context.machine.tier,
            goal=context.goal(any=1.9) if math.prod(shape) >= LARGE else None,
        )


def _goals(context: Context, precision: str) -> dict[str, float | None]:
    if precision == HIGHEST:
        return {EAGER: context.goal(intel=3.0, amd=4.0)}
    return {EAGER_HIGHEST: context.goal(amd=6.0)}


def _step(context: Context, task: Task, threads: int) -> Iterator[Row]:
    """Ours against the rivals at each precision, and at "medium" also against PyTorch at its default precision."""
    context.say(f"{task.name}, {' x '.join(map(str, task.shape))}, {threads} threads")
    use_threads(threads)
    # Compiling takes seconds: with tiny sizes once is enough to see that it runs.
    compiled = not context.quick or (threads == context.threads and task.shape == context.shapes[0])
    compared = {
        precision: [other for other in others if compiled or other[0] != COMPILED]
        for precision, others in COMPARED.items()
    }
    wanted = dict.fromkeys([(OURS, precision) for precision in compared] + [*itertools.chain(*compared.values())])
    sides = {(side, asked): rivals.at_precision(rivals.step(task, side), asked) for side, asked in wanted}
    try:
        times = interleave(sides, _effort(context, task))
    finally:
        torch.set_float32_matmul_precision(HIGHEST)
        if compiled:
            torch.compiler.reset()
    for precision, others in compared.items():
        for side, asked in others:
            name = EAGER_HIGHEST if side == EAGER and asked != precision else side
            group = "networks" if task.optimized else "training"
            yield _row(context, task, threads, precision, times[OURS, precision], name, times[side, asked], group)


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
            found.append(_row(context, task, threads, HIGHEST, times[OURS], AIHWKIT, times[AIHWKIT], group="aihwkit"))
            yield found[-1]
        yield from means([row for row in found if row.what == found[0].what], {})


def _effort(context: Context, task: Task) -> Effort:
    """Fewer rounds for a network, since each takes long."""
    return dataclasses.replace(context.effort, rounds=min(context.effort.rounds, 9 if task.optimized else 15))


def _row(
    context: Context, task: Task, threads: int, precision: str, ours: Samples, against: str, theirs: Samples, group: str
) -> Row:
    peak = context.gradient_peak(precision)
    rate = context.rate(peak)
    operations = 2 * task.multiply_adds()
    return compare(
        ours,
        theirs,
        group=group,
        what=f'{task.name}: forward, backward{", SGD" if task.optimized else ""}, {LAW}, precision "{precision}"',
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
    compiled = [OURS_COMPILED] if not context.quick or threads == context.threads else []
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
            what=f'{task.name}: forward, loss, backward, SGD, {LAW}, precision "{HIGHEST}"',
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
        yield from _bytes(context, task, SAVED, {side: rivals.saved_bytes(task, side) for side in (OURS, *others)})
    for index in range(1 if context.quick else len(tasks)):
        task = tasks[index]
        context.say(f"peak memory, {task.name}, {' x '.join(map(str, task.shape))}")
        try:
            sides = (OURS, EAGER) if context.quick else (OURS, EAGER, INT_MM)
            amounts = {side: memory.peak(index, side, context.threads, context.quick) for side in sides}
        except memory.Missing as reason:
            context.skipped["peak memory"] = str(reason)
            return
        yield from _bytes(context, task, PEAK, amounts)


def _bytes(context: Context, task: Task, what: str, amounts: dict[str, int]) -> Iterator[Row]:
    ours = amounts.pop(OURS)
    for side, theirs in amounts.items():
        ratio = theirs / ours
        yield Row(
            group="memory",
            what=f"{task.name}: {what}, {LAW}",
            against=side,
            shape=task.shape,
            threads=context.threads,
            tier=context.machine.tier,
            ratio=ratio,
            low=ratio,
            high=ratio,
            unit="bytes",
            ours_bytes=ours,
            theirs_bytes=theirs,
            goal=context.goal(any=8.0) if what == SAVED and side == EAGER else None,
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
        sides = {
            (OURS, HIGHEST): model,
            (OURS, MEDIUM): copy.deepcopy(model),
            (EAGER, HIGHEST): in_eager(model),
            (EAGER, MEDIUM): in_eager(model),
            (PLAIN, HIGHEST): copy.deepcopy(plain),
        }
        if not context.quick:
            sides[COMPILED, HIGHEST] = in_eager(model)
            sides[COMPILED, HIGHEST].compile()
        yield from _epoch(context, data, f"{bits}/{bits}/{bits} bits", sides)


def _epoch(
    context: Context, data: classifier.Data, law: str, models: dict[tuple[str, str], nn.Module]
) -> Iterator[Row]:
    def training(model: nn.Module) -> Call:
        return lambda: classifier.fit(model, data, epochs=1, seed=0)

    sides = {key: rivals.at_precision(training(model), key[1]) for key, model in models.items()}
    try:
        times = interleave(sides, dataclasses.replace(context.effort, rounds=min(context.effort.rounds, 7)))
    finally:
        torch.set_float32_matmul_precision(HIGHEST)
        torch.compiler.reset()
    what = f"an epoch of {data.name}, {law}: batches of {classifier.BATCH}, Adam, noise_additive"
    for precision in (HIGHEST, MEDIUM):
        for (side, asked), time in times.items():
            if side != OURS and asked == precision:
                yield compare(
                    times[OURS, precision],
                    time,
                    group="epoch",
                    what=f'{what}, precision "{precision}"',
                    against=side,
                    shape=(len(data.train_x), data.pixels, classifier.HIDDEN, classifier.HIDDEN, classifier.CLASSES),
                    threads=1,
                    tier=context.machine.tier,
                    goal=context.goal(any=3.0) if side == EAGER and precision == HIGHEST else None,
                )
