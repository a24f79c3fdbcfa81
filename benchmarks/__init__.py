"""How fast, against what, and how near to what the machine can do: `python -m benchmarks`, from the checkout."""
