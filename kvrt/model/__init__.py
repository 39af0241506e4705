"""Models: from the files of a checkpoint to logits.

    files       which folder a model's name means; downloads it if need be
    source      what a model is read from: such a folder, or a GGUF file
    config      config.json                -> ModelSpec, a value with everything checked; `families`
                what an architecture's name says besides; `generation` how its author samples
    spec        that value; `states`: layers without attention; `layouts`: what is in pages
    shard       which part of it a rank has
    choice      what it becomes on a device: dtypes, codes, bytes, before memory is taken
    checkpoint  *.safetensors              -> headers that agree with the model -> Weights
    gguf        *.gguf                     -> the same, from a file of llama.cpp's format
    weights     which there are, and where they lie in one arena on the device
    offload     experts that are read when a token chooses them, and not all in memory
    packed      weights that are kept as codes of 8 bits and fewer
    tokens      tokenizer.json, side files -> token ids and back
    chat        templates, messages        -> a prompt; each template in a sandbox with bounds
    decoder     ModelSpec, Weights, device -> logits; `lora` adapts it, `borrowed` stands in for it
    encoder     the same for models that read a text in both directions
    vision      images                     -> states in place of embeddings
    speech      sound                      -> text
    merging     several checkpoints        -> one
    bundled     the model `tiny`, and how it was made
    loader      all of these together      -> Model; `progress` tells how far it is

Nothing here unpickles, and nothing runs code that comes with a model: chat templates are rendered
in Jinja's sandbox, in bounded time and memory, and every other file is data.
"""
