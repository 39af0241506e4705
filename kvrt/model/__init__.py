"""Models: from the files of a checkpoint to logits.

    files       which folder a model's name means; downloads it if need be
    config      config.json                -> ModelSpec, a value with everything checked
    checkpoint  *.safetensors              -> headers that agree with the model -> Weights
    gguf        *.gguf                     -> the same, from a file of llama.cpp's format
    weights     which there are, and where they lie in one arena on the device
    offload     experts that are read when a token chooses them, and not all in memory
    packed      weights that are kept as codes of 8 bits and fewer
    tokens      tokenizer.json, side files -> token ids and back
    chat        templates, messages        -> a prompt; each template in a sandbox with bounds
    decoder     ModelSpec, Weights, device -> logits; `lora` adapts it, `borrowed` stands in for it
    encoder     the same for models that read a text in both directions
    loader      all of these together      -> Model

Nothing here unpickles, and nothing runs code that comes with a model: chat templates are rendered
in Jinja's sandbox, in bounded time and memory, and every other file is data.
"""
