"""A simulated fleet: the pure parts of the defender under a fake clock, a fake bucket and many faults.

Real: `identity.decide`, `policy.Policy`, `handoff.Handoffs`, `records.Layout`, the ownership records. A model:
the server, the links, the drivers around the pure parts, workers that copy, judge and publish. One schedule
is a seed and a list of faults; the same schedule always takes the same course.
"""
