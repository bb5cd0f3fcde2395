"""Scipion's objects to and from the package's own, without files in between."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
from pwem.constants import ALIGN_2D, ALIGN_NONE, ALIGN_PROJ
from pwem.objects import Acquisition, CTFModel, Particle, SetOfClasses2D, Transform, Volume
from pyworkflow.object import Float, Integer

from xmipp_accel.errors import ProcessingError
from xmipp_accel.io.particles import Particles
from xmipp_accel.io.relion_optics import BEAM_TILT, attached_text, attached_values
from xmipp_accel.io.volumes import SPACING_TOLERANCE, read_volume, write_volume
from xmipp_accel.numerics.transforms import planar_pose, planar_transform, projection_pose, projection_transform
from xmipp_accel.particle_alignment.poses import align2d_matrix

# Attributes that other plugins give to particles, and that survive a way through this one.
SUBSET, WEIGHT = "_rlnRandomSubset", "_xmipp_weight"
GROUP = "rlnOpticsGroup"
DEFAULT_OPTICS = (300.0, 2.7, 0.1)  # kV, mm, fraction: only where a set has no acquisition


class _Columns:
    """Grows the arrays of a `Particles`, one Scipion particle after the other."""

    def __init__(self, alignment, first, labels):
        self.alignment = alignment
        # All items of a set have the attributes of the first one.
        known = [(label, prefix + label) for label in labels for prefix in ("_", "_xmipp_")]
        self.attributes = {label: name for label, name in known if first.hasAttribute(name)}
        self.block: dict[str, list] = {label: [] for label in self.attributes}
        self.stack, self.index, self.item_id, self.enabled, self.matrices = [], [], [], [], []
        self.ctf, self.optics, self.half, self.weight, self.class_id = [], [], [], [], []

    def add(self, particle, optics):
        index, name = particle.getLocation()
        self.stack.append(name)
        self.index.append(max(0, index - 1))
        self.item_id.append(particle.getObjId())
        self.enabled.append(particle.isEnabled())
        self.class_id.append(particle.getClassId() or 0)
        self.half.append(int(particle.getAttributeValue(SUBSET, 0) or 0))
        weight = particle.getAttributeValue(WEIGHT, None)
        self.weight.append(1.0 if weight is None else float(weight))
        self.optics.append(_optics(particle.getAcquisition()) if particle.hasAcquisition() else optics)
        for label, name in self.attributes.items():
            self.block[label].append(particle.getAttributeValue(name))
        if self.alignment != ALIGN_NONE:
            self.matrices.append(particle.getTransform().getMatrix())
        if particle.hasCTF():
            ctf = particle.getCTF()
            self.ctf.append(
                (ctf.getDefocusU(), ctf.getDefocusV(), ctf.getDefocusAngle(), ctf.getPhaseShift() or 0.0)
            )

    def numbers(self, *labels) -> dict[str, np.ndarray]:
        """Of those `labels` that the particles have; NaN where one has none."""
        return {label: np.array(self.block[label], np.float64) for label in labels if label in self.block}

    def pose(self) -> dict[str, np.ndarray]:
        zero = np.zeros(len(self.index))
        pose = dict(rot=zero, tilt=zero, psi=zero, shift_x=zero, shift_y=zero, flip=zero.astype(bool))
        if self.alignment == ALIGN_PROJ:
            values = projection_pose(np.array(self.matrices))
            pose.update(zip(("rot", "tilt", "psi", "shift_x", "shift_y"), values))
        elif self.alignment == ALIGN_2D:
            pose.update(zip(("psi", "shift_x", "shift_y", "flip"), planar_pose(np.array(self.matrices))))
        elif self.alignment != ALIGN_NONE:
            raise ProcessingError(f"particle set: expected projection, 2D or no alignment, found {self.alignment}")
        return {name: np.array(values) for name, values in pose.items()}


def _optics(acquisition):
    values = (
        acquisition.getVoltage(),
        acquisition.getSphericalAberration(),
        acquisition.getAmplitudeContrast(),
    )
    return tuple(default if value is None else value for value, default in zip(values, DEFAULT_OPTICS))


def particles_from_set(images, folder=None, labels=(), items=None) -> Particles:
    """Read a Scipion set into arrays, with the optics groups that RELION's plugin leaves in sets.

    Parameters
    ----------
    images : SetOfParticles
        Or any other set of images, such as averages or one 2D class.
    folder : path, optional
        What the set's relative paths are relative to; the current folder, which in a run is the project's.
    labels : sequence of str
        Attributes that become columns in `extra`, such as ``maxCC`` or ``rlnMaxValueProbDistribution``.
    items : list of Particle
        Of the set; all by default.

    Returns
    -------
    Particles
        Disabled items included, with `enabled` false. 2D alignments keep Scipion's order: turn, mirror, shift.

    Raises
    ------
    ProcessingError
        The set is empty, has a 3D alignment, or a CTF is missing although the set should have them.
    InputFileError
        Its optics groups cannot be read.
    """
    folder = Path(folder or os.curdir).resolve()
    first = _some(images) if items is None else items
    if not first:
        raise ProcessingError("particle set: expected particles, found none")
    columns = _Columns(images.getAlignment(), first[0], (GROUP, *BEAM_TILT, *labels))
    acquisition, rate = images.getAcquisition(), float(images.getSamplingRate())
    optics = _optics(acquisition)
    for particle in images.iterItems() if items is None else items:
        columns.add(particle, optics)
    count = len(columns.index)
    has_ctf = images.hasCTF() and bool(columns.ctf)
    if has_ctf and len(columns.ctf) != count:
        raise ProcessingError(f"particle set: expected a CTF for {count} particles, found {len(columns.ctf)}")
    ctf = np.array(columns.ctf if has_ctf else np.zeros((count, 4)), dtype=np.float64)
    voltage, cs, amplitude_contrast = np.array(columns.optics, dtype=np.float64).T
    # Scipion may append a format, as in stack.mrc:mrcs.
    absolute = {name: os.path.join(folder, name.split(":")[0]) for name in set(columns.stack)}
    values = dict(
        stack=[absolute[name] for name in columns.stack],
        index=np.array(columns.index, dtype=np.int64),
        **columns.pose(),
        weight=np.array(columns.weight),
        class_id=np.array(columns.class_id, dtype=np.int64),
        half=np.array(columns.half, dtype=np.int64),
        item_id=np.array(columns.item_id, dtype=np.int64),
        enabled=np.array(columns.enabled, dtype=bool),
        defocus_u=ctf[:, 0],
        defocus_v=ctf[:, 1],
        defocus_angle=ctf[:, 2],
        phase_shift=ctf[:, 3],
        voltage=voltage,
        cs=cs,
        amplitude_contrast=amplitude_contrast,
        sampling_rate=rate,
        has_ctf=has_ctf,
        has_pose=columns.alignment != ALIGN_NONE,
        extra=columns.numbers(*labels),
    )
    block = {GROUP: np.ones(count), **columns.numbers(GROUP, *BEAM_TILT)}
    values.update(attached_values("particle set", acquisition.opticsGroupInfo.get(), block, rate))
    particles = Particles(**values)
    # The set's shifts are in pixels of its own sampling rate.
    scale = rate / particles.sampling_rates if particles.groups else 1.0
    particles.shift_x *= scale
    particles.shift_y *= scale
    return particles


def _some(images, **query):
    """A list of the first item that a query finds; unlike Scipion's own first item, it does not lock the set."""
    return [item.clone() for item in images.iterItems(limit=1, **query)]


