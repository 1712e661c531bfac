"""What is set for each connection to PostgreSQL."""

from __future__ import annotations

from sqlalchemy import func, select
from sqlalchemy.engine import make_url

from batching.database import Database

OURS = {
    "TimeZone": "UTC",
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "jit": "off",
    "plan_cache_mode": "force_custom_plan",
    "statement_timeout": "2s",
    "idle_in_transaction_session_timeout": "2s",
}


def settings(database: Database) -> dict[str, str]:
    with database.begin() as connection:
        return {name: str(connection.scalar(select(func.current_setting(name)))) for name in (*OURS, "work_mem")}


def test_each_connection_is_bounded_and_plans_for_what_the_tables_are(postgresql_url: str) -> None:
    database = Database(postgresql_url, timeout=2.0)
    assert OURS.items() <= settings(database).items()
    with database.direct() as direct:
        [[kept]] = direct.execute(select(func.current_setting("plan_cache_mode")), {}).all()
        [[walks]] = direct.execute(select(func.current_setting("enable_seqscan")), {}).all()
    assert (kept, walks) == ("auto", "off"), "who waits for one profile waits for no plan"
    database.close()


def test_options_of_the_url_are_set_beside_ours_and_win(postgresql_url: str) -> None:
    own = make_url(postgresql_url).update_query_dict({"options": "-c work_mem=5MB -c statement_timeout=7s"})
    database = Database(own.render_as_string(hide_password=False), timeout=2.0)
    assert (OURS | {"statement_timeout": "7s", "work_mem": "5MB"}).items() <= settings(database).items()
    database.close()
