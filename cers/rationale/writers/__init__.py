"""Writers of rationales besides the measured one: language models at an endpoint or on this machine, and tables that others wrote.

Whatever they write is held to the measured descriptors. Importing this package opens no connection and loads no model.
"""

from .batch import Estimate, Plan, Retry, WriteReport, plan, write
from .endpoint import Endpoint, consent_text, endpoint_url, find_key, is_loopback, key_from
from .ledger import Consent, Ledger, config_folder
from .local import GgufModel, TransformersModel, local_model
from .model import Answer, Model, Request, Stop
from .overview import Overview, overview
from .prompt import Prompt
from .table import import_table
from .verify import Finding, contradicting, names_anatomy, verify

__all__ = [
    "Answer",
    "Consent",
    "Endpoint",
    "Estimate",
    "Finding",
    "GgufModel",
    "Ledger",
    "Model",
    "Overview",
    "Plan",
    "Prompt",
    "Request",
    "Retry",
    "Stop",
    "TransformersModel",
    "WriteReport",
    "config_folder",
    "consent_text",
    "contradicting",
    "endpoint_url",
    "find_key",
    "import_table",
    "is_loopback",
    "key_from",
    "local_model",
    "names_anatomy",
    "overview",
    "plan",
    "verify",
    "write",
]
