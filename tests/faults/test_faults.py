"""A few of the faults of the harness; as many as wanted: python -m tests.faults.harness --kills 200 --flips 1000."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_faults_lose_nothing() -> None:
    """Kills alone and four at a time, a full disk, flipped bits of every kind of file, and a worker frozen past its lease."""
    done = subprocess.run([sys.executable, "-m", "tests.faults.harness", "--kills", "8", "--flips", "300", "--freezes", "1"],
                          cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["kills with 1 at work"] >= 4 and found["kills with 4 at work"] >= 4 and found["freezes"] == 1
    assert found["refused"] + found["without effect"] == 300 and found["refused"] > 200 and found["full disks"] > 0
