"""The demo's report: one HTML file with its charts inside, readable without a network."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from dagster_project import demo_charts
from dagster_project.demo_facts import closing_rows, mean_line
from infra.artifacts import write_atomic


def write_report(facts: dict[str, Any], path: Path) -> Path:
    """Render the facts of a demo run; the old report is replaced in one step."""
    environment = Environment(
        loader=PackageLoader("dagster_project"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
    )
    charts = {
        "seconds": demo_charts.stage_seconds(facts["seconds"]),
        "means": demo_charts.verdict_means(facts["means"]),
        "losses": demo_charts.losses(facts["adapter"]),
    }
    if facts["drift"]["wealth"]:
        charts["drift"] = demo_charts.drift_trace(facts["drift"]["wealth"], facts["drift"]["threshold"])
    page = environment.get_template("demo_report.html.jinja").render(
        facts=facts, charts=charts, rows=closing_rows(facts), mean_line=mean_line
    )
    write_atomic(path, page.encode())
    return path
