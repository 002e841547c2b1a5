"""Engines as replicas of a Ray Serve deployment, behind the same Engine protocol.

    API process                                      a node of the cluster
    RayServeEngine (engine.py)  ── run, control ──►  EngineReplica (replica.py), an actor
      fleet, ledger of requests  ◄── listen ──────     └─ engine process (supervise/), as ever
    PrefixRouter (router.py)    chooses the replica, inside Ray Serve's router

Ray Serve starts, replaces, adds and removes replicas, places them on nodes and counts their
requests; what is here is what it can't know: which replicas take new requests (`fleet.py`), which
requests are in flight and how far they are (`traffic.py`, `flights.py`), where a conversation's
cache lies (`prefix.py`), and what a replica owes to whom (`session.py`). Read `engine.py` first.
"""
