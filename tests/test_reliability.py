"""The reliability commands run; their full numbers are not for every day."""

import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = Path(__file__).parent / "benchmarks" / "reliability"


@pytest.mark.parametrize(("bar", "said"), [("R7", "none run"), ("R3c", "0 silently wrong")])
def test_a_bar_is_measured(bar, said):
    command = [sys.executable, str(COMMAND), bar, "--n", "20"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert said in run.stdout
