"""2D classification in Scipion."""

from __future__ import annotations

import dataclasses
import os
import time

import numpy as np
from pwem.objects import SetOfAverages, SetOfClasses2D, Transform
from pwem.protocols import ProtClassify2D
from pyworkflow import PROD
from pyworkflow.object import Set
from pyworkflow.protocol import params
from pyworkflow.protocol.constants import STEPS_SERIAL

from xmipp_accel import convert
from xmipp_accel.errors import ProcessingError
from xmipp_accel.particle_alignment.classify2d_parameters import Classify2DParameters
from xmipp_accel.protocols import forms
from xmipp_accel.protocols.base import CHECK_SECONDS, input_on_disk, progress_of_input
from xmipp_accel.protocols.classify2d_instalments import Instalments, results
from xmipp_accel.protocols.forms import Entry

_LEAST_PER_CLASS = 20  # particles that are waited for, while more may come

ENTRIES = (
    Entry("numberOfClasses", "number_of_classes", "Number of classes", "randomInitialization"),
    Entry("numberOfIterations", "iterations", "Number of iterations"),
    Entry("maxShift", "max_shift", "Maximum shift"),
    Entry("maxResolution", "max_resolution", "Maximum resolution"),
    Entry("maskRadius", "mask_radius", "Mask radius"),
    Entry("checkMirrors", "mirrors", "Mirror images in one class?"),
    Entry("ctfMode", "ctf", "CTF"),
    Entry("assignment", "assignment", "Assignment"),
    Entry(
        "fixedReferences", "fixed_references", "Keep the initial classes as they are?", "not randomInitialization"
    ),
    Entry("splitMergeRounds", "split_merge_rounds", "Rounds of splitting and merging"),
    Entry("initialTemperature", "initial_temperature", "Initial temperature"),
    Entry("batchSize", "batch_size", "Particles per iteration"),
    Entry("seed", "seed", "Random seed"),
    Entry("scratchDir", "scratch", "Scratch folder"),
)


class XmippAccelProtClassify2D(ProtClassify2D):
    """Sorts particles into classes of like views, and averages each class.

    Works while particles are still arriving: the classes learn from each instalment, and in the end all particles
    are assigned once more. The GPUs in the list share the particles.
    """

    _label = "2D classification"
    _devStatus = PROD
    stepsExecutionMode = STEPS_SERIAL
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
    def _insertAllSteps(self):
        # The time makes the step a new one in every run, so that a continued run looks for what is missing.
        self._insertFunctionStep(self.classifyStep, time.time(), needsGPU=True)

    def classifyStep(self, started):
        forms.refuse_changes(self, self._parameters())
        self._devices = forms.resolve_devices(self)
        instalments = Instalments(self._getExtraPath())
        self._classify_arrivals(instalments)
        if not instalments.rows:
            raise ProcessingError("the input is complete and holds no particles")
        if instalments.last_size < len(instalments.rows):
            # The classes have changed since the first particles were assigned.
            self._classify(instalments, self._arrived_particles(), final=True)
        self._register(instalments, Set.STREAM_CLOSED)

    def _classify_arrivals(self, instalments):
        """Classify what arrives, an instalment at a time, until the input is closed."""
        while True:
            size, closed = progress_of_input(self)
            done = len(instalments.rows)
            # Each instalment rewrites the outputs, so it is the larger the more there is already.
            enough = max(_LEAST_PER_CLASS * self.numberOfClasses.get(), done // 5)
            interrupted = instalments.interrupted()
            if interrupted is not None:
                everything = self._arrived_particles()
                some = everything.take(np.isin(everything.item_id, interrupted["numbers"]))
                self._classify(instalments, some, interrupted["final"])
            elif size - done >= enough or (closed and size > done):
                everything = self._arrived_particles()
                some = everything.take(np.isin(everything.item_id, list(instalments.rows), invert=True))
                self._classify(instalments, some, final=False)
            elif closed:
                return
            else:
                time.sleep(CHECK_SECONDS)

    def _classify(self, instalments, particles, final):
        """Let the classes learn from `particles`, or, in the end, only assign them."""
        from xmipp_accel.particle_alignment.classify2d_executor import Classify2DExecutor

        folder, state = instalments.begin(particles, final)
        parameters = self._parameters()
        parameters = dataclasses.replace(parameters, fixed_references=final or parameters.fixed_references)
        executor = Classify2DExecutor(parameters, *self._devices)
        references = None if state is not None else self._initial_references()
        progress = forms.progress_log(self, "Iterations done")
        self.info(executor.classify(particles, folder, references, progress, state).summary())
        instalments.take(folder)
        self._register(instalments, Set.STREAM_OPEN)

    def _arrived_particles(self):
        images = input_on_disk(self)
        try:
            return convert.particles_from_set(images)
        finally:
            images.close()

    def _initial_references(self):
        if self.randomInitialization:
            return None
        references = convert.references_from_set(self.initialClasses.get())
        return references.images(range(len(references)))

    # ------------------------------------------------------------------------------------------------ outputs
    def _register(self, instalments, state):
        """Write both sets anew, from all instalments that are done."""
        result = self.results()[-1]
        averages = os.path.relpath(result["averages"])

        def update_item(item, _):
            label, matrix = instalments.rows.get(item.getObjId(), (0, None))
            item.setClassId(label)  # Scipion leaves out class 0
            if label:
                item.setTransform(Transform(matrix))

        def update_class(group):
            group.setAlignment2D()
            representative = group.getRepresentative()
            representative.setLocation(group.getObjId(), averages)
            representative.setSamplingRate(result["sampling_rate"])

        first = not self.hasAttribute("outputClasses")
        classes = SetOfClasses2D.create(self._getPath())
        classes.setImages(self.inputParticles)
        classes.classifyItems(updateItemCallback=update_item, updateClassCallback=update_class)
        pictures = self._make_averages(classes)
        for name, output in (("outputClasses", classes), ("outputAverages", pictures)):
            self._updateOutputSet(name, output, state)
            if first:
                self._defineSourceRelation(self.inputParticles, output)

    def _make_averages(self, classes):
        averages = SetOfAverages.create(self._getPath())
        averages.copyInfo(self.inputParticles.get())
        averages.setHasCTF(False)
        for group in classes.iterItems():
            average = group.getRepresentative().clone()
            average.setObjId(group.getObjId())
            average.setClassId(group.getObjId())
            averages.append(average)
        averages.setAlignment("None")
        return averages

    def results(self):
        """What the executor reports of each instalment, as dictionaries; the last one tells of all classes."""
        return results(self._getExtraPath())

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
        complete = particles is not None and particles.isStreamClosed()
        if complete and self.randomInitialization and self.numberOfClasses > particles.getSize():
            errors.append(f"{self.numberOfClasses} classes are more than the {particles.getSize()} particles.")
        return errors

    def _summary(self):
        if not self.hasAttribute("outputClasses"):
            return []
        results = self.results()
        filled = [count for count in results[-1]["counts"] if count]
        return [
            f"{sum(filled)} particles in {len(filled)} classes of {min(filled)} to {max(filled)} particles.",
            f"{sum(result['seconds'] for result in results):.1f} s.",
        ]

    def _methods(self):
        return ["Particles were classified in 2D by comparison in polar Fourier space [Strelak2022]."]

    def _citations(self):
        return ["Strelak2022"]

    @classmethod
    def worksInStreaming(cls):
        return True

    def _stepsCheck(self):
        """The step itself looks for new particles."""
