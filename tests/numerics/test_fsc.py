import numpy as np
import pytest

from xmipp_accel.backend import to_host
from xmipp_accel.errors import ParameterError
from xmipp_accel.numerics import fsc
from xmipp_accel.numerics.fsc import (
    fourier_ring_correlation,
    fourier_shell_correlation,
    frequencies,
    randomise_phases,
    resolution_at,
    soft_sphere,
)


def _textbook(a, b):
    """The definition, over the full transform in double precision."""
    n = a.shape[0]
    fa, fb = np.fft.fftn(a), np.fft.fftn(b)
    squares = sum(k**2 for k in np.meshgrid(*[np.fft.fftfreq(n) * n] * a.ndim, indexing="ij"))
    shells = np.rint(np.sqrt(squares)).astype(int)
    curve = np.empty(n // 2 + 1)
    for shell in range(len(curve)):
        part = shells == shell
        power = (abs(fa[part]) ** 2).sum() * (abs(fb[part]) ** 2).sum()
        curve[shell] = (fa[part] * fb[part].conj()).real.sum() / np.sqrt(power)
    return curve


@pytest.mark.parametrize("n", [8, 11, 16])
@pytest.mark.parametrize("dimensions", [2, 3])
def test_correlation_is_the_definition(device, n, dimensions):
    rng = np.random.default_rng(n)
    a = rng.normal(size=(n,) * dimensions)
    b = a + rng.normal(size=a.shape)
    correlate = fourier_ring_correlation if dimensions == 2 else fourier_shell_correlation
    curve = correlate(device.asarray(a, np.float32), device.asarray(b, np.float32))
    assert isinstance(curve, np.ndarray)
    # float32 transforms of n**3 numbers of size 1.
    np.testing.assert_allclose(curve[1:], _textbook(a, b)[1:], atol=1e-5)


def test_identical_inverted_and_unrelated_maps():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 24, 24, 24))
    np.testing.assert_allclose(fourier_shell_correlation(a, a), 1)
    np.testing.assert_allclose(fourier_shell_correlation(a, -a)[1:], -1)
    assert np.abs(fourier_shell_correlation(a, b)[6:]).max() < 0.2


def test_a_mask_removes_what_lies_outside():
    rng = np.random.default_rng(1)
    signal = rng.normal(size=(32, 32, 32)) * soft_sphere(32, 6, 2)
    a, b = signal + rng.normal(size=(2, 32, 32, 32)) * (1 - soft_sphere(32, 9, 2))
    mask = soft_sphere(32, 7, 2)
    assert fourier_shell_correlation(a, b)[2:].max() < 0.6
    assert fourier_shell_correlation(a, b, mask)[2:].min() > 0.99


def test_unequal_shapes_are_refused():
    with pytest.raises(ParameterError, match="two equal cubes of 3 dimensions"):
        fourier_shell_correlation(np.zeros((4, 4, 4)), np.zeros((6, 6, 6)))
    with pytest.raises(ParameterError, match="two equal cubes"):
        fourier_shell_correlation(np.zeros((4, 4, 6)), np.zeros((4, 4, 6)))


def test_empty_maps_have_no_correlation_rather_than_nan():
    curve = fourier_shell_correlation(np.zeros((6, 6, 6)), np.zeros((6, 6, 6)))
    np.testing.assert_array_equal(curve[1:], 0)


def test_resolution_is_interpolated_between_shells():
    curve = [1, 1, 0.5, 0.0, 0.0]  # box 8 of 2 A: shell s is 16 / s A
    assert resolution_at(curve, 0.25, 2.0, 8) == pytest.approx(16 / 2.5)
    assert resolution_at(curve, 0.5, 2.0, 8) == pytest.approx(16 / 2)
    assert resolution_at([1, 1, 1, 1, 1], 0.143, 2.0, 8) == pytest.approx(4.0)
    assert resolution_at([1, 0, 0, 0, 0], 0.143, 2.0, 8) == pytest.approx(16.0)
    assert resolution_at([1, np.nan, 0, 0, 0], 0.143, 2.0, 8) == pytest.approx(16.0)
    # The first fall counts, not a later rise.
    assert resolution_at([1, 1, 0, 1, 1], 0.5, 2.0, 8) == pytest.approx(16 / 1.5)


def test_frequencies_end_at_nyquist():
    np.testing.assert_allclose(frequencies(8, 2.0), [0, 1 / 16, 2 / 16, 3 / 16, 4 / 16])


def test_soft_sphere_is_one_inside_half_on_its_edge_and_zero_outside():
    mask = soft_sphere(33, 8.0, 4.0)
    assert mask.dtype == np.float32
    line = mask[16, 16, 16:]
    np.testing.assert_allclose(line[[0, 8, 10, 12, 16]], [1, 1, 0.5, 0, 0], atol=1e-6)
    np.testing.assert_array_equal(mask, mask[::-1, ::-1, ::-1])


def test_random_phases_keep_amplitudes_and_a_real_map(device):
    n, shell = 12, 4
    volume = np.random.default_rng(2).normal(size=(n, n, n)).astype(np.float32)
    before = np.fft.rfftn(volume)
    after = device.asarray(before, np.complex64)
    randomise_phases(after, shell, 7)
    after = to_host(after)
    full, half = np.fft.fftfreq(n) * n, np.arange(n // 2 + 1)
    shells = np.rint(np.sqrt(full[:, None, None] ** 2 + full[:, None] ** 2 + half**2))
    np.testing.assert_allclose(after[shells < shell], before[shells < shell], rtol=1e-5)
    np.testing.assert_allclose(abs(after), abs(before), rtol=1e-4, atol=1e-4)
    # What a real map cannot hold would be lost on the way back.
    np.testing.assert_allclose(np.fft.rfftn(np.fft.irfftn(after, volume.shape)), after, atol=1e-3)
    assert np.isclose(after, before)[shells == shell].mean() < 0.05
    turned = np.angle(after / before)[shells >= shell]
    assert abs(np.exp(1j * turned).mean()) < 0.1 and np.histogram(turned, 8, (-np.pi, np.pi))[0].min() > 60


def test_random_phases_follow_their_seed(device):
    ones = np.ones((16, 16, 9), np.complex64)
    found = []
    for seed in (1, 1, (1, 2)):
        found.append(device.asarray(ones.copy()))
        randomise_phases(found[-1], 2, seed)
    first, again, other = map(to_host, found)
    np.testing.assert_array_equal(first, again)
    assert abs((first * other.conj())[:, :, 1:-1].mean()) < 0.1


@pytest.mark.parametrize("n", [9, 24])
def test_phases_are_the_same_on_every_device_and_in_any_chunks(device, monkeypatch, n):
    ones = np.ones((n, n, n // 2 + 1), np.complex64)
    found = device.asarray(ones.copy())
    randomise_phases(found, 3, 5)
    monkeypatch.setattr(fsc, "chunks", lambda xp, length, size: [slice(i, i + 1) for i in range(length)])
    randomise_phases(ones, 3, 5)
    np.testing.assert_allclose(to_host(found), ones, atol=1e-5)
