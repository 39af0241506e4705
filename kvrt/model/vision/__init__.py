"""What a model sees: images, made into states that stand where a text has embeddings.

spec        what a tower is, and how config.json says it
pixels      from a file to the pixels that a tower reads, within limits
tower       from pixels to states
weights     a tower's, read from safetensors files
vision      both together, as a loaded model has them
prompt      prompts that have images, and where these stand among the tokens
"""
