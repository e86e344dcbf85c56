"""The categories of the `Shapes` data set, their parts, and how one object of a category is drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pcattn.datasets.shapes import furniture, machines, vessels
from pcattn.datasets.shapes.primitives import Surface, rotation

Generator = np.random.Generator

HEADING = 0.5
"""Largest turn about z in radians."""
STRETCH = 0.4
"""Largest logarithm of the stretch along each axis."""
SHEAR = 0.12
"""Largest sideways lean of a unit of height."""


@dataclass(frozen=True)
class Category:
    """A kind of object.

    Attributes:
        name: of the category.
        parts: names of its parts, some of which an object may lack.
        build: draws the (part name, surface) pairs of one object, z up.
    """

    name: str
    parts: tuple[str, ...]
    build: Callable[[Generator], list[tuple[str, Surface]]]

    def draw(self, rng: Generator) -> tuple[Surface, NDArray[np.int64]]:
        """One object and the index (T,) into `parts` of each of its triangles.

        The object is also stretched along its axes, leaned and turned a little about z, so that its proportions and
        its heading alone do not give its category away.
        """
        pieces = self.build(rng)
        surface = Surface.join(piece for _, piece in pieces)
        sizes = [len(piece.corners) for _, piece in pieces]
        labels = np.repeat([self.parts.index(part) for part, _ in pieces], sizes)
        form = np.diag(np.exp(rng.uniform(-STRETCH, STRETCH, 3)))
        form[:2, 2] = rng.uniform(-SHEAR, SHEAR, 2)
        return surface.affine(rotation("z", rng.uniform(-HEADING, HEADING)) @ form), labels


CATEGORIES: tuple[Category, ...] = (
    Category("airplane", ("fuselage", "wing", "tail", "engine"), machines.airplane),
    Category("bench", ("seat", "leg", "back", "arm"), furniture.bench),
    Category("bottle", ("body", "neck", "cap"), vessels.bottle),
    Category("bucket", ("body", "rim", "handle"), vessels.bucket),
    Category("car", ("body", "cabin", "wheel", "bumper", "spoiler"), machines.car),
    Category("chair", ("seat", "leg", "back", "arm"), furniture.chair),
    Category("desk", ("top", "leg", "drawer", "panel"), furniture.desk),
    Category("guitar", ("body", "neck", "head", "bridge", "string"), machines.guitar),
    Category("knife", ("blade", "handle", "guard"), machines.knife),
    Category("lamp", ("base", "pole", "shade", "bulb"), furniture.lamp),
    Category("mug", ("body", "handle", "saucer"), vessels.mug),
    Category("pot", ("body", "handle", "lid"), vessels.pot),
    Category("rocket", ("body", "nose", "fin", "nozzle", "booster"), machines.rocket),
    Category("screwdriver", ("shaft", "tip", "handle", "collar"), machines.screwdriver),
    Category("stool", ("seat", "leg", "rung"), furniture.stool),
    Category("sword", ("blade", "handle", "guard", "pommel"), machines.sword),
    Category("table", ("top", "leg", "drawer", "shelf"), furniture.table),
    Category("teapot", ("body", "spout", "handle", "lid"), vessels.teapot),
    Category("truck", ("cab", "cargo", "wheel", "chassis", "bumper"), machines.truck),
    Category("umbrella", ("canopy", "shaft", "handle"), furniture.umbrella),
    Category("vase", ("body", "neck", "foot", "ear"), vessels.vase),
    Category("violin", ("body", "neck", "head", "bridge", "string", "chinrest"), machines.violin),
)
