"""The annealed significance loop: from images without poses and random angles to a volume."""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy.spatial.transform import Rotation

from xmipp_accel.backend import to_host
from xmipp_accel.initial_volume.images import EDGE, RingImages, ring_images
from xmipp_accel.initial_volume.posterior import average_views
from xmipp_accel.numerics.fsc import soft_sphere
from xmipp_accel.numerics.projection import VolumeSpectrum
from xmipp_accel.numerics.rotations import euler_to_matrix, random_matrices
from xmipp_accel.numerics.sphere import projection_directions
from xmipp_accel.numerics.symmetry import symmetry_matrices
from xmipp_accel.particle_alignment import polar
from xmipp_accel.reconstruction.accumulator import FourierAccumulator
from xmipp_accel.reconstruction.parameters import ReconstructFourierParameters
from xmipp_accel.reconstruction.views import Views

# Powers of the likelihood, in turn, in the starts: few clean images settle too early on the views of a wrong
# volume with all of it, and noisy ones blur the volume away with less.
_POWERS = 0.5, 1.0
_LARGEST_SHARE = 0.5  # of the views; an image that counts in all of them equally adds nothing but a sphere
_PERTURBATION = 0.25  # of the angular step: no grid is favoured by all iterations
_STEP = 0.75  # resolution elements at the mask's rim between neighbouring views
_FINER = 5  # times as many images in the finer iterations
_JUDGES = 500  # images that the starts are compared by
_PADDING, _WIENER = 1.5, 0.1  # few views leave gaps in Fourier space


@dataclasses.dataclass(frozen=True)
class Iteration:
    """One iteration in numbers.

    Attributes
    ----------
    resolution, angular_step : float
        A and degrees.
    directions, images : int
        Views compared, and images that took part.
    share : float
        Of the views, that an image spreads over.
    perplexity : float
        Views that an image counted in, on average.
    mean_cc : float
        Mean correlation of the images with their best view.
    change : float
        One minus the correlation of the volume with the one before.
    """

    resolution: float
    angular_step: float
    directions: int
    images: int
    share: float
    perplexity: float
    mean_cc: float
    change: float


@dataclasses.dataclass(frozen=True)
class Start:
    """One way from random angles, or from a given volume, through the coarse iterations.

    Attributes
    ----------
    volume : (N, N, N) float32 NumPy array
    score : float
        Mean correlation of the same images with every start's volume.
    iterations : list of Iteration
    """

    volume: np.ndarray
    score: float
    iterations: list


def shares(parameters) -> np.ndarray:
    """Share of the views that an image spreads over in each iteration, (iterations,).

    ``1 - alpha`` falls geometrically, so that the entropy of an image's weights falls evenly: all the way in the
    coarse half of the iterations, and again from the middle of that way in the finer half. As in Xmipp's program
    it is a share of the whole sphere, thus g times larger in the asymmetric unit of a group of g rotations.
    """
    order = len(symmetry_matrices(parameters.symmetry))
    first, last = (
        min(order * (1 - alpha / 100.0), _LARGEST_SHARE)
        for alpha in (parameters.alpha_start, parameters.alpha_end)
    )
    coarse = parameters.iterations // 2
    finer = np.geomspace(last, np.sqrt(first * last), parameters.iterations - coarse)[::-1]
    return np.concatenate([np.geomspace(first, last, coarse), finer])


@dataclasses.dataclass(frozen=True)
class _Stage:
    """Images up to one resolution, and views of a volume: matrices (R, 3, 3) and their distance in degrees."""

    images: RingImages
    matrices: np.ndarray
    step: float


