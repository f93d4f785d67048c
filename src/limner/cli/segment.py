"""``limner segment``: prompts in, one mask out."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from limner.cli._groups import expand_groups
from limner.cli._options import (
    ImagePath,
    ModelOptions,
    ObjectOptions,
    OutputOptions,
    PlaceOptions,
    PromptOptions,
    ReadOptions,
    ServerOptions,
)
from limner.errors import FormatError


@expand_groups
def segment(
    path: ImagePath,
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="Mask: .nii.gz .nrrd .mha .png .tif .dcm .json .npz by suffix. Of a folder of "
            "images: a folder.",
        ),
    ],
    prompts: PromptOptions,
    place: PlaceOptions,
    objects: ObjectOptions,
    model: ModelOptions,
    server: ServerOptions,
    reading: ReadOptions,
    result: OutputOptions,
    suffix: Annotated[
        str | None,
        typer.Option(
            help="Of a folder of images: the format of the masks, such as .nii.gz. Default: the "
            "image's own where it can hold a mask."
        ),
    ] = None,
) -> None:
    """Delineate an object: prompts in, mask out, in the image's own geometry. Of a folder of images
    every one, where -o names a folder, too.
    """
    from limner.cli._folders import is_folder_run, segment_folder
    from limner.cli._prompt_files import parse_axis
    from limner.cli._prompts import (
        CommandPrompts,
        add_prompts,
        collect_prompts,
        warn_of_differences,
    )
    from limner.cli._result import check_output, write_result
    from limner.models import default_model

    if is_folder_run(path, output):
        segment_folder(
            path, output, prompts, (place, objects, model, server, reading, result), suffix=suffix
        )
        return
    if suffix is not None:
        raise FormatError("--suffix goes with a folder of images; -o names the file here.")
    began = time.perf_counter()
    image = reading.read(path)
    axis = parse_axis(place.axis, image, place.slice_)
    given = CommandPrompts.parse(prompts, place.slice_, axis)
    file = given.file
    inputs = [*given.paths, prompts.prompts, model.find_weights(file)]
    check_output(
        output,
        result.preview,
        image,
        journal=result.journal,
        inputs=inputs,
        dicom_type=result.dicom_type,
    )
    entries = collect_prompts(given, image, place, axis=axis)
    default = default_model(image.kind, flat=place.slice_ is not None and axis == 0)
    opening = server.open_session(image, model, default, file=file, journal=result.journal)
    with opening as session:
        add_prompts(session, entries, file, objects)
        warn_of_differences(session, file, prompts.prompts)
        write_result(
            session,
            output,
            preview=result.preview,
            dicom_type=result.dicom_type,
            as_json=result.as_json,
            began=began,
        )
