"""Mutation testing of the core: do the tests notice when a line of it is wrong?

    make mutants                                  a sample of 300
    make mutants SAMPLE=50 SEED=7
    python tests/mutants.py --sample 50 --seed 7 --only 3,17     of that sample the third and the seventeenth

A mutant is the core with one small change.  The changes are mutmut's; it makes them in functions only, so we walk the
tree ourselves, which adds constants, fields with defaults, enums and properties, and add two changes of our own.  What
mypy refuses nobody can commit.  For each other mutant of the sample those unit tests and simulations run that run the
changed line, the shortest first, until one fails.  A mutant that they all let pass has survived: either it behaves like
the original, or a test is missing.

All of it happens in a copy of the tree, and the copy is not changed either: the process that runs the tests imports the
changed module in place of the original.
"""

from __future__ import annotations

import argparse
import bisect
import difflib
import functools
import hashlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import itertools
import os
import pickle
import random
import re
import resource
import shutil
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType
from typing import Final

import coverage
import libcst as cst
import mypy.api
import pytest
from libcst.metadata import MetadataWrapper, PositionProvider
from mutmut.mutation.mutators import mutation_operators

PACKAGES = ["redirectctl/wire", "redirectctl/proto", "redirectctl/flows"]
TESTS = ["tests/unit/wire", "tests/unit/proto", "tests/unit/flows", "tests/sim"]
NOT_COPIED = shutil.ignore_patterns(".*", "build", "dist", "__pycache__", "*.egg-info")
SLOW_TO_IMPORT = ["hypothesis", "mypy.main", "pytest_textual_snapshot", "scapy.all"]  # so once, not in each process
MEMORY = 4 << 30  # bytes of address space: a mutant that never stops appending must not take the machine with it


# --- mutants


def without(line: cst.SimpleStatementLine) -> Iterator[cst.SimpleStatementLine]:
    """A statement that is there for its effect, left out."""
    match line.body:
        case [cst.Expr(cst.Call()) | cst.AugAssign() | cst.Return(None) | cst.Raise() | cst.Del()]:
            yield line.with_changes(body=[cst.Pass()])


def negated(node: cst.If | cst.While) -> Iterator[cst.CSTNode]:
    test = node.test.with_changes(lpar=[cst.LeftParen()], rpar=[cst.RightParen()])
    yield node.with_changes(test=cst.UnaryOperation(cst.Not(), test))


OPERATORS = [*mutation_operators, (cst.SimpleStatementLine, without), (cst.If | cst.While, negated)]


@dataclass(frozen=True)
class Mutant:
    """One change.  `names`: what a statement that runs at import defines, and the class around it."""

    file: str
    lines: frozenset[int]
    names: frozenset[str]
    node: cst.CSTNode = field(repr=False)
    changed: cst.CSTNode = field(repr=False)


class Finder(cst.CSTVisitor):
    """Finds every change that can be made to a module."""

    METADATA_DEPENDENCIES = (PositionProvider,)

    def __init__(self, file: str) -> None:
        super().__init__()
        self.file = file
        self.found: list[Mutant] = []
        self._statements: list[cst.CSTNode] = []

    def on_visit(self, node: cst.CSTNode) -> bool:
        if isinstance(node, cst.Annotation | cst.Decorator):
            return False
        if isinstance(node, cst.SimpleStatementLine | cst.BaseCompoundStatement):
            self._statements.append(node)
        for kind, operator in OPERATORS:
            if isinstance(node, kind) and self._statements:
                self.found += [self._mutant(node, changed) for changed in operator(node)]
        return True

    def on_leave(self, node: cst.CSTNode) -> None:
        if self._statements and self._statements[-1] is node:
            self._statements.pop()

    def _mutant(self, node: cst.CSTNode, changed: cst.CSTNode) -> Mutant:
        lines = {self.get_metadata(PositionProvider, n).start.line for n in (node, self._statements[-1])}
        names = {s.name.value for s in self._statements if isinstance(s, cst.ClassDef | cst.FunctionDef)}
        if isinstance(line := self._statements[-1], cst.SimpleStatementLine):
            for s in line.body:
                targets = [t.target for t in s.targets] if isinstance(s, cst.Assign) else [getattr(s, "target", None)]
                names |= {t.value for t in targets if isinstance(t, cst.Name)}
        return Mutant(self.file, frozenset(lines), frozenset(names), node, changed)


def mutants_of(file: str) -> tuple[cst.Module, list[Mutant]]:
    wrapper = MetadataWrapper(cst.parse_module(Path(file).read_text()))
    finder = Finder(file)
    wrapper.visit(finder)
    return wrapper.module, finder.found


def compiles(code: str) -> bool:
    try:
        compile(code, "mutant", "exec", dont_inherit=True)
    except SyntaxError:
        return False
    return True


