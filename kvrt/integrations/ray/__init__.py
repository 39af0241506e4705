"""kvrt on a Ray cluster: replicas by Ray Serve, files of prompts by Ray Data.

    serving    a deployment: a runtime in each replica
    choosing   which replica is asked: by what it was asked before, and its load
    asking     an answer from it, also if the replica that gives it dies
    batches    prompts of a data set, answered by actors

Ray starts the processes, finds places for them, and starts those that have died again. Needs the
extra ``kvrt[ray]``. Written against Ray 2.60.
"""
