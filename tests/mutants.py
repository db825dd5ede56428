"""Mutation testing: ``python -m tests.mutants [PATTERN ...]``, see docs/mutants.md.

mutmut makes the mutants, each a function beside the original; a name in the environment chooses at
every call. It would run them in forks of one process, but no thread of the compiler survives a
fork. So they run one after the other in one process whose caches are emptied in between, each under
the tests of its module until one fails. What failed has to pass once the mutants are off, or none
of it counts.
"""

import argparse
import difflib
import faulthandler
import fnmatch
import functools
import importlib.util
import itertools
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from typing import Any, NamedTuple

import jax
import pytest
from mutmut.mutation.file_mutation import (  # pyright: ignore[reportMissingImports]
    MutatedFile,
    mutate_file_contents,
)
from mutmut.state import state  # pyright: ignore[reportMissingImports]

OBJECTIVE = ["objective", "objective_weights", "objective_batches", "objective_input"]
# Whose tests have to notice. What others would notice survives.
TESTS = {
    "_numerics": ["numerics", "operators"],
    "bounds": ["bounds"],
    "lazy": ["lazy"],
    "operators": ["operators"],
    "eigen": ["eigen", "eigen_solvers", "eigen_starts", "eigen_input"],
    "penalties": ["penalties_by_hand", "penalties", "penalties_extremes"],
    "composite_penalties": ["penalties_by_hand", "penalties", "penalties_extremes"],
    "_batching": ["objective_by_hand", "batching", "lazy", *OBJECTIVE],
    "objective": ["objective_by_hand", *OBJECTIVE, "lazy"],
}
FOLDER = Path("build/mutants")
OUTCOMES, TIMES = FOLDER / "outcomes.jsonl", FOLDER / "times.jsonl"
CURRENT = FOLDER / "current.json"
# So many outcomes are checked and written at once, and so many make a process full of what
# compilers leave behind.
BATCH, FULL = 20, 400
# What a process says at its end. 1 is faulthandler's word for one that took too long.
TOO_SLOW, FAILED, ANOTHER_PROCESS = 1, 74, 75


class Mutant(NamedTuple):
    """A function that is changed in one place."""

    module: str
    name: str
    # Of the function's source: an outcome is known as long as it stays.
    hash: str

    @property
    def function(self) -> str:
        """What it is a mutant of, in mutmut's spelling."""
        return self.name.rpartition("__mutmut_")[0]


@functools.cache
def mutated(module: str) -> MutatedFile:
    """Return the source of a module with all its mutants."""
    path = Path(f"hessjax/{module}.py")
    return mutate_file_contents(str(path), path.read_text())


def mutants_of(module: str, sample: int | None = None) -> list[Mutant]:
    """Return the mutants of a module, in an order of chance that is always the same."""
    file = mutated(module)
    hashes = file.hash_by_function_name
    mutants = [Mutant(module, name, "") for name in file.mutant_names]
    random.Random(module).shuffle(mutants)
    return [mutant._replace(hash=hashes[mutant.function]) for mutant in mutants[:sample]]


def difference(mutant: Mutant) -> str:
    """Return the lines that differ from the original."""
    file = mutated(mutant.module)
    sources = []
    for name in (f"{mutant.function}__mutmut_orig", mutant.name):
        span = file.line_span_by_function_name[name]
        text = "\n".join(file.code.splitlines()[span.start - 1 : span.end])
        sources.append(text.replace(name, mutant.function).splitlines())
    lines = list(difflib.unified_diff(*sources, n=0, lineterm=""))[2:]
    return "\n".join(line for line in lines if not line.startswith("@@"))


class Mutating(MetaPathFinder):
    """Finds the modules with their mutants."""

    class _Loader(SourceFileLoader):
        def get_code(self, fullname: str) -> Any:
            return compile(mutated(fullname.rpartition(".")[2]).code, self.path, "exec")

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        """Return where the module comes from, None for all others."""
        del path, target
        package, _, module = fullname.rpartition(".")
        if package != "hessjax" or module not in TESTS:
            return None
        file = Path.cwd() / fullname.replace(".", "/")
        return importlib.util.spec_from_loader(fullname, self._Loader(fullname, f"{file}.py"))


