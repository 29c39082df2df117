"""The lab: whole fleets of real defenders under load, what befalls them, and what it cost, seen from outside.

scenario ──► run ──► Result ──► terminal, report.html, result.json
              │
              ├── server               a real nats-server, through a proxy that can cut it off
              ├── controllers, pods    real `defender run` processes, and what Kubernetes does to them
              ├── load                 producer processes, open loop
              ├── observer, follower   who owned what when, and every report's wait
              └── audit                one process judges everything again
"""
