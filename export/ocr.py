"""Text recognition on optical hardware: PaddleOCR's recogniser PP-OCRv4, from its published .onnx file.

Needs pip install '.[recipes]'; downloads nothing. Writes models/large/ocr-8bit.onnx and ocr-4bit-weights.onnx, and
docs/measurements/ocr.json (every figure), ocr.png and the generated part of ocr.md, and the cards in models/README.md.
`--check` tells whether the page and the figures agree, and `--render` rewrites page, plot and cards; neither measures
anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from _common import Page, Results, command, wrapped
from _published import (
    COLOURS,
    compare,
    comparison,
    curve,
    draw,
    facts,
    folder_of,
    made,
    sentences,
)
from numpy.typing import NDArray
from rich.progress import track

import lumina_onnx
from lumina_onnx import OpticalProfile, exporter
from lumina_onnx.cli.classifier import Estimate

PACKAGE = "rapidocr_onnxruntime"
FILE = "models/ch_PP-OCRv4_rec_infer.onnx"
HARDWARE = {
    "8 bits": OpticalProfile(8, 8, 8),
    "8 bits, weights of 4": OpticalProfile(8, 4, 8),
    "4 bits": OpticalProfile(4, 4, 4),
}
NOISES = (0.0, 0.01, 0.02)
STORED = {"ocr-8bit": ("8 bits", 0.01), "ocr-4bit-weights": ("8 bits, weights of 4", 0.01)}
"""The files, with their hardware and noise."""
HEIGHT = 48
WIDTH = 320
"""The least width of a batch, in pixels; lines of other heights are scaled to `HEIGHT`."""
BATCH = 20
CALIBRATION = 32
"""Lines for the calibration."""

Image = NDArray[np.uint8]
"""Grey values [height, width]."""
Batch = tuple[list[int], NDArray[np.float32]]
"""Which lines, and the recogniser's input for them, [lines, 3, HEIGHT, width]."""


def source() -> Path:
    """The published file, in the installed package.

    Raises:
        ModuleNotFoundError: the package is not installed.
    """
    return folder_of(PACKAGE) / FILE


def lines(count: int) -> list[str]:
    """The beginnings of sentences, each of 12 to 32 characters of ASCII and of whole words."""
    generator = np.random.default_rng(0)
    found: dict[str, None] = {}
    for text in sentences():
        longest = int(generator.integers(12, 33))
        words = text[: longest + 1].split(" ")
        line = text if len(text) <= longest else " ".join(words[:-1])
        if line.isascii() and len(line) >= 12:
            found[line] = None
        if len(found) == count:
            return list(found)
    raise ValueError(f"count = {count}: there are only {len(found)} lines")


def render(text: str, generator: np.random.Generator) -> Image:
    """A picture of the line in one of DejaVu's faces: of varied size, contrast, sharpness, grain and slant."""
    import matplotlib as mpl
    from PIL import Image as pictures
    from PIL import ImageDraw, ImageFilter, ImageFont

    faces = sorted(Path(mpl.get_data_path(), "fonts", "ttf").glob("DejaVuS*.ttf"))
    faces = [face for face in faces if "Display" not in face.name]
    font = ImageFont.truetype(str(faces[generator.integers(len(faces))]), int(generator.integers(14, 41)))
    contrast = int(generator.integers(60, 200))
    paper = int(generator.integers(contrast, 256))
    ink = paper - contrast
    if generator.random() < 0.3:
        paper, ink = ink, paper
    left, top, right, bottom = map(round, font.getbbox(text))
    margin = int(generator.integers(2, 8))
    picture = pictures.new("L", (right - left + 2 * margin, bottom - top + 2 * margin), paper)
    ImageDraw.Draw(picture).text((margin - left, margin - top), text, font=font, fill=ink)
    picture = picture.rotate(float(generator.uniform(-1, 1)), pictures.Resampling.BICUBIC, fillcolor=paper)
    picture = picture.filter(ImageFilter.GaussianBlur(float(generator.uniform(0, 1)) * picture.height / HEIGHT))
    grain = generator.normal(0, generator.uniform(0, 20), (picture.height, picture.width))
    return np.clip(np.asarray(picture) + grain, 0, 255).astype(np.uint8)


