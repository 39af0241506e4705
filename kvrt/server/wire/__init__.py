"""Bytes in, bytes out.

listener    a socket at an address, and uvicorn over it
connection  uvicorn's connection, whose requests have to come to a point
answers     JSON, and errors in its place
http        bodies with a limit, JSON, events
form        forms with a file in them
sockets     the same by WebSockets
prefix      OpenAI's routes where KServe has them
outgoing    connections that the server makes itself
"""
