"""Small sound files of every kind that limner reads, and how each kind is mutated."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import tifffile
import torch
from PIL import Image as Picture
from safetensors.torch import save_file

import fuzz_mutations as mutations
import limner
from dicom_makers import AXIAL, compress, enhanced_dataset, image_dataset, save
from fuzz_mutations import Mutation
from limner.io import Image, write_image
from video_makers import moving_square, write_video

PIXELS = np.random.default_rng(0).integers(0, 900, (4, 10, 12)).astype(np.int16)
GREY = (PIXELS[0] % 256).astype(np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 255, (10, 12, 3)).astype(np.uint8)
LABELS = np.zeros((4, 10, 12), np.uint8)
LABELS[1:3, 2:7, 3:9], LABELS[2, 6:9, 1:4] = 1, 2
AFFINE = np.array([[-0.8, 0, 0, 5], [0, 0.9, 0, -7], [0, 0, 2.5, 11], [0, 0, 0, 1.0]])


@dataclass(frozen=True)
class Seed:
    """A sound file.

    Attributes:
        kind: which reader it is for; see `fuzzing.READERS`.
        name: of the file.
        content: of it.
        mutations: how it is changed, besides that of bytes and cuts.
        beside: files that have to lie beside it, by name.
    """

    kind: str
    name: str
    content: bytes
    mutations: tuple[Mutation, ...] = ()
    beside: dict[str, bytes] = field(default_factory=dict)


def make_seeds(folder: Path) -> list[Seed]:
    """Write the files into an empty folder and read them back as seeds."""
    found: list[Seed] = []
    for make in (_volumes, _pictures, _tiffs, _videos, _dicoms, _records, _weights):
        inner = folder / make.__name__
        inner.mkdir()
        found += make(inner)
    return found


def _volumes(folder: Path) -> list[Seed]:
    grid = limner.Geometry.from_spacing(PIXELS.shape, (2.5, 0.9, 0.8), origin=(5, -7, 11))
    image = Image(PIXELS, grid)
    for name in ("a.nii", "a.nii.gz", "a.nrrd", "a.mha"):
        write_image(folder / name, image)
    for name in ("b.seg.nrrd", "b.npz", "b.json"):
        limner.write(folder / name, LABELS, like=image, names={1: "liver", 2: "cyst"})
    nifti2 = nibabel.Nifti2Image(PIXELS.T, AFFINE).to_bytes()
    colour = np.zeros((5, 4, 3), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    rgb = nibabel.Nifti1Image(colour, AFFINE).to_bytes()
    series = nibabel.Nifti1Image(np.stack([PIXELS.T] * 3, axis=-1), AFFINE).to_bytes()
    np.savez_compressed(folder / "c.npz", imgs=PIXELS, gts=LABELS, spacing=(0.8, 0.9, 2.5))
    text = b"NRRD0004\ntype: int\ndimension: 2\nsizes: 3 2\nencoding: ascii\nspacings: 1 2\n\n"
    text += b"1 2 3 4 5 6\n"
    detached = b"NRRD0004\ntype: uchar\ndimension: 3\nsizes: 3 2 2\nencoding: raw\nspace: LPS\n"
    detached += (
        b"space directions: (1,0,0) (0,1,0) (0,0,2)\nspace origin: (0,0,0)\ndata file: a.raw\n"
    )
    meta = b"ObjectType = Image\nNDims = 3\nDimSize = 3 2 2\nElementType = MET_UCHAR\n"
    meta += b"ElementSpacing = 1 1 2\nOffset = 0 0 0\nTransformMatrix = 1 0 0 0 1 0 0 0 1\n"
    raw = {"a.raw": bytes(range(12))}
    nii, of_lines = mutations.nifti_fields, mutations.lines
    npy = mutations.in_zip(mutations.any_bytes, mutations.numbers_in_text, mutations.cut)
    image_mha = (of_lines(b"ElementDataFile"), mutations.numbers_in_text)
    nrrd = (of_lines(b"\n\n"), mutations.numbers_in_text)

    def read(name: str) -> bytes:
        return (folder / name).read_bytes()

    return [
        Seed("image", "a.nii", read("a.nii"), (nii,)),
        Seed("image", "a2.nii", nifti2, (nii,)),
        Seed("image", "rgb.nii", rgb, (nii,)),
        Seed("image", "series.nii", series, (nii,)),
        Seed("image", "a.nii.gz", read("a.nii.gz"), (mutations.in_gzip(nii),)),
        Seed("image", "a.hdr", _pair(), (nii,), {"a.img": PIXELS.tobytes()}),
        Seed("image", "a.nrrd", read("a.nrrd"), nrrd),
        Seed("image", "text.nrrd", text, nrrd),
        Seed("image", "a.nhdr", detached, nrrd, raw),
        Seed("labels", "b.seg.nrrd", read("b.seg.nrrd"), nrrd),
        Seed("image", "a.mha", read("a.mha"), image_mha),
        Seed("image", "a.mhd", meta + b"ElementDataFile = a.raw\n", image_mha, raw),
        Seed("image", "c.npz", read("c.npz"), (npy,)),
        Seed("labels", "b.npz", read("b.npz"), (npy,)),
        Seed("labels", "b.json", read("b.json"), (mutations.as_json, mutations.as_json)),
    ]


def _pair() -> bytes:
    pair = nibabel.Nifti1Pair(PIXELS.T, AFFINE)
    pair.header["vox_offset"] = 0
    return bytes(pair.header.binaryblock) + bytes(4)


def _pictures(folder: Path) -> list[Seed]:
    forms: dict[str, tuple[Any, dict[str, Any]]] = {
        "grey.png": (GREY, {}),
        "deep.png": (GREY.astype(np.uint16) * 200, {}),
        "rgb.png": (COLOUR, {"dpi": (300, 300)}),
        "rgb.jpg": (COLOUR, {"quality": 80}),
        "grey.jpg": (GREY, {"progressive": True}),
        "rgb.bmp": (COLOUR, {}),
        "rgb.webp": (COLOUR, {}),
        "lossless.webp": (COLOUR, {"lossless": True}),
    }
    for name, (pixels, options) in forms.items():
        Picture.fromarray(pixels).save(folder / name, **options)
    palette = Picture.fromarray(COLOUR).convert("P")
    for name in ("palette.png", "palette.bmp", "one.gif"):
        palette.save(folder / name)
    frames = [Picture.fromarray(np.roll(COLOUR, k, axis=1)) for k in range(3)]
    for name in ("some.gif", "some.png", "some.webp"):
        frames[0].save(folder / name, save_all=True, append_images=frames[1:], duration=40)
    structured = {".png": mutations.png_chunks, ".jpg": mutations.jpeg_segments}
    return [
        Seed("image", p.name, p.read_bytes(), (structured.get(p.suffix, mutations.any_bytes),))
        for p in sorted(folder.iterdir())
    ]


def _tiffs(folder: Path) -> list[Seed]:
    tiled = np.tile(GREY, (4, 4))
    forms: dict[str, tuple[Any, dict[str, Any]]] = {
        "plain.tif": (GREY, {}),
        "stack.tif": (PIXELS, {"photometric": "minisblack"}),
        "rgb.tif": (COLOUR, {"photometric": "rgb", "compression": "lzw"}),
        "tiled.tif": (tiled, {"tile": (16, 16), "compression": "zlib", "predictor": True}),
        "jpeg.tif": (np.tile(COLOUR, (2, 2, 1)), {"photometric": "rgb", "compression": "jpeg"}),
        "big.tif": (PIXELS, {"bigtiff": True, "compression": "packbits"}),
        "imagej.tif": (PIXELS, {"imagej": True, "resolution": (2, 2), "metadata": {"spacing": 3}}),
        "float.tif": (GREY.astype(np.float32), {"byteorder": ">", "compression": "zstd"}),
        "planar.tif": (np.moveaxis(COLOUR, 2, 0), {"photometric": "rgb", "planarconfig": 2}),
    }
    for name, (pixels, options) in forms.items():
        tifffile.imwrite(folder / name, pixels, **options)
    ome = {"axes": "ZYX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5, "PhysicalSizeZ": 2}
    tifffile.imwrite(folder / "a.ome.tif", PIXELS, ome=True, metadata=ome)
    palette = Picture.fromarray(COLOUR).convert("P")
    palette.save(folder / "palette.tif")
    Picture.fromarray(GREY > 99).save(folder / "bits.tif", compression="group4")
    tags = (mutations.tiff_tags, mutations.tiff_tags)
    return [
        Seed("image", p.name, p.read_bytes(), (*tags, mutations.numbers_in_text))
        for p in sorted(folder.iterdir())
    ]


def _videos(folder: Path) -> list[Seed]:
    pixels, _ = moving_square(6, (32, 48))
    write_video(folder / "a.mp4", pixels, group=3)
    write_video(folder / "a.mkv", pixels, group=3)
    write_video(folder / "a.avi", pixels, "mjpeg", pixel_format="yuvj420p")
    write_video(folder / "a.webm", pixels, "libvpx-vp9")
    write_video(folder / "a.mpg", pixels, "mpeg2video")
    return [
        Seed("image", p.name, p.read_bytes(), (mutations.boxes,) if p.suffix == ".mp4" else ())
        for p in sorted(folder.iterdir())
    ]


def _dicoms(folder: Path) -> list[Seed]:
    import imagecodecs
    from pydicom.uid import RLELossless

    elements = {
        "ImagePositionPatient": [1, 2, 3],
        "ImageOrientationPatient": list(AXIAL),
        "PixelSpacing": [0.9, 0.8],
        "SliceThickness": 2,
        "RescaleSlope": 2,
        "RescaleIntercept": -1024,
        "WindowCenter": 40,
        "WindowWidth": 300,
    }
    save(image_dataset(PIXELS[0]), folder / "ct.dcm", **elements)
    for name, syntax, pack in (
        ("j2k.dcm", "1.2.840.10008.1.2.4.90", imagecodecs.jpeg2k_encode),
        ("jls.dcm", "1.2.840.10008.1.2.4.80", imagecodecs.jpegls_encode),
        ("jpeg.dcm", "1.2.840.10008.1.2.4.50", imagecodecs.jpeg_encode),
        ("lossless.dcm", "1.2.840.10008.1.2.4.70", imagecodecs.ljpeg_encode),
    ):
        frame = GREY if "jpeg" in name else PIXELS[0].astype(np.uint16)
        ds = image_dataset(frame)
        compress(ds, syntax, [pack(frame)])
        save(ds, folder / name, **elements)
    ds = image_dataset(PIXELS)
    ds.SamplesPerPixel = 1
    ds.compress(RLELossless, generate_instance_uid=False)
    save(ds, folder / "rle.dcm")
    positions = [(0.0, 0.0, 2.5 * k) for k in range(len(PIXELS))]
    save(enhanced_dataset(PIXELS, positions), folder / "enhanced.dcm")
    save(image_dataset(COLOUR, modality="US"), folder / "colour.dcm")
    ct = pydicom.dcmread(folder / "ct.dcm")
    for name, syntax in (
        ("implicit.dcm", "1.2.840.10008.1.2"),
        ("deflated.dcm", "1.2.840.10008.1.2.1.99"),
    ):
        ct.file_meta.TransferSyntaxUID = syntax
        ct.save_as(
            folder / name, enforce_file_format=True, implicit_vr=name[0] == "i", little_endian=True
        )
    images = sorted(folder.iterdir())
    like = limner.read(folder / "enhanced.dcm")
    for name, kind in (("seg.dcm", "seg"), ("labelmap.dcm", "seg-labelmap")):
        limner.write(folder / name, LABELS, like=like, dicom_type=kind)
    limner.write(folder / "rtstruct.dcm", LABELS, like=like, dicom_type="rtstruct")
    beside = {"enhanced.dcm": (folder / "enhanced.dcm").read_bytes()}
    found = [Seed("image", p.name, p.read_bytes(), (mutations.dicom_elements,) * 3) for p in images]
    found += [
        Seed("labels", p.name, p.read_bytes(), (mutations.dicom_elements,) * 3, beside)
        for p in (folder / "seg.dcm", folder / "labelmap.dcm", folder / "rtstruct.dcm")
    ]
    return found


def _records(folder: Path) -> list[Seed]:
    image = folder / "image.npy.nii"
    write_image(image, Image(GREY.astype(np.int16), limner.Geometry(GREY.shape)))
    with limner.open_session(image, "baseline/box", journal=folder / "a.limner") as session:
        session.add(limner.Box((2, 2), (8, 9)))
        session.add(limner.Click((3, 3), positive=False))
        session.predict()
        session.name(1, "liver")
        session.undo()
        session.redo()
        session.add(limner.MaskPrompt(GREY > 100), object_id=2)
        session.add(limner.Scribble([(1, 1), (4, 5)]), object_id=3)
        session.add(limner.Lasso([(1, 1), (4, 5), (7, 2)]), object_id=4)
        session.predict()
        limner.write(folder / "m.nii.gz", session.labels, like=session.image)
    manifest = (folder / "m.nii.gz.limner.json").read_bytes()
    items: list[dict[str, Any]] = [
        {"kind": "box", "low": [2, 2], "high": [8, 9], "object": 1},
        {"kind": "click", "at": [3, 4], "positive": True, "object": 2},
        {"kind": "scribble", "points": [[1, 1], [5, 5]], "positive": True, "radius": 2},
        {"kind": "lasso", "points": [[1, 1], [5, 5], [1, 6]]},
        {"kind": "text", "text": "liver", "object": 3},
    ]
    named = json.dumps({"names": {"1": "liver"}, "prompts": items}).encode()
    recipe = Path(__file__).resolve().parents[1] / "recipes" / "limner-2d-cpu.yaml"
    beside = {"image.nii": image.read_bytes()}
    trees = (mutations.as_json,) * 3
    return [
        Seed(
            "journal",
            "a.limner",
            (folder / "a.limner").read_bytes(),
            (mutations.as_journal,) * 3,
            beside,
        ),
        Seed("prompts", "m.limner.json", manifest, trees, beside),
        Seed("prompts", "named.json", named, trees, beside),
        Seed("prompts", "list.json", json.dumps(items[:4]).encode(), trees, beside),
        Seed("recipe", "recipe.yaml", recipe.read_bytes(), (mutations.as_yaml,) * 3),
    ]


def _weights(folder: Path) -> list[Seed]:
    network = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.BatchNorm2d(3))
    torch.save({"model": network.state_dict(), "epoch": 3}, folder / "new.pth")
    torch.save(network.state_dict(), folder / "old.pth", _use_new_zipfile_serialization=False)
    save_file(network.state_dict(), folder / "a.safetensors")
    members = mutations.in_zip(mutations.any_bytes, mutations.any_bytes, mutations.cut)
    return [
        Seed("weights", "new.pth", (folder / "new.pth").read_bytes(), (members, members)),
        Seed("weights", "old.pth", (folder / "old.pth").read_bytes(), (mutations.any_bytes,)),
        Seed(
            "weights",
            "a.safetensors",
            (folder / "a.safetensors").read_bytes(),
            (mutations.safetensors_header,) * 2,
        ),
    ]
