"""What the viewers share: figures in windows, and a way to every output."""

from __future__ import annotations

from pwem import Domain
from pwem.viewers import EmProtocolViewer
from pyworkflow.protocol import params
from pyworkflow.viewer import DESKTOP_TKINTER, View

import xmipp_accel


class FigureView(View):
    """A matplotlib figure, which gets a window of its own only when it is shown.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
    title : str
    """

    def __init__(self, figure, title):
        self.figure = figure
        self.title = title

    def show(self):
        import tkinter

        from matplotlib.backends.backend_tkagg import FigureCanvasTkAgg, NavigationToolbar2Tk

        window = tkinter.Toplevel()
        window.title(self.title)
        canvas = FigureCanvasTkAgg(self.figure, master=window)
        NavigationToolbar2Tk(canvas, window)
        canvas.get_tk_widget().pack(fill=tkinter.BOTH, expand=True)
        canvas.draw()


class AccelViewer(EmProtocolViewer):
    """Base of the viewers; a subclass lists its pictures as ``(name, label)`` in `PICTURES`.

    For each of them it has a method ``figure_<name>()`` that returns a `Figure`, or a `str` that says why there is
    none.
    """

    _environments = [DESKTOP_TKINTER]
    PICTURES: tuple = ()

    @classmethod
    def getPlugin(cls):
        return xmipp_accel._pluginInstance  # Scipion gives it to protocols only, but asks viewers for it, too

    def _defineParams(self, form):
        form.addSection(label="Results")
        self._define_choices(form)
        for name, label in self.PICTURES:
            form.addParam(name, params.LabelParam, label=label, help="Opens a window.")
        self._output_names = [name for name, _ in self.protocol.iterOutputAttributes()]
        if self._output_names:
            form.addParam(
                "output",
                params.EnumParam,
                choices=self._output_names,
                default=0,
                display=params.EnumParam.DISPLAY_COMBO,
                label="Open output",
                help="With Scipion's viewer for its type.",
            )

    def _define_choices(self, form):
        """Add what the pictures depend on, such as the number of a movie."""

    def _getVisualizeDict(self):
        actions = {name: self._open_picture for name, _ in self.PICTURES}
        return {**actions, "output": self._open_output} if self._output_names else actions

    def _open_picture(self, name):
        figure = getattr(self, f"figure_{name}")()
        if isinstance(figure, str):
            return [self.infoMessage(figure, dict(self.PICTURES)[name])]
        return [FigureView(figure, f"{self.protocol.getRunName()}: {dict(self.PICTURES)[name]}")]

    def _open_output(self, name=None):
        output = getattr(self.protocol, self._output_names[self.output.get()])
        viewers = Domain.findViewers(output.getClassName(), DESKTOP_TKINTER)
        if not viewers:
            return [self.infoMessage(f"No viewer for {output.getClassName()} is installed.", "Open output")]
        viewer = viewers[0](project=self.getProject(), protocol=self.protocol, parent=self.formWindow)
        viewer.visualize(output)
        return []
