"""`maestrale create`: a cloud machine that serves, by way of SkyPilot. Read `flow.py` first."""
