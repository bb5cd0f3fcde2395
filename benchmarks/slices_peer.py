"""TeamTomo's torch-fourier-slice on one stack, in an environment of its own with this, PyTorch and mrcfile.

``python slices_peer.py PARTICLES.npz MAP.mrc``: the package pads images and inserts slices but knows no CTF.
Images times CTF and squares of the CTF are inserted here, one after the other, and their quotient is brought to
real space as its ``backproject_2d_to_3d`` does.
"""

import sys

import mrcfile
import numpy as np
import torch
from torch_fourier_slice import insert_central_slices_rfft_3d

BATCH, PAD, LEAST = 100, 2, 1e-3


def main(particles, out):
    columns = dict(np.load(particles))
    with mrcfile.open(str(columns.pop("stack"))) as file:
        images, pixel_size = torch.from_numpy(file.data.astype(np.float32)), float(file.voxel_size.x)
    table = {key: torch.from_numpy(column) for key, column in columns.items()}
    padded = PAD * images.shape[-1]
    kept = slice((padded - images.shape[-1]) // 2, (padded + images.shape[-1]) // 2)
    volume = reconstruct(images, table, padded, pixel_size)[kept, kept, kept]
    with mrcfile.new(out, np.ascontiguousarray(volume), overwrite=True) as file:
        file.voxel_size = pixel_size


def reconstruct(images, table, size, pixel_size):
    """Padded map (size, size, size)."""
    ky, kx = torch.fft.fftshift(torch.fft.fftfreq(size))[:, None], torch.fft.rfftfreq(size)[None]
    values, weights = torch.zeros((), dtype=torch.complex64), torch.zeros(())
    for first in range(0, len(images), BATCH):
        part = slice(first, first + BATCH)
        row = {key: value[part, None, None] for key, value in table.items() if key != "matrices"}
        margin = [(size - images.shape[-1]) // 2] * 4
        padded = torch.fft.ifftshift(torch.nn.functional.pad(images[part], margin), dim=(-2, -1))
        slices = torch.fft.fftshift(torch.fft.rfft2(padded), dim=-2)
        slices *= torch.exp(-2j * torch.pi * (ky * row["shift_y"] + kx * row["shift_x"]))
        ctf = torch.sin(phase(ky / pixel_size, kx / pixel_size, row)).float()
        values = values + insert(slices * ctf, table["matrices"][part])
        weights = weights + insert(ctf**2, table["matrices"][part]).real
    quotient = values / weights.clamp(min=LEAST * float(weights.mean()))
    volume = torch.fft.irfftn(torch.fft.ifftshift(quotient, dim=(0, 1)), s=(size,) * 3)
    line = torch.sinc(torch.fft.fftshift(torch.fft.fftfreq(size))) ** 2
    return (torch.fft.fftshift(volume) / (line[:, None, None] * line[:, None] * line)).numpy()


def insert(slices, matrices):
    """Sums (size, size, size // 2 + 1) of interpolated samples."""
    size = slices.shape[-2]
    return insert_central_slices_rfft_3d(slices.to(torch.complex64), (size,) * 3, matrices.float())[0]


def phase(ky, kx, row):
    """Phase of the CTF at frequencies in 1/A."""
    squares, volts = kx**2 + ky**2, 1e3 * row["voltage"]
    wavelength = 12.2643 / torch.sqrt(volts * (1 + 0.978466e-6 * volts))
    angle = 2 * (torch.atan2(ky, kx) - torch.deg2rad(row["defocus_angle"]))
    defocus = (row["defocus_u"] + row["defocus_v"] + (row["defocus_u"] - row["defocus_v"]) * torch.cos(angle)) / 2
    spherical = 0.5e7 * row["cs"] * wavelength**3 * squares**2
    return torch.pi * (wavelength * defocus * squares - spherical) + torch.asin(row["amplitude_contrast"])


if __name__ == "__main__":
    main(*sys.argv[1:])
