"""Compares the outputs of two environments: OLD.npz NEW.npz.

Our operator gives the same bits everywhere; the operators around it are onnxruntime's own and may round differently.
"""

import sys

import numpy as np


def main(old: str, new: str) -> None:
    """Fails if an output is missing, or differs by more than rounding."""
    before, after = np.load(old), np.load(new)
    assert set(before.files) == set(after.files), (before.files, after.files)
    for name in before.files:
        np.testing.assert_allclose(after[name], before[name], rtol=1e-5, atol=1e-5, err_msg=name)
    equal = sum(np.array_equal(before[name], after[name]) for name in before.files)
    print(f"{equal} of {len(before.files)} outputs equal bit for bit in both")


if __name__ == "__main__":
    main(*sys.argv[1:])
