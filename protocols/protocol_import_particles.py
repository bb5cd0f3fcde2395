"""Import of particles with all that RELION and Xmipp know of them, without either of the two."""

from __future__ import annotations

import dataclasses
import os

from pwem.constants import ALIGN_2D, ALIGN_PROJ
from pwem.objects import SetOfParticles
from pwem.protocols import EMProtocol
from pyworkflow import PROD
from pyworkflow.protocol import params
from pyworkflow.protocol.constants import STEPS_SERIAL
from pyworkflow.utils import copyFile, createAbsLink

from xmipp_accel import convert
from xmipp_accel.errors import XmippAccelError

ALIGNMENTS = ("automatic", "none", "2D", "projection")


class XmippAccelProtImportParticles(EMProtocol):
    """Imports particles from a RELION .star (3.0, 3.1, 4, 5) or Xmipp .xmd file with CTF, pose and half sets.

    Scipion's own import needs the plugins of RELION or Xmipp for these files.
    """

    _label = "import particles"
    _devStatus = PROD
    stepsExecutionMode = STEPS_SERIAL
    _possibleOutputs = {"outputParticles": SetOfParticles}

    def _defineParams(self, form):
        form.addSection(label="Import")
        form.addParam(
            "particlesFile",
            params.FileParam,
            important=True,
            label="Particles file",
            help="A .star or .xmd file. Paths of images are relative to its folder or to the current one.",
        )
        form.addParam(
            "samplingRate",
            params.FloatParam,
            default=0.0,
            label="Sampling rate (A)",
            help="0 takes it from the file.",
        )
        form.addParam(
            "alignmentType",
            params.EnumParam,
            choices=list(ALIGNMENTS),
            default=0,
            display=params.EnumParam.DISPLAY_COMBO,
            label="Alignment",
            help="What the file's angles and shifts mean; automatic: projection if any tilt differs from 0, "
            "else 2D, and none if there are no angles.",
        )
        form.addParam(
            "haveDataBeenPhaseFlipped",
            params.BooleanParam,
            default=False,
            label="Have data been phase-flipped?",
            help="Programs that correct the CTF need to know.",
        )
        form.addParam(
            "copyFiles",
            params.BooleanParam,
            default=False,
            label="Copy image files?",
            help="If *No*, the project only links to them.",
            expertLevel=params.LEVEL_ADVANCED,
        )

    # ------------------------------------------------------------------------------------------------- steps
    def _insertAllSteps(self):
        self._insertFunctionStep(self.importStep, self.particlesFile.get(), needsGPU=False)

    def importStep(self, path):
        from xmipp_accel.io.particles import read_particles

        particles = read_particles(path)
        stacks = self._bring_stacks(particles.stack)
        particles = dataclasses.replace(particles, stack=[stacks[name] for name in particles.stack])
        if self.samplingRate.get() > 0:
            particles.require_uniform()
            rate = self.samplingRate.get()
            groups = {n: dataclasses.replace(group, sampling_rate=rate) for n, group in particles.groups.items()}
            particles = dataclasses.replace(particles, sampling_rate=rate, groups=groups)
        output = SetOfParticles.create(self._getPath())
        convert.fill_set(output, particles, self._alignment(particles))
        output.setIsPhaseFlipped(self.haveDataBeenPhaseFlipped.get())
        self._defineOutputs(outputParticles=output)

    def _bring_stacks(self, stacks) -> dict[str, str]:
        """Link or copy each stack into the project once; names that occur twice get a number."""
        new, taken = {}, set()
        for path in dict.fromkeys(stacks):
            stem, suffix = os.path.splitext(os.path.basename(path))
            name, number = stem + suffix, 1
            while name in taken:
                number += 1
                name = f"{stem}_{number}{suffix}"
            taken.add(name)
            new[path] = self._getExtraPath(name)
            (copyFile if self.copyFiles else createAbsLink)(path, new[path])
        return new

    def _alignment(self, particles):
        choice = ALIGNMENTS[self.alignmentType.get()]
        if choice == "automatic":
            choice = "none" if not particles.has_pose else "projection" if particles.tilt.any() else "2D"
        return {"none": None, "2D": ALIGN_2D, "projection": ALIGN_PROJ}[choice]

    # -------------------------------------------------------------------------------------------- information
    def _validate(self):
        from xmipp_accel.io.particles import read_particles

        path = self.particlesFile.get("")
        if not os.path.isfile(path):
            return [f"{path}: expected a file, found none"]
        try:
            particles = read_particles(path)
            particles.require_uniform()
        except XmippAccelError as error:
            return [str(error)]
        if particles.sampling_rate <= 0 and self.samplingRate.get() <= 0:
            return ["The file holds no sampling rate: give it here."]
        return []

    def _summary(self):
        output = getattr(self, "outputParticles", None)
        if output is None:
            return []
        ctf = "with" if output.hasCTF() else "without"
        return [
            f"{output.getSize()} particles {ctf} CTF from {self.particlesFile.get()}.",
            f"Alignment: {output.getAlignment()}.",
        ]
