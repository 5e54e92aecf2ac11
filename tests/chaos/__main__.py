"""`make chaos`: runs every part of the suite, prints a table, writes chaos.json, and judges.

The seed decides what is asked and what goes wrong; how processes and threads meet it does not
decide, so a seed that failed may pass when it is run again. It has failed all the same.
"""

import importlib
import json
import pkgutil
import random
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import click
import pytest
from rich.console import Console
from rich.table import Table

from tests.chaos import parts
from tests.chaos.faults import MORE_FAULTS
from tests.chaos.report import MUST_BE_POSITIVE, MUST_BE_ZERO, Options, PartReport, Violation

ROOT: Final = Path(__file__).resolve().parents[2]
NAMES: Final = tuple(sorted(one.name for one in pkgutil.iter_modules(parts.__path__)))
DATABASES: Final = ("sqlite", "postgres")
#: Violations shown; the file has them all.
SHOWN: Final = 20


@click.command()
@click.option("--seed", type=int, envvar="CHAOS_SEED", help="Default: drawn, and printed.")
@click.option(
    "--seconds", default=60.0, show_default=True, help="Of faults, for each part that counts time."
)
@click.option(
    "--database", "databases", multiple=True, type=click.Choice(DATABASES), default=DATABASES,
    show_default=True, help="May be given twice.",
)  # fmt: skip
@click.option(
    "--part", "wanted", multiple=True, type=click.Choice(NAMES), default=NAMES, show_default=True,
    help="May be given several times.",
)  # fmt: skip
@click.option(
    "--also", multiple=True, type=click.Choice(sorted(MORE_FAULTS)),
    help="A fault that else does not happen to the whole stack.",
)  # fmt: skip
@click.option(
    "--json", "path", type=click.Path(dir_okay=False, path_type=Path), default=ROOT / "chaos.json",
    help="Where the figures go; default: chaos.json.",
)  # fmt: skip
def main(
    *,
    seed: int | None,
    seconds: float,
    databases: Sequence[str],
    wanted: Sequence[str],
    also: Sequence[str],
    path: Path,
) -> None:
    """Break everything that can break, and see whether a promise breaks with it."""
    seed = random.randrange(2**32) if seed is None else seed
    console = Console()
    console.print(f"CHAOS_SEED={seed}")
    reports = []
    for name in wanted:
        console.print(f"{time.strftime('%H:%M:%S')} {name} …")
        with tempfile.TemporaryDirectory(prefix=f"drawbridge-chaos-{name}-") as folder:
            # PostgreSQL runs as a user of its own
            Path(folder).chmod(0o755)
            options = Options(
                seed=seed, seconds=seconds, databases=tuple(databases), folder=Path(folder),
                also=tuple(also),
            )  # fmt: skip
            reports.append(run_part(name, options))
    complaints = judge(reports)
    show(console, reports, complaints)
    path.write_text(json.dumps(as_json(seed, reports, complaints), indent=1), encoding="utf-8")
    console.print(f"figures in {path}")
    sys.exit(bool(complaints))


def run_part(name: str, options: Options) -> PartReport:
    """Run one part; one that could not go on has broken something, and the others still run."""
    begun = time.monotonic()
    try:
        report: PartReport = importlib.import_module(f"tests.chaos.parts.{name}").run(options)
    except (pytest.fail.Exception, AssertionError, RuntimeError) as error:
        traceback.print_exception(error)
        stopped = Violation("stopped", "", f"{type(error).__name__}: {error}")
        report = PartReport(name, time.monotonic() - begun, {}, (stopped,))
    return report


def totals(reports: Sequence[PartReport]) -> dict[str, float]:
    """Add up what all parts are judged by, where a part counts it."""
    found: dict[str, float] = {}
    for name in (*MUST_BE_ZERO, *MUST_BE_POSITIVE):
        counted = [float(one.figures[name]) for one in reports if name in one.figures]
        if counted:
            found[name] = sum(counted)
    return found


def judge(reports: Sequence[PartReport]) -> list[str]:
    """Say what speaks against the run; nothing when every promise was kept, and tried."""
    added = totals(reports)
    bad = [f"{name} is {added[name]:g}, not 0" for name in MUST_BE_ZERO if added.get(name)]
    bad += [f"{name} is 0" for name in MUST_BE_POSITIVE if added.get(name, 1) <= 0]
    for report in reports:
        bad += [
            f"{report.name}: {one.invariant} {one.job} {one.evidence}" for one in report.violations
        ]
    return bad


def show(console: Console, reports: Sequence[PartReport], complaints: Sequence[str]) -> None:
    """Print the table."""
    table = Table("part", "figure", "value", title="chaos")
    for report in reports:
        table.add_section()
        table.add_row(report.name, "seconds", f"{report.seconds:.0f}")
        for name, value in report.figures.items():
            table.add_row("", name, f"{value:g}" if isinstance(value, float) else str(value))
        table.add_row("", "violations", str(len(report.violations)))
    table.add_section()
    for name, value in totals(reports).items():
        table.add_row("all", name, f"{value:g}", style="bold")
    console.print(table)
    for complaint in complaints[:SHOWN]:
        console.print(f"[red]broken:[/red] {complaint}", highlight=False)
    if len(complaints) > SHOWN:
        console.print(f"and {len(complaints) - SHOWN} more")


def as_json(seed: int, reports: Sequence[PartReport], complaints: Sequence[str]) -> dict[str, Any]:
    """Return what chaos.json holds."""
    return {
        "seed": seed,
        "totals": totals(reports),
        "complaints": list(complaints),
        "parts": [
            {
                "name": one.name,
                "seconds": round(one.seconds, 1),
                "figures": dict(one.figures),
                "violations": [
                    {"invariant": v.invariant, "job": v.job, "evidence": v.evidence}
                    for v in one.violations
                ],
            }
            for one in reports
        ],
    }


if __name__ == "__main__":
    main()
