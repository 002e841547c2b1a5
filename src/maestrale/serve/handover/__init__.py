"""READ FIRST of this package. An upgrade without a lost stream: one server takes over from another.

    old        starts the new one: the same command line, the program as it is now on the disk
    │  ▲       hands it its listening sockets, over a socket pair that only these two hold
    ▼  │       "room": the memory doesn't hold both; then the old one's engine ends first
    new        loads its models, takes connections, and says "ready"
               the old one then takes no more, finishes what it has, and ends

Until "ready" nothing has changed: where the new one ends before, the old one goes on. After it the
old one lends the streams that it still makes (api/durable/lending.py), so that they can be asked
for at the port, whatever their arithmetic.
"""
