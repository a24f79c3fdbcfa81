"""Runs the lumina command of another Python, an emulated one for example, with each tier: PYTHON TIER...

Its results must have the bits that the command gives on this machine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "models" / "digits-4bit.onnx"


def lumina(python: Path, *arguments: object, tier: str | None = None) -> Any:
    """What a command prints as JSON. It is in the folder of its `python`."""
    command = [python, "-I", python.parent / "lumina"]
    environment = {name: value for name, value in os.environ.items() if name != "LUMINA_ISA"}
    if tier:
        environment["LUMINA_ISA"] = tier
    words = [str(word) for word in (*command, *arguments, "--json")]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(words)} with tier {tier}: {done.stdout}{done.stderr}"
    return json.loads(done.stdout)


def main(given: str, *tiers: str) -> None:
    """Fails if a command fails or gives another result."""
    python = Path(given).absolute()
    info = lumina(python, "info")
    assert info["tiers of this processor"] == list(tiers), info
    assert info["tier"] == tiers[-1], info
    assert info["library in ONNX Runtime"].startswith("loads"), info

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for model in sorted(MODEL.parent.glob("*.onnx")):
            lumina(Path(sys.executable), "run", model, "--batch", 3, "--output", folder / f"{model.stem}.npz")
        for tier in tiers:
            for expected in sorted(folder.glob("*.npz")) if tier == tiers[-1] else [folder / f"{MODEL.stem}.npz"]:
                model, target = MODEL.with_name(f"{expected.stem}.onnx"), folder / "outputs" / expected.name
                target.parent.mkdir(exist_ok=True)
                lumina(python, "run", model, "--batch", 3, "--output", target, tier=tier)
                here, there = np.load(expected), np.load(target)
                assert here.files == there.files, (here.files, there.files)
                for output in here.files:
                    assert here[output].tobytes() == there[output].tobytes(), f"{model.name}: {output} with {tier}"

    lumina(python, "verify", MODEL)
    rows = lumina(python, "bench", MODEL, "--threads", 1, "--threads", 2, "--rounds", 1)["rows"]
    measured = {(row["threads"], row["side"]) for row in rows}
    sides = ("with the library", "without it", "float32 twin")
    assert measured == {(threads, side) for threads in (1, 2) for side in sides}, measured
    print(f"info, run, verify and bench: {', '.join(tiers)}, in onnxruntime {info['packages']['onnxruntime']}")


if __name__ == "__main__":
    main(*sys.argv[1:])
