"""One self-contained HTML page of tables and figures."""

from __future__ import annotations

import base64
import dataclasses
import io
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from xmipp_accel.io.publish import atomic_path


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One line of the table of measured against true.

    Attributes
    ----------
    name : str
        What was measured, with its unit.
    value : float
    target : float
    at_most : bool
        Whether the target is an upper limit; else it is a lower one.
    """

    name: str
    value: float
    target: float
    at_most: bool

    @property
    def met(self) -> bool:
        """Whether the value reaches the target; NaN never does."""
        return self.value <= self.target if self.at_most else self.value >= self.target

    def cells(self) -> tuple[str, str, str, str]:
        """Name, value, target and verdict as text."""
        relation = "<=" if self.at_most else ">="
        return self.name, f"{self.value:.3f}", f"{relation} {self.target:g}", "ok" if self.met else "MISSED"


def text_table(measurements) -> str:
    """Return the measurements as lines of text in aligned columns."""
    rows = [("", "measured", "target", ""), *(measurement.cells() for measurement in measurements)]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    return "\n".join(f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}  {d}".rstrip() for a, b, c, d in rows)


def write_page(path, title, facts, measurements, sections) -> None:
    """Write the page.

    Parameters
    ----------
    path : path
    title : str
    facts : list of (str, str)
        Such as the device and the time taken.
    measurements : list of Measurement
    sections : list of (str, list of Figure)
        Heading and figures of each section.
    """
    import jinja2

    template = jinja2.Template(Path(__file__).with_name("page.html").read_text(), autoescape=True)
    html = template.render(
        title=title,
        facts=facts,
        measurements=measurements,
        sections=[(heading, [_embedded(figure) for figure in figures]) for heading, figures in sections],
    )
    with atomic_path(path) as temporary:
        temporary.write_text(html, encoding="utf-8")


def figure_png(figure: Figure, dpi=90) -> bytes:
    """Return the figure as the bytes of a PNG file."""
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def _embedded(figure):
    return "data:image/png;base64," + base64.b64encode(figure_png(figure)).decode("ascii")
