"""What a user may choose for the alignment of movies."""

from __future__ import annotations

import dataclasses

from xmipp_accel.errors import ParameterError
from xmipp_accel.parameters import Parameters, parameter


@dataclasses.dataclass(frozen=True)
class MovieAlignmentParameters(Parameters):
    """Parameters of :class:`xmipp_accel.movie_alignment.MovieAlignmentExecutor`; frames count from 1."""

    sampling_rate: float = parameter(
        0.0, "Pixel size of the movie; 0 takes it from its header", unit="A", minimum=0
    )
    voltage: float = parameter(
        300.0, "Acceleration voltage, for dose weighting", unit="kV", minimum=60, maximum=1000
    )
    dose_per_frame: float = parameter(
        0.0,
        "Exposure of one frame, or of one of the file's frames where frame groups sum them without telling it;"
        " 0 disables dose weighting",
        unit="e/A^2",
        minimum=0,
    )
    pre_exposure: float = parameter(
        0.0,
        "Exposure before the movie's first frame, passed on for polishing; in the dose-weighted average it"
        " cancels, since that keeps the power of the noise",
        unit="e/A^2",
        minimum=0,
    )

    first_frame: int = parameter(1, "First frame to align", minimum=1)
    last_frame: int = parameter(
        0, "Last frame to align; 0 is the movie's last, as is any number beyond it", minimum=0
    )
    sum_first_frame: int = parameter(1, "First frame of the averages, among the aligned ones", minimum=1)
    sum_last_frame: int = parameter(0, "Last frame of the averages; 0 is the last aligned one", minimum=0)
    bin_factor: float = parameter(1.0, "The averages' pixels are this much larger (Fourier cropping)", minimum=1)

    correct_in_frame_motion: bool = parameter(
        False,
        "Trust each frame less at frequencies that the motion during its own exposure blurred",
        advanced=True,
    )
    mag_major: float = parameter(
        1.0,
        "The averages are stretched by this factor along the major axis, against anisotropic magnification",
        minimum=0.5,
        maximum=2.0,
        advanced=True,
    )
    mag_minor: float = parameter(1.0, "Likewise across the major axis", minimum=0.5, maximum=2.0, advanced=True)
    mag_angle: float = parameter(
        0.0,
        "Direction of the major axis, from x towards y: counter-clockwise where the first row is at the bottom, as"
        " MRC files are shown; MotionCor's -Mag A B C is a factor of A / B along the major axis at the angle -C",
        unit="degrees",
        advanced=True,
    )

    max_resolution: float = parameter(
        0.0,
        "Low-pass of the correlations, with half amplitude at this resolution (Xmipp's maxResForCorrelation);"
        " 0 weights each frequency by the signal-to-noise ratio measured in the movie, which is more accurate",
        unit="A",
        minimum=0,
    )
    max_shift: float = parameter(
        50.0, "Largest shift that is searched between any two frames", unit="A", minimum=0.1
    )

    local_alignment: bool = parameter(True, "Also correct motion that varies over the field of view")
    min_local_resolution: float = parameter(
        300.0,
        "Edge of the square patches that show local motion, at most half of the frame (minLocalRes in Xmipp)",
        unit="A",
        minimum=10,
        advanced=True,
    )
    patches_x: int = parameter(0, "Patches in x; 0 covers the frame with half overlap", minimum=0, advanced=True)
    patches_y: int = parameter(0, "Patches in y; 0 covers the frame with half overlap", minimum=0, advanced=True)
    control_points_x: int = parameter(
        0, "Control points of the B-spline in x; 0 is automatic", minimum=0, advanced=True
    )
    control_points_y: int = parameter(
        0, "Control points of the B-spline in y; 0 is automatic", minimum=0, advanced=True
    )
    control_points_t: int = parameter(
        0, "Control points of the B-spline in time; 0 is automatic", minimum=0, advanced=True
    )
    group_frames: int = parameter(
        1,
        "Local motion is measured on sums of this many frames; more help where frames have very few electrons",
        minimum=1,
        advanced=True,
    )

    gain_rotation: int = parameter(
        0, "Counter-clockwise rotation of the gain image", unit="degrees", choices=(0, 90, 180, 270)
    )
    gain_flip: str = parameter(
        "none", "Flip of the gain image after its rotation", choices=("none", "up_down", "left_right")
    )
    gain_mode: str = parameter(
        "auto",
        "What the gain image does to frames: auto divides EER movies by any gain but a .gain file, and multiplies"
        " otherwise",
        choices=("auto", "multiply", "divide"),
    )
    check_gain: bool = parameter(
        True, "Compare the gain with the raw frames, and warn if another orientation of it fits better"
    )
    repair_bad_pixels: bool = parameter(True, "Replace defects, hot and dead pixels by good neighbours")
    hot_pixel_sigma: float = parameter(
        6.0,
        "A pixel of the sum that differs from its neighbours by more standard deviations is repaired;"
        " 0 disables this",
        minimum=0,
        advanced=True,
    )
    eer_frames: int = parameter(40, "Number of frames that an EER file is divided into", minimum=1)
    eer_upsampling: int = parameter(
        1, "EER pixels a detector pixel is divided into, along each axis", choices=(1, 2)
    )

    save_unweighted: bool = parameter(True, "Write the average without dose weighting")
    save_dose_weighted: bool = parameter(True, "Write the dose-weighted average, when the dose is known")
    save_even_odd: bool = parameter(
        False,
        "Write the averages of the even and of the odd frames, for denoising; with a dose, weighted ones too",
    )
    save_initial_average: bool = parameter(False, "Write the average of the frames before their alignment")
    save_aligned_movie: bool = parameter(False, "Write the corrected frames")
    save_power_spectrum: bool = parameter(
        False, "Write the power spectra of the averages with and without alignment"
    )
    float16: bool = parameter(False, "Write the averages as 16-bit floating point numbers (MRC mode 12)")

    def __post_init__(self):
        super().__post_init__()
        for first, last in (("first_frame", "last_frame"), ("sum_first_frame", "sum_last_frame")):
            low, high = getattr(self, first), getattr(self, last)
            if high and high < low:
                raise ParameterError(f"{last}: expected at least {first} = {low}, found {high}")
        for name in ("control_points_x", "control_points_y", "control_points_t"):
            if 0 < getattr(self, name) < 4:
                raise ParameterError(f"{name}: expected 0 or at least 4, found {getattr(self, name)}")
        for axis in "xy":
            if 0 < getattr(self, f"patches_{axis}") < 3:
                raise ParameterError(
                    f"patches_{axis}: expected 0 or at least 3, found {getattr(self, f'patches_{axis}')}"
                )
