"""The plugin as Scipion sees it: its name, its variables and its environment."""

from __future__ import annotations

import os

import pwem
import pyworkflow
from pyworkflow import VarTypes
from pyworkflow.utils import Environ

DEVICE_VARIABLE = "XMIPP_ACCEL_DEVICE"


class Plugin(pwem.Plugin):
    """Accelerated movie alignment, particle alignment and reconstruction."""

    _url = "https://scipion-em.github.io/docs"
    _processingField = [pyworkflow.SPA]
    _pathVars = []  # whatever stands here is checked on the disk before every single run

    @classmethod
    def _defineVariables(cls):
        cls._defineVar(
            DEVICE_VARIABLE,
            "auto",
            description="auto: each form chooses GPUs or CPU. cpu: no protocol uses a GPU. cuda:N: all use GPU N.",
            var_type=VarTypes.STRING,
        )

    @classmethod
    def getEnviron(cls):
        return Environ(os.environ)

    @classmethod
    def defineBinaries(cls, env):
        """Nothing is built: Python packages bring all that is needed, the extras cuda11 to cuda13 bring CuPy."""

    @classmethod
    def validateInstallation(cls):
        """Check the device variable only; a GPU is looked for where the protocol runs, which may be elsewhere."""
        request = cls.getVar(DEVICE_VARIABLE)
        if request not in ("auto", "cpu", "cuda") and not request.startswith("cuda:"):
            return [f"{DEVICE_VARIABLE}: expected auto, cpu or cuda:N, found {request!r}"]
        return []


# pyworkflow takes the plugin's name and folder from the module of its class.
Plugin.__module__ = "xmipp_accel"
