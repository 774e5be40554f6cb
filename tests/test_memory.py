"""Memory that stays with the process is not filled with zeros again by the kernel."""

import platform
import subprocess
import sys

import pytest
from helpers import environment

CODE = """
import resource, sys, torch
from concurrent.futures import ThreadPoolExecutor
from recbole_llamarec.memory import keep_large_memory
keeps = sys.argv[1] == "keep" and keep_large_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def work():
    before = faults()
    for _ in range(20):
        torch.zeros(10_000_000).add_(1)
    return faults() - before
with ThreadPoolExecutor(1) as pool:  # another thread has another part of the memory
    pool.submit(work).result()
print(int(keeps), work())
"""


def faults(how: str, **variables: str) -> tuple[int, int]:
    done = subprocess.run(
        [sys.executable, "-c", CODE, how],
        capture_output=True, text=True, check=True, env=environment() | variables,
    )  # fmt: skip
    keeps, n_faults = done.stdout.split()
    return int(keeps), int(n_faults)


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc")
def test_large_tensors_take_the_memory_of_those_before_them():
    """40 MB are 10,000 pages; kept, they are touched for the first time once."""
    keeps, kept = faults("keep")
    _, given_back = faults("leave")
    assert keeps == 1
    assert kept < given_back / 5


def test_what_the_user_has_set_stays():
    assert faults("keep", MALLOC_TRIM_THRESHOLD_="131072")[0] == 0
