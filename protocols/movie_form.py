"""The form of the movie alignment: what it shows, and which parameters it stands for."""

from __future__ import annotations

from pyworkflow.protocol import params

from xmipp_accel.convert import is_eer, movie_settings
from xmipp_accel.movie_alignment.parameters import MovieAlignmentParameters
from xmipp_accel.protocols import forms
from xmipp_accel.protocols.forms import Entry

ALIGNMENT = (
    Entry("binFactor", "bin_factor", "Binning factor"),
    Entry("maxShift", "max_shift", "Maximum shift"),
    Entry("maxResForCorrelation", "max_resolution", "Maximum resolution for correlation"),
    Entry("doLocalAlignment", "local_alignment", "Compute local alignment?"),
    Entry("inFrameMotion", "correct_in_frame_motion", "Correct motion within frames?"),
)
LOCAL = (
    Entry("minLocalRes", "min_local_resolution", "Patch size", "doLocalAlignment"),
    Entry("groupNFrames", "group_frames", "Group N frames", "doLocalAlignment"),
)
OUTPUT = (
    Entry("doSaveAveMic", "save_unweighted", "Save aligned micrograph?"),
    Entry("doApplyDoseFilter", "save_dose_weighted", "Save dose-weighted micrograph?"),
    Entry("splitEvenOdd", "save_even_odd", "Split & sum odd/even frames?"),
    Entry("doSaveInitialMic", "save_initial_average", "Save unaligned micrograph?"),
    Entry("doSaveMovie", "save_aligned_movie", "Save movie?"),
    Entry("doComputePSD", "save_power_spectrum", "Compute power spectra?"),
    Entry("saveFloat16", "float16", "Save in float16?"),
)
DETECTOR = (
    Entry("gainRot", "gain_rotation", "Rotate gain reference"),
    Entry("gainFlip", "gain_flip", "Flip gain reference"),
    Entry("gainMode", "gain_mode", "Multiply or divide by the gain"),
    Entry("checkGain", "check_gain", "Check the gain?"),
    Entry("repairBadPixels", "repair_bad_pixels", "Repair bad pixels?"),
    Entry("hotPixelSigma", "hot_pixel_sigma", "Hot pixel threshold", "repairBadPixels"),
    Entry("magMajor", "mag_major", "Stretch along the major axis"),
    Entry("magMinor", "mag_minor", "Stretch across the major axis"),
    Entry("magAngle", "mag_angle", "Angle of the major axis"),
    Entry("nFrames", "eer_frames", "EER frames"),
    Entry("eerSampling", "eer_upsampling", "EER upsampling"),
)
ENTRIES = ALIGNMENT + LOCAL + OUTPUT + DETECTOR
GRIDS = {
    "controlPoint": dict(X=("control_points_x", 6), Y=("control_points_y", 6), T=("control_points_t", 5)),
    "patches": dict(X=("patches_x", 7), Y=("patches_y", 7)),
}


def define(form):
    """Add everything below the input to the form."""
    _frames(form)
    forms.add_entries(form, MovieAlignmentParameters, ALIGNMENT)
    forms.add_entries(form, MovieAlignmentParameters, LOCAL)
    _grid(form, "autoControlPoints", "Auto control points?", "controlPoint", "Number of control points")
    _grid(form, "autoPatches", "Auto patches?", "patches", "Number of patches")
    form.addSection(label="Output")
    forms.add_entries(form, MovieAlignmentParameters, OUTPUT)
    form.addParam(
        "doComputeMicThumbnail",
        params.BooleanParam,
        default=True,
        label="Compute micrograph thumbnail?",
        expertLevel=params.LEVEL_ADVANCED,
        help="A small picture of each micrograph, which monitors show.",
    )
    form.addSection(label="Gain and detector")
    forms.add_entries(form, MovieAlignmentParameters, DETECTOR)
    form.addParam(
        "defectFile",
        params.FileParam,
        allowsNull=True,
        label="Camera defects",
        help="A list of defective rectangles, x y width height on each line, in px from 0 and with rows from the "
        "bottom one (a TIFF movie's last), or an image that is 1 where the detector is defective.",
    )
    form.addParam(
        "fmIntFile",
        params.FileParam,
        allowsNull=True,
        expertLevel=params.LEVEL_ADVANCED,
        label="Frame groups",
        help="A text file with lines of group size, integration size and, if it differs from the movies' one, the"
        " dose of a frame, as MotionCor's FmIntFile: the next so many frames of the file (of the camera, in EER)"
        " are summed so many at a time. Numbers of frames in this form are then those of the sums.",
    )
    forms.add_hardware(form)


