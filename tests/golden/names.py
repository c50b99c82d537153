"""What our connector's parameters are called in the authors' adapter."""

import re

CONNECTOR_NAMES = (
    (r"^blocks\.", "decoder.layers."),
    (r"\.self_norm\.", ".layer_norm_1."),
    (r"\.cross_norm\.", ".layer_norm_2."),
    (r"\.ffn_norm\.", ".layer_norm_3."),
    (r"\.self_attention\.", ".first_sub_layer."),
    (r"\.cross_attention\.", ".second_sub_layer."),
    (r"\.(query|key|value)\.", r".\1_net."),
    (r"\.out\.", ".out_projection."),
    (r"\.ffn\.0\.", ".third_sub_layer.dense_in."),
    (r"\.ffn\.3\.", ".third_sub_layer.dense_out."),
    (r"^norm\.", "decoder.final_layer_norm."),
)


def nemo_connector_name(name: str) -> str:
    """The name, in an adapter around NeMo's decoder, of one of our connector's parameters."""
    for pattern, replacement in CONNECTOR_NAMES:
        name = re.sub(pattern, replacement, name)
    return name
