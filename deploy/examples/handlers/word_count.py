"""A job type of one's own: `word_count` runs `wc` on the payload's text.

Install it beside the worker (`pip install deploy/examples/handlers`), and its jobs are run.
"""

from remote_worker.errors import JobFailed
from remote_worker.handlers.context import Context, Outcome
from remote_worker.output import Captured


def word_count(context: Context) -> Outcome:
    """Count the words of `{"text": …}`."""
    text = context.payload.get("text")
    if not isinstance(text, str):
        # No second try makes a payload better, so it is not retryable (the default).
        raise JobFailed("text is missing", error_type="invalid_payload")
    source = context.directory / "text"
    source.write_text(text, encoding="utf-8", errors="replace")
    context.step("counting")
    output = Captured()
    # A cancel, a lost lease or the end of the daemon stops it: `run` raises, and we let it.
    code = context.run(["wc", "-w"], sink=output, stdin=source)
    if code != 0:
        raise JobFailed(f"wc ended with {code}: {output.err}", error_type="wc_failed")
    words = int(output.out)
    report = context.directory / "words.txt"
    report.write_text(f"{words}\n")
    return Outcome(
        summary=f"{words} words",
        result={"words": words, "report": None},
        files=(("reports/words.txt", report),),
        # The key gets {artifactId, name, digest, sizeBytes} of the uploaded file.
        references={"report": "reports/words.txt"},
    )
