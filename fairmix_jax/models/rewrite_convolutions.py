"""Networks written with other libraries' layers, given the convolutions of `conv`."""

import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, jaxpr_as_fun

from fairmix_jax.models.convolution import conv, lowering

Function = TypeVar("Function", bound=Callable[..., Any])
_CONVOLUTION = "conv_general_dilated"
_OWN_GRADIENT = ("custom_jvp_call", "custom_vjp_call")


def rewrite_convolutions(function: Function) -> Function:
    """Returns a JAX function of arrays with every plain 2-d convolution in it computed by `conv`.

    On CPU an attack in a loop is then as fast as its gradients are alone, and not three to
    six times slower; on GPU and TPU nothing changes. Any layout of images and kernels is
    understood; convolutions inside `jit`, `scan`, `cond` and `checkpoint` are found, those
    inside a function with its own derivative rule are left alone, as those of our networks are.

    Guarantees: the same results up to rounding. Gradients in reverse mode only.

    Edge cases: dilated and grouped convolutions, and those with a `precision` of their own, stay
    as they are; on CPU a `UserWarning` says so.
    """

    @functools.wraps(function, updated=())
    def rewritten(*arguments: Any) -> Any:
        if lowering.value == "plain":
            return function(*arguments)
        anew = jax.make_jaxpr(lambda *given: function(*given), return_shape=True)
        program, shapes = anew(*arguments)  # `function` itself JAX takes for what it was at first
        left = sum(not _fits(equation) for equation in _convolutions(program.jaxpr))
        if left and jax.default_backend() == "cpu":
            warnings.warn(
                f"{left} convolutions of this network are dilated, grouped or have a precision; "
                "on CPU their gradients are several times slower in an attack than alone. "
                "Attack on GPU or TPU, or write them as undilated, ungrouped ones",
                stacklevel=2,
            )
        results = jaxpr_as_fun(rewrite_program(program))(*jax.tree.leaves(arguments))
        return jax.tree.unflatten(jax.tree.structure(shapes), results)

    return rewritten  # ty: ignore[invalid-explicit-return]


def rewrite_program(program: ClosedJaxpr) -> ClosedJaxpr:
    """Returns a program with `conv`'s convolutions.

    A program in which none could become such is returned itself, and never evaluated: it may have
    been compiled already, or have operations that mean something inside of another one only.
    """
    if not any(map(_fits, _convolutions(program.jaxpr))):
        return program
    return jax.make_jaxpr(functools.partial(_evaluate, program))(*program.in_avals)


def _convolutions(jaxpr: Jaxpr) -> Iterator[JaxprEqn]:
    """Those of a program and of the programs in it, but for functions with their own gradient."""

    def is_program(value: Any) -> bool:
        return isinstance(value, ClosedJaxpr | Jaxpr)

    for equation in jaxpr.eqns:
        if equation.primitive.name == _CONVOLUTION:
            yield equation
        elif equation.primitive.name not in _OWN_GRADIENT:
            for value in jax.tree.leaves(list(equation.params.values()), is_leaf=is_program):
                if is_program(value):
                    yield from _convolutions(getattr(value, "jaxpr", value))


def _evaluate(program: ClosedJaxpr, *arguments: Any) -> list[Any]:
    """Evaluates a program, its convolutions by `conv`."""
    jaxpr, values = program.jaxpr, (*program.consts, *arguments)
    known = dict(zip((*jaxpr.constvars, *jaxpr.invars), values, strict=True))

    def read(variable: Any) -> Any:
        return variable.val if isinstance(variable, Literal) else known[variable]

    for equation in jaxpr.eqns:
        inputs = [v for v in equation.invars if not isinstance(v, Literal)]
        if equation.primitive.name == _CONVOLUTION and _fits(equation):
            results = [_convolve(equation, *map(read, equation.invars))]
        else:
            results = _alone(jaxpr, equation, inputs)(*map(read, inputs))
        known.update(zip(equation.outvars, results, strict=True))
    return [read(variable) for variable in jaxpr.outvars]


def _alone(jaxpr: Jaxpr, equation: JaxprEqn, inputs: list) -> Callable[..., Any]:
    """One operation of a program as a function of its inputs, programs in it rewritten."""
    if equation.primitive.name not in _OWN_GRADIENT:
        params = {name: _parameter(value) for name, value in equation.params.items()}
        equation = equation.replace(params=params)
    parts = dict(constvars=[], invars=inputs, outvars=equation.outvars, eqns=[equation])
    names = jaxpr.debug_info.with_unknown_names()
    return jaxpr_as_fun(ClosedJaxpr(jaxpr.replace(**parts, debug_info=names), ()))


def _parameter(value: Any) -> Any:
    """The parameter of an operation, programs in it rewritten."""
    if isinstance(value, ClosedJaxpr):
        return rewrite_program(value)
    if isinstance(value, Jaxpr):
        return rewrite_program(ClosedJaxpr(value, ())).jaxpr
    return tuple(map(_parameter, value)) if type(value) is tuple else value


def _fits(equation: JaxprEqn) -> bool:
    """Whether `conv` can say this convolution."""
    given: Any = equation.params
    images, kernel = (cast(Any, variable.aval) for variable in equation.invars)
    if images.ndim != 4 or images.dtype != kernel.dtype:
        return False
    dilations = {*given["lhs_dilation"], *given["rhs_dilation"]}
    groups = {given["feature_group_count"], given["batch_group_count"]}
    sizes = [kernel.shape[axis] for axis in given["dimension_numbers"].rhs_spec[2:]]
    paddings = zip(given["padding"], sizes, strict=True)
    return (
        dilations == groups == {1}
        and len(set(given["window_strides"])) == 1
        and given["precision"] == _ambient_precision()
        and given["preferred_element_type"] in (None, images.dtype)
        and all(0 <= side < size for pair, size in paddings for side in pair)
    )


def _ambient_precision() -> Any:
    """What `jax.default_matmul_precision` gives a convolution that has none, and so `conv`'s."""
    name = cast(Any, jax.config).jax_default_matmul_precision
    return (lax.Precision(name),) * 2 if name else None


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
