"""The reference: the model in plain PyTorch, slow and obvious.

Knows nothing about ONNX, TensorRT or the runtime. Each module says what it replicates, and at which
precision. Single letters in comments: B batch, L sequence length, D d_inner, N d_state, H heads,
G key/value heads, E experts. `T` is the model's dtype.

    model.py           the whole model, built from its specification clip.py            vision tower
    connector.py       pooling and projector decoder.py         the layers; mamba.py, attention.py,
    moe.py their mixers and feed-forwards rotary.py           positions of attention operators.py       the operators that export swaps for
    ONNX nodes, in plain PyTorch cache.py           carried state checkpoint.py      strict loading
    generate.py        embedding assembly and greedy decoding prompt.py          a question and its
    images to ids, as the original's strings synthetic/         synthetic checkpoints: seeded random
    weights, or sparse files of the published sizes
"""
