"""Reconstruct Significant, the initial volume, in Scipion."""

from __future__ import annotations

import os

from pwem.objects import SetOfClasses2D, SetOfParticles, Transform, Volume
from pwem.protocols import ProtInitialVolume
from pyworkflow import PROD
from pyworkflow.protocol import params

from xmipp_accel import convert
from xmipp_accel.initial_volume.parameters import ReconstructSignificantParameters
from xmipp_accel.protocols import forms
from xmipp_accel.protocols.base import ParticleExecution
from xmipp_accel.protocols.forms import Entry

COMPARISON = (
    Entry("symmetryGroup", "symmetry", "Symmetry group"),
    Entry("maxResolution", "max_resolution", "Target resolution"),
    Entry("startResolution", "start_resolution", "Resolution of the starts"),
    Entry("angularSampling", "angular_sampling", "Angular sampling"),
    Entry("minTilt", "min_tilt", "Minimum tilt"),
    Entry("maxTilt", "max_tilt", "Maximum tilt"),
    Entry("maxShift", "max_shift", "Maximum shift"),
    Entry("maskRadius", "mask_radius", "Mask radius"),
    Entry("ctfMode", "ctf", "CTF"),
)
CRITERIA = (
    Entry("numberOfStarts", "starts", "Random starts", "not thereisRefVolume"),
    Entry("iter", "iterations", "Number of iterations"),
    Entry("alpha0", "alpha_start", "Starting significance"),
    Entry("alphaF", "alpha_end", "Final significance"),
    Entry("imagesPerIteration", "images_per_iteration", "Images per iteration"),
    Entry("keepIntermediate", "keep_intermediate", "Keep intermediate volumes"),
    Entry("seed", "seed", "Random seed"),
)
ENTRIES = COMPARISON + CRITERIA


class XmippAccelProtReconstructSignificant(ParticleExecution, ProtInitialVolume):
    """Makes an initial volume of class averages or particles, from random angles or from a given volume."""

    _label = "reconstruct significant"
    _devStatus = PROD
    _resultFile = "initial_volume.json"
    _possibleOutputs = {"outputVolume": Volume, "outputParticles": SetOfParticles}

    def _defineParams(self, form):
        form.addSection(label="Input")
        form.addParam(
            "inputSet",
            params.PointerParam,
            pointerClass="SetOfClasses2D,SetOfAverages,SetOfParticles",
            important=True,
            label="Input images",
            help="2D classes, averages, or particles. Their alignment, if they have one, is not used.",
        )
        form.addParam(
            "thereisRefVolume",
            params.BooleanParam,
            default=False,
            label="Is there a reference volume?",
            help="Start from it instead of random angles.",
        )
        form.addParam(
            "refVolume",
            params.PointerParam,
            pointerClass="Volume",
            condition="thereisRefVolume",
            allowsNull=True,
            label="Initial 3D reference volume",
            help="With the field of view of the images.",
        )
        forms.add_entries(form, ReconstructSignificantParameters, COMPARISON)
        form.addSection(label="Criteria")
        forms.add_entries(form, ReconstructSignificantParameters, CRITERIA)
        forms.add_hardware(form)

    # ------------------------------------------------------------------------------------------------- steps
    def _compute(self, values, device):
        from xmipp_accel.initial_volume.executor import ReconstructSignificantExecutor

        executor = ReconstructSignificantExecutor(ReconstructSignificantParameters.from_dict(values), device)
        return executor.reconstruct(
            convert.references_from_set(self.inputSet.get()),
            self._getExtraPath(),
            reference=self._reference(),
            progress=forms.progress_log(self, "Iterations done"),
        )

    def _reference(self):
        if not self.thereisRefVolume:
            return None
        return os.path.abspath(self.refVolume.get().getFileName().split(":")[0])

    def createOutputStep(self):
        result, images = self.result(), self.inputSet.get()
        volume = Volume(location=self._getExtraPath("volume.mrc"))
        volume.setSamplingRate(result["sampling_rate"])
        self._defineOutputs(outputVolume=volume)
        self._defineSourceRelation(self.inputSet, volume)
        if not isinstance(images, SetOfClasses2D):
            self._define_particles(images)

    def _define_particles(self, images):
        from xmipp_accel.io.particles import read_particles

        rows = read_particles(self._getExtraPath("aligned.xmd"))
        matrices = convert.aligned_transforms(rows, "projection")
        row_of = {int(number): row for row, number in enumerate(rows.item_id)}
        output = SetOfParticles.create(self._getPath())
        output.copyInfo(images)
        output.setAlignmentProj()
        for item in images.iterItems():
            row = row_of.get(item.getObjId())
            if row is not None:
                aligned = item.clone()
                aligned.setTransform(Transform(matrices[row]))
                convert.set_attributes(aligned, weight=rows.weight[row], max_cc=rows.extra["maxCC"][row])
                output.append(aligned)
        self._defineOutputs(outputParticles=output)
        self._defineSourceRelation(self.inputSet, output)

    # -------------------------------------------------------------------------------------------- information
    def _parameters(self):
        images = self.inputSet.get()
        flipped = isinstance(images, SetOfParticles) and bool(images.isPhaseFlipped())
        values = forms.collect(self, ReconstructSignificantParameters, ENTRIES)
        return ReconstructSignificantParameters(**values, phase_flipped=flipped)

    def _validate(self):
        errors = forms.parameter_errors(self)
        images = self.inputSet.get()
        if isinstance(images, SetOfClasses2D) and not images.hasRepresentatives():
            errors.append("The classes have no averages.")
        if self.thereisRefVolume and self.refVolume.get() is None:
            errors.append("Give the reference volume.")
        return errors

    def _summary(self):
        if not self.hasAttribute("outputVolume"):
            return []
        result = self.result()
        scores = ", ".join(f"{start['score']:.3f}" for start in result["starts"])
        return [
            f"{result['n_images']} images, {result['n_set_aside']} set aside; symmetry {result['symmetry']}.",
            f"Start {result['best_start'] + 1} was kept; mean correlations with the starts: {scores}.",
            f"Mean correlation with the final volume {result['mean_cc']:.3f}.",
            f"{result['seconds']['total']:.1f} s on {result['device']}.",
        ]

    def _methods(self):
        return [
            "The initial volume was made by annealed significance weights from random angles [Sorzano2015], "
            "with comparisons in polar Fourier space."
        ]

    def _citations(self):
        return ["Sorzano2015"]
