"""Networks written with other libraries' layers, given the convolutions of `conv`."""

import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, jaxpr_as_fun

from fairmix_jax.conv import conv, lowering

Function = TypeVar("Function", bound=Callable[..., Any])
_OWN_GRADIENT = ("custom_jvp_call", "custom_vjp_call")


def adopt(function: Function) -> Function:
    """Returns the function with every plain 2-d convolution in it computed by `conv.conv`.

    On CPU an attack in a loop is then as fast as its gradients are alone, and not three to
    six times slower; on GPU and TPU nothing changes. Any layout of images and kernels is
    understood; convolutions inside `jit`, `scan`, `cond` and `checkpoint` are found, those
    inside a function with its own derivative rule are left alone. Our own networks, and
    functions without convolutions, are returned in effect unchanged.

    Guarantees: the same results up to rounding. Gradients in reverse mode only.

    Edge cases: dilated and grouped convolutions, and those with a `precision`, stay as they
    are; on CPU a `UserWarning` says so.

    Args:
      function: any JAX function of arrays to arrays.
    """

    @functools.wraps(function, updated=())
    def adopted(*arguments: Any) -> Any:
        if lowering.value == "plain":
            return function(*arguments)
        program, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
        restated, left = restate(program)
        if left and jax.default_backend() == "cpu":
            warnings.warn(
                f"{left} convolutions of this network are dilated, grouped or have a precision; "
                "on CPU their gradients are several times slower in an attack than alone. "
                "Attack on GPU or TPU, or write them as undilated, ungrouped ones",
                stacklevel=2,
            )
        results = jaxpr_as_fun(restated)(*jax.tree.leaves(arguments))
        return jax.tree.unflatten(jax.tree.structure(shapes), results)

    return adopted  # ty: ignore[invalid-explicit-return]


def restate(program: ClosedJaxpr) -> tuple[ClosedJaxpr, int]:
    """Returns a program with `conv`'s convolutions, and how many could not become such."""
    is_left = [_is_left(equation) for equation in _convolutions(program.jaxpr)]
    left = sum(is_left)
    if left == len(is_left):
        return program, left
    run = functools.partial(_run, program.jaxpr, program.consts)
    return jax.make_jaxpr(run)(*(variable.aval for variable in program.jaxpr.invars)), left


def _run(jaxpr: Jaxpr, constants: Sequence[Any], *arguments: Any) -> list[Any]:
    """Evaluates a program, its convolutions by `conv`."""
    known = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*constants, *arguments), strict=True))

    def read(variable: Any) -> Any:
        return variable.val if isinstance(variable, Literal) else known[variable]

    for equation in jaxpr.eqns:
        inputs = [v for v in equation.invars if not isinstance(v, Literal)]
        if _is_convolution(equation) and not _is_left(equation):
            results = [_convolve(equation, *map(read, equation.invars))]
        else:
            results = _alone(jaxpr, equation, inputs)(*map(read, inputs))
        known.update(zip(equation.outvars, results, strict=True))
    return [read(variable) for variable in jaxpr.outvars]


def _alone(jaxpr: Jaxpr, equation: JaxprEqn, inputs: Sequence[Any]) -> Callable[..., Any]:
    """One operation of a program as a function of its inputs, programs in it restated."""
    if equation.primitive.name not in _OWN_GRADIENT:
        restated = {name: _inner(value) for name, value in equation.params.items()}
        equation = equation.replace(params=restated)
    names = jaxpr.debug_info.with_unknown_names()
    program = jaxpr.replace(
        constvars=[], invars=inputs, outvars=equation.outvars, eqns=[equation],
        debug_info=names,
    )  # fmt: skip
    return jaxpr_as_fun(ClosedJaxpr(program, ()))


def _inner(value: Any) -> Any:
    """The parameter of an operation, programs in it restated."""
    if isinstance(value, ClosedJaxpr):
        return restate(value)[0]
    if isinstance(value, Jaxpr):
        return restate(ClosedJaxpr(value, ()))[0].jaxpr
    return tuple(_inner(part) for part in value) if type(value) is tuple else value


def _convolutions(jaxpr: Jaxpr) -> Iterator[JaxprEqn]:
    """Those of a program and of the programs in it, but for functions with their own gradient."""
    for equation in jaxpr.eqns:
        if _is_convolution(equation):
            yield equation
        elif equation.primitive.name not in _OWN_GRADIENT:
            for value in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_program):
                if _is_program(value):
                    yield from _convolutions(getattr(value, "jaxpr", value))


def _is_program(value: Any) -> bool:
    return isinstance(value, ClosedJaxpr | Jaxpr)


def _is_convolution(equation: JaxprEqn) -> bool:
    return equation.primitive.name == "conv_general_dilated"


def _is_left(equation: JaxprEqn) -> bool:
    """Whether `conv` has no way to say this convolution."""
    given: Any = equation.params
    images, kernel = (cast(Any, variable.aval) for variable in equation.invars)
    if images.ndim != 4 or images.dtype != kernel.dtype:
        return True
    dilations = {*given["lhs_dilation"], *given["rhs_dilation"]}
    groups = {given["feature_group_count"], given["batch_group_count"]}
    sizes = [kernel.shape[axis] for axis in given["dimension_numbers"].rhs_spec[2:]]
    is_padded_alike = all(
        0 <= side < size
        for pair, size in zip(given["padding"], sizes, strict=True)
        for side in pair
    )
    return (
        dilations != {1}
        or groups != {1}
        or len(set(given["window_strides"])) > 1
        or given["precision"] is not None
        or given["preferred_element_type"] not in (None, images.dtype)
        or not is_padded_alike
    )


def _convolve(equation: JaxprEqn, images: Any, kernel: Any) -> jax.Array:
    given, axes = equation.params, equation.params["dimension_numbers"]
    batch, feature, *places = axes.lhs_spec
    out_feature, in_feature, *taps = axes.rhs_spec
    result = conv(
        jnp.transpose(images, (batch, *places, feature)),
        jnp.transpose(kernel, (*taps, in_feature, out_feature)),
        stride=given["window_strides"][0],
        padding=tuple(given["padding"]),
    )
    batch, feature, *places = axes.out_spec
    return jnp.transpose(result, np.argsort((batch, *places, feature)).tolist())
