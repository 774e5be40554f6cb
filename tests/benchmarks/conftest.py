"""The scripts of benchmarks/ can be imported, as they import one another; it is no package."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
