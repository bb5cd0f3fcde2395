"""The streaming interface below the executor."""

import numpy as np
import pytest

from tests.reconstruction.particle_data import SAMPLING, phantom, reconstruct, views
from xmipp_accel.backend import CPU, to_host
from xmipp_accel.errors import ParameterError, ProcessingError
from xmipp_accel.reconstruction.executor import ReconstructFourierExecutor
from xmipp_accel.reconstruction.parameters import ReconstructFourierParameters
from xmipp_accel.reconstruction.prepare import SlicePlan
from xmipp_accel.reconstruction.views import Views


def _accumulator(device=CPU, box=20, **choices):
    return ReconstructFourierExecutor(ReconstructFourierParameters(**choices), device).new_accumulator(
        box, SAMPLING
    )


def test_images_may_come_in_parts_and_from_the_device(device):
    images, matrices, shifts = views(30, 20, largest_shift=1.0)
    halves = 1 + np.arange(30) % 2
    accumulator = _accumulator(device)
    for part in (slice(0, 1), slice(1, 20), slice(20, 30)):
        accumulator.insert(device.asarray(images[part]), Views(matrices[part], shifts[part], halves=halves[part]))
    assert accumulator.counts == [15, 15]
    maps = accumulator.finish()
    expected = reconstruct(images, matrices, shifts, halves=halves)
    for found, wanted in zip((maps.full, maps.half1, maps.half2), expected):
        np.testing.assert_allclose(to_host(found), wanted, atol=1e-5 * wanted.max())


def test_a_batch_too_large_for_the_memory_is_inserted_in_parts(monkeypatch, caplog):
    images, matrices, shifts = views(30, 20, largest_shift=1.0)
    halves = 1 + np.arange(30) % 2
    expected = reconstruct(images, matrices, shifts, halves=halves)[1]
    accumulator = _accumulator()
    slices = SlicePlan.slices

    def crowded(self, images, *others):
        if len(images) > 8:
            raise MemoryError
        return slices(self, images, *others)

    monkeypatch.setattr(SlicePlan, "slices", crowded)
    accumulator.insert(images, Views(matrices, shifts, halves=halves))
    found = accumulator.finish().half1
    assert "too little memory for 30 images" in caplog.text
    np.testing.assert_allclose(found, expected, atol=1e-5 * expected.max())


def test_sums_of_several_devices_are_merged(device):
    images, matrices, shifts = views(30, 20, largest_shift=1.0)
    halves = 1 + np.arange(30) % 2
    expected = reconstruct(images, matrices, shifts, halves=halves)
    parts = [_accumulator(device), _accumulator()]
    for accumulator, part in zip(parts, (slice(0, 13), slice(13, 30))):
        accumulator.insert(images[part], Views(matrices[part], shifts[part], halves=halves[part]))
    parts[0].merge(*parts[1].export())
    assert parts[0].counts == [15, 15]
    maps = parts[0].finish()
    for found, wanted in zip((maps.full, maps.half1, maps.half2), expected):
        np.testing.assert_allclose(to_host(found), wanted, atol=1e-5 * wanted.max())
    with pytest.raises(ParameterError, match="merge: expected sums of shapes"):
        parts[1].merge(*_accumulator(box=22).export())


def test_misuse_is_refused():
    images, matrices, shifts = views(4, 20)
    accumulator = _accumulator()
    with pytest.raises(ParameterError, match="halves: expected half set 1 or 2"):
        accumulator.insert(images, Views(matrices, shifts))
    with pytest.raises(ParameterError, match="halves: expected half set 1 or 2"):
        accumulator.insert(images, Views(matrices, shifts, halves=[0, 1, 2, 1]))
    with pytest.raises(ProcessingError, match=r"expected images in every half, found \[0, 0\]"):
        accumulator.finish()
    with pytest.raises(ParameterError, match="ctf: expected the optics"):
        _accumulator(ctf="weight").insert(images, Views(matrices, shifts, halves=[1, 2, 1, 2]))
    with pytest.raises(ParameterError, match=r"expected images of shape \(4, 20, 20\), found \(3, 20, 20\)"):
        accumulator.insert(images[:3], Views(matrices, shifts, halves=[1, 2, 1, 2]))
    with pytest.raises(ParameterError, match="ctf: expected the optics"):
        _accumulator(ctf="weight", ewald="standard", halves=False).insert(images, Views(matrices, shifts))
    accumulator.insert(images, Views(matrices, shifts, halves=[1, 2, 1, 2]))
    accumulator.finish()
    for use in (accumulator.finish, accumulator.export):
        with pytest.raises(ProcessingError, match="this accumulator is finished"):
            use()


def test_batches_follow_the_memory_unless_told():
    assert _accumulator(batch_size=5).batch_size() == 5
    assert 1 <= _accumulator(box=200).batch_size() < _accumulator(box=20).batch_size()


def test_coarser_and_less_padded_maps_need_less_memory():
    def needed(**choices):
        accumulator = _accumulator(box=60, **choices)
        return accumulator.plane_bytes() * accumulator.volume.shape[0], accumulator.finish_bytes()

    sums, finish = needed()
    assert sums == sum(part.nbytes for part in _accumulator(box=60).sums)
    for less in (dict(max_resolution=12.0), dict(padding_volume=1.0)):
        assert needed(**less)[0] < 0.3 * sums and needed(**less)[1] < 0.3 * finish
    assert needed(halves=False) == (sums / 2, finish)
    assert needed(error_groups=3)[0] == 3 * sums


def test_images_taken_out_again_leave_nothing(device):
    images, matrices, shifts = views(30, 20, largest_shift=1.0)
    kept, accumulator = slice(0, 20), _accumulator(device, halves=False)
    accumulator.insert(images, Views(matrices, shifts))
    gone = slice(20, 30)
    accumulator.insert(images[gone], Views(matrices[gone], shifts[gone], weights=-np.ones(10)))
    assert accumulator.counts == [20]
    expected = reconstruct(images[kept], matrices[kept], shifts[kept])
    np.testing.assert_allclose(to_host(accumulator.finish().full), expected, atol=2e-4 * expected.max())


def test_preview_is_the_map_so_far(device):
    images, matrices, shifts = views(30, 20, largest_shift=1.0)
    accumulator = _accumulator(device)
    accumulator.insert(images, Views(matrices, shifts, halves=1 + np.arange(30) % 2))
    preview = to_host(accumulator.preview())
    np.testing.assert_allclose(preview, to_host(accumulator.finish().full), atol=1e-5 * preview.max())


@pytest.mark.parametrize("method", ["trilinear", "xmipp"])
def test_subtracting_the_map_leaves_nothing_of_its_images(device, method):
    """Also at the finest frequencies, whose slices have corners beyond the spectrum of the map."""
    images, matrices, shifts = views(200, 20)
    left = []
    for subtracted in (False, True):
        accumulator = _accumulator(device, halves=False, method=method)
        if subtracted:
            accumulator.subtract_from_now_on(phantom().volume(20, SAMPLING))
        accumulator.insert(images, Views(matrices, shifts))
        left.append(np.linalg.norm(to_host(accumulator.finish().full)))
    assert left[1] < 0.1 * left[0]
