"""Every file of the reference folder opens, or is refused for a stated reason."""

from pathlib import Path

import numpy as np
import pytest

from tests.shared_data import SHARED, shared_path
from xmipp_accel.errors import InputFileError
from xmipp_accel.io.images import read_stack, stack_shape
from xmipp_accel.io.movies import open_movie
from xmipp_accel.io.particles import read_particles
from xmipp_accel.io.tables import read_blocks
from xmipp_accel.io.volumes import read_volume

tifffile = pytest.importorskip("tifffile")
pytest.importorskip("imagecodecs")

CUBE = (64, 64, 64)
MOVIES = {
    "data/formats/13pf_MT.tif": ((36, 206, 94), "u1", 0),
    "data/formats/KLH.tif": ((1, 844, 760), "u1", 0),
    "data/formats/20241021_00405_movie.mrc": ((32, 4, 8), "u2", 0),
    "data/formats/Custom_movie.mrc": ((30, 16, 16), "u2", 0),
    "data/formats/smallStack.mrcs": ((4, 64, 64), "f4", 1),
    "data/micrographs/fei_2048.mrc": ((1, 2048, 2048), "u2", 0.854),
}
STACKS = {
    "data/formats/smallStack.stk": (4, 64, 64),
    "data/particles/relion31.mrcs": (5, 256, 256),
    "data/particles/sample.mrcs": (17, 200, 200),
    "data/particles/toy_projections.mrcs": (1000, 30, 30),
    "golden/align_significant/gallery.stk": (162, 64, 64),
    "golden/align_significant/particles.mrcs": (300, 64, 64),
    "golden/reconstruct_fourier/particles.mrcs": (200, 64, 64),
}
VOLUMES = {
    "data/formats/EMD-3001.map": "voxels that are cubes",
    "data/formats/EMD-3197.map": ((20, 20, 20), 11.4),
    "data/maps/50S-vol.mrc": ((128, 32, 32), 4.0),
    "data/maps/8zpm_1.5A_96.mrc": ((96, 96, 96), 1.5),
    "data/maps/clean70SRibosome_vol_65p.mrc": ((65, 65, 65), 0.0),
    "data/maps/groel_1mnf_2.5A_96.mrc": ((96, 96, 96), 2.5),
    "data/maps/spike-vol.mrc": ((128, 16, 16), 8.0),
    "golden/align_significant/volume_truth.mrc": (CUBE, 2.25),
    "golden/reconstruct_fourier/volume_truth.mrc": (CUBE, 3.75),
}
for _name in ("accel", "accel_d7", "accel_fast", "cuda", "cuda_fast", "legacy"):
    VOLUMES[f"golden/reconstruct_fourier/{_name}.mrc"] = (CUBE, 1.0)
# Number, box, sampling rate, has CTF, has pose.
PARTICLES = {
    "data/particles/relion31.star": (5, 256, 2.806, True, True),
    "data/particles/relion31.v2.star": (5, 256, 2.806, True, True),
    "data/particles/relion31.6opticsgroups.star": r"the stack Polish/job520/Micrographs/0003_shiny\.mrcs",
    "data/particles/relion5.star": r"the stack toy_images_a\.mrcs",
    "data/particles/sample_data_model.star": "a table with rlnImageName",
    "data/particles/sample_particles_relion30.star": (17, 200, 1.338, True, True),
    "data/particles/sample_particles_relion31.star": (17, 200, 1.4, True, True),
    "data/particles/toy_projections.star": (1000, 30, 1.0, True, False),
    "golden/align_significant/align_significant_best1.xmd": (300, 64, 2.25, False, True),
    "golden/align_significant/align_significant_best3.xmd": (900, 64, 2.25, False, True),
    "golden/align_significant/gallery.doc": (162, 64, 0.0, False, True),
    "golden/align_significant/particles.star": (300, 64, 2.25, False, True),
    "golden/align_significant/particles.xmd": (300, 64, 2.25, False, True),
    "golden/movie_alignment/dome_flexalign.xmd": r"the stack movie\.mrcs",
    "golden/movie_alignment/drift_flexalign.xmd": r"the stack movie\.mrcs",
    "golden/reconstruct_fourier/particles.star": (200, 64, 3.75, False, True),
    "golden/reconstruct_fourier/particles.xmd": (200, 64, 3.75, False, True),
}
for _name in ("c1", "c4", "d2", "d7", "i1", "i2", "o"):
    PARTICLES[f"golden/galleries/g_{_name}.doc"] = rf"the stack g_{_name}\.stk"
