"""Opening a session on an image, and resuming one from its journal."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

from numpy.typing import ArrayLike

from limner.adapters.default_window import choose_window
from limner.errors import CheckpointError, LimnerError, SessionError
from limner.io import read
from limner.io.arrays import image_from_array
from limner.io.image import Image
from limner.models import PromptableModel, create_promptable, default_model
from limner.sessions.history.events import event_from_json
from limner.sessions.history.journal import Journal
from limner.sessions.history.log import PromptLog
from limner.sessions.history.manifest import Options, check_header, header
from limner.sessions.image import StillViews
from limner.sessions.local import LocalSession
from limner.sessions.propagation.prefetch import num_prefetched
from limner.sessions.protocol import Session
from limner.sessions.video import VideoViews
from limner.sessions.views import ImageViews
from limner.sessions.volume import VolumeViews

_log = logging.getLogger(__name__)


def open_session(
    image: Image | ArrayLike | str | Path,
    model: str | PromptableModel | None = None,
    *,
    weights: str | Path | None = None,
    device: str = "auto",
    journal: str | Path | None = None,
    zoom: bool | None = None,
    window: str | Sequence[float] | None = None,
    exact: bool = False,
    keep_embeddings: bool = False,
    propagator: str | PromptableModel | None = None,
    propagator_weights: str | Path | None = None,
    keep_masks: bool = False,
) -> Session:
    """Open a session; the kind follows from the image.

    Args:
        image: from `limner.read`, a path, or an array: 2D, 3D, or 2D with colours in any type.
        model: a name (see ``limner models``), or an object with the verbs of `PromptableModel`.
        weights: the model's weights file, for a name.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``, for a name.
        journal: file that survives a crash; must not exist yet (`resume` continues one).
        zoom: look twice, at the whole and at a window around the object; default: the model's.
        window: CT window by name or as ``(low, high)`` intensities; ``"robust"``: limits of the
            image itself. Default: of CT the file's own window or that of soft tissue, else robust.
        exact: compute in float32, for a name; default: the fastest that gives the same masks.
        keep_embeddings: keep encoded pictures on disk, for a name; see `limner.create_model`.
        propagator: another model that carries masks over slices or frames, a name or an object;
            `model` answers prompts, and its answers are what is carried. Default: `model` does it.
        propagator_weights: the propagator's weights file, for a name.
        keep_masks: a `MaskPrompt` is the answer to the pixel, and clicks and scribbles after it
            change only what hangs together with them. Default: masks are rough guesses, which the
            model draws anew.

    Raises:
        SessionError: the model does not work on this kind of image, or the journal exists.
        CheckpointError: the weights file does not exist or does not fit the model.
        ValueError: unknown model, device or window.
        TypeError: neither an image nor an array of numbers, or no model.

    Examples:
        >>> import limner, numpy
        >>> image = numpy.zeros((64, 64)); image[20:30, 20:30] = 1
        >>> with limner.open_session(image, "toy") as session:
        ...     prompt = session.add(limner.Box((16, 16), (34, 34)))
        ...     prediction = session.predict()
        >>> int(prediction.mask.sum())
        100
    """
    opened = as_image(image)
    made = partial(create_promptable, device=device, exact=exact, keep_embeddings=keep_embeddings)
    if model is None:
        model = default_model(opened.kind, flat=propagator is not None)
    built = _model(model, weights, made, "weights")
    if propagator is None and propagator_weights is not None:
        raise TypeError("propagator_weights= goes with a propagator's name: propagator=.")
    carrier = None
    if propagator is not None:
        carrier = _model(propagator, propagator_weights, made, "propagator_weights")
        _check_propagator(opened, built, carrier)
    chosen = choose_window(opened, window)
    weights_of = "" if weights is None else f" with the weights {weights}"
    _log.info("%s answers%s, on %s", built.card.name, weights_of, device)
    _log.info("%s", chosen.describe() or f"window {chosen.limits or 'by robust limits'}")
    options = Options(
        zoom=built.card.zoom if zoom is None else zoom,
        window=chosen.limits,
        window_source=chosen.source,
        weights=_resolved(weights),
        device=device,
        exact=exact,
        keep_embeddings=keep_embeddings,
        propagator_weights=_resolved(propagator_weights),
        propagator_zoom=_zoom_of(carrier, zoom),
        keep_masks=keep_masks,
    )
    _warn_of_time_points(opened)
    views = _open_views(opened, built, carrier or built, options)
    record = None
    if journal is not None:
        facts = header(opened, built.card, options, None if carrier is None else carrier.card)
        record = Journal.create(Path(journal), facts)
    return LocalSession(views, built, options, journal=record, propagator=carrier)


def resume(
    journal: str | Path,
    *,
    image: Image | ArrayLike | str | Path | None = None,
    model: PromptableModel | None = None,
    propagator: PromptableModel | None = None,
) -> Session:
    """Continue a session from its journal: prompts, names, undo and redo history as acknowledged.

    Args:
        journal: the file given to `open_session`.
        image: the image, if it has moved or was an array; by default it is read from where it was.
        model: the model object, if the session was opened with one of your own.
        propagator: the propagator, likewise.

    Raises:
        SessionError: no journal, damaged or in use; or the image or the model is not the same.
    """
    path = Path(journal)
    record, facts, events = Journal.reopen(path)
    try:
        log = PromptLog()
        for event in map(event_from_json, events):
            log.apply(event)
        check_header(facts, path)
        opened = _same_image(facts["image"], image, path)
        options = Options.from_json(facts["options"])
        built = _same_model(facts["model"], model, options, options.weights)
        carrier = None
        if facts.get("propagator") is not None:
            weights = options.propagator_weights
            carrier = _same_model(facts["propagator"], propagator, options, weights, "propagator")
        elif propagator is not None:
            raise SessionError(f"The session of {path} was held without a propagator; pass none.")
        views = _open_views(opened, built, carrier or built, options)
        return LocalSession(views, built, options, log=log, journal=record, propagator=carrier)
    except BaseException:
        record.close()
        raise


def as_image(image: Image | ArrayLike | str | Path) -> Image:
    """An image from itself, a path or an array; see `limner.io.arrays.image_from_array`.

    Raises:
        TypeError: neither.
    """
    if isinstance(image, Image):
        return image
    if isinstance(image, (str, Path)):
        return read(image)
    return image_from_array(image)


def _model(
    model: str | PromptableModel,
    weights: str | Path | None,
    made: Callable[..., PromptableModel],
    option: str,
) -> PromptableModel:
    """A model from its name or itself."""
    if isinstance(model, str):
        return made(model, weights=weights)
    if weights is not None:
        raise TypeError(f"{option}= goes with a model's name, not with a model object.")
    if isinstance(model, PromptableModel):
        return model
    raise TypeError(f"A model is a name or an object with card, embed and segment: {model!r}.")


def _resolved(weights: str | Path | None) -> str | None:
    return None if weights is None else str(Path(weights).resolve())


def _zoom_of(carrier: PromptableModel | None, zoom: bool | None) -> bool | None:
    return None if carrier is None else carrier.card.zoom if zoom is None else zoom


def _check_propagator(image: Image, model: PromptableModel, propagator: PromptableModel) -> None:
    """Refuse a propagator that has nothing to carry, or cannot look at frames."""
    if image.kind == "image":
        raise SessionError("A 2D image has no other frames to carry to; leave out propagator=.")
    if 2 not in propagator.card.ndim:
        raise SessionError(
            f"{propagator.card.name} works on whole volumes only and cannot carry from slice to "
            "slice; name a propagator that works in 2D (limner models)."
        )
    if 2 not in model.card.ndim:
        raise SessionError(
            f"{model.card.name} answers about the whole volume, which leaves nothing to carry; "
            "with propagator= name a model that works in 2D (limner models)."
        )


def _open_views(
    image: Image, model: PromptableModel, carrier: PromptableModel, options: Options
) -> ImageViews:
    """What models see of an image; refuses a model that does not work on its kind."""
    prefetched = num_prefetched(carrier, zoom=options.zoom_of_carrier)
    if image.kind == "volume":
        return VolumeViews(
            image, options.window, prefetched, model.card, requested=options.is_given
        )
    if 2 not in model.card.ndim:
        raise SessionError(f"{model.card.name} works on volumes, and this is one {image.kind}.")
    if image.kind == "image":
        return StillViews(image, options.window, requested=options.is_given)
    return VideoViews(image, options.window, prefetched)


def _warn_of_time_points(image: Image) -> None:
    """Warn of a volume whose channels are no colours, which models see as such."""
    count = image.num_channels or 1
    if image.kind != "volume" or count < 2 or image.channel_kind == "colour":
        return
    _log.warning(
        "%s has %d %s, and the model sees them all together, as if they were colours; take one "
        "with --channel K (channel=K).",
        image.path or "The image",
        count,
        "time points" if image.channel_kind == "time" else "channels or time points",
    )


def _same_image(
    facts: dict[str, Any], given: Image | ArrayLike | str | Path | None, journal: Path
) -> Image:
    if given is not None and not isinstance(given, (str, Path)):
        image = as_image(given)
    else:
        place = facts["path"] if given is None else given
        if place is None:
            raise SessionError(
                f"The session of {journal} was opened on an array; pass it again as image=."
            )
        try:
            wanted = signature(read).bind(place, **facts["read_options"])
        except TypeError as error:
            raise SessionError(f"The journal {journal} is damaged: {error}.") from error
        try:
            image = read(*wanted.args, **wanted.kwargs)
        except LimnerError as error:
            raise SessionError(
                f"The image of {journal} cannot be read ({error}) Say where it is: image=, --image."
            ) from error
    if image.pixel_hash() != facts["pixel_sha256"]:
        raise SessionError(
            f"{image.path or 'The image'} is not the image of {journal}: its pixels differ. "
            "Say where the right one is: image=, --image."
        )
    return image


def _same_model(
    facts: dict[str, Any],
    given: PromptableModel | None,
    options: Options,
    weights: str | None,
    role: str = "model",
) -> PromptableModel:
    if given is None:
        try:
            given = create_promptable(
                facts["name"],
                weights=weights,
                device=options.device,
                exact=options.exact,
                keep_embeddings=options.keep_embeddings,
            )
        except (ValueError, CheckpointError) as error:
            raise SessionError(f"{error} Pass the session's own object as {role}=.") from error
    card = given.card
    if (card.name, card.weights_sha256) != (facts["name"], facts["weights_sha256"]):
        raise SessionError(
            f"The session was held with {facts['name']} (weights {facts['weights_sha256']}), "
            f"not with {card.name} (weights {card.weights_sha256}). Pass that one as {role}=."
        )
    return given
