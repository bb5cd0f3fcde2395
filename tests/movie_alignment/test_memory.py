"""What is found does not depend on how much memory there is."""

import tracemalloc

import numpy as np
import pytest

from tests.movie_alignment.test_parts import moving_frames
from xmipp_accel.backend import threads, to_host
from xmipp_accel.movie_alignment import patches, whole_frame
from xmipp_accel.movie_alignment.prepare import PreparedMovie
from xmipp_accel.movie_alignment.spectra import frame_spectra, gaussian
from xmipp_accel.movie_alignment.whole_frame import frames_on_grid, turned_into_images


def spectra_of(device, shape, n=7):
    frames = np.random.default_rng(0).normal(3, 1, (n, *shape)).astype(np.float32)
    return frame_spectra(PreparedMovie(device.asarray(frames)), range(n), 0.5)


@pytest.mark.parametrize("shape", [(64, 90), (37, 53), (12, 8)])
@pytest.mark.parametrize("limit", [0.5, 0.31, 0.1])
def test_images_in_the_memory_of_the_spectra(device, shape, limit):
    expected = to_host(frames_on_grid(spectra_of(device, shape), limit))
    found = to_host(turned_into_images(spectra_of(device, shape), limit))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)


def test_whole_frames_are_aligned_without_a_copy_of_all(monkeypatch):
    """Cut to 30 A, which is done once, they take 4 per cent of the spectra up to 3 A."""
    rng = np.random.default_rng(2)
    frames = moving_frames((192, 240), np.cumsum(rng.normal(0, 0.3, (40, 2)), axis=0), rng).astype(np.float32)
    spectra = frame_spectra(PreparedMovie(frames), range(40), 0.5)
    monkeypatch.setattr(whole_frame, "HOST_BYTES", 1 << 16)
    monkeypatch.setattr(threads, "cpu_count", lambda: 2)  # each has a batch of its own
    whole_frame.align_whole_frames(spectra, 1.5, 40.0)  # compiles
    tracemalloc.start()
    whole_frame.align_whole_frames(spectra, 1.5, 40.0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.14 * spectra.data.nbytes


@pytest.mark.parametrize(("kept", "block"), [(0, 1), (0, 1 << 20), (1 << 30, 1)])
def test_patches_in_blocks_and_kept_or_not(device, monkeypatch, kept, block):
    rng = np.random.default_rng(1)
    frames = moving_frames((96, 120), np.cumsum(rng.normal(0, 0.3, (6, 2)), axis=0), rng).astype(np.float32)
    images = device.asarray(frames)
    grid = patches.make_grid((96, 120), (96, 120), (0, 0), 40)
    field = np.zeros((6, len(grid.positions), 2))
    groups = patches.frame_groups(6, 1)

    def measured():
        stack = patches.PatchStack(images, grid, field)
        blocks = len(list(stack.blocks()))
        found = patches.measure_patches(stack, field, groups, lambda radius: gaussian(radius, 5.0, 1.0), 10.0)
        return blocks, to_host(found.shifts), to_host(found.information)

    monkeypatch.setattr(patches, "free_bytes", lambda xp: 1 << 30)
    expected = measured()
    monkeypatch.setattr(patches, "KEPT_ON_HOST", kept)
    monkeypatch.setattr(patches, "BLOCK_ON_HOST", block)
    monkeypatch.setattr(patches, "KEPT_ON_DEVICE", kept / (1 << 30))
    monkeypatch.setattr(patches, "LARGEST_BLOCK", block)
    found = measured()
    assert expected[0] == 1
    assert found[0] == (len(grid.positions) if block == 1 else 1)
    for ours, theirs in zip(found[1:], expected[1:]):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
