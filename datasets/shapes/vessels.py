"""Vessels of the `Shapes` data set: one function for each category.

Each function draws one object: `rng -> [(part name, surface), ...]`, z up, in arbitrary units. The bodies overlap in
their proportions on purpose: mug, bucket, pot, teapot, vase and bottle differ by handles, spouts, lids and necks.
"""

from __future__ import annotations

import numpy as np

from pcattn.datasets.shapes.primitives import Array, Surface, cylinder, ellipsoid, revolve, spline, strut, torus, tube

Parts = list[tuple[str, Surface]]
Generator = np.random.Generator


def _hollow(outer: Array, wall: float, floor: float = 0.05) -> Surface:
    """An open vessel whose outside is `outer` (K, 2), pairs (radius, z) from the foot up to the rim."""
    height = outer[-1, 1] - outer[0, 1]
    inner = outer - (wall, 0.0)
    inner = inner[outer[:, 1] > outer[0, 1] + floor * height]
    bottom = outer[0, 1] + floor * height
    radius = np.interp(bottom, outer[:, 1], outer[:, 0]) - wall
    profile = np.concatenate(([(0.0, outer[0, 1])], outer, inner[::-1], [(radius, bottom), (0.0, bottom)]))
    profile[:, 0] = np.maximum(profile[:, 0], 0.0)
    return revolve(profile, segments=20)


def _body(rng: Generator, height: float, radius: float, rim: tuple[float, float]) -> Array:
    """A profile (K, 2) of a vessel: straight, tapered, bellied or waisted, its rim `rim` times as wide as `radius`."""
    foot = rng.uniform(0.55, 1.0) * radius
    top = rng.uniform(*rim) * radius
    kind = rng.integers(4)
    if kind == 0:
        return np.array([(foot, 0.0), (top, height)])
    if kind == 1:
        belly = rng.uniform(0.25, 0.6)
        return spline([(foot, 0.0), (radius * 1.05, belly * height), (top, height)], 9)
    if kind == 2:
        waist = rng.uniform(0.8, 1.0) * min(foot, top)
        return spline([(foot, 0.0), (waist, rng.uniform(0.3, 0.7) * height), (top, height)], 8)
    rounding = rng.uniform(0.1, 0.35) * height
    corner = spline([(0.75 * foot, 0.0), (0.93 * foot, 0.3 * rounding), (foot, rounding)], 5)
    return np.concatenate((corner, [(top, height)]))


def _radius_at(profile: Array, z: float) -> float:
    """Radius of the profile at the height z, for profiles which rise throughout."""
    return float(np.interp(z, profile[:, 1], profile[:, 0]))


def _side_handle(rng: Generator, profile: Array, low: float, high: float, reach: float, bar: float) -> Surface:
    """A handle in the half plane x > 0 between two heights of a vessel: round, D-shaped, ear-shaped or open below."""
    inside_low, inside_high = 0.97 * _radius_at(profile, low), 0.97 * _radius_at(profile, high)
    outer = max(inside_low, inside_high) + reach
    kind = rng.integers(4)
    if kind == 0:
        knots = [
            (inside_low, low),
            (outer, low + 0.3 * (high - low)),
            (outer, high - 0.3 * (high - low)),
            (inside_high, high),
        ]
    elif kind == 1:
        knots = [(inside_low, low), (outer, low), (outer, high), (inside_high, high)]
    elif kind == 2:
        knots = [
            (inside_low, low),
            (outer - 0.5 * reach, low + 0.25 * (high - low)),
            (outer, 0.85 * high),
            (inside_high, high),
        ]
    else:
        knots = [(outer, low), (outer, high - 0.25 * (high - low)), (outer - 0.3 * reach, high), (inside_high, high)]
    curve = np.array(knots) if kind == 1 and rng.random() < 0.5 else spline(knots, 12)
    path = np.stack((curve[:, 0], np.zeros(len(curve)), curve[:, 1]), axis=1)
    return tube(path, np.broadcast_to((bar, bar * rng.uniform(0.8, 1.8)), (len(curve), 2)), 8)


