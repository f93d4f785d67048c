"""The conversation as a fold over events: undo, redo, reset and rounds against a plain model."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limner import Click
from limner.errors import LimnerError, SessionError
from limner.sessions.history.events import (
    Added,
    Cleared,
    Committed,
    Event,
    Named,
    Predicted,
    Propagated,
    Redone,
    Undone,
    event_from_json,
    event_to_json,
)
from limner.sessions.history.log import PromptLog

OBJECTS = st.sampled_from([1, 2, 5])
FRAMES = st.sampled_from([None, 0, 3])
EVENTS = st.one_of(
    st.builds(
        lambda r, c, i, f: Added(Click((r, c)), i, f),
        st.integers(0, 99),
        st.integers(0, 99),
        OBJECTS,
        FRAMES,
    ),
    st.builds(Predicted, OBJECTS, FRAMES),
    st.builds(Undone, st.one_of(st.none(), OBJECTS)),
    st.builds(Redone, st.one_of(st.none(), OBJECTS)),
    st.builds(Cleared, st.one_of(st.none(), OBJECTS)),
    st.builds(Named, OBJECTS, st.sampled_from(["liver", "Nerv Ω"])),
    st.builds(lambda i: Propagated((i,)), OBJECTS),
    st.builds(
        lambda i, f, n: Committed(i, f, (n, 10 - n), 0.5),
        OBJECTS,
        st.integers(0, 9),
        st.integers(0, 10),
    ),
)


def _valid(events: list[Event]) -> list[Event]:
    """Those that a session would have accepted."""
    log, accepted = PromptLog(), []
    for event in events:
        try:
            log.check(event)
        except SessionError:
            continue
        log.apply(event)
        accepted.append(event)
    return accepted


@pytest.mark.slow
@given(st.lists(EVENTS, max_size=40))
def test_replaying_the_journal_text_gives_the_same_state(events: list[Event]) -> None:
    accepted = _valid(events)
    text = [json.dumps(event_to_json(e)) for e in accepted]
    assert (
        PromptLog(accepted).signature()
        == PromptLog([event_from_json(json.loads(t)) for t in text]).signature()
    )


@given(st.lists(EVENTS, max_size=40))
def test_undoing_everything_and_redoing_it_is_no_change(events: list[Event]) -> None:
    log = PromptLog(_valid(events))
    before = log.signature()[2]
    steps = 0
    while log.can_undo:
        log.apply(Undone(None))
        steps += 1
    assert log.object_ids == ()
    for _ in range(steps):
        log.check(Redone(None))
        log.apply(Redone(None))
    assert log.signature()[2] == before


@given(st.lists(EVENTS, max_size=40), OBJECTS)
def test_one_objects_undo_never_touches_another(events: list[Event], own: int) -> None:
    log = PromptLog(_valid(events))
    others = [log.all_prompts(i) for i in (1, 2, 5) if i != own]
    try:
        log.check(Undone(own))
    except SessionError:
        return
    log.apply(Undone(own))
    assert [log.all_prompts(i) for i in (1, 2, 5) if i != own] == others


@given(st.lists(st.one_of(st.just("add"), st.just("undo"), st.just("redo")), max_size=60))
def test_one_object_behaves_like_two_stacks(words: list[str]) -> None:
    log, done, undone = PromptLog(), [], []
    for k, word in enumerate(words):
        if word == "add":
            log.apply(Added(Click((k, k)), 1, None))
            done.append(Click((k, k)))
            undone.clear()
            continue
        source, target = (done, undone) if word == "undo" else (undone, done)
        event = Undone(None) if word == "undo" else Redone(None)
        if source:
            log.apply(event)
            target.append(source.pop())
        else:
            with pytest.raises(SessionError):
                log.check(event)
    assert [a.prompt for a in log.all_prompts()] == done


def test_a_new_prompt_ends_the_redo_of_its_own_object_only() -> None:
    log = PromptLog([Added(Click((0, 0)), 1, None), Added(Click((1, 1)), 2, None)])
    log.apply(Undone(2))
    log.apply(Undone(1))
    log.apply(Added(Click((2, 2)), 1, None))
    with pytest.raises(SessionError, match="nothing to redo"):
        log.check(Redone(1))
    log.check(Redone(2))


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"op": "explode"},
        {"op": "undo"},
        {"op": "undo", "object_id": 1, "more": 2},
        {"op": "add", "object_id": 1, "frame": None},
        {"op": "propagate", "object_ids": 3},
        {"op": "add", "prompt": {"kind": "wish"}, "object_id": 1, "frame": None},
    ],
)
def test_malformed_events_are_refused(value: dict[str, object]) -> None:
    with pytest.raises(LimnerError):
        event_from_json(value)


def test_redo_restores_the_order_in_time() -> None:
    first, second = Added(Click((0, 0)), 1, None), Added(Click((1, 1)), 2, None)
    log = PromptLog([first, second, Undone(1), Redone(1)])
    assert [a.prompt for a in log.all_prompts()] == [first.prompt, second.prompt]
    log.apply(
        Undone(None)
    )  # the newest action is the second object's, whenever the first came back
    assert log.object_ids == (1,)


def test_undo_of_the_session_takes_back_a_reset_of_all_objects_as_one() -> None:
    log = PromptLog([Added(Click((0, 0)), 1, None), Added(Click((1, 1)), 2, None), Cleared(None)])
    assert log.object_ids == ()
    log.apply(Undone(None))
    assert log.object_ids == (1, 2)
    log.apply(Redone(None))
    assert log.object_ids == ()
