"""How the daemon's own log looks: a line a record, for eyes or for machines."""

import json
import logging
import sys
from datetime import UTC, datetime

_FIELDS = ("action", "job_id", "fence", "tries", "jobs")


class JsonFormatter(logging.Formatter):
    """One JSON object a line; whatever a server or a job said cannot forge a second one."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line.update({f: value for f in _FIELDS if (value := getattr(record, f, None)) is not None})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class TextFormatter(logging.Formatter):
    """One line for a person, control characters made visible."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        at = datetime.fromtimestamp(record.created, UTC).astimezone().strftime("%H:%M:%S")
        job = getattr(record, "job_id", None)
        text = f"{record.getMessage()}{'' if job is None else f'  [{job}]'}"
        # Indented, so that no line of it looks like a record.
        trace = self.formatException(record.exc_info).split("\n") if record.exc_info else []
        told = "".join(f"\n    {visible(line)}" for line in trace)
        return f"{at} {record.levelname.lower():7} {visible(text)}{told}"


def visible(text: str) -> str:
    """Return a text with what would steer a terminal made visible."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def set_up(log_format: str) -> None:
    """Log to stderr; `auto` is text on a terminal and JSON elsewhere."""
    text = log_format == "text" or (log_format == "auto" and sys.stderr.isatty())
    handler = logging.StreamHandler()
    handler.setFormatter(TextFormatter() if text else JsonFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    # Its records repeat URLs and counts that ours say better.
    logging.getLogger("urllib3").setLevel(logging.WARNING)
