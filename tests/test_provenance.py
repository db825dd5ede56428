"""What a result says of where it comes from."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import jax

from experiments import provenance


def test_a_result_says_where_it_comes_from(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x", "a b", "--data-dir", "/data", "--seed", "1"])
    found = provenance.collect()
    assert found["command"].startswith("python")
    assert found["command"].endswith("'a b' --seed 1")
    assert found["versions"]["jax"] == jax.__version__
    assert found["versions"]["python"].startswith("3.")
    assert "CPU" in found["device"] or jax.default_backend() != "cpu"
    root = Path(provenance.__file__).parents[1]
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=False
    )
    expected = head.stdout.strip() if head.returncode == 0 else "unknown"
    assert expected.startswith(found["commit"].split()[0])


def test_the_commit_is_that_of_the_code_as_it_was_loaded(monkeypatch):
    """A study takes days, and a commit made meanwhile is none of its code."""
    spec = importlib.util.find_spec("experiments.provenance")
    assert spec
    assert spec.loader
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)

    def later(arguments, **_):
        return subprocess.CompletedProcess(arguments, 0, stdout="feedbeef")

    before = provenance.collect()["commit"]
    monkeypatch.setattr(subprocess, "run", later)
    assert loaded.collect()["commit"] == before


def test_places_on_a_machine_are_left_out_of_the_command(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x", "--manual-dir=/a", "--manual-dir", "/b", "--data", "c"])
    assert provenance.collect()["command"].endswith("--data c")
    assert "/a" not in provenance.collect()["command"]
    assert "/b" not in provenance.collect()["command"]


def test_what_several_were_made_with_is_all_named():
    first = {"command": "a", "commit": "1", "device": "CPU, 2 cores", "versions": {"jax": "0.10"}}
    second = {**first, "device": "H200", "versions": {"jax": "0.11", "optax": "0.2"}}
    both = provenance.merged(first, second)
    assert both == {
        "command": "a",
        "commit": "1",
        "device": "CPU, 2 cores and H200",
        "versions": {"jax": "0.10, 0.11", "optax": "0.2"},
    }
    assert provenance.merged(both, first)["device"] == both["device"]
    third = {**first, "command": "b", "commit": "0"}
    assert provenance.merged(both, third)["command"] == "a && b"
    assert provenance.merged(both, third)["commit"] == "0, 1"


def test_commits_are_joined_once_each():
    assert provenance.joined("b", "a, b", "a") == "a, b"
