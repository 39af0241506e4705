"""What workspaces, and keys, may take and have taken.

accounts  what each has left: asked before the model is, and settled afterwards
ledger    what was taken, by whom and when: a database, which survives the server
metering  counts what is asked of models beside the one that answers
reserving how many tokens a request may take at most
reports   that, as JSON and CSV
route     that, over HTTP
steering  what whoever is in charge may do there: end requests, have keys come and go
"""
