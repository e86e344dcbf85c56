"""Trained networks in use: `pcattn.load` returns a `Model`, which takes clouds of any size.

.. code-block:: python

    model = pcattn.load("runs/smoke")
    model.classify(points).names[0]  # "airplane"

A network was trained on clouds of one size, normalized in one way; a `Model` knows both from its checkpoint. A cloud is
normalized as a whole, then `num_points` of its points, drawn at random, go through the network. Predictions for the
other points are interpolated.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pcattn.data.preprocessing import (
    COMPUTED,
    ESTIMATED_NORMALS,
    Placement,
    apply_placement,
    check,
    name_channels,
    placement,
    preprocess,
)
from pcattn.inference import checkpoints
from pcattn.inference.clouds import TurnedBlocks, as_points, several, turn
from pcattn.inference.convert import convert
from pcattn.io.cloud import Cloud
from pcattn.ops import interpolate
from pcattn.tasks.base import PointCloudTask
from pcattn.tasks.voting import average_votes, draw_views, view_scales
from pcattn.utils.errors import InputError

# Bounds of memory: clouds that go through the network at once, and points that are interpolated at once.
_BATCH = 16
_CHUNK = 1 << 18

#: Points for the network if a checkpoint does not say how many it was trained with.
NUM_POINTS = 1024

_MAX_POINTS = 10_000_000  # that a file may ask for


class Classes(NamedTuple):
    """The most probable classes of a cloud, the most probable first."""

    labels: NDArray[np.int64]  #: (k,)
    names: list[str]  #: k names
    probabilities: NDArray[np.float32]  #: (k,)


class Parts(NamedTuple):
    """The part of every point of a cloud, in the order of the points."""

    labels: NDArray[np.int64]  #: (N,), `names[label]` is the name of a part
    probabilities: NDArray[np.float32]  #: (N,), of that part
    names: list[str]  #: of all parts the network knows
    category: int  #: that the parts were chosen for


class Views(NamedTuple):
    """The points of a cloud that go through the network, prepared as in training."""

    pos: Tensor  #: (S, 3), normalized with the whole cloud, in the order of the cloud
    features: Tensor | None  #: (S, F)
    points: Tensor  #: (V, N), indices in [0, S) of the points of each view
    place: Placement  #: of the whole cloud
    size: int  #: points of the whole cloud


class _BlockPositions:
    """The positions of the blocks of a cloud. Can be iterated several times; afterwards `sizes` are known."""

    def __init__(self, blocks: Iterable[Any], names: Sequence[str]) -> None:
        self.blocks, self.names = blocks, names
        self.sizes: list[int] = []

    def __iter__(self) -> Iterator[Tensor]:
        self.sizes = []
        for block in self.blocks:
            pos = as_points(block, self.names, sum(self.sizes)).pos
            self.sizes.append(len(pos))
            yield pos


def load(
    source: str | os.PathLike[str],
    trust: bool = False,
    device: str | torch.device = "auto",
    architecture: str | None = None,
) -> Model:
    """A trained network, ready for use.

    No code in the file is run: it is read as tensors and plain data, and refused if it holds anything else. A
    configuration may name code by its import path (your own attention or task). That is refused as well unless `trust`
    allows the import.

    Args:
        source: a `.ckpt`, a `.safetensors` written by `pcattn export`, the folder of a run, or the name of bundled
            weights.
        trust: import the code that the file names.
        device: device of the network; `"auto"` is a GPU if there is one.
        architecture: read a state dict of this code base instead, `"pct_pytorch"` or `"pct_jittor"`; see
            `pcattn.inference.convert.convert`.

    Raises:
        InputError: there is no such file, it is broken, it names code and `trust` is false, or there is no such device.
    """
    path = checkpoints.find(source)
    checkpoint = checkpoints.read(path) if architecture is None else convert(path, architecture)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    task = checkpoints.build(checkpoint, str(path), trust)
    try:
        task.to(device)
    except RuntimeError as error:
        raise InputError(f"expected a device of this machine, but got {device}: {error}") from error
    return Model(task, checkpoint.data, checkpoint.training)


class Model:
    """A trained network with everything it takes to use it on a cloud.

    Clouds are NumPy arrays or torch tensors (N, 3), with features (N, 3 + F), Open3D `PointCloud` (legacy or tensor) or
    torch-geometric `Data`. Several clouds give a list of results: a list of clouds, an array (B, N, C), a `Batch` or a
    data set of torch-geometric. N is any number from 1 on: larger clouds are subsampled for the network, smaller ones
    are filled up with copies of their points.

    Args:
        task: the trained task.
        data: arguments of the data module that it was trained with. `num_points` defaults to `NUM_POINTS`;
            `preprocessing` to the unit sphere.
        training: what is known about the training.
    """

    def __init__(self, task: PointCloudTask, data: dict[str, Any], training: dict[str, Any] | None = None) -> None:
        self.task = task.eval()
        self.data = data
        self.training = training or {}
        self.num_points: int = data.get("num_points") or NUM_POINTS
        if not isinstance(self.num_points, int) or not 1 <= self.num_points <= _MAX_POINTS:
            raise InputError(f"expected num_points from 1 to {_MAX_POINTS}, but got {self.num_points!r}")
        self.preprocessing: dict[str, Any] = data.get("preprocessing") or _guess_preprocessing(task.num_features)
        try:
            check(**self.preprocessing)
        except TypeError as error:
            raise InputError(f"expected preprocessing of a cloud, but got {self.preprocessing!r}") from error
        of_cloud = [name for name in self.preprocessing["features"] if name not in COMPUTED]
        #: The channels that a cloud must have beside positions: `nx`, `ny`, `nz`, `red`, ...
        self.channel_names = name_channels(of_cloud)
        #: The axis that points up in the clouds that the network takes.
        self.up_axis: str = self.preprocessing["up_axis"]
        #: Names of the columns of the text files and arrays of the training; None if they were not given.
        self.columns = _columns(data)
        self.class_names: list[str] = list(map(str, task.class_names))
        self.part_names: list[str] = list(map(str, task.part_names))

    def __repr__(self) -> str:
        parts = f", {len(self.part_names)} parts" if self.part_names else ""
        return (
            f"Model({type(self.task).__name__}, {len(self.class_names)} classes{parts}, {self.num_points} points, "
            f"on {self.device})"
        )

    @property
    def network(self) -> nn.Module:
        """The network itself, a plain `nn.Module` without its task."""
        return self.task.network

    @property
    def device(self) -> torch.device:
        """The device of the network."""
        return self.task.device

    def predict(
        self, points: Any, category: Any = None, votes: int = 1, seed: int = 0, up_axis: str | None = None
    ) -> Any:
        """What the task of the network predicts for a cloud, whatever the task is.

        Args:
            points: one cloud or several, see `Model`.
            category: name or index, or one per cloud, if the task uses it (part segmentation with several categories).
                A `Data` may bring it as `category`.
            votes: views of the cloud that are averaged, see `pcattn.tasks.voting`.
            seed: seed of the draws of points.
            up_axis: the axis that points up in the cloud, which is turned accordingly; None is that of the training.

        Returns:
            Arrays by name: `label`, `probability` and `probabilities` of a classified cloud; `label` (N,) and
            `probability` (N,) of segmented points; `normals` (N, 3). A list of them for several clouds.

        Raises:
            InputError: the category is missing or unknown, or a cloud cannot be used.
        """
        if (clouds := several(points)) is not None:
            categories = _spread(category, len(clouds))
            return [
                self.predict(cloud, each, votes, seed, up_axis) for cloud, each in zip(clouds, categories, strict=True)
            ]
        if category is None:
            category = getattr(points, "category", None)
        (result,) = self.predict_blocks([as_points(points, self.channel_names)], category, votes, seed, up_axis)
        return result

    def predict_blocks(
        self, blocks: Iterable[Any], category: Any = None, votes: int = 1, seed: int = 0, up_axis: str | None = None
    ) -> Iterator[dict[str, NDArray[Any]]]:
        """`predict` for a cloud that need not fit into memory.

        Args:
            blocks: the points in blocks, each a cloud; iterated several times.
            category, votes, seed, up_axis: see `predict`, which gives the same result.

        Yields:
            The predictions for the points of each block; a single result if the task predicts for whole clouds.

        Raises:
            InputError: see `predict`; or there are several blocks, but a feature is computed from the whole cloud.
        """
        if iter(blocks) is blocks:
            raise InputError("expected blocks that can be iterated several times, but got an iterator")
        up_axis = up_axis or self.up_axis
        if up_axis != self.up_axis:
            blocks = TurnedBlocks(blocks, self.channel_names, up_axis, self.up_axis)
        index = self.category_index(category) if self.task.USES_CATEGORY else 0
        views = self._prepare(blocks, votes, seed)
        predictions = self._forward(views, index)
        if not self.task.PER_POINT:
            yield self.task.attributes(predictions.mean(dim=0), index)
            return
        known = average_votes(views.points, predictions)[1]
        for pos in _BlockPositions(blocks, self.channel_names):
            chunks = interpolate_predictions(pos, views, known)
            found = [self.task.attributes(chunk, index) for chunk in chunks]
            result = {name: np.concatenate([each[name] for each in found]) for name in found[0]}
            if "normals" in result:  # in the frame of the given cloud
                result["normals"] = turn(torch.from_numpy(result["normals"]), self.up_axis, up_axis).numpy()
            yield result

    @overload
    def classify(self, points: Cloud, top_k: int = 5, votes: int = 1, seed: int = 0) -> Classes: ...
    @overload
    def classify(
        self, points: list[Tensor] | list[NDArray[Any]], top_k: int = 5, votes: int = 1, seed: int = 0
    ) -> list[Classes]: ...
    @overload
    def classify(self, points: Any, top_k: int = 5, votes: int = 1, seed: int = 0) -> Classes | list[Classes]: ...
    def classify(self, points: Any, top_k: int = 5, votes: int = 1, seed: int = 0) -> Classes | list[Classes]:
        """The most probable classes of a cloud, or of each of several.

        Args:
            points: one cloud or several, see `Model`.
            top_k: how many classes, at most all.
            votes, seed: see `predict`.

        Raises:
            InputError: the task is not a classification, or a cloud cannot be used.
        """
        if (clouds := several(points)) is not None:
            return [self.classify_blocks([as_points(each, self.channel_names)], top_k, votes, seed) for each in clouds]
        return self.classify_blocks([as_points(points, self.channel_names)], top_k, votes, seed)

    def classify_blocks(self, blocks: Iterable[Any], top_k: int = 5, votes: int = 1, seed: int = 0) -> Classes:
        """`classify` for a cloud that need not fit into memory, see `predict_blocks`."""
        if "probabilities" not in self.task.OUTPUTS:
            raise InputError(f"expected a classifier, but this is {type(self.task).__name__}: use predict")
        if top_k < 1:
            raise InputError(f"expected top_k >= 1, but got {top_k}")
        (found,) = self.predict_blocks(blocks, votes=votes, seed=seed)
        probabilities = torch.from_numpy(found["probabilities"])
        top = probabilities.topk(min(top_k, len(probabilities)))
        return Classes(top.indices.numpy(), [self.class_names[i] for i in top.indices.tolist()], top.values.numpy())

    @overload
    def segment(self, points: Cloud, category: Any = None, votes: int = 1, seed: int = 0) -> Parts: ...
    @overload
    def segment(
        self, points: list[Tensor] | list[NDArray[Any]], category: Any = None, votes: int = 1, seed: int = 0
    ) -> list[Parts]: ...
    @overload
    def segment(self, points: Any, category: Any = None, votes: int = 1, seed: int = 0) -> Parts | list[Parts]: ...
    def segment(self, points: Any, category: Any = None, votes: int = 1, seed: int = 0) -> Parts | list[Parts]:
        """The part of every point of a cloud, or of each of several.

        Points that went through the network keep its prediction. All others take the mean of the three nearest of
        them, weighted by inverse squared distance (`pcattn.ops.interpolate`). Each further vote draws other points, so
        that the borders of parts become finer.

        Args:
            points: one cloud or several, see `Model`.
            category, votes, seed: see `predict`.

        Raises:
            InputError: the task is not a segmentation, the category is missing or unknown, or a cloud cannot be used.
        """
        if (clouds := several(points)) is not None:
            categories = _spread(category, len(clouds))
            return [self._segment(cloud, each, votes, seed) for cloud, each in zip(clouds, categories, strict=True)]
        return self._segment(points, category, votes, seed)

    def _segment(self, points: Any, category: Any, votes: int, seed: int) -> Parts:
        if category is None:
            category = getattr(points, "category", None)
        (parts,) = self.segment_blocks([as_points(points, self.channel_names)], category, votes, seed)
        return parts

    def segment_blocks(
        self, blocks: Iterable[Any], category: Any = None, votes: int = 1, seed: int = 0
    ) -> Iterator[Parts]:
        """`segment` for a cloud that need not fit into memory, see `predict_blocks`."""
        if not self.task.PER_POINT or "label" not in self.task.OUTPUTS:
            raise InputError(f"expected a part segmenter, but this is {type(self.task).__name__}: use predict")
        index = self.category_index(category)
        for found in self.predict_blocks(blocks, index, votes, seed):
            yield Parts(found["label"], found["probability"], self.part_names, index)

    def category_index(self, category: Any = None) -> int:
        """The index of a category given by name or index, or as a tensor. With one category it may be left out.

        Raises:
            InputError: the network knows no such category.
        """
        if category is None and len(self.class_names) == 1:
            return 0
        if isinstance(category, str) and category in self.class_names:
            return self.class_names.index(category)
        if category is not None and (not isinstance(category, str) or category.isdecimal()):
            index = int(category)
            if 0 <= index < len(self.class_names):
                return index
        known = ", ".join(self.class_names)
        raise InputError(f"expected category to be one of {known}, or an index, but got {category!r}")

    def _prepare(self, blocks: Iterable[Any], votes: int, seed: int) -> Views:
        """Draw the points that go through the network, and prepare them as in training."""
        positions = _BlockPositions(blocks, self.channel_names)
        steps = {name: value for name, value in self.preprocessing.items() if name != "features"}
        place, sizes = placement(positions, **steps), positions.sizes
        whole = ESTIMATED_NORMALS in self.preprocessing["features"]
        if whole and len(sizes) > 1:
            raise InputError(f"expected the cloud in one block, because normals are estimated, but got {len(sizes)}")
        drawn, views = draw_views(sum(sizes), self.num_points, votes, seed).unique(return_inverse=True)
        prepared, start = [], 0
        for block, size in zip(blocks, sizes, strict=True):
            points = as_points(block, self.channel_names)
            inside = drawn[(drawn >= start) & (drawn < start + size)] - start
            start += size
            if whole:
                pos, features = preprocess(*points, **self.preprocessing, place=place)
                prepared.append((pos[inside], None if features is None else features[inside]))
            elif len(inside):
                channels = None if points.channels is None else points.channels[inside]
                prepared.append(
                    preprocess(points.pos[inside], channels, points.names, **self.preprocessing, place=place)
                )
        pos = torch.cat([pos for pos, _ in prepared]).float()
        channels_of_points = [features.float() for _, features in prepared if features is not None]
        return Views(pos, torch.cat(channels_of_points) if channels_of_points else None, views, place, sum(sizes))

    @torch.no_grad()
    def _forward(self, views: Views, category: int) -> Tensor:
        """Predictions (V, K) of the views, or (V, N, K) of their points."""
        logits = []
        scales = view_scales(len(views.points))[:, None, None]
        for points, scale in zip(views.points.split(_BATCH), scales.split(_BATCH), strict=True):
            pos = (views.pos[points] * scale).to(self.device)
            features = None if views.features is None else views.features[points].to(self.device)
            categories = torch.full((len(pos),), category, device=self.device)
            logits.append(self.task.logits(self.task.unlabeled(pos, features, categories)))
        found = torch.cat(logits).float()
        if not bool(found.isfinite().all()):  # NaN would count as some class
            raise InputError("expected finite logits, but the network has others: its weights are broken")
        return self.task.predictions(found, category)


def interpolate_predictions(pos: Tensor, views: Views, known: Tensor) -> Iterator[Tensor]:
    """Predictions for all points of a block, in chunks of points.

    Args:
        pos: (N, 3), points of the cloud before normalization.
        views: the S points that went through the network.
        known: (S, K), predictions for them.

    Yields:
        (n, K), on the device of `known`.
    """
    if len(known) == views.size == len(pos):
        yield known
        return
    support = views.pos.to(known.device)[None]
    for chunk in pos.split(_CHUNK):
        normalized = apply_placement(chunk, views.place).float().to(known.device)
        yield interpolate(normalized[None], support, known[None])[0]


def _spread(category: Any, number: int) -> list[Any]:
    """A category for each of several clouds."""
    single = category is None or isinstance(category, (str, int)) or getattr(category, "ndim", 1) == 0
    categories = [category] * number if single else list(category)
    if len(categories) != number:
        raise InputError(f"expected one category for each of {number} clouds, but got {len(categories)}")
    return categories


def _columns(data: dict[str, Any]) -> list[str] | None:
    """The `columns` that the data set of the training was given."""
    options = data.get("dataset_kwargs")
    columns = options.get("columns") if isinstance(options, dict) else None
    return list(map(str, columns)) if isinstance(columns, (list, tuple)) and columns else None


def _guess_preprocessing(num_features: int) -> dict[str, Any]:
    """How clouds were probably prepared, if a checkpoint does not say: it is old, or its data is custom."""
    features = [f"feature_{i}" for i in range(num_features)] if num_features != 3 else ["normals"]
    return {"features": features, "normalize": "sphere", "up_axis": "z"}