# --- which tests run a line


class Recorder:
    """Which lines each test runs, and how long it takes."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._coverage = coverage.Coverage(data_file=None, config_file=False, source=PACKAGES)
        self._coverage.start()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        began = time.process_time()
        self._coverage.switch_context(item.nodeid)
        result = yield
        self._coverage.switch_context("")
        self.seconds[item.nodeid] = time.process_time() - began
        return result

    def lines(self) -> dict[str, dict[int, set[str]]]:
        """Of each file: of each line the tests that run it."""
        self._coverage.stop()
        data = self._coverage.get_data()
        here = os.getcwd()
        return {
            os.path.relpath(f, here): {n: set(tests) - {""} for n, tests in data.contexts_by_lineno(f).items()}
            for f in data.measured_files()
        }


@dataclass
class Covers:
    seconds: dict[str, float]
    lines: dict[str, dict[int, set[str]]]

    def __post_init__(self) -> None:
        self._naming: dict[str, set[str]] = defaultdict(set)  # of each word the tests that run a line with it
        for file, lines in self.lines.items():
            for number, words in enumerate(words_of(file), 1):
                for word in words:
                    self._naming[word] |= lines.get(number, set())
        self._unit: dict[str, set[str]] = defaultdict(set)  # the unit tests whose file has it
        for test in self.seconds:
            if (file := test.partition("::")[0]).startswith("tests/unit"):
                for word in set().union(*words_of(file)):
                    self._unit[word].add(test)

    def tests(self, mutant: Mutant, seconds: float) -> list[str]:
        """The shortest first, as many as this time allows.

        What runs at import only is tested by tests that run a line which names it, and by those of its module.
        """
        tests = {t for n in mutant.lines for t in self.lines[mutant.file].get(n, ())}
        if not tests:
            tests = {t for name in mutant.names for t in self._naming[name]} | self._unit[Path(mutant.file).stem]
        return self.shortest(tests, seconds)

    def shortest(self, tests: Iterable[str], seconds: float) -> list[str]:
        ordered = sorted(tests, key=lambda t: (self.seconds[t], t))
        sums = list(itertools.accumulate(self.seconds[t] for t in ordered))
        return ordered[: max(1, bisect.bisect(sums, seconds))]


@functools.cache
def words_of(file: str) -> list[set[str]]:
    """Of each line."""
    return [set(re.findall(r"\w+", text)) for text in Path(file).read_text().splitlines()]


def in_child(work: Callable[[], int]) -> int:
    """Run it in a process of its own, silent; -> its pid."""
    sys.stdout.flush()
    if (pid := os.fork()) > 0:
        return pid
    code = 99
    try:
        null = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(null, number)
        code = work()
    finally:
        os._exit(code)


def record(cache: Path) -> Covers:
    """Run all tests on the original, unless that has been done for exactly these files."""
    texts = sorted(p for folder in (*PACKAGES, *TESTS) for p in Path(folder).glob("**/*.py"))
    key = hashlib.sha256(b"".join(str(p).encode() + p.read_bytes() for p in texts)).hexdigest()

    def work() -> int:
        recorder = Recorder()
        code = pytest.main(["-q", "-x", *TESTS], plugins=[recorder])
        cache.parent.mkdir(exist_ok=True)
        cache.write_bytes(pickle.dumps((key, recorder.seconds, recorder.lines())))
        return code

    known = cache.exists() and pickle.loads(cache.read_bytes())[0] == key
    if not known and os.waitpid(in_child(work), 0)[1] != 0:
        cache.unlink(missing_ok=True)
        sys.exit("mutants: the tests fail without any change; mend them first")
    return Covers(*pickle.loads(cache.read_bytes())[1:])


# --- running them


class Changed(importlib.machinery.SourceFileLoader, importlib.abc.MetaPathFinder):
    """Loads one module from other text than its file's."""

    def __init__(self, file: str, code: str) -> None:
        name = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        super().__init__(name, str(Path(file).resolve()))
        self._code = code

    def find_spec(self, name: str, path: object = None, target: object = None) -> importlib.machinery.ModuleSpec | None:
        return importlib.util.spec_from_file_location(name, self.path, loader=self) if name == self.name else None

    def get_code(self, name: str) -> CodeType:
        return compile(self._code, self.path, "exec", dont_inherit=True)


REFUSED: Final = 100  # by mypy: exit status of the process that tries a mutant, besides pytest's
OUTCOMES: Final = {
    REFUSED: "refused by mypy",
    int(pytest.ExitCode.OK): "not noticed",
    int(pytest.ExitCode.USAGE_ERROR): "not tried",  # and the next: a fault of this script
    int(pytest.ExitCode.NO_TESTS_COLLECTED): "not tried",
}


