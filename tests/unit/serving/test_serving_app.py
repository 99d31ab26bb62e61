"""The wiring opens nothing before it is asked to."""

from __future__ import annotations

from serving.app import Rooms, create_app


def test_making_the_app_touches_nothing(settings):
    app = create_app(settings)
    assert app.title == "Quillstream"
    assert not settings.home.exists()


def test_closing_rooms_that_were_never_opened_touches_nothing(settings):
    with Rooms(settings):
        pass
    assert not settings.home.exists()
