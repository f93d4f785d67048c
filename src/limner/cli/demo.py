"""``limner demo``: the main job on real images and on phantoms with a known truth."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import numpy as np

    from limner.io.image import Image
    from limner.prompts.types import Prompt
    from limner.sessions import Session


_PLURALS = {"box": "boxes", "click": "clicks"}


@dataclass(frozen=True)
class Case:
    """One image of the demonstration.

    Attributes:
        title: names the output files.
        image: opens it.
        prompts: one list per object name, positions in index order.
        frame: for a sequence: where the prompts are; the masks are then carried both ways.
        truth: the known label map and the label of each object, if there is one.
        window: CT window.
        model: another model than the default.
    """

    title: str
    image: Callable[[], Image]
    prompts: dict[str, list[Prompt]]
    frame: int | None = None
    truth: dict[str, np.ndarray[Any, Any]] = field(default_factory=dict)
    window: str | None = None
    model: str | None = None


def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for masks and overlays.")
    ] = Path("demo-output"),
    model: Annotated[str | None, typer.Option(help="See limner models.")] = None,
) -> None:
    """Delineate real images that come with limner's dependencies, and phantoms; write overlays."""
    from rich.console import Console

    output.mkdir(parents=True, exist_ok=True)
    console = Console(stderr=True, highlight=False, emoji=False)
    previews, lines = [], [_line("object", "prompts", "size", "Dice", "seconds")]
    for build in CASES:
        case = build()
        console.print(f"[dim]{case.title} …[/dim]")
        preview, found = _run(case, output, model)
        previews.append(preview)
        lines += found
    print("\n".join(lines))
    print("\nPictures (masks are beside them):")
    for path in previews:
        print(f"  {path}")
    print("\nResearch use only; not a medical device.")


def _run(case: Case, output: Path, model: str | None) -> tuple[Path, list[str]]:
    """Delineate the objects of one image: its overlay, and the lines of the report."""
    import limner
    from limner.render.overlay import write_preview

    image = case.image()
    with limner.open_session(image, model or case.model, window=case.window) as session:
        lines = [f"{case.title} ({session.card.name})"]
        for object_id, (name, prompts) in enumerate(case.prompts.items(), start=1):
            began = time.perf_counter()
            for prompt in prompts:
                session.add(prompt, object_id=object_id, frame=case.frame)
            session.name(object_id, name)
            session.predict(object_id=object_id, frame=case.frame)
            if case.frame is not None:
                for _ in session.propagate(object_id=object_id):
                    pass
            seconds = time.perf_counter() - began
            lines.append(_line(*_row(case, session, object_id, name, seconds)))
        found = session.export()
        suffix = ".nii.gz" if image.geometry.ndim == 3 else ".png"
        limner.write(output / f"{case.title}-mask{suffix}", found, like=image)
        preview = output / f"{case.title}.png"
        write_preview(
            preview,
            image,
            found.to_array(),
            names=found.names,
            prompts=session.entries,
            window=case.window,
        )
    return preview, lines


def _line(name: str, prompts: str, size: str, dice: str, seconds: str) -> str:
    return f"  {name:<16}{prompts:<18}{size:>12}{dice:>8}{seconds:>9}"


def _row(
    case: Case, session: Session, object_id: int, name: str, seconds: float
) -> tuple[str, ...]:
    import limner

    geometry = session.image.geometry
    mask = session.export().mask(object_id)
    size = f"{int(mask.sum()):,} px"
    if geometry.has_spacing and session.image.kind == "volume":
        size = f"{mask.sum() * geometry.voxel_volume / 1000:,.1f} ml"
    elif geometry.has_spacing and session.image.kind == "image":
        size = f"{mask.sum() * geometry.voxel_volume:,.0f} mm²"
    truth = case.truth.get(name)
    dice = "–" if truth is None else f"{limner.metrics.dice(mask, truth):.3f}"
    kinds = [p.kind for p in case.prompts[name]]
    counts = {k: kinds.count(k) for k in dict.fromkeys(kinds)}
    prompts = ", ".join(f"{n} {k if n == 1 else _PLURALS.get(k, k)}" for k, n in counts.items())
    return name, prompts, size, dice, f"{seconds:.2f}"


