"""Imports of customers: a request submits, others look and fetch the results while they stream."""

import json
import os
from collections.abc import Iterator
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from batching import BatchOptions
from batching.queue_manager import queue_manager

engine = create_engine(os.environ["BATCHING_DATABASE_URL"])


class Base(DeclarativeBase):
    """Our own tables, in the database that has the queue's."""


class Import(Base):
    """Who asked for an import, and the batch that does it."""

    __tablename__ = "crm_imports"
    id: Mapped[int] = mapped_column(primary_key=True)
    asked_by: Mapped[str]
    batch_id: Mapped[str]


class Customer(BaseModel):
    """One line of an import."""

    number: str
    email: str


class Wanted(BaseModel):
    """An import as it is asked for."""

    asked_by: str
    customers: list[Customer]


def open_session() -> Iterator[Session]:
    """A session for one request; what a request did not commit is rolled back."""
    with Session(engine) as session:
        yield session


OwnSession = Annotated[Session, Depends(open_session)]
Base.metadata.create_all(engine)
app = FastAPI(title="Imports")


# `def`, not `async def`: FastAPI runs these in threads, where a database may be waited for.
@app.post("/imports", status_code=201)
def start(wanted: Wanted, session: OwnSession) -> dict[str, Any]:
    """The batch exists if, and only if, the row does."""
    batch = queue_manager.submit(
        "customers.import",
        ((customer.number, customer.model_dump()) for customer in wanted.customers),
        name=f"import of {wanted.asked_by}",
        options=BatchOptions(failure_budget=0.1),
        session=session,
    )
    row = Import(asked_by=wanted.asked_by, batch_id=batch.id)
    session.add(row)
    session.commit()
    queue_manager.ring()
    return {"import": row.id, "batch": batch.id}


@app.get("/imports/{number}")
def look(number: int, session: OwnSession) -> dict[str, Any]:
    """How far it is."""
    return queue_manager.get(_batch_of(number, session)).progress().as_json()


@app.get("/imports/{number}/results")
def results(number: int, session: OwnSession) -> StreamingResponse:
    """Every line as JSON, in constant memory."""
    lines = queue_manager.get(_batch_of(number, session)).results()
    return StreamingResponse((json.dumps(line.as_json()) + "\n" for line in lines), media_type="application/jsonl")


def _batch_of(number: int, session: Session) -> str:
    row = session.get(Import, number)
    if row is None:
        raise HTTPException(404, f"there is no import {number}")
    return row.batch_id
