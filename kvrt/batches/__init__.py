"""Batches: a file of requests in, a file of answers out, each exactly once whatever happens.

input file --> lines ------> run --------------> journal + database --> outputs
               checked once  asked, by model     group commits:         in the order of the
               as a whole    and shared prefix   bytes, fsync, commit   input, by rename

Of lines and answers the database (SQLite) has places in files, never what they say. Bytes beyond
what it knows of are as good as never written, so that a kill at any moment costs what was being
computed, and nothing else.
"""
