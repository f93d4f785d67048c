"""Options that several commands share, and the groups that they come in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

if TYPE_CHECKING:
    from limner.cli._prompt_files import PromptFile
    from limner.io.image import Image
    from limner.sessions import Session

Boxes = Annotated[
    list[str] | None,
    typer.Option(
        "--box", help="r0,c0,r1,c1 or s0,r0,c0,s1,r1,c1, half-open. Repeat: one object each."
    ),
]
Clicks = Annotated[
    list[str] | None,
    typer.Option("--click", help="r,c or s,r,c inside the object. May be repeated."),
]
Excluded = Annotated[
    list[str] | None, typer.Option("--not", help="A click outside the object, likewise.")
]
Slice = Annotated[
    int | None,
    typer.Option("--slice", "--frame", help="2D prompts are about this slice or frame."),
]
Axis = Annotated[
    str | None,
    typer.Option(
        help="With --slice on a volume: 0, 1, 2, or axial, coronal, sagittal. Default 0: as stored."
    ),
]
Order = Annotated[
    str | None, typer.Option(help="xyz: clicks and boxes are given as x,y or x,y,z pixels.")
]
World = Annotated[
    str | None, typer.Option(help="lps or ras: clicks and boxes are in patient millimetres.")
]
Model = Annotated[str | None, typer.Option(help="See limner models.")]
Weights = Annotated[Path | None, typer.Option(help="The model's weights file.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
Window = Annotated[
    str | None,
    typer.Option(
        help="CT window: a name such as lung, low,high, or robust. Default in CT: the file's own, "
        "else soft tissue."
    ),
]
Exact = Annotated[bool, typer.Option("--exact", help="Compute in float32, whatever is faster.")]
KeepEmbeddings = Annotated[
    bool,
    typer.Option(
        "--keep-embeddings", help="Keep encoded images: the same ones are quicker next time."
    ),
]
Zoom = Annotated[
    bool | None, typer.Option("--zoom/--no-zoom", help="Predict on the whole, then closer.")
]
Names = Annotated[list[str] | None, typer.Option(help="The objects' names, in order.")]
Lock = Annotated[
    list[int] | None,
    typer.Option(
        metavar="OBJECT",
        help="Keep all other objects off this one (its number). May be repeated.",
        min=1,
    ),
]
Priority = Annotated[
    str | None,
    typer.Option(
        metavar="OBJECTS",
        help="Who keeps shared pixels in a file with one object per pixel: numbers such as 2,1, "
        "the uppermost first.",
    ),
]
KeepJournal = Annotated[Path | None, typer.Option(help="Keep the session here; see limner resume.")]
Propagator = Annotated[
    str | None,
    typer.Option(help="Another model that propagates the masks; --model then answers the prompts."),
]
PropagatorWeights = Annotated[Path | None, typer.Option(help="The propagator's weights file.")]
Preview = Annotated[
    Path | None, typer.Option(help="Also write an overlay: .png; of frames or slices .gif or .mp4.")
]
ImagePath = Annotated[
    Path, typer.Argument(metavar="IMAGE", help="Image, volume, video, DICOM file or folder.")
]
Series = Annotated[
    str | None,
    typer.Option(
        help="Of a DICOM folder: number, UID or end of UID. Of a TIFF: number, level=K, t=K."
    ),
]
Channel = Annotated[
    int | None, typer.Option(help="Read one channel or time point of a 4D file, from 0.")
]
Lenient = Annotated[
    bool, typer.Option("--lenient", help="Open in spite of gaps, uneven steps, NaN and the like.")
]
AnyFrame = Annotated[
    bool,
    typer.Option("--any-frame", help="Take a SEG or RTSTRUCT of another frame of reference."),
]
Threshold = Annotated[
    float | None,
    typer.Option(
        help="Of a mask of probabilities or grey levels: values from this one on are the object."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output on stdout.")]
DicomType = Annotated[
    str | None, typer.Option("--type", help="For .dcm: seg, seg-labelmap or rtstruct.")
]


@dataclass(frozen=True)
class PromptOptions:
    """Prompts of one command line."""

    PANEL: ClassVar[str] = "Prompts"

    box: Boxes = None
    click: Clicks = None
    exclude: Excluded = None
    scribble: Annotated[
        Path | None,
        typer.Option(
            help="JSON scribbles, or a label image: 1 belongs, 2 does not. See docs/prompts.md."
        ),
    ] = None
    mask: Annotated[
        Path | None, typer.Option(help="A rough mask to start from; one object per label.")
    ] = None
    threshold: Threshold = None
    text: Annotated[
        list[str] | None, typer.Option(help="A word for the object. Repeat: one object each.")
    ] = None
    example: Annotated[
        list[str] | None,
        typer.Option(
            help="IMAGE=MASK, or IMAGE=MASK:LABEL for one of its labels: do it as in this "
            "image; without a label all that is not 0 is meant. Repeat: the more, the better."
        ),
    ] = None
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="Prompts as JSON (docs/prompts.md), or the manifest NAME.limner.json of an "
            "earlier mask, to do the same again."
        ),
    ] = None


@dataclass(frozen=True)
class PlaceOptions:
    """Where prompts lie, and in which coordinates they are given."""

    PANEL: ClassVar[str] = "Place of the prompts"

    slice_: Slice = None
    axis: Axis = None
    order: Order = None
    world: World = None


@dataclass(frozen=True)
class ReadOptions:
    """How the image is read."""

    PANEL: ClassVar[str] = "Reading the image"

    series: Series = None
    channel: Channel = None
    lenient: Lenient = False

    def read(self, path: Path) -> Image:
        """Read the image, headers first."""
        import limner

        return limner.read(path, series=self.series, channel=self.channel, strict=not self.lenient)


@dataclass(frozen=True)
class ModelOptions:
    """Which model answers, and how it is run."""

    PANEL: ClassVar[str] = "Model"

    model: Model = None
    weights: Weights = None
    device: Device = "auto"
    window: Window = None
    exact: Exact = False
    keep_embeddings: KeepEmbeddings = False
    zoom: Zoom = None

    def find_weights(self, file: PromptFile | None) -> Path | None:
        """Find the weights file: as given, else the manifest's if it names the model, too."""
        if self.weights is None and self.model is None and file is not None and file.weights:
            return Path(file.weights)
        return self.weights

    def open_session(
        self,
        image: Image,
        default: str,
        *,
        file: PromptFile | None = None,
        journal: Path | None = None,
        **propagator: Any,
    ) -> Session:
        """Open a session on an image.

        Args:
            image: that is segmented.
            default: model where neither the command line nor `file` names one.
            file: a manifest; holds where the command line leaves something open.
            journal: of the session.
            propagator: `propagator` and `propagator_weights` of `limner.open_session`.
        """
        import limner
        from limner.cli._prompt_files import PromptFile, parse_window

        file = file or PromptFile()
        return limner.open_session(
            image,
            self.model or file.model or default,
            weights=self.find_weights(file),
            device=self.device,
            exact=self.exact,
            keep_embeddings=self.keep_embeddings,
            journal=journal,
            zoom=file.zoom if self.zoom is None else self.zoom,
            window=file.window if self.window is None else parse_window(self.window),
            **propagator,
        )