ROWS = dict(c1=362, c4=93, d2=104, d7=30, o=16, i1=10, i2=8)


def test_no_file_is_forgotten():
    shared_path("data")
    known = {*MOVIES, *STACKS, *VOLUMES, *PARTICLES}
    found = {
        str(path.relative_to(SHARED))
        for folder in ("data", "golden")
        for path in (SHARED / folder).rglob("*")
        if path.is_file() and path.suffix not in (".md", ".tsv", ".log")
    }
    assert found == known


@pytest.mark.parametrize("name", MOVIES)
def test_movies(name):
    shape, dtype, sampling_rate = MOVIES[name]
    movie = open_movie(shared_path(name))
    assert (movie.shape, movie.dtype) == (shape, np.dtype(dtype))
    assert movie.sampling_rate == pytest.approx(sampling_rate)
    frames = movie.read()
    assert frames.std() > 0
    if Path(name).suffix == ".tif":
        np.testing.assert_array_equal(frames, tifffile.imread(shared_path(name)).reshape(shape)[:, ::-1])


@pytest.mark.parametrize("name", STACKS)
def test_stacks(name):
    path = shared_path(name)
    assert stack_shape(path) == STACKS[name]
    last = STACKS[name][0] - 1
    images = read_stack(path, [last, 0])
    assert images.shape == (2, *STACKS[name][1:]) and np.isfinite(images).all() and images.std() > 0


def test_the_same_stack_in_two_formats():
    np.testing.assert_array_equal(
        read_stack(shared_path("data/formats/smallStack.stk")),
        read_stack(shared_path("data/formats/smallStack.mrcs")),
    )


@pytest.mark.parametrize("name", VOLUMES)
def test_volumes(name):
    path, expected = shared_path(name), VOLUMES[name]
    if isinstance(expected, str):
        with pytest.raises(InputFileError, match=expected):
            read_volume(path)
        return
    volume, sampling_rate = read_volume(path)
    assert volume.shape == expected[0] and sampling_rate == pytest.approx(expected[1])
    assert volume.std() > 0


@pytest.mark.parametrize("name", PARTICLES)
def test_particles(name):
    path, expected = shared_path(name), PARTICLES[name]
    if isinstance(expected, str):
        with pytest.raises(InputFileError, match=expected):
            read_particles(path)
        return
    particles = read_particles(path)
    found = len(particles), particles.box, particles.sampling_rate, particles.has_ctf, particles.has_pose
    assert found == expected
    assert particles.images([len(particles) - 1]).std() > 0


def test_optics_of_two_groups():
    for version in ("30", "31"):
        particles = read_particles(shared_path(f"data/particles/sample_particles_relion{version}.star"))
        assert set(particles.voltage) == {200.0, 300.0} and particles.voltage[0] == 300
        assert particles.defocus_u[0] == 21186.804688
        assert particles.shift_x[0] == pytest.approx(0.1996 if version == "30" else 0.1996 / 1.4)


def test_both_files_of_the_golden_particles_say_the_same():
    for folder in ("align_significant", "reconstruct_fourier"):
        star, xmd = (read_particles(shared_path(f"golden/{folder}/particles.{kind}")) for kind in ("star", "xmd"))
        assert star.stack == xmd.stack
        for name in ("index", "rot", "tilt", "psi", "shift_x", "shift_y"):
            np.testing.assert_allclose(getattr(star, name), getattr(xmd, name), atol=2e-6, err_msg=name)


def test_columns_of_align_significant():
    particles = read_particles(shared_path("golden/align_significant/align_significant_best1.xmd"))
    assert list(particles.extra) == ["imageIndex", "maxCC", "weightSignificant"]
    np.testing.assert_array_equal(particles.extra["weightSignificant"], particles.weight)
    assert particles.class_id[0] == 109 and particles.extra["maxCC"][0] == 0.643414


def test_galleries_and_flexalign_files_are_tables():
    for name, rows in ROWS.items():
        assert len(read_blocks(shared_path(f"golden/galleries/g_{name}.doc"))["noname"]["angleRot"]) == rows
    blocks = read_blocks(shared_path("golden/movie_alignment/dome_flexalign.xmd"))
    assert len(blocks["frameShifts"]["shiftX"]) == 20
    coefficients = blocks["localAlignment"]["localAlignmentCoeffsX"][0].split()
    assert len(coefficients) == 3 * 3 * 5 and float(coefficients[0]) == -2430.352783
