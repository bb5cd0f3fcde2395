"""Reconstruct Significant: images without poses in, an initial volume and the images' poses out."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np

from xmipp_accel.backend import CPU, Device, one_blas_thread
from xmipp_accel.errors import ParameterError
from xmipp_accel.initial_volume.images import read_usable, working_size
from xmipp_accel.initial_volume.parameters import ReconstructSignificantParameters
from xmipp_accel.initial_volume.reconstruct_significant import SignificantLoop, resize_volume
from xmipp_accel.io.particles import read_particles
from xmipp_accel.io.publish import write_json
from xmipp_accel.io.volumes import read_volume, write_volume
from xmipp_accel.particle_alignment.executor import AlignSignificantExecutor
from xmipp_accel.particle_alignment.gallery import References, content_radius
from xmipp_accel.particle_alignment.parameters import AlignSignificantParameters
from xmipp_accel.reconstruction.executor import ReconstructFourierExecutor
from xmipp_accel.reconstruction.parameters import ReconstructFourierParameters

_ROUNDS = 2  # of alignment and reconstruction of the images as they are, after the loop
_FEWEST = 3  # images
_RATE_TOLERANCE = 0.01


@dataclasses.dataclass(frozen=True)
class ReconstructSignificantResult:
    """What a run produced, written as ``initial_volume.json`` after every other file.

    Attributes
    ----------
    volume, particles_xmd, particles_star : str
        Absolute paths of ``volume.mrc``, ``aligned.xmd`` and ``aligned.star``.
    box : int
        Of the volume, px, as that of the images.
    sampling_rate : float
        A/px.
    n_images, n_set_aside : int
        Images given and enabled, and those of them that are constant or not finite, which have no row.
    symmetry : str
    mask_radius : float
        Px.
    starts : list of dict
        ``score``, the mean correlation of the same images with each start's volume, and ``iterations``, the
        `xmipp_accel.initial_volume.reconstruct_significant.Iteration` of each.
    best_start : int
        Number of the start that was kept, from 0.
    iterations : list of dict
        Those that followed from the best start.
    mean_cc : float
        Mean correlation of the images with their final views.
    device : str
    parameters : dict
        Of the run.
    seconds : dict
        Wall time of ``read``, ``loop``, ``final`` and ``total``.
    """

    volume: str
    particles_xmd: str
    particles_star: str
    box: int
    sampling_rate: float
    n_images: int
    n_set_aside: int
    symmetry: str
    mask_radius: float
    starts: list[dict[str, Any]]
    best_start: int
    iterations: list[dict[str, Any]]
    mean_cc: float
    device: str
    parameters: dict[str, Any]
    seconds: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """Plain values by name."""
        return dataclasses.asdict(self)

    def summary(self) -> str:
        """The result in a line for people."""
        aside = f" ({self.n_set_aside} set aside)" if self.n_set_aside else ""
        return (
            f"{self.volume} from {self.n_images} images{aside}, start {self.best_start + 1} of "
            f"{len(self.starts)}, mean correlation {self.mean_cc:.3f}, in {self.seconds['total']:.1f} s "
            f"on {self.device}"
        )


class ReconstructSignificantExecutor:
    """Makes initial volumes on one device.

    Parameters
    ----------
    parameters : ReconstructSignificantParameters
    device : Device
    """

    def __init__(self, parameters: ReconstructSignificantParameters, device: Device = CPU):
        self.parameters, self.device = parameters, device

    def reconstruct(self, particles, output_folder, reference=None, progress=None) -> ReconstructSignificantResult:
        """Make a volume of class averages or particles.

        Parameters
        ----------
        particles : Particles
            Their poses are not used, their CTF is.
        output_folder : path
            Made if absent. Receives ``volume.mrc``, the images' poses in ``aligned.xmd`` and ``aligned.star``, the
            reports of the last alignment and reconstruction, ``volumes/`` with `keep_intermediate`, and, last,
            ``initial_volume.json``.
        reference : path, optional
            Volume to start from instead of random angles.
        progress : callable, optional
            Called with (iterations done, iterations in all).

        Raises
        ------
        InputFileError, ParameterError, ProcessingError
        """
        begun = time.perf_counter()
        chosen, particles = self.parameters, particles.take(particles.enabled)
        self._check(particles)
        box, rate = particles.box, particles.sampling_rate
        given = None if reference is None else self._given(reference, box, rate)
        size = working_size(box, rate, chosen.max_resolution)
        images, usable = read_usable(particles, size)
        if usable.sum() < _FEWEST:
            raise ParameterError(f"particles: expected at least {_FEWEST} usable images, found {usable.sum()}")
        particles = particles.take(usable)
        mask_share = chosen.mask_radius / box if chosen.mask_radius else content_share(images)
        folder = Path(output_folder).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        read = time.perf_counter()
        keep = _Keeper(folder / "volumes") if chosen.keep_intermediate else None
        with self.device.activate(), one_blas_thread():
            loop = SignificantLoop(images, particles, mask_share, chosen, self.device, progress, keep)
            volume, starts, best, iterations = loop.run(given)
        looped = time.perf_counter()
        write_volume(folder / "volume.mrc", resize_volume(volume, box), rate)
        mean_cc = self._finish(particles, mask_share * box, folder)
        now = time.perf_counter()
        result = ReconstructSignificantResult(
            volume=str(folder / "volume.mrc"),
            particles_xmd=str(folder / "aligned.xmd"),
            particles_star=str(folder / "aligned.star"),
            box=box,
            sampling_rate=rate,
            n_images=len(usable),
            n_set_aside=int(len(usable) - usable.sum()),
            symmetry=chosen.symmetry.lower(),
            mask_radius=mask_share * box,
            starts=[
                dict(score=start.score, iterations=[dataclasses.asdict(i) for i in start.iterations])
                for start in starts
            ],
            best_start=best,
            iterations=[dataclasses.asdict(iteration) for iteration in iterations],
            mean_cc=mean_cc,
            device=str(self.device),
            parameters=chosen.to_dict(),
            seconds=dict(read=read - begun, loop=looped - read, final=now - looped, total=now - begun),
        )
        write_json(folder / "initial_volume.json", result.to_json())
        return result

    def _check(self, particles):
        if not len(particles):
            raise ParameterError("particles: expected at least one that is enabled, found none")
        particles.require_uniform()
        if not particles.sampling_rate:
            raise ParameterError("particles: their sampling rate is unknown")
        if self.parameters.mask_radius > particles.box / 2:
            raise ParameterError(
                f"mask_radius: expected at most half the box ({particles.box / 2:g} px), "
                f"found {self.parameters.mask_radius:g}"
            )

    @staticmethod
    def _given(path, box, rate):
        """Volume to start from, over the images' field of view."""
        volume, own_rate = read_volume(path)
        field, expected = len(volume) * (own_rate or rate), box * rate
        if len(set(volume.shape)) != 1 or abs(field - expected) > _RATE_TOLERANCE * expected:
            raise ParameterError(
                f"{path}: expected a cube of {expected:.0f} A like the images, found {volume.shape} voxels "
                f"of {own_rate or rate:g} A"
            )
        return volume

    def _finish(self, particles, mask_radius, folder):
        """Align the images as they are to the volume, reconstruct it from them, and again."""
        chosen, rate = self.parameters, particles.sampling_rate
        resolution = max(chosen.max_resolution, 2 * rate)
        aligner = AlignSignificantExecutor(
            AlignSignificantParameters(
                symmetry=chosen.symmetry,
                angular_sampling=chosen.angular_sampling,
                min_tilt=chosen.min_tilt,
                max_tilt=chosen.max_tilt,
                max_shift=chosen.max_shift,
                max_resolution=resolution,
                mask_radius=mask_radius,
                ctf=chosen.ctf,
                phase_flipped=chosen.phase_flipped,
            ),
            self.device,
        )
        mode = "none"
        if chosen.ctf == "ctf" and particles.has_ctf:
            mode = "phase_flipped" if chosen.phase_flipped else "weight"
        builder = ReconstructFourierExecutor(
            ReconstructFourierParameters(
                symmetry=chosen.symmetry,
                max_resolution=resolution,
                ctf=mode,
                halves=False,
                regularisation="constant",
                wiener_constant=0.1,
            ),
            self.device,
        )
        for _ in range(_ROUNDS):
            aligned = aligner.align(particles, folder / "volume.mrc", folder)
            builder.reconstruct(read_particles(aligned.particles_xmd), folder)
        return aligned.mean_cc


class _Keeper:
    """Writes the loop's volumes into a folder."""

    def __init__(self, folder):
        self._folder = folder
        folder.mkdir(exist_ok=True)

    def __call__(self, name, volume, sampling_rate):
        write_volume(self._folder / f"{name}.mrc", volume, sampling_rate)


def content_share(images) -> float:
    """Radius that holds nearly all of what images (n, N, N) show, over their edge."""
    zero = np.zeros(len(images))
    shifts = np.zeros((len(images), 2))
    return content_radius(References("2d", zero, zero, zero, zero, shifts, None, images, 0.0))
