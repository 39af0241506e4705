"""What a model sees: images, made into states that stand where a text has embeddings.

spec      what all towers have in common, and how files say it
families  the towers that are known
gemma3, qwen25, qwen3
          theirs: shape, weights, and from pixels to states
qwen      what the last two have in common
parts     what they compute with
pixels    from a file to the pixels that a tower reads, within limits
vision    a loaded model's tower, and what it has seen
prompt    prompts that have images, and where these stand among the tokens
"""
