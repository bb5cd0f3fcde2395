"""Align Significant in Scipion."""

from __future__ import annotations

import os
from collections import defaultdict

from pwem.objects import SetOfAverages, SetOfClasses2D, SetOfParticles, Volume
from pwem.protocols import ProtAlign2D
from pyworkflow import PROD
from pyworkflow.protocol import params

from xmipp_accel import convert
from xmipp_accel.errors import ParameterError
from xmipp_accel.particle_alignment.parameters import AlignSignificantParameters
from xmipp_accel.protocols import forms
from xmipp_accel.protocols.base import ParticleExecution
from xmipp_accel.protocols.forms import Entry
from xmipp_accel.protocols.particle_outputs import fill_classes, update_aligned

SEARCH = (
    Entry("maxShift", "max_shift", "Maximum shift"),
    Entry("maxShiftUnit", "max_shift_unit", "Unit of the maximum shift"),
    Entry("maxResolution", "max_resolution", "Maximum resolution"),
    Entry("maskRadius", "mask_radius", "Mask radius"),
    Entry("ctfMode", "ctf", "CTF"),
    Entry("checkMirrors", "mirrors", "Compare mirrored references?"),
    Entry("doRefine", "refine", "Refine beyond the grid?"),
    Entry("doWhiten", "whiten", "Whiten the particles?"),
    Entry("algorithm", "algorithm", "Algorithm"),
    Entry("memoryLimit", "memory_limit", "Memory limit"),
)
GALLERY = (
    Entry("symmetryGroup", "symmetry", "Symmetry group"),
    Entry("angularSampling", "angular_sampling", "Angular sampling"),
    Entry("minTilt", "min_tilt", "Minimum tilt"),
    Entry("maxTilt", "max_tilt", "Maximum tilt"),
    Entry("perturb", "perturb", "Perturb the directions"),
    Entry("seed", "seed", "Random seed"),
)
SIGNIFICANCE = (
    Entry("keepBestN", "keep_best", "References to keep"),
    Entry("useWeight", "use_weight", "Rank by weight?"),
    Entry("angDistance", "angular_distance", "Angular neighbourhood"),
    Entry("symmetricNeighbours", "symmetric_neighbours", "Neighbourhood modulo symmetry?"),
    Entry("updateReferences", "update_references", "Update references?"),
)
ENTRIES = SEARCH + GALLERY + SIGNIFICANCE


