"""Indices, labels, categories and numbers out of range are named with their value; sizes have to fit."""

from typing import Any

import pytest
import torch
from torch import Tensor

from pcattn.attention import ATTENTION, Geometry, build_attention
from pcattn.data import PointBatch
from pcattn.metrics import part_iou, predict_parts
from pcattn.models import PCTSegmenter
from pcattn.ops import ball_query, farthest_point_sample, gather, group, interpolate, knn
from pcattn.ops.neighborhood_attention import neighborhood_attention
from pcattn.tasks import Classification, PartSegmentation
from pcattn.tasks.losses import lovasz_softmax, mixed_cross_entropy
from pcattn.transforms import subsample
from tests.degenerate.cases import make

POS = make("strided")
NETWORK = {"dim": 8, "depth": 1, "out_dim": 16}


def whole(*shape: int, value: int = 0) -> Tensor:
    return torch.full(shape, value)


def batch(label: Tensor, category: Tensor | None = None) -> PointBatch:
    return PointBatch(POS, None, label, category, torch.tensor([40, 41]), 0)


def last(value: int, *shape: int, where: tuple[int, ...] = (-1,)) -> Tensor:
    labels = whole(*shape)
    labels[where] = value
    return labels


def uses_of(labels: Tensor) -> dict[str, Any]:
    """Functions of labels (2, 32), in [0, 3), of points, by what their messages call them."""
    of_cloud = labels[:, 5]
    classifier = Classification(3, "spct", network_kwargs=NETWORK)
    segmenter = PartSegmentation([[0, 1], [2], [0, 2]], "spct", network_kwargs=NETWORK)
    features = torch.randn(2, 3, 4)
    q = torch.randn(2, 3, 2, 4)
    return {
        "indices": lambda: gather(features, labels),
        "neighbors": lambda: group(features, labels[:, 4:7, None]),
        "centers": lambda: group(features, whole(2, 32, 3), labels),
        "query_indices": lambda: knn(POS, features[..., :3], 2, query_indices=labels),
        "neighbors of attention": lambda: neighborhood_attention(q, q, q, labels[:, 4:7, None]),
        "target": lambda: lovasz_softmax(POS.softmax(2), labels),
        "label of mixed": lambda: mixed_cross_entropy(POS[:, 0], labels[:, 4:6], torch.full((2, 2), 0.5)),
        "target of iou": lambda: part_iou(POS, labels, None, [[0, 1, 2]]),
        "category": lambda: part_iou(POS, whole(2, 32), of_cloud, [[0, 1, 2]] * 3),
        "category of prediction": lambda: predict_parts(POS, of_cloud, [[0, 1, 2]] * 3),
        "category of network": lambda: PCTSegmenter(3, 3, "spct", **NETWORK)(POS, of_cloud),
        "label in training": lambda: classifier.training_step(batch(of_cloud), 0),
        "label in evaluation": lambda: classifier.evaluate(batch(of_cloud)),
        "label of points in training": lambda: segmenter.training_step(batch(labels, whole(2)), 0),
        "label of points in evaluation": lambda: segmenter.evaluate(batch(labels, whole(2))),
        "category in training": lambda: segmenter.training_step(batch(whole(2, 32), of_cloud), 0),
    }


@pytest.mark.parametrize("use", uses_of(whole(2, 32)))
@pytest.mark.parametrize("value", [-1, 3, -100])
def test_out_of_range(use: str, value: int) -> None:
    labels = whole(2, 32)
    labels[1, 5] = value
    with pytest.raises(ValueError, match=rf"{use.split()[0]}.* but got {value}\b") as error:
        uses_of(labels)[use]()
    assert (
        "cloud 41 of the data set" in str(error.value) or "cloud 1" in str(error.value) or "shape 1" in str(error.value)
    )


@pytest.mark.parametrize("use", uses_of(whole(2, 32)))
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64, torch.bool], ids=str)
def test_no_integers(use: str, dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=rf"{use.split()[0]} to be integers.* but got {dtype}"):
        uses_of(torch.zeros(2, 32, dtype=dtype))[use]()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32], ids=str)
