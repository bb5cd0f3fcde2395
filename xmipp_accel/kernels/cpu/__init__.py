"""Kernels for the CPU, in Numba."""

import os

# Threads of GNU OpenMP that wait for the next kernel would take the cores from what runs in between.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
