"""The study's plans, its choice of weights and its table, with trainings made up."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tyro

from experiments import comparison, pgd, report, runs, study
from experiments.comparison import Attacks, folder_of, plan
from experiments.config import Config, Setup
from experiments.files import read_json, write_json
from experiments.plans import PLANS
from experiments.study import HEADLINE, tuning, winners


@pytest.mark.parametrize("data", PLANS)
def test_every_method_gets_as_many_tries(data: str) -> None:
    candidates = PLANS[data].candidates
    assert len({len(set(names)) for names in candidates.values()}) == 1
    for row, names in candidates.items():
        configs = plan(Setup(data=data), names, [0])
        method, *options = row.split(",")
        for config in configs:
            assert config.method == method
            assert (config.norm == "linf") == ("norm=linf" in options)
            assert PLANS[data].epsilon[config.norm] in PLANS[data].radii[config.norm]
    everything = [name for names in candidates.values() for name in names]
    assert len({folder_of(config) for config in plan(Setup(data=data), everything, [0])}) == len(
        everything
    )
    assert set(HEADLINE) <= {"none", *candidates}


def made_up(calls: list[dict[str, Any]], accuracy: Any) -> Any:
    """Return what stands for `compare`: it notes the call and writes results."""

    def run(
        setup: Setup, methods: list[str], seeds: list[int], *, out: Path, attacks: Attacks, **_: Any
    ) -> dict[str, str]:
        calls.append(
            {"out": out.name, "methods": methods, "seeds": list(seeds), "setup": setup}
            | {"auto": attacks.auto_radii, "examples": attacks.auto_examples}
            | {"apgd": attacks.apgd_examples}
        )
        balls = [(norm, radius) for norm, radii in attacks.radii.items() for radius in radii]
        runs = [
            {
                "method": config.method,
                "seed": config.seed,
                "strength": config.strength,
                "step": config.step,
                "options": config.options,
                "path": str(folder_of(config)),
                "clean": 0.9,
                "robust": {
                    norm: {str(r): accuracy(config, n, r) for n, r in balls if n == norm}
                    for norm in attacks.radii
                },
                "auto": {
                    norm: {str(r): {"robust": 0.5, "verdict": "trustworthy"} for r in radii}
                    for norm, radii in attacks.auto_radii.items()
                },
                "seconds_per_step": 0.1,
                "gradient_norm_mean": 1.0,
                "hessian_norm_mean": 1.0,
            }
            for config in plan(setup, methods, seeds)
        ]
        # As `compare` keeps what earlier calls left.
        kept = out / "comparison.json"
        new = {run["path"] for run in runs}
        earlier = read_json(kept)["runs"] if kept.is_file() else []
        runs = [run for run in earlier if run["path"] not in new] + runs
        auto = {norm: list(radii) for norm, radii in attacks.auto_radii.items()}
        write_json(
            out / "comparison.json",
            {
                "command": "c",
                "commit": "1",
                "versions": {},
                "device": "one",
                "data": setup.data,
                "num_test": 10,
                "attack": attacks.pgd,
                "norms": {norm: list(radii) for norm, radii in attacks.radii.items()},
                "auto": {"norms": auto, "num_examples": attacks.auto_examples},
                "setup": {"model": setup.model, "activation": setup.activation},
                "runs": runs,
            },
        )
        return {"none/seed-9": "no reason"} if out.name == "headline" else {}

    return run


# Of each candidate's folder, its place among the candidates of its method.
PLACES = {
    folder_of(config): place
    for names in PLANS["mnist"].candidates.values()
    for place, name in enumerate(names)
    for config in plan(Setup(data="mnist"), [name], [0])
}


def middling(config: Config, norm: str, radius: float) -> float:
    """Return an accuracy that is best for the second candidate, but for the first elsewhere."""
    place = PLACES.get(folder_of(config), 0)
    chosen_here = norm == config.norm and radius == PLANS["mnist"].epsilon[norm]
    return 0.8 - 0.1 * abs(place - (1 if chosen_here else 0))


def test_the_study_trains_what_was_best_on_held_out_examples(tmp_path: Path) -> None:
    calls: list[dict[str, Any]] = []
    given = PLANS["mnist"]._replace(few=3)
    failed = study.study(
        "mnist",
        given,
        ("activations", "mlp", "wider", "headline"),
        out=tmp_path,
        run=made_up(calls, middling),
    )
    assert failed == {str(tmp_path / "headline" / "none" / "seed-9"): "no reason"}
    names = [call["out"] for call in calls]
    others = [row for row in given.candidates if row not in HEADLINE]
    # Except in the headline, each row is whole before the next one begins; plain training has
    # nothing to choose.
    tried = len(HEADLINE) - 1
    assert names == [
        *("tuning-cnn", "headline"),
        *("relu", *(("tuning-relu", "relu") * tried)),
        *("softplus", *(("tuning-softplus", "softplus") * tried)),
        *(("tuning-cnn", "wider") * len(others)),
        *("mlp", *(("tuning-mlp", "mlp") * len(given.candidates))),
    ]
    by_name = dict(zip(names, calls, strict=True))
    chosen = {row: candidates[1] for row, candidates in given.candidates.items()}
    methods = {name: [call["methods"] for call in calls if call["out"] == name] for name in by_name}
    headline = ["none", *(chosen[row] for row in HEADLINE if row != "none")]
    assert methods["headline"] == [headline]
    assert methods["relu"] == methods["softplus"] == [[name] for name in headline]
    assert methods["wider"] == [[chosen[row]] for row in others]
    assert methods["mlp"] == [["none"], *([name] for name in chosen.values())]
    assert methods["tuning-mlp"] == [list(names) for names in given.candidates.values()]
    assert by_name["headline"]["seeds"] == [0, 1, 2, 3, 4]
    assert by_name["headline"]["auto"] == {"l2": (1.5,), "linf": (0.2,)}
    assert (by_name["headline"]["examples"], by_name["headline"]["apgd"]) == (500, 1000)
    for name in ("wider", "relu", "softplus", "mlp"):
        call = by_name[name]
        assert (call["seeds"], call["auto"], call["apgd"]) == ([0, 1, 2], {}, 0)
    setups = {name: call["setup"] for name, call in by_name.items()}
    for name in ("cnn", "mlp", "relu", "softplus"):
        assert setups[f"tuning-{name}"].validation == 5000
        assert by_name[f"tuning-{name}"]["seeds"] == [0]
    for before in ("", "tuning-"):
        for activation in ("relu", "softplus"):
            setup = setups[f"{before}{activation}"]
            assert (setup.model, setup.activation) == ("cnn", activation)
        assert setups[f"{before}mlp"].model == "mlp"
    assert (setups["headline"].model, setups["headline"].activation) == ("cnn", "gelu")
    text = (tmp_path / "report.md").read_text()
    assert "| network " in text
    for start in ("| cnn gelu ", "| cnn relu ", "| cnn softplus ", "| mlp gelu "):
        assert start in text
    head, _, *rows = [
        [cell.strip() for cell in line.split("|")] for line in text.splitlines() if line[:1] == "|"
    ]
    row = next(row for row in rows if row[1:3] == ["mlp gelu", "none"])
    # AutoAttack was for the headline alone.
    assert {row[head.index(name)] for name in ("AA ℓ₂ 1.5", "AA ℓ∞ 0.2", "masking")} == {"-"}
    assert rows[0][head.index("AA ℓ₂ 1.5")] == "50.0 ± 0.0"
    # Each row's second candidate, of all networks.
    _, *parts = text.split("\n## The weights chosen for the ")
    chosen_for = [part.split(",")[0] for part in parts]
    assert chosen_for == [f"{n} with {a}" for n, a in zip(
        ("cnn", "mlp", "cnn", "cnn"), ("gelu", "gelu", "relu", "softplus"), strict=True
    )]  # fmt: skip
    for part, rows in zip(parts, (*[given.candidates] * 2, *[HEADLINE[1:]] * 2), strict=True):
        _, _, *lines = [line.split("|") for line in part.splitlines() if line[:1] == "|"]
        assert len(lines) == len(rows)
        second = "0.3, norm=linf" if rows is given.candidates else "6"
        assert [line[2].strip() for line in lines[:2]] == ["12", second]


def test_a_row_with_a_candidate_that_failed_is_left_out(tmp_path: Path) -> None:
    """The others are chosen and trained; none has fewer tries than another."""
    calls: list[dict[str, Any]] = []
    given = PLANS["mnist"]
    run = made_up(calls, middling)

    def failing(setup: Setup, methods: list[str], *args: Any, **options: Any) -> dict[str, str]:
        kept = [name for name in methods if not (setup.validation and name == "hessian:12")]
        run(setup, kept, *args, **options)
        return {"hessian-12/seed-0": "diverged"} if len(kept) < len(methods) else {}

    failed = study.study("mnist", given, ("headline",), out=tmp_path, run=failing)
    assert failed == {str(tmp_path / "tuning-cnn" / "hessian-12" / "seed-0"): "diverged"}
    chosen = {name.split(":")[0] for name in calls[-1]["methods"]}
    assert chosen == set(HEADLINE) - {"hessian"}
    [(path, why)] = failed.items()
    assert f"\n- Failed: {path}: {why}\n" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize("all_rows", [False, True])
def test_the_study_goes_on_where_all_rows_of_a_part_are_left_out(
    tmp_path: Path, all_rows: bool
) -> None:
    """A candidate of every row of the wider part fails, or every candidate there is."""
    calls: list[dict[str, Any]] = []
    given = PLANS["mnist"]
    lost = {
        name
        for row, names in given.candidates.items()
        for name in (names if all_rows else names[:1])
        if all_rows or row not in HEADLINE
    }
    run = made_up(calls, middling)

    def failing(setup: Setup, methods: list[str], *args: Any, **options: Any) -> dict[str, str]:
        kept = [name for name in methods if not (setup.validation and name in lost)]
        if kept:
            run(setup, kept, *args, **options)
        configs = plan(setup, [name for name in methods if name not in kept] or ["none"], [0])
        return {str(folder_of(config)): "no" for config in configs if config.method != "none"}

    parts = ("wider", "activations", "headline")
    failed = study.study("mnist", given, parts, out=tmp_path, run=failing)
    inner = {name for row in HEADLINE[1:] for name in given.candidates[row]}
    assert len(failed) == len(lost) + 2 * len(inner & lost)
    left = [call for call in calls if not call["out"].startswith("tuning")]
    assert set(dict.fromkeys(call["out"] for call in left)) == {"headline", "relu", "softplus"}
    for name in ("headline", "relu", "softplus"):
        methods = [method for call in left if call["out"] == name for method in call["methods"]]
        rows = {method.split(":")[0] for method in methods}
        assert rows == ({"none"} if all_rows else set(HEADLINE))
    report = (tmp_path / "report.md").read_text()
    assert all(f"- Failed: {path}: no\n" in report for path in failed)


def test_what_failed_before_is_told_until_it_is_done(tmp_path: Path) -> None:
    study.study("mnist", PLANS["mnist"], ("headline",), out=tmp_path, run=made_up([], middling))
    path = tmp_path / "tuning-cnn" / "comparison.json"
    write_json(path, {**read_json(path), "failed": {"trades-1/seed-0": "out of memory"}})

    def idle(*_: Any, **__: Any) -> dict[str, str]:
        return {}

    study.study("mnist", PLANS["mnist"], ("headline",), out=tmp_path, run=idle)
    where = path.parent / "trades-1" / "seed-0"
    assert f"- Failed: {where}: out of memory\n" in (tmp_path / "report.md").read_text()


def test_rows_that_lack_a_candidate_have_no_winner(tmp_path: Path) -> None:
    given, setup = PLANS["mnist"], Setup(data="mnist", validation=5000)
    names = [*given.candidates["gradient"], *given.candidates["hessian"][:2]]
    attacks = Attacks({"l2": (1.5,), "linf": (0.2,)}, pgd.settings())
    made_up([], middling)(setup, names, [0], out=tmp_path, attacks=attacks)
    chosen = winners(study.read(tmp_path), tuning("mnist", given, "cnn"), given)
    assert [run["path"] for run in chosen["runs"]] == ["gradient-12/seed-0"]


def test_parts_alone_and_data_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(study, "compare", made_up(calls, middling))
    arguments = ["--data", "mnist", "--out", str(tmp_path), "--parts"]
    tyro.cli(study.main, args=[*arguments, "mlp"])
    rows = len(PLANS["mnist"].candidates)
    assert [call["out"] for call in calls] == ["mlp", *(["tuning-mlp", "mlp"] * rows)]
    calls.clear()
    with pytest.raises(SystemExit, match=r"1 of the runs failed:\n  .*headline.none.seed-9: no re"):
        tyro.cli(study.main, args=[*arguments, "headline"])
    tuning, _ = calls
    methods = {name.split(":")[0] for name in tuning["methods"]}
    assert methods == set(HEADLINE) - {"none"}
    calls.clear()
    with pytest.raises(SystemExit, match="quick takes the digits: leave data out, got mnist"):
        tyro.cli(study.main, args=["--quick", *arguments, "mlp"])
    for empty, name in ((["--data"], "data"), ([*arguments], "parts")):
        with pytest.raises(SystemExit, match=f"error: {name} must name at least one, got nothing"):
            tyro.cli(study.main, args=[*empty, "--out", str(tmp_path)])
    assert not calls


@pytest.fixture
def unattacked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have networks trained but nothing measured of them."""

    def evaluate(_run: Any, _dataset: Any, radii: Any, _attack: Any, **_: Any) -> dict[str, Any]:
        robust = {norm: {str(r): 0.5 for r in values} for norm, values in radii.items()}
        means = {"gradient_norm_mean": 1.0, "hessian_norm_mean": 1.0}
        return {"clean": 0.9, "robust": robust, **means, "seconds": 1.0, "commit": "1"}

    monkeypatch.setattr(pgd, "evaluate", evaluate)


