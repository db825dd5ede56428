"""The metrics of a training: lines of means."""

import json

import jax.numpy as jnp
import pytest

from experiments.metrics import Log


def add(log, first, *losses, refused=()):
    """Add steps from this number on; a loss of None is not measured."""
    row = 0
    for step, loss in enumerate(losses, start=first):
        row = row + 1 if step in refused else 0
        measured = {} if loss is None else {"loss": jnp.float32(loss)}
        log.add(step, {**measured, "accuracy": jnp.float32(0.5)}, jnp.int32(row))


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_is_the_mean_of_what_was_measured(tmp_path):
    log = Log(tmp_path / "m")
    add(log, 1, 1.0, None, 4.0)
    assert len(log) == 3
    line = log.write(epoch=2)
    assert line == {"step": 3, "epoch": 2, "loss": 2.5, "accuracy": 0.5}
    assert lines(tmp_path / "m") == [line]
    assert len(log) == 0
    assert log.accuracy == 0.5


def test_refused_steps_are_counted_and_left_out(tmp_path):
    log = Log(tmp_path / "m")
    add(log, 4, 1.0, float("nan"), float("inf"), 3.0, float("nan"), refused=(5, 6, 8))
    assert log.refused() == [5, 6]
    assert log.write(epoch=0) == {
        "step": 8, "epoch": 0, "loss": 2.0, "accuracy": 0.5, "refused": 3
    }  # fmt: skip
    # A row that goes on: the optimizer counts from its beginning.
    log.add(9, {"loss": jnp.float32(jnp.nan)}, jnp.int32(2))
    assert log.refused() == [8, 9]
    assert log.write(epoch=0) == {"step": 9, "epoch": 0, "refused": 1}
    assert log.refused() == []


def test_going_on_is_as_if_there_had_been_no_interruption(tmp_path):
    whole, parts = Log(tmp_path / "whole"), Log(tmp_path / "parts")
    for log in (whole, parts):
        add(log, 1, 0.1, 0.2)
        log.write(epoch=0)
        add(log, 3, 0.3)
    content = json.loads(json.dumps(parts.content()))
    add(parts, 4, 0.7)
    parts.write(epoch=0)
    again = Log(tmp_path / "parts")
    again.go_on(content)
    assert again.accuracy == 0.5
    for log in (whole, again):
        add(log, 4, 0.4)
        log.write(epoch=1)
    assert (tmp_path / "parts").read_bytes() == (tmp_path / "whole").read_bytes()


def test_lost_lines_are_told(tmp_path):
    log = Log(tmp_path / "m")
    add(log, 1, 0.1)
    log.write(epoch=0)
    content = log.content()
    (tmp_path / "m").write_text("")
    with pytest.raises(ValueError, match=f"m has 0 bytes, but {content['size']} when its checkp"):
        Log(tmp_path / "m").go_on(content)
