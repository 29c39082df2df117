"""A simulated fleet: the pure parts of the defender under a fake clock, a fake bucket and many faults.

Real: `identity.decide`, `policy.Policy`, `handoff.Handoffs`, `records.Layout`, the ownership records. A
model: the server, the links, the drivers around the pure parts, workers that copy, judge and publish. One
schedule is a seed and a list of faults; the same schedule always takes the same course.

    heap        the fake clock              server      buckets, consumers, verdicts
    link        delays, losses, cuts        view        the fleet as a pod sees it
    process     claim, lease, departure     leading     election, and the leader's writes
    duties      what a plan orders          serving     a worker
    deployment  Kubernetes' controller      schedule    seeds and faults, as values
    faults      what each does              invariants  what must hold
    world       all of it, and `simulate`   shrink      a failing schedule made small

``make simulate`` runs 100,000 schedules; ``make simulate ARGS="--seed 7"`` tells one in full.
"""
