"""A shop: an order, and the batch that ships what was ordered, are one transaction."""

import os
from typing import Any

from flask import Flask, abort, request
from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from batching.queue_manager import queue_manager


class Base(DeclarativeBase):
    """The shop's own tables, in the database that has the queue's."""


class Order(Base):
    """What a customer ordered; its batch ships it."""

    __tablename__ = "shop_orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    customer: Mapped[str]
    batch_id: Mapped[str | None]


def create_app() -> Flask:
    """`flask run` finds it by its name."""
    app = Flask(__name__)
    engine = create_engine(os.environ["BATCHING_DATABASE_URL"])
    Base.metadata.create_all(engine)

    @app.post("/orders")
    def place() -> tuple[dict[str, Any], int]:
        wanted = request.get_json()
        with Session(engine) as session, session.begin():
            order = Order(customer=wanted["customer"])
            session.add(order)
            session.flush()  # it has an id now
            batch = queue_manager.submit(
                "orders.ship",
                [(item["sku"], {"order": order.id, "pieces": item["pieces"]}) for item in wanted["items"]],
                name=f"order {order.id}",
                key=f"order-{order.id}",
                session=session,
            )
            order.batch_id = batch.id
            if any(item["pieces"] < 1 for item in wanted["items"]):
                abort(409)  # raises: neither the order nor its batch was ever there
            answer = {"order": order.id, "batch": batch.id}
        queue_manager.ring()  # it is committed; without this, the leader looks within 0.2 s by itself
        return answer, 201

    @app.get("/orders/<int:order_id>")
    def look(order_id: int) -> dict[str, Any]:
        with Session(engine) as session:
            order = session.get(Order, order_id)
            if order is None or order.batch_id is None:
                abort(404)
            view = queue_manager.get(order.batch_id).progress()
            return {"customer": order.customer, "state": view.state, "shipped": view.succeeded, "of": view.total}

    return app
