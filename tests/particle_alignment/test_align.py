"""The two stages, and batches on several devices."""

import threading
import types

import numpy as np
import pytest

from tests.tuning.fake_gpu import FakeGpu
from xmipp_accel.backend import CPU
from xmipp_accel.errors import ProcessingError
from xmipp_accel.particle_alignment import assignment, comparison, sweep
from xmipp_accel.particle_alignment.align import PolarAligner
from xmipp_accel.particle_alignment.executor import AlignSignificantExecutor
from xmipp_accel.particle_alignment.parameters import AlignSignificantParameters


def test_two_stages_find_what_one_finds(align, monkeypatch):
    """The first stage on 8 of 14 rings, the second among 64 of 642 references."""
    one = align("ctf", angular_sampling=7.5)[1]
    monkeypatch.setattr(comparison, "_COARSE_RINGS", 8)
    monkeypatch.setattr(assignment, "_CANDIDATES", 64)
    result, two = align("ctf", angular_sampling=7.5)
    assert result.n_rings == 14 and result.n_shifts < 30
    same = one.class_id == two.class_id
    assert same.mean() > 0.95
    np.testing.assert_allclose(two.extra["maxCC"][same], one.extra["maxCC"][same], atol=1e-3)
    np.testing.assert_allclose(two.shift_x[same], one.shift_x[same], atol=0.05)


def test_several_devices_give_the_same_result(data, tmp_path, monkeypatch):
    monkeypatch.setitem(sweep._BATCH, "cpu", 5)
    parameters = AlignSignificantParameters(angular_sampling=15, keep_best=2)
    files = []
    for count in (1, 3):
        executor = AlignSignificantExecutor(parameters, *[CPU] * count)
        result = executor.align(data["ctf"], data["volume"], tmp_path / str(count))
        files.append(open(result.particles_xmd).read())
    assert files[0] == files[1] and result.device == "cpu, cpu, cpu"


def test_devices_prepare_the_references_at_once(data, tmp_path, monkeypatch):
    begin, together = PolarAligner.__init__, threading.Barrier(2)

    def wait(self, *arguments):
        together.wait(timeout=10)
        begin(self, *arguments)

    monkeypatch.setattr(PolarAligner, "__init__", wait)
    parameters = AlignSignificantParameters(angular_sampling=30)
    result = AlignSignificantExecutor(parameters, CPU, CPU).align(data["plain"], data["volume"], tmp_path)
    assert result.n_aligned == 12


def test_each_device_gets_a_batch_before_any_gets_two():
    workers = [types.SimpleNamespace(device=FakeGpu(index=index)) for index in range(2)]
    started = threading.Barrier(2)

    def visit(worker, rows):
        started.wait(timeout=10)
        return [worker.device.index]

    count = 2 * sweep._BATCH["cuda"]
    assert sorted(sweep.sweep(workers, count, visit, lambda _: None)) == [0, 1]


def test_batches_that_do_not_fit_into_memory_are_halved(data, align, monkeypatch):
    expected = align()[1]
    compare, sizes = PolarAligner.compare, []

    def small(self, particles, allowed=None):
        sizes.append(len(particles))
        if len(particles) > limit:
            raise MemoryError
        return compare(self, particles, allowed)

    monkeypatch.setattr(PolarAligner, "compare", small)
    limit = 4
    np.testing.assert_array_equal(align()[1].class_id, expected.class_id)
    assert sizes == [12, 6, 3, 3, 6, 3, 3]
    limit = 0
    with pytest.raises(ProcessingError, match="cpu: one particle"):
        align()