def _frames(form):
    group = form.addGroup("Frames")
    line = group.addLine("Frames to ALIGN", help="The first frame is 1; a last frame of 0 is the movie's last.")
    line.addParam("alignFrame0", params.IntParam, default=1, label="from")
    line.addParam("alignFrameN", params.IntParam, default=0, label="to")
    group.addParam(
        "useAlignToSum",
        params.BooleanParam,
        default=True,
        label="Use ALIGN frames range to SUM?",
        help="If *No*, the averages are of another range, which must lie within the aligned one.",
    )
    line = group.addLine("Frames to SUM", condition="not useAlignToSum", help="As above.")
    line.addParam("sumFrame0", params.IntParam, default=1, label="from", condition="not useAlignToSum")
    line.addParam("sumFrameN", params.IntParam, default=0, label="to", condition="not useAlignToSum")


def _grid(form, switch, question, prefix, label):
    form.addParam(
        switch,
        params.BooleanParam,
        default=True,
        label=question,
        condition="doLocalAlignment",
        expertLevel=params.LEVEL_ADVANCED,
        help="Choose them from the size of the frames and the length of the movie.",
    )
    condition = f"doLocalAlignment and not {switch}"
    line = form.addLine(label, condition=condition, expertLevel=params.LEVEL_ADVANCED, help="Along each axis.")
    for axis, (_, default) in GRIDS[prefix].items():
        line.addParam(f"{prefix}{axis}", params.IntParam, default=default, label=axis, condition=condition)


def parameters(protocol) -> MovieAlignmentParameters:
    """Parameters that the form and the input set mean; nothing is read but the set's properties.

    Raises
    ------
    ParameterError
        Values are out of range or contradict each other.
    """
    values = forms.collect(protocol, MovieAlignmentParameters, ENTRIES)
    values.update(_frame_ranges(protocol))
    for prefix, axes in GRIDS.items():
        for axis, (field, _) in axes.items():
            if protocol.evalParamCondition(f"{prefix}{axis}"):
                values[field] = getattr(protocol, f"{prefix}{axis}").get()
    # The exposure of a frame that is a sum follows from its number of frames, not from how many sums there are.
    eer_frames = 0 if protocol.fmIntFile.get() else values["eer_frames"]
    values.update(movie_settings(protocol.inputMovies.get(), eer_frames, values["eer_upsampling"]))
    return MovieAlignmentParameters(**values)


def counts_sums(protocol) -> bool:
    """Whether the frames that the form counts are sums of the ones that the input set counts."""
    return bool(protocol.fmIntFile.get()) or is_eer(protocol.inputMovies.get())


def _frame_ranges(protocol):
    """Ranges that count from the first frame in the file; Scipion counts from the first one that was taken."""
    movies = protocol.inputMovies.get()
    first, last, index = movies.getFramesRange()
    offset = index - first
    end = 0 if counts_sums(protocol) or last <= 0 else last
    ranges = {}
    names_of = dict(align=("first_frame", "last_frame"), sum=("sum_first_frame", "sum_last_frame"))
    for prefix, names in names_of.items():
        if prefix == "sum" and protocol.useAlignToSum.get():
            ranges.update(sum_first_frame=ranges["first_frame"], sum_last_frame=ranges["last_frame"])
            continue
        low = max(first, getattr(protocol, f"{prefix}Frame0").get())
        high = getattr(protocol, f"{prefix}FrameN").get()
        high = high if high > 0 else end
        ranges[names[0]] = low + offset
        ranges[names[1]] = high + offset if high > 0 else 0
    return ranges
