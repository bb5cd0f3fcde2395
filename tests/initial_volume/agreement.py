"""How well poses agree with the truth when the volume may lie in any orientation and have either hand."""

import numpy as np

from xmipp_accel.numerics.symmetry import symmetry_matrices

_MIRROR = np.diag([-1.0, -1.0, 1.0])  # a projection of the mirrored volume is one of the volume, turned so


def share_within(found, true, degrees=15.0, symmetry="c1") -> float:
    """Share of the poses (n, 3, 3) within an angle of the truth, after the best rotation of the volume.

    The rotations that bring one image's pose onto its truth are tried, for both hands; angles are modulo the
    group.
    """
    group = symmetry_matrices(symmetry)
    best = 0.0
    for hand in (found, _MIRROR @ found):
        copies = np.einsum("nij,gjk->gnik", hand, group)
        for image in range(min(len(found), 40)):
            turned = true @ (true[image].T @ hand[image])
            cosine = (np.einsum("gnij,nij->gn", copies, turned).max(axis=0) - 1) / 2
            best = max(best, float(np.mean(cosine > np.cos(np.deg2rad(degrees)))))
    return best
