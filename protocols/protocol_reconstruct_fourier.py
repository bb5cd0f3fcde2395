"""Fourier reconstruction in Scipion."""

from __future__ import annotations

import os
import shutil

from pwem.objects import FSC, SetOfFSCs, Volume
from pwem.protocols import ProtReconstruct3D
from pyworkflow import PROD
from pyworkflow.protocol import params

from xmipp_accel import convert
from xmipp_accel.errors import XmippAccelError
from xmipp_accel.numerics.symmetry import normalize_symmetry
from xmipp_accel.protocols import forms
from xmipp_accel.protocols.base import ParticleExecution, arrivals
from xmipp_accel.protocols.forms import Entry
from xmipp_accel.reconstruction.parameters import ReconstructFourierParameters
from xmipp_accel.reconstruction.result import ReconstructFourierResult
from xmipp_accel.reconstruction.selection import SCORES

NAME = "volume"
LEAST = 100  # particles that are waited for, while more may come
# Fields that name a file, and the inputs that they come from.
VOLUMES = {"mask_file": "inputMask", "subtract": "inputSubtract"}
CURVES = {
    "fsc_corrected": "corrected for the mask",
    "fsc_masked": "within the mask",
    "fsc_unmasked": "without mask",
    "fsc_randomised": "within the mask, random phases",
}
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
    Entry("maxMemory", "max_memory", "Memory"),
    Entry("previewInterval", "preview_interval", "Preview interval"),
    Entry("deterministic", "deterministic", "Deterministic?"),
    Entry("batchSize", "batch_size", "Particles per batch"),
    Entry("tune", "tune", "Learn what is fastest?"),
    Entry("scratchDir", "scratch", "Scratch folder"),
)
ENTRIES = MAIN + EXPERT


