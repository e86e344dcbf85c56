"""The fifteen corruptions of ModelNet40-C at five severities, generated from clean clouds.

Sun et al. 2022, "Benchmarking Robustness of 3D Point Cloud Recognition Against Common Corruptions",
https://arxiv.org/abs/2201.12296. Severities are those of the authors' generator, which works on 1024 points; numbers of
points are scaled to other clouds. `CORRUPTIONS.md` beside this file shows them and says what differs.
"""

from __future__ import annotations

import difflib
import math
import zlib
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from pcattn.data import DenseClouds, PointBatch
from pcattn.ops import knn
from pcattn.utils.errors import InputError

Array = NDArray[np.float64]
Indices = NDArray[np.int64]

SEVERITIES = (1, 2, 3, 4, 5)

#: Points that the authors' numbers refer to.
REFERENCE_POINTS = 1024

#: Fewer points than this, and the larger holes would leave nothing.
MIN_POINTS = 16


class Corruption(NamedTuple):
    """One corruption: how it is done, and how strongly at each severity.

    `apply(pos, level, num_points, rng)` takes the points (P, 3) with y up and returns the corrupted ones and, for each,
    the index of the point it came from, -1 where it came from none.
    """

    family: str  #: "density", "noise" or "transformation"
    apply: Callable[[Array, Any, int, Generator], tuple[Array, Indices]]
    levels: tuple[Any, Any, Any, Any, Any]  #: what severities 1 to 5 mean
    spare: int = 1  #: takes up to this many times `num_points` points, where the cloud has them


def corrupt(
    pos: Array | NDArray[np.float32],
    name: str,
    severity: int,
    num_points: int,
    seed: int = 0,
    index: int = 0,
    up_axis: str = "z",
) -> tuple[NDArray[np.float32], Indices]:
    """Corrupt one cloud.

    The result is a function of the arguments alone: not of other clouds, nor of the order of calls.

    Args:
        pos: (P, 3), P >= num_points, in the unit sphere about the origin.
        name: a key of `CORRUPTIONS`.
        severity: 1 to 5.
        num_points: N, the points of a clean cloud: the first ones. Occlusion, lidar and local density increase choose
            among all P.
        seed: of the randomness.
        index: which cloud of its data set this is.
        up_axis: the axis that points up, `"x"`, `"y"` or `"z"`.

    Returns:
        The corrupted cloud (N', 3), and the index (N',) in `pos` of the point that each of its points came from, -1 for
        points of the background. N' is the same for all clouds with the same N: N with these exceptions for N = 1024,
        severity 1 to 5: lidar 768; density_decrease 949 to 649; cutout 964 to 724; upsampling 1228 to 2048; background
        1046 to 1075.

    Raises:
        InputError: an argument is out of range, the cloud has too few points, or some are not finite.
    """
    corruption = find(name, severity)
    if up_axis not in ("x", "y", "z"):
        raise InputError(f"expected up_axis to be x, y or z, but got {up_axis!r}")
    if pos.ndim != 2 or pos.shape[1] != 3 or not MIN_POINTS <= num_points <= len(pos):
        raise InputError(
            f"expected pos (P, 3) and {MIN_POINTS} <= num_points <= P, but got {pos.shape} and num_points={num_points}"
        )
    if not np.isfinite(pos).all():
        raise InputError(f"expected finite points in cloud {index}, but got NaN or infinity")
    points = np.asarray(pos[: corruption.spare * num_points], dtype=np.float64)
    rng = np.random.default_rng([seed, zlib.crc32(name.encode()), severity, index])
    turns = 1 - "xyz".index(up_axis)  # of the axes, until y is up
    upright = np.roll(points, turns, axis=1)
    corrupted, source = corruption.apply(upright, corruption.levels[severity - 1], num_points, rng)
    return np.roll(corrupted, -turns, axis=1).astype(np.float32), source


