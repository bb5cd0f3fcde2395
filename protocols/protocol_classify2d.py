"""2D classification in Scipion."""

from __future__ import annotations

from pwem.objects import SetOfAverages, SetOfClasses2D, Transform
from pwem.protocols import ProtClassify2D
from pyworkflow import PROD
from pyworkflow.protocol import params

from xmipp_accel import convert
from xmipp_accel.particle_alignment.classify2d_parameters import Classify2DParameters
from xmipp_accel.protocols import forms
from xmipp_accel.protocols.base import ParticleExecution
from xmipp_accel.protocols.forms import Entry

ENTRIES = (
    Entry("numberOfClasses", "number_of_classes", "Number of classes", "randomInitialization"),
    Entry("numberOfIterations", "iterations", "Number of iterations"),
    Entry("maxShift", "max_shift", "Maximum shift"),
    Entry("maxResolution", "max_resolution", "Maximum resolution"),
    Entry("maskRadius", "mask_radius", "Mask radius"),
    Entry("checkMirrors", "mirrors", "Mirror images in one class?"),
    Entry("ctfMode", "ctf", "CTF"),
    Entry("splitMergeRounds", "split_merge_rounds", "Rounds of splitting and merging"),
    Entry("initialTemperature", "initial_temperature", "Initial temperature"),
    Entry("batchSize", "batch_size", "Particles per iteration"),
    Entry("seed", "seed", "Random seed"),
)


class XmippAccelProtClassify2D(ParticleExecution, ProtClassify2D):
    """Sorts particles into classes of like views, and averages each class."""

    _label = "2D classification"
    _devStatus = PROD
    _resultFile = "classes.json"
    _possibleOutputs = {"outputClasses": SetOfClasses2D, "outputAverages": SetOfAverages}

    def _defineParams(self, form):
        form.addSection(label="Input")
        form.addParam(
            "inputParticles",
            params.PointerParam,
            pointerClass="SetOfParticles",
            important=True,
            label="Input particles",
            help="Their alignment, if they have one, is not used.",
        )
        form.addParam(
            "randomInitialization",
            params.BooleanParam,
            default=True,
            label="Random initialization?",
            help="If *No*, the classification starts from images that you give.",
        )
        form.addParam(
            "initialClasses",
            params.PointerParam,
            pointerClass="SetOfAverages,SetOfClasses2D",
            condition="not randomInitialization",
            allowsNull=True,
            label="Initial classes",
            help="Averages of the same size and sampling rate as the particles; they set the number of classes.",
        )
        forms.add_entries(form, Classify2DParameters, ENTRIES)
        forms.add_hardware(form)

    # ------------------------------------------------------------------------------------------------- steps
    def _compute(self, values, device):
        from xmipp_accel.particle_alignment.classify2d_executor import Classify2DExecutor

        executor = Classify2DExecutor(Classify2DParameters.from_dict(values), device)
        return executor.classify(
            convert.particles_from_set(self.inputParticles.get()),
            self._getExtraPath(),
            initial_references=self._initial_references(),
            progress=forms.progress_log(self, "Iterations done"),
        )

    def _initial_references(self):
        if self.randomInitialization:
            return None
        references = convert.references_from_set(self.initialClasses.get())
        return references.images(range(len(references)))

    def createOutputStep(self):
        from xmipp_accel.io.particles import read_particles

        result, rows = self.result(), read_particles(self._getExtraPath("classes.xmd"))
        matrices = convert.aligned_transforms(rows, "2d")
        row_of = {int(number): row for row, number in enumerate(rows.item_id)}
        averages = self._getExtraPath("classes.mrcs")

        def update_item(item, _):
            row = row_of.get(item.getObjId())
            item.setClassId(0 if row is None else int(rows.class_id[row]))  # Scipion leaves out class 0
            if row is not None:
                item.setTransform(Transform(matrices[row]))

        def update_class(group):
            group.setAlignment2D()
            representative = group.getRepresentative()
            representative.setLocation(group.getObjId(), averages)
            representative.setSamplingRate(result["sampling_rate"])

        classes = SetOfClasses2D.create(self._getPath())
        classes.setImages(self.inputParticles)
        classes.classifyItems(updateItemCallback=update_item, updateClassCallback=update_class)
        self._defineOutputs(outputClasses=classes)
        self._defineSourceRelation(self.inputParticles, classes)
        self._define_averages(classes)

    def _define_averages(self, classes):
        averages = self._createSetOfAverages()
        averages.copyInfo(self.inputParticles.get())
        averages.setHasCTF(False)
        for group in classes.iterItems():
            average = group.getRepresentative().clone()
            average.setObjId(group.getObjId())
            average.setClassId(group.getObjId())
            averages.append(average)
        averages.setAlignment("None")
        self._defineOutputs(outputAverages=averages)
        self._defineSourceRelation(self.inputParticles, averages)

    # -------------------------------------------------------------------------------------------- information
    def _parameters(self):
        return Classify2DParameters(**forms.collect(self, Classify2DParameters, ENTRIES))

    def _validate(self):
        errors = forms.parameter_errors(self)
        particles, initial = self.inputParticles.get(), self.initialClasses.get()
        if not self.randomInitialization:
            if initial is None:
                errors.append("Without random initialization, give the initial classes.")
            elif particles is not None:
                errors += convert.size_errors("initial classes", initial, particles)
        if particles is not None and self.randomInitialization and self.numberOfClasses > particles.getSize():
            errors.append(f"{self.numberOfClasses} classes are more than the {particles.getSize()} particles.")
        return errors

    def _summary(self):
        if not self.hasAttribute("outputClasses"):
            return []
        result = self.result()
        filled = [count for count in result["counts"] if count]
        return [
            f"{sum(filled)} particles in {len(filled)} classes of {min(filled)} to {max(filled)} particles.",
            f"{result['seconds']:.1f} s.",
        ]

    def _methods(self):
        return ["Particles were classified in 2D by comparison in polar Fourier space [Strelak2022]."]

    def _citations(self):
        return ["Strelak2022"]
