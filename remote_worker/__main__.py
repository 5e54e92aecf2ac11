"""Lets `python -m remote_worker` be the command."""

from remote_worker.cli import main

main(prog_name="drawbridge-worker")
