"""Accelerated cryo-EM processing for Scipion: movie alignment, particle alignment and reconstruction.

Importing this package loads neither Scipion nor CuPy, so that the executors run where neither is installed.
"""

import os

__version__ = "0.1.0"

_logo = "icon.png"
_references = ["Strelak2020", "Strelak2019", "Strelak2022"]

# In a bare checkout `protocols/` and `viewers/` stand beside this package; an installed one holds them inside.
_HERE = os.path.dirname(os.path.abspath(__file__))
_ROOT = os.path.dirname(_HERE)
if not os.path.isdir(os.path.join(_HERE, "protocols")) and os.path.isfile(
    os.path.join(_ROOT, "protocols", "__init__.py")
):
    __path__.append(_ROOT)


def __getattr__(name):
    if name == "Plugin":
        from xmipp_accel.plugin import Plugin

        return Plugin
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
