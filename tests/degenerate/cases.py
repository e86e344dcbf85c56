"""Every public function that takes clouds, as a function of one cloud, and what clouds may be like."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pcattn.attention import ATTENTION, Geometry, build_attention
from pcattn.data import PointBatch, estimate_normals
from pcattn.data.preprocessing import preprocess
from pcattn.inference.clouds import as_points
from pcattn.inference.model import Model
from pcattn.metrics import angle_error, cosine_distance, part_iou, predict_parts
from pcattn.models import (
    HierarchicalClassifier,
    HierarchicalSegmenter,
    PCTBackbone,
    PCTClassifier,
    PCTNormals,
    PCTSegmenter,
)
from pcattn.ops import ball_query, farthest_point_sample, gather, group, interpolate, knn
from pcattn.tasks import Classification, PartSegmentation
from pcattn.transforms import TRANSFORMS, subsample

NETWORK: dict[str, Any] = {"dim": 16, "depth": 1, "out_dim": 16, "k": 4}
LEVELS: dict[str, Any] = {"dims": [16, 32], "depths": [1, 2], "num_heads": [2, 4], "k": 4, "dilation": 2}
PARTS = [[0, 1, 2]]

#: Clouds that no function can work with.
REFUSED = (
    "integers",
    "complex",
    "truth values",
    "one cloud",
    "four dimensions",
    "two coordinates",
    "no points",
    "none",
)

#: Clouds with values that have no order: refused where they are looked at.
NOT_FINITE = ("NaN", "infinity")

#: Clouds that have a result, or are refused with the number that is too small.
HARD = ("one place", "line", "copies", "tiny", "huge", "far", "one point", "three points", "batch of one", "strided")


def make(case: str) -> Tensor:
    """A batch (B, N, 3) by name of what is wrong with it, or hard about it."""
    cloud = torch.randn(2, 32, 3, generator=torch.Generator().manual_seed(0))
    line = torch.zeros_like(cloud)
    line[..., 0] = torch.linspace(-1, 1, 32)
    spoiled = {"NaN": torch.nan, "infinity": torch.inf}
    if case in spoiled:
        cloud[1, 5, 2] = spoiled[case]
        return cloud
    return {
        "integers": (10 * cloud).long(),
        "complex": cloud.to(torch.complex64),
        "truth values": cloud > 0,
        "one cloud": cloud[0],
        "four dimensions": cloud[None],
        "two coordinates": cloud[..., :2],
        "no points": cloud[:, :0],
        "none": cloud[:0],
        "one place": torch.full_like(cloud, 0.3),
        "line": line,
        "copies": cloud[:, torch.arange(32) % 3],
        "tiny": cloud * 1e-30,
        "huge": cloud * 1e30,
        "far": cloud + 1e6,
        "one point": cloud[:, :1],
        "three points": cloud[:, :3],
        "batch of one": cloud[:1],
        "strided": cloud.transpose(1, 2).contiguous().transpose(1, 2),
    }[case]


class Function(NamedTuple):
    """A function of one cloud (B, N, 3)."""

    call: Callable[[Tensor], Any]
    argument: str  #: what its messages call the cloud
    not_finite: tuple[str, ...] = NOT_FINITE  #: which of these it refuses; the others it passes on
    accepts: tuple[str, ...] = ()  #: which of `REFUSED` it can work with


def functions() -> dict[str, Function]:
    """By name."""
    good = make("strided")
    generator = torch.Generator().manual_seed(0)
    few = ("two coordinates",)  # searches work in any dimension
    # Clouds of one's own, (N, 3), are turned into floating point numbers; several of them are a list.
    whole = ("integers", "truth values", "none")
    own = (*whole, "four dimensions")

    def every(cloud: Tensor) -> Tensor:
        return torch.arange(cloud.shape[1]).expand(len(cloud), -1)

    def features_of(cloud: Tensor, channels: int = 16) -> Tensor:
        return torch.randn(*cloud.shape[:2], channels, generator=torch.Generator().manual_seed(1))

    def mechanism(name: str) -> Callable[[Tensor], Tensor]:
        torch.manual_seed(0)
        core = build_attention(name, 16, **({"k": 3} if name in ("acmix", "neighborhood") else {}))
        return lambda pos: core(features_of(pos), Geometry(pos))

    def transform(name: str) -> Callable[[Tensor], Any]:
        return lambda pos: TRANSFORMS[name]()(batch(pos), generator)[:2]

    def batch(pos: Tensor) -> PointBatch:
        return PointBatch(pos, pos, torch.zeros(len(pos), dtype=torch.long), None, torch.arange(len(pos)), 0)

    def labels(pos: Tensor) -> Tensor:
        return torch.zeros(pos.shape[:2], dtype=torch.long)

    def network(kind: Callable[..., torch.nn.Module], *args: Any, train: bool = False) -> Callable[[Tensor], Any]:
        torch.manual_seed(0)
        return kind(*args, **NETWORK).train(train)

    tiny = {"variant": "spct", "network_kwargs": {"dim": 8, "depth": 1, "out_dim": 16}}
    classifier, segmenter = Classification(4, **tiny), PartSegmentation(PARTS, **tiny)
    classify = Model(classifier, {"num_points": 16}).classify
    segment = Model(segmenter, {"num_points": 16}).segment

    def evaluate(pos: Tensor) -> Tensor:
        segmenter.eval().evaluate(batch(pos)._replace(normals=None, label=labels(pos)))
        return segmenter.compute_metrics("val")["val/instance_miou"]

    found = {
        "knn": Function(lambda c: knn(c, c, 3), "query", accepts=few),
        "knn, support": Function(lambda c: knn(good[: len(c)], c, 1), "query|support", accepts=()),
        "knn, reference": Function(lambda c: knn(c, c, 3, backend="reference"), "query", accepts=few),
        "ball_query": Function(lambda c: ball_query(c, c, 1e38, 1), "query", accepts=few),
        "farthest_point_sample": Function(lambda c: farthest_point_sample(c, 1), "pos", accepts=few),
        "fps, pointnet2": Function(lambda c: farthest_point_sample(c, 1, "pointnet2"), "pos", accepts=few),
        "gather": Function(lambda c: gather(c, every(c)), "features", (), REFUSED),
        "group": Function(
            lambda c: group(c, every(c)[..., None]), "features", (), ("integers", "complex", "no points", "none", *few)
        ),
        "interpolate": Function(lambda c: interpolate(c, c, c), "query|support", accepts=few),
        "interpolate, features": Function(
            lambda c: interpolate(good[: len(c)], good[: len(c), : c.shape[1]], c), "features|query|support", (), few
        ),
        "Geometry": Function(lambda c: Geometry(c).neighbors(1), "pos"),
        "estimate_normals": Function(estimate_normals, "pos|query"),
        "preprocess": Function(lambda c: preprocess(c[-1]), "pos", accepts=whole),
        "as_points": Function(lambda c: as_points(c[-1]).pos, "points|coordinates", accepts=whole),
        "angle_error": Function(
            lambda c: angle_error(c, c), "predicted", (), ("one cloud", "four dimensions", "no points", "none")
        ),
        "cosine_distance": Function(
            lambda c: cosine_distance(c, c), "predicted", (), ("one cloud", "four dimensions", "no points", "none")
        ),
        "part_iou": Function(
            lambda c: part_iou(c, labels(c), None, PARTS).shapes, "logits", ("NaN",), ("integers", "none")
        ),
        "predict_parts": Function(lambda c: predict_parts(c, None, PARTS), "logits", ("NaN",), ("integers", "none")),
        "subsample": Function(lambda c: subsample(batch(c), 1, generator)[:1], "pos", (), few),
        "backbone": Function(network(PCTBackbone, "spct"), "pos"),
        "normals": Function(network(PCTNormals, "spct"), "pos"),
        "classify": Function(lambda c: classify(c[-1]), "points|coordinates", accepts=own),
        "segment": Function(lambda c: segment(c[-1]), "points|coordinates", accepts=own),
        "evaluate": Function(evaluate, "pos"),
    }
    for variant in ("npct", "spct", "pct"):
        for train in (False, True):
            name = f"{variant}, {'training' if train else 'evaluation'}"
            found[f"classifier {name}"] = Function(network(PCTClassifier, 5, variant, train=train), "pos")
            found[f"segmenter {name}"] = Function(network(PCTSegmenter, 4, None, variant, train=train), "pos")
    for kind, args in ((HierarchicalClassifier, (5,)), (HierarchicalSegmenter, (4, None))):
        for train in (False, True):
            found[f"{kind.__name__}, {train}"] = Function(kind(*args, **LEVELS).train(train), "pos")
    found |= {name: Function(mechanism(name), "pos") for name in ATTENTION}
    found |= {name: Function(transform(name), "pos", not_finite=()) for name in TRANSFORMS}
    return found


def tensors(result: Any) -> list[Tensor]:
    """All floating point tensors of a result."""
    if isinstance(result, np.ndarray):
        result = torch.from_numpy(result)
    if isinstance(result, Tensor):
        return [result] if result.is_floating_point() else []
    return [each for item in result for each in tensors(item)] if isinstance(result, tuple) else []
