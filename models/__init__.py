"""What a model is, as data: configuration, tensor names, contracts of its stages. No torch.

contracts.py    names, shapes and dtypes of every stage
llava_jamba/    LongLLaVA: CLIP, 2x2 pooling, MLP projector, Jamba
"""
