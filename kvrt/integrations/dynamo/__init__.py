"""A worker of NVIDIA Dynamo: kvrt behind its front end, which chooses a worker by cached pages.

    python -m dynamo.frontend --discovery-backend file --router-mode kv &
    python -m kvrt.integrations.dynamo MODEL --discovery-backend file

The front end makes text into tokens and back, and looks for stop strings; here are tokens alone. It
is told which pages are cached by `kvrt.integrations.events`. Needs ``ai-dynamo`` and the extra
``kvrt[events]``. Written against Dynamo 1.6 (`dynamo.common.backend.engine`).

words   requests and answers, in either's words
engine  what Dynamo's worker calls
"""
