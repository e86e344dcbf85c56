"""Furniture and standing household objects of the `Shapes` data set: one function for each category.

Each function draws one object: `rng -> [(part name, surface), ...]`, z up and the front towards -y, in arbitrary units.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from pcattn.datasets.shapes.primitives import (
    Surface,
    box,
    cylinder,
    ellipse,
    ellipsoid,
    extrude,
    loft,
    revolve,
    rounded_box,
    spline,
    strut,
    torus,
    tube,
)

Parts = list[tuple[str, Surface]]
Generator = np.random.Generator


def _slab(rng: Generator, width: float, depth: float, thickness: float, kinds: tuple[str, ...]) -> Surface:
    """A horizontal slab around the origin in one of the styles "flat", "rounded" and "round"."""
    kind = rng.choice(kinds)
    if kind == "flat":
        return box((width, depth, thickness), taper=rng.uniform(0.9, 1.05))
    if kind == "rounded":
        return rounded_box((width, depth, thickness), rng.uniform(0.2, 0.5) * thickness)
    power = rng.choice([2.0, 2.0, 4.0])
    return extrude(ellipse(width / 2, depth / 2, 20, power), thickness).moved(z=-thickness / 2)


def _corner_legs(rng: Generator, width: float, depth: float, height: float, thickness: float) -> list[Surface]:
    """Four legs from the corners of a width x depth seat or top at z = `height` to the floor."""
    splay = rng.choice([0.0, rng.uniform(0.0, 0.12)]) * height
    square = rng.random() < 0.5
    taper = rng.uniform(0.4, 1.0)
    rake = rng.uniform(0.0, 0.1) * height * (rng.random() < 0.3)
    legs = []
    for x in (-0.5, 0.5):
        for y in (-0.5, 0.5):
            top = np.array((x * width, y * depth, height))
            shift = (np.sign(x) * splay, np.sign(y) * splay + (rake if y > 0 else 0.0), -height)
            foot = top + np.array(shift)
            legs.append(strut(top, foot, (2 * thickness, 2 * thickness) if square else thickness, taper))
    return legs


def _rungs(rng: Generator, width: float, depth: float, height: float, thickness: float) -> list[Surface]:
    """Bars between the four legs below a seat or a top."""
    level = rng.uniform(0.15, 0.6) * height
    w, d = width / 2, depth / 2
    if rng.random() < 0.5:
        ends = [((-w, -d), (w, -d)), ((-w, d), (w, d)), ((-w, -d), (-w, d)), ((w, -d), (w, d))]
        return [strut((*a, level), (*b, level), thickness) for a, b in ends[: rng.choice([2, 4])]]
    ends = [((-w, -d), (-w, d)), ((w, -d), (w, d)), ((-w, 0.0), (w, 0.0))]
    return [strut((*a, level), (*b, level), thickness) for a, b in ends]


def _dome(radius: float, height: float) -> Surface:
    """Half an ellipsoid standing on its flat face in the plane z = 0."""
    angle = np.linspace(0.0, np.pi / 2, 6)
    return revolve([(0.0, 0.0), *zip(radius * np.cos(angle), height * np.sin(angle), strict=True)])


def _pedestal(rng: Generator, height: float, spread: float, thickness: float) -> list[Surface]:
    """A central column on a disc, a dome or a star of feet."""
    column = [cylinder(thickness * rng.uniform(1.0, 1.8), height, thickness)]
    kind = rng.integers(3)
    if kind == 0:
        return [*column, cylinder(spread, 0.03 * height + 0.01, 0.9 * spread)]
    if kind == 1:
        rise = rng.uniform(0.08, 0.25) * height
        return [*column, _dome(spread, rise)]
    feet = rng.integers(3, 6)
    start = rng.uniform(0.0, 2 * np.pi)
    for k in range(feet):
        angle = start + 2 * np.pi * k / feet
        tip = (spread * np.cos(angle), spread * np.sin(angle), 0.6 * thickness)
        column.append(strut((0.0, 0.0, rng.uniform(0.1, 0.2) * height), tip, thickness * 0.8, 0.6))
        if rng.random() < 0.3:
            column.append(ellipsoid(0.9 * thickness).moved(*tip))
    return column


def _sled(width: float, depth: float, height: float, thickness: float, cantilever: bool) -> list[Surface]:
    """Two bent runners below the sides of a seat; cantilevered ones touch it at the front only."""
    bars = []
    w, d = width / 2, depth / 2
    for x in (-w, w):
        corners = [(x, d, 0.0), (x, -d, 0.0), (x, -d, height)]
        corners = corners if cantilever else [(x, d, height), *corners]
        bars += [strut(a, b, thickness) for a, b in pairwise(corners)]
        bars += [ellipsoid(thickness, segments=8).moved(*corner) for corner in corners[1:-1]]
    bars.append(strut((-w, d, 0.0), (w, d, 0.0), thickness))
    return bars


def _back(rng: Generator, width: float, height: float, thickness: float) -> Surface:
    """A back rest standing on the origin in the plane y = 0: solid, slatted, with ladder rungs, a hoop, or a grille."""
    kind = rng.choice(["solid", "solid", "rounded", "slats", "ladder", "hoop", "rail"])
    w = width / 2
    if kind == "solid":
        back = box((width, thickness, height), taper=(rng.uniform(0.7, 1.15), 1.0), divisions=4).moved(z=height / 2)
    elif kind == "rounded":
        outline = ellipse(w, height / 2, 18, rng.uniform(2.0, 5.0))
        back = extrude(outline, thickness).rotated("x", np.pi / 2).moved(y=thickness / 2, z=height / 2)
    elif kind == "hoop":
        angle = np.linspace(0.0, np.pi, 12)
        arch = np.stack((w * np.cos(angle), np.zeros(12), height * np.sin(angle) ** 0.8), axis=1)
        count = rng.integers(2, 6)
        spindles = []
        for x in np.linspace(-0.7, 0.7, count):
            spindles.append(strut((x * w, 0.0, 0.0), (x * w, 0.0, 0.97 * height * (1 - x**2) ** 0.4), 0.3 * thickness))
        back = Surface.join([tube(arch, 0.5 * thickness, 6), *spindles])
    else:
        posts = [strut((x, 0.0, 0.0), (x, 0.0, height), (thickness, thickness)) for x in (-w, w)]
        if kind == "ladder":
            levels = np.linspace(rng.uniform(0.25, 0.5), 0.93, rng.integers(2, 5))
            tall = 0.5 * (levels[1] - levels[0]) * height * rng.uniform(0.6, 1.2)
            bars = [box((width, 0.6 * thickness, tall), divisions=3).moved(z=z * height) for z in levels]
        elif kind == "rail":
            tall = rng.uniform(0.25, 0.5) * height
            bars = [rounded_box((1.1 * width, thickness, tall), 0.4 * thickness).moved(z=height - tall / 2)]
        else:
            bars = [box((width + thickness, thickness, 0.14 * height)).moved(z=0.93 * height)]
            count = rng.integers(3, 8)
            for x in np.linspace(-w, w, count + 2)[1:-1]:
                bars.append(strut((x, 0.0, 0.0), (x, 0.0, 0.9 * height), (0.5 * width / count, 0.5 * thickness)))
        back = Surface.join(posts + bars)
    # The center of the bend lies in front of the sitter.
    curvature = rng.choice([0.0, rng.uniform(0.0, 0.9)]) / width
    return back.bent(-curvature, "x", "y").rotated("x", -rng.uniform(0.0, 0.35))


def _arms(rng: Generator, width: float, depth: float, seat: float, thickness: float) -> list[Surface]:
    """Arm rests on both sides of a seat at z = `seat`: a rail on posts, a panel, or a bent tube."""
    rise = rng.uniform(0.18, 0.35)
    front, rear = -rng.uniform(0.25, 0.5) * depth, 0.5 * depth
    kind = rng.integers(3)
    arms = []
    for x in (-width / 2, width / 2):
        if kind == 0:
            arms.append(strut((x, front, seat), (x, front, seat + rise), 0.6 * thickness))
            arms.append(box((1.6 * thickness, rear - front, 0.8 * thickness)).moved(x, (front + rear) / 2, seat + rise))
        elif kind == 1:
            panel = rounded_box((1.8 * thickness, rear - front, rise + 0.1), 0.8 * thickness)
            arms.append(panel.moved(x, (front + rear) / 2, seat + rise / 2 - 0.05))
        else:
            path = [(x, front, seat), (x, front, seat + 0.8 * rise), (x, 0.0, seat + rise), (x, rear, seat + rise)]
            arms.append(tube(spline(path, 9), 0.6 * thickness, 6))
    return arms


def chair(rng: Generator) -> Parts:
    """A chair with four legs, a pedestal or runners, any kind of back, and arms or none."""
    u = rng.uniform
    width, depth, seat = u(0.4, 0.65), u(0.4, 0.6), u(0.32, 0.6)
    thickness = u(0.025, 0.09)
    bar = u(0.014, 0.032)
    kind = rng.choice(["legs", "legs", "pedestal", "sled", "cantilever"])
    if kind == "legs":
        legs = _corner_legs(rng, 0.88 * width, 0.88 * depth, seat, bar)
        if rng.random() < 0.4:
            legs += _rungs(rng, 0.88 * width, 0.88 * depth, seat, 0.7 * bar)
    elif kind == "pedestal":
        legs = _pedestal(rng, seat, u(0.4, 0.55) * width, 1.3 * bar)
    else:
        legs = _sled(0.9 * width, 0.9 * depth, seat, bar, kind == "cantilever")
    parts = [("leg", leg) for leg in legs]
    cushion = _slab(rng, width, depth, thickness, ("flat", "rounded", "rounded", "round"))
    parts.append(("seat", cushion.moved(z=seat + thickness / 2)))
    gap = rng.choice([0.0, u(0.0, 0.12)])
    back = _back(rng, width * u(0.75, 1.0), u(0.18, 0.75), u(0.02, 0.07))
    parts.append(("back", back.moved(y=0.46 * depth, z=seat + 0.5 * thickness + gap)))
    if gap > 0.03:
        for x in (-0.25, 0.25):
            post = strut(
                (x * width, 0.44 * depth, seat), (x * width, 0.47 * depth, seat + thickness + gap + 0.05), 0.02
            )
            parts.append(("back", post))
    if rng.random() < 0.45:
        parts += [("arm", arm) for arm in _arms(rng, width, depth, seat + thickness, u(0.02, 0.05))]
    return parts


def stool(rng: Generator) -> Parts:
    """A stool: low or a bar stool, on three or four legs or a pedestal, sometimes with a foot ring or a low lip."""
    u = rng.uniform
    width, seat = u(0.32, 0.5), u(0.35, 0.85)
    depth = width * rng.choice([1.0, u(0.65, 1.0)])
    thickness, bar = u(0.025, 0.1), u(0.014, 0.03)
    cushion = _slab(rng, width, depth, thickness, ("flat", "rounded", "round", "round"))
    if rng.random() < 0.25:
        cushion = box((width, depth, thickness), divisions=5).bent(u(0.5, 1.4) / width, "x", "z")
    parts = [("seat", cushion.moved(z=seat + thickness / 2))]
    kind = rng.choice(["four", "three", "pedestal"], p=[0.5, 0.25, 0.25])
    if kind == "four":
        legs = _corner_legs(rng, 0.75 * width, 0.75 * depth, seat, bar)
        rungs = _rungs(rng, 0.75 * width, 0.75 * depth, seat, 0.7 * bar)
    elif kind == "three":
        angles = 2 * np.pi * np.arange(3) / 3
        inner, outer = 0.25 * width, u(0.3, 0.6) * width
        legs = [
            strut((inner * np.cos(a), inner * np.sin(a), seat), (outer * np.cos(a), outer * np.sin(a), 0.0), bar)
            for a in angles
        ]
        level = u(0.2, 0.5)
        rungs = [torus(outer + level * (inner - outer), 0.6 * bar, sides=6).moved(z=level * seat)]
    else:
        legs = _pedestal(rng, seat, u(0.35, 0.55) * width, 1.3 * bar)
        rungs = [torus(u(0.2, 0.4) * width, 0.6 * bar, sides=6).moved(z=u(0.25, 0.45) * seat)]
    parts += [("leg", leg) for leg in legs]
    if rng.random() < 0.75:
        parts += [("rung", rung) for rung in rungs]
    if rng.random() < 0.25:
        # A lip which is lower than any chair's back.
        lip = _back(rng, 0.8 * width, u(0.08, 0.16), 0.03)
        parts.append(("seat", lip.moved(y=0.42 * depth, z=seat + thickness)))
    return parts


def bench(rng: Generator) -> Parts:
    """A bench for two or more, of planks or solid, with a back or none and with arms or none."""
    u = rng.uniform
    width, depth, seat = u(0.75, 1.6), u(0.3, 0.5), u(0.32, 0.5)
    thickness, bar = u(0.025, 0.09), u(0.018, 0.04)
    parts: Parts = []
    backed = rng.random() < 0.7
    # A solid bench without a back would be a low table.
    if not backed or rng.random() < 0.4:
        count = rng.integers(2, 6)
        plank = depth / count
        for y in (np.arange(count) - (count - 1) / 2) * plank:
            parts.append(("seat", box((width, 0.75 * plank, 0.6 * thickness)).moved(y=y, z=seat)))
    else:
        slab = _slab(rng, width, depth, thickness, ("flat", "rounded"))
        parts.append(("seat", slab.moved(z=seat)))
    kind = rng.choice(["legs", "panels", "trestle"], p=[0.5, 0.25, 0.25])
    if kind == "legs":
        legs = _corner_legs(rng, u(0.75, 0.95) * width, 0.85 * depth, seat, bar)
    elif kind == "panels":
        legs = [box((2 * bar, u(0.75, 1.0) * depth, seat)).moved(x * width, z=seat / 2) for x in (-0.42, 0.42)]
    else:
        legs = []
        for x in (-0.36 * width, 0.36 * width):
            legs.append(strut((x, 0.0, 0.0), (x, 0.0, seat), (2.5 * bar, 2.5 * bar)))
            legs.append(box((3 * bar, 0.95 * depth, 1.5 * bar)).moved(x, z=bar))
    parts += [("leg", leg) for leg in legs]
    if backed:
        back = _back(rng, u(0.9, 1.0) * width, u(0.2, 0.5), u(0.02, 0.05))
        parts.append(("back", back.moved(y=0.46 * depth, z=seat + thickness / 2)))
    if rng.random() < 0.45:
        parts += [("arm", arm) for arm in _arms(rng, width, depth, seat, u(0.02, 0.05))]
    return parts


def table(rng: Generator) -> Parts:
    """A table: round or square, on legs, panels or a pedestal, coffee to bar height, some with a drawer or a shelf."""
    u = rng.uniform
    width, height = u(0.6, 1.5), u(0.3, 0.95)
    depth = width * rng.choice([1.0, u(0.45, 0.9)])
    thickness, bar = u(0.02, 0.06), u(0.018, 0.045)
    top = _slab(rng, width, depth, thickness, ("flat", "rounded", "round"))
    parts = [("top", top.moved(z=height))]
    kind = rng.choice(["legs", "pedestal", "panels", "cross"], p=[0.55, 0.2, 0.1, 0.15])
    inner_width, inner_depth = u(0.65, 0.92) * width, u(0.65, 0.9) * depth
    if kind == "legs":
        legs = _corner_legs(rng, inner_width, inner_depth, height, bar)
        if rng.random() < 0.3:
            legs += _rungs(rng, inner_width, inner_depth, height, 0.7 * bar)
    elif kind == "pedestal":
        legs = _pedestal(rng, height, u(0.25, 0.42) * min(width, depth), 1.6 * bar)
    elif kind == "panels":
        legs = [box((1.5 * bar, inner_depth, height)).moved(x * inner_width, z=height / 2) for x in (-0.5, 0.5)]
    else:
        legs = []
        for x in (-0.45 * inner_width, 0.45 * inner_width):
            for sign in (-0.5, 0.5):
                low, high = (x, sign * inner_depth, 0.0), (x, -sign * inner_depth, height)
                legs.append(strut(low, high, (2 * bar, 2 * bar)))
    parts += [("leg", leg) for leg in legs]
    if rng.random() < 0.4 and kind != "pedestal":
        apron = u(0.07, 0.16)
        drawer = box((u(0.4, 0.9) * inner_width, 0.9 * inner_depth, apron)).moved(z=height - apron / 2)
        parts.append(("drawer", drawer))
        for x in (-0.12, 0.12)[: rng.choice([1, 2])]:
            knob = ellipsoid(u(0.012, 0.025), segments=8)
            parts.append(("drawer", knob.moved(x * width, -0.46 * inner_depth, height - apron / 2)))
    if rng.random() < 0.5 and kind in ("legs", "panels"):
        shelf = box((inner_width, inner_depth, 0.6 * thickness)).moved(z=u(0.15, 0.45) * height)
        parts.append(("shelf", shelf))
    return parts


def desk(rng: Generator) -> Parts:
    """A desk: a top on one or two drawer pedestals, on legs or panels elsewhere, with a modesty panel or a hutch."""
    u = rng.uniform
    width, depth, height = u(0.9, 1.6), u(0.45, 0.8), u(0.55, 0.85)
    thickness, bar = u(0.02, 0.06), u(0.018, 0.04)
    parts = [("top", _slab(rng, width, depth, thickness, ("flat", "rounded")).moved(z=height))]
    inner_width, inner_depth = u(0.85, 0.95) * width, u(0.8, 0.92) * depth
    chest_width = u(0.2, 0.32) * width
    style = rng.choice(["left", "right", "both", "hanging"])
    sides = {"left": (-1.0,), "right": (1.0,), "both": (-1.0, 1.0), "hanging": (rng.choice([-1.0, 1.0]),)}[style]
    chest_height = height * (u(0.2, 0.45) if style == "hanging" else u(0.75, 1.0))
    bottom = height - chest_height
    for side in sides:
        x = side * (inner_width - chest_width) / 2
        count = rng.integers(1, 3) if style == "hanging" else rng.integers(2, 5)
        parts.append(("drawer", box((chest_width, inner_depth, chest_height)).moved(x, z=bottom + chest_height / 2)))
        face = chest_height / count
        knob = rng.random() < 0.5
        for level in bottom + (np.arange(count) + 0.5) * face:
            front = -inner_depth / 2
            parts.append(("drawer", box((0.9 * chest_width, 0.03, 0.8 * face)).moved(x, front - 0.015, level)))
            pull = ellipsoid(0.02, segments=8) if knob else box((0.4 * chest_width, 0.03, 0.015))
            parts.append(("drawer", pull.moved(x, front - 0.04, level)))
    if style == "hanging":
        parts += [("leg", leg) for leg in _corner_legs(rng, inner_width, inner_depth, height, bar)]
    elif style == "both":
        for side in (-1.0, 1.0):
            for y in (-0.45, 0.45):
                x = side * (inner_width / 2 - 0.1 * chest_width)
                parts.append(("leg", strut((x, y * inner_depth, bottom), (x, y * inner_depth, -0.05), bar)))
    else:
        x = -sides[0] * inner_width / 2
        if rng.random() < 0.5:
            parts.append(("leg", box((1.5 * bar, inner_depth, height)).moved(x, z=height / 2)))
        else:
            for y in (-0.5, 0.5):
                parts.append(("leg", strut((x, y * inner_depth, height), (x, y * inner_depth, 0.0), bar)))
    if rng.random() < 0.6:
        tall = u(0.25, 0.8) * height
        parts.append(("panel", box((inner_width, 0.02, tall)).moved(y=0.45 * inner_depth, z=height - tall / 2)))
    if rng.random() < 0.25:
        tall = u(0.12, 0.4)
        parts.append(("panel", box((width, u(0.03, 0.2), tall)).moved(y=0.4 * depth, z=height + tall / 2)))
    return parts


def _shade(rng: Generator, radius: float, height: float) -> Surface:
    """A thin shade open below, its apex upwards and its rim at z = 0: a cone, a drum, a bell or a dome."""
    top = rng.uniform(0.15, 0.95) * radius
    kind = rng.integers(4)
    if kind <= 1:
        outer = np.array([(radius, 0.0), (top, height)])
    elif kind == 2:
        outer = spline([(radius, 0.0), (0.65 * radius, 0.35 * height), (0.3 * radius, height)], 7)
    else:
        angle = np.linspace(0.0, rng.uniform(0.4, 0.5) * np.pi, 7)
        outer = np.stack((radius * np.cos(angle), height * np.sin(angle)), axis=1)
    wall = 0.02 * radius
    inner = np.maximum(outer - (wall, 0.0), 0.0)[::-1]
    profile = [outer, inner]
    if rng.random() < 0.5:
        top_height = outer[-1, 1]
        closing = np.array([(0.0, top_height), (0.0, top_height - wall)])
        profile = [outer, closing, inner - (0.0, wall)]
    return revolve(np.concatenate(profile), crease=0.5)


def lamp(rng: Generator) -> Parts:
    """A floor, table or desk lamp with a jointed arm, or one hanging from a ceiling rose; some show the bulb."""
    u = rng.uniform
    kind = rng.choice(["standing", "standing", "jointed", "arc", "hanging"])
    height = u(0.6, 1.8)
    radius = u(0.16, 0.5)
    shade_height = radius * u(0.4, 1.8)
    bar = u(0.012, 0.04)
    spread = u(0.12, 0.35)
    shade = _shade(rng, radius, shade_height)
    if kind == "hanging":
        rose = cylinder(0.6 * spread, 0.06, 0.4 * spread * u(0.3, 1.5)).moved(z=height)
        cord = strut((0.0, 0.0, 0.6 * shade_height), (0.0, 0.0, height), 0.6 * bar)
        parts = [("base", rose), ("pole", cord)]
        joint = np.zeros(3)
    else:
        foot = rng.integers(3)
        if foot == 0:
            base = cylinder(spread, u(0.02, 0.1), spread * u(0.6, 1.0))
        elif foot == 1:
            base = _dome(spread, u(0.06, 0.3))
        else:
            base = Surface.join(_pedestal(rng, 0.2, spread, bar))
        parts = [("base", base)]
        joint = np.array((0.0, 0.0, height - 0.5 * shade_height))
        if kind == "standing":
            parts.append(("pole", strut((0.0, 0.0, 0.0), (0.0, 0.0, height + 0.2 * shade_height), bar, u(0.5, 1.0))))
            if rng.random() < 0.4:
                parts.append(
                    ("pole", ellipsoid((0.5 * spread, 0.5 * spread, u(0.1, 0.25))).moved(z=u(0.15, 0.4) * height))
                )
        elif kind == "jointed":
            elbow = np.array((u(-0.4, -0.1), 0.0, u(0.4, 0.6))) * height
            tip = elbow + np.array((u(0.3, 0.6), 0.0, u(0.1, 0.4))) * height
            parts += [("pole", strut((0.0, 0.0, 0.0), elbow, bar)), ("pole", strut(elbow, tip, bar))]
            parts.append(("pole", ellipsoid(1.6 * bar, segments=10).moved(*elbow)))
            joint = tip - (0.0, 0.0, 0.8 * shade_height)
            shade = shade.moved(z=-shade_height).rotated("y", -u(0.0, 0.9)).moved(z=shade_height)
        else:
            reach = u(0.3, 0.8) * height
            arc = spline(
                [(0.0, 0.0, 0.0), (0.0, 0.0, 0.6 * height), (0.5 * reach, 0.0, height), (reach, 0.0, 0.8 * height)], 12
            )
            parts.append(("pole", tube(arc, bar, 6)))
            joint = arc[-1] - (0.0, 0.0, 0.9 * shade_height)
    parts.append(("shade", shade.moved(*joint)))
    if rng.random() < 0.4:
        parts.append(("bulb", ellipsoid(u(0.2, 0.3) * radius, segments=10).moved(*joint).moved(z=0.3 * shade_height)))
    return parts


def umbrella(rng: Generator) -> Parts:
    """An umbrella or parasol: open to various degrees, with a crook, a knob or a stand."""
    u = rng.uniform
    radius, length = u(0.3, 0.6), u(0.7, 1.3)
    rise = radius * u(0.25, 1.2)
    bar = u(0.01, 0.025)
    count = rng.integers(6, 11)
    angle = 2 * np.pi * np.arange(2 * count) / (2 * count)
    # The cloth sags between the ribs: odd directions lie further inwards.
    sag = np.where(np.arange(2 * count) % 2 == 0, 1.0, np.cos(np.pi / count) * u(0.9, 1.0))
    shape = u(1.3, 2.5)
    sections = []
    for part in (1.0, 0.8, 0.6, 0.4, 0.2, 0.01):
        around = radius * part * sag**part
        drop = np.full(2 * count, -rise * part**shape)
        sections.append(np.stack((around * np.cos(angle), around * np.sin(angle), drop), axis=1))
    canopy = loft(np.stack(sections), caps=False, crease=0.5).moved(z=length)
    lining = Surface(canopy.corners - (0.0, 0.0, 0.012), -canopy.normals)
    parts = [("canopy", canopy), ("canopy", lining)]
    parts.append(("shaft", strut((0.0, 0.0, 0.0), (0.0, 0.0, length + u(0.03, 0.1)), bar)))
    if rng.random() < 0.5:
        hub = length - rise * u(0.7, 1.1)
        for a in angle[::2]:
            tip = (0.55 * radius * np.cos(a), 0.55 * radius * np.sin(a), length - rise * 0.55**shape)
            parts.append(("shaft", strut((0.0, 0.0, hub), tip, 0.4 * bar)))
    kind = rng.choice(["crook", "knob", "stand"], p=[0.45, 0.25, 0.3])
    grip = bar * u(1.2, 2.0)
    if kind == "crook":
        bend = u(0.04, 0.1)
        turn = np.linspace(0.0, np.pi * u(0.8, 1.1), 9)
        hook = np.stack((bend - bend * np.cos(turn), np.zeros(9), -bend * np.sin(turn)), axis=1)
        parts.append(("handle", tube(np.concatenate(([(0.0, 0.0, u(0.05, 0.2))], hook)), grip, 6)))
    elif kind == "knob":
        parts.append(("handle", cylinder(grip, u(0.1, 0.2), 1.2 * grip)))
        parts.append(("handle", ellipsoid(1.5 * grip, segments=10)))
    else:
        parts.append(("handle", cylinder(u(0.1, 0.28), u(0.03, 0.12), u(0.05, 0.2))))
    return parts
