"""Runs files of tests in a process with 8 virtual CPU devices; the test process itself has 2."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def run_on_eight(*files: str, timeout: float = 600) -> None:
    """Fail with pytest's own report, test by test, if one of the files (relative to tests/) fails or has no test."""
    paths = [str(ROOT / "tests" / file) for file in files]
    flags = ["-q", "-rA", "-p", "no:cacheprovider", "-p", "no:xdist", "--tb=short", "-o", "addopts="]
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", *flags, *paths],
        env=os.environ | {"EGGROLL_TEST_DEVICES": "8"}, cwd=ROOT, capture_output=True, text=True, timeout=timeout,
    )  # fmt: skip
    assert ran.returncode == 0, f"\n{ran.stdout[-20_000:]}\n{ran.stderr[-5_000:]}"
