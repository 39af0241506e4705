"""Files that came from somewhere else: which they are, where they are, and JSON in them.

resolve    which folder a model's name means; downloads it if need be
hub        downloads from the Hugging Face hub
hubheader  headers of GGUF files there
foreign    what is no checkpoint, but stands where one should
jsonfile   reading JSON: bounded, typed, and blamed on the right field
"""
