"""Nothing acknowledged is ever lost: torn files, full disks, foreign images, kill -9."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import limner
from limner import phantoms
from limner.errors import SessionError
from limner.models import Variant
from limner.sessions.history.events import event_from_json
from limner.sessions.history.journal import Journal, read_journal
from limner.sessions.history.log import PromptLog
from limner.sessions.local import LocalSession
from rounds import times

# A child that holds a conversation of 50 prompts and says after each step what was acknowledged.
# Seeded: the parent knows what it will say.
CHILD = """
import sys
import zlib
from collections.abc import Iterator
import numpy as np
import limner
from test_journal import steps
session = limner.open_session({image!r}, "toy", journal={journal!r})
print("ready", flush=True)
for k, step in enumerate(steps({seed})):
    step(session)
    print(k, flush=True)
"""


def steps(seed: int) -> list:
    """50 prompts with predictions, undo, redo, names and a reset among them."""
    rng = np.random.default_rng(seed)
    result = []
    for k in range(50):
        at = tuple(int(x) for x in rng.integers(0, 40, 2))
        kind, object_id = rng.integers(0, 3), int(rng.integers(1, 4))
        if kind == 0:
            prompt = limner.Click(at, bool(rng.integers(0, 2)))
        elif kind == 1:
            prompt = limner.Box(at, (at[0] + 9, at[1] + 9))
        else:
            prompt = limner.MaskPrompt(rng.random((48, 48)) > 0.5)
        result.append(lambda s, p=prompt, i=object_id: s.add(p, object_id=i))
        extra = rng.integers(0, 6)
        if extra == 0:
            result.append(lambda s, i=object_id: s.predict(object_id=i))
        elif extra == 1:
            result.append(lambda s: s.undo())
        elif extra == 2:
            result.append(
                lambda s: s.redo() if s.can_redo else s.predict(object_id=s.object_ids[0])
            )
        elif extra == 3:
            result.append(lambda s, i=object_id, k=k: s.name(i, f"thing {k}"))
        elif extra == 4 and k > 40:
            result.append(lambda s: s.reset())
    return result


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    from PIL import Image

    Image.fromarray(
        (np.asarray(phantoms.image(2, (48, 48)).image.array) >> 3).astype(np.uint8)
    ).save(path)
    return path


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("seed", range(times(5)))
def test_kill_9_at_a_random_point_loses_nothing_acknowledged(
    seed: int, picture: Path, tmp_path: Path
) -> None:
    journal = tmp_path / "case.limner"
    script = CHILD.format(image=str(picture), journal=str(journal), seed=seed)
    folders = Path(__file__).parent, Path(limner.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders))}
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        last = int(np.random.default_rng(seed + 1000).integers(0, len(steps(seed)) - 1))
        acknowledged = next(k for k in map(int, child.stdout) if k >= last)
        child.send_signal(signal.SIGKILL)
        for line in child.stdout:  # what it still said before the signal reached it
            acknowledged = int(line)

    # The step under way when the signal came may be on the disk without having been acknowledged.
    with limner.resume(journal) as resumed:
        states = [_state(picture, seed, acknowledged + 1 + k) for k in (0, 1)]
        found = (resumed._log.signature(), np.asarray(resumed.labels).tobytes())
        assert found in states


def _state(picture: Path, seed: int, count: int) -> tuple[object, bytes]:
    """What an undisturbed session holds after so many steps."""
    with limner.open_session(picture, "toy") as session:
        for step in steps(seed)[:count]:
            step(session)
        return session._log.signature(), np.asarray(session.labels).tobytes()


def test_resuming_again_and_going_on_appends_to_the_same_journal(
    picture: Path, tmp_path: Path
) -> None:
    journal = tmp_path / "case.limner"
    with limner.open_session(picture, "toy", journal=journal) as session:
        session.add(limner.Box((10, 10), (30, 30)))
        session.predict()
        session.add(limner.Click((20, 20)))
        session.undo()
    for count in (1, 2, 3):
        with limner.resume(journal) as session:
            assert len(session.prompts) == count
            assert session.can_redo == (count == 1)
            session.add(limner.Click((20, 20 + count)))
            session.predict()
            labels = session.labels
    with limner.resume(journal) as session:
        assert np.array_equal(session.labels, labels)


def test_a_propagation_survives_and_goes_on(tmp_path: Path) -> None:
    phantom = phantoms.sequence(4, (10, 48, 48))
    journal = tmp_path / "clip.limner"
    with limner.open_session(phantom.image, "toy", journal=journal) as session:
        session.add(limner.MaskPrompt(phantom.truth[0] == 1), frame=0)
        for prediction in session.propagate():
            if prediction.frame == 4:
                break
        before = np.asarray(session.labels)
    with limner.resume(journal, image=phantom.image) as session:
        assert np.array_equal(session.labels, before)
        for _ in session.propagate(start=5):
            pass
        assert all(session.labels[k].any() for k in range(10))


def test_every_cut_of_the_file_gives_a_whole_earlier_state(picture: Path, tmp_path: Path) -> None:
    journal = tmp_path / "case.limner"
    with limner.open_session(picture, "toy", journal=journal) as session:
        for k in range(6):
            session.add(limner.Click((k, k)))
        session.undo()
    content = journal.read_bytes()
    _, events = read_journal(journal)
    ends = [i + 1 for i, byte in enumerate(content) if byte == 10]
    for cut in range(ends[0], len(content) + 1, 7):
        torn = tmp_path / f"torn{cut}.limner"
        torn.write_bytes(content[:cut])
        record, _, kept = Journal.reopen(torn)
        record.close()
        whole = sum(end <= cut for end in ends) - 1
        assert kept == events[:whole]
        assert torn.stat().st_size == ends[whole]
        assert (
            PromptLog([event_from_json(e) for e in kept]).signature()
            == PromptLog([event_from_json(e) for e in events[:whole]]).signature()
        )


def test_damage_in_the_middle_is_an_error_that_names_the_line(
    picture: Path, tmp_path: Path
) -> None:
    journal = tmp_path / "case.limner"
    with limner.open_session(picture, "toy", journal=journal) as session:
        for k in range(6):
            session.add(limner.Click((k, k)))
    lines = journal.read_bytes().splitlines(keepends=True)
    lines[3] = lines[3].replace(b"click", b"clack")
    journal.write_bytes(b"".join(lines))
    with pytest.raises(SessionError, match="line 4"):
        limner.resume(journal)
    assert journal.read_bytes() == b"".join(lines)


@pytest.mark.parametrize("content", [b"", b"\n", b"hello\nworld\n", b"00000000 {}\n", b"\xff" * 99])
def test_what_is_no_journal_is_refused_and_left_alone(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "other.limner"
    path.write_bytes(content)
    with pytest.raises(SessionError, match="not a limner journal"):
        limner.resume(path)
    assert path.read_bytes() == content


def test_an_existing_journal_is_never_overwritten(picture: Path, tmp_path: Path) -> None:
    journal = tmp_path / "case.limner"
    limner.open_session(picture, "toy", journal=journal).close()
    content = journal.read_bytes()
    with pytest.raises(SessionError, match="limner resume"):
        limner.open_session(picture, "toy", journal=journal)
    assert journal.read_bytes() == content


def test_one_journal_has_one_writer(picture: Path, tmp_path: Path) -> None:
    journal = tmp_path / "case.limner"
    with (
        limner.open_session(picture, "toy", journal=journal),
        pytest.raises(SessionError, match="in use"),
    ):
        limner.resume(journal)


def test_one_journal_has_one_writing_process(picture: Path, tmp_path: Path) -> None:
    journal = tmp_path / "case.limner"
    script = f"import limner\nlimner.resume({str(journal)!r})"
    environment = {**os.environ, "PYTHONPATH": str(Path(limner.__file__).parents[1])}
    command = [sys.executable, "-c", script]
    with limner.open_session(picture, "toy", journal=journal):
        other = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert other.returncode != 0
    assert f"The journal {journal} is in use by another process." in other.stderr
    limner.resume(journal).close()


def test_another_image_or_model_is_refused(picture: Path, tmp_path: Path) -> None:
    journal = tmp_path / "case.limner"
    limner.open_session(picture, "toy", journal=journal).close()
    other = limner.Image(np.zeros((48, 48), np.uint8), limner.Geometry.from_spacing((48, 48)))
    with pytest.raises(SessionError, match="pixels differ"):
        limner.resume(journal, image=other)
    with pytest.raises(SessionError, match="held with toy"):
        limner.resume(journal, model=limner.create_model("classical/region"))
    moved = picture.rename(tmp_path / "moved.png")
    with pytest.raises(SessionError, match="Say where it is"):
        limner.resume(journal)
    limner.resume(journal, image=moved).close()


def test_a_full_disk_refuses_the_step_and_keeps_the_state(
    picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = tmp_path / "case.limner"
    with limner.open_session(picture, "toy", journal=journal) as session:
        session.add(limner.Click((4, 4)))
        size = journal.stat().st_size

        def full(handle: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(SessionError, match="No space left"):
                session.add(limner.Click((5, 5)))
        assert session.prompts == (limner.Click((4, 4)),)
        assert journal.stat().st_size == size
        session.add(limner.Click((6, 6)))
    with limner.resume(journal) as session:
        assert session.prompts == (limner.Click((4, 4)), limner.Click((6, 6)))


def test_the_header_says_what_the_session_was_about(picture: Path, tmp_path: Path) -> None:
    journal = tmp_path / "case.limner"
    limner.open_session(picture, "toy", journal=journal, window=(0, 255)).close()
    facts, events = read_journal(journal)
    assert facts["model"]["name"] == "toy"
    assert facts["image"]["path"] == str(picture.resolve())
    assert len(facts["image"]["pixel_sha256"]) == 64
    assert facts["options"]["window"] == [0, 255]
    assert events == []
    json.dumps(facts)


def test_a_crash_while_the_journal_is_begun_blocks_nothing(picture: Path, tmp_path: Path) -> None:
    journal = tmp_path / "case.limner"
    limner.open_session(picture, "toy", journal=journal).close()
    header = journal.read_bytes()
    parts = [header[:cut] for cut in (*range(25), len(header) // 2, len(header) - 1)]
    for part in [*parts, b"\0" * 4096, header[:40] + b"\0" * 99]:
        journal.write_bytes(part)
        with pytest.raises(SessionError, match="not a limner journal yet"):
            limner.resume(journal)
        assert journal.read_bytes() == part
        with limner.open_session(picture, "toy", journal=journal) as session:
            session.add(limner.Click((4, 4)))
        with limner.resume(journal) as session:
            assert session.prompts == (limner.Click((4, 4)),)


@pytest.mark.parametrize("content", [b"notes", b"00000000 {}", b'0000000g {"journal":', b"{}\n"])
def test_another_file_is_never_taken_for_a_journal_being_begun(
    content: bytes, picture: Path, tmp_path: Path
) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(SessionError, match="exists"):
        limner.open_session(picture, "toy", journal=path)
    assert path.read_bytes() == content


def test_numpy_numbers_are_journalled_as_numbers(tmp_path: Path) -> None:
    phantom = phantoms.sequence(4, (6, 32, 32))
    journal = tmp_path / "clip.limner"
    phantom.image.read_options = {"channel": np.int64(0)}
    with limner.open_session(phantom.image, "toy", journal=journal) as session:
        box = limner.Box(np.array([8, 8]), np.array([24.0, 24.0], np.float32))
        session.add(box, object_id=np.int64(2), frame=np.uint8(3))
        session.predict(object_id=np.int32(2), frame=np.int64(3))
        session.name(np.int64(2), "chamber")
        frames = [p.frame for p in session.propagate(start=np.int64(2), object_id=np.int64(2))]
        session.undo(object_id=np.int16(2))
        session.redo(object_id=np.int16(2))
        state = session._log.signature()
        assert session.export().manifest_json() is not None
    assert frames == [4, 5, 2]
    with limner.resume(journal, image=phantom.image) as session:
        assert session._log.signature() == state


def test_a_session_on_an_array_is_resumed_with_the_array(tmp_path: Path) -> None:
    array = np.arange(600, dtype=np.int16).reshape(20, 30)
    journal = tmp_path / "array.limner"
    with limner.open_session(array, "toy", journal=journal) as session:
        session.add(limner.Click((4, 4)))
    with pytest.raises(SessionError, match="opened on an array"):
        limner.resume(journal)
    with limner.resume(journal, image=array) as session:
        assert len(session.prompts) == 1


def test_ctrl_c_during_a_step_leaves_session_and_journal_alike(
    picture: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    journal = tmp_path / "case.limner"
    sync = os.fsync
    # A shell's background job starts with Ctrl-C ignored; this test is about one that is not.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))

    def interrupted(handle: int) -> None:
        signal.raise_signal(signal.SIGINT)
        sync(handle)

    with limner.open_session(picture, "toy", journal=journal) as session:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", interrupted)
            with pytest.raises(KeyboardInterrupt):
                session.add(limner.Click((4, 4)))
        assert session.prompts == (limner.Click((4, 4)),)
        session.add(limner.Click((5, 5)))
        session.undo()
        state = session._log.signature()
    with limner.resume(journal) as session:
        assert session._log.signature() == state


def test_what_a_failing_disk_kept_of_a_refused_step_is_cut_by_the_next(
    picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = tmp_path / "case.limner"
    with limner.open_session(picture, "toy", journal=journal) as session:

        def fail(*_: object) -> None:
            raise OSError(errno.EIO, "Input/output error")

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fail)
            patch.setattr(Journal, "_cut", fail)
            with pytest.raises(SessionError, match="Input/output"):
                session.add(limner.Click((5, 5)))
        session._recorder.journal._file.write(b"half a rec")
        session.add(limner.Click((6, 6)))
    with limner.resume(journal) as session:
        assert session.prompts == (limner.Click((6, 6)),)


def test_file_systems_without_locks_or_folder_sync_are_good_enough(
    picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: object, **__: object) -> None:
        raise OSError(errno.ENOTSUP, "Not supported")

    sync = os.fsync

    def files_only(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            unsupported()
        sync(handle)

    monkeypatch.setattr("filelock.lock_descriptor", unsupported)
    monkeypatch.setattr(os, "fsync", files_only)
    journal = tmp_path / "case.limner"
    limner.open_session(picture, "toy", journal=journal).close()
    limner.resume(journal).close()
    assert journal.stat().st_size > 100


@pytest.mark.parametrize(
    "record",
    [{"journal": 1}, {"journal": 1, "image": 3, "model": {}, "options": {}}, {"journal": 2}],
)
def test_a_header_without_its_parts_is_refused(record: dict, tmp_path: Path) -> None:
    path = tmp_path / "odd.limner"
    text = json.dumps(record).encode()
    path.write_bytes(b"%08x " % zlib.crc32(text) + text + b"\n")
    with pytest.raises(SessionError, match="not a limner journal of version"):
        limner.resume(path)


def _rewrite(path: Path, number: int, **changes: object) -> None:
    """Change facts of a record, by part and name, and its checksum."""
    lines = path.read_bytes().splitlines()
    record = json.loads(lines[number][9:])
    for name, value in changes.items():
        *parts, last = name.split("__")
        section = record
        for part in parts:
            section = section[part]
        section[last] = value
    text = json.dumps(record).encode()
    lines[number] = b"%08x %s" % (zlib.crc32(text), text)
    path.write_bytes(b"\n".join(lines) + b"\n")


@pytest.mark.parametrize(
    ("number", "changes"),
    [
        (0, {"image__read_options": []}),
        (0, {"image__read_options": {"channel": "x"}}),
        (0, {"image__read_options": {"colour": 1}}),
        (0, {"image__pixel_sha256": None}),
        (0, {"model__name": ["toy"]}),
        (0, {"options__window": [1]}),
        (0, {"options__window": 3}),
        (0, {"options__window": ["a", "b"]}),
        (0, {"options__zoom": "no"}),
        (1, {"op": ["add"]}),
        (1, {"frame": "first"}),
        (1, {"object_id": [1]}),
        (1, {"prompt": 3}),
    ],
)
def test_facts_of_another_kind_are_refused(
    number: int, changes: dict, picture: Path, tmp_path: Path
) -> None:
    path = tmp_path / "case.limner"
    with limner.open_session(picture, "toy", journal=path) as session:
        session.add(limner.Click((3, 4)))
    limner.resume(path).close()
    _rewrite(path, number, **changes)
    with pytest.raises(limner.LimnerError, match=r"damaged|[Mm]alformed|Unknown|prompt"):
        limner.resume(path)


def test_a_record_of_endless_depth_is_refused(tmp_path: Path) -> None:
    text = b'{"journal": ' + b"[" * 5000 + b"]" * 5000 + b"}"
    path = tmp_path / "case.limner"
    path.write_bytes(b"%08x %s\n" % (zlib.crc32(text), text))
    with pytest.raises(SessionError, match="not a limner journal"):
        read_journal(path)


def test_an_image_is_hashed_once(picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = limner.read(picture)
    expected = image.pixel_hash()
    monkeypatch.setattr("hashlib.sha256", None)
    with limner.open_session(image, "toy") as session:
        assert session.export().manifest["image"]["pixel_sha256"] == expected


def test_the_weights_of_a_session_are_found_again_and_must_be_the_same(
    picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = limner.create_model("toy")

    class Weighted:
        def __init__(self, weights: Path) -> None:
            digest = hashlib.sha256(weights.read_bytes()).hexdigest()
            self.card = dataclasses.replace(toy.card, name="weighted", weights_sha256=digest)
            self.embed, self.segment = toy.embed, toy.segment

    variant = Variant(toy.card, lambda *, weights, device, exact: Weighted(weights))
    monkeypatch.setattr("limner.models.variant", lambda name: variant)
    weights, journal = tmp_path / "weights.bin", tmp_path / "case.limner"
    weights.write_bytes(b"first")
    monkeypatch.chdir(tmp_path)
    with limner.open_session(
        Path(picture.name), "weighted", weights="weights.bin", journal="case.limner"
    ) as session:
        session.add(limner.Click((4, 4)))
        digest = hashlib.sha256(b"first").hexdigest()
        assert session.export().manifest["model"]["weights_sha256"] == digest
    monkeypatch.chdir("/")
    with limner.resume(journal) as session:
        assert session.prompts == (limner.Click((4, 4)),)
        own = session.model
    weights.write_bytes(b"second")
    with pytest.raises(SessionError, match="held with weighted"):
        limner.resume(journal)
    weights.unlink()
    with pytest.raises(SessionError, match=r"no weights file .* model="):
        limner.resume(journal)
    limner.resume(journal, model=own).close()


@pytest.mark.parametrize("seed", range(12))
def test_any_conversation_with_slices_objects_and_propagation_is_resumed(
    seed: int, tmp_path: Path
) -> None:
    make, shape = (phantoms.sequence, (6, 24, 24)) if seed % 2 else (phantoms.volume, (8, 24, 20))
    image = make(4, shape).image
    journal = tmp_path / "case.limner"
    with limner.open_session(image, "toy", journal=journal) as session:
        accepted = sum(_random_steps(session, np.random.default_rng(seed), 50))
        state, found = session._log.signature(), session.export()
        masks = {i: found.mask(i) for i in session.object_ids}
    assert accepted > 10
    with limner.resume(journal, image=image) as session:
        assert session._log.signature() == state
        assert session.object_ids == tuple(masks)
        again = session.export()
        assert all(np.array_equal(again.mask(i), mask) for i, mask in masks.items())


def _random_steps(session: LocalSession, rng: np.random.Generator, count: int) -> Iterator[bool]:
    """Verbs in any order, sensible or not, on several objects; whether each was accepted."""
    walks = [iter(())]
    for _ in range(count):
        verb, object_id, frame = rng.integers(0, 8), int(rng.integers(1, 4)), rng.integers(0, 6)
        one = object_id if rng.random() < 0.5 else None
        try:
            if verb < 3:
                click = limner.Click(rng.integers(0, 20, 2), bool(rng.random() < 0.7))
                session.add(click, object_id=object_id, frame=frame)
            elif verb == 3:
                session.predict(object_id=object_id, frame=frame)
            elif verb == 4:
                session.undo(object_id=one)
            elif verb == 5:
                session.redo(object_id=one)
            elif verb == 6:
                walks.append(session.propagate(object_id=one))
                next(walks[rng.integers(len(walks))])
            elif rng.random() < 0.2:
                session.reset(object_id=one)
        except (SessionError, StopIteration):
            yield False
        else:
            yield True
