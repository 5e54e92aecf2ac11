"""A daemon of the field: speaks the base contract only, as those of milestones 1-5 do.

No lease id, no fence, no instance, no idempotency key; its credential goes by the old header; it
beats at a third of its lease and not before. `python field_daemon.py URL TOKEN WORKER JOBS`.
"""

import hashlib
import json
import sys
import threading
import time

import requests

LEASE_S = 120


class Daemon:
    """One such daemon."""

    def __init__(self, url: str, token: str, worker_id: str) -> None:
        self.url = f"{url}/api/queue"
        self.worker_id = worker_id
        self.headers = {"X-MoonMind-Worker-Token": token}

    def post(self, path: str, body: dict[str, object], expected: int = 200) -> dict[str, object]:
        """POST JSON and insist on the status code."""
        answer = requests.post(self.url + path, json=body, headers=self.headers, timeout=30)
        if answer.status_code != expected:
            raise SystemExit(f"{path}: {answer.status_code} {answer.text}")
        return answer.json()

    def claim(self) -> dict[str, object] | None:
        """Ask for a job; answers at once."""
        body = {
            "workerId": self.worker_id,
            "leaseSeconds": LEASE_S,
            "allowedTypes": ["codex_exec"],
            "workerCapabilities": ["codex", "git"],
        }
        answer = self.post("/jobs/claim", body)
        job = answer["job"]
        assert job is None or isinstance(job, dict)
        return job

    def run(self, job: dict[str, object]) -> None:
        """Do a job: an event, a log, the end."""
        stopping = threading.Event()
        beats = threading.Thread(target=self.beat, args=(job["id"], stopping))
        beats.start()
        mine = {"workerId": self.worker_id}
        log = f"job {job['id']} done by hand\n".encode()
        self.post(f"/jobs/{job['id']}/events", mine | {"message": "started"}, 201)
        answer = requests.post(
            f"{self.url}/jobs/{job['id']}/artifacts/upload",
            headers=self.headers,
            data=mine
            | {
                "name": "logs/run.log",
                "contentType": "text/plain",
                "digest": f"sha256:{hashlib.sha256(log).hexdigest()}",
            },
            files={"file": ("run.log", log)},
            timeout=30,
        )
        if answer.status_code != 201:
            raise SystemExit(f"upload: {answer.status_code} {answer.text}")
        stopping.set()
        beats.join()
        self.post(f"/jobs/{job['id']}/heartbeat", mine | {"leaseSeconds": LEASE_S})
        self.post(f"/jobs/{job['id']}/complete", mine | {"resultSummary": "done by hand"})

    def beat(self, job_id: object, stopping: threading.Event) -> None:
        """Extend the lease at every third of it."""
        while not stopping.wait(LEASE_S / 3):
            body = {"workerId": self.worker_id, "leaseSeconds": LEASE_S}
            self.post(f"/jobs/{job_id}/heartbeat", body)


def main() -> None:
    """Run until as many jobs are done as asked for."""
    url, token, worker_id, wanted = sys.argv[1:]
    daemon = Daemon(url, token, worker_id)
    done = 0
    while done < int(wanted):
        job = daemon.claim()
        if job is None:
            time.sleep(0.1)
            continue
        daemon.run(job)
        done += 1
        print(json.dumps({"done": job["id"], "keys": sorted(job)}), flush=True)


if __name__ == "__main__":
    main()