def find(name: str, severity: int) -> Corruption:
    """The corruption of this name, once it and the severity are known to exist."""
    if name not in CORRUPTIONS:
        close = difflib.get_close_matches(name, CORRUPTIONS, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise InputError(f"expected corruption to be one of {', '.join(CORRUPTIONS)}, but got {name!r}{hint}")
    if severity not in SEVERITIES:
        raise InputError(f"expected severity of corruption {name} to be 1 to 5, but got {severity}")
    return CORRUPTIONS[name]


def parse_corruption(text: str) -> tuple[str, int]:
    """Name and severity from `name:severity`.

    Raises:
        InputError: it has another form, or there is no such corruption or severity.
    """
    name, _, severity = text.partition(":")
    if not severity.isdecimal():
        raise InputError(f"expected corruption to be name:severity like gaussian:3, but got {text!r}")
    find(name, int(severity))
    return name, int(severity)


def corrupt_batch(
    batch: PointBatch, name: str, severity: int, num_points: int, seed: int = 0, up_axis: str = "z"
) -> PointBatch:
    """Corrupt every cloud of a batch, see `corrupt`; labels of points follow their points.

    Raises:
        InputError: as `corrupt`; the clouds have features, which would not fit corrupted positions; points of the
            background would need labels; or the clouds reach far beyond the unit sphere.
    """
    if batch.channels is not None:
        raise InputError("expected clouds of positions alone for a corruption, but got features")
    if name == "background" and batch.label.dim() == 2:
        raise InputError(
            "expected labels of clouds for background points, which are of no part, but got those of points"
        )
    pos = batch.pos.cpu().numpy()
    if (radius := float(np.abs(pos).max(initial=0.0))) > 2:
        raise InputError(
            f"expected clouds in the unit sphere, which the severities refer to, but got a coordinate of {radius:g}"
        )
    results = [
        corrupt(cloud, name, severity, num_points, seed, int(index), up_axis)
        for cloud, index in zip(pos, batch.indices, strict=True)
    ]
    corrupted, source = (torch.from_numpy(np.stack(part)).to(batch.pos.device) for part in zip(*results, strict=True))
    label = batch.label.gather(1, source) if batch.label.dim() == 2 else batch.label
    return batch._replace(pos=corrupted.to(batch.pos.dtype), label=label, point_indices=None)


class CorruptedClouds(Dataset[PointBatch]):
    """Clouds whose batches are corrupted as they are read, see `corrupt_batch`.

    Args:
        clouds: gives batches by `(seed, indices)`, with up to `spare` times `num_points` points a cloud.
        corruption: `name:severity`.
        num_points: of a clean cloud.
        seed: of the randomness.
        up_axis: the axis that points up.
    """

    def __init__(self, clouds: DenseClouds, corruption: str, num_points: int, seed: int, up_axis: str) -> None:
        self.clouds, self.num_points, self.seed, self.up_axis = clouds, num_points, seed, up_axis
        self.name, self.severity = parse_corruption(corruption)
        # Of the clouds, as `DenseClouds` has them.
        self.per_point, self.label, self.category = clouds.per_point, clouds.label, clouds.category

    def __len__(self) -> int:
        return len(self.clouds)

    def __getitem__(self, key: tuple[int, Tensor]) -> PointBatch:
        return corrupt_batch(self.clouds[key], self.name, self.severity, self.num_points, self.seed, self.up_axis)


def _occlusion(pos: Array, level: int, num_points: int, rng: Generator) -> tuple[Array, Indices]:
    """What a camera sees from 30 to 60 degrees above the horizon, at a distance of 3."""
    tilt = rng.uniform(2 / 3 * math.pi, 5 / 6 * math.pi)
    scaled, camera = _turn(_fit_box(pos)), 3 * _direction(tilt, level, rng)
    seen = _resample(np.flatnonzero(_visible(scaled, camera)), num_points, rng)
    return _fit_box(_turn(scaled[seen])), seen


def _lidar(pos: Array, level: int, num_points: int, rng: Generator) -> tuple[Array, Indices]:
    """What a scanner sees from 22.5 degrees above the horizon, at a distance of 5, in lines one degree apart."""
    scaled, scanner = _turn(_fit_box(pos)), 5 * _direction(5 / 8 * math.pi, level, rng)
    seen = np.flatnonzero(_visible(scaled, scanner))
    x, y, z = (scaled[seen] - scanner).T
    distance, azimuth, polar = np.sqrt(x * x + y * y + z * z), np.arctan2(y, x), np.arctan2(np.hypot(x, y), z)
    line = (polar - polar.min()) / math.radians(1)
    within = np.abs(line % 1 - 0.5) <= 0.25  # the middle half of each degree, moved to its center
    polar = polar.min() + math.radians(1) * (np.floor(line) + 0.5)
    rays = np.stack((np.sin(polar) * np.cos(azimuth), np.sin(polar) * np.sin(azimuth), np.cos(polar)), axis=1)
    scanned = distance[:, None] * rays + scanner
    chosen = rng.choice(np.flatnonzero(within) if within.any() else np.arange(len(seen)), 3 * num_points // 4)
    return _turn(scanned[chosen]), seen[chosen]


def _density_increase(pos: Array, level: int, num_points: int, rng: Generator) -> tuple[Array, Indices]:
    """Some neighborhoods keep all of twice the points; the rest of the cloud is thinned to N points in total."""
    size, rest, kept = _scaled(100, num_points), np.arange(len(pos)), []
    for _ in range(level):
        near, rest = _split_neighborhood(pos, rest, size, rng)
        kept.append(near)
    chosen = np.concatenate((*kept, rng.choice(rest, num_points - level * size)))
    return pos[chosen], chosen


def _density_decrease(pos: Array, level: int, num_points: int, rng: Generator) -> tuple[Array, Indices]:
    """Some neighborhoods lose three quarters of their points."""
    size, rest = _scaled(100, num_points), np.arange(len(pos))
    for _ in range(level):
        near, others = _split_neighborhood(pos, rest, size, rng)
        survivors = rng.choice(near, size - 3 * size // 4, replace=False)
        rest = np.sort(np.concatenate((others, survivors)))
    return pos[rest], rest


def _cutout(pos: Array, level: int, num_points: int, rng: Generator) -> tuple[Array, Indices]:
    """Some neighborhoods are missing."""
    rest = np.arange(len(pos))
    for _ in range(level):
        _, rest = _split_neighborhood(pos, rest, _scaled(30, num_points), rng)
    return pos[rest], rest


def _uniform(pos: Array, level: float, num_points: int, rng: Generator) -> tuple[Array, Indices]:
    """Every coordinate is off by U[-level, level]."""
    return _fit_box(pos + rng.uniform(-level, level, pos.shape)), np.arange(len(pos))


def _gaussian(pos: Array, level: float, num_points: int, rng: Generator) -> tuple[Array, Indices]:
    """Every coordinate is off by a normal number of this standard deviation; then clipped to [-1, 1]."""
    return np.clip(pos + level * rng.standard_normal(pos.shape), -1, 1), np.arange(len(pos))


def _impulse(pos: Array, level: int, num_points: int, rng: Generator) -> tuple[Array, Indices]:
    """One point in `level` is off by 0.1 in every coordinate."""
    noisy, hit = pos.copy(), rng.choice(len(pos), len(pos) // level, replace=False)
    noisy[hit] += rng.choice((-0.1, 0.1), (len(hit), 3))
    return _fit_box(noisy), np.arange(len(pos))


def _upsampling(pos: Array, level: int, num_points: int, rng: Generator) -> tuple[Array, Indices]:
    """One more point for every `level`, off by U[-0.05, 0.05] from one that is there."""
    added = rng.choice(len(pos), len(pos) // level, replace=False)
    noise = rng.uniform(-0.05, 0.05, (len(added), 3))
    return _fit_box(np.concatenate((pos, pos[added] + noise))), np.concatenate((np.arange(len(pos)), added))


def _background(pos: Array, level: int, num_points: int, rng: Generator) -> tuple[Array, Indices]:
    """One more point for every `level`, anywhere in [-1, 1]^3."""
    count = len(pos) // level
    added = rng.uniform(-1, 1, (count, 3))
    return _fit_box(np.concatenate((pos, added))), np.concatenate((np.arange(len(pos)), np.full(count, -1)))


def _rotation(pos: Array, level: float, num_points: int, rng: Generator) -> tuple[Array, Indices]:
    """Turned about each axis by `level` degrees, give or take 2.5, in either direction."""
    (a, b, c) = np.radians(rng.uniform(level - 2.5, level + 2.5, 3) * rng.choice((-1, 1), 3))
    about_x = np.array([[1, 0, 0], [0, math.cos(a), -math.sin(a)], [0, math.sin(a), math.cos(a)]])
    about_y = np.array([[math.cos(b), 0, math.sin(b)], [0, 1, 0], [-math.sin(b), 0, math.cos(b)]])
    about_z = np.array([[math.cos(c), -math.sin(c), 0], [math.sin(c), math.cos(c), 0], [0, 0, 1]])
    return _fit_box(pos @ about_x @ about_y @ about_z), np.arange(len(pos))


def _shear(pos: Array, level: float, num_points: int, rng: Generator) -> tuple[Array, Indices]:
    """Both horizontal coordinates shift with the two others, by `level` times as much, give or take 0.05."""
    to_z_from_x, to_x_from_y, to_z_from_y, to_x_from_z = rng.uniform(level - 0.05, level + 0.05, 4) * rng.choice(
        (-1, 1), 4
    )
    matrix = np.array([[1, 0, to_z_from_x], [to_x_from_y, 1, to_z_from_y], [to_x_from_z, 0, 1]])
    return _fit_box(pos @ matrix), np.arange(len(pos))


def _ffd(pos: Array, level: float, num_points: int, rng: Generator) -> tuple[Array, Indices]:
    """Free-form deformation: Bernstein polynomials on 5^3 control points of [-1, 1]^3.

    Each is off by U[-level, level] times the edge of the cube on every axis.
    """
    shift = rng.uniform(-level, level, (5, 5, 5, 3))
    inside = (np.abs(pos) <= 1).all(axis=1)
    t = (pos[inside] + 1)[..., None] / 2  # (P, 3, 1), in [0, 1]
    order = np.arange(5)
    bernstein = np.array([math.comb(4, i) for i in order]) * t**order * (1 - t) ** (4 - order)  # (P, 3, 5)
    moved = pos.copy()
    moved[inside] += 2 * np.einsum("pi,pj,pk,ijkc->pc", *bernstein.transpose(1, 0, 2), shift, optimize=True)
    return _fit_box(moved), np.arange(len(pos))


def _rbf(pos: Array, level: float, num_points: int, rng: Generator) -> tuple[Array, Indices]:
    """Radial basis functions sqrt(r^2 + 1/4) that move each of 5^3 control points by `level` in a random direction."""
    return _move_controls(pos, level, rng, inverse=False)


def _inverse_rbf(pos: Array, level: float, num_points: int, rng: Generator) -> tuple[Array, Indices]:
    """As `_rbf`, with 1 / sqrt(r^2 + 1/4)."""
    return _move_controls(pos, level, rng, inverse=True)


#: Every corruption by its name, in the order of the paper.
CORRUPTIONS: dict[str, Corruption] = {
    "occlusion": Corruption("density", _occlusion, (1, 2, 3, 4, 5), spare=2),  # the side it is seen from, no strength
    "lidar": Corruption("density", _lidar, (1, 2, 3, 4, 5), spare=2),  # likewise
    "density_increase": Corruption("density", _density_increase, (1, 2, 3, 4, 5), spare=2),
    "density_decrease": Corruption("density", _density_decrease, (1, 2, 3, 4, 5)),
    "cutout": Corruption("density", _cutout, (2, 3, 5, 7, 10)),
    "uniform": Corruption("noise", _uniform, (0.01, 0.02, 0.03, 0.04, 0.05)),
    "gaussian": Corruption("noise", _gaussian, (0.01, 0.015, 0.02, 0.025, 0.03)),
    "impulse": Corruption("noise", _impulse, (30, 25, 20, 15, 10)),
    "upsampling": Corruption("noise", _upsampling, (5, 4, 3, 2, 1)),
    "background": Corruption("noise", _background, (45, 40, 35, 30, 20)),
    "rotation": Corruption("transformation", _rotation, (2.5, 5, 7.5, 10, 15)),
    "shear": Corruption("transformation", _shear, (0.05, 0.1, 0.15, 0.2, 0.25)),
    "ffd": Corruption("transformation", _ffd, (0.1, 0.2, 0.3, 0.4, 0.5)),
    "rbf": Corruption("transformation", _rbf, (0.025, 0.05, 0.075, 0.1, 0.125)),
    "inverse_rbf": Corruption("transformation", _inverse_rbf, (0.025, 0.05, 0.075, 0.1, 0.125)),
}


def _turn(pos: Array) -> Array:
    """From y up to z up, and back: the rotation (x, y, z) -> (-x, z, y), which is its own inverse."""
    return pos[:, [0, 2, 1]] * (-1, 1, 1)


def _fit_box(pos: Array) -> Array:
    """The middle of the bounding box to the origin, its longest edge to length 2."""
    low, high = pos.min(axis=0), pos.max(axis=0)
    return (pos - (low + high) / 2) * (2 / max((high - low).max(), 1e-12))


def _scaled(count: int, num_points: int) -> int:
    """A number of points that refers to 1024, for clouds of `num_points`."""
    return max(1, round(count * num_points / REFERENCE_POINTS))


def _split_neighborhood(pos: Array, members: Indices, size: int, rng: Generator) -> tuple[Indices, Indices]:
    """The `size` members nearest to a random one, and the others."""
    distance = ((pos[members] - pos[rng.choice(members)]) ** 2).sum(axis=1)
    near = np.zeros(len(members), dtype=bool)
    near[np.argpartition(distance, size - 1)[:size]] = True
    return members[near], members[~near]


def _resample(members: Indices, count: int, rng: Generator) -> Indices:
    """`count` of the members: a choice where there are enough, all and some of them again where there are not."""
    if len(members) >= count:
        return rng.choice(members, count, replace=False)
    return np.concatenate((members, rng.choice(members, count - len(members))))


def _direction(tilt: float, sector: int, rng: Generator) -> Array:
    """Where a view comes from, with z up: the authors' camera, in the given fifth of the horizon."""
    turn = rng.uniform(2 * sector - 1, 2 * sector + 1) * math.pi / 5
    return np.array([-math.sin(tilt) * math.sin(turn), math.sin(tilt) * math.cos(turn), -math.cos(tilt)])


def _visible(pos: Array, camera: Array) -> NDArray[np.bool_]:
    """Which points are visible from a camera outside the cloud.

    The cells of the depth image are wide enough for a surface to leave no hole. A point is hidden if its own or a
    neighboring cell holds a point that is nearer by more than a slanted surface explains.
    """
    cloud = torch.from_numpy(pos)[None]
    spacing = float(knn(cloud, cloud, 2).distances[..., 1].sqrt().mean())
    cell = max(2.5 * spacing, 1e-3)
    depth_axis = -camera / np.linalg.norm(camera)
    right = np.cross(depth_axis, (0.0, 0.0, 1.0))
    right = right / np.linalg.norm(right)
    from_camera = pos - camera
    depth = from_camera @ depth_axis
    image = from_camera @ np.stack((right, np.cross(right, depth_axis)), axis=1)
    image = (
        image * np.linalg.norm(camera) / depth[:, None]
    )  # perspective, in units of length at the distance of the origin
    cells = np.floor(image / cell).astype(np.int64)
    column, row = (cells - cells.min(axis=0) + 1).T
    nearest = np.full((column.max() + 2, row.max() + 2), np.inf)
    np.minimum.at(nearest, (column, row), depth)
    around = [nearest[column + i, row + j] for i in (-1, 0, 1) for j in (-1, 0, 1)]
    return depth <= np.min(around, axis=0) + 3 * cell


def _kernel(distance: Array, inverse: bool) -> Array:
    value = np.sqrt(distance**2 + 0.25)
    return 1 / value if inverse else value


@lru_cache(maxsize=2)
def _rbf_system(inverse: bool) -> tuple[Array, Array]:
    """The control points (125, 3), and the matrix (125, 125) from their shifts to the weights of the kernels.

    The interpolant has a linear part as well. The identity is linear and takes no weights, so that shifts can be
    interpolated in place of positions.
    """
    axis = np.linspace(-1, 1, 5)
    controls = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)
    distance = np.linalg.norm(controls[:, None] - controls, axis=2)
    linear = np.concatenate((np.ones((125, 1)), controls), axis=1)
    system = np.block([[_kernel(distance, inverse), linear], [linear.T, np.zeros((4, 4))]])
    return controls, np.linalg.inv(system)[:, :125]


def _move_controls(pos: Array, level: float, rng: Generator, inverse: bool) -> tuple[Array, Indices]:
    controls, solve = _rbf_system(inverse)
    turn, tilt = rng.uniform(-math.pi, math.pi, (2, 125))
    shift = level * np.stack((np.cos(turn) * np.sin(tilt), np.sin(turn) * np.sin(tilt), np.cos(tilt)), axis=1)
    kernel = _kernel(np.linalg.norm(pos[:, None] - controls, axis=2), inverse)
    basis = np.concatenate((kernel, np.ones((len(pos), 1)), pos), axis=1)
    return _fit_box(pos + basis @ (solve @ shift)), np.arange(len(pos))
