"""Encodings of triangle meshes: STL (binary), Wavefront OBJ, PLY (binary)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from limner.io.surfaces.extract import Surface, merge_surfaces


def encode_stl(surfaces: Sequence[Surface], space: str) -> bytes:
    """Binary STL: triangles with normals, all objects in one."""
    vertices, faces = merge_surfaces(surfaces)
    corners = vertices.astype("<f4")[faces]
    exact = vertices[faces]
    normals = np.cross(exact[:, 1] - exact[:, 0], exact[:, 2] - exact[:, 0])
    lengths = np.linalg.norm(normals, axis=1, keepdims=True)
    rows = np.zeros(
        len(faces), np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("rest", "<u2")])
    )
    rows["normal"] = np.divide(normals, lengths, out=np.zeros_like(normals), where=lengths > 0)
    rows["corners"] = corners
    head = f"limner. SPACE={space}".encode().ljust(80)
    return head + len(faces).to_bytes(4, "little") + bytes(rows.tobytes())


def encode_ply(surfaces: Sequence[Surface], space: str) -> bytes:
    """Binary PLY: vertices and faces, all objects in one."""
    vertices, faces = merge_surfaces(surfaces)
    head = "\n".join(
        [
            "ply",
            "format binary_little_endian 1.0",
            f"comment SPACE={space}",
            f"element vertex {len(vertices)}",
            *(f"property float {axis}" for axis in "xyz"),
            f"element face {len(faces)}",
            "property list uchar int vertex_indices",
            "end_header\n",
        ]
    )
    rows = np.zeros(len(faces), np.dtype([("count", "u1"), ("corners", "<i4", 3)]))
    rows["count"], rows["corners"] = 3, faces
    return head.encode() + vertices.astype("<f4").tobytes() + rows.tobytes()


def encode_obj(surfaces: Sequence[Surface], space: str) -> bytes:
    """Wavefront OBJ: text, an object with its name for each."""
    lines, start = [f"# SPACE={space}"], 1
    for surface in surfaces:
        lines.append(f"o {' '.join(surface.name.split())}")
        lines += [f"v {x:.9g} {y:.9g} {z:.9g}" for x, y, z in surface.vertices.tolist()]
        lines += [f"f {a} {b} {c}" for a, b, c in (surface.faces + start).tolist()]
        start += len(surface.vertices)
    return ("\n".join(lines) + "\n").encode()


ENCODERS: dict[str, Callable[[Sequence[Surface], str], bytes]] = {
    ".stl": encode_stl,
    ".obj": encode_obj,
    ".ply": encode_ply,
}
