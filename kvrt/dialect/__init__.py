"""How a model writes its reasoning and its calls of tools: found out from its chat template.

derive    renders the template with and without a call, and compares: a `Dialect`
marks     where calls and reasoning begin, and how they are written: values
reader    an answer as it comes, apart: reasoning, content, calls
events    what these are, piece by piece
calls     how a call's text reads, by its kind: JSON, a name and JSON, tags, Python, quotes
members   a JSON object as it comes
plugins   readers of others, by the entry-point group ``kvrt.readers``
"""
