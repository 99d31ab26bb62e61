"""The one resource of the code location."""

import dagster as dg

from dagster_project.resources import QuillResource


@dg.definitions
def resources() -> dg.Definitions:
    """Bind the wiring under the name the assets and sensors ask for."""
    return dg.Definitions(resources={"quill": QuillResource()})
