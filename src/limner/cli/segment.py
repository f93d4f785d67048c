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


@expand_groups
def segment(
    path: ImagePath,
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="Mask: .nii.gz .nrrd .mha .png .tif .dcm .json .npz by suffix."
        ),
    ],
    prompts: PromptOptions,
    place: PlaceOptions,
    objects: ObjectOptions,
    model: ModelOptions,
    server: ServerOptions,
    reading: ReadOptions,
    result: OutputOptions,
) -> None:
    """Delineate an object: prompts in, mask out, in the image's own geometry."""
    from limner.cli._prompt_files import parse_axis
    from limner.cli._prompts import (
        CommandPrompts,
        add_prompts,
        collect_prompts,
        warn_of_differences,
    )
    from limner.cli._result import check_output, write_result
    from limner.models import default_model

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