class SignificantLoop:
    """Reconstruct Significant on images in memory.

    Parameters
    ----------
    images : (n, N, N) float32 array
        Over the particles' field of view, at any sampling.
    particles : Particles
        Their optics, box and sampling rate.
    mask_share : float
        Radius of the mask over the box.
    parameters : ReconstructSignificantParameters
    device : Device
    progress : callable, optional
        Called with (iterations done, iterations in all).
    keep : callable, optional
        Called with the name and the volume of every iteration, and its sampling rate.
    """

    def __init__(self, images, particles, mask_share, parameters, device, progress=None, keep=None):
        self.parameters, self.device = parameters, device
        self.group = symmetry_matrices(parameters.symmetry)
        field = particles.box * particles.sampling_rate
        coarse = parameters.start_resolution or max(2 * mask_share * field / 6, parameters.max_resolution)
        self._stages = [
            self._stage(ring_images(images, particles, resolution, mask_share, parameters, device))
            for resolution in (coarse, parameters.max_resolution)
        ]
        self._shares = shares(parameters)
        self._coarse_iterations = parameters.iterations // 2
        self._progress, self._keep, self._done = progress, keep, 0

    def run(self, reference=None):
        """Return the volume (N, N, N), the starts, the best one's number and the finer iterations.

        Parameters
        ----------
        reference : (N, N, N) array, optional
            To start from, over the images' field of view; instead of random starts.
        """
        count = self.parameters.starts if reference is None else 1
        self._total = count * self._coarse_iterations + self.parameters.iterations - self._coarse_iterations
        starts = [self._start(number, reference) for number in range(count)]
        best = int(np.argmax([start.score for start in starts]))
        rng = np.random.default_rng([self.parameters.seed, count])
        fine = self._stages[1]
        volume = resize_volume(starts[best].volume, fine.images.grid.box)
        volume, iterations = self._anneal(fine, volume, self._coarse_iterations, None, rng, "refined")
        return volume, starts, best, iterations

    def _start(self, number, reference):
        rng = np.random.default_rng([self.parameters.seed, number])
        coarse = self._stages[0]
        images = coarse.images
        if reference is None:
            rows = self._drawn(images, rng, 1)
            pictures = polar.images_from_samples(images.samples[rows], images.grid)
            volume = self._insert(images, pictures, random_matrices(len(rows), rng), np.ones(len(rows)))
        else:
            volume = resize_volume(reference, images.grid.box)
        name, power = f"start{number + 1:02d}", _POWERS[number % len(_POWERS)]
        volume, iterations = self._anneal(coarse, volume, 0, self._coarse_iterations, rng, name, power)
        judges = np.linspace(0, len(images) - 1, min(len(images), _JUDGES)).astype(np.int64)
        references = self._references(images, volume, coarse.matrices)
        views = average_views(images, judges, references, self._shares[-1])
        return Start(volume, float(views.score.mean()), iterations)

    def _anneal(self, stage, volume, first, last, rng, name, power=1.0):
        images, iterations = stage.images, []
        for share in self._shares[first:last]:
            turns = rng.normal(scale=np.deg2rad(_PERTURBATION * stage.step), size=(len(stage.matrices), 3))
            matrices = stage.matrices @ Rotation.from_rotvec(turns).as_matrix()
            rows = self._drawn(images, rng, _FINER if first else 1)
            views = average_views(images, rows, self._references(images, volume, matrices), share, power)
            used = np.flatnonzero(views.weight > 1e-6)
            averages = views.averages[self.device.asarray(used)]
            pictures = polar.images_from_samples(
                polar.samples_from_coefficients(averages, images.grid), images.grid
            )
            before, volume = volume, self._insert(images, pictures, matrices[used], views.weight[used])
            change = 1.0 - float(np.corrcoef(before.ravel(), volume.ravel())[0, 1])
            score = float(views.score.mean())
            iterations.append(
                Iteration(
                    images.resolution,
                    stage.step,
                    len(matrices),
                    len(rows),
                    float(share),
                    views.perplexity,
                    score,
                    change,
                )
            )
            self._done += 1
            if self._progress is not None:
                self._progress(self._done, self._total)
            if self._keep is not None:
                self._keep(f"{name}_iteration{len(iterations):03d}", volume, images.sampling_rate)
        return volume, iterations

    def _drawn(self, images, rng, times):
        count = min(times * self.parameters.images_per_iteration or len(images), len(images))
        return np.sort(rng.permutation(len(images))[:count])

    def _stage(self, images):
        radius = images.mask_radius * images.sampling_rate
        step = max(self.parameters.angular_sampling, float(np.rad2deg(_STEP * images.resolution / radius)))
        rot, tilt = projection_directions(step, self.group, self.parameters.min_tilt, self.parameters.max_tilt)
        return _Stage(images, euler_to_matrix(rot, tilt, np.zeros(len(rot))), step)

    def _references(self, images, volume, matrices):
        ball = soft_sphere(images.grid.box, images.mask_radius - EDGE / 2, EDGE)
        spectrum = VolumeSpectrum(self.device.asarray(volume * ball, np.float32), images.grid.n_rings)
        return polar.angular_coefficients(spectrum.slices(matrices, images.grid.frequencies), images.grid)

    def _insert(self, images, pictures, matrices, weights):
        parameters = ReconstructFourierParameters(
            symmetry=self.parameters.symmetry,
            halves=False,
            ctf="none",
            padding_images=_PADDING,
            padding_volume=_PADDING,
            regularisation="constant",
            wiener_constant=_WIENER,
        )
        accumulator = FourierAccumulator(parameters, self.device, images.grid.box, images.sampling_rate)
        accumulator.insert(pictures, Views(matrices, np.zeros((len(matrices), 2)), weights))
        return to_host(accumulator.finish().full)


def resize_volume(volume, size) -> np.ndarray:
    """Resample a volume (N, N, N) to (size, size, size) over the same field of view."""
    box = len(volume)
    common = min(box, size)
    low = slice(box // 2 - common // 2, box // 2 - common // 2 + common)
    into = slice(size // 2 - common // 2, size // 2 - common // 2 + common)
    spectrum = np.zeros((size,) * 3, np.complex128)
    centred = np.fft.fftshift(np.fft.fftn(np.fft.ifftshift(volume)))
    spectrum[into, into, into] = centred[low, low, low]
    resized = np.fft.fftshift(np.fft.ifftn(np.fft.ifftshift(spectrum)).real)
    return (resized * (size / box) ** 3).astype(np.float32)
