"""The oracle: LongLLaVA in plain PyTorch, slow and obvious.

Knows nothing of ONNX, TensorRT or the runtime. What it replicates, and at which precision, is written in
each module. Single letters in comments: B batch, L sequence length, D d_inner, N d_state, H heads,
G key/value heads, E experts. `T` is the model's dtype.

    model.py           the whole model, with the original checkpoint's parameter names
    clip.py            vision tower: hidden_states[-2] without the class token
    projector.py       2x2 pooling
    decoder.py         the layer pattern; mamba.py, attention.py, moe.py its mixers and feed-forwards
    operators.py       the operators that export swaps for ONNX nodes, in plain PyTorch
    cache.py           carried state
    checkpoint.py      strict loading
    generate.py        embedding assembly and greedy decoding
    prompt.py          a question and its images to ids, as the original's strings
    synthetic.py       synthetic checkpoints: seeded random weights, or holes of the published sizes
    transformers_jamba.py  the same weights in code nobody here wrote
"""
