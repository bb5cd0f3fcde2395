"""The output sets of the movie alignment, filled in batches and completed after an interruption."""

from __future__ import annotations

import os

import numpy as np
from pwem.objects import Image, MovieAlignment, SetOfMicrographs, SetOfMovies
from pwem.protocols.protocol_align_movies import (
    OUT_MICS,
    OUT_MICS_DW,
    OUT_MICS_EVEN,
    OUT_MICS_ODD,
    OUT_MOVIES,
)
from pyworkflow.object import CsvList, Float, String

from xmipp_accel.io.images import read_image
from xmipp_accel.report import figures

# Name of each output, its file in the run's folder, and the file of a result that it lists.
MICROGRAPHS = {
    "save_unweighted": [(OUT_MICS, "micrographs.sqlite", "unweighted")],
    "save_dose_weighted": [(OUT_MICS_DW, "micrographs_dose-weighted.sqlite", "dose_weighted")],
    "save_even_odd": [
        (OUT_MICS_EVEN, "micrographs_even.sqlite", "even"),
        (OUT_MICS_ODD, "micrographs_odd.sqlite", "odd"),
    ],
}


class MovieOutputs:
    """Registers results in a protocol's output sets.

    A movie is complete when every set has it: a run may have been killed between two of them.

    Parameters
    ----------
    protocol : XmippAccelProtMovieAlignment
    parameters : MovieAlignmentParameters
    """

    def __init__(self, protocol, parameters):
        self.protocol = protocol
        self.saves_movies = parameters.save_aligned_movie
        self.folder = protocol._getExtraPath()
        self.wanted = [
            output
            for field, outputs in MICROGRAPHS.items()
            for output in outputs
            if getattr(parameters, field)
            and (field != "save_dose_weighted" or protocol._createOutputWeightedMicrographs())
        ]
        self.files = {OUT_MOVIES: "movies.sqlite", **{name: file for name, file, _ in self.wanted}}
        self.ids = {name: self._read_ids(file) for name, file in self.files.items()}

    def _read_ids(self, file):
        path = self.protocol._getPath(file)
        if not (os.path.exists(path) and os.path.getsize(path)):
            return set()
        items = (SetOfMovies if file == "movies.sqlite" else SetOfMicrographs)(filename=path)
        try:
            return set(items.getIdSet())
        finally:
            items.close()

    def complete_ids(self):
        """Numbers of the movies that every output set has."""
        return set.intersection(*self.ids.values())

    def count(self):
        """Number of movies in the outputs."""
        return len(self.complete_ids())

    def register(self, finished, state):
        """Add movies to the sets that lack them.

        Parameters
        ----------
        finished : list of (Movie, MovieAlignmentResult)
        state : int
            `Set.STREAM_OPEN`, or `Set.STREAM_CLOSED` for the last call.
        """
        pictures = {movie.getObjId(): self._pictures(result) for movie, result in finished}
        for name, file, key in self.wanted:
            self._extend(name, file, SetOfMicrographs, finished, state, self._micrograph, key, pictures)
        self._extend(OUT_MOVIES, "movies.sqlite", SetOfMovies, finished, state, self._movie, "", pictures)

    def _extend(self, name, file, kind, finished, state, make, key, pictures):
        protocol = self.protocol
        # A movie of one frame has no even half.
        finished = [(movie, result) for movie, result in finished if not key or key in result.outputs]
        new = [movie for movie, _ in finished if movie.getObjId() not in self.ids[name]]
        if not new and not self.ids[name]:
            return  # an output without a single item would be a broken one
        is_new = not protocol.hasAttribute(name)
        items = protocol._loadOutputSet(kind, file, fixSampling=False)
        if new and (kind is SetOfMicrographs or self.saves_movies):
            items.setSamplingRate(finished[0][1].output_sampling_rate)
        if kind is SetOfMovies and self.saves_movies:
            items.setGain(None)
            items.setDark(None)
        for movie, result in finished:
            if movie.getObjId() not in self.ids[name]:
                item = make(movie, result, key)
                _attach(item, result, pictures[movie.getObjId()], self.folder)
                items.append(item)
                if kind is SetOfMovies:
                    items.setFramesRange(item.getFramesRange())
        protocol._updateOutputSet(name, items, state)
        if is_new:
            protocol._defineTransformRelation(protocol.inputMovies, items)
        self.ids[name].update(movie.getObjId() for movie in new)

    def _micrograph(self, movie, result, key):
        micrograph = SetOfMicrographs.ITEM_TYPE()
        micrograph.copyObjId(movie)
        micrograph.setMicName(movie.getMicName())
        micrograph.setFileName(os.path.join(self.folder, result.outputs[key]))
        return micrograph

    def _movie(self, movie, result, key):
        aligned = movie.clone()
        first, _, index = movie.getFramesRange()
        begin, end = result.first_frame + 1, result.first_frame + result.n_aligned
        shifts = result.shifts * (result.sampling_rate / movie.getSamplingRate())  # EER pixels may be divided
        if self.saves_movies:
            aligned.setFileName(os.path.join(self.folder, result.outputs["aligned_movie"]))
            summed = result.parameters
            begin, end = max(begin, summed["sum_first_frame"]), summed["sum_last_frame"] or end
            shifts = np.zeros((end - begin + 1, 2))
        begin, end = begin - index + first, end - index + first
        aligned.setFramesRange([begin, end, 1 if self.saves_movies else result.first_frame + 1])
        alignment = MovieAlignment(
            first=begin, last=end, xshifts=shifts[:, 1].tolist(), yshifts=shifts[:, 0].tolist()
        )
        alignment.setRoi([0, 0, 0, 0])
        aligned.setAlignment(alignment)
        return aligned

    def _pictures(self, result):
        """Draw what the viewers and monitors show of one movie; returns paths by attribute."""
        stem = os.path.join(self.folder, result.name)
        trace = f"{stem}_shifts.png"
        figures.movie_traces(result.shifts, result.name, result.shift_errors).savefig(trace, dpi=80)
        pictures = dict(plotGlobal=trace, plotCart=trace)
        average = next((result.outputs[k] for _, _, k in self.wanted if k in result.outputs), None)
        if self.protocol._doComputeMicThumbnail() and average:
            pictures["thumbnail"] = f"{stem}_thumbnail.png"
            image, _ = read_image(os.path.join(self.folder, average))
            figures.micrograph_image(image, result.name).savefig(pictures["thumbnail"], dpi=80)
        if "power_spectrum" in result.outputs:
            after, before = (
                os.path.join(self.folder, result.outputs[f"power_spectrum{which}"]) for which in ("", "_initial")
            )
            pictures.update(psdCorr=after, psdJpeg=f"{stem}_psd.png")
            spectra = figures.power_spectra(read_image(before)[0], read_image(after)[0], result.name)
            spectra.savefig(pictures["psdJpeg"], dpi=80)
        return pictures


def _attach(item, result, pictures, folder):
    """Give a movie or micrograph the attributes that monitors, other plugins and our viewers look for."""
    for attribute, path in pictures.items():
        setattr(item, attribute, Image(location=path))
    for attribute, column in (("_xmipp_ShiftX", 1), ("_xmipp_ShiftY", 0)):
        values = CsvList()
        values.set([f"{value:.4f}" for value in result.shifts[:, column]])
        setattr(item, attribute, values)
    for part in ("Total", "Early", "Late"):
        setattr(item, f"_rlnAccumMotion{part}", Float(result.quality[f"{part.lower()}_motion"]))
    item._xmipp_accel_status = String(result.status)
    item._xmipp_accel_result = String(os.path.join(folder, f"{result.name}.json"))
