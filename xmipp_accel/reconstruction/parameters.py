"""What a user can choose in a 3D Fourier reconstruction."""

from __future__ import annotations

import dataclasses

from xmipp_accel.errors import ParameterError
from xmipp_accel.parameters import Parameters, parameter, scratch_parameter


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
        0.0,
        "Diameter of the particle, for the soft sphere of the masked FSC, ewald and noise_weights; 0 takes 0.8 of "
        "the box.",
        unit="A",
        minimum=0.0,
    )
    padding_images: float = parameter(
        2.0, "Images are padded with zeros to this many times their box.", minimum=1.0, maximum=4.0, advanced=True
    )
    padding_volume: float = parameter(
        2.0, "The map is padded with zeros to this many times the box.", minimum=1.0, maximum=4.0, advanced=True
    )
    regularisation: str = parameter(
        "none",
        "What is added to the weights that the sums are divided by. constant: wiener_constant of the shell's mean "
        "weight, also in the half maps. fsc: the mean weight over the signal-to-noise ratio by the corrected FSC, "
        "as in RELION; the half maps stay unfiltered.",
        choices=("none", "constant", "fsc"),
    )
    wiener_constant: float = parameter(
        0.1,
        "For the regularisation constant: fraction of a shell's mean weight; damps what few particles support.",
        minimum=0.0,
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
        0,
        "Seed of random half sets, for particles without one, of random groups, and of random phases.",
        minimum=0,
        advanced=True,
    )
    ewald: str = parameter(
        "none",
        "Put samples on the curved sphere on which electrons of this wavelength see them, twice for its two "
        "sidebands; the hand of the map decides which one is standard.",
        choices=("none", "standard", "reversed"),
        advanced=True,
    )
    noise_weights: bool = parameter(
        False,
        "Divide the weights of each optics group, in each resolution shell, by the power of the noise around its "
        "particles: groups of less noise count more.",
        advanced=True,
    )
    score_b_factor: float = parameter(
        0.0,
        "B factor by which a particle's weights fall for each standard deviation of its score below the best one.",
        unit="A2",
        minimum=0.0,
        advanced=True,
    )
    score_label: str = parameter(
        "",
        "Column of the scores; by default the first of maxCC, rlnMaxValueProbDistribution and "
        "rlnLogLikeliContribution that is there.",
        advanced=True,
    )
    subtract: str = parameter(
        "",
        "Volume whose projections are subtracted from the images, of the map's box and sampling rate.",
        advanced=True,
    )
    deterministic: bool = parameter(
        False,
        "On a GPU, add in the same order every time, which takes longer; on the CPU it is so always.",
        advanced=True,
    )
    max_memory: float = parameter(
        0.0,
        "Memory of a device for sums and maps; where they need more, the images are read several times, each time "
        "for other planes of the volume, and maps are made in the host's memory. 0 takes what a GPU has free.",
        unit="GB",
        minimum=0.0,
        advanced=True,
    )
    preview_interval: float = parameter(
        0.0,
        "Write the map of what has been inserted so far, by one device of several, at this interval, as "
        "<name>_preview.mrc; 0 never does.",
        unit="s",
        minimum=0.0,
        advanced=True,
    )
    batch_size: int = parameter(
        0, "Particles processed at a time; 0 chooses by the memory.", minimum=0, maximum=65535, advanced=True
    )
    tune: bool = parameter(
        True,
        "On a GPU, try other ways of insertion on up to 3% of the particles of a long run, which adds the same, "
        "and keep to the fastest; it is stored for later runs. Off: only what was stored before is used.",
        advanced=True,
    )
    mask_file: str = parameter(
        "",
        "Volume with values from 0 to 1, of the map's box and sampling rate, under which half maps are compared; "
        "used in place of mask_diameter.",
    )
    error_groups: int = parameter(
        0,
        "Sum the particles in this many groups (of each half set), which gives a map of standard errors and the "
        "resolution against the number of particles; takes so many times the memory. 0 makes none.",
        minimum=0,
        maximum=32,
        advanced=True,
    )

    refine_iterations: int = parameter(
        0,
        "Fit the map to the images by least squares, in so many iterations of conjugate gradients, in place of "
        "dividing by weights: several times nearer to the density where noise does not limit it, for three times "
        "the memory; 8 to 12 are enough. Samples are spread by a blob of its own. 0 divides.",
        minimum=0,
        advanced=True,
    )
    refine_support: bool = parameter(
        False,
        "For refine_iterations: confine maps to the mask of the FSC, which fills gaps between few views. The FSC "
        "without mask is then that within it.",
        advanced=True,
    )
    scratch: str = scratch_parameter()

    def __post_init__(self):
        super().__post_init__()
        if self.regularisation == "fsc" and not self.halves:
            raise ParameterError(
                "regularisation: expected halves to be on for 'fsc', since the FSC comes from them"
            )
        if self.ewald != "none" and (self.ctf not in ("auto", "weight", "phase_flipped") or not self._can_curve()):
            raise ParameterError(
                "ewald: expected images with a CTF that is not corrected, and the method trilinear or blob "
                f"without a map to subtract, found ctf {self.ctf!r} and method {self.method!r}"
            )
        if self.noise_weights and self.method.startswith("xmipp"):
            raise ParameterError(
                f"noise_weights: expected the method trilinear, blob or nearest, found {self.method!r}"
            )
        if self.error_groups == 1:
            raise ParameterError("error_groups: expected 0, or at least 2 to compare, found 1")
        if self.refine_iterations:
            self._check_refinable()

    def _check_refinable(self):
        if self.method not in ("trilinear", "blob"):
            raise ParameterError(
                f"refine_iterations: expected the method trilinear or blob, found {self.method!r}"
            )
        if self.padding_volume < 2:
            raise ParameterError(
                f"refine_iterations: expected padding_volume of 2 or more, found {self.padding_volume:g}"
            )
        if self.deterministic:
            raise ParameterError(
                "refine_iterations: expected deterministic to be off, since a GPU adds weights in varying order"
            )

    def _can_curve(self):
        return self.method in ("trilinear", "blob") and not self.subtract
