"""The errors a user can meet. Each message says which file or parameter, what was expected and what was found."""


class XmippAccelError(Exception):
    """Base of every error that this package raises on purpose."""


class InputFileError(XmippAccelError):
    """A file cannot be used.

    Parameters
    ----------
    path : str or os.PathLike
        The file.
    expected, found : str
        What a usable file would hold, and what this one holds.
    """

    def __init__(self, path, expected, found):
        self.path = str(path)
        self.expected = str(expected)
        self.found = str(found)
        super().__init__(f"{self.path}: expected {self.expected}, found {self.found}")

    def __reduce__(self):
        return type(self), (self.path, self.expected, self.found)


class ParameterError(XmippAccelError):
    """A parameter has a value outside its range, or contradicts another one."""


class DeviceError(XmippAccelError):
    """The requested device does not exist on this machine."""


class ProcessingError(XmippAccelError):
    """Valid input for which no trustworthy result could be computed; the message gives the reason."""
