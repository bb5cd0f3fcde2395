"""Insertion of projections into a Fourier volume, in float64 NumPy: the oracle of the other twins.

Layouts, shared by all twins
----------------------------
slices : (n, rows, columns, 4) float32
    Half of each image's transform as records (real, imaginary, weight, 0): columns ``kx = 0, 1, ...``, rows
    ``ky = -(rows // 2), ...``. Value and weight are multiplied by the CTF already.
sums : (planes, 2 c + 1, c + 1, 4) float32
    The same records for the volume's frequencies ``(kz, ky, kx)``, the centre at ``(c - first, c, 0)``: the planes
    from `first` on, of ``2 c + 1`` in all. What falls on ``kx < 0`` is conjugated onto the opposite side. The
    plane ``kx = 0`` holds each pair of opposite samples only in part and is completed after all insertions.
matrices : (n, g, 3, 3)
    For each image and symmetry operator: what a step along kx, a step along ky and the unit viewing direction are
    in volume voxels (x, y, z). Steps need be neither unit vectors nor orthogonal to each other, but both are to
    the viewing direction.
curvature : (n,)
    Voxels along the viewing direction for each squared sample of distance from the origin: the Ewald sphere, or 0.

Sample (ky, kx) of an image thus lies at ``kx m[0] + ky m[1] + curvature (kx^2 + ky^2) m[2]``.
"""

from __future__ import annotations

import numpy as np

PHASE, STRETCH, OFFSET, WEIGHT, DECAY, OVERLAP, SHIFT = slice(0, 3), slice(3, 6), 6, 7, 8, 9, slice(10, 12)
FACTORS = 12


