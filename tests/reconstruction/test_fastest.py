"""Tuning of the insertion within reconstructions, on a GPU that is none: the CPU's kernels, and times as told."""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.reconstruction.particle_data import SAMPLING, particles_on_disk, views
from tests.tuning.fake_gpu import AtOnce, FakeGpu
from xmipp_accel.backend import CPU, to_host
from xmipp_accel.io.volumes import read_volume
from xmipp_accel.reconstruction import fastest, insert
from xmipp_accel.reconstruction.accumulator import FourierAccumulator
from xmipp_accel.reconstruction.executor import ReconstructFourierExecutor
from xmipp_accel.reconstruction.fastest import SMALL, FastestInsertion, UsualInsertion
from xmipp_accel.reconstruction.gridding import Gridding
from xmipp_accel.reconstruction.parameters import ReconstructFourierParameters
from xmipp_accel.reconstruction.tune import describe_known, tune
from xmipp_accel.reconstruction.views import Views
from xmipp_accel.tuning.cache import TuningCache
from xmipp_accel.tuning.online import TOLERANCE

COSTS = dict(scatter=2e-5, columns=3e-5, bricks=2.5e-5)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(fastest, "ThreadPoolExecutor", AtOnce)


class Recorded:
    """Insertions of images on a fake GPU: in which way, and how long; the checks of ways stand apart."""

    def __init__(self, monkeypatch, wrong=()):
        self.gpu, self._wrong = FakeGpu(), wrong
        self.ways, self.counts, self.checked = [], [], []
        for name, default in (("insert_trilinear", "columns"), ("insert_blob", "columns")):
            monkeypatch.setattr(insert, name, self._recording(getattr(insert, name), default))

    def _recording(self, kernel, default):
        def insertion(sums, first, slices, matrices, curvature, images, *others, how=default):
            kernel(sums, first, slices, matrices, curvature, images, *others)
            if how in self._wrong:
                sums[tuple(np.array(sums.shape) // 2)] += 0.1
            self.gpu.clock.now += COSTS[how] * len(images)
            if len(slices) == 2 and slices.shape[2] == SMALL:
                self.checked.append(how)
            else:
                self.ways.append(how)
                self.counts.append(len(images))

        return insertion


def _inserted(device, expected=0, batches=14, **choices):
    """Sums of some batches of four images."""
    images, matrices, shifts = views(4, 12)
    parameters = ReconstructFourierParameters(halves=False, ctf="none", **choices)
    accumulator = FourierAccumulator(parameters, device, 12, SAMPLING)
    accumulator.ways.expect(expected)
    for _ in range(batches):
        accumulator.insert(images, Views(matrices, shifts))
    return accumulator


@pytest.mark.parametrize(
    ("method", "tried", "best"),
    [("trilinear", ["columns", "scatter", "bricks"], "scatter"), ("blob", ["columns", "bricks"], "bricks")],
)
def test_the_ways_of_each_kernel_are_tried_and_the_fastest_is_kept_for_later_runs(
    monkeypatch, method, tried, best
):
    recorded = Recorded(monkeypatch)
    accumulator = _inserted(recorded.gpu, expected=1000, method=method)
    assert recorded.ways == [way for way in tried for _ in range(3)] + [best] * (14 - 3 * len(tried))
    assert recorded.checked == [way for other in tried[1:] for way in (tried[0], other)]
    np.testing.assert_array_equal(accumulator.sums[0], _inserted(CPU, method=method).sums[0])
    recorded.ways.clear()
    recorded.checked.clear()
    _inserted(recorded.gpu, method=method, batches=2)
    assert recorded.ways == [best] * 2 and not recorded.checked


def test_other_problems_are_learnt_apart(monkeypatch):
    recorded = Recorded(monkeypatch)
    for choices in ({}, dict(symmetry="c3"), dict(method="blob"), dict(method="blob", blob_radius=1.5)):
        _inserted(recorded.gpu, expected=1000, **choices)
    entries = TuningCache().entries()
    assert len(entries) == 4
    for key, entry in entries.items():
        best = "bricks" if "blob" in key else "scatter"
        assert "Fake GPU, 9.0, CUDA 12040" in key and entry.option == best
        assert entry.median == pytest.approx(COSTS[best])


def test_another_kernel_source_is_another_problem(monkeypatch):
    recorded = Recorded(monkeypatch)
    _inserted(recorded.gpu, expected=1000)
    monkeypatch.setattr(fastest, "kernel_digest", lambda subject: "another one")
    recorded.ways.clear()
    _inserted(recorded.gpu, batches=2)
    assert recorded.ways == ["columns"] * 2


def test_a_way_that_adds_something_else_is_never_used(monkeypatch, caplog):
    recorded = Recorded(monkeypatch, wrong=("scatter",))
    accumulator = _inserted(recorded.gpu, expected=1000)
    assert "scatter" not in recorded.ways and recorded.ways[-1] == "bricks"
    assert sum("scatter is not used" in line for line in caplog.messages) == 1
    np.testing.assert_array_equal(accumulator.sums[0], _inserted(CPU).sums[0])


@pytest.mark.parametrize(
    ("device", "choices"),
    [(CPU, {}), (FakeGpu(), dict(deterministic=True)), (FakeGpu(), dict(method="nearest"))],
)
def test_where_there_is_nothing_to_choose_nothing_is_looked_up(monkeypatch, device, choices):
    recorded = Recorded(monkeypatch)
    monkeypatch.setattr(TuningCache, "entries", None)
    accumulator = _inserted(device, expected=1e6, **choices)
    assert isinstance(accumulator.ways, UsualInsertion)
    assert set(recorded.ways) == {"columns" if device is CPU else "bricks"} or choices["method"] == "nearest"
    assert not recorded.checked


def test_a_run_tries_ways_unless_told_not_to(monkeypatch, tmp_path):
    """Three batches of one image are three percent of a hundred: one way can be tried."""
    recorded, maps = Recorded(monkeypatch), []
    particles = particles_on_disk(tmp_path, count=110, box=12)
    for choices in (dict(tune=False), {}, dict(tune=False)):
        recorded.ways.clear()
        parameters = ReconstructFourierParameters(halves=False, batch_size=1, **choices)
        ReconstructFourierExecutor(parameters, recorded.gpu).reconstruct(particles, tmp_path)
        maps.append((list(recorded.ways), read_volume(tmp_path / "volume.mrc")[0]))
    (off, plain), (on, tuned), (known, again) = maps
    assert off == ["columns"] * 110
    assert on == ["columns"] * 3 + ["scatter"] * 107
    assert known == ["scatter"] * 110
    for volume in (tuned, again):
        np.testing.assert_array_equal(volume, plain)


def test_parts_of_the_sums_are_trials_of_their_own(monkeypatch):
    """Half maps halve what a trial costs; a part that gets no images is none."""
    recorded = Recorded(monkeypatch)
    images, matrices, shifts = views(4, 12)
    accumulator = FourierAccumulator(ReconstructFourierParameters(ctf="none"), recorded.gpu, 12, SAMPLING)
    accumulator.ways.expect(1000)
    for halves in ([2] * 4, [1, 2, 1, 2], [1, 2, 1, 2], [1] * 4):
        accumulator.insert(images, Views(matrices, shifts, halves=np.array(halves)))
    used = [way for way, count in zip(recorded.ways, recorded.counts) if count]
    assert used == ["columns"] * 3 + ["scatter"] * 3


def test_everything_is_measured_on_demand_and_shown_later(monkeypatch):
    recorded = Recorded(monkeypatch)
    lines = list(tune(recorded.gpu, 12))
    rows = [line.split() for line in lines if line.startswith("  ")]
    assert rows[:5] == [
        ["columns", "30.00"],
        ["scatter", "20.00", "*"],
        ["bricks", "25.00"],
        ["columns", "30.00"],
        ["bricks", "25.00", "*"],
    ]
    assert [row[:2] for row in rows[5:]] == [["24", "(2)"]]
    shown = [line.split() for line in describe_known() if line.startswith("  ")]
    assert sorted(shown[:-1]) == sorted(rows[:5])
    recorded.ways.clear()
    list(tune(recorded.gpu, 12))
    assert set(recorded.ways) == set(COSTS)


@pytest.mark.parametrize(("kernel", "radius"), [("trilinear", 1.9), ("blob", 1.9), ("blob", 2.5)])
def test_all_ways_pass_the_check_on_a_real_device(device, kernel, radius):
    """In a thread of its own, whose stream it changes; the CPU has one way under all names."""
    ways = FastestInsertion(device, Gridding(kernel, False, radius, 0, 15.0, ""), {})
    with ThreadPoolExecutor(1) as thread:
        found = list(thread.map(ways._difference, ("scatter", "bricks")))
    assert max(found) < TOLERANCE / 2


def test_a_real_gpu_tries_all_ways_and_adds_the_same(device, monkeypatch):
    monkeypatch.setattr(fastest, "ThreadPoolExecutor", ThreadPoolExecutor)
    accumulator = _inserted(device, expected=1e6)
    images, matrices, shifts = views(4, 12)
    batches, deadline = 14, time.monotonic() + 60
    while device.kind == "cuda" and not accumulator.ways.settled and time.monotonic() < deadline:
        accumulator.insert(images, Views(matrices, shifts))
        batches += 1
    found, expected = to_host(accumulator.preview()), _inserted(CPU, batches=batches).preview()
    np.testing.assert_allclose(found, expected, atol=1e-4 * expected.max())
    if device.kind == "cuda":
        (tuner,) = accumulator.ways.tuners.values()
        assert tuner.settled and all(0 < seconds < 1 for times in tuner.times.values() for seconds in times)
