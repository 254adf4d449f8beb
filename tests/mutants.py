"""Small wrong changes to the core, and whether the tests notice them: a random sample.

    make mutants                          # goes on where it was stopped
    make mutants MINUTES=10 PROCESSES=2   # a piece; the last one writes the table of docs/tests.md
    make mutants SEED=2                   # another sample, which has a table of its own there
    make mutants ROWS=beyond              # of what is listed beyond the core

mutmut makes the mutants; tests/mutants.yaml says of which files, which tests belong to each, and
why survivors are left. mutmut's own runner leaves out what is decorated and what stands outside
functions, so each mutant is put in place here, in a copy of the tree. What the tests import is
imported once; a mutant is tried in a fork, until a test fails or its time is over.

The sample is uniform over the mutants of all files: each has a digest of the seed and of what it
changes, and the lowest are taken. So it hardly moves when code around it does.
"""

from __future__ import annotations

import argparse
import ast
import datetime
import json
import multiprocessing
import os
import re
import resource
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from itertools import zip_longest
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import libcst
import pytest
import yaml
from mutmut.mutation.file_mutation import Mutation, create_mutations

from diffusion_edge.markdown import between

SEED = 1
SAMPLE = 200
TEST_S = 30
MUTANT_S = 120
"""Seconds for a test, and for all of a mutant's: whoever takes longer has noticed."""
ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "tests.md"
WORK = ROOT / "build" / "mutants"
FOUND = WORK / "found.jsonl"
OURS = ("diffusion_edge", "loadtest", "stage_models", "tests")
FORK = multiprocessing.get_context("fork")
Row = dict[str, Any]


@dataclass(frozen=True)
class Module:
    """A file, the row of the table that counts it, and its tests, likeliest first."""

    row: str
    path: str
    tests: tuple[str, ...]

    @cached_property
    def source(self) -> str:
        return digest((ROOT / self.path).read_text())

    @cached_property
    def suite(self) -> str:
        return digest("".join((ROOT / test).read_text() for test in self.tests))


@dataclass(frozen=True, eq=False)
class Mutant:
    id: str
    module: Module
    tree: libcst.Module
    mutation: Mutation

    @cached_property
    def code(self) -> str:
        changed = self.tree.deep_replace(self.mutation.original_node, self.mutation.mutated_node)
        return shown(libcst.ensure_type(changed, libcst.Module).code)

    @cached_property
    def change(self) -> tuple[str, str, str]:
        """Where the first line is that differs, and how it reads without and with the change."""
        lines = zip_longest(shown(self.tree.code).split("\n"), self.code.split("\n"), fillvalue="")
        at, old, new = next((at, *pair) for at, pair in enumerate(lines, 1) if pair[0] != pair[1])
        return f"{self.module.path}:{at}", old.strip(), new.strip()

    def __str__(self) -> str:
        return "{} {}: {}  ->  {}".format(self.id, *self.change)


def digest(text: str) -> str:
    return blake2b(text.encode(), digest_size=5).hexdigest()


# ---------------------------------------------------------------------------- the sample


def hidden(code: str) -> str:
    """With the decorators of functions as comments, for mutmut passes decorated ones by."""
    lines = code.split("\n")
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for mark in node.decorator_list:
                for at in range(mark.lineno - 1, mark.end_lineno or mark.lineno):
                    lines[at] = re.sub(r"^(\s*)", r"\1#~", lines[at])
    return "\n".join(lines)


def shown(code: str) -> str:
    return code.replace("#~", "")


def mutants(module: Module, seed: int = SEED) -> Iterator[Mutant]:
    tree, found, _, _ = create_mutations(module.path, hidden((ROOT / module.path).read_text()))
    seen: Counter[str] = Counter()
    for mutation in found:
        inside = mutation.contained_by_top_level_function
        name = inside.name.value if isinstance(inside, libcst.FunctionDef) else ""
        nodes = (mutation.original_node, mutation.mutated_node)
        text = " -> ".join((f"{module.path} {name}", *map(tree.code_for_node, nodes)))
        seen[text] += 1
        yield Mutant(digest(f"{seed} {text} {seen[text]}"), module, tree, mutation)


