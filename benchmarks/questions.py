"""The pages of measurements: their columns, their questions, and the rows of a report that answer each question."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from benchmarks.results import Row


@dataclass(frozen=True)
class Column:
    """One rival, or several that stand for the same thing."""

    title: str
    against: str
    """A pattern for the start of :attr:`Row.against`."""

    def holds(self, row: Row) -> bool:
        """Whether a row belongs in the column."""
        return re.match(self.against, row.against) is not None


@dataclass(frozen=True)
class Line:
    """A line of the table: something that ran on our side, over all measured shapes."""

    label: str
    group: str
    """A pattern that matches the whole of :attr:`Row.group`."""
    what: str = ""
    """A pattern found in :attr:`Row.what`."""
    samples: int | None = None
    """The rows of X, M; None for any."""

    def holds(self, row: Row) -> bool:
        """Whether a row belongs in the line. A report's means do not, since the table computes its own."""
        return (
            re.fullmatch(self.group, row.group) is not None
            and row.shape is not None
            and re.search(self.what, row.what) is not None
            and self.samples in (None, row.shape[0])
        )


@dataclass(frozen=True)
class Question:
    """A question, and the lines that answer it."""

    text: str
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Page:
    """A page of measurements.

    Attributes:
        title: Its heading.
        option: The option of `python -m benchmarks` that measures it.
        target: The target of make that measures it.
        about: What was measured, in a paragraph.
        threads: "all": the table shows rows measured on the most threads; "one": rows measured on one thread.
        columns: The rivals.
        questions: The groups of lines.
        notes: What a reader of the figures should know, by the term that each note explains.
    """

    title: str
    option: str
    target: str
    about: str
    threads: str
    columns: tuple[Column, ...]
    questions: tuple[Question, ...]
    notes: dict[str, str] = field(default_factory=dict)

    def shown(self, rows: Iterable[Row], tier: str) -> list[Row]:
        """The rows on the threads and the tier that the table is about."""
        rows = [row for row in rows if row.tier == tier]
        threads = max((row.threads for row in rows), default=1) if self.threads == "all" else 1
        # What was measured on one thread only is shown all the same.
        several = {(row.group, row.what) for row in rows if row.threads == threads}
        return [row for row in rows if row.threads == threads or (row.group, row.what) not in several]


EAGER, COMPILED = "eager PyTorch", "`torch.compile`"
INT_MM, BF16 = "`torch._int_mm`", "autocast to bfloat16"

KERNEL = Page(
    title="Kernel speed",
    option="",
    target="bench",
    about=(
        "One fused forward pass on arrays in memory, compared with the same arithmetic in PyTorch's own operators, and "
        "its parts compared with what the processor can do at most."
    ),
    threads="all",
    columns=(
        Column(EAGER, r"eager PyTorch|three lines of PyTorch|torch\.randn|F\.linear|grad @ w"),
        Column(INT_MM, r"torch\._int_mm"),
        Column("one thread", "one thread"),
        Column("of the peak", r".* alone$|reading as many bytes"),
    ),
    questions=(
        Question(
            "How fast is a forward pass?",
            (
                Line("8-bit inputs, weights and outputs, relative noise", "forward"),
                Line("8 bits, additive noise", "additive"),
                Line("8 bits, weights quantised beforehand on both sides", "prepared"),
                Line("analog inputs and weights, relative noise, 8-bit ADC", "seed"),
            ),
        ),
        Question(
            "How fast are its parts?",
            (
                Line("Gaussian noise", "noise"),
                Line("8-bit product with DAC and scaling", "gemm", "^int8"),
                Line("float32 product", "gemm", "^float32"),
                Line('both gradients, float32 (precision "highest")', "gemm", 'dX and dW, precision "highest"'),
                Line('both gradients, 16 bits (precision "high")', "gemm", 'dX and dW, precision "high"'),
                Line("both gradients, 8 bits", "gemm", "dX and dW, gradients of 8 bits"),
                Line("both gradients, 8 bits, to codes of 4 bits", "gemm", "dX and dW, codes of 4 bits"),
                Line("weights quantised and packed, 8 bits", "packing", "8-bit"),
                Line("weights quantised and packed, 4 bits", "packing", "4-bit"),
            ),
        ),
        Question("What does a second thread bring?", (Line("8 bits, relative noise", "scaling"),)),
    ),
    notes={
        EAGER: (
            "the same arithmetic as separate operators (`benchmarks/eager.py`); for the parts, the operator of PyTorch "
            "that does that part: `torch.randn`, `F.linear`, `grad @ w` and `grad.t() @ x`."
        ),
        INT_MM: "PyTorch's product of 8-bit integers, with the other steps as separate operators around it.",
        "of the peak": (
            "the share of the processor's own peak that a call reaches: of its product instruction for products, of "
            "the bandwidth of reading the same bytes for packing. The peaks are measured in the same process."
        ),
    },
)

WAYS = ('precision "highest"', 'precision "high"', "gradients of 8 bits")