def batches(images: Sequence[Image]) -> list[Batch]:
    """The pictures in batches of like width, scaled to `HEIGHT` and to values of -1..1, with 0 to their right."""
    from PIL import Image as pictures

    scaled = []
    for image in images:
        size = (-(-image.shape[1] * HEIGHT // image.shape[0]), HEIGHT)
        picture = pictures.fromarray(image).resize(size, pictures.Resampling.BILINEAR)
        scaled.append(np.asarray(picture, np.float32) / 127.5 - 1)
    order = sorted(range(len(scaled)), key=lambda place: (scaled[place].shape[1], place))
    found = []
    for start in range(0, len(order), BATCH):
        places = order[start : start + BATCH]
        width = max(WIDTH, *(scaled[place].shape[1] for place in places))
        batch = np.zeros((len(places), 3, HEIGHT, width), np.float32)
        for row, place in enumerate(places):
            batch[row, :, :, : scaled[place].shape[1]] = scaled[place]
        found.append((places, batch))
    return found


def classes(path: Path) -> list[str]:
    """What each class of the recogniser stands for: nothing, the characters in the file's metadata, and the space."""
    entries = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    return ["", *entries["character"].splitlines(), " "]


def decode(probabilities: NDArray[np.float32], names: Sequence[str]) -> list[str]:
    """The texts in the best path of CTC: of each run of equal classes one, and no blanks.

    Args:
        probabilities: [lines, places, classes]; class 0 is the blank.
        names: of the classes.
    """
    found = []
    for best in probabilities.argmax(2):
        first = np.append(True, best[1:] != best[:-1])
        found.append("".join(names[place] for place in best[first & (best != 0)]))
    return found


def distance(found: str, expected: str) -> int:
    """The least number of characters to insert, remove or replace (Levenshtein)."""
    row = list(range(len(expected) + 1))
    for count, one in enumerate(found, 1):
        previous, row[0] = row[0], count
        for place, other in enumerate(expected, 1):
            previous, row[place] = row[place], min(row[place] + 1, row[place - 1] + 1, previous + (one != other))
    return row[-1]


def score(found: Sequence[str], expected: Sequence[str]) -> dict[str, float]:
    """{"characters": errors for each character, "lines": the share of lines that are exact}."""
    errors = sum(map(distance, found, expected))
    exact = sum(one == other for one, other in zip(found, expected, strict=True))
    return {"characters": errors / sum(map(len, expected)), "lines": exact / len(expected)}


def rate(
    path: Path, sets: Sequence[Batch], expected: Sequence[str], names: Sequence[str], draws: int = 1
) -> dict[str, list[float]]:
    """The scores of a file in ONNX Runtime, which draws other noise in each run; a value for each of `draws`."""
    session = lumina_onnx.load(path)
    (given,) = session.get_inputs()
    each = []
    for _ in range(draws):
        found = [""] * len(expected)
        for places, batch in sets:
            for place, text in zip(places, decode(session.run(None, {given.name: batch})[0], names), strict=True):
                found[place] = text
        each.append(score(found, expected))
    return {name: [one[name] for one in each] for name in each[0]}


def share(path: Path, layers: Sequence[str], example: NDArray[np.float32]) -> float:
    """The share of the multiplications of convolutions and matrix products that are in `layers`, for one input.

    Args:
        path: the float file.
        layers: names of its nodes.
        example: its input.
    """
    import onnxruntime

    model = onnx.load(path)
    nodes = [node for node in model.graph.node if node.op_type in ("Conv", "MatMul", "Gemm")]
    stored = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    wanted = {name for node in nodes for name in (*node.input[:2], node.output[0]) if name not in stored}
    known = {value.name for value in (*model.graph.input, *model.graph.output)}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in sorted(wanted - known))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    (given,) = session.get_inputs()
    shapes = {name: value.shape for name, value in zip(names, session.run(names, {given.name: example}), strict=True)}
    shapes |= {given.name: example.shape, **stored}
    counts = {}
    for node in nodes:
        # Terms of each element of the output: what a row of the second operand has.
        second = shapes[node.input[1]]
        terms = np.prod(second[1:]) if node.op_type == "Conv" else second[-2]
        counts[node.name] = int(np.prod(shapes[node.output[0]]) * terms)
    return sum(counts[name] for name in layers) / sum(counts.values())


def run(folder: Path, count: int = 200, draws: int = 2, rounds: int = 25) -> Results:
    """Every figure; the files are written into `folder`.

    Args:
        folder: it exists.
        count: of lines; `CALIBRATION` more calibrate.
        draws: of the noise, for each score.
        rounds: of the comparison of latencies.
    """
    plain, names = source(), classes(source())
    expected = lines(count + CALIBRATION)
    generator = np.random.default_rng(0)
    images = [render(text, generator) for text in expected]
    expected, sets, calibration = expected[:count], batches(images[:count]), batches(images[count:])
    example = sets[0][1][:1]
    rows, written = [], {}
    settings = [(title, noise) for noise in NOISES for title in HARDWARE]
    for title, noise in track(settings, "measure"):
        name = next((name for name, setting in STORED.items() if setting == (title, noise)), "ocr-other")
        path = folder / f"{name}.onnx"
        report = exporter.rewrite(
            plain,
            path,
            HARDWARE[title].replace(noise_additive=noise),
            calibration=[[batch] for _, batch in calibration],
            method="mse",
            per_output=True,
        )
        rows.append({"hardware": title, "noise": noise, **rate(path, sets, expected, names, draws if noise else 1)})
        if name in STORED:
            verified = exporter.verify(path, inputs=[example])
            if not verified.ok:
                raise RuntimeError(f"{path} does not verify:\n{verified}")
            written[path.name] = {"hardware": title, "noise": noise, "bytes": path.stat().st_size}
    (folder / "ocr-other.onnx").unlink()
    paths = {"float": plain} | {f"optical, {file['hardware']}": folder / name for name, file in written.items()}
    return {
        "lines": {"calibration": len(images) - count, "evaluation": count},
        "draws": draws,
        "layers": len(report.layers),
        "share": share(plain, [layer.name for layer in report.layers], example),
        "float": rate(plain, sets, expected, names),
        "rows": rows,
        "written": written,
        "width": example.shape[-1],
        "latency": compare(paths, {"x": example}, rounds),
        **facts(plain, "rapidocr-onnxruntime", "matplotlib", "pillow"),
    }


def section(results: Results) -> str:
    """The generated part of the page."""
    count = results["lines"]
    lines = [
        wrapped(
            f"{count['evaluation']} lines; {results['draws']} draws of the noise, ± standard error. "
            f"{count['calibration']} other lines calibrated the ranges."
        ),
        "",
        "| hardware | noise | errors for 100 characters | exact lines |",
        "|---|---|---|---|",
    ]
    lines.append(f"| float, no hardware | none | {_cells(results['float'])} |")
    for row in results["rows"]:
        lines.append(f"| {row['hardware']} | {100 * row['noise']:g} % | {_cells(row)} |")
    lines += [
        "",
        wrapped(
            f"The {results['layers']} optical layers do {100 * results['share']:.0f} % of the multiplications, the "
            f"convolutions and the products inside attention the others."
        ),
        "",
        *comparison(results["latency"], f"One line of {results['width']} x {HEIGHT} pixels"),
        "",
        made(results),
    ]
    return "\n".join(lines)


def _cells(row: dict[str, list[float]]) -> str:
    errors, exact = Estimate.of([100 * value for value in row["characters"]]), Estimate.of(row["lines"])
    spread = f" ± {errors.error:.1f}" if errors.count > 1 else ""
    return f"{errors.mean:.1f}{spread} | {exact.percent()}"


def plot(results: Results, path: Path) -> None:
    """Plots errors and exact lines by noise."""

    def fill(axes: Sequence[Any]) -> None:
        titles = {"characters": "errors for 100 characters", "lines": "exact lines, %"}
        for axis, (name, title) in zip(axes, titles.items(), strict=True):
            for hardware, colour in zip(HARDWARE, COLOURS, strict=True):
                mine = [row for row in results["rows"] if row["hardware"] == hardware]
                values = [100 * float(np.mean(row[name])) for row in mine]
                curve(axis, [row["noise"] for row in mine], values, "o-", color=colour, label=hardware)
            level = 100 * results["float"][name][0]
            axis.axhline(level, color="black", linewidth=1, linestyle="--", label="float, no hardware")
            axis.set_title(title)

    draw(path, fill, 2)


def cards(results: Results) -> dict[str, dict[str, str]]:
    """The cards of the files, by their names."""
    found = {}
    for name, file in results["written"].items():
        (row,) = (r for r in results["rows"] if (r["hardware"], r["noise"]) == (file["hardware"], file["noise"]))
        errors, exact = _cells(row).split(" | ")
        before, exact_before = _cells(results["float"]).split(" | ")
        found[name] = {
            "recipe": f"`python export/ocr.py`, {results['processor_minutes']:.0f} minutes of processor time",
            "model": "PaddleOCR's recogniser PP-OCRv4, Chinese and English (Apache-2.0), from the package "
            f"rapidocr-onnxruntime {results['versions']['rapidocr-onnxruntime']}",
            "input": f"lines of text, float32 `[batch, 3, {HEIGHT}, width]` in -1..1",
            "output": "probabilities of blank, characters and space, float32 `[batch, places, 6625]`",
            "optics": f"the {results['layers']} linear layers, which do {100 * results['share']:.0f} % of the "
            f"multiplications; convolutions are in float. {file['hardware']}, fixed full scales for each output; "
            f"noise: additive {file['noise']:g}",
            "training": "none: the file is rewritten as it is",
            "errors for 100 characters": f"{errors} (float: {before})",
            "exact lines": f"{exact} (float: {exact_before})",
            "size": f"{file['bytes'] / 1e6:.1f} MB",
            "figures": "[Text recognition](../docs/measurements/ocr.md)",
        }
    return found


PAGE = Page("ocr", section, plot)

if __name__ == "__main__":
    command(PAGE, run, "Puts a recogniser of text on optical hardware, and measures it.")
