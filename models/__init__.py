"""A model as data: its layers, the names of its tensors, the contracts of its stages. No torch.

spec.py         layers and sizes of any family; its parts: decoder_spec.py, image_spec.py, and
                spec_checks.py, which both use
family.py       data of a family: reader of config.json, names of tensors, presets
registry.py     model_type -> family, loaded when it is needed
parameters.py   path and shape of every parameter; tensors.py: the same by a family's names
clip.py         vision towers: their config.json, found or written; towers.py: published ones
config_reader.py  strict reader of config.json
llama_layers.py   Llama's and Mistral's keys in it; jamba_layers.py: Jamba's
rotary.py       angles of rotary positions
chat.py         chat format: roles, separators, media markers; chat_file.py: a bundle's choice of it
chat_template.py  a chat format from a checkpoint's template; jinja_template.py: what runs one
image_layout.py an image's size to its views and the order of their rows
image_policy.py how a still in high resolution is cut into tiles, and the text around them
preset_names.py names of presets, for the command line's help
contracts.py    names, shapes and dtypes of every stage
checkpoint.py   position of every tensor of a checkpoint
llava_jamba/    LongLLaVA: CLIP, 2x2 pooling, MLP projector, Jamba
llava/          LLaVA-1, 1.5, 1.5-HD, 1.6: CLIP, MLP projector, Llama or Mistral
jamba/          Jamba, text alone

A new family is a folder with `FAMILY` in its family.py, and one line in registry.py.
"""
