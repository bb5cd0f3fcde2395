import dataclasses
import os

import numpy as np
import pytest
from scipy.ndimage import affine_transform

from tests.protocols.scipion_project import launch, log_of, output_pointer, project  # noqa: F401
from xmipp_accel import convert
from xmipp_accel.io.images import read_stack, write_stack
from xmipp_accel.io.optics_groups import OpticsGroup
from xmipp_accel.io.particles import Particles, read_particles, write_particles
from xmipp_accel.io.volumes import read_volume, write_volume
from xmipp_accel.numerics.ctf import ctf_image
from xmipp_accel.numerics.rotations import euler_to_matrix, matrix_to_euler, random_matrices
from xmipp_accel.protocols import (
    XmippAccelProtAlignSignificant,
    XmippAccelProtClassify2D,
    XmippAccelProtImportParticles,
    XmippAccelProtReconstructFourier,
)

pytestmark = pytest.mark.scipion
BOX, RATE, COUNT = 32, 4.0, 240
CPU_ONLY = dict(useGpu=False, numberOfThreads=2)


def blobs():
    """Places (n, 3) in px from the centre, weights and widths of the Gaussians that the phantom is made of."""
    rng = np.random.default_rng(3)
    return rng.uniform(-7, 7, (9, 3)), rng.uniform(0.5, 1.5, 9), rng.uniform(1.2, 2.0, 9)


