"""Trained networks in use: `pcattn.load` and what it returns, a `Model` that takes clouds as users hold them.

.. code-block:: python

    model = pcattn.load("runs/smoke")
    model.classify(points).names[0]  # "airplane"

A network was trained on clouds of one size, normalized in one way; a `Model` knows both from its checkpoint. A cloud is
normalized as a whole, then `num_points` of its points, drawn at random, go through the network, and what it says of
them is carried to all others.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

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
from pcattn.inference.clouds import as_points, several
from pcattn.inference.convert import convert
from pcattn.ops import interpolate
from pcattn.tasks import Classification, PartSegmentation
from pcattn.tasks.base import PointCloudTask
from pcattn.tasks.voting import mean_of_looks
from pcattn.utils.errors import InputError

# Clouds that go through the network at once, and points that predictions are carried to at once: bounds of memory.
_BATCH = 16
_CHUNK = 1 << 18

#: Points for the network where a checkpoint does not tell how many it was trained with.
NUM_POINTS = 1024

_MAX_POINTS = 10_000_000  # that a file may ask for

# What is drawn of a cloud of more than `_MANY` points, if it is less than one of `_FEW`, is drawn one by one.
_MANY = 1 << 22
_FEW = 64


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


class Drawn(NamedTuple):
    """The points of a cloud that go through the network, as it takes them."""

    pos: Tensor  #: (S, 3), normalized with the whole cloud, in the order of the cloud
    features: Tensor | None  #: (S, F)
    draws: Tensor  #: (V, n), in [0, S)
    place: Placement  #: of the whole cloud
    available: int  #: points of the whole cloud


class _Positions:
    """The positions of the blocks of a cloud, gone through as often as need be."""

    def __init__(self, blocks: Iterable[Any], names: Sequence[str]) -> None:
        self.blocks, self.names = blocks, names
        self.sizes: list[int] = []  # of the blocks, as far as one has gone

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

    Nothing in the file is run: it is read as tensors and plain data, and refused where it holds more. A configuration
    may name code by its import path, though (an attention or a task of one's own): that is refused as well, unless
    `trust` says that it may be imported.

    Args:
        source: a `.ckpt`, a `.safetensors` written by `pcattn export`, the folder of a run, or the name of weights that
            come with the package.
        trust: import the code that the file names.
        device: of the network; `"auto"` is a GPU where there is one.
        architecture: read a state dict of this code base instead, `"pct_pytorch"` or `"pct_jittor"`; see
            `pcattn.inference.convert.convert`.

    Raises:
        InputError: there is no such file, or it is broken or not to be trusted.
    """
    path = checkpoints.find(source)
    checkpoint = checkpoints.read(path) if architecture is None else convert(path, architecture)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    task = checkpoints.build(checkpoint, str(path), trust)
    return Model(task.to(device), checkpoint.data, checkpoint.training)


