"""What a model is, as data: configuration, tensor names, contracts of its stages. No torch.

chat.py         chat format: roles, separators, media markers
image_policy.py how a still is cut into tiles, and the text around them
contracts.py    names, shapes and dtypes of every stage
llava_jamba/    LongLLaVA: CLIP, 2x2 pooling, MLP projector, Jamba
"""
