"""`Shapes`: a data set of man-made objects with labeled parts that is generated rather than downloaded."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from hashlib import sha256
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch_geometric.data import Data
from torch_geometric.data.data import BaseData
from tqdm import tqdm

from pcattn.data.dataset import PointCloudDataset
from pcattn.datasets.shapes.categories import CATEGORIES
from pcattn.datasets.shapes.primitives import Surface
from pcattn.utils.errors import InputError
from pcattn.utils.files import atomic_write
from pcattn.utils.tensors import load_tensors

Array = NDArray[np.float64]

VERSION = 1
"""Part of the name of a cached split; grows whenever the same options give other shapes."""


def _visible(pos: Array, normals: Array, rng: np.random.Generator, cells: int = 40) -> NDArray[np.bool_]:
    """Which of the points (N, 3) are visible from far away, in a random direction that is not steeply from below.

    A point is hidden if its surface faces away, or if another point lies clearly in front of it in the same cell of a
    depth buffer of cells x cells. `pcattn.transforms.corruptions` has a depth buffer for a camera at a given place and
    clouds without normals; shapes generated with it would differ from those of earlier versions.
    """
    azimuth, height = rng.uniform(0.0, 2 * np.pi), rng.uniform(-0.3, 0.9)
    level = np.sqrt(1.0 - height**2)
    view = np.array((level * np.cos(azimuth), level * np.sin(azimuth), height))
    right = np.array((-np.sin(azimuth), np.cos(azimuth), 0.0))
    up = np.cross(view, right)
    extent = np.ptp(pos, axis=0).max()
    image = pos @ np.stack((right, up), axis=1)
    image = np.minimum(((image - image.min(axis=0)) / extent / np.sqrt(3.0) * cells).astype(int), cells - 1)
    cell = image[:, 0] * cells + image[:, 1]
    depth = pos @ view
    order = np.argsort(depth)
    nearest = np.zeros(cells * cells, dtype=int)
    nearest[cell[order]] = order  # the last one written is the nearest one
    front = nearest[cell]
    # A surface seen at a slant spreads within one cell over a depth in proportion to the tangent of its angle.
    facing = normals @ view
    tangent = np.sqrt(np.maximum(1.0 - facing**2, 0.0)) / np.maximum(facing, 0.1)
    tolerance = (0.5 + 1.5 * np.minimum(tangent, tangent[front])) * np.sqrt(3.0) * extent / cells
    return (facing > 0.0) & (depth > depth[front] - tolerance)


def sample_object(
    surface: Surface,
    labels: NDArray[np.int64],
    num_points: int,
    rng: np.random.Generator,
    noise: float = 0.0,
    partial: bool = False,
) -> tuple[Array, Array, NDArray[np.int64]]:
    """Draw a point cloud from an object.

    Args:
        surface: surface of the whole object.
        labels: (T,) part of each triangle of `surface`.
        num_points: number N of points to return.
        rng: source of all random numbers.
        noise: standard deviation of the jitter relative to the radius of the cloud, clipped at three of them.
        partial: whether to keep only what is visible from one random side.

    Returns:
        Positions (N, 3), with their centroid at the origin and, before the jitter, within the unit sphere; unit
        normals (N, 3); parts (N,).
    """
    # A view shows about a third of the points, and a sparse depth buffer would let points behind show through.
    pos, normals, chosen = surface.sample(max(4 * num_points, 4096) if partial else num_points, rng)
    if partial:
        visible = np.flatnonzero(_visible(pos, normals, rng))
        keep = rng.choice(visible, num_points, replace=len(visible) < num_points)
        pos, normals, chosen = pos[keep], normals[keep], chosen[keep]
    pos = pos - pos.mean(axis=0)
    pos /= max(np.sqrt((pos**2).sum(axis=1).max()), 1e-12)
    if noise > 0.0:
        pos += noise * np.clip(rng.standard_normal(pos.shape), -3.0, 3.0)
    return pos, normals, labels[chosen]


class Shapes(PointCloudDataset):
    """Man-made objects of 22 categories with labeled parts, drawn at random from parametric families.

    Every object is sampled uniformly by area, has z up, its centroid at the origin and fits the unit sphere. Each
    `Data` holds `pos` (N, 3) and unit normals `x` (N, 3) in float32, the global part labels `y` (N,) and `category`
    (1,) in int64. Shape i of a split depends only on the seed, the split and i; its category is i modulo the number
    of categories.

    A split is generated once and cached as `processed/<split>-<options>.pt` below `root`.

    Args:
        root: folder of the data set.
        split: `"train"` or `"test"`.
        num_points: points N in each cloud.
        seed: another seed gives other objects.
        num_train: number of training shapes.
        num_test: number of test shapes.
        noise: standard deviation of the Gaussian jitter of the positions, relative to the unit sphere.
        partial: keep only the points visible from one random side.
        transform: see `PointCloudDataset`.
        pre_transform: applied to each `Data` before it is cached; identified by its `repr`.
        pre_filter: tells which `Data` to cache; identified by its `repr`.
        force_reload: generate the split even if it is cached.
    """

    splits = ("train", "test")
    feature_names = ("nx", "ny", "nz")
    normalized = "sphere"
    shuffled = True
    class_names = tuple(category.name for category in CATEGORIES)
    part_names = tuple(f"{category.name}/{part}" for category in CATEGORIES for part in category.parts)
    parts = tuple(
        tuple(range(end - len(category.parts), end))
        for category, end in zip(CATEGORIES, accumulate(len(c.parts) for c in CATEGORIES), strict=True)
    )

    def __init__(
        self,
        root: str,
        split: str = "train",
        num_points: int = 2048,
        seed: int = 0,
        num_train: int = 4000,
        num_test: int = 1000,
        noise: float = 0.0,
        partial: bool = False,
        transform: Callable[[Data], Data] | None = None,
        pre_transform: Callable[[Data], Data] | None = None,
        pre_filter: Callable[[Data], bool] | None = None,
        force_reload: bool = False,
    ) -> None:
        for name, value, least in (
            ("num_points", num_points, 1),
            ("seed", seed, 0),
            ("num_train", num_train, 1),
            ("num_test", num_test, 1),
        ):
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
                raise InputError(f"expected {name} to be an integer >= {least}, but got {value!r}")
        if not (isinstance(noise, (int, float)) and 0.0 <= noise < float("inf")):
            raise InputError(f"expected noise to be a finite number >= 0, but got {noise!r}")
        self.num_points = num_points
        self.seed = seed
        self.size = num_train if split == "train" else num_test
        self.noise = float(noise)
        self.partial = partial
        super().__init__(root, split, transform, pre_transform, pre_filter)
        # `process` is not overridden: the base class would keep a record of pre_transform for the whole folder and
        # warn when two splits differ in it, while here it is part of the file name.
        path = self.processed_paths[0]
        if force_reload or not os.path.exists(path):
            self._generate(path)
        try:
            self.load(path)
        except MemoryError:
            raise
        except Exception:  # truncated or foreign, whatever torch raises for that. Generating it anew takes seconds.
            self._generate(path)
            self.load(path)

    def load(self, path: str, data_cls: type[BaseData] = Data) -> None:
        """Read a cached split as tensors only: torch-geometric would run code that an untrusted file may contain."""
        data, self.slices, *_ = load_tensors(path)
        self.data = data_cls.from_dict(data)

    @staticmethod
    def recognizes(root: str) -> bool:
        """Whether the training split with default options lies under `root`. Nothing is generated to find out."""
        return Path(root, "processed", f"train-v{VERSION}-seed0-4000x2048.pt").is_file()

    @property
    def raw_file_names(self) -> list[str]:
        """None: the shapes are generated."""
        return []

    @property
    def processed_file_names(self) -> list[str]:
        """Name of the cached split, with all options that the shapes depend on."""
        tag = f"v{VERSION}-seed{self.seed}-{self.size}x{self.num_points}"
        if self.noise > 0.0:
            tag += f"-noise{self.noise!r}"
        if self.partial:
            tag += "-partial"
        if self.pre_transform is not None or self.pre_filter is not None:
            # Addresses of functions differ from run to run.
            steps = re.sub(r" at 0x[0-9a-fA-F]+", "", repr((self.pre_transform, self.pre_filter)))
            tag += f"-{sha256(steps.encode()).hexdigest()[:10]}"
        return [f"{self.split}-{tag}.pt"]

    def generate_shape(self, index: int) -> Data:
        """Shape `index` of the split as it is before `pre_transform`."""
        which = index % len(CATEGORIES)
        rng = np.random.default_rng([self.seed, 0 if self.split == "train" else 1, index])
        surface, labels = CATEGORIES[which].draw(rng)
        pos, normals, part = sample_object(surface, labels, self.num_points, rng, self.noise, self.partial)
        return Data(
            x=torch.from_numpy(normals.astype(np.float32)),
            pos=torch.from_numpy(pos.astype(np.float32)),
            y=torch.from_numpy(part + self.parts[which][0]),
            category=torch.tensor([which]),
        )

    def _generate(self, path: str) -> None:
        """Generate the split and write it to `path` atomically."""
        shapes = []
        for index in tqdm(range(self.size), desc=f"Shapes ({self.split})", leave=False):
            shape = self.generate_shape(index)
            if self.pre_filter is not None and not self.pre_filter(shape):
                continue
            shapes.append(shape if self.pre_transform is None else self.pre_transform(shape))
        if not shapes:
            raise InputError(f"expected pre_filter to keep some of the {self.size} shapes, but got none")
        os.makedirs(self.processed_dir, exist_ok=True)
        with atomic_write(Path(path)) as temporary:
            self.save(shapes, str(temporary))
