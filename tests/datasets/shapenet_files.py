"""Small files in the three layouts of ShapeNetPart, and a user's own category in the same."""

import json
from pathlib import Path

import h5py
import numpy as np

OFFICIAL = {"Cap": ("02954340", [6, 7]), "Mug": ("03797390", [36, 37])}


def make_cloud(rng: np.random.Generator, parts: list[int], normals: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Points of a unit ball cut into slices, one a part: columns (N, 6) or (N, 3), and labels (N,)."""
    pos = rng.normal(size=(int(rng.integers(30, 60)), 3))
    pos /= np.linalg.norm(pos, axis=1, keepdims=True)
    ranks = pos[:, 1].argsort().argsort()
    labels = np.array(parts)[ranks * len(parts) // len(pos)]
    return (np.hstack((pos, pos)) if normals else pos), labels


def write_categories(root: Path, categories: dict[str, str]) -> None:
    root.mkdir(parents=True, exist_ok=True)
    lines = [f"{name}\t{folder}\n" for name, folder in categories.items()]
    (root / "synsetoffset2category.txt").write_text("".join(lines))


def write_lists(root: Path, splits: dict[str, list[str]]) -> None:
    folder = root / "train_test_split"
    folder.mkdir(exist_ok=True)
    for split, names in splits.items():
        entries = [f"shape_data/{name}" for name in names]
        (folder / f"shuffled_{split}_file_list.json").write_text(json.dumps(entries))


def write_text(root: Path, count: int = 8) -> Path:
    """Caps and mugs with normals and split lists: of each eight, four train, two validate and two test."""
    write_categories(root, {name: folder for name, (folder, _) in OFFICIAL.items()})
    rng = np.random.default_rng(0)
    splits: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for folder, parts in OFFICIAL.values():
        (root / folder).mkdir()
        for number in range(count):
            columns, labels = make_cloud(rng, parts)
            name = f"id{number}"
            table = np.hstack((columns, labels[:, None]))
            np.savetxt(root / folder / f"{name}.txt", table, fmt="%.6f")
            split = ("train", "val", "train", "test")[number % 4]
            splits[split].insert(0, f"{folder}/{name}")  # as if shuffled
    write_lists(root, splits)
    return root


def write_points(root: Path, categories: dict[str, tuple[str, int]], count: int = 3) -> Path:
    """`.pts` and `.seg` of categories given as name, folder and number of parts; no lists."""
    write_categories(root, {name: folder for name, (folder, _) in categories.items()})
    rng = np.random.default_rng(0)
    for folder, num_parts in categories.values():
        (root / folder / "points").mkdir(parents=True)
        (root / folder / "points_label").mkdir()
        for number in range(count):
            pos, labels = make_cloud(rng, list(range(1, num_parts + 1)), normals=False)
            np.savetxt(root / folder / "points" / f"id{number}.pts", pos, fmt="%.5f")
            np.savetxt(root / folder / "points_label" / f"id{number}.seg", labels, fmt="%d")
    return root


def write_hdf5(root: Path, num_points: int = 32) -> Path:
    """Three files as in `hdf5_data`."""
    root.mkdir(parents=True)
    rng = np.random.default_rng(0)
    parts = {2: [6, 7], 11: [36, 37]}
    for name, size in (("train0", 6), ("train1", 4), ("val0", 3), ("test0", 2)):
        category = rng.choice(list(parts), size=size)
        with h5py.File(root / f"ply_data_{name}.h5", "w") as file:
            file.create_dataset("data", data=rng.normal(size=(size, num_points, 3)).astype("f4"), compression="gzip")
            file["label"] = category.astype(np.uint8)[:, None]
            file["pid"] = np.array([rng.choice(parts[c], size=num_points) for c in category]).astype(np.uint8)
    return root


def write_own(root: Path, count: int = 100) -> Path:
    """One new category with the parts 50 to 53, positions alone, clouds of varying size far from the origin."""
    write_categories(root, {"gadget": "09990001"})
    (root / "09990001").mkdir()
    rng = np.random.default_rng(0)
    for number in range(count):
        pos, labels = make_cloud(rng, [50, 51, 52, 53], normals=False)
        table = np.hstack((pos * 40 + (300, -20, 70), labels[:, None]))
        np.savetxt(root / "09990001" / f"scan_{number:03d}.txt", table, fmt="%.3f %.3f %.3f %d")
    return root