def _peak(name: str, what: str) -> tuple[Line, ...]:
    return (
        Line(f"{name}, peak of a step", "memory", f'{what}.*(noise_relative|"highest")$'),
        Line('the same, precision "high"', "memory", f'{what}.*"high"$'),
        Line("the same, gradients of 8 bits", "memory", f"{what}.*gradients of 8 bits$"),
        Line("without any scratch it would be", "memory", f"{what}.*nothing but their results$"),
    )


TRAINING = Page(
    title="Training speed",
    option=" --training",
    target="bench-train",
    about=(
        "A step of noise-aware training, forward pass and all gradients, through PyTorch's autograd, compared with the "
        "same layer or network written in PyTorch's own operators. 8-bit inputs, weights and outputs, relative noise."
    ),
    threads="all",
    columns=(
        Column(EAGER, "eager PyTorch$"),
        Column(COMPILED, "torch.compile of it"),
        Column(INT_MM, r"torch\._int_mm"),
        Column(BF16, "eager, autocast"),
        Column("aihwkit", "aihwkit"),
        Column("one thread", "one thread"),
        Column(f'{EAGER} at "highest"', "eager PyTorch, precision"),
    ),
    questions=(
        Question(
            "How fast is a step of one layer?",
            (
                Line('precision "highest"', "training|aihwkit", '^one layer.*"highest"'),
                Line('precision "high"', "training", '^one layer.*"high"'),
                Line("gradients of 8 bits", "training", "^one layer.*8/8/8 bits.*gradients of 8 bits"),
                Line("gradients of 8 bits, layers of 4 bits", "training", "^one layer.*4/4/4 bits"),
            ),
        ),
        Question(
            "How fast is a step of a network?",
            (
                Line("small perceptron, 64-64-64-10", "networks", "^a small perceptron"),
                *(
                    Line(
                        f"perceptron for MNIST, {way}", "networks|aihwkit", f"^perceptron for MNIST.*8/8/8 bits.*{way}"
                    )
                    for way in WAYS
                ),
                *(
                    Line(
                        f"linear layers of a ViT-Tiny block, {way}",
                        "networks|aihwkit",
                        f"^the linear layers of a ViT.*8/8/8 bits.*{way}",
                    )
                    for way in WAYS
                ),
                *(
                    Line(
                        f"MLP-Mixer S/16 block, {way}", "networks|aihwkit", f"^a block of MLP-Mixer.*8/8/8 bits.*{way}"
                    )
                    for way in WAYS
                ),
            ),
        ),
        Question(
            "How fast is an epoch of 4,000 images of MNIST, on one thread?",
            tuple(
                Line(f"{bits} bits, {way}", "epoch", f"{bits}/{bits}/{bits} bits.*{way}")
                for bits in (8, 4)
                for way in WAYS
            ),
        ),
        Question(
            "How much less memory does a step take?",
            (
                Line("one layer, kept between forward and backward", "memory", "^one layer: saved"),
                Line("MLP-Mixer S/16 block, kept", "memory", "^a block of MLP-Mixer.*: saved"),
                *(
                    line
                    for name, task in (
                        ("one layer", "one layer"),
                        ("perceptron for MNIST", "perceptron for MNIST.*"),
                        ("linear layers of a ViT-Tiny block", "the linear layers of a ViT.*"),
                        ("MLP-Mixer S/16 block", "a block of MLP-Mixer.*"),
                    )
                    for line in _peak(name, f"^{task}: most at once in a step")
                ),
            ),
        ),
        Question("What does a second thread bring?", (Line("step of one layer", "step-scaling"),)),
    ),
    notes={
        EAGER: (
            "the same layer as separate operators (`benchmarks/eager.py`), at the same "
            "`torch.set_float32_matmul_precision`. In an epoch, whose full scales are fixed, it uses "
            "`torch.fake_quantize_per_tensor_affine`."
        ),
        COMPILED: "that layer under `torch.compile`; compilation is not part of any time.",
        INT_MM: "the forward product of 8-bit codes by `torch._int_mm`, with separate operators before and after it.",
        BF16: "the eager layer under `torch.autocast`, which rounds the forward product to bfloat16 as well.",
        "aihwkit": (
            "its analog tile in C++. It models more effects than these layers do, and its weights stay analog. It was "
            "built from the source package of 1.2.0, with OpenBLAS; its threads and PyTorch's compete, so that it "
            "gains little from a second one."
        ),
        'precision "high", gradients of 8 bits': (
            "the products of gradients have fewer bits than float32: [the operator](../operator.md#block-fixed-point) "
            'says which. The rivals are at "medium", their fastest; a column of its own has eager PyTorch at its '
            'default, "highest".'
        ),
        "networks": (
            "inputs are random, and the optimizer (SGD) is part of the step. The ViT-Tiny line has the four linear "
            "layers of a block and nothing between them; the MLP-Mixer line is a whole block, whose norms and "
            "activations are PyTorch's on all sides. The small perceptron shows the cost of calls, not of arithmetic."
        ),
        "memory": (
            "kept are the bytes of all tensors that autograd saves, parameters excepted. The peak is what the resident "
            "memory of a process of its own grows by in a step; x, weights and the gradient "
            "of the output, which are there before, do not count. What other layers keep is the same on both sides."
        ),
        "without any scratch": (
            "the least peak that is possible, measured in the same way with layers that compute nothing. PyTorch holds "
            "Y, dX, dW and db in float32 at the end of a layer's backward pass, and what the forward pass saved: codes "
            "of X in 8 bits, and a step for each row of X and W. For a layer M x K x N these are 4 (MN + MK + NK + N) "
            "+ MK + 4 (M + N) bytes. In a network, layers before it have saved tensors as well, and layers behind it "
            "have dW and db."
        ),
    },
)

