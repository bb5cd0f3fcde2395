"""TeamTomo's torch-motion-correction on one movie, in an environment of its own that has only this and PyTorch.

``python torch_peer.py FRAMES.npy SAMPLING_RATE NODES OUT.npz``: frames already corrected for the gain; writes the
translation (n, g, g, 2) to apply, px, on a grid of NODES x NODES positions from edge to edge, and the seconds.
"""

import sys
import time

import numpy as np
import torch
from torch_motion_correction import PatchSamplingConfig, estimate_global_motion, estimate_local_motion

SPATIAL, PATCH = 5, 256


def main(frames, sampling_rate, nodes, out):
    movie = torch.from_numpy(np.load(frames))
    sampling_rate, nodes = float(sampling_rate), int(nodes)
    start = time.perf_counter()
    whole = estimate_global_motion(movie, sampling_rate)
    local, _ = estimate_local_motion(
        movie, sampling_rate, (len(movie), SPATIAL, SPATIAL), PatchSamplingConfig((PATCH, PATCH)), whole
    )
    end = time.perf_counter()
    with torch.no_grad():
        fields = [local.evaluate_at_t(t, (nodes, nodes)).numpy() for t in np.linspace(0, 1, len(movie))]
    # It tells where features went, in A, and local includes whole.
    field = -np.moveaxis(np.stack(fields), 1, -1) / sampling_rate
    np.savez(out, field=field, seconds=end - start)


if __name__ == "__main__":
    main(*sys.argv[1:])
