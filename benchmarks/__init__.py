"""Speed against the alternatives and against the machine's peaks: `python -m benchmarks`, from the checkout."""
