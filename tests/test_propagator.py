"""A model for prompts and another that carries: who is asked what, and what is written down."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import limner
from limner.cli import _progress
from limner.cli.__main__ import run
from limner.errors import PromptError, SessionError
from limner.sessions.history.journal import read_journal
from limner.sessions.local import LocalSession
from limner.sessions.propagation.review import overlap, rate_certainty
from sequence_makers import Colours, Follower, Walker, moving

KINDS = {"walk": Walker, "follow": Follower, "recall": Colours}


@pytest.fixture(params=KINDS)
def carrier(request: pytest.FixtureRequest) -> Walker | Follower | Colours:
    return KINDS[str(request.param)]()


def test_clicks_are_answered_by_one_and_carried_by_the_other(
    carrier: Walker | Follower | Colours,
) -> None:
    image, labels = moving(12)
    asked = Walker("click", "mask")
    with limner.open_session(image, asked, propagator=carrier) as session:
        assert session.propagator is carrier
        session.add(limner.Click((6, 22)), frame=4)
        session.add(limner.Click((24, 22)), frame=4, object_id=2)
        assert np.array_equal(session.predict(frame=4).mask, labels[4] == 1)
        found = list(session.propagate())
        assert len(found) == 22
        for i in (1, 2):
            mask = session.export().mask(i)
            assert limner.metrics.dice(mask[1:], labels[1:] == i) > 0.9
            assert np.array_equal(mask[4], labels[4] == i)
    assert set(asked.seen) == {4}
    assert set(carrier.seen) >= set(range(12)) - {4}


def test_a_propagator_is_not_asked_about_prompts_and_its_kinds_are_not_the_sessions() -> None:
    image, _ = moving(6)
    carrier = Colours()
    with limner.open_session(image, Colours()) as session, pytest.raises(PromptError):
        session.add(limner.Click((6, 22)), frame=0)
    with limner.open_session(image, Walker(), propagator=carrier) as session:
        session.add(limner.Click((6, 2)), frame=0)
        session.predict(frame=0)
        assert carrier.seen == []
        with pytest.raises(PromptError, match="walker understands click, mask, not box"):
            session.add(limner.Box((0, 0), (5, 5)), frame=0)


def test_models_do_not_get_what_the_other_encoded() -> None:
    image, _ = moving(6)

    class Named(Walker):
        def embed(self, view):  # type: ignore[no-untyped-def]
            return self, view

        def segment(self, embedding, prompts, previous=None):  # type: ignore[no-untyped-def]
            whose, view = embedding
            assert whose is self
            return super().segment(view, prompts, previous)

    with limner.open_session(image, Named(), propagator=Named()) as session:
        session.add(limner.Click((6, 10)), frame=2)
        session.predict(frame=2)
        assert len(list(session.propagate())) == 5
        session.add(limner.Click((6, 12)), frame=3)  # a frame that the propagator has just seen
        session.predict(frame=3)
        assert len(list(session.propagate())) == 4


def test_a_carrying_propagator_is_told_of_the_mask_not_of_the_clicks() -> None:
    image, labels = moving(6)
    told = []

    class Carrying(Walker):
        def next_prompts(self, view, before, prompts):  # type: ignore[no-untyped-def]
            told.append((list(prompts), before.memory))
            return [limner.MaskPrompt(before.logits > 0)]

    with limner.open_session(image, Walker(), propagator=Carrying("mask")) as session:
        session.add(limner.Click((6, 2)), frame=0)
        assert len(list(session.propagate())) == 5
    assert told[0][1] is None
    assert np.array_equal(told[0][0][0].mask, labels[0] == 1)


def test_the_journal_and_the_manifest_name_both(tmp_path: Path) -> None:
    image, labels = moving(8)
    journal = tmp_path / "case.limner"
    carrier = Colours()
    with limner.open_session(image, "toy", propagator=carrier, journal=journal) as session:
        session.add(limner.MaskPrompt(labels[0] == 1), frame=0)
        for found in session.propagate():
            if found.frame == 4:
                break
        facts = session.export().manifest
        assert facts is not None
        assert (facts["model"]["name"], facts["propagator"]["name"]) == ("toy", "tests/colours")
        json.dumps(facts)
    facts, _ = read_journal(journal)
    assert facts["propagator"]["name"] == "tests/colours"
    assert facts["options"]["propagator_zoom"] is False
    with pytest.raises(SessionError, match="own object as propagator="):
        limner.resume(journal, image=image)
    with pytest.raises(SessionError, match="held with tests/colours"):
        limner.resume(journal, image=image, propagator=Walker())
    with limner.resume(journal, image=image, propagator=carrier) as session:
        assert session.propagator is carrier
        assert len(list(session.resume_propagation())) == 7
        assert np.array_equal(session.labels, labels == 1)


def test_a_propagator_by_name_is_resumed_by_name(tmp_path: Path) -> None:
    image, _ = moving(8)
    journal = tmp_path / "case.limner"
    open_ = limner.open_session
    with open_(image, "toy", propagator="classical/region", journal=journal) as session:
        session.add(limner.Box((4, 0), (12, 8)), frame=0)
        next(iter(session.propagate()))
    with limner.resume(journal, image=image) as session:
        assert session.propagator is not None
        assert session.propagator.card.name == "classical/region"
    with limner.open_session(image, "toy", journal=tmp_path / "other.limner") as session:
        session.add(limner.Box((4, 0), (12, 8)), frame=0)
    with pytest.raises(SessionError, match="without a propagator"):
        limner.resume(tmp_path / "other.limner", image=image, propagator=Walker())


def test_journals_from_before_propagators_are_read(tmp_path: Path) -> None:
    import zlib

    image, _ = moving(8)
    journal = tmp_path / "case.limner"
    with limner.open_session(image, "toy", journal=journal) as session:
        session.add(limner.Box((4, 0), (12, 8)), frame=0)
    first, rest = journal.read_bytes().split(b"\n", 1)
    facts = json.loads(first[9:])
    del facts["propagator"]
    for name in ("propagator_weights", "propagator_zoom"):
        del facts["options"][name]
    text = json.dumps(facts, separators=(",", ":")).encode()
    journal.write_bytes(b"%08x " % zlib.crc32(text) + text + b"\n" + rest)
    with limner.resume(journal, image=image) as session:
        assert session.propagator is None
        assert len(session.prompts) == 1


@pytest.mark.slow
def test_propagators_that_cannot_be_are_refused() -> None:
    image, _ = moving(4)
    picture = np.zeros((20, 20), np.uint8)
    with pytest.raises(SessionError, match="no other frames"):
        limner.open_session(picture, "toy", propagator="toy")
    volume = limner.Image(np.asarray(image.array), image.geometry)
    with pytest.raises(SessionError, match="limner-3d works on whole volumes only"):
        limner.open_session(volume, "toy", propagator="limner-3d")
    with pytest.raises(SessionError, match="limner-3d answers about the whole volume"):
        limner.open_session(volume, "limner-3d", propagator="toy")
    with pytest.raises(TypeError, match="propagator_weights= goes with a propagator's name"):
        limner.open_session(image, "toy", propagator_weights="x.pth")
    with pytest.raises(TypeError, match="propagator_weights= goes with a model's name"):
        limner.open_session(image, "toy", propagator=Walker(), propagator_weights="x.pth")
    with pytest.raises(TypeError, match="A model is a name or an object"):
        limner.open_session(image, "toy", propagator=3)  # type: ignore[arg-type]


def test_a_volume_with_a_propagator_is_about_slices_by_default() -> None:
    image, _ = moving(4, kind="volume")
    with limner.open_session(image, propagator=Colours()) as session:
        assert session.model.card.name == "limner-2d"


@pytest.mark.slow
def test_zoom_of_the_propagator_is_its_own_unless_said() -> None:
    image, _ = moving(4)
    with limner.open_session(image, "limner-2d", propagator=Walker()) as session:
        assert (session.options.zoom, session.options.propagator_zoom) == (True, False)
    with limner.open_session(image, "limner-2d", propagator=Walker(), zoom=True) as session:
        assert session.options.propagator_zoom is True


# Where to look.


def _runs(mask: np.ndarray) -> list[int]:
    return limner.rle.encode(mask)


def test_overlap_is_the_dice_of_masks() -> None:
    rng = np.random.default_rng(0)
    for share in (0.0, 0.1, 0.5, 0.9, 1.0):
        one, other = rng.random((2, 13, 17)) < share
        expected = 1.0 if not (one.any() or other.any()) else limner.metrics.dice(one, other)
        assert overlap(_runs(one), _runs(other)) == pytest.approx(expected)
    none, all_ = np.zeros((3, 3), bool), np.ones((3, 3), bool)
    assert overlap(_runs(none), _runs(all_)) == 0
    assert overlap(_runs(none), _runs(none)) == 1


def test_jumps_of_area_and_of_place_are_in_doubt_and_steady_motion_is_not() -> None:
    def disk(row: float, column: float, radius: float) -> list[int]:
        rows, columns = np.ogrid[:64, :64]
        return _runs(np.hypot(rows - row, columns - column) < radius)

    carried = {k: (disk(20 + k, 20, 8), 0.9) for k in range(1, 30)}
    assert min(rate_certainty(carried, {0: disk(20, 20, 8)}).values()) > 0.8
    carried[10] = disk(30, 20, 14), 0.9  # leaks
    carried[20] = disk(10, 50, 8), 0.9  # is somewhere else
    sure = rate_certainty(carried, {0: disk(20, 20, 8)})
    assert sure[20] == 0
    assert sure[10] < 0.65
    assert sure[15] > 0.8
    carried[25] = [64 * 64], 0.0  # gone for a frame
    assert rate_certainty(carried, {})[25] == 0


def _doubtful(session: LocalSession, **options: int) -> list[int]:
    return [d.frame for d in session.frames_to_review(**options)]


def test_doubtful_frames_are_spread_out_and_name_the_object() -> None:
    image, labels = moving(60)

    class Unsure(Walker):
        def segment(self, view, prompts, previous=None):  # type: ignore[no-untyped-def]
            found = super().segment(view, prompts, previous)
            frame, dark = int(view.array[0, 0]), (view.array[found.logits > 0] < 150).all()
            score = 0.9
            if dark:
                score = {10: 0.2, 11: 0.1, 12: 0.2, 40: 0.3}.get(frame, 0.9)
            elif frame == 50:
                score = 0.4
            return limner.models.Segmentation(found.logits, score)

    with limner.open_session(image, Unsure()) as session:
        assert session.frames_to_review() == ()
        for i in (1, 2):
            session.add(limner.MaskPrompt(labels[0] == i), frame=0, object_id=i)
        list(session.propagate())
        found = session.frames_to_review(3)
        assert [d.frame for d in found] == [11, 40, 50]
        assert [d.object_id for d in found] == [1, 1, 2]
        assert found[0].score == pytest.approx(0.1)
        assert _doubtful(session, count=1, object_id=2) == [50]
        session.add(limner.MaskPrompt(labels[11] == 1), frame=11)
        assert 11 not in _doubtful(session, count=3)
    with limner.open_session(np.zeros((9, 9), np.uint8), "toy") as session:
        assert session.frames_to_review() == ()


# The command.


def test_resume_goes_on_with_a_propagation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_progress, "FIRST_LINE_S", 0.0)
    monkeypatch.setattr(_progress, "LINE_S", 0.0)
    image, _ = moving(12, kind="volume")
    file, journal, out = (tmp_path / n for n in ("v.nii.gz", "case.limner", "out.nii.gz"))
    limner.io.write_image(file, image)
    whole = tmp_path / "whole.nii.gz"
    for path, stop in ((journal, 5), (tmp_path / "other.limner", 99)):
        with limner.open_session(limner.read(file), "toy", journal=path) as session:
            session.add(limner.Box((4, 0), (12, 8)), frame=0)
            for found in session.propagate(stop=10):
                if found.frame == stop:
                    break
            limner.write(whole, session.labels, like=file)
    assert run(["resume", str(journal), "--continue", "-o", str(out)]) == 0
    told = capsys.readouterr().err
    assert "carried to 4 more slices" in told
    lines = [line for line in told.splitlines() if line.startswith("going on: ")]
    assert len(lines) == 9, "the range that was asked for"
    assert lines[4].startswith("going on: 0 of 4 frames"), "what was there costs no time"
    assert lines[-1].startswith("going on: 4 of 4 frames, ")
    both = [limner.read_labels(p, like=file).to_array() for p in (out, whole)]
    assert np.array_equal(*both)
    assert run(["resume", str(journal), "--continue", "-o", str(out)]) == 0
    assert "nothing was missing" in capsys.readouterr().err
    bare = tmp_path / "bare.limner"
    limner.open_session(limner.read(file), "toy", journal=bare).close()
    assert run(["resume", str(bare), "--continue"]) != 0
    assert "No propagation was begun" in capsys.readouterr().err