def _lid(rng: Generator, radius: float, z: float) -> list[Surface]:
    """A lid of the given radius on the rim at the height z with a knob or a strap on it."""
    rise = radius * rng.uniform(0.04, 0.5)
    lid = ellipsoid((radius, radius, rise), low=0.0).moved(z=z)
    rim = cylinder(radius * rng.uniform(1.0, 1.06), 0.04 * radius).moved(z=z - 0.02 * radius)
    if rng.random() < 0.75:
        size = radius * rng.uniform(0.1, 0.22)
        return [
            lid,
            rim,
            ellipsoid((size, size, size * rng.uniform(0.6, 1.4)), segments=10).moved(z=z + rise + 0.6 * size),
        ]
    span = 0.4 * radius
    strap = tube(
        spline([(-span, 0, 0), (-span, 0, 0.25 * radius), (span, 0, 0.25 * radius), (span, 0, 0)], 9), 0.06 * radius, 6
    )
    return [lid, rim, strap.moved(z=z + 0.7 * rise)]


def mug(rng: Generator) -> Parts:
    """A mug or cup with one handle at its side, some on a saucer."""
    u = rng.uniform
    radius = 0.5
    height = radius * u(0.9, 2.9)
    profile = _body(rng, height, radius, (0.8, 1.25))
    parts = [("body", _hollow(profile, u(0.02, 0.05)))]
    low, high = u(0.08, 0.4) * height, u(0.65, 0.95) * height
    parts.append(("handle", _side_handle(rng, profile, low, high, u(0.12, 0.4), u(0.025, 0.07))))
    if rng.random() < 0.3:
        spread = radius * u(1.2, 1.8)
        saucer = revolve(
            [(0.0, -0.06), (0.5 * spread, -0.06), (spread, u(0.0, 0.12)), (0.5 * spread, -0.02), (0.0, -0.02)]
        )
        parts.append(("saucer", saucer))
    return parts


def bucket(rng: Generator) -> Parts:
    """A bucket: tapered or straight, with a bail raised or folded down to its side, some with hoops."""
    u = rng.uniform
    radius = 0.5
    height = radius * u(0.9, 2.6)
    if rng.random() < 0.6:
        profile = np.array([(u(0.55, 0.95) * radius, 0.0), (radius * u(0.95, 1.2), height)])
    else:
        profile = _body(rng, height, radius, (0.85, 1.2))
    rim = profile[-1, 0]
    parts = [("body", _hollow(profile, u(0.015, 0.04)))]
    if rng.random() < 0.5:
        for level in np.sort(u(0.1, 0.95, rng.integers(1, 4))) * height:
            parts.append(("rim", torus(_radius_at(profile, level), u(0.012, 0.025), sides=6).moved(z=level)))
    parts.append(("rim", torus(rim, u(0.015, 0.045), sides=6).moved(z=height)))
    bar = u(0.015, 0.035)
    angle = np.linspace(0.0, np.pi, 15)
    rise = u(0.75, 1.3) * rim
    # A folded bail hangs along the wall, so it must clear the rim.
    raised = rng.random() < 0.4
    tilt = u(-0.6, 0.6) if raised else rng.choice([-1.0, 1.0]) * u(1.5, 2.2)
    bail = np.stack((1.04 * rim * np.cos(angle), np.zeros(15), max(rise, 1.12 * rim) * np.sin(angle)), axis=1)
    handle = tube(bail, bar, 6)
    if rng.random() < 0.5:
        grip = strut((-0.25 * rim, 0.0, bail[:, 2].max()), (0.25 * rim, 0.0, bail[:, 2].max()), 2.2 * bar)
        handle = Surface.join((handle, grip))
    parts.append(("handle", handle.rotated("x", tilt).moved(z=u(0.86, 0.98) * height)))
    return parts


