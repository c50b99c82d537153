"""What ESPnet does not have: transformers' audio encoders, Whisper's own features, and what streams.

Names are resolved on first use, so importing this package loads neither transformers nor espnet2.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from espnet_bestow.encoders.conv_subsampling import ConvSubsampling
    from espnet_bestow.encoders.fastconformer import FastConformerEncoder
    from espnet_bestow.encoders.hf_whisper import FullWindowWhisperEncoder, HFWhisperEncoder
    from espnet_bestow.encoders.running_mvn import RunningMVN
    from espnet_bestow.encoders.streaming_fastconformer import StreamingFastConformerEncoder
    from espnet_bestow.encoders.whisper_frontend import WhisperLogMelFrontend

__all__ = [
    "ConvSubsampling",
    "FastConformerEncoder",
    "FullWindowWhisperEncoder",
    "HFWhisperEncoder",
    "RunningMVN",
    "StreamingFastConformerEncoder",
    "WhisperLogMelFrontend",
]

_HOME = {
    "ConvSubsampling": "conv_subsampling",
    "FastConformerEncoder": "fastconformer",
    "FullWindowWhisperEncoder": "hf_whisper",
    "HFWhisperEncoder": "hf_whisper",
    "RunningMVN": "running_mvn",
    "StreamingFastConformerEncoder": "streaming_fastconformer",
    "WhisperLogMelFrontend": "whisper_frontend",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
