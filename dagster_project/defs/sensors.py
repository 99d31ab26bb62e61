"""Sensors: the log asks for runs. The cursor is the log position; run keys make a repeated tick act once."""

import dagster as dg

from dagster_project.defs.assets import evaluation_report, features
from dagster_project.resources import QuillResource

INTERVAL_SECONDS = 10


@dg.sensor(target=[features], minimum_interval_seconds=INTERVAL_SECONDS, default_status=dg.DefaultSensorStatus.RUNNING)
def content_documents_sensor(context: dg.SensorEvaluationContext, quill: QuillResource) -> dg.SensorResult:
    """New records in `content.documents` request one run of the features asset."""
    news = quill.wiring().new_documents(context.cursor or "")
    requests = [dg.RunRequest(run_key=news.run_key)] if news.found else []
    return dg.SensorResult(run_requests=requests, cursor=news.cursor)


@dg.sensor(
    target=[evaluation_report], minimum_interval_seconds=INTERVAL_SECONDS, default_status=dg.DefaultSensorStatus.RUNNING
)
def ops_alerts_sensor(context: dg.SensorEvaluationContext, quill: QuillResource) -> dg.SensorResult:
    """Each newly opened alert requests one evaluation report of the affected release and slice."""
    requests, cursor = alert_runs(quill, context.cursor or "")
    return dg.SensorResult(run_requests=requests, cursor=cursor)


def alert_runs(quill: QuillResource, cursor: str) -> tuple[list[dg.RunRequest], str]:
    """One run request per alert that was open in the records since a cursor, and the next cursor."""
    news = quill.wiring().new_alerts(cursor)
    requests = [
        dg.RunRequest(
            run_key=f"alert:{alert_id}",
            run_config={"ops": {"evaluation_report": {"config": {"alert_id": alert_id}}}},
            tags={"quillstream/alert": alert_id},
        )
        for alert_id in news.found
    ]
    return requests, news.cursor