def prepare_slices(transforms, factors, table, shape, origin, gain, limit, mode, sideband, inside_only, once):
    """Cut the transforms of padded images to records, centre them and apply their CTF.

    Parameters
    ----------
    transforms : (n, p, c) complex64
        Images' FFT over edge `p`, rows in FFT order, of as many columns as wanted or more.
    factors : (n, 12) float32
        CTF phase ``f0 k2 + f1 (kx^2 - ky^2) + f2 2 kx ky - (f3 k2 + f4 (kx^2 - ky^2) + f5 2 kx ky)^2 + f6`` of
        sample (ky, kx), weight ``f7 exp(-f8 k2)``, ``f9 k2`` the distance of the two Ewald spheres in units of
        the particle's reciprocal diameter, and ``(f10, f11)`` the shift (y, x) to apply, px.
    table : (rows, columns, 3) float32, or empty
        For every sample: a phase to add to that of the CTF, the phase of odd aberrations, and a weight.
    shape : (int, int)
        Rows and columns of a slice.
    origin : int
        The pixel of both axes that is moved to pixel 0, besides the shift.
    gain : float
        What the values are multiplied with.
    limit : float
        Samples with ``kx^2 + ky^2 > limit`` have the value zero.
    mode : int
        0: no CTF; 1: multiply by the CTF, weigh by its square; 2: the same with its absolute value; 3: weigh only,
        since the images are multiplied by the CTF already.
    sideband : int
        0: both sidebands as one; 1 or -1: that of the sphere of positive or negative curvature alone.
    inside_only : bool
        Samples beyond `limit` have no weight either.
    once : bool
        Drop ``kx = 0, ky < 0`` and halve the origin, so that each pair of opposite samples counts once.

    Returns
    -------
    (n, rows, columns, 4) float64 array
    """
    padded, (rows, columns) = transforms.shape[1], shape
    ky, kx = np.meshgrid(np.arange(rows) - rows // 2, np.arange(columns), indexing="ij")
    k2, astigmatic, oblique = kx**2.0 + ky**2.0, kx**2.0 - ky**2.0, 2.0 * kx * ky
    values = transforms[:, ky[:, 0] % padded, :columns].astype(np.complex128)
    f = np.asarray(factors, dtype=np.float64)[:, :, None, None]
    turns = (origin - f[:, SHIFT.start]) * ky + (origin - f[:, SHIFT.start + 1]) * kx
    values = values * gain * np.exp(2j * np.pi / padded * turns)
    defocused = f[:, 0] * k2 + f[:, 1] * astigmatic + f[:, 2] * oblique
    stretched = f[:, 3] * k2 + f[:, 4] * astigmatic + f[:, 5] * oblique
    phase = defocused - stretched**2 + f[:, OFFSET]
    weight = f[:, WEIGHT] * np.exp(-f[:, DECAY] * k2)
    if table.size:
        table = table.astype(np.float64)
        phase = phase + table[..., 0]
        values = values * np.exp(-1j * table[..., 1])
        weight = weight * table[..., 2]
    multiplier, square = _transfer(phase, f[:, OVERLAP] * k2, mode, sideband)
    inside = k2 <= limit
    if inside_only:
        weight = weight * inside
    if once:
        weight = weight * np.where((kx == 0) & (ky < 0), 0.0, np.where(k2 == 0, 0.5, 1.0))
    # Images of weight 0 may hold anything, also what is no number.
    value = np.where(weight == 0, 0, values) * multiplier * weight * inside
    return np.stack([value.real, value.imag, square * weight, np.zeros(weight.shape)], axis=-1)


def _transfer(phase, separation, mode, sideband):
    """What an image's transform is multiplied with, and the weight that belongs to it.

    A sideband's value is that of the adjoint of ``image = (exp(i phase) F(+) - exp(-i phase) F(-)) / 2i`` (Wolf,
    DeRosier and Grigorieff, Ultramicroscopy 106 (2006), 376). Where the two spheres are nearer to each other than
    the particle's size resolves, both read the same sample, whose weight is then the CTF's square.
    """
    sine = np.sin(phase)
    if sideband:
        overlap = np.maximum(np.sinc(separation), 0.0)
        multiplier = 0.5 * (sine + sideband * 1j * np.cos(phase))
        return multiplier * (np.sign(sine) if mode == 2 else 1.0), 0.25 * (1 - overlap) + 0.5 * overlap * sine**2
    ones = np.ones_like(sine)
    return [(ones, ones), (sine, sine**2), (np.abs(sine), sine**2), (ones, sine**2)][mode]


def insert_trilinear(sums, first, slices, matrices, curvature, images):
    """Add images to `sums` (float64, in place), each sample to its eight neighbours.

    Parameters
    ----------
    first : int
        The volume's plane that is plane 0 of `sums`.
    images : (m,) integer array
        Which of the slices to add.
    """
    for image, matrix in _operators(matrices, images):
        position, re, im, weight = _placed(slices[image], matrix, curvature[image])
        base = np.floor(position).astype(int)
        fraction = position - base
        record = np.stack([re, im, weight], axis=1)
        for corner in np.ndindex(2, 2, 2):
            part = np.prod(np.where(corner, fraction, 1 - fraction), axis=1)
            _add(sums, first, base + np.array(corner), record * part[:, None])


def insert_blob(sums, first, slices, matrices, curvature, images, table, radius, reach):
    """Add images to `sums`, each sample to the voxels within `radius` of it.

    Parameters
    ----------
    table : (t,) float32 array
        Kernel at squared distances from 0 to ``radius**2``, looked up at the nearest entry.
    radius : float
        Voxels.
    reach : float
        Voxels farther than this from the origin get nothing.
    """
    span = int(np.ceil(radius))
    offsets = np.stack(np.meshgrid(*[np.arange(-span, span + 2)] * 3, indexing="ij"), -1).reshape(-1, 3)
    centre = sums.shape[1] // 2
    for image, matrix in _operators(matrices, images):
        position, re, im, weight = _placed(slices[image], matrix, curvature[image], fold=False)
        base = np.floor(position).astype(int)
        for offset in offsets:
            voxel = base + offset
            squares = ((voxel - position) ** 2).sum(axis=1)
            used = (squares <= radius**2) & ((voxel**2).sum(axis=1) <= reach**2)
            used &= (np.abs(voxel) <= centre).all(axis=1)
            kernel = table[np.rint(squares[used] * (len(table) - 1) / radius**2).astype(int)]
            conjugate = voxel[used, 0] < 0
            record = np.stack([re[used], np.where(conjugate, -im[used], im[used]), weight[used]], axis=1)
            voxel = np.where(conjugate[:, None], -voxel[used], voxel[used])
            _add(sums, first, voxel, record * kernel[:, None].astype(np.float64))


def insert_nearest(sums, first, slices, matrices, images, reach):
    """Add images to `sums`, each voxel nearest to the image's plane taking the nearest sample.

    The plane is walked along the two volume axes that are closest to it, so that every such column gets one voxel.
    """
    centre = sums.shape[1] // 2
    rows, columns = slices.shape[1:3]
    grid = np.stack(np.meshgrid(*[np.arange(-centre, centre + 1)] * 2, indexing="ij"), -1).reshape(-1, 2)
    for image, matrix in _operators(matrices, images):
        normal = matrix[2]
        axis = int(np.argmax(np.abs(normal)))
        others = [a for a in range(3) if a != axis]
        voxel = np.zeros((len(grid), 3), dtype=int)
        voxel[:, others] = grid
        voxel[:, axis] = np.floor(-(grid @ normal[others]) / normal[axis] + 0.5)
        local = voxel @ np.linalg.pinv(matrix[:2])
        used = (np.abs(voxel[:, axis]) <= centre) & (local[:, 0] >= 0)
        used &= (voxel**2).sum(axis=1) <= reach**2
        voxel, local = voxel[used], local[used]
        kx = np.clip(np.floor(local[:, 0] + 0.5).astype(int), 0, columns - 1)
        row = np.clip(np.floor(local[:, 1] + 0.5).astype(int) + rows // 2, 0, rows - 1)
        record = np.asarray(slices[image][row, kx, :3], dtype=np.float64)
        conjugate = voxel[:, 0] < 0
        record[:, 1] = np.where(conjugate, -record[:, 1], record[:, 1])
        _add(sums, first, np.where(conjugate[:, None], -voxel, voxel), record)


def _operators(matrices, images):
    for image in images:
        for matrix in np.asarray(matrices[image], dtype=np.float64):
            yield image, matrix


def _positions(kx, ky, matrix, curvature):
    k2 = (kx**2 + ky**2) * float(curvature)
    return kx[:, None] * matrix[0] + ky[:, None] * matrix[1] + k2[:, None] * matrix[2]


def _placed(records, matrix, curvature, fold=True):
    """Positions and records of an image's samples; folded onto ``x >= 0`` on request."""
    rows, columns = records.shape[:2]
    ky, kx = np.meshgrid(np.arange(rows) - rows // 2, np.arange(columns), indexing="ij")
    records = records.reshape(-1, 4).astype(np.float64)
    used = records.any(axis=1)
    position = _positions(kx.ravel()[used], ky.ravel()[used], matrix, curvature)
    re, im, weight = records[used, :3].T
    if fold:
        conjugate = position[:, 0] < 0
        position, im = np.where(conjugate[:, None], -position, position), np.where(conjugate, -im, im)
    return position, re, im, weight


def _add(sums, first, voxel, record):
    centre = sums.shape[1] // 2
    plane = voxel[:, 2] + centre - first
    kept = (plane >= 0) & (plane < len(sums))
    plane, voxel, record = plane[kept], voxel[kept], record[kept]
    np.add.at(sums[..., :3], (plane, voxel[:, 1] + centre, voxel[:, 0]), record)