class XmippAccelProtReconstructFourier(ParticleExecution, ProtReconstruct3D):
    """Reconstructs a map, two half maps and their FSC from particles with projection directions, in one pass.

    The parameters have the names of Xmipp's protocol. Of those, *approx*, *legacy*, *correctEnvelope* and
    *extraParams* have no counterpart: a workflow that holds them is read without them.

    While particles arrive, the map is made again whenever there are a fifth more of them. It becomes an output for
    other protocols when all of them are in it.
    """

    _label = "reconstruct fourier"
    _devStatus = PROD
    _resultFile = f"{NAME}.json"
    _mostDevices = None
    _possibleOutputs = {
        "outputVolume": Volume,
        "outputFSC": FSC,
        "outputFSCs": SetOfFSCs,
        "outputErrorMap": Volume,
    }

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
            "correctCTF",
            params.BooleanParam,
            default=True,
            label="Correct for the CTF?",
            help="Uses the CTF of each particle, if it has one; knows of particles whose phases were flipped.",
        )
        forms.add_entries(form, ReconstructFourierParameters, EXPERT)
        form.addParam(
            "inputMask",
            params.PointerParam,
            pointerClass="VolumeMask",
            allowsNull=True,
            condition="useHalves or refineIterations > 0",
            label="Mask",
            help="For the FSC, in place of the sphere, and to confine the map to. Of the map's box and pixels.",
        )
        form.addParam(
            "inputSubtract",
            params.PointerParam,
            pointerClass="Volume",
            allowsNull=True,
            expertLevel=params.LEVEL_ADVANCED,
            label="Map to subtract",
            help="Its projections are subtracted from the images; of the map's box and sampling rate.",
        )
        forms.add_hardware(form)

    # ------------------------------------------------------------------------------------------------- steps
    def _compute(self, values, *devices):
        from xmipp_accel.reconstruction.executor import ReconstructFourierExecutor

        for field, name in VOLUMES.items():
            if values[field]:
                values[field] = convert.volume_file(getattr(self, name).get(), self._getTmpPath())
        parameters = ReconstructFourierParameters.from_dict(values)
        executor = ReconstructFourierExecutor(parameters, *devices)
        state, folder = self._getExtraPath("state"), self._getExtraPath()
        for images, complete in arrivals(self, LEAST):
            particles = self._particles(images, parameters)
            grows = not complete or os.path.isdir(state)
            progress = forms.progress_log(self, "Particles inserted")
            result = executor.reconstruct(particles, folder, NAME, progress, state if grows else None)
            if not complete:
                self.info(f"{result.summary()}\nMore particles are to come.")
        shutil.rmtree(state, ignore_errors=True)
        return result

    def _particles(self, images, parameters):
        scores = [parameters.score_label] if parameters.score_label else SCORES
        return convert.particles_from_set(images, labels=scores if parameters.score_b_factor else ())

    def createOutputStep(self):
        result = self.result()
        volume = self._volume(result["volume"], result)
        if result["half1"]:
            volume.setHalfMaps([self._getExtraPath(result["half1"]), self._getExtraPath(result["half2"])])
        self._define("outputVolume", volume)
        if result["half1"]:
            self._define("outputFSC", self._curve("fsc_corrected", result))
            curves = SetOfFSCs.create(self._getPath())
            for name in CURVES:
                curves.append(self._curve(name, result))
            self._define("outputFSCs", curves)
        if result["error_map"]:
            self._define("outputErrorMap", self._volume(result["error_map"], result))

    def _volume(self, file, result):
        volume = Volume(location=self._getExtraPath(file))
        volume.setSamplingRate(result["sampling_rate"])
        return volume

    def _curve(self, name, result):
        curve = FSC(objLabel=f"half maps, {CURVES[name]}")
        curve.setData(result["frequencies"], result[name])
        return curve

    def _define(self, name, output):
        self._defineOutputs(**{name: output})
        self._defineSourceRelation(self.inputParticles, output)

    # -------------------------------------------------------------------------------------------- information
    def _parameters(self):
        values = forms.collect(self, ReconstructFourierParameters, ENTRIES)
        values["max_resolution"] = max(0.0, values["max_resolution"])  # Xmipp's protocol says -1 for Nyquist
        values["symmetry"] = normalize_symmetry(values["symmetry"])
        files = {field: os.path.abspath(volume.getFileName()) for field, volume in self._volumes()}
        return ReconstructFourierParameters(**values, **files, ctf=self._ctf())

    def _volumes(self):
        """Fields and volumes of the inputs that are given and shown."""
        for field, name in VOLUMES.items():
            volume = getattr(self, name).get()
            if volume is not None and self.evalParamCondition(name):
                yield field, volume

    def _ctf(self):
        particles = self.inputParticles.get()
        if not self.correctCTF or particles is None or particles.isAmplitudeCorrected():
            return "none"
        return "phase_flipped" if particles.hasCTF() and particles.isPhaseFlipped() else "auto"

    def _validate(self):
        errors, particles = forms.parameter_errors(self), self.inputParticles.get()
        if particles is None or errors:
            return errors
        if not particles.hasAlignmentProj():
            # Only the form knows the pointer's condition: a run without a screen would go on without directions.
            return [f"The particles need projection directions; their alignment is {particles.getAlignment()}."]
        for field, volume in self._volumes():
            label = self.getParam(VOLUMES[field]).label.get()
            errors += convert.size_errors(label, volume, particles)
        if not particles.isStreamOpen() or not particles.isEmpty():
            errors += self._particle_errors(particles)
        return errors

    def _particle_errors(self, particles):
        from xmipp_accel.reconstruction.executor import ReconstructFourierExecutor

        try:
            some = convert.one_of_each_optics_group(particles)
            ReconstructFourierExecutor(self._parameters()).check(some)
        except XmippAccelError as error:
            return [str(error)]
        return []

    def _warnings(self):
        particles = self.inputParticles.get()
        if self.correctCTF and particles is not None and not particles.hasCTF():
            return ["The particles have no CTF: none is corrected."]
        return []

    def _summary(self):
        if not os.path.exists(self._getExtraPath(self._resultFile)):
            return []
        lines = ReconstructFourierResult.from_json(self.result()).summary().splitlines()
        more = [] if self.hasAttribute("outputVolume") else ["More particles are to come."]
        return [*self._warnings(), *lines, *more]

    def _methods(self):
        if not self.hasAttribute("outputVolume"):
            return []
        result = self.result()
        methods = [
            f"A map of symmetry {result['symmetry']} was reconstructed from {result['particles']} particles by "
            f"insertion into Fourier space [Strelak2019]."
        ]
        if result["half1"]:
            methods.append(
                f"Its resolution is {result['resolution']:.2f} A where the FSC of half maps, corrected for the "
                f"mask [Chen2013], falls below 0.143."
            )
        return methods

    def _citations(self):
        return ["Strelak2019", "Chen2013"]

    @classmethod
    def worksInStreaming(cls):
        return True

    def _stepsCheck(self):
        """The step itself looks for new particles."""