def _installed(package: str, name: str, **options: Any) -> Callable[[], Image]:
    """An image file that comes with a package."""
    from importlib.resources import files

    import limner

    return lambda: limner.read(Path(str(files(package))) / name, **options)


def _ct() -> Case:
    from limner.prompts import Box, Click

    return Case(
        "ct-spine",
        _installed("pydicom", "data/test_files/CT_small.dcm"),
        {
            "vertebral body": [Box((5, 40), (44, 80))],
            "spinal canal": [Box((40, 48), (64, 72)), Click((51, 60))],
        },
    )


def _mr_slice() -> Case:
    from limner.prompts import Box, Click

    return Case(
        "mr-abdomen",
        _installed("pydicom", "data/test_files/examples_overlay.dcm"),
        {
            "right kidney": [Box((188, 115), (258, 190))],
            "left kidney": [Box((200, 287), (262, 350))],
            "spleen": [Click((175, 380)), Click((130, 382))],
        },
    )


def _ultrasound() -> Case:
    from limner.prompts import Box

    return Case(
        "ultrasound-node",
        _installed("pydicom", "data/test_files/examples_rgb_color.dcm"),
        {"lymph node": [Box((76, 36), (146, 266))]},
    )


def _retina() -> Case:
    from limner.prompts import Box, Click

    return Case(
        "retina",
        _installed("skimage", "data/retina.jpg"),
        {"optic disc": [Box((555, 105), (745, 325)), Click((648, 262))]},
    )


def _histology() -> Case:
    from limner.prompts import Box

    return Case(
        "histology",
        _installed("skimage", "data/ihc.png"),
        {"gland": [Box((300, 250), (508, 388))]},
    )


def _cell() -> Case:
    from limner.prompts import Box

    return Case(
        "cell", _installed("skimage", "data/cell.png"), {"cell": [Box((310, 362), (438, 492))]}
    )


def _brain() -> Case:
    from limner.prompts import Box

    return Case(
        "mr-brain",
        _installed("nibabel", "tests/data/example4d.nii.gz", channel=0),
        {"brain": [Box((0, 5, 28), (24, 92, 98))]},
    )


def _phantom_image() -> Case:
    return _phantom_case("phantom-image", "image", 7, ("liver", "lesion"))


def _phantom_volume() -> Case:
    return _phantom_case("phantom-volume", "volume", 7, ("liver", "left kidney"))


def _phantom_case(title: str, kind: str, seed: int, objects: tuple[str, ...]) -> Case:
    """A phantom with a box from the simulated user and one corrective click inside."""
    import numpy as np

    from limner import phantoms
    from limner.prompts import simulate

    phantom = getattr(phantoms, kind)(seed)
    rng = np.random.default_rng(seed)
    truth = {n: phantom.truth == i for i, n in phantom.names.items() if n in objects}
    prompts = {
        name: [
            simulate.box(mask, jitter=0.05, rng=rng),
            simulate.first_prompt(mask, kind="click", rng=rng),
        ]
        for name, mask in truth.items()
    }
    return Case(title, lambda: phantom.image, prompts, truth=truth)


def _phantom_sequence() -> Case:
    import numpy as np

    from limner import phantoms
    from limner.prompts import simulate

    phantom = phantoms.sequence(7)
    middle = phantom.truth.shape[0] // 2
    rng = np.random.default_rng(7)
    truth = {name: phantom.truth == i for i, name in phantom.names.items()}
    prompts: dict[str, list[Prompt]] = {
        name: [simulate.box(mask[middle], jitter=0.05, rng=rng)] for name, mask in truth.items()
    }
    return Case("phantom-sequence", lambda: phantom.image, prompts, frame=middle, truth=truth)


CASES: tuple[Callable[[], Case], ...] = (
    _ct,
    _mr_slice,
    _ultrasound,
    _retina,
    _histology,
    _cell,
    _brain,
    _phantom_image,
    _phantom_volume,
    _phantom_sequence,
)
