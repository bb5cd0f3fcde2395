"""ASPIRE's 2D classification of one stack, in an environment of its own that has only this.

``python aspire_peer.py PARTICLES.mrcs NEIGHBOURS OUT.npz``: ASPIRE averages each image with those that its
rotationally invariant features find nearest. Writes the numbers (n, NEIGHBOURS) of these images, from 0 and the
image itself first, and the seconds of finding them; the averaging comes on top.
"""

import sys
import time

import mrcfile
import numpy as np
from aspire.classification import RIRClass2D
from aspire.source import ArrayImageSource


def main(stack, neighbours, out):
    with mrcfile.open(stack) as file:
        images, pixel_size = file.data.astype(np.float32), float(file.voxel_size.x)
    source = ArrayImageSource(images, pixel_size=pixel_size)
    start = time.perf_counter()
    finder = RIRClass2D(source.whiten(), n_nbor=int(neighbours), bispectrum_implementation="legacy", seed=0)
    found = finder.classify()[0]
    np.savez(out, neighbours=found, seconds=time.perf_counter() - start)


if __name__ == "__main__":
    main(*sys.argv[1:])
