"""The benchmarks on more devices than one: which ones, and how results are compared."""

import argparse
import dataclasses
from pathlib import Path

import numpy as np
import pytest

from benchmarks import align_gpu, classify_gpu, several_gpus
from benchmarks.gpu_particles import make_particles
from xmipp_accel.backend import CPU, Device
from xmipp_accel.io.particles import Particles


@pytest.mark.parametrize(
    ("gpus", "numbers", "expected"),
    [(1, None, []), (3, None, [2]), (8, None, [2, 4]), (8, [2], [2]), (8, [0], []), (2, [8], [])],
)
def test_only_gpus_that_exist_are_measured(monkeypatch, gpus, numbers, expected):
    monkeypatch.setattr(several_gpus, "cuda_status", lambda: (gpus, ""))
    sets = several_gpus.device_sets(Device("cuda"), numbers)
    assert [len(devices) for devices in sets] == expected
    assert all(devices == tuple(Device("cuda", index) for index in range(len(devices))) for devices in sets)


def test_the_cpu_counts_as_several():
    assert several_gpus.device_sets(CPU) == [(CPU, CPU)]
    assert several_gpus.device_sets(CPU, [3]) == [(CPU, CPU, CPU)]
    assert several_gpus.device_sets(CPU, [0]) == []


def rows(numbers, reference, psi, shift_x, score):
    extra = dict(imageIndex=np.array(numbers), maxCC=np.array(score))
    return Particles(["a.mrcs"] * len(numbers), class_id=reference, psi=psi, shift_x=shift_x, extra=extra)


def test_poses_are_compared_where_the_reference_is_the_same():
    one = rows([1, 2, 3, 4], [7, 7, 9, 9], [179, 10, 0, 5], [0, 1, 0, 0], [0.5, 0.5, 0.5, 0.5])
    several = rows([4, 1, 2, 5], [8, 7, 7, 9], [90, -179, 10, 0], [50, 0, 1.25, 0], [0.9, 0.5, 0.4, 0.5])
    found = several_gpus.alignment_difference(one, several)
    expected = {"same reference": 2 / 5, "psi, deg": 2.0, "shift, px": 0.25, "CC": 0.1}
    assert found == pytest.approx(expected)


def test_alignments_without_a_common_reference_have_no_differences():
    one, several = rows([1], [7], [0], [0], [0.5]), rows([1], [8], [0], [0], [0.5])
    found = several_gpus.alignment_difference(one, several)
    assert found == {"same reference": 0.0, "psi, deg": None, "shift, px": None, "CC": None}


def test_averages_differ_by_a_part_of_their_deviation():
    averages = np.zeros((2, 2, 2), np.float32)
    averages[0] = 4
    other = averages.copy()
    other[1, 0, 0] = 1
    one = classify_gpu.Classified({}, np.array([1, 1, 2, 2]), averages)
    several = classify_gpu.Classified({}, np.array([1, 2, 2, 2]), other)
    expected = {"same class": 0.75, "averages, std": 0.5}
    assert several_gpus.classification_difference(one, several) == pytest.approx(expected)


@pytest.mark.slow
def test_alignment_on_two_devices_is_timed_and_compared(tmp_path):
    bench = align_gpu.Benchmark(make_particles(tmp_path, 6, 32, CPU), CPU)
    bench.parameters = dataclasses.replace(bench.parameters, angular_sampling=30.0, max_shift=5.0)
    (found,) = bench.more([(CPU, CPU)], 1.0)
    assert found["devices"] == 2 and found["times faster"] == pytest.approx(1 / found["s"])
    same = {"same reference": 1.0, "psi, deg": 0.0, "shift, px": 0.0, "CC": 0.0}
    assert {name: found[name] for name in same} == same


@pytest.mark.slow
def test_classification_on_two_devices_is_timed_and_compared(tmp_path, monkeypatch):
    monkeypatch.chdir(Path(classify_gpu.__file__).parents[1])
    arguments = argparse.Namespace(device="cpu", box=32, classes=2, same_images=None, more_devices=None)
    one, more = classify_gpu.run(tmp_path, 60, arguments, ["--iterations", "2", "--split-merge-rounds", "1"])
    assert list(more) == [2] and set(one) < set(more[2])
    assert (more[2]["same class"], more[2]["averages, std"]) == (1.0, 0.0)
    assert more[2]["times faster"] == pytest.approx(one["seconds"] / more[2]["seconds"])
