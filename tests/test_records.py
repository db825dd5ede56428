"""Records of measurements: where they lie, and when they are measured again."""

import os
import re
import subprocess

import pytest
from filelock import FileLock, Timeout

from experiments.benchmarks import records
from experiments.files import read_json, write_json


@pytest.mark.parametrize(
    ("text", "cores", "expected"),
    [
        ("model name\t: AMD EPYC\nmodel name\t: AMD EPYC\n", 2, "cpu-amd-epyc-2-cores"),
        ("model name : Intel(R) Xeon(R) CPU @ 2.20GHz", 1, "cpu-intel-xeon-cpu-2-20ghz-1-core"),
        ("nothing of use", 4, "cpu-some-arm-4-cores"),
    ],
)
def test_processors_have_names(monkeypatch, text, cores, expected):
    monkeypatch.setattr(records.Path, "read_text", lambda *_, **__: text)
    monkeypatch.setattr(records.Path, "is_file", lambda _: True)
    monkeypatch.setattr(records.platform, "processor", lambda: "Some Arm")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    assert records.device_name() == expected


class Accelerator:
    platform, device_kind = "gpu", "NVIDIA H100 80GB HBM3"


@pytest.mark.parametrize(
    ("count", "expected"), [(1, "nvidia-h100-80gb-hbm3"), (4, "4-x-nvidia-h100-80gb-hbm3")]
)
def test_accelerators_have_names(monkeypatch, count, expected):
    monkeypatch.setattr(records.jax, "devices", lambda: [Accelerator()] * count)
    assert records.device_name() == expected


def clean(monkeypatch, commit="0123456789ab"):
    monkeypatch.setattr(records.provenance, "_commit", lambda: commit)


def test_results_stand_with_their_conditions(monkeypatch, tmp_path):
    clean(monkeypatch)
    for name in ("XLA_FLAGS", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    path = records.write("cost", {"rows": [1]}, tmp_path / "deep" / "cost.json")
    found = read_json(path)
    assert path == tmp_path / "deep" / "cost.json"
    assert found["rows"] == [1]
    assert found["environment"] == {"OMP_NUM_THREADS": "3"}
    assert found["device_name"] == records.device_name()
    assert (found["commit"], found["dirty"]) == ("0123456789ab", False)
    assert {"command", "versions", "device"} <= set(found)


@pytest.mark.parametrize(
    ("commit", "dirty"), [("0123456789ab with changes", True), ("unknown", True), ("01", False)]
)
def test_changes_make_the_code_dirty(monkeypatch, commit, dirty):
    clean(monkeypatch, commit)
    assert records.conditions()["dirty"] is dirty


def test_a_commit_meanwhile_changes_nothing(monkeypatch):
    before = records.conditions()

    def another(arguments, **_):
        return subprocess.CompletedProcess(arguments, 0, stdout="another")

    monkeypatch.setattr(subprocess, "run", another)
    assert records.conditions() == before


def test_a_quick_run_leaves_the_kept_results_alone():
    assert records.place("cost", None) == records.RESULTS / records.device_name() / "cost.json"
    quick = records.place("cost", None, quick=True)
    assert not quick.resolve().is_relative_to(records.RESULTS)
    assert quick.parts == ("runs", "benchmarks", "cost.json")
    given = records.Path("given.json")
    assert records.place("cost", given, quick=True) == records.place("cost", given) == given


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"settings": {"repeats": 11}},
        {"commit": "another"},
        {"versions": {}},
        {"device": "another"},
        {"device_name": "another"},
        {"environment": {"OMP_NUM_THREADS": "77"}},
    ],
)
def test_only_what_would_be_measured_the_same_way_is_kept(monkeypatch, tmp_path, changed):
    clean(monkeypatch)
    path, settings = tmp_path / "cost.json", {"repeats": 10, "steps": ("none",)}
    assert records.earlier(path, settings) == []
    records.write("cost", {"settings": settings, "rows": [{"a": 1}]}, path)
    write_json(path, {**read_json(path), **changed})
    assert records.earlier(path, settings) == ([] if changed else [{"a": 1}])


def test_nothing_is_kept_for_code_that_may_have_changed(monkeypatch, tmp_path):
    clean(monkeypatch, "0123456789ab with changes")
    path = records.write("cost", {"settings": {}, "rows": [1]}, tmp_path / "cost.json")
    assert records.earlier(path, {}) == []


def test_rows_of_several_commands_name_them_all(monkeypatch, tmp_path):
    clean(monkeypatch)
    path = tmp_path / "cost.json"
    for command in ("python one", "python two", "python one"):
        monkeypatch.setattr(records.provenance, "_command", lambda _, command=command: command)
        records.write("cost", {"settings": {}, "rows": [1]}, path)
    assert read_json(path)["command"] == "python one && python two"
    # Nothing is left of it under other settings.
    records.write("cost", {"settings": {"repeats": 11}, "rows": [1]}, path)
    assert read_json(path)["command"] == "python one"