ROWS = {"one row": 1, "sixteen rows": 16}


def _layer(samples: int) -> tuple[Line, ...]:
    return (
        *(
            Line(f"{bits}-bit weights, DAC and ADC", "session", f"^{bits}-bit weights, DAC and ADC", samples)
            for bits in (8, 4, 2, 1)
        ),
        Line("8-bit weights, DAC, noise and ADC", "session", "DAC, noise and ADC", samples),
    )


ONNXRUNTIME = Page(
    title="Speed in ONNX Runtime",
    option=" --edge",
    target="bench-edge",
    about=(
        "Layers and networks in ONNX Runtime sessions, compared with ONNX Runtime's own operators on the same data: a "
        "float32 product, its fastest exact integer product of as many bits, and the function of standard operators by "
        "which a file runs where our library is not registered."
    ),
    threads="one",
    columns=(
        Column("float32 `MatMul`", r"MatMul, float32|standard operators: float product"),
        Column("integer operators", r"integer operators|standard operators: integer product"),
        Column("without the library", "its function body"),
        Column("PyTorch `F.linear`", "PyTorch F.linear"),
        Column("of the peak", "reading as many bytes"),
        Column("ours on one thread", "ours on one thread"),
    ),
    questions=(
        *(Question(f"How fast is a layer for {name}?", _layer(samples)) for name, samples in ROWS.items()),
        Question(
            "How fast is a perceptron, 784-1024-1024-10, for one row?",
            tuple(Line(f"{bits}-bit weights", "models", f"^a perceptron, {bits}-bit", 1) for bits in (8, 4, 2, 1)),
        ),
        Question(
            "How fast are the models of `models/`, for one row?",
            tuple(
                Line(f"`{name}.onnx`", "models", f"^{name}")
                for name in ("digits-4bit", "digits-8bit", "mnist5k-4bit", "mnist5k-8bit")
            ),
        ),
        Question(
            "How soon is a session ready, 4096 x 4096?",
            tuple(Line(f"{bits}-bit weights", "creation", f"{bits}-bit") for bits in (8, 4, 2, 1)),
        ),
        Question(
            "How fast are whole networks, for one sample and for eight?",
            tuple(
                Line(f"{name}, {kind}", "whole", f"^{name},.* 8 bits, {kind}")
                for name in ("MiniLM-L3", "MiniLM-L6", "ViT-Tiny", "a block of GPT-2")
                for kind in ("fixed full scales", "dynamic full scales", "without the library")
            ),
        ),
        Question(
            "How fast are layers one after another on two threads, 256 to 2,048 wide?",
            tuple(Line(f"1 to 12 layers of {bits} bits", "chains", f"{bits}-bit") for bits in (8, 4, 2)),
        ),
        Question(
            "How near to the bandwidth of memory, where other layers' sessions run in between?",
            tuple(Line(f"{bits}-bit weights", "stream", f"{bits}-bit") for bits in (8, 4)),
        ),
    ),
    notes={
        "integer operators": (
            "the fastest of `MatMulNBits` (accuracy level 4, with the best block size of 32, 64, 128 and 256; of 32 "
            "and 128 for the bandwidth of memory; of 128 for how soon a session is ready) and, at 8 bits, "
            "`DynamicQuantizeLinear` with `MatMulInteger` where its sums are exact. `MatMulNBits` has neither ADC nor "
            "noise. A 1-bit layer is compared with 2 bits, the fewest that it has."
        ),
        "without the library": (
            "the operator's function of standard ONNX operators, which a file carries for hosts without our library."
        ),
        "with noise": "the other columns are the layer in standard operators, around a float32 or integer product.",
        "sessions": (
            "all have the same options, with input and output bound. Against integer operators and the function, the "
            "time of a session with one operator on one number is subtracted on both sides of a layer's comparison."
        ),
        "models": "the float32 model is the same graph with the dequantised weights.",
        "whole networks": (
            "transformers of these sizes with random weights, exported from PyTorch (`benchmarks/transformers.py`). "
            "Integer operators are what ONNX Runtime's `quantize_dynamic` makes of the float32 model, with a scale for "
            "each output. Attention, norms and GELU are the same float32 operators on all sides."
        ),
        "ready": (
            "from the file, with its weights in a second file, to a session that can run. Ours lays the weights out on "
            "as many threads as there are cores; ONNX Runtime packs on one. All sessions stay alive, so that each "
            "takes fresh memory."
        ),
    },
)

#: The pages, by the :attr:`~benchmarks.groups.Group.page` of the groups that they show.
PAGES = {"": KERNEL, "training": TRAINING, "edge": ONNXRUNTIME}
