"""What the protocols on particles share: one step computes and writes, one registers."""

from __future__ import annotations

from pathlib import Path

from pyworkflow.protocol.constants import STEPS_SERIAL

from xmipp_accel.io.publish import read_json
from xmipp_accel.protocols import forms


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
