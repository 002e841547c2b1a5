"""`maestrale setup`: driver, Docker, container toolkit on a machine, as pyinfra operations.

facts (machine/probe.py) ─► plan.py: what should be there ─► deploy.py: the steps
                                                                │ operations.py
run.py: checks, dry run, steps, reboot, proof  ◄── pyinfra ─────┘ connector.py
"""
