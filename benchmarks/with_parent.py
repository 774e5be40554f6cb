"""Runs a script that ends when its parent does: ``python benchmarks/with_parent.py SCRIPT …``.

The parent keeps a pipe to this process's standard input open and writes nothing. However the parent
ends, killed too, the pipe ends with it, and this process's group is killed: the script and all that
it has started. The parent must have given it a session of its own.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading


def end_with_parent() -> None:
    """Wait for the end of standard input, and then kill the group of this process."""
    os.read(sys.stdin.fileno(), 1)
    os.killpg(0, signal.SIGKILL)


def main() -> None:
    """Run the script with its arguments."""
    threading.Thread(target=end_with_parent, daemon=True).start()
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
