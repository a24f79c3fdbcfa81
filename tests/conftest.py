"""Settings for all tests: no deadlines, and a header line with the kernel's version, tiers and threads."""

from __future__ import annotations

import os

import hypothesis
import pytest

import lumina_kernel

hypothesis.settings.register_profile(
    "lumina", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow], print_blob=True
)
hypothesis.settings.load_profile("lumina")
# A quarter of the usual examples, for an emulated processor: --hypothesis-profile=few.
hypothesis.settings.register_profile("few", hypothesis.settings.get_profile("lumina"), max_examples=25)


# pytest-xdist gives its workers the width of the terminal, but captured output must not depend on that width.
os.environ.pop("COLUMNS", None)


def pytest_report_header(config: pytest.Config) -> str:
    tiers = ", ".join(lumina_kernel.available_isas())
    return (
        f"lumina_kernel {lumina_kernel.__version__}: tier {lumina_kernel.isa()} of {tiers}, "
        f"{lumina_kernel.num_threads()} threads"
    )