class Model:
    """A trained network with everything it needs to be used on a cloud.

    Clouds are NumPy arrays or torch tensors (N, 3), with features (N, 3 + F), Open3D `PointCloud` (legacy or tensor) or
    torch-geometric `Data`; one of them, or several, of which the result is a list: a list of clouds, an array
    (B, N, C), a `Batch` or a data set of torch-geometric. N is any number from 1 on: larger clouds are subsampled for
    the network, smaller ones are filled up with copies of their points.

    Args:
        task: the trained task.
        data: arguments of the data module that it was trained with; without `num_points` it is `NUM_POINTS`, without
            `preprocessing` clouds are put into the unit sphere.
        training: what is known about the training.
    """

    def __init__(self, task: PointCloudTask, data: dict[str, Any], training: dict[str, Any] | None = None) -> None:
        hyper_parameters: dict[str, Any] = dict(task.hparams)
        self.task = task.eval()
        self.data = data
        self.training = training or {}
        self.num_points: int = data.get("num_points") or NUM_POINTS
        if not isinstance(self.num_points, int) or not 1 <= self.num_points <= _MAX_POINTS:
            raise InputError(f"expected num_points from 1 to {_MAX_POINTS}, but got {self.num_points!r}")
        self.preprocessing: dict[str, Any] = data.get("preprocessing") or _guess(
            hyper_parameters.get("num_features", 0)
        )
        try:
            check(**self.preprocessing)
        except TypeError as error:
            raise InputError(f"expected preprocessing of a cloud, but got {self.preprocessing!r}") from error
        of_cloud = [name for name in self.preprocessing["features"] if name not in COMPUTED]
        #: What a cloud has to tell of its points beside their positions: `nx`, `ny`, `nz`, `red`, ...
        self.channel_names = name_channels(of_cloud)
        self.class_names: list[str] = list(map(str, getattr(task, "class_names", [])))
        self.part_names: list[str] = list(map(str, getattr(task, "part_names", [])))

    def __repr__(self) -> str:
        of_points = f", {len(self.part_names)} parts" if self.part_names else ""
        return (
            f"Model({type(self.task).__name__}, {len(self.class_names)} classes{of_points}, {self.num_points} points, "
            f"on {self.device})"
        )

    @property
    def device(self) -> torch.device:
        """Where the network lies."""
        return self.task.device

    def classify(self, points: Any, top_k: int = 5, votes: int = 1, seed: int = 0) -> Any:
        """The most probable classes of a cloud, or of each of several.

        Args:
            points: one cloud or several, see `Model`.
            top_k: how many classes, at most all.
            votes: draws of points from a larger cloud; their probabilities are averaged.
            seed: of the draws.

        Returns:
            `Classes`, or a list of them.

        Raises:
            InputError: the network is none that classifies, or a cloud cannot be used.
        """
        if (clouds := several(points)) is not None:
            return [self.classify(cloud, top_k, votes, seed) for cloud in clouds]
        return self.classify_blocks([as_points(points, self.channel_names)], top_k, votes, seed)

    def classify_blocks(self, blocks: Iterable[Any], top_k: int = 5, votes: int = 1, seed: int = 0) -> Classes:
        """The most probable classes of a cloud that need not be in memory as a whole.

        Args:
            blocks: its points, some at a time, each as a cloud; gone through several times.
            top_k, votes, seed: as for `classify`, whose result is the same.

        Raises:
            InputError: as `classify`; or a feature needs the whole cloud, and there are several blocks.
        """
        if not isinstance(self.task, Classification):
            raise InputError(f"expected a classifier, but this is {type(self.task).__name__}: use segment")
        if top_k < 1:
            raise InputError(f"expected top_k >= 1, but got {top_k}")
        drawn = self._draw(blocks, votes, seed)
        probabilities = self._forward(drawn, None).softmax(dim=1).mean(dim=0)
        top = probabilities.topk(min(top_k, len(probabilities)))
        labels = top.indices.cpu().numpy()
        return Classes(labels, [self.class_names[label] for label in labels], top.values.cpu().numpy())

    def segment(self, points: Any, category: Any = None, votes: int = 1, seed: int = 0) -> Any:
        """The part of every point of a cloud, or of each of several.

        The points that went through the network keep what it said; all others take the mean of the three nearest of
        them, weighted by inverse squared distance (`pcattn.ops.interpolate`). Every further vote draws other points, so
        that the borders of parts become finer.

        Args:
            points: one cloud or several, see `Model`.
            category: name or index, or a list of them, one a cloud. Needed where the network was trained with several
                categories; `category` of a `Data` serves as well.
            votes: draws of points from a larger cloud.
            seed: of the draws.

        Returns:
            `Parts`, or a list of them.

        Raises:
            InputError: the network is none that segments, the category is missing or unknown, or a cloud cannot be
                used.
        """
        if (clouds := several(points)) is not None:
            single = category is None or isinstance(category, (str, int)) or getattr(category, "ndim", 1) == 0
            categories = [category] * len(clouds) if single else list(category)
            if len(categories) != len(clouds):
                raise InputError(f"expected one category for each of {len(clouds)} clouds, but got {len(categories)}")
            return [self.segment(cloud, of, votes, seed) for cloud, of in zip(clouds, categories, strict=True)]
        if category is None:
            category = getattr(points, "category", None)
        (parts,) = self.segment_blocks([as_points(points, self.channel_names)], category, votes, seed)
        return parts

    def segment_blocks(
        self, blocks: Iterable[Any], category: Any = None, votes: int = 1, seed: int = 0
    ) -> Iterator[Parts]:
        """The part of every point of a cloud that need not be in memory as a whole, block by block.

        Args:
            blocks: its points, some at a time, each as a cloud; gone through several times.
            category, votes, seed: as for `segment`, whose result is the same.

        Raises:
            InputError: as `segment`; or a feature needs the whole cloud, and there are several blocks.
        """
        if not isinstance(self.task, PartSegmentation):
            raise InputError(f"expected a part segmenter, but this is {type(self.task).__name__}: use classify")
        index = self.category_index(category)
        drawn = self._draw(blocks, votes, seed)
        logits = self._forward(drawn, index)
        ids = torch.tensor(self.part_ids(index), device=logits.device)
        _, known = mean_of_looks(drawn.draws, logits[..., ids].softmax(dim=2))
        for pos in _Positions(blocks, self.channel_names):
            labels, probabilities = carry(pos, drawn, known)
            for chunk in labels.split(_CHUNK):
                chunk.copy_(ids.cpu()[chunk])
            yield Parts(labels.numpy(), probabilities.numpy(), self.part_names, index)

    def part_ids(self, category: int) -> list[int]:
        """The parts to choose from: those of the category, or all, as in the metrics of the training."""
        return self.task.part_ids(category)  # type: ignore[operator]

    def category_index(self, category: Any = None) -> int:
        """The index of a category given by name or index, also as a tensor; it may be left out where there is but one.

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

    def _draw(self, blocks: Iterable[Any], votes: int, seed: int) -> Drawn:
        """Choose the points that go through the network, and prepare them as in training."""
        if iter(blocks) is blocks:
            raise InputError("expected blocks that can be gone through several times, but got an iterator")
        positions = _Positions(blocks, self.channel_names)
        steps = {name: value for name, value in self.preprocessing.items() if name != "features"}
        place, sizes = placement(positions, **steps), positions.sizes
        whole = ESTIMATED_NORMALS in self.preprocessing["features"]
        if whole and len(sizes) > 1:
            raise InputError(f"expected a cloud in one block, of which normals are estimated, but got {len(sizes)}")
        draws = draw(sum(sizes), self.num_points, votes, seed)
        chosen, slots = draws.unique(return_inverse=True)
        parts, start = [], 0
        for block, size in zip(blocks, sizes, strict=True):
            points = as_points(block, self.channel_names)
            inside = chosen[(chosen >= start) & (chosen < start + size)] - start
            start += size
            if whole:
                pos, features = preprocess(*points, **self.preprocessing, place=place)
                parts.append((pos[inside], None if features is None else features[inside]))
            elif len(inside):
                channels = None if points.channels is None else points.channels[inside]
                parts.append(preprocess(points.pos[inside], channels, points.names, **self.preprocessing, place=place))
        pos = torch.cat([pos for pos, _ in parts]).float()
        features = [features.float() for _, features in parts if features is not None]
        return Drawn(pos, torch.cat(features) if features else None, slots, place, sum(sizes))

    @torch.no_grad()
    def _forward(self, drawn: Drawn, category: int | None) -> Tensor:
        """Logits of each draw of points, (V, K) or (V, n, P); those that are not finite would count as some class."""
        logits = []
        for indices in drawn.draws.split(_BATCH):
            batch = drawn.pos[indices].to(self.device)
            of_points = None if drawn.features is None else drawn.features[indices].to(self.device)
            if category is None:
                logits.append(self.task(batch, of_points))
            else:
                categories = torch.full((len(batch),), category, device=self.device)
                logits.append(self.task(batch, categories, of_points))
        found = torch.cat(logits).float()
        if not bool(found.isfinite().all()):
            raise InputError("expected finite logits, but the network has others: its weights are broken")
        return found


def _guess(num_features: int) -> dict[str, Any]:
    """How clouds were prepared, where a checkpoint does not tell: it is older, or comes from data of one's own."""
    features = [f"feature_{i}" for i in range(num_features)] if num_features != 3 else ["normals"]
    return {"features": features, "normalize": "sphere", "up_axis": "z"}