def phantom(box=BOX, rate=RATE):
    axis = (np.arange(box) - box // 2) * (rate / RATE)
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    volume = np.zeros((box,) * 3)
    for (px, py, pz), weight, width in zip(*blobs()):
        square = (x - px) ** 2 + (y - py) ** 2 + (z - pz) ** 2
        volume += weight / (np.sqrt(2 * np.pi) * width) ** 3 * np.exp(-square / (2 * width**2))
    return volume.astype(np.float32)


def projections(matrices, shifts):
    """Exact projections (n, y, x): image coordinates are A times those of the volume, minus the shift."""
    axis = np.arange(BOX) - BOX // 2
    images = np.zeros((len(matrices), BOX, BOX))
    for place, weight, width in zip(*blobs()):
        centre = matrices[:, :2] @ place - shifts
        lines = [np.exp(-((axis - centre[:, i, None]) ** 2) / (2 * width**2)) for i in (0, 1)]
        images += weight / (2 * np.pi * width**2) * lines[1][:, :, None] * lines[0][:, None, :]
    return images


@pytest.fixture(scope="module")
def truth():
    rng = np.random.default_rng(5)
    matrices = random_matrices(COUNT, rng)
    shifts = rng.uniform(-1.5, 1.5, (COUNT, 2))
    return matrices, shifts


@pytest.fixture(scope="module")
def files(tmp_path_factory, truth):
    """A STAR file of noisy particles with CTF, true poses and half sets, and the phantom."""
    folder = tmp_path_factory.mktemp("particles")
    rng = np.random.default_rng(6)
    matrices, shifts = truth
    rot, tilt, psi = matrix_to_euler(matrices)
    defocus = rng.uniform(8000, 15000, COUNT)
    ctf = ctf_image(BOX, RATE, defocus, defocus, 0.0, 300.0, 2.7, 0.1)
    images = np.fft.irfft2(np.fft.rfft2(np.fft.ifftshift(projections(matrices, shifts), axes=(1, 2))) * ctf)
    images = np.fft.fftshift(images, axes=(1, 2))
    images += rng.normal(size=images.shape) * images.std()
    write_stack(folder / "images.mrcs", images.astype(np.float32), RATE)
    particles = Particles(
        stack=[str(folder / "images.mrcs")] * COUNT,
        index=np.arange(COUNT),
        rot=rot,
        tilt=tilt,
        psi=psi,
        shift_x=shifts[:, 0],
        shift_y=shifts[:, 1],
        half=1 + np.arange(COUNT) % 2,
        defocus_u=defocus,
        defocus_v=defocus,
        voltage=300.0,
        sampling_rate=RATE,
        has_ctf=True,
        has_pose=True,
    )
    write_particles(folder / "particles.star", particles)
    write_volume(folder / "map.mrc", phantom(), RATE)
    return folder


@pytest.fixture(scope="module")
def imported(project, files):  # noqa: F811
    run = launch(project, XmippAccelProtImportParticles, particlesFile=str(files / "particles.star"))
    assert run.isFinished(), log_of(run)
    return run


@pytest.fixture(scope="module")
def volume(project, files):  # noqa: F811
    from pwem.protocols import ProtImportVolumes

    run = launch(project, ProtImportVolumes, filesPath=str(files / "map.mrc"), samplingRate=RATE)
    assert run.isFinished(), log_of(run)
    return run


@pytest.fixture(scope="module")
def aligned(project, imported, volume):  # noqa: F811
    run = launch(
        project,
        XmippAccelProtAlignSignificant,
        inputParticles=output_pointer(imported, "outputParticles"),
        inputReferences=output_pointer(volume, "outputVolume"),
        angularSampling=12.0,
        **CPU_ONLY,
    )
    assert run.isFinished(), log_of(run)
    return run


@pytest.fixture(scope="module")
def reconstructed(project, imported):  # noqa: F811
    run = launch(
        project,
        XmippAccelProtReconstructFourier,
        inputParticles=output_pointer(imported, "outputParticles"),
        **CPU_ONLY,
    )
    assert run.isFinished(), log_of(run)
    return run


@pytest.fixture(scope="module")
def classified(project, imported):  # noqa: F811
    run = launch(
        project,
        XmippAccelProtClassify2D,
        inputParticles=output_pointer(imported, "outputParticles"),
        numberOfClasses=6,
        numberOfIterations=8,
        splitMergeRounds=1,
        maxShift=8.0,
        checkMirrors=True,
        ctfMode=1,  # none: averages are then the means of the particles
        **CPU_ONLY,
    )
    assert run.isFinished(), log_of(run)
    return run


def correlation(a, b):
    return np.corrcoef(np.ravel(a), np.ravel(b))[0, 1]


def test_an_import_brings_ctf_pose_and_half_sets_into_the_project(imported, truth):
    output = imported.outputParticles
    assert output.hasCTF() and output.hasAlignmentProj() and not output.isPhaseFlipped()
    found = convert.particles_from_set(output)
    matrices, shifts = truth
    np.testing.assert_allclose(euler_to_matrix(found.rot, found.tilt, found.psi), matrices, atol=1e-4)
    np.testing.assert_allclose(np.stack([found.shift_x, found.shift_y], axis=1), shifts, atol=1e-4)
    np.testing.assert_array_equal(found.half, 1 + np.arange(COUNT) % 2)
    assert found.defocus_u.min() > 7900 and found.voltage[0] == 300
    path = output.getFirstItem().getFileName()
    assert path.startswith("Runs") and os.path.islink(path)


def test_a_file_that_holds_no_particles_is_refused_before_the_run(project, files):  # noqa: F811
    protocol = project.newProtocol(XmippAccelProtImportParticles, particlesFile=str(files / "map.mrc"))
    assert "map.mrc" in protocol.validate()[0]
    protocol.particlesFile.set("nowhere.star")
    assert "nowhere.star" in protocol.validate()[0]


def test_particles_of_several_pixel_sizes_are_refused_before_the_run(project, files, tmp_path):  # noqa: F811
    groups = {1: OpticsGroup("coarse", 2.5, BOX), 2: OpticsGroup("fine", 1.2, BOX)}
    particles = read_particles(files / "particles.star")
    mixed = dataclasses.replace(particles, groups=groups, optics_group=1 + np.arange(COUNT) % 2)
    write_particles(tmp_path / "mixed.star", mixed)
    protocol = project.newProtocol(XmippAccelProtImportParticles, particlesFile=str(tmp_path / "mixed.star"))
    assert "expected one pixel size and one box" in protocol.validate()[0]


def test_a_reconstruction_gives_the_map_its_halves_and_their_fsc(reconstructed):
    output = reconstructed.outputVolume
    found, rate = read_volume(output.getFileName())
    assert rate == pytest.approx(RATE) and output.getSamplingRate() == RATE and output.getDim() == (BOX,) * 3
    assert correlation(found, phantom()) > 0.9
    halves = [read_volume(name)[0] for name in output.getHalfMaps().split(",")]
    assert 0.5 < correlation(*halves) < 0.9999
    frequencies, values = reconstructed.outputFSC.getData()
    assert len(frequencies) == len(values) and float(values[1]) > 0.9
    assert "FSC 0.143" in "\n".join(reconstructed.summary())


def test_particles_are_aligned_to_the_views_of_a_volume(aligned, truth):
    output = aligned.outputParticles
    assert output.hasAlignmentProj() and output.hasCTF() and output.getSize() == COUNT
    found = convert.particles_from_set(output)
    matrices, shifts = truth
    relative = euler_to_matrix(found.rot, found.tilt, found.psi) @ np.swapaxes(matrices, 1, 2)
    angles = np.rad2deg(np.arccos(np.clip((np.trace(relative, axis1=1, axis2=2) - 1) / 2, -1, 1)))
    assert np.median(angles) < 6
    errors = np.hypot(found.shift_x - shifts[:, 0], found.shift_y - shifts[:, 1])
    assert np.median(errors) < 0.5
    np.testing.assert_array_equal(found.half, 1 + np.arange(COUNT) % 2)
    assert all(0 < float(item._xmipp_maxCC) <= 1 for item in output.iterItems())


def test_each_particle_is_in_the_class_of_the_view_that_it_shows(aligned):
    """The class shows the projection of the volume; its particles keep their projection directions."""
    classes, poses = aligned.outputClasses, convert.particles_from_set(aligned.outputParticles)
    row_of = {int(number): row for row, number in enumerate(poses.item_id)}
    gallery = read_particles(aligned._getExtraPath("gallery.xmd"))
    views = projections(euler_to_matrix(gallery.rot, gallery.tilt, 0), np.zeros((len(gallery), 2)))
    seen, agreement = 0, []
    for group in classes.iterItems():
        members = convert.particles_from_set(group)
        assert group.hasAlignmentProj() and set(members.class_id) == {group.getObjId()}
        rows = [row_of[int(number)] for number in members.item_id]
        np.testing.assert_allclose(members.psi, poses.psi[rows], atol=1e-5)
        assert np.ptp(members.tilt) < 1e-4 and np.abs(members.tilt[0] - poses.tilt[rows]).max() < 1e-4
        reference = int(np.flatnonzero(gallery.class_id == group.getObjId())[0])
        assert gallery.tilt[reference] == pytest.approx(members.tilt[0], abs=1e-3)
        index, name = group.getRepresentative().getLocation()
        agreement.append(correlation(read_stack(name, [index - 1])[0], views[reference]))
        seen += len(members)
    assert seen == COUNT and classes.getSize() > 30 and min(agreement) > 0.98
    assert classes.getSamplingRate() == RATE == group.getRepresentative().getSamplingRate()


def test_a_subset_of_these_classes_can_be_reconstructed(project, aligned, tmp_path):  # noqa: F811
    """As *create subset* of the metadata viewer makes it, of all classes but one."""
    from pwem.protocols import ProtUserSubSet

    sizes = {group.getObjId(): group.getSize() for group in aligned.outputClasses.iterItems()}
    left_out, *chosen = sizes
    (tmp_path / "selection.txt").write_text(" ".join(map(str, chosen)))
    subset = launch(
        project,
        ProtUserSubSet,
        inputObject=output_pointer(aligned, "outputClasses"),
        sqliteFile=f"{tmp_path / 'selection.txt'},",
        outputClassName="SetOfParticles",
    )
    assert subset.isFinished(), log_of(subset)
    assert subset.outputParticles.getSize() == COUNT - sizes[left_out]
    assert subset.outputParticles.hasAlignmentProj()
    run = launch(
        project,
        XmippAccelProtReconstructFourier,
        inputParticles=output_pointer(subset, "outputParticles"),
        useHalves=False,
        **CPU_ONLY,
    )
    assert run.isFinished(), log_of(run)
    assert correlation(read_volume(run.outputVolume.getFileName())[0], phantom()) > 0.85


def test_the_poses_that_were_found_give_the_map(project, aligned):  # noqa: F811
    run = launch(
        project,
        XmippAccelProtReconstructFourier,
        inputParticles=output_pointer(aligned, "outputParticles"),
        useHalves=False,
        **CPU_ONLY,
    )
    assert run.isFinished(), log_of(run)
    assert correlation(read_volume(run.outputVolume.getFileName())[0], phantom()) > 0.85
    assert not run.outputVolume.hasHalfMaps() and not run.hasAttribute("outputFSC")


def placed(item, image):
    """The particle as its Transform places it on the average; Scipion's origin is the centre."""
    matrix = np.asarray(item.getTransform().getMatrix())[np.ix_([0, 1, 3], [0, 1, 3])]
    back = np.linalg.inv(matrix)
    swap = back[:2, :2][::-1, ::-1]  # from (x, y) to (y, x)
    centre = np.array([BOX // 2, BOX // 2])
    offset = centre + back[:2, 2][::-1] - swap @ centre
    return affine_transform(image, swap, offset, order=1)


def test_classes_hold_the_particles_with_transforms_that_put_them_on_the_average(classified):
    classes, averages = classified.outputClasses, classified.outputAverages
    assert 2 <= classes.getSize() <= 6
    assert averages.getSize() == classes.getSize()
    assert sum(group.getSize() for group in classes.iterItems()) == COUNT
    assert averages.getSamplingRate() == RATE and not averages.hasAlignment()
    place = convert.references_from_set(classes)
    pictures = place.images()
    agreement, flips = [], []
    for group, average in zip(classes.iterItems(), pictures):
        members = convert.particles_from_set(group)
        flips.extend(members.flip)
        moved = [placed(item, image) for item, image in zip(group.iterItems(), members.images())]
        agreement.append(correlation(np.mean(moved, axis=0), average))
    # The opposite rotation, or the shift in the other frame, gives 0.7.
    assert np.mean(agreement) > 0.85
    assert 0 < np.mean(flips) < 1


def test_particles_are_aligned_to_class_averages(project, imported, classified):  # noqa: F811
    run = launch(
        project,
        XmippAccelProtAlignSignificant,
        inputParticles=output_pointer(imported, "outputParticles"),
        inputReferences=output_pointer(classified, "outputClasses"),
        updateReferences=True,
        keepBestN=2,
        ctfMode=2,
        checkMirrors=True,
        **CPU_ONLY,
    )
    assert run.isFinished(), log_of(run)
    output = run.outputParticles
    assert output.hasAlignment2D() and COUNT < output.getSize() <= 2 * COUNT
    assert run.outputAverages.getSize() == classified.outputClasses.getSize()
    pictures = convert.references_from_set(classified.outputClasses).images()
    members = convert.particles_from_set(output)
    moved = [
        max(correlation(placed(item, image), picture) for picture in pictures)
        for item, image in zip(output.iterItems(), members.images())
    ]
    assert np.mean(moved) > 0.5, "the wrong convention gives 0.34"
    # Each particle is once in a class, which shows the updated reference: their weighted mean.
    classes = run.outputClasses
    numbers = [number for group in classes.iterItems() for number in group.getIdSet()]
    assert len(numbers) == len(set(numbers)) == COUNT
    updated = dict(zip(convert.particles_from_set(run.outputAverages).item_id, run.outputAverages.iterItems()))
    assert set(classes.getIdSet()) <= set(updated) == set(classified.outputClasses.getIdSet())
    for group in classes.iterItems():
        assert group.hasAlignment2D()
        images = convert.particles_from_set(group).images()
        mean = np.mean([placed(item, image) for item, image in zip(group.iterItems(), images)], axis=0)
        index, name = group.getRepresentative().getLocation()
        # With two references kept, the average holds more particles than the class.
        assert correlation(mean, read_stack(name, [index - 1])[0]) > 0.8
    again = project.newProtocol(XmippAccelProtClassify2D, randomInitialization=False)
    again.inputParticles.copy(output_pointer(imported, "outputParticles"))
    again.initialClasses.copy(output_pointer(run, "outputClasses"))
    assert again.validate() == []


def test_a_classification_starts_from_averages(project, imported, classified):  # noqa: F811
    run = launch(
        project,
        XmippAccelProtClassify2D,
        inputParticles=output_pointer(imported, "outputParticles"),
        randomInitialization=False,
        initialClasses=output_pointer(classified, "outputAverages"),
        numberOfIterations=2,
        splitMergeRounds=0,
        **CPU_ONLY,
    )
    assert run.isFinished(), log_of(run)
    assert run.outputClasses.getSize() <= classified.outputAverages.getSize()


def test_a_volume_of_another_size_and_sampling_rate_is_resampled(project, imported, truth, tmp_path):  # noqa: F811
    """Its file tells another sampling rate than Scipion, which is right."""
    from pwem.protocols import ProtImportVolumes

    write_volume(tmp_path / "finer.mrc", phantom(38, 3.2), 1.0)
    finer = launch(project, ProtImportVolumes, filesPath=str(tmp_path / "finer.mrc"), samplingRate=3.2)
    values = dict(angularSampling=12.0, createClasses=False, maxShift=8.0, maxShiftUnit=2, **CPU_ONLY)
    values["inputParticles"] = output_pointer(imported, "outputParticles")
    values["inputReferences"] = output_pointer(finer, "outputVolume")
    run = launch(project, XmippAccelProtAlignSignificant, **values)
    assert run.isFinished(), log_of(run)
    size, rate, resampled = run._warnings()
    assert "38 px" in size and "3.200 A/px" in rate and "resampled" in resampled
    assert not run.hasAttribute("outputClasses")
    found = convert.particles_from_set(run.outputParticles)
    relative = euler_to_matrix(found.rot, found.tilt, found.psi) @ np.swapaxes(truth[0], 1, 2)
    angles = np.rad2deg(np.arccos(np.clip((np.trace(relative, axis1=1, axis2=2) - 1) / 2, -1, 1)))
    assert np.median(angles) < 6
    assert np.hypot(found.shift_x, found.shift_y).max() <= 2.0 + 1e-4  # 8 A
    assert np.median(np.hypot(found.shift_x - truth[1][:, 0], found.shift_y - truth[1][:, 1])) < 0.5


def test_particles_without_directions_are_refused_before_the_run(project, classified):  # noqa: F811
    protocol = project.newProtocol(XmippAccelProtReconstructFourier)
    protocol.inputParticles.copy(output_pointer(classified, "outputAverages"))
    assert "projection directions" in protocol.validate()[0]


def test_another_protocol_takes_the_classes(project, classified):  # noqa: F811
    from pwem.protocols.protocol_classes_selector import ProtClassesSelector

    run = launch(
        project,
        ProtClassesSelector,
        inputClasses=output_pointer(classified, "outputClasses"),
        firstNElements=1,
    )
    assert run.isFinished(), log_of(run)
    sizes = [group.getSize() for group in classified.outputClasses.iterItems()]
    assert run.output.getSize() == max(sizes)
    assert run.output.hasCTF()
