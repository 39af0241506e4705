"""Several models in one server: each is loaded when it is asked for, and makes room for others.

members   models, and requests for them: values
worth     what it costs that a model is not loaded: from its demand, its load time, its bytes
memory    what models hold, and what goes where one has no room
states    which model is loaded, which waits, which goes: rules, without a clock
naming    models of the command line and of a folder, by their names
places    the devices that they may be on
weighing  what models need there
opening   all of them are weighed, and none is loaded
models    carries the rules out: runtimes come and go, requests wait for theirs
routes    what clients, operators and Ollama's clients see and say of models
app       the routes, as one ASGI application: each request goes to the model that it names
"""