def draw(available: int, num_points: int, votes: int, seed: int) -> Tensor:
    """Which points of a cloud go through the network: `num_points` of them, `votes` times.

    Draws follow each other in one random order of all points, so that no point comes twice before each came once. A
    cloud that is not larger than one draw needs no other: it is taken as it is, its points repeated where there are too
    few.

    Shape:
        indices (votes or 1, num_points).
    """
    if votes < 1:
        raise InputError(f"expected votes >= 1, but got {votes}")
    if available <= num_points:
        return (torch.arange(num_points) % available)[None]
    if available > _MANY and _FEW * votes * num_points < available:  # the order of all would take 8 bytes a point
        few = np.random.default_rng(seed % (1 << 64)).choice(available, votes * num_points, replace=False)
        return torch.from_numpy(few).view(votes, num_points)
    order = torch.randperm(available, generator=torch.Generator().manual_seed(seed))
    return order[torch.arange(votes * num_points) % available].view(votes, num_points)


def carry(pos: Tensor, drawn: Drawn, known: Tensor) -> tuple[Tensor, Tensor]:
    """The most probable part of every point, from the probabilities of those that were drawn.

    Args:
        pos: (N, 3), points of the cloud, before it is normalized.
        drawn: the S points that went through the network.
        known: (S, P), what it says of them.

    Shape:
        parts (N,) in [0, P) and their probabilities (N,), on the CPU.
    """
    device = known.device
    if len(known) == drawn.available == len(pos):
        best = known.max(dim=1)
        return best.indices.cpu(), best.values.cpu()
    support = drawn.pos.to(device)[None]
    parts, values = torch.empty(len(pos), dtype=torch.long), torch.empty(len(pos))
    for chunk, of_part, of_value in zip(pos.split(_CHUNK), parts.split(_CHUNK), values.split(_CHUNK), strict=True):
        normalized = apply_placement(chunk, drawn.place).float().to(device)
        best = interpolate(normalized[None], support, known[None])[0].max(dim=1)
        of_part.copy_(best.indices)
        of_value.copy_(best.values.clamp(max=1.0))  # a mean of ones may exceed one by a rounding
    return parts, values
