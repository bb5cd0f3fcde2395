import numpy as np
import pytest

from xmipp_accel.io import volumes
from xmipp_accel.io.volumes import read_volume, write_volume


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16])
def test_a_volume_of_any_device_is_written_in_parts_with_its_statistics(tmp_path, device, monkeypatch, dtype):
    monkeypatch.setattr(volumes, "PART_BYTES", 4 * 3 * 6 * 7)  # planes of 6 x 7 voxels: parts of 3, 3 and 1
    expected = np.random.default_rng(0).normal(1000, 20, (7, 6, 7)).astype(dtype)
    write_volume(tmp_path / "a.mrc", device.asarray(expected), 1.5)
    found, sampling_rate = read_volume(tmp_path / "a.mrc")
    np.testing.assert_array_equal(found, expected.astype(np.float32))
    assert sampling_rate == pytest.approx(1.5)
    words = np.frombuffer((tmp_path / "a.mrc").read_bytes()[:1024], "<f4")
    values = found.astype(np.float64)
    known = values.min(), values.max(), values.mean(), values.std()
    assert [*words[19:22], words[54]] == pytest.approx(known, rel=1e-6)
