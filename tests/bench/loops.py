"""The remote side: worker loops over plain HTTP that do nothing, as fast as they can.

`python -m tests.bench.loops URL` reads one token a line and runs a loop a token, until killed.
"""

import json
import sys
import threading
import time
import uuid
from typing import Any

import requests


def run(url: str, token: str, worker_id: str) -> None:
    """Claim, take up, complete, as the worker of ours does; stops with the process."""
    session = requests.Session()
    session.trust_env = False
    session.headers["Authorization"] = f"Bearer {token}"

    def post(path: str, body: dict[str, Any], **headers: str) -> Any:
        answer = session.post(f"{url}/api/queue{path}", json=body, headers=headers, timeout=60)
        answer.raise_for_status()
        return answer.json()

    claim = {"workerId": worker_id, "leaseSeconds": 60, "waitSeconds": 25}
    while True:
        job = post("/jobs/claim", claim, **{"Idempotency-Key": str(uuid.uuid4())})["job"]
        if job is None:
            continue
        claimed = time.time()
        mine = {"workerId": worker_id, "leaseId": job["leaseId"]}
        post(f"/jobs/{job['id']}/heartbeat", mine | {"leaseSeconds": 60})
        result = {"claimed": claimed, "started": time.time()}
        post(f"/jobs/{job['id']}/complete", mine | {"result": result})


def main() -> None:
    """Run the loops."""
    url = sys.argv[1]
    workers = [json.loads(line) for line in sys.stdin]
    for one in workers:
        threading.Thread(target=run, args=(url, one["token"], one["workerId"]), daemon=True).start()
    print("ready", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
