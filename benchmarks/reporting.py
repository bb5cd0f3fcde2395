"""What every benchmark states: the machine, memory, tables in Markdown and one line of JSON."""

from __future__ import annotations

import datetime
import json
import os
from pathlib import Path

from xmipp_accel.backend.inventory import describe_machine

MACHINE = ("system", "Python", "numpy", "scipy", "numba", "CuPy", "CPU", "CPU cores", "memory", "GPU cuda:0")


def machine() -> dict[str, str]:
    """Date, load and what matters of the machine; the load says how far wall times can be trusted."""
    found = dict(describe_machine())
    found["Python"] = found["Python"].split()[0]
    described = {key: found[key] for key in MACHINE if key in found}
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return {"date": datetime.date.today().isoformat(), "load average": load} | described


def print_machine():
    print("\n".join(f"{key}: {value}" for key, value in machine().items()), flush=True)


def print_table(title, columns, rows):
    """Print a Markdown table; numbers get three significant digits."""
    cells = [[_text(value) for value in row] for row in rows]
    lines = [columns, ["---"] * len(columns), *cells]
    print(f"\n{title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines), flush=True)


def _text(value) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def print_json(values):
    """Print the figures as the last line, on one line."""
    print("\n" + json.dumps(_rounded(values)), flush=True)


def _rounded(value):
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_rounded(part) for part in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def memory(key="VmRSS") -> int:
    """Bytes this process holds now (``VmRSS``) or held at most since the last reset (``VmHWM``)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def reset_peak():
    """Let ``VmHWM`` start again from what is held now."""
    Path("/proc/self/clear_refs").write_text("5")
