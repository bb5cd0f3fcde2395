import re

import numpy as np

from xmipp_accel.report.figures import class_montage, local_field, movie_traces, volume_slices
from xmipp_accel.report.page import Measurement, figure_png, text_table, write_page

GOOD = Measurement("shift RMSE (px)", 0.05, 0.1, at_most=True)
BAD = Measurement("class purity", 0.5, 0.9, at_most=False)


def test_targets_are_limits_in_their_direction():
    assert GOOD.met
    assert not BAD.met
    assert not Measurement("", float("nan"), 1, at_most=True).met


def test_table_names_value_target_and_verdict():
    lines = text_table([GOOD, BAD]).splitlines()
    assert re.fullmatch(r"shift RMSE \(px\) +0\.050 +<= 0\.1 +ok", lines[1])
    assert re.fullmatch(r"class purity +0\.500 +>= 0\.9 +MISSED", lines[2])


def test_page_needs_no_other_file(tmp_path):
    path = tmp_path / "page.html"
    shifts = np.array([[0.0, 0.0], [1.5, -2.0]])
    write_page(path, "A <title>", [("device", "cpu")], [GOOD, BAD], [("Movies", [movie_traces(shifts)])])
    html = path.read_text()
    assert "A &lt;title&gt;" in html
    assert "MISSED" in html
    sources = re.findall(r'src="([^"]{0,22})', html)
    assert sources == ["data:image/png;base64,"]
    assert "http" not in html


def test_traces_show_the_shifts_in_their_axes():
    shifts = np.array([[0.0, 1.0], [2.0, 5.0], [3.0, -4.0]])
    path, components = movie_traces(shifts).axes[:2]
    np.testing.assert_array_equal(path.lines[0].get_xydata(), shifts[:, ::-1])
    np.testing.assert_array_equal(components.lines[0].get_ydata(), shifts[:, 1])


def test_local_field_draws_what_the_global_shift_leaves():
    shifts = np.array([[0.0, 0.0], [5.0, -5.0]])

    def field(y, x, t):
        return shifts[t] + np.stack([0 * y, x / 100.0 * t], axis=-1)

    axes = local_field(field, (100, 200), shifts, points=3, exaggeration=1).axes[0]
    last = axes.lines[-2].get_xydata()
    np.testing.assert_allclose(last[1] - last[0], [last[0, 0] / 100, 0], atol=1e-9)


def test_montage_and_slices_show_every_image():
    assert sum(bool(axes.images) for axes in class_montage(np.ones((5, 8, 8))).axes) == 5
    volume = np.zeros((7, 7, 7))
    volume[2, 3, 4] = 1
    cut = volume_slices(volume, 1.0, index=2).axes[0].images[0].get_array()
    assert np.argwhere(cut).tolist() == [[3, 4]]
    assert figure_png(volume_slices(volume, 1.0))[:4] == b"\x89PNG"
