"""Alignment of movies on one device."""

from __future__ import annotations

from xmipp_accel.backend import CPU


class MovieAlignmentExecutor:
    """Aligns movies one after the other; long-lived, bound to one device.

    Parameters
    ----------
    parameters : MovieAlignmentParameters
    device : Device
    gain, dark, defects : path, optional
        Gain reference, dark reference, and defect list or map. They are read when the first movie tells the
        frame's size.
    """

    def __init__(self, parameters, device=CPU, gain=None, dark=None, defects=None):
        self.parameters = parameters
        self.device = device
        self._gain, self._dark, self._defects = gain, dark, defects

    def process(self, movie_path, output_folder, name=None, progress=None):
        """Align one movie and write its outputs.

        Parameters
        ----------
        movie_path : path
        output_folder : path
            Made if it does not exist.
        name : str, optional
            Stem of the outputs; the movie's own stem otherwise.
        progress : callable, optional
            Called as ``progress(done, total)`` with numbers of steps.

        Returns
        -------
        MovieAlignmentResult
            Also written as ``<name>.json``, last of all files.

        Raises
        ------
        InputFileError, ParameterError, ProcessingError
        """
        raise NotImplementedError
