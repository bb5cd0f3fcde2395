import math

import numpy as np
import pytest

from tests.tuning.fake_gpu import FakeGpu
from xmipp_accel.backend import CPU
from xmipp_accel.tuning import fft_sizes
from xmipp_accel.tuning.fft_sizes import candidate_sizes, measure_sizes, radix_passes


def _is_smooth(size):
    return all(
        size % prime or prime <= 7 for prime in range(2, size + 1) if all(prime % p for p in range(2, prime))
    )


@pytest.mark.parametrize("smallest", [8, 100, 144, 192, 250])
def test_candidates_are_all_even_sizes_of_small_primes_up_to_a_tenth_more(smallest):
    expected = {n for n in range(smallest, int(1.1 * smallest) + 1) if n % 2 == 0 and _is_smooth(n)}
    found = candidate_sizes(smallest)
    assert len(found) == len(set(found)) and set(found) == expected


def test_few_passes_and_powers_of_two_come_first():
    assert [radix_passes(n) for n in (2, 16, 18, 256, 512, 420, 2 * 7**4)] == [1, 1, 2, 2, 3, 3, 4]
    assert candidate_sizes(500)[:2] == [512, 500]
    passes = [radix_passes(n) for n in candidate_sizes(1000)]
    assert passes == sorted(passes)
    assert candidate_sizes(1000)[0] == 1024


def test_there_is_a_candidate_where_none_is_within_a_tenth():
    assert candidate_sizes(11) == [12]


def test_times_are_those_of_an_image_without_the_first_transform(monkeypatch):
    gpu, sizes = FakeGpu(), []

    class Transforms:
        @staticmethod
        def rfft(images, n, axis):
            assert images.shape == (4, 20, 20) and images.dtype == np.float32
            gpu.clock.now += 4e-3 * n if n in sizes else 100.0
            sizes.append(n)
            return images

        @staticmethod
        def fft(half, n, axis):
            gpu.clock.now += 4e-3
            return half

    monkeypatch.setattr(fft_sizes, "fft_module", lambda images: Transforms)
    found = measure_sizes(gpu, 20, [40, 42], 4)
    for size in (40, 42):
        np.testing.assert_allclose(found[size], [1e-3 * (size + 1)] * 3)


def test_the_cpu_is_measured_by_the_clock_on_the_wall():
    (times,) = measure_sizes(CPU, 8, [16], 3).values()
    assert all(0 < time < math.inf for time in times)