def one_of_each_optics_group(images) -> Particles:
    """The first particle of each optics group of a Scipion set, which tell quickly what the others are like.

    Raises what :func:`particles_from_set` does.
    """
    name, items = f"_{GROUP}", _some(images)
    if items and items[0].hasAttribute(name):
        found = [_some(images, where=f"{name}={number}") for number in images.getUniqueValues(name)]
        items = [item for one in found for item in one]
    return particles_from_set(images, items=items)


def references_from_set(references) -> Particles:
    """Read averages, or the averages of 2D classes, into arrays; those with projection directions keep them.

    Their `class_id` is their number in the set.
    """
    if not isinstance(references, SetOfClasses2D):
        averages = particles_from_set(references)
        return dataclasses.replace(averages, class_id=averages.item_id)
    groups = [(group.getObjId(), *group.getRepresentative().getLocation()) for group in references.iterItems()]
    numbers, indices, names = zip(*groups)
    return Particles(
        stack=[os.path.abspath(name.split(":")[0]) for name in names],
        index=np.maximum(0, np.array(indices) - 1),
        class_id=np.array(numbers),
        sampling_rate=float(references.getSamplingRate()),
    )


def size_errors(name, images, particles) -> list[str]:
    """Sentences for ``_validate`` if images, or a volume, have another size or sampling rate than `particles`."""
    errors = []
    size, box = images.getDimensions(), particles.getXDim()
    if size is not None:
        sides = size if isinstance(images, Volume) else size[:1]
        if any(side != box for side in sides):
            errors.append(f"{name}: {' x '.join(map(str, sides))} px, but the particles have {box} px.")
    rate, expected = images.getSamplingRate(), particles.getSamplingRate()
    if abs(rate - expected) > 0.01 * expected:
        errors.append(f"{name}: {rate:.3f} A/px, but the particles have {expected:.3f} A/px.")
    return errors


