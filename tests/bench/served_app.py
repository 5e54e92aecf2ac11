"""The edge as an app for WSGI servers that are measured beside ours; `servers.py` starts them."""

import os

from edge_api import create_app
from edge_api.settings import EdgeSettings

application = create_app(EdgeSettings.from_env(threads=int(os.environ["BENCH_THREADS"])))
