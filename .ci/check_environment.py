"""Say why this interpreter cannot run twins: its version, missing packages, or a twinslib of another folder."""

import importlib.util
import os
import sys

PACKAGES = ("torch", "torchvision", "papermill", "nbconvert", "nbval", "pytest", "xdist", "hypothesis", "ruff", "timm",
            "mlxtend", "twinslib")

if sys.version_info < (3, 11):  # noqa: UP036, this is what an older Python gets to read
    sys.exit(f"expected Python 3.11 or newer, got {sys.version.split()[0]}")
missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
if missing:
    sys.exit(f"expected these packages, got none of them: {', '.join(missing)}")
folder = os.path.dirname(os.path.dirname(os.path.abspath(importlib.util.find_spec("twinslib").origin)))
if os.path.realpath(folder) != os.path.realpath(os.getcwd()):
    sys.exit(f"expected twinslib installed from {os.getcwd()}, got the one in {folder}")
