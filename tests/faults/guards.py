"""The guards that mutation controls remove, one at a time, and the tests that ought to notice; see `mutations`."""

from __future__ import annotations

from typing import NamedTuple

DISPATCHING = "batching/moves/statements/dispatching.py"
CLAIMING = "batching/moves/statements/claiming.py"
SETTLING = "batching/moves/statements/settling.py"
SHARED = "batching/moves/statements/shared.py"
STATES = "tests/test_state_manager.py"
RACES = "tests/test_races.py"
SWEEPER = "tests/test_sweeper.py"
CONSUMER = "tests/test_consumer.py"
COPIES = "tests/test_unacknowledged.py"
STOPPING = "tests/acceptance/test_stopping.py"


class Edit(NamedTuple):
    """A text that is replaced."""

    path: str
    old: str
    new: str = ""
    times: int = 1


class Mutation(NamedTuple):
    """A guard that is removed."""

    name: str
    guard: str
    """In words, for the page."""
    edits: tuple[Edit, ...]
    tests: tuple[str, ...]
    """What pytest runs, up to the first failure."""


def one(name: str, guard: str, path: str, old: str, new: str = "", *, tests: tuple[str, ...]) -> Mutation:
    """A guard that stands in one place."""
    return Mutation(name, guard, (Edit(path, old, new),), tests)


