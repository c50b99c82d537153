"""How speech meets the LLM: one small file per system, one face (:class:`Connector`)."""

from espnet_bestow.connectors.base import Connector, ConnectorState, LLMInput, SeatedState, Speech
from espnet_bestow.connectors.blsp import BLSPConnector
from espnet_bestow.connectors.cross_attention import CrossAttentionConnector
from espnet_bestow.connectors.per_layer import PerLayerConnector
from espnet_bestow.connectors.prepend import PrependConnector
from espnet_bestow.connectors.recurrent import RecurrentConnector
from espnet_bestow.connectors.slm import SLMConnector

CONNECTORS: dict[str, type[Connector]] = {
    "blsp": BLSPConnector,
    "cross_attention": CrossAttentionConnector,
    "per_layer": PerLayerConnector,
    "prepend": PrependConnector,
    "recurrent": RecurrentConnector,
    "slm": SLMConnector,
}

__all__ = [
    "CONNECTORS",
    "BLSPConnector",
    "Connector",
    "ConnectorState",
    "CrossAttentionConnector",
    "LLMInput",
    "PerLayerConnector",
    "PrependConnector",
    "RecurrentConnector",
    "SLMConnector",
    "SeatedState",
    "Speech",
]
