import numpy as np
import pytest

from tests.shared_data import shared_path
from xmipp_accel.io.tables import read_blocks
from xmipp_accel.movie_alignment import MovieAlignmentParameters, MovieAlignmentResult, metadata
from xmipp_accel.numerics import bspline


def example(local=True, first=1, group_sizes=(1,) * 10, dose=1.3):
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
        parameters=MovieAlignmentParameters().to_dict(),
        exposures=dose * np.asarray(group_sizes),
        group_sizes=group_sizes,
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


@pytest.mark.parametrize(
    ("sizes", "is_eer", "grouping", "count"),
    [
        ((1, 1, 1, 2, 2, 2, 2, 2, 3, 3), False, 1, 19),
        ((25,) * 10, True, 25, 10),
        ((4, 4, 4, 4, 8, 8, 8, 12, 12, 12), True, 4, 19),
    ],
    ids=["sums of frames", "equal EER groups", "EER groups"],
)
def test_sums_of_frames_are_written_as_the_frames_that_relion_reads(tmp_path, sizes, is_eer, grouping, count):
    """A straight path in time stays straight, at the middles of RELION's frames."""
    result = example(False, group_sizes=sizes)
    ends = np.cumsum(sizes)
    velocity = np.array([0.01, -0.02])
    object.__setattr__(result, "shifts", ((ends - np.array(sizes) / 2)[1:8, None] - ends[0]) * velocity)
    metadata.write_relion_star(tmp_path / "m.star", result, is_eer=is_eer)
    blocks = read_blocks(tmp_path / "m.star")
    general, table = blocks["general"], blocks["global_shift"]
    assert general["rlnImageSizeZ"][0] == count == len(table["rlnMicrographFrameNumber"])
    assert general["rlnMicrographDoseRate"][0] == pytest.approx(1.3 * grouping)
    if is_eer:
        assert general["rlnEERGrouping"][0] == grouping
    else:
        assert "rlnEERGrouping" not in general
    first, last = ends[0] // grouping, ends[7] // grouping
    assert general["rlnMicrographStartFrame"][0] == first + 1
    found = np.stack([table["rlnMicrographShiftY"], table["rlnMicrographShiftX"]], axis=1)
    assert (found[:first] == metadata.NOT_OBSERVED).all() and (found[last:] == metadata.NOT_OBSERVED).all()
    inner = slice(first + sizes[1] // grouping, last - sizes[7] // grouping)
    middles = (np.arange(count)[inner] + 0.5) * grouping
    expected = (middles[:, None] - ends[0]) * velocity - result.shifts[0]
    np.testing.assert_allclose(found[inner], expected, atol=1e-5)
    assert not found[first].any()


def test_local_motion_of_sums_of_frames(tmp_path):
    """Where RELION's frames lie at the middles of ours, its field is ours."""
    sizes = (1, 1, 3, 3, 3, 3, 3, 3, 1, 1)
    result = example(group_sizes=sizes)
    relion = metadata.RelionFrames(result, is_eer=False)
    coefficients, shifts, _ = metadata.relion_polynomial(result, relion.times)
    assert relion.times.tolist()[:6] == pytest.approx([0, 0.5, 1, 4 / 3, 5 / 3, 2])
    middles = np.flatnonzero(relion.times == np.round(relion.times))
    np.testing.assert_allclose(
        shifts[middles], result.shifts[relion.times[middles].astype(int)] - result.shifts[0]
    )
    direct = metadata.relion_polynomial(result)
    assert not np.allclose(coefficients, direct[0])
    np.testing.assert_allclose(direct[1], result.shifts - result.shifts[0])
