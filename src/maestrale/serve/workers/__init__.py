"""Several API processes in front of the engines: `maestrale serve --api-workers N`.

parent.py     owns the port, the engines, the queues and the vetting processes; no HTTP
handle.py     its end of one worker: what that asks for, its death, its successor
worker.py     an API process: HTTP, prompts, text, streams
remote.py     what a worker has in the place of engine, queue and vetter: asks the parent
cut.py        what requests had used whose worker died
messages.py   what they say to each other
"""
