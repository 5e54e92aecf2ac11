"""What operators load into other programs: alert rules, dashboard, units; each as those read it."""

import json
import plistlib
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from broker.cli import drawbridge
from remote_worker.cli import main as worker_main
from tests.contract.test_metrics_table import documented
from tests.deployment import PATH, ROOT, program

DEPLOY = ROOT / "deploy"
RULES = DEPLOY / "monitoring" / "alerts.yml"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
NAME = re.compile(r"drawbridge_\w+")


def known() -> set[str]:
    """Return the names that queries may use."""
    names = set(documented())
    histograms = {name for name, (kind, _) in documented().items() if kind == "histogram"}
    return names | {name + end for name in histograms for end in ("_bucket", "_count", "_sum")}


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def queries() -> list[str]:
    board = json.loads((DEPLOY / "monitoring" / "dashboard.json").read_text())
    shown = [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]
    return [rule["expr"] for rule in rules()] + shown


def test_queries_use_only_figures_that_there_are() -> None:
    used = {name for query in queries() for name in NAME.findall(query)}
    assert used - known() == set()
    # what nobody looks at is not worth counting
    bare = {name.removesuffix("_bucket").removesuffix("_count") for name in used}
    assert set(documented()) - bare == set()


def test_labels_in_queries_are_labels_of_the_figure() -> None:
    for query in queries():
        for name, selector in re.findall(r"(drawbridge_\w+)\{([^}]*)\}", query):
            base = re.sub(r"_(bucket|count|sum)$", "", name)
            labels = documented()[name if name in documented() else base][1]
            for label in re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selector):
                assert label in labels, (query, label)


def test_the_runbook_says_what_each_alert_means() -> None:
    text = (DEPLOY / "RUNBOOK.md").read_text()
    sections = set(re.findall(r"^### (Drawbridge\w+)$", text, flags=re.MULTILINE))
    assert sections == {rule["alert"] for rule in rules()}


def test_prometheus_takes_the_rules() -> None:
    done = subprocess.run(
        [program("promtool"), "check", "rules", RULES], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_ring_when_they_must(tmp_path: Path) -> None:
    def alert(name: str, at: str, **labels: str) -> dict[str, Any]:
        rings = [] if not labels else [{"exp_labels": labels}]
        return {"eval_time": at, "alertname": name, "exp_alerts": rings}

    def rings(name: str) -> dict[str, str]:
        (rule,) = (rule for rule in rules() if rule["alert"] == name)
        return dict(rule["labels"])

    series = {
        'drawbridge_outbox_oldest_seconds{instance="a"}': "0x5 90x30",
        'drawbridge_outbox_oldest_seconds{instance="b"}': "0x5 95x30",
        'drawbridge_store_reachable{store="ledger"}': "1x10 0x30",
        "drawbridge_beat_age_seconds": "1x40",
        "drawbridge_workers_online": "0x40",
        'drawbridge_queued_jobs{queue="q",type="t"}': "0x10 3x30",
        'drawbridge_transitions_total{queue="q",type="t",trigger="exhaust"}': "0x20 1x20",
        'drawbridge_loop_age_seconds{loop="relay",instance="a"}': "0x40",
    }
    tests = [
        alert("DrawbridgeOutboxOld", "4m"),
        alert("DrawbridgeOutboxOld", "10m", **rings("DrawbridgeOutboxOld")),
        alert("DrawbridgeStoreAway", "9m"),
        alert("DrawbridgeStoreAway", "15m", store="ledger", **rings("DrawbridgeStoreAway")),
        alert("DrawbridgeBeatAway", "30m"),
        alert("DrawbridgeNoWorkers", "9m"),
        alert("DrawbridgeNoWorkers", "20m", **rings("DrawbridgeNoWorkers")),
        alert("DrawbridgeDeadLetters", "15m"),
        alert(
            "DrawbridgeDeadLetters", "25m", queue="q", type="t", **rings("DrawbridgeDeadLetters")
        ),
        alert("DrawbridgeNoBridge", "30m"),
    ]
    for one in tests:
        for expected in one["exp_alerts"]:
            summary = next(r for r in rules() if r["alert"] == one["alertname"])["annotations"]
            said = {
                "DrawbridgeOutboxOld": "Celery has not been told something for 1m 35s.",
                "DrawbridgeStoreAway": "The ledger do not answer the bridge.",
                "DrawbridgeDeadLetters": "Jobs t of q ran out of attempts.",
            }
            expected["exp_annotations"] = {
                "summary": said.get(one["alertname"], summary["summary"])
            }
    file = tmp_path / "tests.yml"
    group = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "alert_rule_test": tests,
    }
    file.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "tests": [group]}))
    done = subprocess.run(
        [program("promtool"), "test", "rules", file], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def options_of(words: list[str]) -> set[str]:
    """Return the options that a command line of ours may have."""
    root, name = (worker_main, words[1]) if "worker" in words[0] else (drawbridge, words[1])
    command = root.get_command(click.Context(root), name)
    assert command is not None
    return {option for one in command.params for option in one.opts}


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_a_unit_is_what_systemd_reads(unit: Path, tmp_path: Path) -> None:
    copy = tmp_path / unit.name
    # it looks for the program, which is not installed there
    copy.write_text(unit.read_text().replace("/opt/drawbridge/bin/", "/bin/true "))
    done = subprocess.run(
        [program("systemd-analyze"), "verify", "--man=no", copy],
        check=False, capture_output=True, text=True, env={"PATH": PATH},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    (line,) = re.findall(r"^ExecStart=/opt/drawbridge/bin/(.*)$", unit.read_text(), re.MULTILINE)
    words = shlex.split(line)
    assert {word for word in words if word.startswith("--")} <= options_of(words)


def test_two_users_share_stored_files_by_their_group_alone() -> None:
    units = {unit.stem.removeprefix("drawbridge-"): _said(unit) for unit in UNITS}
    # systemd gives a StateDirectory, and all in it, to the user of whichever unit starts
    owners = [(one.get("StateDirectory"), one["User"]) for one in units.values()]
    folders = [folder for folder, _ in owners if folder]
    assert len(folders) == len(set(folders))
    for name in ("edge", "bridge"):
        one = units[name]
        assert one["Environment"] == f"DRAWBRIDGE_DATA_DIR={one['ReadWritePaths']}"
        assert one["SupplementaryGroups"] == "drawbridge"
        assert one["UMask"] == "0007"
    # the daemon's own directory is hidden from jobs, and Codex's login must not lie in it
    assert "--work-dir ${STATE_DIRECTORY}/work " in units["worker"]["ExecStart"]


def _said(unit: Path) -> dict[str, str]:
    lines = [line.partition("=") for line in unit.read_text().splitlines() if line[:1].isalpha()]
    return {name: value for name, _, value in lines}


def test_there_is_a_unit_for_each_process() -> None:
    names = [unit.stem.removeprefix("drawbridge-") for unit in UNITS]
    assert names == ["beat", "bridge", "edge", "worker"]


def test_launchd_can_read_the_worker() -> None:
    with (DEPLOY / "launchd" / "drawbridge-worker.plist").open("rb") as file:
        told = plistlib.load(file)
    words = told["ProgramArguments"]
    assert {word for word in words if word.startswith("--")} <= options_of(words)
    assert told["Label"] == "drawbridge-worker"
    assert told["RunAtLoad"] is told["KeepAlive"] is True
    assert told["Umask"] == 0o77
