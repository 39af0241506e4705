"""Models: from the files of a checkpoint to logits.

    resolve     which folder a model's name means; downloads it if need be
    config      config.json                -> ModelSpec, a value with everything checked
    checkpoint  *.safetensors              -> Checkpoint: headers that agree with the model
    filling     Checkpoint                 -> Weights, in one arena on the device
    tokenizer   tokenizer.json, side files -> token ids and back; in it, no `patterns` without end
    chat        templates, messages        -> a prompt; each `template` in a `sandbox` with `bounds`
    decoder     ModelSpec, Weights, device -> logits
    loader      all of these together      -> Model

Nothing here unpickles, and nothing runs code that comes with a model: chat templates are rendered
in Jinja's sandbox, in bounded time and memory, and every other file is data.
"""