def lowest(every: Sequence[Mutant], number: int) -> list[Mutant]:
    """In the order of `every`."""
    taken = {mutant.id for mutant in sorted(every, key=lambda mutant: mutant.id)[:number]}
    return [mutant for mutant in every if mutant.id in taken]


# ---------------------------------------------------------------------------- what was found


def found() -> dict[str, Row]:
    lines = FOUND.read_text().splitlines() if FOUND.exists() else []
    return {row["id"]: row for row in map(json.loads, lines)}


def keep(**row: Any) -> None:
    with FOUND.open("a") as file:
        file.write(json.dumps(row) + "\n")


def verdict(rows: Mapping[str, Row], mutant: Mutant) -> Row | None:
    """None where the file has changed since or, for a survivor, its tests."""
    row = rows.get(mutant.id)
    if row is None or row["source"] != mutant.module.source:
        return None
    return row if row["by"] or row["suite"] == mutant.module.suite else None


# ---------------------------------------------------------------------------- one try


class Watch:
    """A pytest plugin that tells which test was the first to fail."""

    failed = ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and not self.failed:
            self.failed = report.nodeid

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed and not self.failed:
            self.failed = report.nodeid


def run_tests(tests: Sequence[str], back: Connection) -> None:
    """In a process of its own, whose group is ended with it."""
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CPU, (MUTANT_S, MUTANT_S))
    output = os.open("output.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.dont_write_bytecode = True
    watch = Watch()
    options = ("-x", "-p", "no:cacheprovider", "--hypothesis-seed=1", f"--timeout={TEST_S}")
    status = pytest.main([*options, *tests], plugins=[watch])
    back.send(watch.failed or (f"exit {status:d}" if status else ""))
    os._exit(0)


def noticed(tests: Sequence[str]) -> str:
    """What noticed: a test or a file of them, `time`, `crash`; empty for nothing."""
    mine, theirs = FORK.Pipe(duplex=False)
    process = FORK.Process(target=run_tests, args=(tests, theirs))
    process.start()
    theirs.close()
    try:
        return str(mine.recv()) if mine.poll(MUTANT_S) else "time"
    except EOFError:
        return "crash"
    finally:
        process.kill()
        with suppress(ProcessLookupError):
            os.killpg(process.pid or 0, signal.SIGKILL)
        process.join()


@contextmanager
def in_place(file: Path, code: str) -> Iterator[None]:
    """Afterwards it has its old time again, so that its compiled form is still good."""
    kept, stat = file.read_text(), file.stat()
    file.write_text(code)
    try:
        yield
    finally:
        file.write_text(kept)
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def check_unchanged(module: Module) -> None:
    """Raises SystemExit where a test fails without a mutant."""
    name = f"{module.source} {module.suite}"
    if name in found():
        return
    if by := noticed(module.tests):
        sys.exit(f"{module.path} is as it was, and fails: {by}; see {os.getcwd()}/output.log")
    keep(id=name)


def work(tree: Path, todo: Sequence[Mutant], until: float) -> None:
    parent = os.getppid()
    enter(tree)
    for mutant in todo:
        if time.monotonic() > until or os.getppid() != parent:
            return
        module = mutant.module
        check_unchanged(module)
        began = time.monotonic()
        with in_place(tree / module.path, mutant.code):
            by = noticed(module.tests)
        seconds = round(time.monotonic() - began, 2)
        keep(id=mutant.id, source=module.source, suite=module.suite, by=by, seconds=seconds)
        print(f"{seconds:6.1f} s  {mutant}  {by or 'NOT NOTICED'}", flush=True)


# ---------------------------------------------------------------------------- all of them


def enter(tree: Path) -> None:
    """From here on our modules are those of `tree`, and none is imported yet."""
    os.chdir(tree)
    sys.path[:] = [str(tree), *(p for p in sys.path if Path(p or ".").resolve() != ROOT)]
    os.environ |= {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    for name in [name for name in sys.modules if name.partition(".")[0] in OURS]:
        del sys.modules[name]


def warm_up(tree: Path, todo: Sequence[Mutant]) -> None:
    """A copy of the working tree, and all that its tests import."""
    others = shutil.ignore_patterns(".*", "build", "__pycache__", Path(sys.prefix).name)
    shutil.copytree(ROOT, tree, ignore=others)
    enter(tree)
    tests = dict.fromkeys(test for mutant in todo for test in mutant.module.tests)
    if pytest.main(["--collect-only", "-qqq", "-s", "-p", "no:cacheprovider", *tests]):
        sys.exit("the tests cannot be collected")
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"


def run(todo: Sequence[Mutant], until: float, processes: int) -> None:
    """Each process has a copy of the tree and the mutants of whole files."""
    trees = [WORK / f"tree-{i}" for i in range(processes)]
    for tree in trees:
        shutil.rmtree(tree, ignore_errors=True)
    warm_up(trees[0], todo)
    files = list(dict.fromkeys(mutant.module for mutant in todo))
    workers = []
    for i, tree in enumerate(trees):
        shutil.copytree(trees[0], tree, dirs_exist_ok=True) if i else None
        share = [mutant for mutant in todo if mutant.module in files[i::processes]]
        workers.append(FORK.Process(target=work, args=(tree, share, until)))
    try:
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    finally:
        for worker in workers:
            worker.terminate()
    if any(worker.exitcode for worker in workers):
        sys.exit(1)


# ---------------------------------------------------------------------------- the page


def marks(rows: str, seed: int) -> tuple[str, str]:
    """The lines of the page between which a sample has its table; without them it has none."""
    name = f"{rows}, seed {seed}"
    return f"<!-- {name}: written by make mutants -->", f"<!-- end of {name} -->"


def line(*cells: object) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def scores(every: Sequence[Mutant], tried: Sequence[Mutant], missed: Sequence[Mutant]) -> list[str]:
    counts = [Counter(mutant.module.row for mutant in group) for group in (every, tried, missed)]
    lines = [line("module", "mutants", "tried", "caught", "score"), "|---|---|---|---|---|"]
    for row in (*counts[0], "all"):
        of, tries, misses = (c.total() if row == "all" else c[row] for c in counts)
        score = f"{1 - misses / tries:.0%}" if tries else "-"
        lines.append(line(row, of, tries, tries - misses, score))
    return lines


def survivors(missed: Sequence[Mutant], reasons: Mapping[str, str]) -> list[str]:
    lines = [line("not noticed", "where", "is", "would be", "why"), "|---|---|---|---|---|"]
    for mutant in missed:
        where, old, new = mutant.change
        why = reasons.get(mutant.id, "no reason yet")
        lines.append(line(mutant.id, where, f"`{old}`", f"`{new}`", why))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no more after")
    parser.add_argument("--processes", type=int, default=1, help="beside each other")
    parser.add_argument("--sample", type=int, default=SAMPLE, help="only so many, without the page")
    parser.add_argument("--seed", type=int, default=SEED, help="of the sample")
    parser.add_argument("--rows", choices=("core", "beyond"), default="core", help="of the list")
    given = parser.parse_args()
    until = time.monotonic() + 60 * given.minutes
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    listed = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text())
    modules = [
        Module(row, path, tuple(tests))
        for row, files in listed[given.rows].items()
        for path, tests in files.items()
    ]
    every = [mutant for module in modules for mutant in mutants(module, given.seed)]
    sample = lowest(every, given.sample)
    WORK.mkdir(parents=True, exist_ok=True)
    if todo := [mutant for mutant in sample if verdict(found(), mutant) is None]:
        run(todo, until, given.processes)
    rows = found()
    tried = {mutant: row for mutant in sample if (row := verdict(rows, mutant))}
    missed = [mutant for mutant, row in tried.items() if not row["by"]]
    table = scores(every, list(tried), missed)
    print("\n".join([*table, "", *map(str, missed)]))
    if len(tried) < len(sample):
        print(f"{len(sample) - len(tried)} of {len(sample)} are left: run it again")
        return
    page, place = PAGE.read_text(), marks(given.rows, given.seed)
    if given.sample == SAMPLE and place[0] in page:
        today = datetime.datetime.now(datetime.UTC).date()
        text = [*table, "", f"{today}.", "", *survivors(missed, listed["reasons"] or {})]
        PAGE.write_text(between(page, place, "\n".join(text), PAGE))


if __name__ == "__main__":
    main()
