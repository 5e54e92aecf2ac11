"""An ordinary orchestrator: plain Celery, a task name and a queue, and nothing of ours.

    python deploy/examples/orchestrator.py --repository https://github.com/org/repo \
        --instruction "Fix the typo in the README"

The broker and the result backend come from --broker-url and --result-backend, or from
CELERY_BROKER_URL and CELERY_RESULT_BACKEND.
"""

import argparse
import json
import os
import sys

from celery import Celery


def main() -> int:
    """Send one `codex_exec`, wait for its result, and print it as JSON."""
    parser = argparse.ArgumentParser(description="Send a codex_exec task and wait for its result.")
    parser.add_argument("--broker-url", default=os.environ.get("CELERY_BROKER_URL"))
    parser.add_argument("--result-backend", default=os.environ.get("CELERY_RESULT_BACKEND"))
    parser.add_argument("--queue", default="remote")
    parser.add_argument("--repository", required=True)
    parser.add_argument("--ref", help="branch, tag or commit; default: the repository's own")
    parser.add_argument("--instruction", required=True)
    parser.add_argument("--publish", choices=["none", "branch", "pr"], default="none")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds to wait")
    options = parser.parse_args()
    if not options.broker_url or not options.result_backend:
        parser.error("say --broker-url and --result-backend")

    app = Celery(broker=options.broker_url, backend=options.result_backend)
    payload = {
        "repository": options.repository,
        "instruction": options.instruction,
        "publish": {"mode": options.publish},
    }
    if options.ref:
        payload["ref"] = options.ref
    sent = app.send_task("codex_exec", kwargs=payload, queue=options.queue)
    print(f"sent {sent.id} to {options.queue}", file=sys.stderr, flush=True)
    print(json.dumps(sent.get(timeout=options.timeout), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