@pytest.mark.usefixtures("undrawn", "unattacked")
def test_results_without_their_runs_count_as_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = Setup(model="mlp", epochs=1)
    attacks = Attacks({"l2": (0.1,)}, pgd.settings(num_steps=1))
    comparison.compare(setup, ["none"], [0], out=tmp_path, attacks=attacks)
    before = read_json(tmp_path / "comparison.json")
    shutil.rmtree(tmp_path / "none")
    trained = []
    train = comparison.train

    def noted(config: Any, **given: Any) -> Any:
        trained.append(config.seed)
        return train(config, **given)

    monkeypatch.setattr(comparison, "train", noted)
    comparison.compare(setup, ["none"], [0, 1], out=tmp_path, attacks=attacks, known=True)
    after = read_json(tmp_path / "comparison.json")
    assert trained == [1]
    assert "trajectory" not in after["runs"][1]
    assert after["runs"][0] == before["runs"][0]
    assert [run["seed"] for run in after["runs"]] == [0, 1]
    # With nothing left to do, it does not wait for whoever is at work there.
    with runs.locked(tmp_path):
        comparison.compare(setup, ["none"], [0, 1], out=tmp_path, attacks=attacks, known=True)
        with pytest.raises(OSError, match="another process is working in"):
            comparison.compare(setup, ["none"], [2], out=tmp_path, attacks=attacks, known=True)
    # Under another attack they tell nothing, and without leave they are trained anew.
    other = attacks._replace(pgd=pgd.settings(num_steps=2))
    comparison.compare(setup, ["none"], [0, 1], out=tmp_path, attacks=other, known=True)
    assert trained == [1, 0]
    shutil.rmtree(tmp_path / "none")
    comparison.compare(setup, ["none"], [0, 1], out=tmp_path, attacks=other)
    assert trained == [1, 0, 0, 1]