class Only:
    """Of what is collected, these tests, in this order."""

    def __init__(self, tests: list[str]) -> None:
        self._order = {test: n for n, test in enumerate(tests)}

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = sorted((i for i in items if i.nodeid in self._order), key=lambda i: self._order[i.nodeid])


def typed(file: str, code: str) -> bool:
    """Whether mypy accepts it: what it refuses nobody can commit (`make lint`)."""
    with tempfile.NamedTemporaryFile("w", suffix=".py") as changed:
        changed.write(code)
        changed.flush()
        packages = [arg for package in PACKAGES for arg in ("-p", package.replace("/", "."))]
        return mypy.api.run([*packages, "--shadow-file", file, changed.name])[2] != 1


def run(file: str, code: str, tests: list[str], seconds: float) -> int:
    """-> pid."""

    def work() -> int:
        if not typed(file, code):
            return REFUSED
        limit = int(10 + 5 * seconds)
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        sys.meta_path.insert(0, Changed(file, code))
        if not tests:
            return pytest.ExitCode.OK
        files = sorted({t.partition("::")[0] for t in tests})
        return pytest.main(["-q", "-x", "-p", "no:cacheprovider", *files], plugins=[Only(tests)])

    return in_child(work)


def difference(file: str, before: str, after: str) -> str:
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), file, file, lineterm="", n=3)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Mutation testing of the core.")
    parser.add_argument("--sample", type=int, default=300, help="how many mutants (300)")
    parser.add_argument("--seed", type=int, default=1, help="which ones (1)")
    parser.add_argument("--jobs", type=int, default=1, help="how many at a time (1)")
    parser.add_argument("--seconds", type=float, default=60.0, help="of tests for each, at most (60)")
    parser.add_argument("--only", type=lambda s: {int(n) for n in s.split(",")}, help="numbers within the sample")
    options = parser.parse_args()
    cache = Path("build/mutants.covers").resolve()
    for module in SLOW_TO_IMPORT:
        importlib.import_module(module)
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        shutil.copytree(".", f"{folder}/redirectctl", ignore=NOT_COPIED, symlinks=True)
        os.chdir(f"{folder}/redirectctl")
        sys.path[0] = os.getcwd()  # instead of where this script is
        report(options, cache)


def report(options: argparse.Namespace, cache: Path) -> None:
    began = time.monotonic()
    sample, originals = draw(options.sample, options.seed)
    covers = record(cache)
    print(f"{len(covers.seconds)} tests pass on the original ({time.monotonic() - began:.0f} s)", flush=True)

    file = sample[0][0].file
    pid = run(file, originals[file], covers.shortest(covers.seconds, options.seconds), options.seconds)
    if os.waitpid(pid, 0)[1] != 0:
        sys.exit("mutants: the tests fail, or mypy, in the copy, without any change")

    waiting = [n for n in range(len(sample)) if options.only is None or n in options.only]
    tried, counts = len(waiting), Counter[str]()
    running: dict[int, int] = {}  # pid -> which of the sample
    while waiting or running:
        while waiting and len(running) < options.jobs:
            mutant, code = sample[n := waiting.pop(0)]
            tests = covers.tests(mutant, options.seconds)
            running[run(mutant.file, code, tests, sum(covers.seconds[t] for t in tests))] = n
        pid, status = os.wait()
        mutant, code = sample[n := running.pop(pid)]
        counts[what := OUTCOMES.get(os.waitstatus_to_exitcode(status), "noticed by tests")] += 1
        if what == "not noticed":
            tests = len(covers.tests(mutant, options.seconds))
            print(f"\n{n}: {tests} tests did not notice\n{difference(mutant.file, originals[mutant.file], code)}")
        print(f"\r{tried - len(waiting) - len(running)} of {tried}: {dict(counts)} ", end="", flush=True)
    noticed = counts["noticed by tests"] / max(1, tried - counts["refused by mypy"])
    print(f"\nnoticed: {1 - counts['not noticed'] / tried:.1%}; by tests, of what mypy accepts: {noticed:.1%}")
    print(f"{time.monotonic() - began:.0f} s")


def draw(size: int, seed: int) -> tuple[list[tuple[Mutant, str]], dict[str, str]]:
    """-> mutants, each with the text of its file; the original texts."""
    modules, everything = {}, []
    for file in sorted(str(p) for package in PACKAGES for p in Path(package).glob("**/*.py")):
        modules[file], found = mutants_of(file)
        everything += found
    random.Random(seed).shuffle(everything)
    codes = ((m, modules[m.file].deep_replace(m.node, m.changed).code) for m in everything)
    sample = list(itertools.islice((pair for pair in codes if compiles(pair[1])), size))
    print(f"{len(everything)} mutants; these are {len(sample)} of them (seed {seed})", flush=True)
    return sample, {file: module.code for file, module in modules.items()}


if __name__ == "__main__":
    main()
