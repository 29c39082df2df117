"""The show behind ``defender demo``: a simulated fab, one real defender, and somebody who counts.

    publisher (own process) ──► nats-server (own process) ◄──► defender run (own processes)
        │ what the server acknowledged       │ what came out, as any subscriber gets it
        └────────────────► ledger ◄──────────┘

`plan` says what is published, `publisher` publishes it, `observer` reads the streams from the outside,
`ledger` compares the two, `processes` starts, kills and stops, `show` is the order of events, and `view`
puts it on a terminal. No figure of the summary is the defender's own word, but for the cache's hit rate.
"""
