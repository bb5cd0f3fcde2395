"""Kernels give the same bits in the process that compiles them as in those that load them.

A function that another one calls exists twice: on its own, and within what its caller was compiled to, where LLVM
may have arranged its sums in another way. Which of both is called depends on what else a process has compiled.
Where sums may be arranged at all, callers must therefore take it in.
"""

import ast

import pytest

from xmipp_accel.backend.kernels import CUDA_FOLDER

SOURCES = sorted((CUDA_FOLDER.parent / "cpu").glob("*.py"))


def _options(function):
    """Names of the options of ``numba.njit``; None if it is no kernel."""
    for decorator in function.decorator_list:
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "numba.njit":
            return {keyword.arg for keyword in decorator.keywords}
    return None


@pytest.mark.parametrize("source", SOURCES, ids=[source.stem for source in SOURCES])
def test_what_a_kernel_calls_is_inlined_where_its_sums_may_be_arranged(source):
    functions = [node for node in ast.parse(source.read_text()).body if isinstance(node, ast.FunctionDef)]
    kernels = {function.name: _options(function) for function in functions}
    called = {
        node.func.id
        for function in functions
        if kernels[function.name] is not None
        for node in ast.walk(function)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    left = [
        name
        for name in called
        if "fastmath" in (kernels.get(name) or ()) and not {"forceinline", "inline"} & kernels[name]
    ]
    assert not left
