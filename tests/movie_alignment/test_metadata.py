import numpy as np
import pytest

from tests.shared_data import shared_path
from xmipp_accel.io.tables import read_blocks
from xmipp_accel.movie_alignment import MovieAlignmentParameters, MovieAlignmentResult, metadata
from xmipp_accel.numerics import bspline


def example(local=True, first=1):
    rng = np.random.default_rng(0)
    n = 7
    return MovieAlignmentResult(
        name="m",
        movie="/data/m.mrc",
        status="local" if local else "global",
        reason="",
        n_frames=10,
        first_frame=first,
        shape=(200, 300),
        sampling_rate=1.1,
        output_sampling_rate=1.1,
        reference_frame=3,
        shifts=rng.normal(size=(n, 2)),
        shift_errors=np.full((n, 2), 0.1),
        control_points=rng.normal(size=(4, 5, 6, 2)) if local else np.zeros((0, 0, 0, 2)),
        quality={"patches_x": 6.0},
        outputs={"xmd": "m.xmd"},
        timings={},
        parameters=MovieAlignmentParameters(dose_per_frame=1.3).to_dict(),
    )


def field_on_grid(result):
    t, y, x = np.meshgrid(np.arange(7), np.linspace(0, 199, 4), np.linspace(0, 299, 5), indexing="ij")
    return result.field(y, x, t), (t, y, x)


@pytest.mark.parametrize("local", [True, False])
def test_json_round_trip(tmp_path, local):
    from xmipp_accel.io.publish import write_json

    result = example(local)
    write_json(tmp_path / "m.json", result.to_json())
    again = MovieAlignmentResult.from_json(tmp_path / "m.json")
    np.testing.assert_array_equal(field_on_grid(again)[0], field_on_grid(result)[0])
    assert again.to_json() == result.to_json()
    assert again.control_points.shape == result.control_points.shape


@pytest.mark.parametrize("local", [True, False])
def test_xmd_round_trip_is_the_total_motion(tmp_path, local):
    result = example(local)
    metadata.write_xmd(tmp_path / "m.xmd", result, blank=[2])
    motion = metadata.read_xmd(tmp_path / "m.xmd")
    np.testing.assert_allclose(motion["shifts"][1:8], result.shifts, atol=1e-9)
    assert list(np.nonzero(~motion["enabled"])[0]) == [0, 3, 8, 9]
    assert motion["reference_frame"] == 3
    field, (t, y, x) = field_on_grid(result)
    np.testing.assert_allclose(
        bspline.evaluate(motion["control_points"], t, y, x, result.lengths), field, atol=1e-6
    )


@pytest.mark.parametrize("name", ["dome", "drift"])
def test_blocks_and_labels_are_flexaligns(tmp_path, name):
    golden_path = shared_path(f"golden/movie_alignment/{name}_flexalign.xmd")
    golden = read_blocks(golden_path)
    metadata.write_xmd(tmp_path / "m.xmd", example())
    ours = read_blocks(tmp_path / "m.xmd")
    assert {block: list(columns) for block, columns in ours.items()} == {b: list(c) for b, c in golden.items()}
    motion = metadata.read_xmd(golden_path)
    assert motion["shifts"].shape == (20, 2)
    assert motion["control_points"].shape == (5, 3, 3, 2)
    assert motion["shifts"][0] == pytest.approx(
        [golden["frameShifts"]["shiftY"][0], golden["frameShifts"]["shiftX"][0]]
    )


def relion_field(blocks, t, y, x, shape, first):
    """As RELION evaluates its model: shift of the frame plus the polynomial."""
    c = blocks["local_motion_model"]["rlnMotionModelCoeff"]
    u, v, z = x / shape[1] - 0.5, y / shape[0] - 0.5, t
    out = []
    for part, label in ((c[18:], "rlnMicrographShiftY"), (c[:18], "rlnMicrographShiftX")):
        terms = [1, u, u * u, v, v * v, u * v]
        value = sum(part[3 * k + p] * terms[k] * z ** (p + 1) for k in range(6) for p in range(3))
        out.append(value + blocks["global_shift"][label][first + t.astype(int)])
    return np.stack(out, axis=-1)


def test_relion_star(tmp_path):
    """A field within RELION's model comes back exactly, up to its value in the first frame."""
    result = example()
    t, y, x = np.meshgrid(np.arange(7), np.linspace(0, 199, 9), np.linspace(0, 299, 9), indexing="ij")
    u, v, z = x / 300 - 0.5, y / 200 - 0.5, t / 6
    wanted = np.stack([z * (2 * u + v * v) - z**3 * u * v, z**2 * u * u - 3 * z * v], axis=-1)
    bases = [bspline.basis_matrix(np.unique(p), n, k) for p, n, k in zip((t, y, x), result.lengths, (4, 5, 6))]
    inverse = [np.linalg.pinv(b) for b in bases]
    points = np.einsum("at,by,cx,tyxd->abcd", *inverse, wanted)
    object.__setattr__(result, "control_points", points)
    rms = metadata.write_relion_star(tmp_path / "m.star", result, gain="g.mrc", bad_pixels=[(3, 4)])
    assert rms < 1e-6
    blocks = read_blocks(tmp_path / "m.star")
    general = blocks["general"]
    assert general["rlnMicrographMovieName"] == ["/data/m.mrc"]
    assert general["rlnMicrographStartFrame"][0] == 2
    assert general["rlnMotionModelVersion"][0] == 1
    assert general["rlnMicrographDoseRate"][0] == pytest.approx(1.3)
    assert blocks["hot_pixels"]["rlnCoordinateX"][0] == 4
    assert blocks["global_shift"]["rlnMicrographShiftX"][0] == metadata.NOT_OBSERVED
    found = relion_field(blocks, t.astype(float), y, x, (200, 300), 1)
    field = result.field(y, x, t)
    np.testing.assert_allclose(found, field - field[0], atol=1e-5)
    assert "loop_" not in (tmp_path / "m.star").read_text().split("data_global_shift")[0]


def test_relion_star_without_local_motion(tmp_path):
    metadata.write_relion_star(tmp_path / "m.star", example(local=False))
    blocks = read_blocks(tmp_path / "m.star")
    assert blocks["general"]["rlnMotionModelVersion"][0] == 0
    assert set(blocks) == {"general", "global_shift"}