def volume_file(volume, folder) -> str:
    """Absolute path of the file of a Scipion volume.

    If its header tells another sampling rate than Scipion, which is right, that of a copy in `folder`.
    """
    path = os.path.abspath(volume.getFileName().split(":")[0])
    array, rate = read_volume(path)
    known = volume.getSamplingRate()
    if rate == 0 or abs(rate - known) <= SPACING_TOLERANCE * known:
        return path
    copy = Path(folder, Path(path).name).with_suffix(".mrc").resolve()
    write_volume(copy, array, known)
    return str(copy)


def fill_set(images, particles: Particles, alignment=None):
    """Append `particles` to an empty Scipion set, with acquisition, CTF, alignment, half sets and optics groups.

    The latter are kept as RELION's plugin does: their table as text, and the number of each particle's group.

    Parameters
    ----------
    images : SetOfParticles
    particles : Particles
    alignment : str, optional
        `ALIGN_PROJ` or `ALIGN_2D` if poses are to be kept.

    Raises
    ------
    ParameterError
        The particles have several pixel or box sizes: a Scipion set has one.
    """
    particles.require_uniform()
    images.setSamplingRate(particles.sampling_rate)
    images.setHasCTF(bool(particles.has_ctf))
    images.setAlignment(alignment or ALIGN_NONE)
    voltage, cs, contrast = (
        float(values[0]) for values in (particles.voltage, particles.cs, particles.amplitude_contrast)
    )
    images.setAcquisition(_acquisition(voltage, cs, contrast))
    if particles.groups:
        text, numbers = attached_text(particles)
        images.getAcquisition().opticsGroupInfo.set(text)
    matrices = transforms(particles, alignment) if alignment else None
    for row in range(len(particles)):
        item = Particle()
        item.setLocation(int(particles.index[row]) + 1, particles.stack[row])
        item.setObjId(int(particles.item_id[row]))
        item.setEnabled(bool(particles.enabled[row]))
        item.setAcquisition(
            _acquisition(*(float(getattr(particles, n)[row]) for n in ("voltage", "cs", "amplitude_contrast")))
        )
        if particles.has_ctf:
            item.setCTF(_ctf_model(particles, row))
        if matrices is not None:
            item.setTransform(Transform(matrices[row]))
        set_attributes(item, half=particles.half[row] if particles.half.any() else None)
        if particles.groups:
            setattr(item, f"_{GROUP}", Integer(int(numbers[row])))
        if (particles.weight != 1).any():
            set_attributes(item, weight=particles.weight[row])
        if (particles.class_id > 0).any():
            item.setClassId(int(particles.class_id[row]))
        images.append(item)


