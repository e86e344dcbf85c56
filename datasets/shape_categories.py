"""The categories of the `Shapes` data set, their parts, and how one object of a category is drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from . import shape_furniture, shape_machines, shape_vessels
from .primitives import Surface, rotation

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
    Category("airplane", ("fuselage", "wing", "tail", "engine"), shape_machines.airplane),
    Category("bench", ("seat", "leg", "back", "arm"), shape_furniture.bench),
    Category("bottle", ("body", "neck", "cap"), shape_vessels.bottle),
    Category("bucket", ("body", "rim", "handle"), shape_vessels.bucket),
    Category("car", ("body", "cabin", "wheel", "bumper", "spoiler"), shape_machines.car),
    Category("chair", ("seat", "leg", "back", "arm"), shape_furniture.chair),
    Category("desk", ("top", "leg", "drawer", "panel"), shape_furniture.desk),
    Category("guitar", ("body", "neck", "head", "bridge", "string"), shape_machines.guitar),
    Category("knife", ("blade", "handle", "guard"), shape_machines.knife),
    Category("lamp", ("base", "pole", "shade", "bulb"), shape_furniture.lamp),
    Category("mug", ("body", "handle", "saucer"), shape_vessels.mug),
    Category("pot", ("body", "handle", "lid"), shape_vessels.pot),
    Category("rocket", ("body", "nose", "fin", "nozzle", "booster"), shape_machines.rocket),
    Category("screwdriver", ("shaft", "tip", "handle", "collar"), shape_machines.screwdriver),
    Category("stool", ("seat", "leg", "rung"), shape_furniture.stool),
    Category("sword", ("blade", "handle", "guard", "pommel"), shape_machines.sword),
    Category("table", ("top", "leg", "drawer", "shelf"), shape_furniture.table),
    Category("teapot", ("body", "spout", "handle", "lid"), shape_vessels.teapot),
    Category("truck", ("cab", "cargo", "wheel", "chassis", "bumper"), shape_machines.truck),
    Category("umbrella", ("canopy", "shaft", "handle"), shape_furniture.umbrella),
    Category("vase", ("body", "neck", "foot", "ear"), shape_vessels.vase),
    Category("violin", ("body", "neck", "head", "bridge", "string", "chinrest"), shape_machines.violin),
)
