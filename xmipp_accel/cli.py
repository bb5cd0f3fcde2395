"""The command ``xmipp-accel``: each executor, the demo, and a look at the machine."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from xmipp_accel import __version__
from xmipp_accel.backend import resolve_device, resolve_devices
from xmipp_accel.errors import XmippAccelError
from xmipp_accel.initial_volume.parameters import ReconstructSignificantParameters
from xmipp_accel.movie_alignment.parameters import MovieAlignmentParameters
from xmipp_accel.particle_alignment.classify2d_parameters import Classify2DParameters
from xmipp_accel.particle_alignment.parameters import AlignSignificantParameters
from xmipp_accel.reconstruction.parameters import ReconstructFourierParameters

SEVERAL_DEVICES = ", or several such as cuda:0,cuda:1"


def run():
    """Run the command line of this process, and end it."""
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # The system takes the memory of a GPU and what is page-locked for it back in half the time of CuPy.
    os._exit(status)


def main(arguments=None) -> int:
    """Run one subcommand and return the exit status: 0, or 1 after an error that is told in one line."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    logging.basicConfig(format="%(message)s", level=logging.INFO if options.verbose else logging.WARNING)
    try:
        return options.run(options)
    except XmippAccelError as error:
        print(f"xmipp-accel {options.command}: {error}", file=sys.stderr)
        return 1


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all subcommands."""
    parser = argparse.ArgumentParser(prog="xmipp-accel", description=__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    _add_movies(commands)
    _add_tracks(commands)
    _add_align(commands)
    _add_classify(commands)
    _add_initial_volume(commands)
    _add_reconstruct(commands)
    _add_merge_states(commands)
    _add_demo(commands)
    _add_tune(commands)
    _add(commands, "doctor", run_doctor, "Show what this machine has and which device would be used.")
    return parser


def _add(commands, name, run, text):
    parser = commands.add_parser(name, help=text, description=text)
    parser.set_defaults(run=run)
    parser.add_argument("--verbose", action="store_true", help="tell what is being done")
    return parser


def _add_common(parser, parameters, more_devices=""):
    parser.add_argument("--output", required=True, type=Path, help="folder for the results, made if absent")
    _add_device(parser, more_devices)
    parameters.add_arguments(parser.add_argument_group("parameters"))


def _add_device(parser, more=""):
    parser.add_argument(
        "--device", default="auto", help=f"auto, cpu, cuda or cuda:N{more} (default: auto, a GPU if there is one)"
    )


class _Preset(argparse.Action):
    """An option that sets several others; those after it on the command line overrule it."""

    def __init__(self, option_strings, dest, presets, **options):
        super().__init__(option_strings, argparse.SUPPRESS, choices=tuple(presets), **options)
        self._presets = presets

    def __call__(self, parser, namespace, values, option_string=None):
        vars(namespace).update(self._presets[values])


def _add_compat(parser, presets):
    """Add ``--compat``: each of its values names an original program, and the parameters that reproduce it."""
    told = "; ".join(
        f"{name}: "
        + " ".join(f"--{field.replace('_', '-')} {value}" for field, value in preset.items()).replace("%", "%%")
        for name, preset in presets.items()
    )
    text = f"compute as an original program does, for comparison ({told}; options after it overrule these)"
    parser.add_argument("--compat", action=_Preset, presets=presets, help=text)


def _add_movies(commands):
    parser = _add(commands, "movies", run_movies, "Align movies and write corrected micrographs.")
    parser.add_argument("movies", nargs="+", type=Path, help="movies in MRC, TIFF or EER")
    parser.add_argument("--gain", type=Path, help="gain reference in MRC or TIFF")
    parser.add_argument("--dark", type=Path, help="dark reference in MRC or TIFF")
    parser.add_argument(
        "--defects",
        type=Path,
        help="text file of 'x y width height' lines, px from 0 and rows from the bottom one (a TIFF movie's last),"
        " or a map of 0 and 1",
    )
    parser.add_argument(
        "--apply-alignment",
        type=Path,
        metavar="FOLDER",
        help="apply the alignments of an earlier run, NAME.json in this folder, instead of measuring",
    )
    parser.add_argument(
        "--frame-groups",
        type=Path,
        help="text file of 'group_size integration_size [dose]' lines, as MotionCor's -FmIntFile: the next"
        " group_size frames (of an EER file, of the camera) are summed integration_size at a time",
    )
    _add_common(parser, MovieAlignmentParameters)


def _add_tracks(commands):
    text = "Follow particles through the frames of an aligned movie."
    parser = _add(commands, "tracks", run_tracks, text)
    parser.add_argument("result", type=Path, help="JSON file of the movie's alignment")
    parser.add_argument("coordinates", type=Path, help="positions in its micrograph in .star, .xmd or .pos")
    parser.add_argument("--output", required=True, type=Path, help="STAR file, a row for each particle and frame")


def _add_align(commands):
    parser = _add(commands, "align", run_align, "Align particles to references by an exhaustive search.")
    parser.add_argument("particles", type=Path, help="particles in .star or .xmd")
    parser.add_argument("references", type=Path, help="volume, gallery (.doc, .xmd, .star) or 2D averages (.mrcs)")
    _add_common(parser, AlignSignificantParameters, SEVERAL_DEVICES)
    _add_compat(parser, {"xmipp": dict(algorithm="xmipp", max_shift=25.0, max_shift_unit="%")})


def _add_classify(commands):
    parser = _add(commands, "classify", run_classify, "Sort particles into 2D classes.")
    parser.add_argument("particles", type=Path, help="particles in .star or .xmd")
    parser.add_argument("--initial-references", type=Path, help="stack of averages to start from")
    parser.add_argument(
        "--continue",
        dest="state",
        type=Path,
        metavar="STATE",
        help="classes_state.npz of an earlier run: finish it if it was interrupted, else let its classes learn"
        " from these particles, which are new",
    )
    _add_common(parser, Classify2DParameters, SEVERAL_DEVICES)


def _add_initial_volume(commands):
    text = "Make an initial volume of class averages or particles without poses."
    parser = _add(commands, "initial-volume", run_initial_volume, text)
    parser.add_argument("particles", type=Path, help="class averages or particles in .star or .xmd")
    parser.add_argument("--reference", type=Path, help="volume to start from instead of random angles")
    _add_common(parser, ReconstructSignificantParameters)


def _add_reconstruct(commands):
    parser = _add(commands, "reconstruct", run_reconstruct, "Reconstruct a volume from particles with poses.")
    parser.add_argument("particles", type=Path, help="particles with angles and shifts in .star or .xmd")
    _add_name(parser)
    parser.add_argument(
        "--state",
        type=Path,
        metavar="FOLDER",
        help="save the sums in this folder, and begin with those that it holds: only particles that are new, gone"
        " or changed are read",
    )
    _add_common(parser, ReconstructFourierParameters)
    _add_compat(parser, {"xmipp": dict(method="xmipp"), "xmipp-fast": dict(method="xmipp_fast")})


def _add_merge_states(commands):
    text = "Join states of reconstructions of disjoint sets of particles, and make the map of them all."
    parser = _add(commands, "merge-states", run_merge_states, text)
    parser.add_argument("states", nargs="+", type=Path, help="folders that reconstruct --state made")
    parser.add_argument("--state", required=True, type=Path, metavar="FOLDER", help="folder for the joint state")
    parser.add_argument("--output", required=True, type=Path, help="folder for the results, made if absent")
    _add_name(parser)
    _add_device(parser, SEVERAL_DEVICES)


def _add_name(parser):
    parser.add_argument("--name", default="volume", help="stem of the volumes' names (default: volume)")


def _add_demo(commands):
    text = "Simulate data with known truth, process it, and compare."
    parser = _add(commands, "demo", run_demo, text)
    parser.add_argument("--output", type=Path, default=Path("demo-output"), help="folder for everything it makes")
    parser.add_argument("--engine-only", action="store_true", help="run the executors without Scipion")
    parser.add_argument("--seed", type=int, default=1, help="seed of the simulated data (default: 1)")
    _add_device(parser)


def _add_tune(commands):
    text = "Measure which ways of inserting images and which FFT sizes are the fastest, for later reconstructions."
    parser = _add(commands, "tune", run_tune, text)
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--box", type=int, help="edge of the images, px")
    task.add_argument("--show", action="store_true", help="only show what was measured before")
    parser.add_argument("--symmetry", default="c1", help="point group of the maps (default: c1)")
    _add_device(parser)


def run_movies(options) -> int:
    """Align each movie; a movie that fails is reported and the others go on."""
    from xmipp_accel.engine.inline import align_movies

    outcomes = align_movies(
        options.movies,
        options.output,
        MovieAlignmentParameters.from_arguments(options),
        resolve_device(options.device),
        gain=options.gain,
        dark=options.dark,
        defects=options.defects,
        frame_groups=options.frame_groups,
        report=_show_outcome,
        alignments=options.apply_alignment,
    )
    failed = sum(outcome.error is not None for outcome in outcomes)
    print(f"{len(outcomes) - failed} of {len(outcomes)} movies aligned; results in {options.output}")
    return int(failed > 0)


def _show_outcome(outcome):
    if outcome.error is not None:
        print(f"{outcome.movie}: FAILED: {outcome.error}", file=sys.stderr)
    else:
        print(f"{outcome.movie}: {outcome.result.summary()}")


def run_tracks(options) -> int:
    """Write where particles lie in each frame."""
    from xmipp_accel.movie_alignment.result import MovieAlignmentResult
    from xmipp_accel.movie_alignment.tracks import read_particles_of, write_tracks

    result = MovieAlignmentResult.from_json(str(options.result))
    positions, particles = read_particles_of(result, options.coordinates)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_tracks(options.output, result, positions, particles)
    print(f"{len(positions)} particles in {result.n_aligned} frames, {options.output}")
    return 0


@contextlib.contextmanager
def _starting(options):
    """Future of the devices, which start in the meantime: a GPU takes half a second."""
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(resolve_devices, options.device)


def run_align(options) -> int:
    """Align particles to references."""
    parameters = AlignSignificantParameters.from_arguments(options)
    with _starting(options) as devices:
        from xmipp_accel.io.particles import read_particles
        from xmipp_accel.particle_alignment.executor import AlignSignificantExecutor

        particles = read_particles(options.particles)
    executor = AlignSignificantExecutor(parameters, *devices.result())
    with _Progress("particles") as progress:
        result = executor.align(particles, options.references, options.output, progress=progress)
    print(result.summary())
    return 0


def run_classify(options) -> int:
    """Sort particles into classes."""
    parameters = Classify2DParameters.from_arguments(options)
    with _starting(options) as devices:
        from xmipp_accel.io.particles import read_particles
        from xmipp_accel.particle_alignment.classify2d_executor import Classify2DExecutor

        particles = read_particles(options.particles)
    executor = Classify2DExecutor(parameters, *devices.result())
    with _Progress("iterations") as progress:
        result = executor.classify(
            particles,
            options.output,
            initial_references=options.initial_references,
            progress=progress,
            state=options.state,
        )
    print(result.summary())
    return 0


def run_initial_volume(options) -> int:
    """Make an initial volume."""
    from xmipp_accel.initial_volume.executor import ReconstructSignificantExecutor
    from xmipp_accel.io.particles import read_particles

    executor = ReconstructSignificantExecutor(
        ReconstructSignificantParameters.from_arguments(options), resolve_device(options.device)
    )
    particles = read_particles(options.particles)
    with _Progress("iterations") as progress:
        result = executor.reconstruct(particles, options.output, options.reference, progress)
    print(result.summary())
    return 0


def run_reconstruct(options) -> int:
    """Reconstruct a volume."""
    parameters = ReconstructFourierParameters.from_arguments(options)
    with _starting(options) as devices:
        from xmipp_accel.io.particles import read_particles
        from xmipp_accel.reconstruction.executor import ReconstructFourierExecutor

        particles = read_particles(options.particles)
    executor = ReconstructFourierExecutor(parameters, *devices.result())
    with _Progress("particles") as progress:
        result = executor.reconstruct(
            particles, options.output, name=options.name, progress=progress, state=options.state
        )
    print(result.summary())
    return 0


def run_merge_states(options) -> int:
    """Join states."""
    from xmipp_accel.reconstruction.executor import merge_states

    devices = resolve_devices(options.device)
    print(merge_states(options.states, options.state, options.output, options.name, devices).summary())
    return 0


def run_demo(options) -> int:
    """Run the demo with or without Scipion."""
    if options.engine_only:
        from xmipp_accel.demo import run_engines as run
    else:
        from xmipp_accel.demo import run_in_scipion as run
    return run(options.output, options.device, options.seed)


def run_tune(options) -> int:
    """Measure, or print what was measured."""
    from xmipp_accel.reconstruction.tune import describe_known, tune

    if options.show:
        lines = describe_known()
    else:
        lines = tune(resolve_device(options.device), options.box, options.symmetry)
    for line in lines:
        print(line)
    return 0


def run_doctor(options) -> int:
    """Print what the machine has."""
    from xmipp_accel.backend.inventory import describe_machine

    for name, value in describe_machine():
        print(f"{name:24}{value}")
    return 0


class _Progress:
    """A progress bar that appears with the first report, on terminals only."""

    def __init__(self, unit):
        self._unit, self._bar = unit, None

    def __enter__(self):
        return self._update

    def _update(self, done, total):
        from tqdm import tqdm

        if self._bar is None:
            self._bar = tqdm(total=total, unit=f" {self._unit}", disable=None)
        self._bar.update(done - self._bar.n)

    def __exit__(self, *_):
        if self._bar is not None:
            self._bar.close()


if __name__ == "__main__":
    run()
