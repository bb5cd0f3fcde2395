"""What the protocols on particles share: one step computes and writes, one registers."""

from __future__ import annotations

import time
from pathlib import Path

from pwem.objects import Class2D, SetOfParticles
from pyworkflow.protocol.constants import STEPS_SERIAL

from xmipp_accel.io.publish import read_json
from xmipp_accel.protocols import forms

CHECK_SECONDS = 3  # between looks at an input that is still growing


def input_on_disk(protocol) -> SetOfParticles:
    """The input particles as they are on disk now, which may be more than Scipion knows of."""
    images = SetOfParticles(filename=protocol.inputParticles.get().getFileName())
    images.loadAllProperties()
    return images


def progress_of_input(protocol) -> tuple[int, bool]:
    """Particles that have arrived, and whether no more will come."""
    images = input_on_disk(protocol)
    try:
        closed = images.isStreamClosed()  # before they are counted: what comes later is seen next time
        return images.getSize(), closed
    finally:
        images.close()


def arrivals(protocol, least):
    """The input particles, again and again while they arrive, and whether they are complete.

    Yields
    ------
    SetOfParticles
        At least `least` particles and a fifth more than before, or all of them.
    bool
    """
    images, seen = protocol.inputParticles.get(), 0
    if isinstance(images, Class2D):  # a part of a set, which has no state of its own
        yield images, True
        return
    closed = False
    while not closed:
        size, closed = progress_of_input(protocol)
        if closed or size >= max(least, 1.2 * seen):
            images, seen = input_on_disk(protocol), size
            yield images, closed
            images.close()
        else:
            time.sleep(CHECK_SECONDS)


class ParticleExecution:
    """The steps of a protocol that runs one executor, on one device or on all that are chosen.

    A subclass gives ``_parameters()``; ``_compute(values, *devices)``, which runs the executor and returns its
    result; ``createOutputStep()``; and the name of the JSON file that the executor writes last.
    """

    stepsExecutionMode = STEPS_SERIAL
    _resultFile: str
    _mostDevices = 1  # None for all of them

    def _insertAllSteps(self):
        self._insertFunctionStep(self.computeStep, self._parameters().to_dict(), needsGPU=True)
        self._insertFunctionStep(self.createOutputStep, needsGPU=False)

    def computeStep(self, values):
        devices = forms.resolve_devices(self, most=self._mostDevices)
        self.info(self._compute(values, *devices).summary())

    def result(self):
        """What the executor reports, as a dictionary."""
        return read_json(Path(self._getExtraPath(self._resultFile)))
