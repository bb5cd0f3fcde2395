"""What a user can choose in a 3D Fourier reconstruction."""

from __future__ import annotations

import dataclasses

from xmipp_accel.errors import ParameterError
from xmipp_accel.parameters import Parameters, parameter


@dataclasses.dataclass(frozen=True)
class ReconstructFourierParameters(Parameters):
    """Parameters of :class:`~xmipp_accel.reconstruction.executor.ReconstructFourierExecutor`."""

    symmetry: str = parameter(
        "c1", "Point group of the map, in Xmipp's names and axes: c1, cn, dn, t, o, i1 to i4."
    )
    max_resolution: float = parameter(
        0.0, "Finest resolution that is reconstructed; 0 goes to Nyquist.", unit="A", minimum=0.0
    )
    method: str = parameter(
        "trilinear",
        "trilinear: each sample goes to its eight neighbours, the most accurate. blob: a Kaiser-Bessel window. "
        "nearest: one sample for each voxel, the fastest. xmipp, xmipp_fast: the sums and the map of "
        "xmipp_cuda_reconstruct_fourier without and with --fast.",
        choices=("trilinear", "blob", "nearest", "xmipp", "xmipp_fast"),
    )
    ctf: str = parameter(
        "auto",
        "weight: images are multiplied by their CTF and divided by the sum of its squares. phase_flipped: the "
        "same for images whose phases were flipped already; premultiplied: for images that were multiplied by "
        "their CTF already. none: images without CTF, or corrected before. auto: weight where the particles carry "
        "a CTF, premultiplied where their optics group says so, else none.",
        choices=("auto", "none", "weight", "phase_flipped", "premultiplied"),
    )
    halves: bool = parameter(True, "Also reconstruct two half maps in the same pass, and their FSC.")
    use_weights: bool = parameter(False, "Multiply each particle by its weight; weight 0 leaves it out.")
    mask_diameter: float = parameter(
        0.0, "Diameter of the soft sphere for the masked FSC; 0 takes 0.8 of the box.", unit="A", minimum=0.0
    )
    padding_images: float = parameter(
        2.0, "Images are padded with zeros to this many times their box.", minimum=1.0, maximum=4.0, advanced=True
    )
    padding_volume: float = parameter(
        2.0, "The map is padded with zeros to this many times the box.", minimum=1.0, maximum=4.0, advanced=True
    )
    wiener: float = parameter(
        0.0,
        "Fraction of a shell's mean weight that is added to its weights: damps what few particles support.",
        minimum=0.0,
        advanced=True,
    )
    fsc_weighting: bool = parameter(
        False,
        "Multiply the map's shells by sqrt(2 FSC / (1 + FSC)) of the half maps; the half maps stay as they are.",
        advanced=True,
    )
    blob_radius: float = parameter(
        1.9, "Radius of the blob.", unit="voxels of the padded map", minimum=0.5, advanced=True
    )
    blob_order: int = parameter(
        0, "Order of the Bessel function of the blob: 0 or 2.", choices=(0, 2), advanced=True
    )
    blob_alpha: float = parameter(15.0, "Tapering of the blob.", minimum=0.1, maximum=80.0, advanced=True)
    seed: int = parameter(
        0, "Seed of the random half sets, for particles without a half set.", minimum=0, advanced=True
    )
    deterministic: bool = parameter(
        False,
        "On a GPU, add in the same order every time, which takes longer; on the CPU it is so always.",
        advanced=True,
    )
    batch_size: int = parameter(
        0, "Particles processed at a time; 0 chooses by the memory.", minimum=0, maximum=65535, advanced=True
    )

    def __post_init__(self):
        super().__post_init__()
        if self.fsc_weighting and not self.halves:
            raise ParameterError("fsc_weighting: expected halves to be on, since the FSC comes from them")
