"""Forms made from the parameter dataclasses, so that help, units, limits and defaults are written once."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from pyworkflow.protocol import params

from xmipp_accel import Plugin
from xmipp_accel.backend.threads import cpu_count
from xmipp_accel.errors import ParameterError
from xmipp_accel.io.publish import read_json, write_json
from xmipp_accel.parameters import deciding

# Where XMIPP_ACCEL_DEVICE is set to another value, it overrules every form.
DEVICE_VARIABLE = "XMIPP_ACCEL_DEVICE"


@dataclasses.dataclass(frozen=True)
class Entry:
    """One line of a form that sets one field of a parameter dataclass.

    Attributes
    ----------
    name : str
        Of the Scipion parameter; Xmipp's where the meaning is the same.
    field : str
        Of the dataclass.
    label : str
    condition : str
        In Scipion's syntax, over other parameters; while false, the field keeps its default.
    """

    name: str
    field: str
    label: str
    condition: str = ""


def add_entries(form, parameters_class, entries):
    """Add one Scipion parameter for each entry to a form, section, group or line."""
    fields = {field.name: field for field in dataclasses.fields(parameters_class)}
    for entry in entries:
        field = fields[entry.field]
        details = field.metadata
        options = dict(
            label=entry.label + (f" ({details['unit']})" if details["unit"] else ""),
            help=details["help"].rstrip(".") + ".",
            expertLevel=params.LEVEL_ADVANCED if details["advanced"] else params.LEVEL_NORMAL,
        )
        if entry.condition:
            options["condition"] = entry.condition
        form.addParam(entry.name, *_kind(field, options), **options)


def _kind(field, options):
    """Scipion class for a field; puts the default and what else the class needs into `options`."""
    choices, default = field.metadata["choices"], field.default
    if choices:
        options.update(
            choices=[str(choice).replace("_", " ") for choice in choices],
            default=list(choices).index(default),
            display=params.EnumParam.DISPLAY_COMBO,
        )
        return (params.EnumParam,)
    options["default"] = default
    kinds = {bool: params.BooleanParam, int: params.IntParam, float: params.FloatParam, str: params.StringParam}
    return (kinds[type(default)],)


def collect(protocol, parameters_class, entries) -> dict[str, Any]:
    """Values of the fields that a protocol's form sets, by field name."""
    fields = {field.name: field for field in dataclasses.fields(parameters_class)}
    values = {}
    for entry in entries:
        field = fields[entry.field]
        if entry.condition and not protocol.evalParamCondition(entry.name):
            continue
        value = getattr(protocol, entry.name).get()
        if field.metadata["choices"]:
            value = field.metadata["choices"][value]
        values[entry.field] = type(field.default)(value)
    return values


def add_hardware(form):
    """Add Scipion's parameters that choose between GPUs and CPU, and the cores that a batch queue is asked for."""
    form.addHidden(
        params.USE_GPU,
        params.BooleanParam,
        default=True,
        label="Use GPU for execution",
        help="Without a usable GPU, one line of the log says why, and the CPU is used.",
    )
    form.addHidden(
        params.GPU_LIST,
        params.StringParam,
        default="0",
        label="Choose GPU IDs",
        help="Numbers from 0, separated by spaces or commas, as nvidia-smi lists them.",
    )
    form.addParallelSection(
        threads=8,
        mpi=0,
        binThreadsHelp="Cores that reading and, without a GPU, computing may use; "
        "never more than the machine or the queue grants.",
    )


def requested_devices(protocol) -> list[str]:
    """Devices that the form asks for, such as ``["cuda:0", "cuda:1"]`` or ``["cpu"]``."""
    forced = Plugin.getVar(DEVICE_VARIABLE, "auto")
    if forced != "auto":
        return [forced]
    if not getattr(protocol, params.USE_GPU).get():
        return ["cpu"]
    executor = getattr(protocol, "_stepsExecutor", None)
    granted = executor.getGpuList() if executor is not None else None  # a queue renumbers them
    numbers = granted or protocol.getGpuList() or [0]
    return [f"cuda:{int(number)}" for number in numbers]


def resolve_devices(protocol, most=None):
    """Devices to compute on, at most `most`, and limit this process to the cores that the form grants.

    Without a usable GPU this is the CPU, once, and the protocol's log says why.
    """
    from xmipp_accel.backend import CPU
    from xmipp_accel.backend.devices import cuda_status, resolve_device

    cores = limit_cores(protocol.numberOfThreads.get())
    requests = requested_devices(protocol)
    if requests != ["cpu"] and cuda_status()[0] == 0:
        protocol.info(f"Using the CPU, {cores} cores: {cuda_status()[1]}")
        return [CPU]
    devices = list(dict.fromkeys(resolve_device(request) for request in requests))[:most]
    protocol.info(f"Using {', '.join(map(str, devices))}, {cores} cores")
    return devices


def limit_cores(count) -> int:
    """Let this process use at most `count` of the cores it may use now; returns how many that are."""
    if hasattr(os, "sched_setaffinity"):  # Linux only
        allowed = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, allowed[: max(1, count)])
    return cpu_count()


def progress_log(protocol, what):
    """A ``progress(done, total)`` that writes a line to the protocol's log at every tenth of the way."""
    shown = [-1]

    def progress(done, total):
        tenth = 10 * done // max(1, total)
        if tenth > shown[0]:
            shown[0] = tenth
            protocol.info(f"{what}: {done} of {total}")

    return progress


def refuse_changes(protocol, parameters):
    """Refuse to mix results of two sets of parameters in one output when a run is continued."""
    path = Path(protocol._getExtraPath("parameters.json"))
    known = read_json(path) if path.exists() and path.stat().st_size else parameters.to_dict()
    if deciding(known) != deciding(parameters.to_dict()):
        raise ParameterError("the parameters changed since this run began: restart it instead of continuing")
    write_json(path, parameters.to_dict())


def parameter_errors(protocol) -> list[str]:
    """What is wrong with the values of a form, for ``_validate``."""
    errors = []
    try:
        protocol._parameters()
    except ParameterError as error:
        errors.append(str(error))
    if protocol.useQueueForSteps():
        errors.append("Submit the whole protocol to the queue: its steps compute by themselves.")
    return errors
