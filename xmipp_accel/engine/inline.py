"""Runs executors on many items in this process; one bad item never stops the others."""

from __future__ import annotations

import concurrent.futures
import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Callable

from xmipp_accel.backend.devices import Device
from xmipp_accel.errors import XmippAccelError
from xmipp_accel.movie_alignment.executor import MovieAlignmentExecutor
from xmipp_accel.movie_alignment.parameters import MovieAlignmentParameters


@dataclasses.dataclass(frozen=True)
class MovieOutcome:
    """What became of one movie: a result, or the reason why there is none.

    Attributes
    ----------
    movie : pathlib.Path
    result : MovieAlignmentResult or None
    error : str or None
    """

    movie: Path
    result: Any = None
    error: str | None = None


def align_movies(
    movies: Iterable[Path],
    output_folder: str | Path,
    parameters: MovieAlignmentParameters,
    device: Device,
    gain=None,
    dark=None,
    defects=None,
    frame_groups=None,
    report: Callable[[MovieOutcome], None] = lambda outcome: None,
    alignments: Path | None = None,
) -> list[MovieOutcome]:
    """Align movies on one device; the next one is read, and the last one written, while one is computed.

    Parameters
    ----------
    movies : iterable of path
        Two movies of the same file name get the numbers 2, 3, ... behind their names in the output folder.
    output_folder : path
    parameters : MovieAlignmentParameters
    device : Device
    gain, dark, defects, frame_groups : path, optional
        As for :class:`MovieAlignmentExecutor`.
    report : callable
        Called with each outcome, in the order of `movies`.
    alignments : path, optional
        Folder with the results of an earlier run; the motion of each movie is taken from its JSON file there.

    Returns
    -------
    list of MovieOutcome, in the order of `movies`
    """
    executor = MovieAlignmentExecutor(parameters, device, gain, dark, defects, frame_groups)

    def process(movie, name):
        alignment = alignments and alignments / f"{name}.json"
        try:
            return MovieOutcome(movie, executor.process(movie, output_folder, name, alignment=alignment))
        except XmippAccelError as error:
            return MovieOutcome(movie, error=str(error))

    outcomes: list[MovieOutcome] = []
    used: set[str] = set()
    with concurrent.futures.ThreadPoolExecutor(executor.IN_FLIGHT) as pool:
        jobs = [pool.submit(process, movie, _unique_name(movie.stem, used)) for movie in map(Path, movies)]
        try:
            for job in jobs:
                outcomes.append(job.result())
                report(outcomes[-1])
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return outcomes


def _unique_name(stem: str, used: set[str]) -> str:
    name, number = stem, 1
    while name in used:
        number += 1
        name = f"{stem}_{number}"
    used.add(name)
    return name