@pytest.mark.usefixtures("undrawn", "unattacked")
def test_a_report_that_was_interrupted_is_written_by_the_same_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attacks = Attacks({"l2": (0.1,)}, pgd.settings(num_steps=1))
    given = (Setup(model="mlp", epochs=1), ["none"], [0])
    write, written = report.write, []

    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    def noted(*known: Any) -> Any:
        written.append(known)
        return write(*known)

    monkeypatch.setattr(report, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        comparison.compare(*given, out=tmp_path, attacks=attacks, known=True)
    monkeypatch.setattr(report, "write", noted)
    # The third time there is nothing to tell.
    for _ in range(2):
        comparison.compare(*given, out=tmp_path, attacks=attacks, known=True)
        assert len(written) == 1
        assert "| none " in (tmp_path / "report.md").read_text()


@pytest.mark.usefixtures("undrawn", "unattacked")
def test_each_result_is_kept_when_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = Setup(model="mlp", epochs=1)
    attacks = Attacks({"l2": (0.1,)}, pgd.settings(num_steps=1))
    entry = comparison._entry

    def interrupted(config: Any, *given: Any) -> Any:
        if config.seed:
            raise KeyboardInterrupt
        return entry(config, *given)

    monkeypatch.setattr(comparison, "_entry", interrupted)
    with pytest.raises(KeyboardInterrupt):
        comparison.compare(setup, ["none"], [0, 1], out=tmp_path, attacks=attacks, watch=3)
    [run] = read_json(tmp_path / "comparison.json")["runs"]
    assert run["seed"] == 0
    lines = (tmp_path / run["path"] / "metrics.jsonl").read_text().splitlines()
    told = [json.loads(line) for line in lines]
    for name in ("step", "test_gradient_norm", "test_hessian_norm"):
        assert run["trajectory"][name] == [line[name] for line in told]
