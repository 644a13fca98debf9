"""The command that shows settings."""

from __future__ import annotations

from typing import Annotated

import typer

from raysearch.cli.command import command
from raysearch.cli.options import ConfigOption, JsonOption, SetOption, app, read_settings


@app.command("config")
def config_command(
    config: ConfigOption = None,
    settings: SetOption = [],
    schema: Annotated[
        bool, typer.Option("--schema", help="the JSON Schema of the settings, for editors, instead")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """The settings in force, defaults included, as TOML that `-c` reads."""
    with command(as_json or schema) as show:
        if schema:
            from raysearch.config import Config

            show(Config.model_json_schema(), lambda out: None)
            return
        from raysearch.config import settings_as_toml

        values = read_settings(config, settings)
        text = settings_as_toml(values)
        show(values.model_dump(mode="json"), lambda out: out.out(text, end=""))
