"""How much memory a device has left."""

from __future__ import annotations

import os
from pathlib import Path

import torch


def available_memory(device: torch.device) -> int:
    """Bytes that can still be allocated; of main memory what the kernel and a container's limit leave."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(free, container_room(free))


def container_room(otherwise: int, group: Path = Path("/sys/fs/cgroup")) -> int:
    """What the control group's limit (version 2) leaves; file pages that can be dropped do not count as used."""
    try:
        limit, used = int((group / "memory.max").read_text()), int((group / "memory.current").read_text())
        lines = (group / "memory.stat").read_text().splitlines()
    except (OSError, ValueError):
        return otherwise
    files = sum(int(line.split()[1]) for line in lines if line.startswith(("inactive_file ", "active_file ")))
    return limit - used + files