SETTINGS = {"repeats": 10, "steps": ("none",)}


def gather(path, measured, *, settings=SETTINGS):
    """Collect cells by name, each of one row that says what measured it."""
    cells = [({"cell": name}, lambda by=by: [{"by": by()}]) for name, by in measured.items()]
    records.collect("cost", settings, cells, path)
    return {row["cell"]: row["by"] for row in read_json(path)["rows"]}


def test_what_another_process_adds_meanwhile_stays(monkeypatch, tmp_path):
    clean(monkeypatch)
    path = tmp_path / "cost.json"

    def first():
        gather(path, {"b": lambda: "other", "a": lambda: "other"})
        return "own"

    found = gather(path, {"a": first, "b": lambda: pytest.fail("it is there already")})
    assert found == {"a": "own", "b": "other"}
    assert len(read_json(path)["rows"]) == 2


def test_only_one_process_writes_at_a_time(monkeypatch, tmp_path):
    path, write = tmp_path / "cost.json", records.write

    def locked(*arguments, **options):
        with pytest.raises(Timeout):
            FileLock(f"{path}.lock").acquire(timeout=0)
        return write(*arguments, **options)

    monkeypatch.setattr(records, "write", locked)
    assert gather(path, {"a": lambda: 1}) == {"a": 1}
    FileLock(f"{path}.lock").acquire(timeout=0).lock.release()


def test_a_process_of_code_that_changed_keeps_its_own(monkeypatch, tmp_path, capsys):
    clean(monkeypatch, "0123456789ab with changes")
    path = tmp_path / "cost.json"
    assert gather(path, {"a": lambda: 1, "b": lambda: 2}) == {"a": 1, "b": 2}
    assert capsys.readouterr().err == ""
    assert gather(path, {"a": lambda: 3}) == {"a": 3}
    reason = "because the code is not that of a commit"
    assert capsys.readouterr().err == f"{path}: 2 rows will be replaced, {reason}\n"

    def second():
        gather(path, {"c": lambda: 4})
        return 5

    assert gather(path, {"b": second}) == {"b": 5}
    assert capsys.readouterr().err == f"{path}: 1 row will be replaced, {reason}\n" * 2


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"commit": "another", "device_name": "one"}, "under other commit, device name"),
        ({"settings": {"repeats": 11}}, "under other settings"),
    ],
)
def test_rows_that_are_dropped_are_told(monkeypatch, tmp_path, capsys, changed, why):
    clean(monkeypatch)
    path = tmp_path / "cost.json"
    gather(path, {"a": lambda: 1, "b": lambda: 1})
    write_json(path, {**read_json(path), **changed})
    gather(path, {"a": lambda: 2, "c": lambda: 2})
    assert capsys.readouterr().err == f"{path}: 2 rows will be replaced, measured {why}\n"
    gather(path, {"d": lambda: 3})
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "content",
    [
        {"cells": []},
        {"settings": {"repeats": 10}, "rows": {}},
        {"settings": SETTINGS, "rows": [], "benchmark": "another"},
        # Another benchmark's, from before they said whose they are.
        {"settings": {"repeats": 10, "products": [1]}, "rows": []},
    ],
)
def test_other_results_are_not_replaced(tmp_path, content):
    path = tmp_path / "cost.json"
    write_json(path, content)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=f"{path} holds something other than the results of cost"):
        gather(path, {"a": lambda: pytest.fail("measured before")})
    assert path.read_bytes() == before


def test_results_from_before_they_said_whose_they_are_are_continued(monkeypatch, tmp_path):
    clean(monkeypatch)
    path = tmp_path / "cost.json"
    gather(path, {"a": lambda: 1})
    content = read_json(path)
    assert content.pop("benchmark") == "cost"
    write_json(path, content)
    assert gather(path, {"a": lambda: 2, "b": lambda: 2}) == {"a": 1, "b": 2}


@pytest.mark.parametrize(
    ("file", "error", "message"),
    [
        (".", ValueError, "out must be a JSON file, but {} is a folder"),
        ("file/cost.json", OSError, "{} cannot be written: "),
    ],
)
def test_a_place_where_nothing_can_be_kept_is_refused(tmp_path, file, error, message):
    (tmp_path / "file").touch()
    with pytest.raises(error, match=re.escape(message.format(tmp_path / file))):
        gather(tmp_path / file, {"a": lambda: pytest.fail("measured before")})


def test_a_command_that_is_refused_later_leaves_nothing(tmp_path, monkeypatch):
    records.check("cost", SETTINGS, tmp_path / "deep" / "cost.json")
    monkeypatch.chdir(tmp_path)
    records.check("cost", SETTINGS, records.Path("cost.json"))
    assert list(tmp_path.iterdir()) == []
