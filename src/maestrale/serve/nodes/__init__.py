"""One API process on each node of a Ray cluster (`--api-nodes all`).

    first server (its node)                        every other node
    ApiNodes (keeper.py)  ── state, take_keys ──►  ApiOnNode (actor.py), pinned to the node
                                                     └─ an API process (child.py), joined to the
                                                        same replicas as with --ray-join

The first server has one actor on each node that is alive, and looks for new nodes. The actor starts
the API process, waits for its end and starts it anew. It is the first server's: when that ends, by
whatever means, Ray ends the actor, and the kernel the API process with it. Read `keeper.py` first.
"""
