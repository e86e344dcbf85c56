"""Vehicles, instruments and hand tools of the `Shapes` data set: one function for each category.

Each function draws one object: `rng -> [(part name, surface), ...]`, z up, its length along x, in arbitrary units.
"""

from __future__ import annotations

import numpy as np

from pcattn.datasets.shapes.primitives import (
    Array,
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


def _airfoil(chord: float, thickness: float) -> Array:
    """A counter-clockwise wing section (12, 2) with its leading edge at x = 0 and its trailing edge at x = `chord`."""
    x = chord * np.array((0.0, 0.05, 0.2, 0.45, 0.75, 1.0))
    half = 0.5 * thickness * chord * np.array((0.0, 0.6, 1.0, 0.9, 0.5, 0.06))
    return np.concatenate((np.stack((x[::-1], half[::-1]), 1), np.stack((x[1:], -half[1:]), 1)))


def _wing(root: float, tip: float, span: float, sweep: float, thickness: float, rise: float = 0.0) -> Surface:
    """A wing from the origin along +y; chords run along +x, the tip lies `sweep` further back and `rise` higher."""
    sections = []
    for part in (0.0, 0.5, 1.0):
        outline = _airfoil(root + part * (tip - root), thickness)
        sections.append(
            np.stack((outline[:, 0] + part * sweep, np.full(len(outline), part * span), outline[:, 1] + part * rise), 1)
        )
    # Seen against +y, a section counter-clockwise in (x, z) runs clockwise.
    return loft(np.stack(sections)[:, ::-1], crease=1.0)


def airplane(rng: Generator) -> Parts:
    """An airplane: airliner, jet, glider or propeller plane, with low or high wings and any of three tails."""
    u = rng.uniform
    length, radius = 2.0, u(0.07, 0.2)
    station = np.array((0.0, 0.03, 0.12, 0.3, 0.6, 0.8, 1.0)) * length
    nose, tail = u(0.3, 0.7), u(0.1, 0.3)
    width = radius * np.array((0.08, 0.5 * nose + 0.2, 0.9, 1.0, 1.0, 0.5 + 0.5 * tail, tail))
    lift = radius * np.array((0.0, 0.0, 0.0, 0.0, 0.0, 0.25, 0.6)) * u(0.0, 1.0)
    fuselage = tube(np.stack((station, np.zeros(7), lift), 1), np.stack((width, width * u(0.8, 1.2)), 1), 14)
    parts = [("fuselage", fuselage)]
    if rng.random() < 0.4:
        canopy = ellipsoid((u(0.12, 0.25), 0.6 * radius, 0.6 * radius), segments=12)
        parts.append(("fuselage", canopy.moved(x=u(0.3, 0.6), z=0.8 * radius)))
    span, root = u(0.55, 1.4), u(0.25, 0.65)
    tip, sweep = root * u(0.2, 1.0), rng.choice([0.0, u(0.0, 0.7), u(-0.15, 0.2)])
    level, at = u(-0.8, 0.9) * radius, u(0.45, 0.85)
    half = _wing(root, tip, span, sweep, u(0.06, 0.14), u(-0.05, 0.18) * span).moved(x=at, z=level)
    wings = [half, half.scaled((1.0, -1.0, 1.0))]
    if rng.random() < 0.12:
        gap = u(0.2, 0.35)
        wings += [wing.moved(z=gap) for wing in wings]
        for y in (-0.7, 0.7):
            wings.append(strut((at + 0.4 * root, y * span, level), (at + 0.4 * root, y * span, level + gap), 0.02))
    parts += [("wing", wing) for wing in wings]
    fin_root = u(0.2, 0.35)
    fin_tip, fin_height = fin_root * u(0.3, 0.8), u(0.2, 0.45)
    end = length - fin_root
    fin = _wing(fin_root, fin_tip, fin_height, u(0.05, 0.3), 0.1).rotated("x", np.pi / 2).moved(x=end, z=lift[-1])
    plane_span = u(0.2, 0.45)
    plane = _wing(0.8 * fin_root, 0.8 * fin_tip, plane_span, u(0.0, 0.2), 0.1)
    kind = rng.choice(["plain", "plain", "high", "vee", "twin"])
    if kind == "vee":
        vee = plane.rotated("x", u(0.5, 0.9)).moved(x=end, z=lift[-1])
        tails = [vee, vee.scaled((1.0, -1.0, 1.0))]
    else:
        height = lift[-1] + (0.95 * fin_height if kind == "high" else u(0.0, 0.2) * fin_height)
        plane = plane.moved(x=end + (0.15 if kind == "high" else 0.0), z=height)
        tails = [plane, plane.scaled((1.0, -1.0, 1.0))]
        tails += [fin.moved(y=y) for y in ((-plane_span, plane_span) if kind == "twin" else (0.0,))]
    parts += [("tail", piece) for piece in tails]
    drive = rng.choice(["wing", "wing", "rear", "propeller", "none"], p=[0.3, 0.15, 0.15, 0.3, 0.1])
    size, long = u(0.04, 0.09), u(0.18, 0.35)
    nacelle = tube(np.array([(0.0, 0, 0), (0.3 * long, 0, 0), (long, 0, 0)]), np.array((0.9, 1.0, 0.6)) * size, 10)
    if drive == "wing":
        for place in (0.35, 0.65)[: rng.choice([1, 2])]:
            engine = nacelle.moved(at + place * sweep - 0.4 * long, place * span, level - 1.1 * size)
            parts += [("engine", engine), ("engine", engine.scaled((1.0, -1.0, 1.0)))]
    elif drive == "rear":
        engine = nacelle.moved(end - 0.7 * long, radius + 0.6 * size, 0.3 * radius)
        parts += [("engine", engine), ("engine", engine.scaled((1.0, -1.0, 1.0)))]
    elif drive == "propeller":
        parts.append(("engine", ellipsoid((0.1, 0.4 * radius + 0.02, 0.4 * radius + 0.02), segments=10)))
        start, blade = u(0.0, np.pi), u(0.15, 0.35)
        for k in range(blades := rng.integers(2, 5)):
            paddle = box((0.015, 0.05, blade), taper=(1.0, 0.6)).moved(x=-0.03, z=blade / 2)
            parts.append(("engine", paddle.rotated("x", start + 2 * np.pi * k / blades)))
    return parts


def rocket(rng: Generator) -> Parts:
    """A rocket standing upright: nose, one or two stages, fins, nozzles, some with boosters."""
    u = rng.uniform
    radius = 0.25
    height = radius * u(3.0, 9.0)
    body = [(0.0, 0.0), (radius * u(0.7, 1.1), 0.0), (radius, 0.3 * height), (radius, height), (0.0, height)]
    if rng.random() < 0.4:
        step, upper = u(0.4, 0.75) * height, radius * u(0.6, 0.85)
        body[2:4] = [(radius, step), (upper, step + 0.15), (upper, height)]
        body[-1] = (0.0, height)
    elif rng.random() < 0.35:
        middle = radius * u(1.1, 1.5)
        body[1:4] = [
            tuple(p) for p in spline([(0.7 * radius, 0.0), (middle, 0.45 * height), (0.8 * radius, height)], 8)
        ]
    parts = [("body", revolve(body))]
    top = body[-2][0]
    rise = top * u(0.8, 3.5)
    if rng.random() < 0.5:
        nose = revolve([(0.0, 0.0), (top, 0.0), (0.02 * top, rise)])
    else:
        nose = revolve(
            np.array([(0.0, 0.0), *[(top * np.cos(a), rise * np.sin(a)) for a in np.linspace(0, np.pi / 2, 7)]])
        )
    parts.append(("nose", nose.moved(z=height)))
    if rng.random() < 0.2:
        parts.append(("nose", strut((0.0, 0.0, height + 0.9 * rise), (0.0, 0.0, height + 1.4 * rise), 0.1 * top)))
    count = rng.integers(3, 6)
    start = u(0.0, 2 * np.pi)
    root, reach = u(0.25, 0.7), u(0.15, 0.5)
    # The wing's chord points down the rocket, its span outwards.
    fin = _wing(root, root * u(0.2, 1.0), reach, u(-0.1, 0.5) * root, u(0.05, 0.12)).rotated("y", np.pi / 2)
    for k in range(count):
        placed = fin.moved(y=0.92 * body[1][0], z=root + u(0.0, 0.02))
        parts.append(("fin", placed.rotated("z", start + 2 * np.pi * k / count)))
    if rng.random() < 0.3:
        small = fin.scaled(0.5).moved(y=0.95 * top, z=u(0.7, 0.9) * height)
        parts += [("fin", small.rotated("z", start + 2 * np.pi * k / count)) for k in range(count)]
    if rng.random() < 0.8:
        drop, flare = u(0.08, 0.3), radius * u(0.4, 0.9)
        bell = [(flare, -drop), (0.45 * flare, 0.0), (0.4 * flare, 0.0), (0.93 * flare, -drop)]
        parts.append(("nozzle", revolve(bell)))
    if rng.random() < 0.35:
        size, tall = u(0.35, 0.55) * radius, u(0.3, 0.6) * height
        booster = Surface.join((cylinder(size, tall), cylinder(size, 2.5 * size, 0.0).moved(z=tall)))
        for k in range(pair := rng.choice([2, 4])):
            parts.append(("booster", booster.moved(x=radius + size).rotated("z", start + 0.5 + 2 * np.pi * k / pair)))
    return parts


def _wheels(rng: Generator, axles: tuple[float, ...], width: float, radius: float) -> list[Surface]:
    """Pairs of wheels that stand on z = 0 at the given places along x, flush with a vehicle `width` wide."""
    half = rng.uniform(0.05, 0.1)
    outline = [(0.0, -half), (0.8 * radius, -half), (radius, -0.6 * half)]
    wheel = revolve([*outline, *((r, -z) for r, z in reversed(outline))], segments=14, crease=1.0)
    wheel = wheel.rotated("x", np.pi / 2)
    return [wheel.moved(x, side * (0.5 * width - 0.5 * half), radius) for x in axles for side in (-1.0, 1.0)]


def car(rng: Generator) -> Parts:
    """A car: saloon, hatchback, van, pickup or sports car, with bumpers or a spoiler on some."""
    u = rng.uniform
    length, width = u(1.6, 2.4), u(0.7, 0.95)
    wheel = u(0.15, 0.24)
    floor, waist = u(0.12, 0.2), u(0.2, 0.4)
    body = rounded_box((length, width, waist), u(0.05, 0.12)).moved(z=floor + waist / 2)
    hood = u(0.8, 1.0)
    rising = 1.0 - (1.0 - hood) * np.clip(-body.corners[..., 0] / (0.5 * length), 0.0, 1.0)
    body.corners[..., 2] = floor + (body.corners[..., 2] - floor) * rising
    parts = [("body", body)]
    style = rng.choice(["saloon", "hatch", "van", "pickup", "sports"])
    front = {"saloon": u(-0.25, -0.1), "hatch": u(-0.25, -0.1), "van": u(-0.47, -0.35), "pickup": u(-0.2, -0.05)}
    rear = {"saloon": u(0.25, 0.38), "hatch": u(0.4, 0.49), "van": u(0.44, 0.49), "pickup": u(0.08, 0.2)}
    low_front, low_rear = front.get(style, u(-0.15, 0.0)) * length, rear.get(style, u(0.25, 0.4)) * length
    low_rear = max(low_rear, low_front + 0.35 * length)
    rise = {"van": u(0.4, 0.7), "sports": u(0.15, 0.25)}.get(style, u(0.25, 0.42))
    # The roof keeps at least half the length of the cabin.
    slope_front, slope_rear = np.minimum((u(0.05, 0.3), u(0.02, 0.25)), 0.25 * (low_rear - low_front))
    base = floor + waist - 0.02
    side = np.array(
        [
            (low_front, base),
            (low_rear, base),
            (low_rear - slope_rear, base + rise),
            (low_front + slope_front, base + rise),
        ]
    )
    lean = u(0.75, 0.95)
    lower, upper = 0.94 * width / 2, 0.94 * width / 2 * lean
    half_width = np.array((lower, lower, upper, upper))
    cabin = [np.stack((side[:, 0], sign * half_width, side[:, 1]), 1)[::-1] for sign in (-1.0, 1.0)]
    parts.append(("cabin", loft(np.stack(cabin), crease=0.3)))
    axle = u(0.28, 0.36) * length
    parts += [("wheel", piece) for piece in _wheels(rng, (-axle, axle), width, wheel)]
    if rng.random() < 0.7:
        for x in (-0.5, 0.5)[: rng.choice([1, 2], p=[0.3, 0.7])]:
            bar = rounded_box((u(0.05, 0.12), u(0.9, 1.05) * width, u(0.06, 0.14)), 0.03)
            parts.append(("bumper", bar.moved(x=x * (length + 0.03), z=floor + u(0.05, 0.12))))
    if style == "pickup" and rng.random() < 0.7:
        wall = box((0.48 * length - low_rear, 0.03, 0.12)).moved(
            x=(0.48 * length + low_rear) / 2, z=floor + waist + 0.04
        )
        parts += [("body", wall.moved(y=y * 0.46 * width)) for y in (-1.0, 1.0)]
    if rng.random() < (0.8 if style == "sports" else 0.3):
        parts.append(("spoiler", box((0.15, 0.9 * width, 0.025)).moved(x=0.45 * length, z=base + 0.14)))
        for y in (-0.3, 0.3):
            parts.append(("spoiler", box((0.08, 0.03, 0.16)).moved(0.45 * length, y * width, base + 0.07)))
    return parts


def truck(rng: Generator) -> Parts:
    """A truck: a cab in front of a bed with low walls, a closed box or a tank, on two or three axles."""
    u = rng.uniform
    length, width = u(1.7, 2.6), u(0.7, 0.95)
    wheel = u(0.14, 0.22)
    floor, cab_length = u(0.15, 0.25), u(0.2, 0.36) * length
    front = -0.5 * length
    cab_height = u(0.45, 0.85)
    cab = rounded_box((cab_length, width, cab_height), u(0.03, 0.08))
    # The windscreen leans backwards.
    lean = rng.choice([0.0, u(0.0, 0.35)])
    cab.corners[..., 0] += lean * np.maximum(cab.corners[..., 2], 0.0) * (cab.corners[..., 0] < 0.0)
    parts = [("cab", cab.moved(x=front + 0.5 * cab_length, z=floor + 0.5 * cab_height))]
    if rng.random() < 0.4:
        hood = rounded_box((u(0.25, 0.5), 0.9 * width, u(0.25, 0.45) * cab_height), 0.05)
        parts.append(("cab", hood.moved(x=front - 0.1, z=floor + 0.2 * cab_height)))
    gap = u(0.0, 0.12)
    start = front + cab_length + gap
    long = 0.5 * length - start
    middle = start + 0.5 * long
    chassis = box((length - 0.1, 0.6 * width, 0.08)).moved(z=floor + 0.02)
    parts.append(("chassis", chassis))
    tall = u(0.4, 0.95)
    kind = rng.choice(["box", "bed", "tank"], p=[0.45, 0.35, 0.2])
    if kind == "box":
        cargo = [box((long, width * u(0.95, 1.05), tall)).moved(x=middle, z=floor + 0.06 + 0.5 * tall)]
    elif kind == "bed":
        wall = 0.3 * tall
        cargo = [box((long, width, 0.05)).moved(x=middle, z=floor + 0.08)]
        cargo += [box((long, 0.03, wall)).moved(middle, y * width, floor + 0.08 + 0.5 * wall) for y in (-0.49, 0.49)]
        cargo += [box((0.03, width, wall)).moved(x, 0.0, floor + 0.08 + 0.5 * wall) for x in (start, start + long)]
    else:
        tank = cylinder(0.48 * width, long).rotated("y", np.pi / 2).scaled((1.0, 1.0, u(0.7, 1.0)))
        cargo = [tank.moved(x=start, z=floor + 0.06 + 0.45 * width)]
    parts += [("cargo", piece) for piece in cargo]
    axles: tuple[float, ...] = (front + u(0.25, 0.6) * cab_length, 0.5 * length - u(0.15, 0.25) * length)
    if rng.random() < 0.5:
        axles = (*axles, axles[1] - 2.2 * wheel)
    parts += [("wheel", piece) for piece in _wheels(rng, axles, width, wheel)]
    if rng.random() < 0.6:
        parts.append(
            ("bumper", rounded_box((0.07, u(0.9, 1.05) * width, u(0.06, 0.14)), 0.03).moved(x=front - 0.02, z=floor))
        )
    return parts


def _string_body(rng: Generator, length: float, width: float, waist: float, points: int = 40) -> Array:
    """The outline (points, 2) of a string instrument's body: two bouts along x with a waist between them."""
    angle = np.linspace(0.0, 2 * np.pi, points, endpoint=False)
    x = np.cos(angle)
    upper = rng.uniform(0.65, 0.9)
    bouts = 1.0 - (1.0 - upper) * (0.5 - 0.5 * x)
    half = 0.5 * width * bouts * np.sign(np.sin(angle)) * np.abs(np.sin(angle)) ** 0.7
    half *= 1.0 - waist * np.exp(-(((x + rng.uniform(0.0, 0.15)) / 0.35) ** 2))
    return np.stack((0.5 * length * x, half), axis=1)


def _strung(rng: Generator, violin: bool) -> Parts:
    """A guitar or a violin lying on its back, the neck along -x."""
    u = rng.uniform
    length, width = 1.0, u(0.55, 0.85)
    depth = u(0.08, 0.24)
    outline = _string_body(rng, length, width, u(0.22, 0.42) if violin else u(0.08, 0.36))
    body = extrude(outline, depth)
    parts = [("body", body)]
    if violin or rng.random() < 0.2:
        # Arched top and bottom.
        bulge = ellipsoid((0.4 * length, 0.32 * width, u(0.03, 0.07)), segments=14)
        parts += [("body", bulge.moved(z=depth)), ("body", bulge)]
    elif rng.random() < 0.6:
        ring = torus(u(0.1, 0.14), 0.015, sides=6).moved(x=-0.12, z=depth)
        parts.append(("body", ring))
    neck_length = u(0.55, 1.25)
    neck_width, neck_depth = u(0.06, 0.1), u(0.035, 0.07)
    neck = box((neck_length + 0.15, neck_width, neck_depth), divisions=2)
    end = -0.5 * length - neck_length
    parts.append(("neck", neck.moved(x=end + 0.5 * (neck_length + 0.15), z=depth)))
    board = box((neck_length + u(0.15, 0.45), 1.05 * neck_width, 0.02))
    lift = 0.5 * neck_depth + (0.03 if violin else 0.0)
    parts.append(("neck", board.moved(x=end + 0.5 * (neck_length + 0.3), z=depth + lift)))
    head_length = u(0.16, 0.3)
    pegs = rng.choice([4, 6]) if not violin else 4
    if violin:
        turn = np.linspace(0.0, 3.6, 12)
        curl = 0.35 * head_length * (1.0 - 0.2 * turn)
        scroll = np.stack((end - 0.7 * head_length - curl * np.sin(turn), np.zeros(12), depth - curl * np.cos(turn)), 1)
        parts.append(("head", tube(scroll, np.stack((np.full(12, 0.03), np.full(12, 0.05)), 1), 6)))
        parts.append(
            ("head", box((0.8 * head_length, 0.7 * neck_width, neck_depth)).moved(x=end - 0.35 * head_length, z=depth))
        )
    else:
        head = box((head_length, neck_width * u(1.3, 2.0), 0.04), taper=1.0)
        parts.append(("head", head.rotated("y", u(0.0, 0.25)).moved(x=end - 0.45 * head_length, z=depth - 0.01)))
    for k in range(pegs):
        side = -1.0 if k % 2 else 1.0
        place = end - head_length * (0.2 + 0.6 * (k // 2) / (pegs // 2))
        reach = neck_width * 1.4 + 0.03
        parts.append(("head", strut((place, 0.3 * side * neck_width, depth), (place, side * reach, depth), 0.012)))
        parts.append(("head", ellipsoid((0.022, 0.02, 0.03), segments=8).moved(place, side * reach, depth)))
    at = u(0.1, 0.3) * length
    rise = u(0.08, 0.16) if violin else u(0.02, 0.05)
    bridge = box((0.03, u(0.15, 0.25), rise), taper=(1.0, 0.7 if violin else 1.0))
    parts.append(("bridge", bridge.moved(x=at, z=depth + rise / 2)))
    if violin:
        piece = box((0.45 * length - at, 0.09, 0.03), taper=0.8)
        parts.append(("bridge", piece.moved(x=0.5 * (0.45 * length + at), z=depth + 0.5 * rise)))
        if rng.random() < 0.6:
            rest = ellipsoid((0.1, 0.08, 0.04), segments=10)
            parts.append(("chinrest", rest.moved(0.42 * length, u(0.1, 0.2) * width, depth + 0.06)))
    for y in np.linspace(-0.35, 0.35, 4 if violin else 6) * neck_width:
        nut = (end, 0.8 * y, depth + lift + 0.02)
        parts.append(("string", strut(nut, (at, 1.6 * y, depth + rise + 0.01), (0.008, 0.008))))
    if rng.random() < 0.5:
        # Standing on its lower end, leaning back a little.
        lean = np.pi / 2 - u(0.0, 0.35)
        parts = [(name, surface.rotated("y", lean)) for name, surface in parts]
    return parts


def guitar(rng: Generator) -> Parts:
    """A guitar: acoustic with a sound hole or solid, some with a cutaway-like narrow waist, four or six pegs."""
    return _strung(rng, violin=False)


def violin(rng: Generator) -> Parts:
    """A violin or viola: arched body with a waist, scroll, high bridge with tailpiece, mostly a chin rest."""
    return _strung(rng, violin=True)


def _laid(rng: Generator, parts: Parts) -> Parts:
    """The tool turned about its length at random, as it comes to lie, pointing either way."""
    roll = rng.uniform(-np.pi, np.pi)
    way = np.pi * rng.integers(2)
    return [(name, surface.rotated("x", roll).rotated("z", way)) for name, surface in parts]


def _grip(rng: Generator, length: float, radius: float) -> Surface:
    """A handle along -x from the origin: round, flat, bellied or octagonal."""
    kind = rng.integers(4)
    station = np.linspace(0.0, -length, 7)
    path = np.stack((station, np.zeros(7), np.zeros(7)), axis=1)
    if kind == 0:
        return strut((0.0, 0.0, 0.0), (-length, 0.0, 0.0), radius, rng.uniform(0.8, 1.2))
    if kind == 1:
        slab = rounded_box((length, radius * rng.uniform(0.8, 1.5), 2.2 * radius), 0.35 * radius)
        return slab.moved(x=-length / 2)
    if kind == 2:
        swell = radius * (1.0 + rng.uniform(0.1, 0.3) * np.sin(np.linspace(0.0, 2 * np.pi, 7) + rng.uniform(0.0, 6.0)))
        return tube(path, swell, 10)
    facets = loft(
        np.stack([np.column_stack((np.full(8, x), radius * ellipse(1.0, 1.0, 8))) for x in station[::-1]]), crease=0.3
    )
    return facets


def _blade(rng: Generator, length: float, width: float, thickness: float, double: bool) -> Surface:
    """A blade along +x from the origin, its edge below, or on both sides for `double`: pointed, clipped or square."""
    station = np.array((0.0, 0.25, 0.5, 0.7, 0.85, 0.95, 1.0))
    point = rng.choice(["point", "clip", "round"])
    if double:
        half = np.array((1.0, 1.0, 0.95, 0.9, 0.75, 0.4, 0.05)) ** rng.uniform(0.5, 1.5)
        spine, edge = half, -half
    else:
        belly = rng.uniform(0.9, 1.15)
        edge = -np.array((1.0, belly, belly, 0.95, 0.7, 0.3, 0.02))
        spine = np.ones(7)
        if point == "point":
            spine, edge = np.array((1, 1, 0.95, 0.8, 0.5, 0.15, -0.15)), edge - 0.2 * (station > 0.99)
        elif point == "clip":
            spine = np.array((1, 1, 1, 0.7, 0.4, 0.2, 0.05))
        else:
            edge = np.array((-1.0, -1.0, -1.0, -1.0, -1.0, -0.9, -0.4))
    sections = []
    for s, top, bottom in zip(station, spine * width / 2, edge * width / 2, strict=True):
        middle = 0.5 * (top + bottom)
        back = 0.05 if double else 0.5
        y = 0.5 * thickness * np.array((1.0, back, -back, -1.0, -0.05, 0.05))
        z = np.array((middle, top, top, middle, bottom, bottom))
        sections.append(np.stack((np.full(6, s * length), y, z), axis=1))
    blade = loft(np.stack(sections), crease=0.4)
    return blade


def knife(rng: Generator) -> Parts:
    """A knife: kitchen knife, dagger, cleaver or table knife, with a bolster, a guard or neither."""
    u = rng.uniform
    length, grip = 1.0, u(0.4, 1.0)
    width = u(0.08, 0.32)
    double = rng.random() < 0.25
    blade = _blade(rng, length, width, u(0.02, 0.05), double)
    if rng.random() < 0.35:
        blade = blade.bent(u(-0.5, 0.7), "x", "z")
    parts = [("blade", blade)]
    radius = u(0.035, 0.085)
    parts.append(("handle", _grip(rng, grip, radius).moved(x=0.02)))
    kind = rng.choice(["none", "bolster", "guard"], p=[0.35, 0.35, 0.3])
    if kind == "bolster":
        parts.append(("guard", rounded_box((u(0.04, 0.12), 2.0 * radius, max(0.8 * width, 2.2 * radius)), 0.02)))
    elif kind == "guard":
        parts.append(("guard", box((0.04, u(1.0, 2.0) * radius, width + u(0.05, 0.2)))))
    if rng.random() < 0.25:
        parts.append(("handle", ellipsoid(1.2 * radius, segments=10).moved(x=-grip)))
    return _laid(rng, parts)


def sword(rng: Generator) -> Parts:
    """A sword, sabre or rapier: blade, guard, grip and mostly a pommel."""
    u = rng.uniform
    length, grip = 1.0, u(0.15, 0.5)
    width = u(0.04, 0.16)
    double = rng.random() < 0.65
    curved = u(-0.1, 0.7) * (rng.random() < (0.2 if double else 0.9))
    parts = [("blade", _blade(rng, length, width, u(0.02, 0.05), double).bent(curved, "x", "z"))]
    radius = u(0.02, 0.05)
    parts.append(("handle", _grip(rng, grip, radius).moved(x=0.02)))
    kind = rng.choice(["cross", "bar", "disc", "basket"], p=[0.35, 0.25, 0.2, 0.2])
    reach = u(0.06, 0.22)
    if kind == "cross":
        knots = [(u(-0.08, 0.08), 0.0, -reach), (0.0, 0.0, 0.0), (u(-0.08, 0.08), 0.0, reach)]
        parts.append(("guard", tube(spline(knots, 9), u(0.015, 0.03), 6)))
    elif kind == "bar":
        parts.append(("guard", box((0.04, u(1.5, 3.0) * radius, 2 * reach))))
    elif kind == "disc":
        parts.append(("guard", cylinder(0.6 * reach + radius, 0.03).rotated("y", np.pi / 2)))
    else:
        knots = [(0.0, 0.0, reach), (0.01, 0.0, -reach), (-0.4 * grip, 0.0, -1.2 * reach), (-grip, 0.0, -0.3 * radius)]
        parts.append(("guard", tube(spline(knots, 12), u(0.01, 0.025), 6)))
    if rng.random() < 0.75:
        size = radius * u(1.2, 2.2)
        pommel = ellipsoid((size, size * u(0.5, 1.0), size), segments=10)
        parts.append(("pommel", pommel.moved(x=-grip)))
    return _laid(rng, parts)


def screwdriver(rng: Generator) -> Parts:
    """A screwdriver, chisel or file: a shaft ending in a flat or crossed tip, a grip and often a collar."""
    u = rng.uniform
    shaft, grip = u(0.35, 1.1), u(0.35, 0.8)
    thin = u(0.02, 0.05)
    radius = thin * u(1.4, 3.5)
    parts = [("handle", _grip(rng, grip, radius).moved(x=0.02))]
    section = rng.random()
    bar = strut((0.0, 0.0, 0.0), (shaft, 0.0, 0.0), thin if section < 0.7 else (2 * thin, thin * u(0.8, 2.0)))
    parts.append(("shaft", bar))
    reach, spread = u(0.1, 0.25), thin * u(0.9, 2.2)
    tip = box((1.5 * thin, spread * 2, reach), taper=(u(0.1, 0.4), u(0.6, 1.2))).rotated("y", np.pi / 2)
    tip = tip.moved(x=shaft + reach / 2).rotated("x", np.pi / 2)
    if rng.random() < 0.35:
        tip = strut((shaft, 0.0, 0.0), (shaft + reach, 0.0, 0.0), thin, 0.2)
        ridges = [
            box((0.7 * reach, 0.3 * thin, 2.2 * thin)).moved(x=shaft + 0.35 * reach).rotated("x", a) for a in (0.8, 2.4)
        ]
        tip = Surface.join((tip, *ridges))
    parts.append(("tip", tip))
    if rng.random() < 0.5:
        collar = cylinder(radius * u(0.8, 1.15), u(0.03, 0.12), radius * u(0.5, 1.1)).rotated("y", np.pi / 2)
        parts.append(("collar", collar))
    if rng.random() < 0.3:
        parts.append(("handle", ellipsoid(1.05 * radius, segments=10).moved(x=-grip)))
    return _laid(rng, parts)
