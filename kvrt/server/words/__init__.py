"""What all protocols have in common in their requests and answers.

protocol    what a protocol is to the server
fields      what may stand in a request
sampling    its fields as `SamplingParams`
structured  what its answer may be, as a constraint
pictures    images, as each protocol has them
talk        conversations with tools and reasoning
strict      calls that are held to their functions' schemas
shapes      whose words an error is in, where nobody has read the request
"""
