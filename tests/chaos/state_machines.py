"""Running a Hypothesis state machine: the same steps in every run, and how often each was taken."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

from infra.errors import QuillError
from store.opening import Store
from store.tables import metadata


class CountedMachine(RuleBasedStateMachine):
    """A machine that counts its steps."""

    counts: ClassVar[Counter[str]] = Counter()

    def count(self, step: str) -> None:
        self.counts[step] += 1


def run(machine: type[CountedMachine], examples: int, steps: int) -> Counter[str]:
    """Run so many examples of so many steps, print and return the counts. Raises on the first divergence, shrunk."""
    machine.counts = Counter()
    chosen = settings(
        max_examples=examples,
        stateful_step_count=steps,
        derandomize=True,
        deadline=None,
        report_multiple_bugs=False,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(machine, settings=chosen)
    print(f"\n{machine.__name__}: " + ", ".join(f"{name} {count}" for name, count in sorted(machine.counts.items())))
    return machine.counts


def refuses(error: type[QuillError], attempt: Callable[[], object]) -> None:
    """Fail unless this raises the error. (`pytest.raises` fails with what Hypothesis does not take for a failure.)"""
    try:
        attempt()
    except error:
        return
    raise AssertionError(f"no {error.__name__}")


def in_memory() -> Path | None:
    """A folder in memory where there is one: what the machines try is logic, not the disk."""
    memory = Path("/dev/shm")
    return memory if memory.is_dir() else None


def empty(store: Store) -> None:
    """Take every row out of the records."""
    with store.engine.begin() as connection:
        for table in reversed(metadata.sorted_tables):
            connection.execute(table.delete())