def forget() -> None:
    """Empty the caches, which know functions as they were under another mutant."""
    jax.clear_caches()
    for name, module in list(sys.modules.items()):
        if name.startswith(("tests.", "hessjax.")) and name != __name__:
            for value in list(vars(module).values()):
                if isinstance(value, functools._lru_cache_wrapper):
                    value.cache_clear()


def read(path: Path) -> list[Any]:
    """Return the lines of a file of JSON lines, none if there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def append(path: Path, entries: Iterable[Any]) -> None:
    """Write JSON lines to the end of a file."""
    with path.open("a") as file:
        file.writelines(f"{json.dumps(entry)}\n" for entry in entries)


def end(reason: str) -> None:
    """End this process, where nothing that is found would count."""
    print(reason, file=sys.stderr, flush=True)
    os._exit(FAILED)


class Run:
    """A pytest plugin that runs the collected tests under one mutant after the other."""

    def __init__(self, mutants: list[Mutant], limit: float | None) -> None:
        self.mutants, self.limit = mutants, limit
        self.items: dict[str, pytest.Item] = {}
        self.failed = self.done = False
        # Seconds of each test without a mutant, and the functions it called.
        self.measured = {name: measured for line in read(TIMES) for name, measured in line.items()}
        self.killers: dict[str, list[str]] = defaultdict(list)
        self.pending: list[dict[str, Any]] = []

    def pytest_configure(self, config: pytest.Config) -> None:
        """Spare the tracebacks that nobody reads."""
        config.option.tbstyle = "native"

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note what failed."""
        self.failed |= report.failed

    def passes(self, name: str) -> bool:
        """Run a test and tell whether it passed."""
        self.failed, item = False, self.items[name]
        item.ihook.pytest_runtest_protocol(item=item, nextitem=None)
        return not self.failed

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Try each mutant in the place of running each test."""
        self.items = {item.nodeid: item for item in session.items}
        for count, mutant in enumerate(self.mutants, start=1):
            tests = self.tests_of(mutant)
            forget()
            CURRENT.write_text(json.dumps(mutant._asdict()))
            self.try_mutant(mutant, tests)
            if len(self.pending) == BATCH or count == len(self.mutants):
                self.confirm()
            if count == FULL:
                os._exit(ANOTHER_PROCESS)
        self.done = True
        return True

    def tests_of(self, mutant: Mutant) -> list[str]:
        """Return the tests of a mutant's module, the likeliest to fail first."""
        files = tuple(f"tests/test_{name}.py::" for name in TESTS[mutant.module])
        names = [name for name in self.items if name.startswith(files)]
        self.measure(names)
        function = f"hessjax.{mutant.module}.{mutant.function}"
        calling = {name for name in names if function in self.measured[name][1]}
        # What does not call it may use what another test that did has left in a cache.
        names.sort(key=lambda name: (name not in calling, self.measured[name][0]))
        if self.limit is not None:
            names = [name for name in names if name in calling]
            totals = itertools.accumulate(self.measured[name][0] for name in names)
            names = names[: sum(total <= self.limit for total in totals)]
        likely = self.killers[function]
        return [*likely, *(name for name in names if name not in likely)]

    def measure(self, names: list[str]) -> None:
        """Run what has not been measured, without a mutant."""
        os.environ["MUTANT_UNDER_TEST"] = "stats"
        for name in names:
            if name not in self.measured:
                called = state()._stats
                called.clear()
                start = time.process_time()
                if not self.passes(name):
                    end(f"{name} fails without a mutant")
                self.measured[name] = time.process_time() - start, sorted(called)
                append(TIMES, [{name: self.measured[name]}])
        os.environ["MUTANT_UNDER_TEST"] = ""

    def try_mutant(self, mutant: Mutant, tests: list[str]) -> None:
        """Run tests until one fails."""
        # Nothing else ends what hangs in the compiler.
        patience = 600 + 20 * sum(self.measured[name][0] for name in tests)
        faulthandler.dump_traceback_later(patience, exit=True)
        start = time.perf_counter()
        os.environ["MUTANT_UNDER_TEST"] = f"hessjax.{mutant.module}.{mutant.name}"
        killer = next((name for name in tests if not self.passes(name)), None)
        os.environ["MUTANT_UNDER_TEST"] = ""
        faulthandler.cancel_dump_traceback_later()
        outcome = "killed" if killer else "survived"
        seconds = round(time.perf_counter() - start, 2)
        print(f"{mutant.module} {mutant.name} {outcome} in {seconds} s", flush=True)
        self.pending.append(mutant._asdict() | {"outcome": outcome, "by": killer, "s": seconds})
        if killer:
            likely = self.killers[f"hessjax.{mutant.module}.{mutant.function}"]
            likely[:] = [killer, *(name for name in likely if name != killer)]

    def confirm(self) -> None:
        """Write the outcomes if what failed under the mutants passes without."""
        forget()
        for name in {outcome["by"] for outcome in self.pending} - {None}:
            if not self.passes(name):
                end(f"{name}, which failed under a mutant, fails without it")
        append(OUTCOMES, self.pending)
        self.pending = []


