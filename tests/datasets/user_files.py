"""Folders of small clouds, as a user might have them."""

from pathlib import Path

import numpy as np

from pcattn.io.cloud import Cloud, write_ply


def ball(rng: np.random.Generator, num_points: int, stretch: tuple[float, float, float] = (1, 1, 1)) -> np.ndarray:
    """Points (N, 3) on an ellipsoid."""
    pos = rng.normal(size=(num_points, 3))
    return (pos / np.linalg.norm(pos, axis=1, keepdims=True) * stretch).astype(np.float32)


def write_clouds(root: Path, classes: dict[str, int], seed: int = 0, labels: bool = False) -> Path:
    """PLY files of 40 to 90 points with colors: balls, needles and discs, one folder a class.

    With labels, a property `part` is 1 above the middle of the cloud and 3 below.
    """
    rng = np.random.default_rng(seed)
    shapes = [(1, 1, 1), (0.1, 0.1, 1), (1, 1, 0.1)]
    for number, (name, count) in enumerate(classes.items()):
        folder = root / name
        folder.mkdir(parents=True)
        for index in range(count):
            pos = ball(rng, int(rng.integers(40, 91)), shapes[number % 3])
            attributes = {"colors": rng.integers(0, 256, size=(len(pos), 3)).astype(np.uint8)}
            if labels:
                attributes["part"] = np.where(pos[:, 2] > 0, 1, 3).astype(np.uint8)
            write_ply(folder / f"cloud_{index:02d}.ply", Cloud(pos, attributes))
    return root
