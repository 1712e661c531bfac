"""Every write, one file per noun: functions that take a connection and make one guarded move.

`BatchStateManager` gives each of them its transaction. Locks are always taken in this order, so that no two writers can
wait for each other: the queue's row, the batch's row, counter rows by batch id, profile rows.
"""
