"""From stream entries to events: columns of validated values, and why a row is not valid.

Pure: no Redis, no clock, no files. One entry never affects another: every bulk shortcut below
hands the rows it does not understand, one by one, to the plain functions that define the rules
(`_read_row`, `_Vocabulary.code`, `_confidence`, `_time_us`).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from operator import attrgetter, itemgetter
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np
from msgspec import UNSET
from numpy.typing import NDArray

from drainkit.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd

type RawEntry = Sequence[Any]