def outcomes() -> dict[Mutant, str]:
    """Return what is known; the last word counts."""
    return {Mutant(o["module"], o["name"], o["hash"]): o["outcome"] for o in read(OUTCOMES)}


def chosen(options: argparse.Namespace) -> list[Mutant]:
    """Return the mutants that were asked for."""
    return [
        mutant
        for module in TESTS
        if any(fnmatch.fnmatch(module, pattern) for pattern in options.modules)
        for mutant in mutants_of(module, options.sample)
    ]


def work(options: argparse.Namespace) -> None:
    """Run the mutants that have no outcome yet."""
    known = outcomes()
    settled = {"killed", "timeout"} if options.again else {"killed", "timeout", "survived"}
    mutants = [mutant for mutant in chosen(options) if known.get(mutant) not in settled]
    if not mutants:
        return
    sys.meta_path.insert(0, Mutating())
    # What a mutant leaves alone is compiled once.
    jax.config.update("jax_compilation_cache_dir", str((FOLDER / "compiled").resolve()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    files = {f"tests/test_{name}.py" for mutant in mutants for name in TESTS[mutant.module]}
    arguments = ["-p", "no:terminal", "-p", "no:cacheprovider", "-s", *sorted(files)]
    run = Run(mutants, options.limit)
    pytest.main(arguments, plugins=[run])
    if not run.done:
        end("the tests could not be run")


def report(options: argparse.Namespace) -> None:
    """Print what became of the mutants of each module, and what survived."""
    known, mutants = outcomes(), chosen(options)
    table = {module: Counter[str]() for module in TESTS} | {"all": Counter[str]()}
    for mutant in mutants:
        for row in (mutant.module, "all"):
            table[row][known.get(mutant, "not run")] += 1
    for row, counts in table.items():
        if run := counts.total() - counts["not run"]:
            killed = counts["killed"] + counts["timeout"]
            print(f"{row:20} {killed} of {run} killed, {killed / run:.1%}", dict(counts))
    for mutant in mutants:
        if known.get(mutant) == "survived":
            print(f"\n{mutant.module} {mutant.name}\n{difference(mutant)}")


def main() -> None:
    """Work in processes of their own until every mutant has an outcome, and report."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants")
    parser.add_argument("modules", nargs="*", default=["*"], help="patterns; all if none is given")
    parser.add_argument("--sample", type=int, help="so many mutants of each module")
    parser.add_argument("--limit", type=float, help="try tests that take so many seconds in all")
    parser.add_argument("--again", action="store_true", help="what survived, too")
    parser.add_argument("--report", action="store_true", help="run nothing")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    if options.work:
        work(options)
        return
    command = [sys.executable, "-m", "tests.mutants", "--work", *sys.argv[1:]]
    while not options.report and (code := subprocess.run(command, check=False).returncode):
        if code == ANOTHER_PROCESS:
            continue
        if code != TOO_SLOW:
            sys.exit(code)
        append(OUTCOMES, [json.loads(CURRENT.read_text()) | {"outcome": "timeout", "by": None}])
    report(options)


if __name__ == "__main__":
    main()
