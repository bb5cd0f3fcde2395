"""Reading of images ahead of a device."""

import numpy as np
import pytest

from xmipp_accel.backend import to_host
from xmipp_accel.errors import InputFileError
from xmipp_accel.io.images import write_stack
from xmipp_accel.io.particles import Particles
from xmipp_accel.reconstruction import source

BOX = 6


@pytest.fixture
def particles(tmp_path):
    """Particles of two stacks of different types, in an order that mixes them."""
    images = np.random.default_rng(1).integers(-9, 9, (30, BOX, BOX)).astype(np.float32)
    write_stack(tmp_path / "a.mrcs", images[:20], 1.0)
    write_stack(tmp_path / "b.mrcs", images[20:], 1.0, np.int16)
    order = np.array([3, 4, 5, 21, 6, 22, 23, 29, 0, 25, 19])
    stack = [str(tmp_path / ("a.mrcs" if place < 20 else "b.mrcs")) for place in order]
    return Particles(stack=stack, index=np.where(order < 20, order, order - 20)), images[order]


def _stream(particles, device, batches, **choices):
    return [
        (key, np.array(to_host(images)), usable)  # whose memory is used again
        for key, images, usable in source.BatchSource(particles, device, **choices).stream(batches)
    ]


def test_images_come_in_the_order_asked_for(device, monkeypatch, particles):
    table, images = particles
    monkeypatch.setattr(source, "TASK_BYTES", 4 * BOX * BOX * 2)  # so that a batch has several parts
    orders = [np.arange(11), np.array([7, 2]), np.arange(11)[::-1], np.array([5]), np.arange(4, 9)]
    found = _stream(table, device, [(number, rows, BOX) for number, rows in enumerate(orders)])
    assert [key for key, _, _ in found] == [0, 1, 2, 3, 4]
    for (_, got, usable), rows in zip(found, orders):
        np.testing.assert_array_equal(got, images[rows])
        assert usable.all()


def test_broken_and_constant_images_become_zero(device, tmp_path):
    images = np.random.default_rng(2).normal(size=(6, BOX, BOX)).astype(np.float32)
    images[1, 0, 5], images[2, 3, 3], images[3] = np.nan, np.inf, 7.0
    images[4, BOX // 2] = 1.0  # one row alone
    write_stack(tmp_path / "a.mrcs", images, 1.0)
    table = Particles(stack=[str(tmp_path / "a.mrcs")] * 6, index=np.arange(6))
    seen = []
    inspect = lambda rows, shown: seen.append((rows, shown.copy()))  # noqa: E731
    ((_, got, usable),) = _stream(table, device, [("", np.arange(6), BOX)], inspect=inspect)
    np.testing.assert_array_equal(usable, [True, False, False, False, True, True])
    np.testing.assert_array_equal(got, np.where(usable[:, None, None], images, 0))
    np.testing.assert_array_equal(np.concatenate([shown for _, shown in seen]), images)  # as they are in the file


def test_an_image_of_another_size_is_told_by_its_file(device, particles, tmp_path):
    table, _ = particles
    with pytest.raises(InputFileError, match=r"a\.mrcs: expected images of 8 x 8 px, found images of 6 x 6 px"):
        _stream(table, device, [("", np.arange(3), 8)])