def pot(rng: Generator) -> Parts:
    """A cooking pot or pan: two loops or one long handle, with a lid or without."""
    u = rng.uniform
    radius = 0.5
    height = radius * u(0.35, 1.9)
    profile = _body(rng, height, radius, (0.9, 1.15))
    rim = profile[-1, 0]
    parts = [("body", _hollow(profile, u(0.015, 0.04)))]
    level = u(0.6, 0.92) * height
    side = _radius_at(profile, level)
    bar = u(0.02, 0.05)
    if rng.random() < 0.6:
        span, reach = u(0.1, 0.22), u(0.08, 0.25)
        upright = rng.random() < 0.3
        for sign in (-1.0, 1.0):
            knots = [(-span, 0.0), (-0.9 * span, reach), (0.9 * span, reach), (span, 0.0)]
            loop = spline([(y, x) for y, x in knots], 9)
            path = np.stack((0.95 * side + loop[:, 1], loop[:, 0], np.zeros(9)), axis=1)
            if upright:
                path = np.stack((0.95 * side + loop[:, 1], np.zeros(9), loop[:, 0]), axis=1)
            parts.append(("handle", tube(path * (sign, 1.0, 1.0), bar, 6).moved(z=level)))
    else:
        length = u(0.5, 1.3)
        tip = (side + length, 0.0, level + u(-0.05, 0.35) * length)
        parts.append(("handle", strut((0.95 * side, 0.0, level), tip, bar, u(0.8, 1.6))))
        if rng.random() < 0.5:
            parts.append(("handle", ellipsoid((2 * bar, 1.6 * bar, 1.3 * bar), segments=8).moved(*tip)))
    if rng.random() < 0.6:
        parts += [("lid", piece) for piece in _lid(rng, rim, height)]
    return parts


def teapot(rng: Generator) -> Parts:
    """A teapot, coffee pot or watering can: spout, handle at the back or over the top, with a lid mostly."""
    u = rng.uniform
    radius = 0.5
    height = radius * u(0.9, 2.6)
    profile = _body(rng, height, radius, (0.45, 0.95))
    rim = profile[-1, 0]
    parts = [("body", _hollow(profile, u(0.015, 0.04)))]
    bar = u(0.025, 0.06)
    start = u(0.2, 0.65) * height
    root = 0.85 * _radius_at(profile, start)
    reach = u(0.2, 0.7)
    tip = (-root - reach, 0.0, height * u(0.85, 1.15))
    knots = [(-root, 0.0, start), (-root - 0.55 * reach, 0.0, start + u(0.1, 0.4) * (tip[2] - start)), tip]
    count = 8
    parts.append(("spout", tube(spline(knots, count), np.linspace(u(0.07, 0.15), u(0.03, 0.06), count), 8)))
    if rng.random() < 0.7:
        handle = _side_handle(rng, profile, u(0.1, 0.35) * height, u(0.7, 0.95) * height, u(0.15, 0.4), bar)
    else:
        angle = np.linspace(0.0, np.pi, 13)
        arch = np.stack((0.9 * rim * np.cos(angle), np.zeros(13), u(0.6, 1.2) * radius * np.sin(angle)), axis=1)
        handle = tube(arch, bar, 6).moved(z=0.95 * height)
    parts.append(("handle", handle))
    if rng.random() < 0.75:
        parts += [("lid", piece) for piece in _lid(rng, rim, height)]
    return parts


