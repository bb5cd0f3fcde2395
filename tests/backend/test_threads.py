import numpy as np
import pytest
import threadpoolctl

from xmipp_accel.backend import one_blas_thread, rows_on_all_cores


def blas_threads():
    return {library["num_threads"] for library in threadpoolctl.threadpool_info() if library["user_api"] == "blas"}


def test_blas_keeps_to_one_thread_until_the_last_user_is_done():
    with threadpoolctl.threadpool_limits(3, "blas"):
        first, second = one_blas_thread(), one_blas_thread()
        first.__enter__()
        second.__enter__()
        assert blas_threads() == {1}
        first.__exit__(None, None, None)
        assert blas_threads() == {1}
        second.__exit__(None, None, None)
        assert blas_threads() == {3}


@pytest.mark.parametrize("length, rows", [(0, 4), (1, 4), (8, 4), (9, 4), (30, 1)])
def test_rows_are_joined_in_their_order(length, rows):
    array = np.arange(3 * length).reshape(length, 3)
    sizes = []

    def sums(part):
        sizes.append(len(part))
        return part.sum(axis=1)

    np.testing.assert_array_equal(rows_on_all_cores(sums, array, rows), array.sum(axis=1))
    assert sum(sizes) == length and max(sizes) <= rows
