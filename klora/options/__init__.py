"""What a setting is: its name, type, bounds and help, and how a value that somebody sends is read."""

from klora.options.setting import Setting, SettingValue, Values
from klora.options.top_k import TopK, normal_top_k

__all__ = ["Setting", "SettingValue", "TopK", "Values", "normal_top_k"]
