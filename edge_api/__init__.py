"""The edge: the HTTP API by which workers, producers and operators reach the queue."""

from __future__ import annotations

from importlib.metadata import version
from typing import cast

import marshmallow as ma
from flask import Flask
from flask.json.provider import DefaultJSONProvider
from werkzeug.exceptions import HTTPException

from broker.errors import DrawbridgeError
from edge_api import (
    artifacts,
    auth,
    control,
    dead_letters,
    errors,
    events,
    fleet,
    jobs,
    leases,
    ops,
    traffic,
    uploads,
    why,
    workers,
)
from edge_api.services import EXTENSION, Services
from edge_api.settings import EdgeSettings
from edge_api.smorest import Api

#: every group of routes there is
BLUEPRINTS = (
    jobs.blp,
    why.blp,
    leases.blp,
    events.blp,
    artifacts.blp,
    uploads.blp,
    dead_letters.blp,
    workers.blp,
    fleet.blp,
    control.blp,
    ops.blp,
)


def create_app(settings: EdgeSettings, *, services: Services | None = None) -> Flask:
    """Build the edge on its stores, or on the services given."""
    app = assemble()
    app.extensions[EXTENSION] = services or Services.connect(settings)
    return app


def assemble() -> Flask:
    """Put the routes together, with nothing behind them yet."""
    app = Flask(__name__, static_folder=None)
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
    cast(DefaultJSONProvider, app.json).sort_keys = False
    # A path has one spelling: nothing is redirected to another.
    app.url_map.strict_slashes = True
    app.url_map.merge_slashes = False
    app.url_map.redirect_defaults = False

    app.before_request(traffic.begin)
    app.before_request(auth.guard)
    app.after_request(traffic.finish)

    api = Api(app, version=version("celery-drawbridge"))
    for blueprint in BLUEPRINTS:
        api.register_blueprint(blueprint)

    app.register_error_handler(DrawbridgeError, errors.on_refusal)
    app.register_error_handler(ma.ValidationError, errors.on_invalid)
    app.register_error_handler(HTTPException, errors.on_http)
    app.register_error_handler(Exception, errors.on_crash)
    return app
