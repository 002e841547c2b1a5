"""The scripted engine: no model, same protocol, and it crashes, hangs and dawdles on cue.

Its tokens are a hash of the request, so they are the same in any batch and any process, as a
deterministic engine's must be. Tests of everything above the engine run on it.

`EngineConfig.options` (all values are strings):

    text / tokens        what each answer says: a text, or a JSON list of token ids. A grammar is
                         obeyed first
    replies              a JSON list of pairs: words of a prompt, what is said to it. The first pair
                         that fits; none: as above
    length               tokens before the natural end; default: 8 to 64, by the request's hash
    tokens_per_second    pace of each sequence; default: as fast as it goes
    tokens_per_step      of each sequence; default: 1
    step_seconds         each step blocks the process for so long, as a slow model's does
    start_seconds        how long `start` takes
    fail_start           the message that it fails with
    fail_start_while     a file while which exists it fails
    crash_at_token       the process kills itself before this token (0 is the first)
    hang_at_token        the process stops for good before this token
    lose_at_token        the step loop raises before this token: the whole engine is lost
    lose_idle_after      seconds after the start at which the engine is lost, with no request in it
    helper               it starts a process of its own, which would live for a minute
    crash_on_prompt      only prompts with this token id crash, hang or lose the engine
                         (at the first token, unless one of the above says which)
    refuse_on_prompt     prompts with this token id get an EngineError, the engine goes on
    marker, times        a file that counts the above accidents: after `times` no more of them
    nondeterministic     tokens differ between processes, and the engine says so
    fingerprint          in place of its own;  "random": another in each process

With GPUs that Ray reserved on several nodes it has an actor on each (actors.py), and is
lost with any of them.
"""

from maestrale.engines.scripted.engine import ScriptedEngine

__all__ = ["ScriptedEngine"]
