"""The SDK: everything that a component or a strategy needs, in one import.

from tallystick.components import Component, Context, Received
"""

from tallystick.runtime.bus.component import Component, Context
from tallystick.runtime.bus.received import Received
from tallystick.runtime.bus.strategy import OpenOrder, Strategy, StrategyContext
from tallystick.schemas.errors import ConfigError, Malformed, TallystickError, Unverified
from tallystick.schemas.subjects import Subject, parse_subject, subject

__all__ = [
    "Component",
    "ConfigError",
    "Context",
    "Malformed",
    "OpenOrder",
    "Received",
    "Strategy",
    "StrategyContext",
    "Subject",
    "TallystickError",
    "Unverified",
    "parse_subject",
    "subject",
]