def transforms(particles: Particles, alignment) -> np.ndarray:
    """Matrices (n, 4, 4) for `Transform` of poses, which for ALIGN_2D are in Scipion's order."""
    if alignment == ALIGN_PROJ:
        p = particles
        return projection_transform(p.rot, p.tilt, p.psi, p.shift_x, p.shift_y, p.flip)
    return planar_transform(particles.psi, particles.shift_x, particles.shift_y, particles.flip)


def aligned_transforms(particles: Particles, kind) -> np.ndarray:
    """Matrices (n, 4, 4) for `Transform` of poses as the executors report them: mirror, shift, then turn.

    Parameters
    ----------
    particles : Particles
    kind : {"projection", "2d"}
    """
    if kind == "projection":
        return transforms(particles, ALIGN_PROJ)
    columns = (particles.psi, particles.shift_x, particles.shift_y, particles.flip)
    return np.array([align2d_matrix(*row) for row in zip(*columns)]).reshape(-1, 4, 4)


def fill_averages(averages, images: Particles):
    """Append images to an empty `SetOfAverages`, with the numbers of their classes if they have some."""
    averages.setSamplingRate(images.sampling_rate)
    averages.setAlignment(ALIGN_NONE)
    for row in range(len(images)):
        item = Particle(location=(int(images.index[row]) + 1, os.path.relpath(images.stack[row])))
        item.setObjId(int(images.class_id[row] or images.item_id[row]))
        item.setEnabled(bool(images.enabled[row]))
        averages.append(item)


def set_attributes(item, half=None, weight=None, max_cc=None):
    """Give a Scipion particle the attributes that other plugins look for; None leaves one alone."""
    if half is not None:
        setattr(item, SUBSET, Integer(int(half)))
    if weight is not None:
        setattr(item, WEIGHT, Float(float(weight)))
    if max_cc is not None:
        item._xmipp_maxCC = Float(float(max_cc))


def _acquisition(voltage, cs, amplitude_contrast):
    # Scipion takes a set without magnification for one without acquisition.
    return Acquisition(
        magnification=50000.0, voltage=voltage, sphericalAberration=cs, amplitudeContrast=amplitude_contrast
    )


def _ctf_model(particles, row):
    model = CTFModel()
    model.setStandardDefocus(
        float(particles.defocus_u[row]), float(particles.defocus_v[row]), float(particles.defocus_angle[row])
    )
    if particles.phase_shift.any():
        model.setPhaseShift(float(particles.phase_shift[row]))
    return model


def movie_settings(movies, eer_frames=40, eer_upsampling=1) -> dict[str, float]:
    """Sampling rate, voltage and exposures of a set of movies, named as in `MovieAlignmentParameters`.

    Parameters
    ----------
    movies : SetOfMovies
    eer_frames, eer_upsampling : int
        How EER files are read; Scipion's dose and sampling rate are those of the detector's frames and pixels.
        0 frames leave the dose as it is, that of one of the detector's frames.
    """
    acquisition = movies.getAcquisition()
    dose = acquisition.getDosePerFrame() or 0.0
    first, last, index = movies.getFramesRange()
    # Exposure before the first frame that is in the file, which need not be the first that was taken.
    before = (acquisition.getDoseInitial() or 0.0) + dose * max(0, first - index)
    sampling_rate = movies.getSamplingRate()
    if is_eer(movies):
        dose *= max(1, (last - first + 1) // eer_frames) if eer_frames else 1
        sampling_rate /= eer_upsampling
    return dict(
        sampling_rate=float(sampling_rate),
        voltage=float(acquisition.getVoltage() or DEFAULT_OPTICS[0]),
        dose_per_frame=float(dose),
        pre_exposure=float(before),
    )


def is_eer(movies) -> bool:
    """Whether the movies of a set are EER files."""
    return movies.getFirstItem().getFileName().lower().endswith(".eer")
