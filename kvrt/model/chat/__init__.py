"""Messages to a prompt, by the Jinja template that comes with a model.

messages   the messages of a conversation, checked
templates  a model's chat templates, and which is meant
template   one of them
sandbox    what it runs in
bounds     how long it may compute, and how much it may make
"""
