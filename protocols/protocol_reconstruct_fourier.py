"""Fourier reconstruction in Scipion."""

from __future__ import annotations

import os

from pwem.objects import FSC, Volume
from pwem.protocols import ProtReconstruct3D
from pyworkflow import PROD
from pyworkflow.protocol import params

from xmipp_accel import convert
from xmipp_accel.numerics.symmetry import normalize_symmetry
from xmipp_accel.protocols import forms
from xmipp_accel.protocols.base import ParticleExecution
from xmipp_accel.protocols.forms import Entry
from xmipp_accel.reconstruction.parameters import ReconstructFourierParameters

NAME = "volume"
MAIN = (
    Entry("symmetryGroup", "symmetry", "Symmetry group"),
    Entry("maxRes", "max_resolution", "Maximum resolution"),
    Entry("useHalves", "halves", "Reconstruct halves?"),
    Entry("maskDiameter", "mask_diameter", "FSC mask diameter", "useHalves"),
    Entry("regularisation", "regularisation", "Regularisation"),
    Entry("useWeights", "use_weights", "Use particle weights?"),
    Entry("method", "method", "Method"),
)
EXPERT = (
    Entry("pad_proj", "padding_images", "Padding of images"),
    Entry("pad_vol", "padding_volume", "Padding of the volume"),
    Entry("wienerConstant", "wiener_constant", "Wiener constant", "regularisation == 1"),
    Entry("blobRadius", "blob_radius", "Blob radius", "method in (1, 3, 4)"),
    Entry("blobOrder", "blob_order", "Blob order", "method in (1, 3, 4)"),
    Entry("blobAlpha", "blob_alpha", "Blob alpha", "method in (1, 3, 4)"),
    Entry("refineIterations", "refine_iterations", "Least-squares iterations"),
    Entry("refineSupport", "refine_support", "Confine to the mask?", "refineIterations > 0"),
    Entry("errorGroups", "error_groups", "Groups for errors"),
    Entry("seed", "seed", "Random seed", "useHalves"),
    Entry("ewald", "ewald", "Ewald sphere"),
    Entry("noiseWeights", "noise_weights", "Weigh by noise?"),
    Entry("scoreBFactor", "score_b_factor", "B factor for scores"),
    Entry("scoreLabel", "score_label", "Score column", "scoreBFactor > 0"),
    Entry("subtract", "subtract", "Map to subtract"),
    Entry("maxMemory", "max_memory", "Memory"),
    Entry("previewInterval", "preview_interval", "Preview interval"),
    Entry("deterministic", "deterministic", "Deterministic?"),
    Entry("batchSize", "batch_size", "Particles per batch"),
)
ENTRIES = MAIN + EXPERT


class XmippAccelProtReconstructFourier(ParticleExecution, ProtReconstruct3D):
    """Reconstructs a map, two half maps and their FSC from particles with projection directions, in one pass."""

    _label = "reconstruct fourier"
    _devStatus = PROD
    _resultFile = f"{NAME}.json"
    _mostDevices = None
    _possibleOutputs = {"outputVolume": Volume, "outputFSC": FSC}

    def _defineParams(self, form):
        form.addSection(label="Input")
        form.addParam(
            "inputParticles",
            params.PointerParam,
            pointerClass="SetOfParticles",
            pointerCondition="hasAlignmentProj",
            important=True,
            label="Input particles",
            help="Particles with projection directions.",
        )
        forms.add_entries(form, ReconstructFourierParameters, MAIN)
        form.addParam(
            "inputMask",
            params.PointerParam,
            pointerClass="VolumeMask",
            allowsNull=True,
            condition="useHalves",
            label="FSC mask",
            help="Mask of the map's box and sampling rate for the FSC, in place of the sphere.",
        )
        form.addParam(
            "correctCTF",
            params.BooleanParam,
            default=True,
            label="Correct for the CTF?",
            help="Uses the CTF of each particle, if it has one; knows of particles whose phases were flipped.",
        )
        forms.add_entries(form, ReconstructFourierParameters, EXPERT)
        forms.add_hardware(form)

    # ------------------------------------------------------------------------------------------------- steps
    def _compute(self, values, *devices):
        from xmipp_accel.reconstruction.executor import ReconstructFourierExecutor

        executor = ReconstructFourierExecutor(ReconstructFourierParameters.from_dict(values), *devices)
        return executor.reconstruct(
            convert.particles_from_set(self.inputParticles.get()),
            self._getExtraPath(),
            NAME,
            progress=forms.progress_log(self, "Particles inserted"),
        )

    def createOutputStep(self):
        result = self.result()
        volume = Volume(location=self._getExtraPath(result["volume"]))
        volume.setSamplingRate(result["sampling_rate"])
        if result["half1"]:
            volume.setHalfMaps([self._getExtraPath(result["half1"]), self._getExtraPath(result["half2"])])
        self._defineOutputs(outputVolume=volume)
        self._defineSourceRelation(self.inputParticles, volume)
        if result["half1"]:
            fsc = FSC(objLabel="half maps, corrected for the mask")
            fsc.setData(result["frequencies"], result["fsc_corrected"])
            self._defineOutputs(outputFSC=fsc)
            self._defineSourceRelation(self.inputParticles, fsc)

    # -------------------------------------------------------------------------------------------- information
    def _parameters(self):
        values = forms.collect(self, ReconstructFourierParameters, ENTRIES)
        values["max_resolution"] = max(0.0, values["max_resolution"])  # Xmipp's protocol says -1 for Nyquist
        values["symmetry"] = normalize_symmetry(values["symmetry"])
        return ReconstructFourierParameters(**values, ctf=self._ctf(), mask_file=self._mask_file())

    def _mask_file(self):
        mask = self.inputMask.get()
        if mask is None or not self.useHalves:
            return ""
        return os.path.abspath(mask.getFileName().split(":")[0])

    def _ctf(self):
        particles = self.inputParticles.get()
        if not self.correctCTF or particles is None or particles.isAmplitudeCorrected():
            return "none"
        return "phase_flipped" if particles.hasCTF() and particles.isPhaseFlipped() else "auto"

    def _validate(self):
        errors = forms.parameter_errors(self)
        particles = self.inputParticles.get()
        if particles is not None and not particles.hasAlignmentProj():
            errors.append(
                f"The particles need projection directions; their alignment is {particles.getAlignment()}."
            )
        return errors

    def _summary(self):
        if not self.hasAttribute("outputVolume"):
            return []
        result = self.result()
        lines = [f"{result['particles']} particles, symmetry {result['symmetry']}, CTF: {result['ctf']}."]
        if result["half1"]:
            lines.append(
                f"Half maps agree up to {result['resolution']:.2f} A (FSC 0.143; "
                f"{result['resolution_unmasked']:.2f} A without mask)."
            )
        if result["residuals"]:
            lines.append(f"Least squares in {len(result['residuals'])} iterations.")
        return [*lines, f"{result['seconds']['total']:.1f} s on {result['device']}."]

    def _methods(self):
        return ["The map was reconstructed by insertion into Fourier space [Strelak2019]."]

    def _citations(self):
        return ["Strelak2019"]