def vase(rng: Generator) -> Parts:
    """A vase, urn or amphora: body, neck with a lip, often a foot, some with ears."""
    u = rng.uniform
    radius = 0.5
    height = radius * u(1.4, 4.2)
    shoulder = u(0.45, 0.8) * height
    narrow = u(0.25, 0.9) * radius
    lip = narrow * u(0.95, 1.8)
    wall = u(0.02, 0.04)
    low = u(0.35, 0.8) * radius
    lower = spline([(low, 0.0), (radius, u(0.3, 0.65) * shoulder), (narrow * 1.15, shoulder)], 9)
    upper = spline([lower[-1], (narrow, 0.5 * (shoulder + height)), (lip, height)], 7)
    tumbler = rng.random() < 0.25
    if tumbler:
        # Nothing but its foot and its pair of ears tells it from a mug.
        lower = np.array([(low * 1.1, 0.0), (radius, shoulder)])
        upper = np.array([(radius, shoulder), (radius * u(0.9, 1.2), height)])
    floor = [(0.0, 0.0), lower[0]]
    inner_lower = (lower - (wall, 0.0))[::-1]
    inner_lower = inner_lower[inner_lower[:, 1] > 0.05 * height]
    end = inner_lower[-1]
    parts = [("body", revolve(np.concatenate((floor, lower[1:]))))]
    parts.append(
        ("body", revolve(np.concatenate((inner_lower, [(0.8 * end[0], 0.05 * height), (0.0, 0.05 * height)]))))
    )
    parts.append(("neck", revolve(np.concatenate((upper, (upper - (wall, 0.0))[::-1])))))
    if rng.random() < 0.65:
        drop = u(0.04, 0.3)
        spread = low * u(0.8, 1.3)
        parts.append(("foot", cylinder(spread, drop, low * u(0.5, 1.0)).moved(z=-drop)))
    if rng.random() < 0.45:
        outer = np.concatenate((lower, upper[1:]))
        ear = _side_handle(rng, outer, u(0.4, 0.8) * shoulder, u(0.8, 0.97) * height, u(0.08, 0.25), u(0.02, 0.05))
        ears = [ear] if not tumbler and rng.random() < 0.35 else [ear, ear.scaled((-1.0, 1.0, 1.0))]
        parts += [("ear", piece) for piece in ears]
    return parts


def bottle(rng: Generator) -> Parts:
    """A bottle or flask: round or flattened body, long or short neck, with a cap, a cork or a nozzle mostly."""
    u = rng.uniform
    radius = 0.5
    height = radius * u(1.4, 4.0)
    shoulder = height * u(0.08, 0.5)
    narrow = radius * u(0.2, 0.6)
    neck = u(0.12, 1.2)
    foot = radius * u(0.7, 1.0)
    if rng.random() < 0.6:
        straight = [(0.0, 0.0), (0.9 * foot, 0.0), (foot, 0.06), (radius, height - shoulder)]
        curve = spline(
            [(radius, height - shoulder), (radius * u(0.8, 0.95), height - 0.5 * shoulder), (narrow, height)], 7
        )
    else:
        straight = [(0.0, 0.0), (0.8 * foot, 0.0)]
        curve = spline([(0.8 * foot, 0.0), (radius, u(0.25, 0.6) * height), (narrow, height)], 10)
    body = revolve(np.concatenate((straight, curve[1:])))
    flat = rng.choice([1.0, u(0.4, 0.9)])
    if rng.random() < 0.3:
        flat = max(flat, narrow / radius + 0.1)
    parts = [("body", body.scaled((1.0, flat, 1.0)))]
    wall = 0.12 * narrow
    neck_profile = [(narrow, height - 0.05), (narrow * u(0.8, 1.0), height + neck)]
    inner = [(neck_profile[1][0] - wall, height + neck), (narrow - wall, height)]
    parts.append(("neck", revolve(np.array(neck_profile + inner))))
    top = neck_profile[1][0]
    kind = rng.choice(["cap", "cork", "nozzle", "ring"], p=[0.45, 0.2, 0.15, 0.2])
    if kind == "cap":
        parts.append(
            ("cap", cylinder(top * u(1.05, 1.5), u(0.1, 0.4), top * u(0.9, 1.1)).moved(z=height + neck - 0.05))
        )
    elif kind == "cork":
        parts.append(("cap", cylinder(top * 0.85, u(0.1, 0.25), top * 0.95).moved(z=height + neck - 0.05)))
        parts.append(("cap", ellipsoid(top * u(0.9, 1.3), segments=10).moved(z=height + neck + u(0.1, 0.3))))
    elif kind == "nozzle":
        parts.append(("cap", cylinder(top * 1.1, 0.15).moved(z=height + neck)))
        end = height + neck + u(0.2, 0.35)
        parts.append(("cap", strut((0.0, 0.0, height + neck), (0.0, 0.0, end), 0.35 * top)))
        parts.append(("cap", strut((0.1, 0.0, end), (-u(0.25, 0.5), 0.0, end - u(0.0, 0.1)), 0.4 * top)))
    else:
        parts.append(("neck", torus(top, 0.2 * top, sides=6).moved(z=height + neck)))
    return parts