MUTATIONS = [
    # --- fences
    Mutation(
        "claim-run",
        "the run in the WHERE of a claim",
        (Edit(CLAIMING, "            profiles.c.run == offers.c.run - 1,\n", times=2),),
        (STATES,),
    ),
    Mutation(
        "claim-generation",
        "the generation in the WHERE of a claim",
        (
            Edit(CLAIMING, "            profiles.c.generation == offers.c.generation,\n"),
            Edit(CLAIMING, "            profiles.c.generation == first.c.generation,\n"),
        ),
        (STATES,),
    ),
    Mutation(
        "claim-batch",
        "the refusal of claims in a batch that does not run",
        (
            Edit(CLAIMING, "            offers.c.runs,\n"),
            Edit(
                CLAIMING,
                ".where(batches.c.id == BATCH, batches.c.state == BatchState.RUNNING)\n        .with_for_update(read",
                ".where(batches.c.id == BATCH)\n        .with_for_update(read",
            ),
        ),
        ("tests/faults/test_guards.py",),
    ),
    one(
        "settle-run",
        "the run in the WHERE of a settlement",
        SETTLING,
        "            profiles.c.run == outcomes.c.run,\n",
        tests=(STATES,),
    ),
    one(
        "settle-worker",
        "the worker in the WHERE of a settlement",
        SETTLING,
        "            profiles.c.worker_id == HOLDER,\n",
        tests=(STATES, "tests/test_model.py"),
    ),
    one(
        "settle-state",
        "the state in the WHERE of a settlement",
        SETTLING,
        "            profiles.c.run == outcomes.c.run,\n            profiles.c.state == ProfileState.RUNNING,\n",
        "            profiles.c.run == outcomes.c.run,\n",
        tests=(STATES, "tests/test_model.py"),
    ),
    one(
        "settle-late",
        "what would wait again in a batch that is cancelled ends with it",
        SETTLING,
        "(state if successes else case((ends, batches.c.target), else_=state)).label",
        "state.label",
        tests=(STATES,),
    ),
    one(
        "dispatch-unwritten",
        "nothing is dispatched while a bulk move is not written",
        DISPATCHING,
        "        batches.c.rewritten == batches.c.generation,\n",
        tests=(STATES,),
    ),
    # --- the leader
    Mutation(
        "lease-epoch",
        "the lease's epoch in what a leader writes",
        (
            Edit(
                SHARED,
                'leases.c.name == LEADER, leases.c.holder == WRITER, leases.c.epoch == bindparam("epoch", '
                "type_=leases.c.epoch.type)",
                "leases.c.name == LEADER",
            ),
            Edit(
                "batching/moves/rows.py",
                "leases.c.name == LEADER, leases.c.holder == term.holder, leases.c.epoch == term.epoch",
                "leases.c.name == LEADER",
            ),
        ),
        (STATES,),
    ),
    one(
        "lease-lapse",
        "a lease is taken only when it lapsed",
        "batching/moves/leadership.py",
        "leases.c.expires_at <= now()),\n",
        "leases.c.expires_at.is_not(None)),\n",
        tests=("tests/test_outages.py", RACES),
    ),
    one(
        "lease-renewal",
        "a lease that lapsed is not renewed",
        "batching/moves/leadership.py",
        "            leases.c.expires_at > now(),\n",
        tests=("tests/faults/test_guards.py",),
    ),
    Mutation(
        "publish-after-commit",
        "publication after the commit",
        (
            Edit(
                "batching/execution_manager.py",
                "        dispatches = self._state_manager.dispatch(batch_id, limit, term, bookmark.number, brakes)\n",
                "        from batching.moves import profile\n"
                "        with self._state_manager.database.begin() as writing:\n"
                "            dispatches = profile.dispatch(writing, batch_id, limit, term, 2, bookmark.number)\n"
                "            self.republish(dispatches)\n",
            ),
            Edit(
                "batching/execution_manager.py",
                '        faults.reach("dispatch.committed")\n        self._publish(dispatches)\n',
            ),
        ),
        ("tests/test_execution_manager.py",),
    ),
    # --- the sweep
    one(
        "watched-silence",
        "the full lease of watched silence",
        "batching/sweeper.py",
        "if seconds >= self._lease]",
        "if seconds >= 0]",
        tests=(SWEEPER,),
    ),
    one(
        "watch-gap",
        "a gap in the watch proves nothing",
        "batching/sweeper.py",
        "            self._silence.clear()  # a gap",
        "            pass  # a gap",
        tests=(SWEEPER,),
    ),
    one(
        "hindered-watch",
        "time in which something went wrong is not watched silence",
        "batching/sweeper.py",
        "watched = 0.0 if self._hindered else passed",
        "watched = passed",
        tests=(SWEEPER,),
    ),
    one(
        "last-heartbeat",
        "a heartbeat at the last moment saves a worker",
        "batching/moves/leadership.py",
        "        condition.append(workers.c.heartbeat_at == last_seen)\n",
        "        pass\n",
        tests=(RACES,),
    ),
    one(
        "lost-messages",
        "the sweep of dispatches whose message is lost",
        "batching/sweeper.py",
        "        if not lanes:\n            return 0\n",
        "        return 0\n",
        tests=(SWEEPER,),
    ),
    one(
        "lost-workers",
        "the sweep of the runs of dead workers",
        "batching/sweeper.py",
        "for worker_id in sorted(self._watch.look(signs), key=self._failed.__contains__):",
        "for worker_id in self._watch.look(signs)[:0]:",
        tests=(SWEEPER,),
    ),
    one(
        "orphans",
        "the sweep of runs whose worker has no row",
        "batching/sweeper.py",
        "            signs |= dict.fromkeys(sweep.orphaned_workers(connection))\n",
        tests=(SWEEPER,),
    ),
    one(
        "swept-conclusion",
        "the sweep of conclusions that nobody made",
        "batching/sweeper.py",
        "each.row.id for each in outlook.active if wants_conclusion(each.row, each.counts)",
        "each.row.id for each in outlook.active[:0]",
        tests=(SWEEPER,),
    ),
    one(
        "lone-rerun",
        "a suspect is dispatched to run alone",
        "batching/moves/profile.py",
        "pass_number, losses >= max_losses)",
        "pass_number, alone=False)",
        tests=(STATES,),
    ),
    one(
        "lone-worker",
        "a worker runs a suspect with nothing beside it",
        "workers/intake.py",
        "        elif offer.alone:\n",
        "        elif offer.alone and not offer.run:\n",
        tests=(CONSUMER,),
    ),
    one(
        "loss-budget",
        "losses that end a profile",
        "batching/policies.py",
        "            if claimed.losses >= max_losses:\n",
        "            if claimed.losses >= max_losses + 100:\n",
        tests=("tests/test_policies.py", SWEEPER, "tests/test_model.py"),
    ),
    # --- figures
    one(
        "letter-number",
        "a letter of figures that is repeated counts once",
        "batching/moves/figures.py",
        "where=figure_news.c.document.is_(None) & (figure_news.c.number < letter.excluded.number),",
        "where=figure_news.c.document.is_(None),",
        tests=("tests/test_figure_sums.py",),
    ),
    one(
        "letter-box",
        "a letter of figures waits until the one before was taken",
        "batching/moves/figures.py",
        "where=figure_news.c.document.is_(None) & (figure_news.c.number < letter.excluded.number),",
        "where=figure_news.c.number < letter.excluded.number,",
        tests=("tests/test_figure_sums.py",),
    ),
    one(
        "letter-lock",
        "a letter of figures is taken by one leader, and waited for by none",
        "batching/moves/figures.py",
        "        .with_for_update(skip_locked=True)\n",
        tests=("tests/test_figure_sums.py",),
    ),
    # --- counting and ending
    one(
        "ticket",
        "the lock of the writer's ticket",
        "batching/moves/counters.py",
        "    return select(counters.c.batch_id).where(ours).order_by(counters.c.batch_id).with_for_update()\n",
        "    return select(counters.c.batch_id).where(ours).order_by(counters.c.batch_id)\n",
        tests=(RACES,),
    ),
    one(
        "bulk-lock",
        "a bulk move waits for every writer",
        "batching/moves/bulk.py",
        "    counters.lock_all(connection, batch.id)\n    counts = counters.read",
        "    counts = counters.read",
        tests=(RACES,),
    ),
    one(
        "conclusion",
        "a conclusion looks again under the lock",
        "batching/moves/batch.py",
        "    if not wants_conclusion(batch, counts):\n        return None\n",
        tests=(RACES, STATES),
    ),
    one(
        "conclusion-lock",
        "a conclusion reads the sums under the batch's lock",
        "batching/moves/batch.py",
        "    queue_order.lock_queue_of(connection, batch_id)\n    batch = lock_batch(connection, batch_id)\n"
        "    return _conclude(",
        "    batch = _reread(connection, batch_id)\n    return _conclude(",
        tests=(RACES,),
    ),
    one(
        "settled-conclusion",
        "whoever settles last concludes, after the commit",
        "batching/execution_manager.py",
        "self._state_manager.conclude({run.batch_id for run in result.applied} - _goes_on(settlements, holding))",
        "pass",
        tests=("tests/test_execution_manager.py",),
    ),
    one(
        "stop-refusal",
        "a finished batch is not stopped",
        "batching/moves/batch.py",
        "    if batch.state in TERMINAL_BATCH_STATES:\n        verb =",
        "    if batch.state is BatchState.LOADING:\n        verb =",
        tests=(STATES, "-k", "stop"),
    ),
    one(
        "tail",
        "a failed batch goes to the end of its queue",
        "batching/moves/batch.py",
        "        position = queue_order.tail(connection, batch.queue)\n    elif",
        "        position = batch.position\n    elif",
        tests=(STATES, "-k", "end or policy"),
    ),
    one(
        "seal",
        "a batch whose loading lapsed is not sealed",
        "batching/moves/submission.py",
        "        .where(batches.c.id == batch_id, LOADS)\n        .values(",
        "        .where(batches.c.id == batch_id)\n        .values(",
        tests=(RACES,),
    ),
    # --- the worker
    one(
        "kept-outcomes",
        "outcomes are kept until the database has answered",
        "workers/settling.py",
        "        self._complete(holder, [(request.claimed, outcome) for request, outcome in group])\n"
        "        self._waiting =",
        "        kept, self._waiting = self._waiting, []\n"
        "        self._complete(holder, [(request.claimed, outcome) for request, outcome in group])\n"
        "        self._waiting =",
        tests=(CONSUMER,),
    ),
    one(
        "strays",
        "a worker gives back what it does not know",
        "workers/life.py",
        "        strays = [run for run in running if run not in consumer.held]\n",
        "        strays: list[RunId] = []\n",
        tests=(CONSUMER,),
    ),
    one(
        "rebirth",
        "a worker that was declared dead takes a new identity",
        "workers/life.py",
        "            self._be_reborn()\n",
        "            pass\n",
        tests=(CONSUMER,),
    ),
    one(
        "sign-alone",
        "after a sign of life that failed, the next begins with the sign alone",
        "workers/life.py",
        "            self._registry.touch(self.info.id)\n",
        "            pass\n",
        tests=(CONSUMER,),
    ),
    one(
        "interrupts-over",
        "what is over is not interrupted: its child may be at another run",
        "workers/interrupter.py",
        " and not request.over:",
        ":",
        tests=(CONSUMER,),
    ),
    one(
        "turns",
        "the more threads a worker has, the shorter are their turns with the interpreter",
        "workers/bootstep.py",
        "                share_interpreter(int(controller.concurrency))\n",
        "                pass\n",
        tests=("tests/acceptance/test_workers.py", "-k", "compute"),
    ),
    # --- copies of popped messages
    one(
        "copies",
        "a copy of what was popped is kept until the claim, where that was asked for",
        "workers/unacknowledged.py",
        "        if not offers:\n            return\n        if (now :=",
        "        if offers:\n            return\n        if (now :=",
        tests=(COPIES,),
    ),
    one(
        "copies-shown",
        "a worker shows that it still holds what it has popped",
        "workers/unacknowledged.py",
        "        renewal = [(",
        "        renewal = [] and [(",
        tests=(COPIES,),
    ),
    one(
        "copies-once",
        "of several workers that find a copy, one offers it again",
        "workers/unacknowledged.py",
        "zip(members, removed, strict=True) if count]",
        "zip(members, removed, strict=True)]",
        tests=(COPIES,),
    ),
    one(
        "copies-dropped",
        "a copy goes when its run is claimed",
        "workers/intake.py",
        "            self._consumer.loop.call_soon(self._copies.acknowledge, offers)\n",
        "            pass\n",
        tests=(COPIES,),
    ),
    # --- the end of a worker
    one(
        "forgotten",
        "what Celery's consumer lets the pool forget when it stops is taken back before the drain",
        "workers/bootstep.py",
        "        assembly.loop.call_soon(self._recover_forgotten)\n        assembly.loop.call_soon(drain.begin)\n",
        "        assembly.loop.call_soon(drain.begin)\n",
        tests=(f"{STOPPING}::test_what_a_child_has_got_and_not_begun_is_neither_lost_nor_waited_for",),
    ),
    one(
        "pool-last",
        "nobody stops the pool before the drain",
        "workers/bootstep.py",
        "        self._stop_the_pool_last(controller.pool)\n",
        tests=(f"{STOPPING}::test_a_worker_that_stops_at_once_ends_a_child_that_it_has_not_heard_of",),
    ),
    one(
        "last-word",
        "a dead child's last word is read before its job goes to another",
        "workers/children.py",
        "                processes.process_flush_queues(child)\n",
        "                pass\n",
        tests=("tests/acceptance/test_endings.py::test_two_handlers_end_their_processes_at_the_same_time",),
    ),
    one(
        "rest",
        "a worker that a person lets rest takes nothing new",
        "workers/resting.py",
        "        consumer.draining = True\n",
        "        pass\n",
        tests=("tests/acceptance/test_remote.py",),
    ),
    one(
        "rest-reborn",
        "a worker that rests, and was declared dead, rests on",
        "workers/life.py",
        "self._registry.register(self.info, drain=self.rest.asked)",
        "self._registry.register(self.info)",
        tests=("tests/acceptance/test_remote.py",),
    ),
    # --- the disk
    one(
        "flush",
        "a small batch is on the disk before it is reported as submitted",
        "batching/state_manager.py",
        "                direct.execute(whole.FLUSH, {})\n",
        tests=("tests/faults/test_durability.py",),
    ),
    one(
        "claim-flush",
        "a claim is on the disk before it counts",
        CLAIMING,
        '    return select(moved).add_cte(counted.cte("counted"))\n\n\n@lru_cache\ndef claim_first',
        '    off = func.set_config("synchronous_commit", "off", True) == "off"\n'
        '    return select(moved).where(off).add_cte(counted.cte("counted"))\n\n\n@lru_cache\ndef claim_first',
        tests=("tests/faults/test_durability.py",),
    ),
]