def test_short_integers(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Classification, "log", lambda *args, **kwargs: None)
    monkeypatch.setattr(PartSegmentation, "log", lambda *args, **kwargs: None)
    for use in uses_of(torch.zeros(2, 32, dtype=dtype)).values():
        use()


@pytest.mark.parametrize("count", [0, -1, 33, 2.5, True])
def test_numbers_of_points(count: Any) -> None:
    uses = {
        "k": [lambda: knn(POS, POS, count), lambda: ball_query(POS, POS, 1.0, count)],
        "num_samples": [lambda: farthest_point_sample(POS, count)],
        "num_points": [lambda: subsample(batch(whole(2)), count)],
    }
    if count != 33:  # interpolation takes as many as there are
        uses["k"].append(lambda: interpolate(POS, POS, POS, count))
    for name, calls in uses.items():
        message = rf"expected 1 <= {name} <= 32 .*, but got {name}={count}"
        if isinstance(count, float):
            message = rf"expected {name} to be an integer, but got {count}"
        for call in calls:
            with pytest.raises(ValueError, match=message):
                call()


@pytest.mark.parametrize("radius", [0.0, -1.0, torch.nan])
def test_radius(radius: float) -> None:
    with pytest.raises(ValueError, match=f"radius to be positive, but got {radius}"):
        ball_query(POS, POS, radius, 3)


@pytest.mark.parametrize("name", ATTENTION)
class TestAttentionInput:
    @pytest.mark.parametrize("shape", [(3, 32, 16), (1, 32, 16), (2, 31, 16), (2, 33, 16), (2, 32, 8), (32, 16)])
    def test_sizes(self, name: str, shape: tuple[int, ...]) -> None:
        """Kernels read by index: a size that differs would be read from foreign memory."""
        core = build_attention(name, 16)
        with pytest.raises(ValueError, match=r"expected features x .* = \(2, 32, 16\) .* but got shape"):
            core(torch.zeros(shape), Geometry(POS))

    def test_bare_positions(self, name: str) -> None:
        with pytest.raises(ValueError, match=r"geometry to be Geometry\(pos\), but got a tensor of shape \(2, 32, 3\)"):
            build_attention(name, 16)(torch.zeros(2, 32, 16), POS)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.int64, torch.complex64, torch.bool], ids=str)
    def test_types(self, name: str, dtype: torch.dtype) -> None:
        with pytest.raises(ValueError, match=rf"expected x to be .* but got {dtype}"):
            build_attention(name, 16)(torch.zeros(2, 32, 16, dtype=dtype), Geometry(POS))

    @pytest.mark.parametrize("scale", [1e-30, 1e12])
    @pytest.mark.parametrize("train", [False, True])
    def test_scales_of_features(self, name: str, scale: float, train: bool) -> None:
        x = scale * torch.randn(2, 32, 16)
        assert build_attention(name, 16).train(train)(x, Geometry(POS)).isfinite().all()


def test_devices() -> None:
    """One device for all tensors; `meta` is one that needs no hardware."""
    elsewhere = POS.to("meta")
    calls = {
        "query on cpu, support on meta": lambda: knn(POS, elsewhere, 2),
        "features on cpu, indices on meta": lambda: gather(POS, whole(2, 3).to("meta")),
        "pos on cpu, features on meta": lambda: PCTSegmenter(3, 3, "spct", num_features=3, **NETWORK)(
            POS, whole(2), elsewhere
        ),
        "x on meta, pos on cpu": lambda: build_attention("self", 16)(torch.zeros(2, 32, 16).to("meta"), Geometry(POS)),
        "logits on cpu, target on meta": lambda: part_iou(POS, whole(2, 32).to("meta"), None, [[0, 1, 2]]),
    }
    for message, call in calls.items():
        with pytest.raises(ValueError, match=f"expected all tensors on one device, but got {message}"):
            call()