class XmippAccelProtAlignSignificant(ParticleExecution, ProtAlign2D):
    """Compares every particle with every reference, in every orientation and shift, and keeps the best.

    The references are projections of a volume, which gives each particle a projection direction, or averages or
    classes, which give it a 2D alignment.
    """

    _label = "align significant"
    _devStatus = PROD
    _resultFile = "aligned.json"
    _mostDevices = None
    _possibleOutputs = {
        "outputParticles": SetOfParticles,
        "outputClasses": SetOfClasses2D,
        "outputAverages": SetOfAverages,
    }

    def _defineAlignParams(self, form):
        form.addParam(
            "inputReferences",
            params.PointerParam,
            pointerClass="Volume,SetOfAverages,SetOfClasses2D",
            important=True,
            label="References",
            help="A volume, averages or 2D classes; those of another size or sampling rate are resampled.",
        )
        forms.add_entries(form, AlignSignificantParameters, SEARCH)
        form.addSection(label="Volume")
        forms.add_entries(form, AlignSignificantParameters, GALLERY)
        form.addSection(label="Significance")
        forms.add_entries(form, AlignSignificantParameters, SIGNIFICANCE)
        form.addParam(
            "createClasses",
            params.BooleanParam,
            default=True,
            label="Create classes?",
            help="Each particle is put into the class of its best reference, a projection of the volume or an "
            "average. The classes show the updated references where there are any, else the references.",
        )
        forms.add_hardware(form)

    # ------------------------------------------------------------------------------------------------- steps
    def _compute(self, values, *devices):
        from xmipp_accel.particle_alignment.executor import AlignSignificantExecutor
        from xmipp_accel.particle_alignment.gallery import write_gallery

        parameters = AlignSignificantParameters.from_dict(values)
        particles = convert.particles_from_set(self.inputParticles.get())
        references = self._references(parameters).in_pixels_of(particles.box, particles.sampling_rate)
        if self.createClasses and not parameters.update_references:
            write_gallery(self._getExtraPath(), references, particles.box, particles.sampling_rate, devices[0])
        executor = AlignSignificantExecutor(parameters, *devices)
        progress = forms.progress_log(self, "Particles aligned")
        return executor.align(particles, references, self._getExtraPath(), progress=progress)

    def _references(self, parameters):
        from xmipp_accel.particle_alignment.gallery import open_references, open_volume

        references = self.inputReferences.get()
        if isinstance(references, Volume):
            name = os.path.abspath(references.getFileName().split(":")[0])
            return open_volume(name, **parameters.gallery(), sampling_rate=references.getSamplingRate())
        return open_references(convert.references_from_set(references), **parameters.gallery())

    def createOutputStep(self):
        from xmipp_accel.io.particles import read_particles

        result = self.result()
        rows = read_particles(result["particles_xmd"])
        matrices = convert.aligned_transforms(rows, result["kind"])
        self._define_particles(rows, matrices, result["kind"])
        updated = read_particles(result["references_xmd"]) if result["references_xmd"] else None
        if self.createClasses:
            classes = SetOfClasses2D.create(self._getPath())
            classes.setImages(self.inputParticles)
            shown = read_particles(self._getExtraPath("gallery.xmd")) if updated is None else updated
            fill_classes(classes, rows, matrices, result["kind"], shown)
            self._define("outputClasses", classes)
        if updated is not None:
            averages = self._createSetOfAverages()
            averages.copyInfo(self.inputParticles.get())
            averages.setHasCTF(False)
            convert.fill_averages(averages, updated)
            self._define("outputAverages", averages)

    def _define_particles(self, rows, matrices, kind):
        rows_of = defaultdict(list)
        for row, number in enumerate(rows.item_id):
            rows_of[int(number)].append(row)
        output = SetOfParticles.create(self._getPath())
        output.copyInfo(self.inputParticles.get())
        (output.setAlignmentProj if kind == "projection" else output.setAlignment2D)()
        for item in self.inputParticles.get().iterItems():
            for row in rows_of[item.getObjId()]:
                aligned = item.clone()
                if self.keepBestN.get() > 1:
                    aligned.cleanObjId()  # several rows of one particle cannot have its number
                update_aligned(aligned, rows, row, matrices[row])
                output.append(aligned)
        self._define("outputParticles", output)

    def _define(self, name, output):
        self._defineOutputs(**{name: output})
        self._defineSourceRelation(self.inputParticles, output)
        self._defineSourceRelation(self.inputReferences, output)

    # -------------------------------------------------------------------------------------------- information
    def _parameters(self):
        values = forms.collect(self, AlignSignificantParameters, ENTRIES)
        particles = self.inputParticles.get()
        return AlignSignificantParameters(**values, phase_flipped=bool(particles and particles.isPhaseFlipped()))

    def _validate(self):
        errors = forms.parameter_errors(self)
        particles, references = self.inputParticles.get(), self.inputReferences.get()
        if particles is not None and not errors:
            try:
                self._parameters().largest_shift(particles.getXDim(), particles.getSamplingRate())
            except ParameterError as error:
                errors.append(str(error))
        if isinstance(references, SetOfClasses2D) and not references.hasRepresentatives():
            errors.append("The classes have no averages to align to.")
        return errors

    def _warnings(self):
        particles, references = self.inputParticles.get(), self.inputReferences.get()
        if particles is None or references is None:
            return []
        different = convert.size_errors("references", references, particles)
        return [*different, "They are resampled to the particles' pixels."] if different else []

    def _summary(self):
        if not self.hasAttribute("outputParticles"):
            return []
        result = self.result()
        return [
            f"{result['n_aligned']} of {result['n_particles']} aligned to {result['n_references']} references.",
            f"Mean correlation {result['mean_cc']:.3f}; {100 * result['at_shift_limit']:.1f} % of the particles "
            f"are at the largest shift.",
            f"{result['seconds']:.1f} s on {result['device']}.",
        ]

    def _methods(self):
        return ["Particles were compared with all references in polar Fourier space [Strelak2022]."]

    def _citations(self):
        return ["Strelak2022"]
