"""The operations of this package that ONNX lacks, written in its operators (opset 18).

Imported only to export a network. Every function has the signature of the operation in `pcattn.ops` or
`pcattn.attention` that it replaces. Equal distances are ordered by index here, not by coordinates, so results differ if
different points lie at exactly the same distance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import onnxscript
import torch
from onnx import TensorProto
from onnxscript import FLOAT, INT64, opset18

import pcattn.attention  # noqa: F401  registers the operations, those of pcattn.ops as well

op: Any = opset18  # its annotations are those of values; what is passed here are values of a graph
_LOCAL = onnxscript.values.Opset("pcattn", 1)


def offset_attention(q: Any, v: Any) -> tuple[Any, Any]:
    """See `pcattn.ops.offset_attention`."""
    weights = op.Softmax(op.MatMul(q, op.Transpose(q, perm=[0, 2, 1])), axis=-1)  # (B, keys, queries)
    totals = op.Unsqueeze(op.ReduceSum(weights, _ints(1), keepdims=0), _ints(2))
    out = op.MatMul(op.Transpose(weights, perm=[0, 2, 1]), v)
    return op.Div(out, op.Add(totals, op.Constant(value_float=1e-9))), totals


def neighborhood_attention(q: Any, k: Any, v: Any, neighbors: Any, bias: Any = None, *_: Any) -> tuple[Any, Any]:
    """See `pcattn.ops.neighborhood_attention`; keys and values of all neighbors are held at once."""
    at = op.Unsqueeze(neighbors, _ints(3))  # (B, N, K, 1)
    keys, values = (op.GatherND(rows, at, batch_dims=1) for rows in (k, v))  # (B, N, K, H, D)
    products = op.ReduceSum(op.Mul(op.Unsqueeze(q, _ints(2)), keys), _ints(4), keepdims=0)
    logits = op.Div(products, op.Sqrt(op.CastLike(op.Shape(q, start=3), q)))
    logits = logits if bias is None else op.Add(logits, bias)
    weights = op.Unsqueeze(op.Softmax(logits, axis=2), _ints(4))
    return op.ReduceSum(op.Mul(weights, values), _ints(2), keepdims=0), op.ReduceLogSumExp(logits, _ints(2), keepdims=0)


def knn(query: Any, support: Any, k: Any, *_: Any) -> tuple[Any, Any]:
    """See `pcattn.ops.knn`: Euclidean, of clouds without padding; direct differences in float64."""
    queries = op.Unsqueeze(op.Cast(query, to=TensorProto.DOUBLE), _ints(2))
    points = op.Unsqueeze(op.Cast(support, to=TensorProto.DOUBLE), _ints(1))
    difference = op.Sub(queries, points)
    squares = op.ReduceSum(op.Mul(difference, difference), _ints(3), keepdims=0)
    # k is free where it is the number of points of a small cloud.
    count = _ints(k) if isinstance(k, int) else op.Reshape(k, _ints(1))
    distances, indices = op.TopK(squares, count, axis=-1, largest=0, sorted=1)
    return op.CastLike(distances, query), indices


def farthest_point_sample(pos: Any, num_samples: Any, *_: Any) -> Any:
    """See `pcattn.ops.farthest_point_sample`: the rule `"centroid"`, of clouds without padding."""
    count = op.Constant(value_int=num_samples) if isinstance(num_samples, int) else op.Squeeze(num_samples)
    return _farthest_points(pos, count)


def stable_sort(x: Any, *, stable: Any = True, dim: int = -1, descending: bool = False) -> tuple[Any, Any]:
    """See `torch.sort`: TopK orders equal values by index. In float64, which holds what is sorted here exactly."""
    count = op.Gather(op.Shape(x), _ints(dim))
    values, indices = op.TopK(op.Cast(x, to=TensorProto.DOUBLE), count, axis=dim, largest=int(descending), sorted=1)
    return op.CastLike(values, x), indices


@onnxscript.script(_LOCAL, default_opset=op)
def _farthest_points(pos: FLOAT[...], count: INT64) -> INT64[...]:  # type: ignore[type-arg, misc]
    """A loop, so that the number of points stays free."""
    exact = op.Cast(pos, to=11)  # DOUBLE
    axis = op.Constant(value_ints=[2])
    difference = op.Sub(exact, op.ReduceMean(exact, op.Constant(value_ints=[1]), keepdims=1))
    from_centroid = op.ReduceSum(op.Mul(difference, difference), axis, keepdims=0)
    current = op.ArgMax(from_centroid, axis=1, keepdims=1)
    # Farther than any point: nothing is chosen yet.
    nearest = op.Add(op.Sub(from_centroid, from_centroid), op.CastLike(op.Constant(value_float=1e38), from_centroid))
    chosen = op.Slice(current, op.Constant(value_ints=[0]), op.Constant(value_ints=[0]), op.Constant(value_ints=[1]))
    for _i in range(count):  # type: ignore[call-overload]
        chosen = op.Concat(chosen, current, axis=1)
        at = op.Expand(op.Unsqueeze(current, axis), op.Constant(value_ints=[1, 1, 3]))
        step = op.Sub(exact, op.GatherElements(exact, at, axis=1))
        nearest = op.Min(nearest, op.ReduceSum(op.Mul(step, step), axis, keepdims=0))
        current = op.ArgMax(nearest, axis=1, keepdims=1)
    return chosen


#: The replacement of each operation.
TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.pcattn.offset_attention.default: offset_attention,
    torch.ops.pcattn.neighborhood_attention.default: neighborhood_attention,
    torch.ops.pcattn.knn.default: knn,
    torch.ops.pcattn.farthest_point_sample.default: farthest_point_sample,
    torch.ops.aten.sort.stable: stable_sort,
}


def obstacles(nodes: Iterable[torch.fx.Node]) -> list[str]:
    """Why a graph cannot be written in ONNX: operations of this package without a translation."""
    found = set()
    for node in nodes:
        name = str(node.target)
        if node.op != "call_function" or not name.startswith("pcattn."):
            continue
        name = name.removeprefix("pcattn.").removesuffix(".default")
        if node.target not in TRANSLATIONS:
            found.add(f"{name} has no translation")
        elif name == "farthest_point_sample" and node.args[2] != "centroid":
            found.add(f"{name} with rule {node.args[2]!r} has no translation, only 'centroid' has")
        elif name == "knn" and (node.args[3] != "l2" or node.args[4] != torch.inf or any(node.args[5:7])):
            found.add(f"{name} has one for Euclidean distances without a limit alone")
    return sorted(found)


def _ints(*values: int) -> Any:
    return op.Constant(value_ints=list(values))