@dataclass(frozen=True)
class ServerOptions:
    """Which server answers instead of this machine."""

    PANEL: ClassVar[str] = "Server"

    server: Annotated[
        str | None, typer.Option(help="Address of limner serve; the models run there.")
    ] = None
    token: Annotated[
        str | None, typer.Option(envvar="LIMNER_TOKEN", help="That limner serve printed.")
    ] = None

    @contextmanager
    def open_session(
        self,
        image: Image,
        model: ModelOptions,
        default: str,
        *,
        file: PromptFile | None = None,
        journal: Path | None = None,
    ) -> Iterator[Session]:
        """Open a session here or on the server, where it is removed when all went well.

        Args:
            image: as for `ModelOptions.open_session`, like the others.
            model: the options.
            default: model.
            file: a manifest.
            journal: of a session that runs here.
        """
        if self.server is None:
            with model.open_session(image, default, file=file, journal=journal) as session:
                yield session
            return
        for option, given in (
            ("--weights", model.weights),
            ("--journal", journal),
            ("--device", None if model.device == "auto" else model.device),
            ("--keep-embeddings", model.keep_embeddings or None),
        ):
            if given is not None:
                raise ValueError(f"{option} is a matter of the server; leave it out.")
        import limner
        from limner.cli._prompt_files import PromptFile, parse_window

        file = file or PromptFile()
        with limner.connect(self.server, self.token) as client:
            remote = client.open_session(
                image,
                model.model or file.model or default,
                zoom=file.zoom if model.zoom is None else model.zoom,
                window=file.window if model.window is None else parse_window(model.window),
                exact=model.exact,
                name="limner segment",
            )
            with remote:
                yield remote
                remote.discard()


@dataclass(frozen=True)
class PropagatorOptions:
    """Which model propagates, where it is another one."""

    PANEL: ClassVar[str] = "Model"

    propagator: Propagator = None
    propagator_weights: PropagatorWeights = None


@dataclass(frozen=True)
class ObjectOptions:
    """What objects are called, and which of two keeps the pixels that both have."""

    PANEL: ClassVar[str] = "Objects"

    name: Names = None
    lock: Lock = None
    priority: Priority = None


@dataclass(frozen=True)
class OutputOptions:
    """What is written besides the mask, and how."""

    PANEL: ClassVar[str] = "Output"

    journal: KeepJournal = None
    dicom_type: DicomType = None
    preview: Preview = None
    as_json: AsJson = False
