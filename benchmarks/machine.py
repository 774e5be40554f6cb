"""What a measurement was made on."""

from __future__ import annotations

import platform
from pathlib import Path


def cpu_name() -> str:
    """The processor's model name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def without_folder(llm: str) -> str:
    """The name of a language model; of a local one, that of its file or folder."""
    return Path(llm).name if Path(llm).expanduser().exists() else llm
