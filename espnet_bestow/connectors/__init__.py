"""How speech meets the LLM: one small file per system, one face (:class:`Connector`)."""

from espnet_bestow.connectors.base import Connector, ConnectorState, LLMInput, SeatedState, Speech
from espnet_bestow.connectors.cross_attention import CrossAttentionConnector
from espnet_bestow.connectors.prepend import PrependConnector
from espnet_bestow.connectors.recurrent import RecurrentConnector

CONNECTORS: dict[str, type[Connector]] = {
    "cross_attention": CrossAttentionConnector,
    "prepend": PrependConnector,
    "recurrent": RecurrentConnector,
}

__all__ = [
    "CONNECTORS",
    "Connector",
    "ConnectorState",
    "CrossAttentionConnector",
    "LLMInput",
    "PrependConnector",
    "RecurrentConnector",
    "SeatedState",
    "Speech",
]
